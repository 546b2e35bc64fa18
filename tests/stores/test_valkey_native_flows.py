"""Joins that the server decides are what the rules make of them: the same answers, the same records."""

import asyncio
from typing import Any, Self

import msgspec
import pytest

from flowfabric import errors
from flowfabric.contracts.blocking import PauseExecutionArgs
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    CompleteExecutionArgs,
    ExecutionCompleted,
    ReplayExecutionArgs,
)
from flowfabric.contracts.flows import (
    AllOfEdges,
    AnyOfEdges,
    CancelFlowHeaderArgs,
    EdgeDependencyPolicy,
    FlowCancellationPolicy,
    OnSatisfied,
    QuorumOfEdges,
)
from flowfabric.contracts.policy import ExecutionPolicy, RoutingRequirements
from flowfabric.contracts.states import PublicState
from flowfabric.core.commands import DeliverMessageArgs, MessageDelivered
from flowfabric.core.indexes import DUE_MESSAGE, ELIGIBLE
from flowfabric.core.layout import USUAL
from flowfabric.core.records import Execution, key_for
from flowfabric.core.work import Envelope
from flowfabric.engine.lanes import KnownLanes
from flowfabric.stores.valkey import ValkeyStore
from flowfabric.stores.valkey.keys import SCOPE_END
from flowfabric.stores.valkey.native.decisions import EDGES_MAX
from flowfabric.stores.valkey.packing import FRAME
from flowfabric.stores.valkey.telling import SCOPES_MAX
from flowfabric.testing.bed import NAMESPACE
from flowfabric.testing.conformance.flows import Graph, graph
from tests.stores.monitor import monitored
from tests.stores.pair import Pair, fenced
from tests.valkey import server

LET_RUN = OnSatisfied.LET_RUN
WAITING, WAITING_CHILDREN = PublicState.WAITING, PublicState.WAITING_CHILDREN
NAME = "resolve_dependency"


class Twins:
    """The same flow in both beds. What is owed is delivered only when a test says so.

    Args:
        pair: the beds.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.both: list[Graph] = []

    async def open(
        self,
        edges: str,
        policies: dict[str, EdgeDependencyPolicy] | None = None,
        *,
        seal: bool = True,
        names: str = "",
    ) -> Self:
        """Create it, with members of one letter each: those that the edges name, unless others are named."""
        names = names or "".join(sorted({*edges} - {" "}))
        for bed in (self.pair.native, self.pair.ruled):
            self.both.append(await graph(bed, names))
        for flow in self.both:
            await flow.connect(edges, policies, seal=seal)
        return self

    async def each(self, act: Any) -> None:
        """Do the same with both."""
        for flow in self.both:
            await act(flow)

    async def end(self, names: str, *, failing: str = "") -> None:
        """End members one after the other, in a process that does not know them; the news is owed then."""
        for flow in self.both:
            with flow.bed.nothing_delivered():
                for name in names:
                    claim = await flow.bed.claim(flow.ids[name])
                    self.pair.store.native.forget()
                    if name in failing:
                        await flow.bed.fail(claim, failure_category="permanent")
                    else:
                        await flow.bed.complete(claim)

    async def run(self, *names: str) -> None:
        """Claim members and then complete them at once, as one process does."""
        for flow in self.both:
            claims = [await flow.bed.claim(flow.ids[name]) for name in names]
            answers = await flow.bed.engine.execute_many(
                [completion(claim) for claim in claims],
                request_ids=[f"{name}-ends" for name in names],
                namespace=NAMESPACE,
            )
            assert all(isinstance(answer, ExecutionCompleted) for answer in answers), answers
        assert not self.pair.store.native.statistics.failed
        await self.pair.compare(settled=False)

    async def owed(self) -> list[str]:
        """The messages that wait to be delivered."""
        rows = await self.pair.native.store.read_index(DUE_MESSAGE, "")
        return [member for _, member in rows]

    def message(self, name: str) -> DeliverMessageArgs:
        """The delivery of the news that a member has ended."""
        return DeliverMessageArgs(message_id=f"{self.both[0].ids[name]}/ended/0/0")

    async def deliver(self, *names: str) -> list[str]:
        """Deliver the news of some members at once."""
        return await self.ask(*(self.message(name) for name in names))

    async def ask(self, *deliveries: DeliverMessageArgs) -> list[str]:
        """Deliver at once, and no more than that. Returns what has become of it."""
        answers = []
        for flow in self.both:
            with flow.bed.nothing_delivered():
                answers.append(await flow.bed.engine.execute_unbounded(list(deliveries)))
        assert answers[0] == answers[1]
        assert not self.pair.store.native.statistics.failed
        assert all(isinstance(answer, MessageDelivered) for answer in answers[0]), answers[0]
        await self.pair.compare(settled=False)
        return [answer.action for answer in answers[0]]

    async def state(self, name: str) -> PublicState:
        return (await self.both[0].states())[name]


def completion(claim: Any) -> CompleteExecutionArgs:
    return CompleteExecutionArgs(**fenced(claim, source="lease_holder", result_payload=b"r"))


async def twins(pair: Pair, edges: str, *args: Any, **options: Any) -> Twins:
    return await Twins(pair).open(edges, *args, **options)


def accepted(pair: Pair) -> int:
    """How many deliveries the server has decided."""
    return pair.accepted.get(NAME, 0)


class TestTelling:
    async def test_a_shard_is_known_to_have_what_a_join_has_let_go(self, pair: Pair) -> None:
        async def scopes(*, trusting: bool) -> list[str]:
            return await pair.store.eligible_reads(trusting=trusting).index_scopes(ELIGIBLE, "")

        flow = await twins(pair, "ab")
        await flow.end("a")
        assert await scopes(trusting=False) == []
        await flow.deliver("a")
        assert accepted(pair) == 1
        known = await scopes(trusting=True)
        assert len(known) == 1
        assert await scopes(trusting=False) == known

    async def test_the_message_of_a_call_does_not_name_very_many_scopes(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bed, parents = pair.native, "abcdefghij"
        flow = await graph(bed, parents)
        # The last message may go by itself, because its member has just ended; those before it are many.
        children = [chr(0x4E00 + number) for number in range(2 * SCOPES_MAX)]
        for number, name in enumerate(children):
            capability = RoutingRequirements(required_capabilities=(f"c{number}",))
            flow.ids[name] = await bed.create(policy=ExecutionPolicy(routing_requirements=capability))
            await flow.add(name)
        await flow.connect(
            " ".join(f"{parents[place % len(parents)]}{name}" for place, name in enumerate(children))
        )
        with bed.nothing_delivered():
            for name in parents:
                claim = await bed.claim(flow.ids[name])
                pair.store.native.forget()  # so that the flow is sent a message
                await bed.complete(claim)
        heard: list[bytes] = []
        monkeypatch.setattr("flowfabric.stores.valkey.changes.note_told", lambda told, _: heard.append(told))
        messages = [DeliverMessageArgs(message_id=f"{flow.ids[name]}/ended/0/0") for name in parents]
        await bed.engine.execute_unbounded(messages)
        assert accepted(pair) == len(parents)
        changes = pair.store._changes
        assert changes is not None
        async with asyncio.timeout(60):
            while changes.origin.encode() not in heard:
                assert max((told.count(SCOPE_END) for told in heard), default=0) <= SCOPES_MAX
                await asyncio.sleep(0.001)


class TestJoin:
    @pytest.mark.parametrize("order", ["abc", "cab"])
    async def test_the_last_of_all_parents_lets_the_child_go(self, pair: Pair, order: str) -> None:
        flow = await twins(pair, "ad bd cd")
        await flow.end(order)
        for name in order:
            assert await flow.state("d") == WAITING_CHILDREN
            pair.clock.advance(3)
            assert await flow.deliver(name) == ["delivered"]
        assert await flow.state("d") == WAITING
        assert accepted(pair) == 3
        await flow.each(lambda one: one.run("d"))
        await pair.compare()
        assert await flow.both[0].flow_state() == "completed"
        assert accepted(pair) == 3

    async def test_many_parents_are_decided_in_one_call(self, pair: Pair) -> None:
        parents = "abcdefghijklmnopqrstu"
        flow = await twins(pair, " ".join(f"{name}z" for name in parents))
        await flow.end(parents)
        assert await flow.deliver(*parents) == ["delivered"] * len(parents)
        await pair.compare()
        assert accepted(pair) == len(parents)
        assert await flow.state("z") == WAITING
        assert await flow.owed() == []

    async def test_the_same_message_twice(self, pair: Pair) -> None:
        flow = await twins(pair, "ac bc")
        await flow.end("ab")
        assert sorted(await flow.deliver("a", "a")) == ["delivered", "gone"]
        assert await flow.deliver("a") == ["gone"]
        assert await flow.deliver("b", "a") == ["delivered", "gone"]
        await pair.compare()
        assert await flow.state("c") == WAITING
        assert accepted(pair) == 2

    @pytest.mark.parametrize(
        ("policy", "parents"),
        [
            (AnyOfEdges(on_satisfied=LET_RUN), "a"),
            (QuorumOfEdges(k=2, on_satisfied=LET_RUN), "ab"),
            (QuorumOfEdges(k=4, on_satisfied=LET_RUN), "abcd"),
            (QuorumOfEdges(k=4), "abcd"),
            (AllOfEdges(), "abcd"),
        ],
        ids=lambda value: value if isinstance(value, str) else repr(value),
    )
    async def test_parents_that_come_too_late_are_counted_and_decide_nothing(
        self, pair: Pair, policy: EdgeDependencyPolicy, parents: str
    ) -> None:
        flow = await twins(pair, "ae be ce de", {"e": policy})
        await flow.end("abcd")
        for place, name in enumerate("abcd", 1):
            await flow.deliver(name)
            decided = place >= len(parents)
            expected = WAITING if decided else WAITING_CHILDREN
            assert await flow.state("e") == expected
        assert accepted(pair) == 4

    @pytest.mark.parametrize("at", ["ready", "running", "ended"])
    async def test_a_late_parent_does_not_touch_the_child(self, pair: Pair, at: str) -> None:
        flow = await twins(pair, "ac bc", {"c": AnyOfEdges(on_satisfied=LET_RUN)})
        await flow.end("ab")
        await flow.deliver("a")
        if at == "running":
            await flow.each(lambda one: one.bed.claim(one.ids["c"]))
        if at == "ended":
            await flow.each(lambda one: one.run("c"))
        pair.clock.advance(7)
        await flow.deliver("b")
        await pair.compare()
        assert accepted(pair) == 2

    async def test_failed_parents_that_a_join_can_do_without(self, pair: Pair) -> None:
        flow = await twins(pair, "ad bd cd", {"d": QuorumOfEdges(k=1, on_satisfied=LET_RUN)})
        await flow.end("abc", failing="ab")
        await flow.deliver("a", "b")
        assert await flow.state("d") == WAITING_CHILDREN
        await flow.deliver("c")
        await pair.compare()
        assert await flow.state("d") == WAITING
        assert accepted(pair) == 3

    async def test_a_parent_of_several_children_and_twice_of_one(self, pair: Pair) -> None:
        flow = await twins(pair, "ab ac ad bd", seal=False)
        for one in flow.both:
            first = one.edges.pop("ad")
            await one.stage("ad")
            await one.apply("ad")
            assert one.edges["ad"] != first
        await flow.end("a")
        await flow.deliver("a")
        assert [await flow.state(name) for name in "bcd"] == [WAITING, WAITING, WAITING_CHILDREN]
        assert accepted(pair) == 1

    async def test_members_without_edges_are_counted_however_they_end(self, pair: Pair) -> None:
        flow = await twins(pair, "", names="xyz")
        await flow.end("xyz", failing="y")
        await flow.deliver("x", "y", "z")
        assert accepted(pair) == 3
        assert await flow.both[0].flow_state() == "failed"


class TestCompletion:
    """A member that was claimed by the same process is told to its flow as it ends."""

    async def test_a_chain_runs_from_one_end_to_the_other(self, pair: Pair) -> None:
        flow = await twins(pair, "ab bc cd")
        for place, name in enumerate("abcd", 1):
            pair.clock.advance(3)
            await flow.run(name)
            assert pair.accepted["complete_member"] == place
            assert pair.accepted["claim_related_execution"] == place
        # Only for the first of them the server had to say that it is a member.
        assert pair.declined.get("claim_execution", 0) == 0
        assert await flow.both[0].flow_state() == "completed"
        assert accepted(pair) == 0

    async def test_who_waits_for_work_hears_of_it_though_the_member_is_forgotten_meanwhile(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flow = (await twins(pair, "ab")).both[0]
        claim = await flow.bed.claim(flow.ids["a"])
        invoke, native = pair.store.invoke_native, pair.store.native

        async def invoke_and_forget(*call: Any) -> Any:
            replies = await invoke(*call)
            native.forget()
            return replies

        monkeypatch.setattr(pair.store, "invoke_native", invoke_and_forget)
        envelope = Envelope(request_id="ends", namespace=NAMESPACE)
        decided = await native.decide([(completion(claim), envelope)], KnownLanes())
        assert ELIGIBLE in [index for index, *_ in decided.effects.rows_added]

    async def test_all_parents_of_a_join_end_in_one_call(self, pair: Pair) -> None:
        parents = "abcdefghijkl"
        flow = await twins(pair, " ".join(f"{name}z" for name in parents))
        await flow.run(*parents)
        assert await flow.state("z") == WAITING
        await flow.run("z")
        assert await flow.both[0].flow_state() == "completed"
        assert accepted(pair) == 0

    async def test_the_members_of_one_call_have_not_very_many_edges_behind_them(self, pair: Pair) -> None:
        parents, children = "abcdefgh", [chr(0x4E00 + number) for number in range(EDGES_MAX // 4)]
        flow = await twins(pair, " ".join(f"{one}{other}" for one in parents for other in children))
        with monitored(server()) as calls:
            await flow.run(*parents)
        completions = [call for call in calls if call.function.startswith("ff_complete_member")]
        assert len(completions) == 2
        assert pair.accepted["complete_member"] == len(parents)
        await flow.run(*children)
        assert await flow.both[0].flow_state() == "completed"

    async def test_a_quorum_and_those_that_come_too_late(self, pair: Pair) -> None:
        flow = await twins(pair, "ad bd cd", {"d": QuorumOfEdges(k=2, on_satisfied=LET_RUN)})
        for name in "abc":
            await flow.run(name)
        assert await flow.state("d") == WAITING
        assert pair.accepted["complete_member"] == 3
        assert accepted(pair) == 0

    async def test_edges_that_came_meanwhile_are_left_to_a_message(self, pair: Pair) -> None:
        flow = await twins(pair, "", names="abc", seal=False)
        for one in flow.both:
            claim = await one.bed.claim(one.ids["a"])
            await one.connect("ab ac", seal=False)
            await one.bed.complete(claim)
        await pair.compare(settled=False)
        assert accepted(pair) == 1
        assert await flow.state("b") == await flow.state("c") == WAITING

    async def test_what_reaches_further_is_left_to_a_message(self, pair: Pair) -> None:
        flow = await twins(pair, "ac bc", {"c": AnyOfEdges()})
        await flow.run("a")
        assert await flow.state("b") == PublicState.CANCELLED
        assert pair.declined[NAME] > 0

    async def test_members_of_a_cancelled_flow_are_not_given_out(self, pair: Pair) -> None:
        flow = await twins(pair, "", names="ab", seal=False)
        await flow.run("a")
        accepted_before = pair.accepted.get("claim_related_execution", 0)
        cancelling = CancelFlowHeaderArgs(
            flow_id=flow.both[0].flow_id,
            reason="unwanted",
            cancellation_policy=FlowCancellationPolicy.CANCEL_ALL,
        )
        for one in flow.both:
            with one.bed.nothing_delivered():
                await one.bed.execute(cancelling)
                refusal = await one.bed.refused(one.bed.claiming(one.ids["b"]))
                assert isinstance(refusal, errors.ExecutionNotEligible)
        assert pair.accepted.get("claim_related_execution", 0) == accepted_before

    async def test_a_claim_whose_answer_was_lost_is_given_again(self, pair: Pair) -> None:
        flow = await twins(pair, "ab")
        await flow.run("a")
        claims = [one.bed.claiming(one.ids["b"]) for one in flow.both]
        for _ in range(2):
            answers = [
                await one.bed.engine.execute(claim, request_id="once", namespace=NAMESPACE)
                for one, claim in zip(flow.both, claims, strict=True)
            ]
            assert answers[0] == answers[1]
        await pair.compare()
        assert pair.accepted["claim_related_execution"] == 2

    async def test_a_member_of_very_many_edges_is_claimed_and_ends(self, pair: Pair) -> None:
        parents = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        flow = await twins(pair, " ".join(f"{name}0" for name in parents))
        await flow.run(*parents)
        await flow.run("0")
        assert await flow.both[0].flow_state() == "completed"
        assert accepted(pair) == 1

    async def test_every_key_that_is_touched_was_declared(self, pair: Pair) -> None:
        flow = await twins(pair, "ab ac bd")
        with monitored(server()) as calls:
            for name in "ab":
                await flow.run(name)
        assert {"ff_claim_related_execution", "ff_complete_member"} <= {
            call.function.rpartition("_")[0] for call in calls
        }
        assert {key for call in calls for key in call.touched - call.declared} == set()


class TestLeftToTheRule:
    """What reaches further than to the child, or is rare."""

    async def test_a_join_that_can_not_be_met_any_more(self, pair: Pair) -> None:
        flow = await twins(pair, "ac bc cd")
        await flow.end("a", failing="a")
        await flow.deliver("a")
        assert accepted(pair) == 0
        await pair.compare()
        assert await flow.state("d") == PublicState.SKIPPED

    @pytest.mark.parametrize("policy", [AnyOfEdges(), QuorumOfEdges(k=1)], ids=repr)
    async def test_a_join_that_is_met_and_has_others_cancelled(
        self, pair: Pair, policy: EdgeDependencyPolicy
    ) -> None:
        flow = await twins(pair, "ac bc", {"c": policy})
        await flow.end("a")
        await flow.deliver("a")
        assert [message.partition("/")[2] for message in await flow.owed()] == [
            f"unneeded/{flow.both[0].ids['c']}/0"
        ]
        await pair.compare()
        assert await flow.state("b") == PublicState.CANCELLED
        assert accepted(pair) == 0

    async def test_news_that_a_member_is_not_needed_any_more(self, pair: Pair) -> None:
        flow = await twins(pair, "ac bc", {"c": AnyOfEdges()})
        await flow.end("a")
        await flow.deliver("a")
        [unneeded] = await flow.owed()
        await flow.end("b")
        await flow.ask(DeliverMessageArgs(message_id=unneeded))
        assert accepted(pair) == 0
        await flow.deliver("b")
        assert accepted(pair) == 1

    async def test_a_cancelled_parent(self, pair: Pair) -> None:
        flow = await twins(pair, "ac bc", {"c": AnyOfEdges(on_satisfied=LET_RUN)})
        for one in flow.both:
            with one.bed.nothing_delivered():
                await one.bed.execute(
                    CancelExecutionArgs(execution_id=one.ids["a"], reason="r", source="operator_override")
                )
        await flow.deliver("a")
        assert accepted(pair) == 0

    async def test_an_edge_that_was_not_applied(self, pair: Pair) -> None:
        flow = await twins(pair, "", names="ab", seal=False)
        await flow.each(lambda one: one.stage("ab"))
        await flow.end("a")
        await flow.deliver("a")
        await pair.compare()
        assert accepted(pair) == 0

    async def test_an_edge_that_came_in_between(self, pair: Pair) -> None:
        flow = await twins(pair, "ab", seal=False, names="abc")
        await flow.end("a")
        for one in flow.both:
            one.bed.forget()
            await one.connect("ac", seal=False)
        await flow.deliver("a")
        assert await flow.state("b") == await flow.state("c") == WAITING
        assert accepted(pair) == 1

    @pytest.mark.parametrize("what", ["paused", "delayed", "claimed"])
    async def test_a_child_that_waits_for_more_than_its_join(self, pair: Pair, what: str) -> None:
        flow = await twins(pair, "ab", seal=False)
        for one in flow.both:
            child = one.ids["b"]
            if what == "paused":
                await one.bed.execute(PauseExecutionArgs(execution_id=child, reason="stop"))
            elif what == "delayed":
                delayed = await one.bed.create(delay_until=pair.clock.now_ms + 50)
                one.ids["c"] = delayed
                await one.add("c")
                await one.connect("ac", seal=False)
            else:
                one.ids["c"] = await one.bed.create()
                await one.add("c")
                await one.bed.claim(one.ids["c"])
                await one.connect("ac", seal=False)
        await flow.end("a")
        await flow.deliver("a")
        await pair.compare()
        assert accepted(pair) == 0

    async def test_a_parent_that_was_replayed(self, pair: Pair) -> None:
        flow = await twins(pair, "ac bc", {"c": QuorumOfEdges(k=1, on_satisfied=LET_RUN)})
        await flow.end("a", failing="a")
        await flow.deliver("a")
        assert accepted(pair) == 1
        await flow.each(lambda one: one.bed.execute(ReplayExecutionArgs(execution_id=one.ids["a"])))
        await pair.compare()
        await flow.each(lambda one: one.run("a"))
        await pair.compare()
        assert await flow.state("c") == WAITING

    async def test_a_parent_of_very_many(self, pair: Pair) -> None:
        children = "bcdefghijklmnopqr"
        flow = await twins(pair, " ".join(f"a{name}" for name in children))
        await flow.end("a")
        await flow.deliver("a")
        assert {await flow.state(name) for name in children} == {WAITING}
        assert accepted(pair) == 0


class TestWhatIsStored:
    async def test_a_child_that_was_let_go_looks_as_if_it_had_never_waited(self, pair: Pair) -> None:
        flow = await twins(pair, "ac bc")
        await flow.end("ab")
        for name in "ab":
            await flow.deliver(name)
            native, ruled = [await _stored(one, "c") for one in flow.both]
            assert native == ruled
        assert accepted(pair) == 2

    async def test_one_call_is_one_commit_however_many_parents_it_has(self, pair: Pair) -> None:
        parents = "abcdefghijkl"
        flow = await twins(pair, " ".join(f"{name}z" for name in parents))
        await flow.end(parents)
        before = await _commits(flow.both[0])
        await flow.deliver(*parents)
        assert await _commits(flow.both[0]) == before + 1
        assert accepted(pair) == len(parents)

    async def test_every_key_that_is_touched_was_declared(self, pair: Pair) -> None:
        flow = await twins(pair, "ac bc ad")
        await flow.end("ab")
        with monitored(server()) as calls:
            await flow.deliver("a", "b")
        touching = [call for call in calls if NAME in call.function]
        assert len(touching) == 1
        assert touching[0].touched - touching[0].declared == set()


def _valkey(flow: Graph) -> ValkeyStore:
    """The store that a flow is in, without what is around it."""
    store: Any = flow.bed.store
    valkey: ValkeyStore = getattr(store, "inner", store)
    return valkey


async def _stored(flow: Graph, name: str) -> dict[str, Any]:
    """A member as it is written, with what it says besides its fields."""
    store, key = _valkey(flow), key_for(Execution, flow.ids[name])
    shard = store.shard_of(key)
    [stored] = await store._client.read(shard.slot, ("GET", shard.record(key)))
    written: dict[str, Any] = msgspec.msgpack.decode(stored.partition(b":")[2][FRAME.size :])
    return {**USUAL, **written}


async def _commits(flow: Graph) -> int:
    """How many commits the shard of a flow has seen."""
    store = _valkey(flow)
    shard = store.shard_of(key_for(Execution, flow.ids["a"]))
    return int((await store._client.read(shard.slot, ("HGET", shard.state, "commits")))[0])

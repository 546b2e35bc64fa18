"""Whichever attempt a claim begins or goes on with, the server gives it out as the rules do."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowfabric import errors
from flowfabric.contracts.blocking import PauseExecutionArgs
from flowfabric.contracts.conditions import Single
from flowfabric.contracts.executions import CompleteExecutionArgs, DelayExecutionArgs, ReplayExecutionArgs
from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs
from flowfabric.contracts.lanes import SetLaneStateArgs
from flowfabric.contracts.policy import (
    ExecutionPolicy,
    FixedBackoff,
    RetryPolicy,
    RoutingRequirements,
    TimeoutBehavior,
    TimeoutPolicy,
)
from flowfabric.contracts.states import AttemptType, LaneState
from flowfabric.contracts.suspensions import ExecutionSuspended, FreshWaitpoint, SuspendExecutionArgs
from flowfabric.core.commands import CandidateClaimed, ClaimCandidateArgs
from flowfabric.core.records import Lane, key_for, lane_identity
from flowfabric.testing.bed import KIND, LANE, NAMESPACE, Bed
from flowfabric.testing.conformance.flows import Graph, graph
from tests.stores.pair import Pair, accepted_of, fenced
from tests.valkey import Server, server

SOON = ExecutionPolicy(retry_policy=RetryPolicy(max_retries=9, backoff=FixedBackoff(delay_ms=0)))
TIMES_OUT = msgspec.structs.replace(SOON, timeout_policy=TimeoutPolicy(attempt_timeout_ms=600_000))
CAPABLE = msgspec.structs.replace(
    SOON, routing_requirements=RoutingRequirements(required_capabilities=("gpu",))
)
CLAIMS = ("claim_execution", "claim_related_execution")


@pytest.fixture
async def pair(pair: Pair) -> Pair:
    """The two beds, which know the lane."""
    await pair.each(lambda bed: bed.start())
    return pair


async def started(pair: Pair, **fields: Any) -> Any:
    """Work that was claimed in both beds."""
    return await pair.each(lambda bed: bed.start(**fields))


def claiming(pair: Pair, execution_id: str, **fields: Any) -> ClaimCandidateArgs:
    """One claim for both beds, whose ids stay in step."""
    pair.ruled.claiming(execution_id)
    return pair.native.claiming(execution_id, **fields)


async def claimed(pair: Pair, execution_id: str, **fields: Any) -> Any:
    """What a claim gives to the worker."""
    answer = await pair.ask(claiming(pair, execution_id, **fields))
    assert isinstance(answer, CandidateClaimed), answer
    return answer.work


async def failed(pair: Pair, claim: Any) -> None:
    """Let an attempt fail, so that another one is due at once."""
    await pair.each(lambda bed: bed.fail(claim))


class Decided:
    """How many claims the server has decided, of either kind, since the block began."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._before = accepted_of(pair, CLAIMS)

    @property
    def since(self) -> list[int]:
        now = accepted_of(self._pair, CLAIMS)
        return [after - before for before, after in zip(self._before, now, strict=True)]


class TestAnotherAttempt:
    @pytest.mark.parametrize(
        "fields",
        [
            {"policy": SOON},
            {"policy": TIMES_OUT, "tags": {"crew.team": "blue"}, "execution_deadline_at": 1_800_000_000_000},
            {"policy": CAPABLE, "priority": 9000},
        ],
        ids=["plain", "everything", "capabilities"],
    )
    async def test_every_retry_has_an_attempt_of_its_own(self, pair: Pair, fields: dict[str, Any]) -> None:
        capable = {"worker_capabilities": frozenset({"gpu"})}
        execution_id = await pair.each(lambda bed: bed.create(**fields))
        claim, decided = await claimed(pair, execution_id, **capable), Decided(pair)
        for retries in range(1, 4):
            pair.clock.advance(10)
            await failed(pair, claim)
            pair.clock.advance(10)
            claim = await claimed(pair, execution_id, **capable)
            assert (claim.attempt_index, claim.attempt_type) == (retries, AttemptType.RETRY)
            await pair.compare()
        await pair.ask(CompleteExecutionArgs(**fenced(claim, result_payload=b"r")))
        await pair.compare()
        assert decided.since == [0, 3]

    async def test_a_replay_has_an_attempt_of_its_own(self, pair: Pair) -> None:
        claim, decided = await started(pair, policy=SOON), Decided(pair)
        await pair.ask(CompleteExecutionArgs(**fenced(claim, result_payload=b"r")))
        await pair.ask(ReplayExecutionArgs(execution_id=claim.execution_id))
        # The server leaves alone what remembers the answer to a replay.
        again = await claimed(pair, claim.execution_id)
        assert again.attempt_type is AttemptType.REPLAY
        await failed(pair, again)
        again = await claimed(pair, claim.execution_id)
        assert again.attempt_index == 2
        await pair.compare()
        assert sum(decided.since) <= 1

    @pytest.mark.parametrize(
        ("own", "offered", "is_decided"),
        [
            (SOON, SOON, True),
            (SOON, None, True),
            (SOON, TIMES_OUT, False),
            (None, SOON, False),
            (None, None, True),
        ],
        ids=["the same", "its own", "to be merged", "a new one", "none"],
    )
    async def test_a_workers_policy(
        self, pair: Pair, own: ExecutionPolicy | None, offered: ExecutionPolicy | None, is_decided: bool
    ) -> None:
        claim = await started(pair, policy=own)
        text = '{"max_retries": 3, "backoff": {"type": "fixed", "delay_ms": 0}}'
        for _ in range(2):
            await pair.each(lambda bed, claim=claim: bed.fail(claim, retry_policy_json=text))
            decided = Decided(pair)
            policies = {} if offered is None else {KIND: offered}
            claim = await claimed(pair, claim.execution_id, policies=policies)
            await pair.compare()
            if claim.attempt_index == 1:
                assert decided.since == [0, int(is_decided)]

    async def test_the_same_request_gets_its_lease_again(self, pair: Pair) -> None:
        claim = await started(pair, policy=SOON)
        await failed(pair, claim)
        ids = ["asked-again"]
        first = await pair.ask(claiming(pair, claim.execution_id), request_ids=ids)
        assert await pair.ask(claiming(pair, claim.execution_id), request_ids=ids) == first
        await pair.compare()

    async def test_many_at_once_are_given_out_each_by_itself(self, pair: Pair) -> None:
        retried = [await started(pair, policy=SOON) for _ in range(3)]
        for claim in retried:
            await failed(pair, claim)
        members = (await pair.each(_members)).values()
        paused = await pair.each(lambda bed: bed.create())
        await pair.ask(PauseExecutionArgs(execution_id=paused, reason="stop"))
        wanted = [*(claim.execution_id for claim in retried), *members, paused]
        decided = Decided(pair)
        answers = await pair.ask(*(claiming(pair, execution_id) for execution_id in wanted))
        assert [isinstance(answer, CandidateClaimed) for answer in answers] == [True] * 5 + [False]
        await pair.compare()
        assert decided.since == [0, 5]

    async def test_a_lane_that_was_paused_meanwhile_gives_no_work(self, pair: Pair) -> None:
        claim = await started(pair, policy=SOON)
        await failed(pair, claim)
        for state, expected in (("paused", errors.ExecutionNotEligible), ("active", CandidateClaimed)):
            lane = SetLaneStateArgs(namespace=NAMESPACE, lane_id=LANE, state=LaneState(state))
            await pair.ask(lane)
            assert isinstance(await pair.ask(claiming(pair, claim.execution_id)), expected)
        await pair.compare()

    async def test_what_changes_while_the_server_is_asked_twice_is_left_to_the_rule(
        self, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claim = await started(pair, policy=SOON)
        await failed(pair, claim)
        invoke = pair.store.invoke_native

        async def invoked(shard: Any, name: str, *arguments: Any) -> Any:
            if name == "claim_related_execution":
                monkeypatch.undo()
                async with Bed(server().store(tmp_path / "native"), clock=pair.clock) as other:
                    await other.fail(await other.claim(claim.execution_id))
            return await invoke(shard, name, *arguments)

        monkeypatch.setattr(pair.store, "invoke_native", invoked)
        declined = pair.declined.get("claim_related_execution", 0)
        answer = await pair.native.execute(pair.native.claiming(claim.execution_id))
        assert isinstance(answer, CandidateClaimed)
        assert answer.work.attempt_index == 2
        assert pair.declined["claim_related_execution"] == declined + 1
        await pair.native.check()


async def _members(bed: Bed) -> dict[str, str]:
    return (await graph(bed, "ab")).ids


class TestGoingOn:
    @pytest.mark.parametrize("delay_ms", [0, 1_500])
    @pytest.mark.parametrize("policy", [None, TIMES_OUT], ids=["no policy", "timeout"])
    async def test_an_attempt_that_was_put_aside(
        self, pair: Pair, delay_ms: int, policy: ExecutionPolicy | None
    ) -> None:
        claim, decided = await started(pair, policy=policy), Decided(pair)
        for epoch in range(2, 4):
            pair.clock.advance(10)
            await pair.each(lambda bed, claim=claim: bed.delay(claim, delay_ms))
            await pair.each(lambda bed: bed.advance(2_000))
            claim = await claimed(pair, claim.execution_id)
            assert (claim.resumed, claim.attempt_index, claim.lease_epoch) == (True, 0, epoch)
            await pair.compare()
        await pair.ask(CompleteExecutionArgs(**fenced(claim, result_payload=b"r")))
        await pair.compare()
        assert decided.since == [2, 0]

    async def test_the_same_request_gets_its_lease_again(self, pair: Pair) -> None:
        claim = await started(pair)
        await pair.ask(DelayExecutionArgs(**fenced(claim, delay_until=0)))
        ids = ["asked-again"]
        first = await pair.ask(claiming(pair, claim.execution_id), request_ids=ids)
        assert first.work.resumed
        assert await pair.ask(claiming(pair, claim.execution_id), request_ids=ids) == first
        await pair.compare()

    async def test_what_resumes_after_a_suspension_is_left_to_the_rule(self, pair: Pair) -> None:
        await pair.ask(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex="1f" * 32))
        claim = await started(pair)
        waitpoint = FreshWaitpoint(waitpoint_id="00000000-0000-4000-8000-00000000aaaa", waitpoint_key="w")
        suspension = SuspendExecutionArgs(
            **fenced(claim),
            suspension_id="00000000-0000-4000-8000-00000000bbbb",
            waitpoints=(waitpoint,),
            resume_condition=Single(waitpoint_key="w"),
            timeout_at=pair.clock.now_ms + 1_000,
            timeout_behavior=TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL,
        )
        assert isinstance(await pair.ask(suspension), ExecutionSuspended)
        await pair.each(lambda bed: bed.advance(1_000))
        decided = Decided(pair)
        assert (await claimed(pair, claim.execution_id)).resumed
        await pair.compare()
        assert decided.since == [0, 0]


class TestMembers:
    async def test_members_run_in_the_order_of_their_flow(self, pair: Pair) -> None:
        async def build(bed: Bed) -> dict[str, str]:
            flow = await graph(bed, "abc")
            await flow.connect("ab bc")
            return flow.ids

        members, decided = await pair.each(build), Decided(pair)
        for name in "abc":
            claim = await claimed(pair, members[name])
            completion = CompleteExecutionArgs(**fenced(claim, result_payload=b"r"))
            await pair.ask(completion, request_ids=[f"{name}-ends"])
            await pair.compare()
        assert decided.since == [0, 3]

    async def test_a_member_that_is_retried_has_an_attempt_and_a_flow(self, pair: Pair) -> None:
        members = (await pair.each(_retried)).values()
        decided = Decided(pair)
        for member in members:
            for attempt_index in range(3):
                claim = await claimed(pair, member)
                assert claim.attempt_index == attempt_index
                await failed(pair, claim)
                await pair.compare()
        assert decided.since == [0, 6]

    @pytest.mark.parametrize("policy", ["cancel_all", "cancel_pending", "flow_only"])
    async def test_a_cancelled_flow_is_left_to_the_rule(self, pair: Pair, policy: str) -> None:
        flows: list[Graph] = []

        async def build(bed: Bed) -> dict[str, str]:
            flow = await graph(bed)
            for name in "ab":
                flow.ids[name] = await bed.create(policy=SOON)
                await flow.add(name)
            flows.append(flow)
            return flow.ids

        ids = await pair.each(build)
        await failed(pair, await claimed(pair, ids["a"]))
        decided = Decided(pair)
        with pair.native.nothing_delivered(), pair.ruled.nothing_delivered():
            await pair.ask(flows[0].cancelling(policy))
            answers = [await pair.ask(claiming(pair, member)) for member in ids.values()]
        expected = {"cancel_all": [False, False], "cancel_pending": [True, False], "flow_only": [True, True]}
        assert [isinstance(answer, CandidateClaimed) for answer in answers] == expected[policy]
        await pair.compare()
        assert decided.since == [0, 0]


async def _retried(bed: Bed) -> dict[str, str]:
    flow = await graph(bed)
    for name in "ab":
        flow.ids[name] = await bed.create(policy=SOON)
        await flow.add(name)
    return flow.ids


class TestFullMemory:
    async def test_work_that_has_begun_goes_on(self, spare: Server, tmp_path: Path) -> None:
        async with Pair(spare, tmp_path) as pair:
            claims = [await started(pair, policy=SOON) for _ in range(2)]
            decided = Decided(pair)
            spare.configure("maxmemory", "1")
            await failed(pair, claims[0])
            await pair.each(lambda bed: bed.delay(claims[1], 0))
            for claim in claims:
                await claimed(pair, claim.execution_id)
            await pair.compare()
            assert decided.since == [1, 1]


async def test_a_question_counts_as_no_commit(pair: Pair) -> None:
    claim = await started(pair, policy=SOON)
    await failed(pair, claim)
    changes, decided = pair.store._changes, Decided(pair)
    assert changes is not None
    await changes._counted()
    await claimed(pair, claim.execution_id)
    assert decided.since == [0, 1]
    # Else every claim of a retry would look like a commit of others that was not heard.
    assert not await changes._counted()


async def test_a_lane_that_is_forgotten_right_before_the_call_is_left_to_the_rule(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution_id, native = await pair.each(lambda bed: bed.create()), pair.store.native
    calls = native._calls

    async def forgetting(alike: Any, remembered: Any, answers: Any) -> Any:
        remembered.forget([key_for(Lane, lane_identity(NAMESPACE, LANE))])
        return await calls(alike, remembered, answers)

    monkeypatch.setattr(native, "_calls", forgetting)
    await claimed(pair, execution_id)
    await pair.compare()

"""What becomes of a failure is the same whether the server decides it or the rules: retries above all."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowfabric import errors
from flowfabric.contracts.blocking import PauseExecutionArgs
from flowfabric.contracts.executions import (
    CompleteExecutionArgs,
    FailExecutionArgs,
    ReplayExecutionArgs,
    RetryScheduled,
    SetExecutionTagArgs,
    TerminalFailed,
)
from flowfabric.contracts.ids import LeaseFence
from flowfabric.contracts.limits import SAFE_INTEGER_MAX
from flowfabric.contracts.policy import (
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    RetryPolicy,
    RoutingRequirements,
    StreamPolicy,
    TimeoutPolicy,
)
from flowfabric.core.indexes import DUE_DELAY
from flowfabric.core.policies import NEVER_RETRIED
from flowfabric.engine.notifier import claimable_topic, due_topic
from flowfabric.testing.bed import NAMESPACE, TTL_MS, Bed
from flowfabric.testing.conformance.admission import ask, limited, new_quota
from flowfabric.testing.conformance.budgets import budget_creation, reporting
from flowfabric.testing.conformance.flows import graph
from tests.stores.pair import Pair, fenced
from tests.valkey import Server


async def started(pair: Pair, **fields: Any) -> Any:
    """Work that was claimed in both beds."""
    return await pair.each(lambda bed: bed.start(**fields))


def failing(claim: Any, **fields: Any) -> FailExecutionArgs:
    named = {"failure_reason": "it broke: é", "failure_category": "error", "source": "lease_holder"}
    return FailExecutionArgs(**fenced(claim, **(named | fields)))


def retrying(backoff: FixedBackoff | ExponentialBackoff, **fields: Any) -> ExecutionPolicy:
    """A policy of retries and of everything else that an execution may be given."""
    return ExecutionPolicy(
        retry_policy=RetryPolicy(**{"max_retries": 3, "backoff": backoff, **fields}),
        timeout_policy=TimeoutPolicy(attempt_timeout_ms=600_000),
        stream_policy=StreamPolicy(retention_ttl_ms=86_400_000),
    )


GPU = RoutingRequirements(required_capabilities=("gpu",))
AT_ONCE = FixedBackoff(delay_ms=0)
LATER = FixedBackoff(delay_ms=1_500)
SOON = retrying(AT_ONCE)
WAITS = retrying(LATER)


async def fail_until_the_end(pair: Pair, claim: Any, **fields: Any) -> int:
    """Let attempt after attempt fail. Returns how many retries there were."""
    for retries in range(100):
        pair.clock.advance(10)
        answer = await pair.ask(failing(claim, **fields))
        if isinstance(answer, TerminalFailed):
            await pair.compare()
            return retries
        assert isinstance(answer, RetryScheduled)
        assert answer.next_attempt_index == retries + 1
        wait_ms = answer.delay_until - pair.clock.now_ms
        await pair.each(lambda bed, wait_ms=wait_ms: bed.advance(wait_ms))
        claim = await pair.each(lambda bed, claim=claim: bed.claim(claim.execution_id))
    raise AssertionError("it fails for ever")


class TestForGood:
    @pytest.mark.parametrize(
        ("fields", "failure"),
        [
            ({}, {}),
            ({}, {"failure_reason": "", "failure_category": ""}),
            ({}, {"failure_reason": "é\n" * 2_048}),
            ({"priority": 7, "tags": {"crew.team": "blue", "crew.name": "é"}}, {}),
            ({"execution_deadline_at": 1_800_000_000_000, "policy": ExecutionPolicy(priority=3)}, {}),
            ({"policy": ExecutionPolicy(stream_policy=StreamPolicy(retention_ttl_ms=86_400_000))}, {}),
            ({"policy": retrying(AT_ONCE, max_retries=0)}, {}),
            ({"policy": retrying(AT_ONCE, retryable_categories=("other", "another"))}, {}),
            ({"idempotency_key": "once"}, {}),
        ],
        ids=["plain", "blank", "long", "tags", "deadline", "kept", "no retries", "category", "key"],
    )
    async def test_work_without_a_retry(
        self, pair: Pair, fields: dict[str, Any], failure: dict[str, Any]
    ) -> None:
        claim = await started(pair, **fields)
        pair.clock.advance(10)
        assert isinstance(await pair.ask(failing(claim, **failure)), TerminalFailed)
        await pair.compare()
        assert pair.accepted["fail_execution"] == 1

    async def test_a_failure_that_another_attempt_cannot_help(self, pair: Pair) -> None:
        for category in sorted(NEVER_RETRIED):
            claim = await started(pair, policy=retrying(AT_ONCE, retryable_categories=(category,)))
            assert isinstance(await pair.ask(failing(claim, failure_category=category)), TerminalFailed)
        await pair.compare()
        assert pair.accepted["fail_execution"] == len(NEVER_RETRIED)

    async def test_a_member_of_a_flow_tells_its_flow(self, pair: Pair) -> None:
        async def build(bed: Bed) -> list[str]:
            flow = await graph(bed)
            for name in "abc":
                flow.ids[name] = await bed.create(policy=SOON)
                await flow.add(name)
            await flow.connect("ab bc")
            return [flow.ids["a"], flow.ids["b"]]

        first, second = await pair.each(build)
        for member in (first, second):
            claim = await pair.each(lambda bed, member=member: bed.claim(member))
            if member == first:
                await pair.ask(failing(claim))
                await pair.compare()
                claim = await pair.each(lambda bed, member=member: bed.claim(member))
                await pair.each(lambda bed, claim=claim: bed.complete(claim))
            else:
                await pair.ask(failing(claim, failure_category="fatal"), request_ids=["at-last"])
            await pair.compare()
        assert pair.accepted["fail_execution"] == 2


class TestRetries:
    @pytest.mark.parametrize(
        "backoff",
        [
            AT_ONCE,
            LATER,
            ExponentialBackoff(),
            ExponentialBackoff(initial_delay_ms=0, jitter=True),
            ExponentialBackoff(initial_delay_ms=1, multiplier=1.5, jitter=True),
            ExponentialBackoff(initial_delay_ms=3, multiplier=1.0, jitter=True),
            ExponentialBackoff(initial_delay_ms=7, multiplier=1.1),
            ExponentialBackoff(initial_delay_ms=100, multiplier=1_000.0, max_delay_ms=250, jitter=True),
            ExponentialBackoff(initial_delay_ms=500, max_delay_ms=200),
            ExponentialBackoff(initial_delay_ms=1_000, max_delay_ms=4_000),
        ],
        ids=lambda backoff: ",".join(map(str, msgspec.structs.astuple(backoff))),
    )
    async def test_every_wait_is_as_long_as_the_policy_says(
        self, pair: Pair, backoff: FixedBackoff | ExponentialBackoff
    ) -> None:
        claim = await started(pair, policy=retrying(backoff, max_retries=5), tags={"crew.team": "blue"})
        assert await fail_until_the_end(pair, claim) == 5
        assert pair.accepted["fail_execution"] == 6

    @pytest.mark.parametrize(
        "fields",
        [
            {"priority": 9000},
            {"execution_deadline_at": 1_800_000_000_000},
            {"policy": msgspec.structs.replace(SOON, routing_requirements=GPU)},
            {"policy": msgspec.structs.replace(WAITS, routing_requirements=GPU)},
            {"policy": retrying(AT_ONCE, retryable_categories=("other", "error"))},
        ],
        ids=["priority", "deadline", "capabilities at once", "capabilities later", "categories"],
    )
    async def test_work_that_waits_for_its_retry(self, pair: Pair, fields: dict[str, Any]) -> None:
        execution_id = await pair.each(lambda bed: bed.create(**{"policy": WAITS, **fields}))
        capable = {"worker_capabilities": frozenset({"gpu"})}
        claim = await pair.each(lambda bed: bed.claim(execution_id, **capable))
        pair.clock.advance(10)
        assert isinstance(await pair.ask(failing(claim)), RetryScheduled)
        await pair.compare()
        assert pair.accepted["fail_execution"] == 1

    async def test_the_longest_wait_ends_at_the_last_instant(self, pair: Pair) -> None:
        claim = await started(pair, policy=retrying(FixedBackoff(delay_ms=SAFE_INTEGER_MAX)))
        answer = await pair.ask(failing(claim))
        assert answer.delay_until == SAFE_INTEGER_MAX
        await pair.compare()
        assert pair.accepted["fail_execution"] == 1

    @pytest.mark.parametrize("stored", [None, ExecutionPolicy(priority=1), SOON])
    async def test_the_callers_policy_counts_only_where_none_is_stored(
        self, pair: Pair, stored: ExecutionPolicy | None
    ) -> None:
        claim = await started(pair, policy=stored)
        offered = {"retry_policy_json": '{"max_retries": 1, "backoff": {"type": "fixed", "delay_ms": 5}}'}
        assert await fail_until_the_end(pair, claim, **offered) == (3 if stored is SOON else 1)

    @pytest.mark.parametrize("text", [" ", "{}", "null", '{"max_retries": "x"}', "["])
    async def test_a_callers_policy_that_is_none(self, pair: Pair, text: str) -> None:
        claim = await started(pair)
        answer = await pair.ask(failing(claim, retry_policy_json=text))
        assert isinstance(answer, TerminalFailed | errors.InvalidPolicyJson)
        await pair.compare()
        assert pair.accepted.get("fail_execution", 0) == isinstance(answer, TerminalFailed)

    async def test_a_retry_at_once_is_given_to_whoever_waits_for_work(self, pair: Pair) -> None:
        """Whoever waits is woken by what a failure has made claimable, without asking again."""
        claim = await started(pair, policy=SOON)
        woken = pair.native.engine.notifier.subscribe(claimable_topic(NAMESPACE, claim.lane_id))
        await pair.ask(failing(claim))
        assert woken.event.is_set()

    async def test_a_retry_that_is_due_soon_wakes_its_duty(self, pair: Pair) -> None:
        claim = await started(pair, policy=WAITS)
        woken = pair.native.engine.notifier.subscribe(due_topic(DUE_DELAY))
        await pair.ask(failing(claim))
        assert woken.event.is_set()


class TestOnce:
    @pytest.mark.parametrize("policy", [None, SOON, WAITS], ids=["no policy", "soon", "waits"])
    async def test_the_same_request_gets_its_answer_again_and_so_does_the_same_fence(
        self, pair: Pair, policy: ExecutionPolicy | None
    ) -> None:
        claim = await started(pair, policy=policy)
        ids = ["asked-again"]
        first = await pair.ask(failing(claim), request_ids=ids)
        pair.clock.advance(10)
        assert await pair.ask(failing(claim), request_ids=ids) == first
        assert await pair.ask(failing(claim, failure_reason="other"), request_ids=["another"]) == first
        await pair.compare()
        assert pair.accepted["fail_execution"] == 1

    async def test_many_at_once_are_decided_each_by_itself(self, pair: Pair) -> None:
        policies = (None, SOON, WAITS, None, SOON)
        claims = [await started(pair, policy=policy) for policy in policies]
        stale = LeaseFence(lease_id=claims[0].lease_id, lease_epoch=1, attempt_id=claims[1].attempt_id)
        commands = [failing(claim) for claim in claims]
        commands[3] = msgspec.structs.replace(commands[3], fence=stale)
        answers = await pair.ask(*commands)
        assert [type(answer) for answer in answers] == [
            TerminalFailed,
            RetryScheduled,
            RetryScheduled,
            errors.StaleLease,
            RetryScheduled,
        ]
        await pair.compare()
        assert pair.accepted["fail_execution"] == 4
        assert pair.declined["fail_execution"] == 1

    async def test_what_is_refused_is_refused_by_the_rule(self, pair: Pair) -> None:
        claim, ended = await started(pair, policy=SOON), await started(pair)
        await pair.ask(failing(ended))
        replace = msgspec.structs.replace
        for command in (
            failing(replace(claim, execution_id=pair.native.new_execution_id())),
            failing(replace(claim, lease_id="other")),
            failing(replace(claim, lease_epoch=2)),
            failing(replace(claim, attempt_id="other")),
            failing(replace(claim, attempt_index=1)),
            failing(replace(ended, lease_id="other")),
            replace(failing(claim), fence=None),
        ):
            assert isinstance(await pair.ask(command), errors.FlowFabricError)
        assert isinstance(await pair.ask(failing(claim), namespace="elsewhere"), errors.ExecutionNotFound)
        pair.clock.advance(TTL_MS)
        assert isinstance(await pair.ask(failing(claim)), errors.LeaseExpired)
        await pair.compare()
        assert pair.accepted["fail_execution"] == 1

    async def test_what_is_unusual_is_left_to_the_rule(self, pair: Pair) -> None:
        admitted = await pair.each(_admitted)
        paused, renamed = await started(pair, policy=SOON), await started(pair, policy=SOON)
        await pair.ask(PauseExecutionArgs(execution_id=paused.execution_id, reason="stop"))
        await pair.ask(SetExecutionTagArgs(execution_id=renamed.execution_id, key="crew.team", value="red"))
        for claim in (admitted, paused, renamed):
            assert not isinstance(await pair.ask(failing(claim)), Exception)
        assert not isinstance(
            await pair.ask(
                msgspec.structs.replace(failing(admitted), fence=None, source="operator_override")
            ),
            RetryScheduled,
        )
        await pair.compare()
        assert "fail_execution" not in pair.accepted
        assert pair.declined["fail_execution"] == 3

    async def test_replayed_work_fails_once_more(self, pair: Pair) -> None:
        claim = await started(pair, policy=SOON)
        await pair.ask(failing(claim, failure_category="fatal"))
        await pair.ask(ReplayExecutionArgs(execution_id=claim.execution_id))
        again = await pair.each(lambda bed: bed.claim(claim.execution_id))
        assert await fail_until_the_end_of(pair, again) == 3


async def _admitted(bed: Bed) -> Any:
    """Work that was claimed under a quota policy."""
    quota, execution_id = await new_quota(bed, cap=5), await limited(bed)
    await ask(bed, quota, execution_id)
    return await bed.claim(execution_id)


async def fail_until_the_end_of(pair: Pair, claim: Any) -> int:
    """The same of work whose attempts do not begin with the first."""
    retries = 0
    while isinstance(await pair.ask(failing(claim)), RetryScheduled):
        await pair.compare()
        claim = await pair.each(lambda bed, claim=claim: bed.claim(claim.execution_id))
        retries += 1
    await pair.compare()
    return retries


class TestBudgets:
    @pytest.mark.parametrize(
        "fields", [{}, {"execution_deadline_at": 1_800_000_000_000}], ids=["plain", "due"]
    )
    async def test_what_has_ended_is_attached_to_none(self, pair: Pair, fields: dict[str, Any]) -> None:
        budgets = [(await pair.ask(budget_creation(name=name))).budget_id for name in ("one", "other")]
        policy = msgspec.structs.replace(WAITS, budget_ids=tuple(budgets))
        completed, failed = [await started(pair, policy=policy, **fields) for _ in range(2)]
        await pair.ask(CompleteExecutionArgs(**fenced(completed, result_payload=b"r")))
        await pair.compare()
        assert pair.accepted["complete_execution"] == 1
        assert await fail_until_the_end(pair, failed) == 3
        assert pair.accepted["fail_execution"] == 4

    async def test_what_is_retried_at_once_has_its_headroom_looked_at_again(self, pair: Pair) -> None:
        budget = await pair.ask(budget_creation(hard=10))
        policy = msgspec.structs.replace(SOON, budget_ids=(budget.budget_id,))
        claim = await started(pair, policy=policy)
        await pair.ask(reporting(budget.budget_id, claim, 10))
        assert isinstance(await pair.ask(failing(claim)), RetryScheduled)
        await pair.compare()
        refused = await pair.ask(pair.native.claiming(claim.execution_id))
        assert isinstance(refused, errors.BudgetExceeded)
        await pair.compare()
        assert pair.accepted["fail_execution"] == 1


class TestFullMemory:
    async def test_work_can_still_fail(self, spare: Server, tmp_path: Path) -> None:
        async with Pair(spare, tmp_path) as pair:
            claims = [await started(pair, policy=policy) for policy in (None, SOON, WAITS)]
            spare.configure("maxmemory", "1")
            for claim in claims:
                assert not isinstance(await pair.ask(failing(claim)), Exception)
            await pair.compare()
            assert pair.accepted["fail_execution"] == 3

"""What the server counts as spent is what the rules count: the same answers, the same records."""

from typing import Any

import msgspec
import pytest

from flowfabric import errors
from flowfabric.contracts.budgets import (
    ChangeBudgetLimitsArgs,
    EnforcementMode,
    RecordSpendArgs,
    ReleaseBudgetArgs,
    ReportUsageAdminArgs,
    ReportUsageArgs,
    ResetBudgetArgs,
    UsageAlreadyApplied,
    UsageApplied,
    UsageHardBreach,
    UsageSoftBreach,
)
from flowfabric.contracts.executions import CompleteExecutionArgs
from flowfabric.contracts.ids import budget_id_of
from flowfabric.contracts.limits import DAY_MS, DIMENSIONS_MAX
from flowfabric.core.registry import EARLIER_REQUESTS_MAX
from flowfabric.testing.bed import NAMESPACE, TTL_MS
from flowfabric.testing.conformance.budgets import budget_creation, reporting
from tests.stores.pair import Pair, fenced


async def budget(pair: Pair, **fields: Any) -> Any:
    """A budget in both beds."""
    return (await pair.ask(budget_creation(**fields))).budget_id


async def started(pair: Pair) -> Any:
    """Work that was claimed in both beds."""
    return await pair.each(lambda bed: bed.start())


class Counted:
    """How many reports the server has counted since the block began."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._before = self._now()

    def _now(self) -> int:
        return self._pair.accepted.get("report_usage", 0)

    @property
    def since(self) -> int:
        return self._now() - self._before


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"hard": 1_000},
        {"soft": 1_000},
        {"hard": 2_000, "soft": 1_000},
        {"hard": 1_000, "enforcement_mode": EnforcementMode.ADVISORY},
        {"hard": 1_000, "reset_interval_ms": DAY_MS},
    ],
    ids=lambda limits: " ".join(limits) or "no limits",
)
async def test_reports_below_every_limit(pair: Pair, limits: dict[str, Any]) -> None:
    budget_id = await budget(pair, **limits)
    spenders, counted = [await started(pair) for _ in range(2)], Counted(pair)
    for number in range(3):
        for claim in spenders:
            pair.clock.advance(7)
            assert isinstance(await pair.ask(reporting(budget_id, claim, 10 * number)), UsageApplied)
            keyed = reporting(budget_id, claim, 1, dedup_key=f"{claim.execution_id}/{number}")
            assert isinstance(await pair.ask(keyed), UsageApplied)
    await pair.compare()
    assert counted.since == 12


async def test_what_is_reported_by_others_than_the_holder_of_a_lease(pair: Pair) -> None:
    budget_id, claim = await budget(pair, hard=1_000), await started(pair)
    await pair.ask(CompleteExecutionArgs(**fenced(claim, source="lease_holder")))
    counted = Counted(pair)
    for key in (None, "once"):
        admin = ReportUsageAdminArgs(
            budget_id=budget_id, dimensions=("tokens", "calls"), deltas=(5, 1), dedup_key=key
        )
        recorded = RecordSpendArgs(
            budget_id=budget_id,
            execution_id=claim.execution_id,
            deltas={"calls": 3},
            idempotency_key=key and f"{key} more",
        )
        for command in (admin, recorded):
            assert isinstance(await pair.ask(command), UsageApplied)
    await pair.compare()
    assert counted.since == 4


async def test_what_work_of_another_namespace_has_spent_is_counted_for_nobody(pair: Pair) -> None:
    """Whoever has no bounds may name both, and is told that there is no such budget, as all others are."""
    budget_id, other = await budget(pair, hard=1_000), pair.native.new_id()
    execution_id = f"{{fp:1}}:{other}"
    await pair.ask_unbounded(pair.native.creation(execution_id=execution_id, namespace="other"))
    claimed = await pair.ask_unbounded(pair.native.claiming(execution_id))
    recorded = RecordSpendArgs(budget_id=budget_id, execution_id=execution_id, deltas={"tokens": 3})
    for command in (reporting(budget_id, claimed.work, 1), recorded):
        assert isinstance(await pair.ask_unbounded(command), errors.BudgetNotFound)
    await pair.compare()


async def test_many_spenders_at_once_are_counted_in_their_order(pair: Pair) -> None:
    budget_id = await budget(pair, hard=1_000)
    spenders, counted = [await started(pair) for _ in range(5)], Counted(pair)
    reports = [reporting(budget_id, claim, 1 + place) for place, claim in enumerate(spenders * 20)]
    assert await pair.ask(*reports[:35]) == [UsageApplied()] * 35
    assert counted.since == 35
    await pair.compare()
    answers = await pair.ask(*reports)  # they pass the limit on their way
    assert [type(answer) for answer in answers].count(UsageHardBreach) > 0
    await pair.compare()


async def test_amounts_of_all_sizes(pair: Pair) -> None:
    budget_id, claim, counted = await budget(pair), await started(pair), Counted(pair)
    for name, amount in {
        "é": 0,
        "n" * 40: 1,
        "b": 127,
        "c": 128,
        "d": 65_536,
        "e": 2**33,
        "f": 2**51,
    }.items():
        assert isinstance(await pair.ask(_report(budget_id, claim, {name: amount})), UsageApplied)
        assert isinstance(await pair.ask(_report(budget_id, claim, {name: amount, "b": 1})), UsageApplied)
    assert isinstance(await pair.ask(_report(budget_id, claim, {})), UsageApplied)
    await pair.compare()
    assert counted.since == 15
    twice = ReportUsageArgs(
        budget_id=budget_id,
        execution_id=claim.execution_id,
        fence=claim.fence,
        dimensions=("x", "x"),
        deltas=(2, 3),
    )
    assert isinstance(await pair.ask(twice), UsageApplied)
    assert isinstance(await pair.ask(_report(budget_id, claim, {"f": 2**53 - 1})), errors.InvalidInput)
    await pair.compare()


async def test_as_many_dimensions_as_a_budget_may_have(pair: Pair) -> None:
    budget_id, claim, counted = await budget(pair), await started(pair), Counted(pair)
    for first in range(0, DIMENSIONS_MAX, 16):
        report = _report(budget_id, claim, {f"dimension {number}": 1 for number in range(first, first + 16)})
        assert isinstance(await pair.ask(report), UsageApplied)
    assert counted.since == DIMENSIONS_MAX // 16
    assert isinstance(await pair.ask(_report(budget_id, claim, {"one more": 1})), errors.InvalidInput)
    await pair.compare()
    assert counted.since == DIMENSIONS_MAX // 16


async def test_the_answers_that_are_kept(pair: Pair) -> None:
    budget_id, claim = await budget(pair), await started(pair)
    ids = [f"request {number}" for number in range(EARLIER_REQUESTS_MAX + 3)]
    for request_id in ids:
        await pair.ask(reporting(budget_id, claim, 1), request_ids=[request_id])
    await pair.compare()
    counted = Counted(pair)
    answers = [await pair.ask(reporting(budget_id, claim, 1), request_ids=[one]) for one in ids]
    assert answers == [UsageAlreadyApplied()] * 2 + [UsageApplied()] * (EARLIER_REQUESTS_MAX + 1)
    await pair.compare()
    assert counted.since == 0


async def test_a_key_counts_once_in_its_window(pair: Pair) -> None:
    budget_id, claim = await budget(pair), await started(pair)
    keyed = reporting(budget_id, claim, 5, dedup_key="once")
    assert isinstance(await pair.ask(keyed), UsageApplied)
    assert isinstance(await pair.ask(keyed), UsageAlreadyApplied)
    other = reporting(budget_id, claim, 6, dedup_key="once")
    assert isinstance(await pair.ask(other), errors.IdempotencyConflict)
    await pair.compare()
    admin = ReportUsageAdminArgs(budget_id=budget_id, dimensions=("tokens",), deltas=(5,), dedup_key="twice")
    await pair.ask(admin)
    pair.clock.advance(DAY_MS)
    assert isinstance(await pair.ask(admin), UsageApplied)
    await pair.compare()


async def test_limits_that_are_reached(pair: Pair) -> None:
    budget_id, claim, counted = await budget(pair, hard=100, soft=50), await started(pair), Counted(pair)
    for tokens, expected in (
        (50, UsageApplied),
        (1, UsageSoftBreach),
        (48, UsageSoftBreach),
        (2, UsageHardBreach),
        (1, UsageSoftBreach),
        (1, UsageHardBreach),
        (0, UsageApplied),
    ):
        assert isinstance(await pair.ask(reporting(budget_id, claim, tokens)), expected)
        await pair.compare()
    assert counted.since == 2


async def test_soft_limits_that_were_passed_before(pair: Pair) -> None:
    budget_id = await budget(pair, dimensions=("a", "b", "c"), hard_limits=(0, 0, 100), soft_limits=(5, 7, 0))
    claim, counted = await started(pair), Counted(pair)
    for number, (deltas, expected, decides) in enumerate(
        (
            ({"a": 6}, UsageSoftBreach, 0),
            ({"a": 1}, UsageSoftBreach, 1),
            ({"a": 0, "b": 7, "c": 1}, UsageApplied, 1),
            ({"b": 1, "a": 1}, UsageSoftBreach, 0),
            ({"b": 1, "a": 1}, UsageSoftBreach, 0),
            ({"b": 1, "a": 0}, UsageSoftBreach, 1),
            ({"c": 1}, UsageApplied, 1),
        )
    ):
        before, ids = counted.since, [f"asked again {number}"]
        assert isinstance(await pair.ask(_report(budget_id, claim, deltas), request_ids=ids), expected)
        assert isinstance(await pair.ask(_report(budget_id, claim, deltas), request_ids=ids), expected)
        assert counted.since - before == decides
        await pair.compare()


async def test_limits_and_periods_that_were_changed_meanwhile(pair: Pair) -> None:
    budget_id, claim, counted = await budget(pair, hard=10), await started(pair), Counted(pair)
    report = reporting(budget_id, claim, 9)
    raised = ChangeBudgetLimitsArgs(
        budget_id=budget_id, dimensions=("tokens",), hard_limits=(100,), soft_limits=(0,)
    )
    released = ReleaseBudgetArgs(budget_id=budget_id, execution_id=claim.execution_id)
    for command in (report, raised, report, ResetBudgetArgs(budget_id=budget_id), report, released, report):
        await pair.ask(command)
        await pair.compare()
    assert counted.since == 4


async def test_what_is_refused_is_refused_by_the_rule(pair: Pair) -> None:
    budget_id, claim, counted = await budget(pair), await started(pair), Counted(pair)
    ended = await started(pair)
    await pair.ask(CompleteExecutionArgs(**fenced(ended, source="lease_holder")))
    stale = msgspec.structs.replace(claim.fence, lease_epoch=7)
    for command, expected in (
        (reporting(budget_id, ended, 1), errors.ExecutionNotActive),
        (msgspec.structs.replace(reporting(budget_id, claim, 1), fence=stale), errors.StaleLease),
        (
            msgspec.structs.replace(
                reporting(budget_id, claim, 1), execution_id=pair.native.new_execution_id()
            ),
            errors.ExecutionNotFound,
        ),
        (
            RecordSpendArgs(
                budget_id=budget_id, execution_id=pair.native.new_execution_id(), deltas={"tokens": 1}
            ),
            errors.ExecutionNotFound,
        ),
        (reporting(budget_id_of(NAMESPACE, "none"), claim, 1), errors.BudgetNotFound),
    ):
        assert isinstance(await pair.ask(command), expected)
    elsewhere = await pair.ask(reporting(budget_id, claim, 1), namespace="elsewhere")
    assert isinstance(elsewhere, errors.ExecutionNotFound)
    pair.clock.advance(TTL_MS - 1)
    assert isinstance(await pair.ask(reporting(budget_id, claim, 1)), UsageApplied)
    pair.clock.advance(1)
    assert isinstance(await pair.ask(reporting(budget_id, claim, 1)), errors.LeaseExpired)
    await pair.compare()
    assert counted.since == 1


async def test_a_damaged_execution_keeps_nobody_else_from_reporting(pair: Pair) -> None:
    budget_id, claim, whole = await budget(pair), await started(pair), await started(pair)
    key = f"execution/{claim.execution_id}"
    shard = pair.store.shard_of(key)
    [stored] = await pair.store._client.read(shard.slot, ("GET", shard.record(key)))
    await pair.store._client.write(shard.slot, ("SET", shard.record(key), b"7:damaged"))
    reports = [reporting(budget_id, claim, 1), reporting(budget_id, whole, 1)]
    answers = await pair.native.engine.execute_many(reports, request_ids=["one", "other"])
    assert isinstance(answers[0], errors.StoreCorrupt)
    assert isinstance(answers[1], UsageApplied)
    await pair.store._client.write(shard.slot, ("SET", shard.record(key), stored))
    await pair.ruled.engine.execute_many(reports[1:], request_ids=["other"])
    await pair.compare()


def _report(budget_id: Any, claim: Any, deltas: dict[str, int]) -> ReportUsageArgs:
    return ReportUsageArgs(
        budget_id=budget_id,
        execution_id=claim.execution_id,
        fence=claim.fence,
        dimensions=tuple(deltas),
        deltas=tuple(deltas.values()),
    )

"""Budgets on every store: limits, reports, periods, and what becomes of the work attached to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from flowfabric import errors
from flowfabric.contracts.budgets import (
    BudgetCreated,
    BudgetExists,
    BudgetStatus,
    ChangeBudgetLimitsArgs,
    CreateBudgetArgs,
    EnforcementMode,
    GetBudgetStatusArgs,
    NothingToRelease,
    OnHardLimit,
    OnSoftLimit,
    ReadBudgetUsageAndLimitsArgs,
    ReconcileBudgetCountersArgs,
    RecordSpendArgs,
    ReleaseBudgetArgs,
    ReportUsageAdminArgs,
    ReportUsageArgs,
    ResetBudgetArgs,
    SpendReleased,
    UsageAlreadyApplied,
    UsageApplied,
    UsageHardBreach,
    UsageSoftBreach,
)
from flowfabric.contracts.ids import BudgetId, ExecutionId, budget_id_of
from flowfabric.contracts.leases import ClaimBatchArgs, ClaimedWork, IssueClaimGrantArgs
from flowfabric.contracts.limits import DAY_MS, DIMENSIONS_MAX
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.states import PublicState
from flowfabric.core.events import Family
from flowfabric.core.records import FORGOTTEN, Budget, BudgetLedger, budget_identity, ledger_identity
from flowfabric.core.state import Situation, blocking_detail, blocking_reason
from flowfabric.engine.scanners.duties import DUTIES
from flowfabric.engine.scanners.loop import sweep
from flowfabric.testing.bed import INSTANCE, LANE, NAMESPACE, TTL_MS, WORKER, Bed
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.stores import RecordingStore

if TYPE_CHECKING:
    from pathlib import Path

NAME: Final = "team"
HOUR_MS: Final = 3_600_000
PAUSE, CANCEL = OnHardLimit.PAUSE, OnHardLimit.CANCEL


def budget_creation(*, hard: int = 0, soft: int = 0, name: str = NAME, **fields: Any) -> CreateBudgetArgs:
    """The arguments that create a budget of tokens; any of them can be given."""
    defaults: dict[str, Any] = {
        "budget_id": budget_id_of(NAMESPACE, name),
        "name": name,
        "scope_type": "team",
        "scope_id": "7",
        "enforcement_mode": EnforcementMode.STRICT,
        "on_hard_limit": OnHardLimit.DENY,
        "on_soft_limit": OnSoftLimit.WARN,
        "reset_interval_ms": 0,
        "dimensions": ("tokens",),
        "hard_limits": (hard,),
        "soft_limits": (soft,),
    }
    return CreateBudgetArgs(**{**defaults, **fields})


async def new_budget(bed: Bed, **fields: Any) -> BudgetId:
    """Create a budget and return its id."""
    created = await bed.execute(budget_creation(**fields))
    assert isinstance(created, BudgetCreated)
    return created.budget_id


async def spend(bed: Bed, budget_id: BudgetId, tokens: int, key: str | None = None) -> Any:
    """Report tokens outside of any execution."""
    return await bed.execute(
        ReportUsageAdminArgs(budget_id=budget_id, dimensions=("tokens",), deltas=(tokens,), dedup_key=key)
    )


def reporting(budget_id: BudgetId, claim: ClaimedWork, tokens: int, **fields: Any) -> ReportUsageArgs:
    """The arguments with which the holder of a lease reports tokens."""
    return ReportUsageArgs(
        budget_id=budget_id,
        execution_id=claim.execution_id,
        fence=claim.fence,
        dimensions=("tokens",),
        deltas=(tokens,),
        **fields,
    )


async def status(bed: Bed, budget_id: BudgetId) -> BudgetStatus:
    """The budget as operators see it."""
    return await bed.execute(GetBudgetStatusArgs(budget_id=budget_id))


async def tokens_used(bed: Bed, budget_id: BudgetId) -> int:
    """How many tokens count in the current period."""
    return (await status(bed, budget_id)).usage.get("tokens", 0)


async def attached(bed: Bed, *budget_ids: BudgetId, **fields: Any) -> ExecutionId:
    """Create an execution to which these budgets are attached."""
    return await bed.create(policy=ExecutionPolicy(budget_ids=budget_ids), **fields)


async def claim_work(bed: Bed, limit: int = 10, **fields: Any) -> tuple[ClaimedWork, ...]:
    """What a worker gets when it asks for work."""
    asking = ClaimBatchArgs(
        lanes=(LANE,),
        worker_id=WORKER,
        worker_instance_id=INSTANCE,
        worker_capabilities=frozenset(),
        lease_ttl_ms=TTL_MS,
        limit=limit,
        **fields,
    )
    return (await bed.execute(asking)).claims


async def claim_some(bed: Bed, limit: int = 10, **fields: Any) -> list[ExecutionId]:
    """The ids of what a worker gets when it asks for work."""
    return [claim.execution_id for claim in await claim_work(bed, limit, **fields)]


async def sweep_duty(bed: Bed, name: str) -> int:
    """Do one duty once."""
    return await sweep(bed.engine, next(duty for duty in DUTIES if duty.name == name))


class BudgetConformance(StoreSuite):
    """Budgets."""

    # Creating

    @pytest.mark.scenario("BUDGET-004")
    async def test_the_same_budget_is_created_once(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=100)
        assert await bed.unchanging(budget_creation(hard=100)) == BudgetExists(budget_id=budget_id)
        assert (await status(bed, budget_id)).hard_limits == {"tokens": 100}

    async def test_a_budget_with_another_definition_is_a_conflict(self, bed: Bed) -> None:
        await new_budget(bed, hard=100)
        assert isinstance(await bed.refused(budget_creation(hard=200)), errors.BudgetConflict)

    async def test_a_name_belongs_to_one_id(self, bed: Bed) -> None:
        refusal = await bed.refused(budget_creation(budget_id=bed.new_id()))
        assert refusal.details["field"] == "budget_id"

    async def test_lists_that_are_not_parallel_are_refused(self, bed: Bed) -> None:
        refusal = await bed.refused(budget_creation(soft_limits=(1, 2)))
        assert refusal.details["field"] == "soft_limits"

    async def test_an_unknown_word_is_refused(self, bed: Bed) -> None:
        refusal = await bed.refused(budget_creation(on_hard_limit="explode"))
        assert refusal.details["field"] == "on_hard_limit"

    async def test_a_dimension_has_one_limit(self, bed: Bed) -> None:
        twice = budget_creation(dimensions=("tokens", "tokens"), hard_limits=(1, 2), soft_limits=(0, 0))
        assert (await bed.refused(twice)).details["field"] == "dimensions"

    async def test_a_budget_of_another_namespace_does_not_exist(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        asking = GetBudgetStatusArgs(budget_id=budget_id)
        assert isinstance(await bed.refused(asking, namespace="other"), errors.BudgetNotFound)

    @pytest.mark.parametrize(
        "command",
        [
            GetBudgetStatusArgs(budget_id=budget_id_of(NAMESPACE, NAME)),
            ResetBudgetArgs(budget_id=budget_id_of(NAMESPACE, NAME)),
            ReadBudgetUsageAndLimitsArgs(budget_id=budget_id_of(NAMESPACE, NAME)),
            ReconcileBudgetCountersArgs(budget_id=budget_id_of(NAMESPACE, NAME)),
            ReportUsageAdminArgs(
                budget_id=budget_id_of(NAMESPACE, NAME), dimensions=("tokens",), deltas=(1,)
            ),
        ],
    )
    async def test_a_budget_that_was_never_created_is_not_found(self, bed: Bed, command: Any) -> None:
        assert isinstance(await bed.refused(command), errors.BudgetNotFound)

    # Reporting

    @pytest.mark.scenario("BUDGET-005")
    async def test_a_soft_limit_that_is_met_exactly_is_not_passed(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, soft=8)
        assert await spend(bed, budget_id, 8) == UsageApplied()
        assert await spend(bed, budget_id, 1) == UsageSoftBreach(
            dimension="tokens", current_usage=9, soft_limit=8
        )
        await bed.execute(ResetBudgetArgs(budget_id=budget_id))
        assert await tokens_used(bed, budget_id) == 0
        assert await spend(bed, budget_id, 8) == UsageApplied()

    @pytest.mark.scenario("BUDGET-006")
    async def test_the_status_of_a_new_budget(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=100, soft=50)
        assert await status(bed, budget_id) == BudgetStatus(
            budget_id=budget_id,
            name=NAME,
            scope_type="team",
            scope_id="7",
            enforcement_mode="strict",
            on_hard_limit="deny",
            on_soft_limit="warn",
            usage={},
            hard_limits={"tokens": 100},
            soft_limits={"tokens": 50},
            breach_count=0,
            soft_breach_count=0,
            created_at=bed.clock.now_ms,
        )

    @pytest.mark.scenario("BUDGET-007")
    async def test_a_report_with_a_key_counts_once(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        assert await spend(bed, budget_id, 7, key="a") == UsageApplied()
        assert await spend(bed, budget_id, 7, key="a") == UsageAlreadyApplied()
        assert await tokens_used(bed, budget_id) == 7

    async def test_a_key_is_bound_to_what_was_reported(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        await spend(bed, budget_id, 7, key="a")
        other = ReportUsageAdminArgs(budget_id=budget_id, dimensions=("tokens",), deltas=(8,), dedup_key="a")
        assert isinstance(await bed.refused(other), errors.IdempotencyConflict)

    async def test_a_key_is_forgotten_after_a_day(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        await spend(bed, budget_id, 7, key="a")
        await bed.advance(DAY_MS)
        assert await spend(bed, budget_id, 7, key="a") == UsageApplied()

    async def test_a_refused_report_does_not_use_its_key(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=10)
        assert isinstance(await spend(bed, budget_id, 11, key="a"), UsageHardBreach)
        await bed.execute(
            ChangeBudgetLimitsArgs(
                budget_id=budget_id, dimensions=("tokens",), hard_limits=(20,), soft_limits=(0,)
            )
        )
        assert await spend(bed, budget_id, 11, key="a") == UsageApplied()

    @pytest.mark.scenario("BUDGET-008")
    async def test_a_limit_that_is_set_later_holds_from_then_on(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        assert await spend(bed, budget_id, 60) == UsageApplied()
        await bed.execute(
            ChangeBudgetLimitsArgs(
                budget_id=budget_id, dimensions=("tokens",), hard_limits=(50,), soft_limits=(0,)
            )
        )
        breach = await spend(bed, budget_id, 1)
        assert breach == UsageHardBreach(dimension="tokens", current_usage=60, hard_limit=50)

    async def test_a_hard_breach_counts_nothing_but_the_breach(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=100)
        await spend(bed, budget_id, 40)
        assert isinstance(await spend(bed, budget_id, 61), UsageHardBreach)
        found = await status(bed, budget_id)
        assert (found.usage, found.breach_count) == ({"tokens": 40}, 1)
        assert (found.last_breach_at, found.last_breach_dim) == (bed.clock.now_ms, "tokens")

    async def test_a_dimension_that_is_reported_twice_is_summed_first(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=100)
        twice = ReportUsageAdminArgs(budget_id=budget_id, dimensions=("tokens", "tokens"), deltas=(60, 60))
        assert isinstance(await bed.execute(twice), UsageHardBreach)
        assert await tokens_used(bed, budget_id) == 0

    async def test_a_breach_in_one_dimension_counts_none(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=100)
        both = ReportUsageAdminArgs(budget_id=budget_id, dimensions=("cost", "tokens"), deltas=(5, 101))
        assert isinstance(await bed.execute(both), UsageHardBreach)
        assert (await status(bed, budget_id)).usage == {}

    async def test_an_advisory_budget_counts_on(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=10, enforcement_mode=EnforcementMode.ADVISORY)
        assert await spend(bed, budget_id, 11) == UsageSoftBreach(
            dimension="tokens", current_usage=11, soft_limit=10
        )
        assert await claim_some(bed) == []
        execution_id = await attached(bed, budget_id)
        assert await claim_some(bed) == [execution_id]

    async def test_passing_a_limit_that_is_not_enforced_is_told_once(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=10, enforcement_mode=EnforcementMode.ADVISORY)
        for _ in range(3):
            await spend(bed, budget_id, 9)
        told = await bed.store.read_events(0, families=frozenset({Family.BUDGET}))
        assert [stored.event.name for stored in told] == ["hard_breach"]

    async def test_passing_a_soft_limit_is_told_once_in_a_period(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, soft=8)
        for _ in range(3):
            await spend(bed, budget_id, 5)
        await bed.execute(ResetBudgetArgs(budget_id=budget_id))
        await spend(bed, budget_id, 9)
        told = await bed.store.read_events(0, families=frozenset({Family.BUDGET}))
        assert [stored.event.name for stored in told] == ["soft_breach", "soft_breach"]
        assert told[0].event.data["dimension"] == "tokens"

    @pytest.mark.scenario("BUDGET-012")
    async def test_what_an_execution_has_spent_is_in_its_ledger(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=100, soft=50)
        execution_id = await bed.create()

        async def record(deltas: dict[str, int], key: str) -> Any:
            return await bed.execute(
                RecordSpendArgs(
                    budget_id=budget_id, execution_id=execution_id, deltas=deltas, idempotency_key=key
                )
            )

        assert await record({"tokens": 10, "cost": 20}, "1") == UsageApplied()
        assert await record({"tokens": 10, "cost": 20}, "1") == UsageAlreadyApplied()
        ledger = await bed.get(BudgetLedger, ledger_identity(budget_id, 0, execution_id))
        assert ledger.spent == {"tokens": 10, "cost": 20}
        assert isinstance(await record({"tokens": 50}, "2"), UsageSoftBreach)
        breach = await record({"tokens": 80}, "3")
        assert isinstance(breach, UsageHardBreach)
        assert (breach.current_usage, breach.hard_limit) == (60, 100)
        ledger = await bed.get(BudgetLedger, ledger_identity(budget_id, 0, execution_id))
        assert ledger.spent == {"tokens": 60, "cost": 20}

    async def test_the_holder_of_a_lease_reports(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        claim = await bed.start()
        assert await bed.execute(reporting(budget_id, claim, 3)) == UsageApplied()
        ledger = await bed.get(BudgetLedger, ledger_identity(budget_id, 0, claim.execution_id))
        assert ledger.spent == {"tokens": 3}

    async def test_a_former_holder_reports_nothing(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        claim = await bed.start()
        await bed.complete(claim)
        assert isinstance(await bed.refused(reporting(budget_id, claim, 3)), errors.ExecutionNotActive)

    async def test_many_reports_of_one_moment_are_one_commit(self, tmp_path: Path) -> None:
        recording = RecordingStore(self.make_store(tmp_path))
        async with Bed(recording) as bed:
            budget_id = await new_budget(bed)
            claims = [await bed.start() for _ in range(100)]
            commits = len(recording.commits)
            answers = await bed.engine.execute_many([reporting(budget_id, claim, 1) for claim in claims])
            assert answers == [UsageApplied()] * 100
            assert len(recording.commits) == commits + 1
            assert await tokens_used(bed, budget_id) == 100

    @pytest.mark.parametrize("kind", ["worker", "admin", "system", "release"])
    async def test_a_request_that_is_sent_again_acts_once(self, bed: Bed, kind: str) -> None:
        """Although others have reported since, so that its answer is not the latest any more."""
        budget_id = await new_budget(bed)
        claim = await bed.start()
        execution_id = claim.execution_id
        await bed.execute(reporting(budget_id, claim, 100))
        command: Any = {
            "worker": reporting(budget_id, claim, 10),
            "admin": ReportUsageAdminArgs(budget_id=budget_id, dimensions=("tokens",), deltas=(10,)),
            "system": RecordSpendArgs(budget_id=budget_id, execution_id=execution_id, deltas={"tokens": 10}),
            "release": ReleaseBudgetArgs(budget_id=budget_id, execution_id=execution_id),
        }[kind]
        answer = await bed.execute(command, request_id="asked")
        await bed.execute(reporting(budget_id, claim, 1))
        assert await bed.unchanging(command, request_id="asked") == answer
        assert await tokens_used(bed, budget_id) == (1 if kind == "release" else 111)

    async def test_a_budget_has_a_bounded_number_of_dimensions(self, bed: Bed) -> None:
        """A name that is made anew for each report would make all that follow slower and slower."""
        budget_id = await new_budget(bed)

        def some(first: int) -> dict[str, Any]:
            names = tuple(f"request-{number}" for number in range(first, first + DIMENSIONS_MAX))
            return {"budget_id": budget_id, "dimensions": names}

        ones = (1,) * DIMENSIONS_MAX
        await bed.execute(ReportUsageAdminArgs(**some(0), deltas=ones))
        refusal = await bed.refused(ReportUsageAdminArgs(**some(1), deltas=ones))
        assert refusal.details["field"] == "dimensions"
        refusal = await bed.refused(ChangeBudgetLimitsArgs(**some(0), hard_limits=ones, soft_limits=ones))
        assert refusal.details["field"] == "dimensions"
        await bed.execute(ResetBudgetArgs(budget_id=budget_id))
        await bed.execute(ReportUsageAdminArgs(**some(1), deltas=ones))

    # Releasing and resetting

    async def test_a_release_takes_back_exactly_what_was_spent(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        execution_id = await bed.create()
        await spend(bed, budget_id, 5)
        await bed.execute(
            RecordSpendArgs(budget_id=budget_id, execution_id=execution_id, deltas={"tokens": 250})
        )
        releasing = ReleaseBudgetArgs(budget_id=budget_id, execution_id=execution_id)
        assert await bed.execute(releasing) == SpendReleased(released={"tokens": 250})
        assert await bed.unchanging(releasing) == NothingToRelease()
        assert await tokens_used(bed, budget_id) == 5

    async def test_a_release_after_a_reset_takes_nothing_from_the_new_period(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        execution_id = await bed.create()
        await bed.execute(
            RecordSpendArgs(budget_id=budget_id, execution_id=execution_id, deltas={"tokens": 250})
        )
        await bed.execute(ResetBudgetArgs(budget_id=budget_id))
        await spend(bed, budget_id, 5)
        released = await bed.execute(ReleaseBudgetArgs(budget_id=budget_id, execution_id=execution_id))
        assert released == NothingToRelease()
        assert await tokens_used(bed, budget_id) == 5

    async def test_resets_follow_the_schedule_and_do_not_drift(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, reset_interval_ms=HOUR_MS)
        created_at = bed.clock.now_ms
        await spend(bed, budget_id, 5)
        bed.clock.now_ms += 2 * HOUR_MS + 1_234
        await bed.settle()
        found = await status(bed, budget_id)
        assert (found.usage, found.next_reset_at) == ({}, created_at + 3 * HOUR_MS)

    async def test_a_reset_by_hand_leaves_the_schedule_as_it_is(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, reset_interval_ms=HOUR_MS)
        created_at = bed.clock.now_ms
        await bed.advance(1_000)
        reset = await bed.execute(ResetBudgetArgs(budget_id=budget_id))
        assert reset.next_reset_at == created_at + HOUR_MS

    async def test_a_reset_forgets_the_last_breach_and_keeps_the_counts(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=1)
        await spend(bed, budget_id, 2)
        await bed.execute(ResetBudgetArgs(budget_id=budget_id))
        found = await status(bed, budget_id)
        assert (found.breach_count, found.last_breach_at, found.last_breach_dim) == (1, None, None)

    async def test_the_ledgers_of_past_periods_are_removed(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        creations = [bed.creation() for _ in range(150)]
        await bed.engine.execute_many(creations)
        await bed.engine.execute_many(
            [
                RecordSpendArgs(budget_id=budget_id, execution_id=found.execution_id, deltas={"tokens": 1})
                for found in creations
            ]
        )
        await bed.execute(ResetBudgetArgs(budget_id=budget_id))
        await sweep_duty(bed, "ledger_pruner")
        prefix = f"budget_ledger/{budget_identity(budget_id)}/"
        assert await bed.store.list_keys(prefix, limit=200) == []
        assert (await bed.get(Budget, budget_identity(budget_id))).oldest_period == 1

    async def test_the_ledgers_of_executions_that_are_gone_become_one(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        await spend(bed, budget_id, 7)
        gone = [await bed.start() for _ in range(3)]
        stays = await bed.start()
        for place, claim in enumerate([*gone, stays]):
            await bed.execute(
                RecordSpendArgs(
                    budget_id=budget_id, execution_id=claim.execution_id, deltas={"tokens": 10**place}
                )
            )
        for claim in gone:
            await bed.complete(claim)
        for _ in range(2):  # one for the retention of the executions, one until ledgers are looked at
            await bed.advance(DAY_MS)
        prefix = f"budget_ledger/{budget_identity(budget_id)}/"
        assert len(await bed.store.list_keys(prefix)) == 3
        forgotten = await bed.get(BudgetLedger, ledger_identity(budget_id, 0, FORGOTTEN))
        assert forgotten.spent == {"tokens": 111}
        assert await tokens_used(bed, budget_id) == 1_118
        await bed.check()
        release = ReleaseBudgetArgs(budget_id=budget_id, execution_id=stays.execution_id)
        assert await bed.execute(release) == SpendReleased(released={"tokens": 1_000})

    async def test_counters_that_are_right_are_left_alone(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        await spend(bed, budget_id, 5)
        found = await bed.unchanging(ReconcileBudgetCountersArgs(budget_id=budget_id))
        assert (found.action, found.usage) == ("consistent", {"tokens": 5})

    # Admission

    async def test_a_budget_that_is_not_there_is_named_as_it_was_asked_for(self, bed: Bed) -> None:
        refusal = await bed.refused(bed.creation(policy=ExecutionPolicy(budget_ids=("taem",))))
        assert isinstance(refusal, errors.BudgetNotFound)
        assert refusal.details["name"] == "taem"

    async def test_an_unknown_budget_is_refused_when_work_is_created(self, bed: Bed) -> None:
        creation = bed.creation(policy=ExecutionPolicy(budget_ids=("nobody",)))
        assert isinstance(await bed.refused(creation), errors.BudgetNotFound)

    async def test_a_policy_may_name_a_budget_by_its_name(self, bed: Bed) -> None:
        budget_id = await new_budget(bed)
        execution_id = await bed.create(policy=ExecutionPolicy(budget_ids=(NAME,)))
        policy = (await bed.execution(execution_id)).policy
        assert policy is not None
        assert policy.budget_ids == (budget_id,)

    async def test_work_without_headroom_is_not_claimed_and_says_why(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=10)
        execution_id = await attached(bed, budget_id)
        await spend(bed, budget_id, 10)
        assert await claim_some(bed) == []
        execution = await bed.execution(execution_id)
        assert await bed.state(execution_id) is PublicState.RATE_LIMITED
        assert blocking_reason(execution) == "waiting_for_budget"
        assert NAME in blocking_detail(execution)
        assert "eligible" not in await bed.indexes_of(execution_id)

    async def test_no_headroom_is_found_out_once(self, tmp_path: Path) -> None:
        recording = RecordingStore(self.make_store(tmp_path))
        async with Bed(recording) as bed:
            budget_id = await new_budget(bed, hard=10)
            await attached(bed, budget_id)
            await spend(bed, budget_id, 10)
            await claim_some(bed)
            commits = len(recording.commits)
            assert await claim_some(bed) == []
            assert len(recording.commits) == commits

    @pytest.mark.parametrize("way", ["reset", "raise", "release"])
    async def test_headroom_that_returns_lets_work_go_at_once(self, bed: Bed, way: str) -> None:
        budget_id = await new_budget(bed, hard=10)
        spender = await bed.create(lane_id="other")
        execution_id = await attached(bed, budget_id)
        await bed.execute(RecordSpendArgs(budget_id=budget_id, execution_id=spender, deltas={"tokens": 10}))
        await claim_some(bed)
        assert await bed.situation(execution_id) is Situation.BLOCKED
        await bed.execute(
            {
                "reset": ResetBudgetArgs(budget_id=budget_id),
                "release": ReleaseBudgetArgs(budget_id=budget_id, execution_id=spender),
                "raise": ChangeBudgetLimitsArgs(
                    budget_id=budget_id, dimensions=("tokens",), hard_limits=(20,), soft_limits=(0,)
                ),
            }[way]
        )
        assert await bed.situation(execution_id) is Situation.ELIGIBLE
        assert await claim_some(bed) == [execution_id]

    async def test_a_scheduled_reset_lets_work_go(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=10, reset_interval_ms=HOUR_MS)
        execution_id = await attached(bed, budget_id)
        await spend(bed, budget_id, 10)
        await claim_some(bed)
        await bed.advance(HOUR_MS)
        assert await claim_some(bed) == [execution_id]

    async def test_many_that_wait_are_let_go_in_pages(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=10)
        creations = [bed.creation(policy=ExecutionPolicy(budget_ids=(budget_id,))) for _ in range(250)]
        await bed.engine.execute_many(creations)
        await spend(bed, budget_id, 10)
        assert await claim_some(bed, limit=256) == []
        assert await bed.store.count_index("waiting", budget_id) == 250
        await bed.execute(ResetBudgetArgs(budget_id=budget_id))
        assert await bed.store.count_index("waiting", budget_id) == 150
        await sweep_duty(bed, "unblock")
        assert await bed.store.count_index("waiting", budget_id) == 0
        assert (await bed.get(Budget, budget_identity(budget_id))).waking_at is None

    async def test_every_budget_must_have_headroom(self, bed: Bed) -> None:
        spent, free = await new_budget(bed, hard=1), await new_budget(bed, name="other", hard=1)
        execution_id = await attached(bed, free, spent)
        await spend(bed, spent, 1)
        assert await claim_some(bed) == []
        await bed.execute(ResetBudgetArgs(budget_id=free))
        assert await bed.situation(execution_id) is Situation.BLOCKED
        await bed.execute(ResetBudgetArgs(budget_id=spent))
        assert await claim_some(bed) == [execution_id]

    async def test_other_work_passes_by(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=1)
        await attached(bed, budget_id, priority=100)
        free = await bed.create()
        await spend(bed, budget_id, 1)
        assert await claim_some(bed, limit=1) == [free]

    async def test_a_grant_needs_headroom_too(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=1)
        execution_id = await attached(bed, budget_id)
        await spend(bed, budget_id, 1)
        asking = IssueClaimGrantArgs(
            execution_id=execution_id,
            lane_id=LANE,
            worker_id=WORKER,
            worker_instance_id=INSTANCE,
            worker_capabilities=frozenset(),
            grant_ttl_ms=TTL_MS,
        )
        with pytest.raises(errors.BudgetExceeded):
            await bed.execute(asking)
        assert await bed.situation(execution_id) is Situation.BLOCKED

    # What a breach does

    async def test_denying_leaves_the_others_alone(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=100)
        execution_id = await attached(bed, budget_id)
        assert isinstance(await spend(bed, budget_id, 101), UsageHardBreach)
        assert await claim_some(bed) == [execution_id]

    async def test_pausing_holds_all_work_back_after_a_breach(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=100, on_hard_limit=PAUSE)
        await attached(bed, budget_id)
        breach = await spend(bed, budget_id, 101)
        assert breach == UsageHardBreach(
            dimension="tokens", current_usage=0, hard_limit=100, on_hard_limit=PAUSE
        )
        assert await claim_some(bed) == []
        assert not (await bed.execute(ReadBudgetUsageAndLimitsArgs(budget_id=budget_id))).has_headroom

    async def test_cancelling_ends_all_work_in_whatever_state(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=100, on_hard_limit=CANCEL)
        eligible = await attached(bed, budget_id)
        delayed = await attached(bed, budget_id, delay_until=bed.clock.now_ms + HOUR_MS)
        running = await attached(bed, budget_id)
        claim = await bed.claim(running)
        stranger = await bed.create()
        assert isinstance(await bed.execute(reporting(budget_id, claim, 101)), UsageHardBreach)
        for execution_id in (eligible, delayed, running):
            assert await bed.state(execution_id) is PublicState.CANCELLED
        assert await bed.situation(stranger) is Situation.ELIGIBLE

    async def test_many_are_cancelled_in_pages(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=1, on_hard_limit=CANCEL)
        creations = [bed.creation(policy=ExecutionPolicy(budget_ids=(budget_id,))) for _ in range(250)]
        await bed.engine.execute_many(creations)
        await spend(bed, budget_id, 2)
        assert await bed.store.count_index("attached", budget_id) == 150
        await sweep_duty(bed, "unblock")
        assert await bed.store.count_index("attached", budget_id) == 0
        assert (await bed.get(Budget, budget_identity(budget_id))).cancelling_at is None

    async def test_a_lapsed_lease_is_not_reclaimed_without_headroom(self, bed: Bed) -> None:
        budget_id = await new_budget(bed, hard=1)
        execution_id = await attached(bed, budget_id)
        await bed.claim(execution_id)
        await bed.advance(TTL_MS)
        await spend(bed, budget_id, 1)
        assert await claim_some(bed) == []
        assert "eligible" not in await bed.indexes_of(execution_id)
        await bed.execute(ResetBudgetArgs(budget_id=budget_id))
        await bed.advance(15_000)
        assert await claim_some(bed) == [execution_id]

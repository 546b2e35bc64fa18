"""Generators for budgets, quota policies, and work that is held back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowfabric import errors
from flowfabric.contracts.blocking import (
    BlockExecutionArgs,
    BlockRouteArgs,
    PauseExecutionArgs,
    UnblockExecutionArgs,
    UnpauseExecutionArgs,
)
from flowfabric.contracts.budgets import (
    ChangeBudgetLimitsArgs,
    CreateBudgetArgs,
    EnforcementMode,
    GetBudgetStatusArgs,
    OnHardLimit,
    OnSoftLimit,
    ReadBudgetUsageAndLimitsArgs,
    ReconcileBudgetCountersArgs,
    RecordSpendArgs,
    ReleaseBudgetArgs,
    ReportUsageAdminArgs,
    ReportUsageArgs,
    ResetBudgetArgs,
)
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.ids import partition_of
from flowfabric.contracts.leases import ClaimBatchArgs
from flowfabric.contracts.partitions import Partition
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.quotas import (
    CheckAdmissionArgs,
    CreateQuotaPolicyArgs,
    ReadQuotaPolicyLimitsArgs,
    ReconcileQuotaCountersArgs,
    ReleaseAdmissionArgs,
)
from flowfabric.core.commands import (
    CancelForBudgetArgs,
    ClaimCandidateArgs,
    CorrectBudgetUsageArgs,
    CorrectQuotaCounterArgs,
    ForgetGivenBackArgs,
    ForgetLedgersArgs,
    GiveAdmissionBackArgs,
    HoldBackArgs,
    LetGoArgs,
    LookAfterWaitingArgs,
    PruneLedgersArgs,
    ReadRoomArgs,
    RollBudgetArgs,
    SettleAdmissionArgs,
    SettleBudgetHeadroomArgs,
    SettleQuotaHeadroomArgs,
)
from flowfabric.core.records import (
    Admission,
    Budget,
    BudgetLedger,
    BudgetUsage,
    Execution,
    GivenBack,
    QuotaPolicy,
    budget_identity,
    quota_identity,
)
from flowfabric.core.rules.blocking import KIND_OF_REASON
from flowfabric.core.rules.quotas import has_concurrency_room
from flowfabric.core.state import Situation, is_eligible
from flowfabric.testing.bed import LANE, NAMESPACE, TTL_MS
from flowfabric.testing.model.draw import Draw, generator

if TYPE_CHECKING:
    from collections.abc import Callable

REASONS: Final = tuple(map(str, KIND_OF_REASON))
PAGE: Final = 3


def budget_of(draw: Draw) -> Budget:
    """A budget of the namespace that most work belongs to."""
    found = [one for one in draw.world.all(Budget) if one.namespace == NAMESPACE]
    return draw.one_of(found, CreateBudgetArgs)


def quota_of(draw: Draw) -> QuotaPolicy:
    """A quota policy of that namespace."""
    found = [one for one in draw.world.all(QuotaPolicy) if one.namespace == NAMESPACE]
    return draw.one_of(found, CreateQuotaPolicyArgs)


def _own(draw: Draw, *situations: Situation) -> Execution:
    """An execution of that namespace."""
    found = [one for one in draw.executions(*situations) if one.namespace == NAMESPACE]
    return draw.one_of(found, CreateExecutionArgs)


# Budgets


@generator(CreateBudgetArgs)
def create_budget(draw: Draw) -> CreateBudgetArgs:
    """Of one or two dimensions, with every word that there is."""
    return CreateBudgetArgs(
        budget_id=draw.new_id(),
        namespace=NAMESPACE,
        scope_type="team",
        scope_id="7",
        enforcement_mode=draw.pick((EnforcementMode.STRICT, *EnforcementMode)),
        on_hard_limit=draw.pick(tuple(OnHardLimit)),
        on_soft_limit=draw.pick(tuple(OnSoftLimit)),
        reset_interval_ms=draw.pick((0, TTL_MS, 4 * TTL_MS)),
        dimensions=("tokens", "cost"),
        hard_limits=(draw.pick((0, 5, 100)), 0),
        soft_limits=(draw.pick((0, 3)), draw.pick((0, 1))),
    )


@generator(CreateBudgetArgs, provokes=errors.BudgetConflict)
def create_another_budget_under_an_id(draw: Draw) -> CreateBudgetArgs:
    """With a dimension that it does not have."""
    return CreateBudgetArgs(
        budget_id=budget_of(draw).budget_id,
        namespace=NAMESPACE,
        scope_type="",
        scope_id="",
        enforcement_mode=EnforcementMode.STRICT,
        on_hard_limit=OnHardLimit.DENY,
        on_soft_limit=OnSoftLimit.WARN,
        reset_interval_ms=0,
        dimensions=("other",),
        hard_limits=(1,),
        soft_limits=(0,),
    )


@generator(ChangeBudgetLimitsArgs)
def change_budget_limits(draw: Draw) -> ChangeBudgetLimitsArgs:
    """Higher, lower, or none."""
    return ChangeBudgetLimitsArgs(
        budget_id=budget_of(draw).budget_id,
        dimensions=("tokens",),
        hard_limits=(draw.pick((0, 1, 10, 1_000)),),
        soft_limits=(draw.pick((0, 2)),),
    )


@generator(ResetBudgetArgs)
def reset_budget(draw: Draw) -> ResetBudgetArgs:
    """By hand."""
    return ResetBudgetArgs(budget_id=budget_of(draw).budget_id)


@generator(RollBudgetArgs)
def roll_budget(draw: Draw) -> RollBudgetArgs:
    """Due or not."""
    return RollBudgetArgs(budget_identity=budget_of(draw).identity)


@generator(GetBudgetStatusArgs)
def get_budget_status(draw: Draw) -> GetBudgetStatusArgs:
    """Any."""
    return GetBudgetStatusArgs(budget_id=budget_of(draw).budget_id)


@generator(GetBudgetStatusArgs, provokes=errors.BudgetNotFound)
def get_the_status_of_no_budget(draw: Draw) -> GetBudgetStatusArgs:
    """Under an id that nothing has."""
    return GetBudgetStatusArgs(budget_id=draw.new_id())


@generator(ReadBudgetUsageAndLimitsArgs)
def read_budget_usage_and_limits(draw: Draw) -> ReadBudgetUsageAndLimitsArgs:
    """Any."""
    return ReadBudgetUsageAndLimitsArgs(budget_id=budget_of(draw).budget_id)


# Spending


@generator(ReportUsageArgs)
def report_usage(draw: Draw) -> ReportUsageArgs:
    """By the holder of a lease, with a key or without."""
    execution = draw.running()
    return ReportUsageArgs(
        budget_id=budget_of(draw).budget_id,
        execution_id=execution.execution_id,
        fence=draw.world.fences[execution.execution_id][-1],
        dimensions=("tokens", "tokens", "cost"),
        deltas=(draw.pick((0, 1, 4)), 1, draw.pick((0, 1))),
        dedup_key=draw.pick((None, "a", draw.new_id())),
    )


@generator(ReportUsageAdminArgs)
def report_usage_admin(draw: Draw) -> ReportUsageAdminArgs:
    """A little or a lot."""
    return ReportUsageAdminArgs(
        budget_id=budget_of(draw).budget_id,
        dimensions=("tokens",),
        deltas=(draw.pick((1, 6, 200)),),
        dedup_key=draw.pick((None, "b")),
    )


@generator(RecordSpendArgs)
def record_spend(draw: Draw) -> RecordSpendArgs:
    """For an execution in whatever state."""
    return RecordSpendArgs(
        budget_id=budget_of(draw).budget_id,
        execution_id=_own(draw).execution_id,
        deltas={"tokens": draw.pick((1, 2))},
        idempotency_key=draw.pick((None, draw.new_id())),
    )


@generator(ReleaseBudgetArgs)
def release_budget(draw: Draw) -> ReleaseBudgetArgs:
    """Of an execution that has spent something, as a rule."""
    ledgers = [one for one in draw.world.all(BudgetLedger) if one.spender.startswith("{")]
    ledger = draw.one_of(ledgers, RecordSpendArgs)
    return ReleaseBudgetArgs(budget_id=ledger.budget_id, execution_id=ledger.spender)


@generator(ReconcileBudgetCountersArgs)
def reconcile_budget_counters(draw: Draw) -> ReconcileBudgetCountersArgs:
    """Which are right."""
    return ReconcileBudgetCountersArgs(budget_id=budget_of(draw).budget_id)


@generator(CorrectBudgetUsageArgs)
def correct_budget_usage(draw: Draw) -> CorrectBudgetUsageArgs:
    """Which changes nothing, for it is right or has changed since."""
    budget = budget_of(draw)
    usage = draw.world.find(BudgetUsage, budget.identity)
    assert usage is not None
    return CorrectBudgetUsageArgs(
        budget_id=budget.budget_id,
        period=budget.period,
        revision=usage.revision - draw.pick((0, 1)),
        usage=usage.usage,
    )


@generator(PruneLedgersArgs)
def prune_ledgers(draw: Draw) -> PruneLedgersArgs:
    """Of periods that are over, if there are any."""
    return PruneLedgersArgs(budget_identity=budget_of(draw).identity)


@generator(ForgetLedgersArgs)
def forget_ledgers(draw: Draw) -> ForgetLedgersArgs:
    """Of the oldest period, without the claim that these are all."""
    budget = budget_of(draw)
    ledgers = [one.identity for one in draw.world.all(BudgetLedger) if one.budget_id == budget.budget_id]
    return ForgetLedgersArgs(
        budget_identity=budget.identity, period=budget.oldest_period, ledger_ids=tuple(ledgers), last=False
    )


# Quota policies


@generator(CreateQuotaPolicyArgs)
def create_quota_policy(draw: Draw) -> CreateQuotaPolicyArgs:
    """With one limit, both, or none."""
    return CreateQuotaPolicyArgs(
        quota_policy_id=draw.new_id(),
        namespace=NAMESPACE,
        window_seconds=30,
        max_requests_per_window=draw.pick((0, 1, 3)),
        max_concurrent=draw.pick((0, 1, 2)),
    )


@generator(CreateQuotaPolicyArgs, provokes=errors.QuotaPolicyConflict)
def create_another_quota_policy_under_an_id(draw: Draw) -> CreateQuotaPolicyArgs:
    """With another window."""
    return CreateQuotaPolicyArgs(
        quota_policy_id=quota_of(draw).quota_policy_id,
        namespace=NAMESPACE,
        window_seconds=31,
        max_requests_per_window=0,
        max_concurrent=0,
    )


@generator(CreateQuotaPolicyArgs, provokes=errors.InvalidQuotaSpec)
def create_a_quota_policy_without_a_window(draw: Draw) -> CreateQuotaPolicyArgs:
    """Which no policy is."""
    return CreateQuotaPolicyArgs(
        quota_policy_id=draw.new_id(),
        namespace=NAMESPACE,
        window_seconds=0,
        max_requests_per_window=1,
        max_concurrent=0,
    )


@generator(ReadQuotaPolicyLimitsArgs)
def read_quota_policy_limits(draw: Draw) -> ReadQuotaPolicyLimitsArgs:
    """Any."""
    return ReadQuotaPolicyLimitsArgs(quota_policy_id=quota_of(draw).quota_policy_id)


@generator(CheckAdmissionArgs)
def check_admission(draw: Draw) -> CheckAdmissionArgs:
    """For an execution that can be claimed."""
    claimable = [one for one in draw.executions() if one.namespace == NAMESPACE and is_eligible(one)]
    return CheckAdmissionArgs(
        quota_policy_id=quota_of(draw).quota_policy_id,
        execution_id=draw.one_of(claimable, CreateExecutionArgs).execution_id,
        jitter_ms=draw.pick((None, 100)),
    )


@generator(CheckAdmissionArgs, provokes=errors.ExecutionNotEligible)
def ask_too_late(draw: Draw) -> CheckAdmissionArgs:
    """For an execution that has ended."""
    ended = _own(draw, Situation.COMPLETED, Situation.FAILED, Situation.CANCELLED)
    return CheckAdmissionArgs(quota_policy_id=quota_of(draw).quota_policy_id, execution_id=ended.execution_id)


@generator(CheckAdmissionArgs, provokes=errors.QuotaPolicyNotFound)
def ask_no_quota_policy(draw: Draw) -> CheckAdmissionArgs:
    """Under an id that nothing has."""
    return CheckAdmissionArgs(quota_policy_id=draw.new_id(), execution_id=_own(draw).execution_id)


@generator(ReleaseAdmissionArgs)
def release_admission(draw: Draw) -> ReleaseAdmissionArgs:
    """Which is held, as a rule."""
    admission = draw.one_of(draw.world.all(Admission), CheckAdmissionArgs)
    return ReleaseAdmissionArgs(quota_policy_id=admission.quota_policy_id, execution_id=admission.admitted_id)


@generator(SettleAdmissionArgs)
def settle_admission(draw: Draw) -> SettleAdmissionArgs:
    """Due or not."""
    return SettleAdmissionArgs(
        admission_id=draw.one_of(draw.world.all(Admission), CheckAdmissionArgs).identity
    )


def _given_back(draw: Draw) -> str:
    """A message that is on its way, or one that has arrived."""
    waiting = draw.world.all(GivenBack)
    return draw.pick(waiting).identity if waiting else f"{draw.execution().execution_id}/0"


@generator(GiveAdmissionBackArgs)
def give_admission_back(draw: Draw) -> GiveAdmissionBackArgs:
    """Perhaps once more."""
    return GiveAdmissionBackArgs(given_back_id=_given_back(draw))


@generator(ForgetGivenBackArgs)
def forget_given_back(draw: Draw) -> ForgetGivenBackArgs:
    """One that has arrived: forgetting another one would lose what it says."""
    return ForgetGivenBackArgs(given_back_id=f"{draw.execution().execution_id}/0")


@generator(ReconcileQuotaCountersArgs)
def reconcile_quota_counters(draw: Draw) -> ReconcileQuotaCountersArgs:
    """Which are right."""
    return ReconcileQuotaCountersArgs(quota_policy_id=quota_of(draw).quota_policy_id)


@generator(CorrectQuotaCounterArgs)
def correct_quota_counter(draw: Draw) -> CorrectQuotaCounterArgs:
    """Which changes nothing, for it is right or has changed since."""
    quota = quota_of(draw)
    return CorrectQuotaCounterArgs(
        quota_policy_id=quota.quota_policy_id,
        revision=quota.revision - draw.pick((0, 1)),
        active=quota.active,
    )


# Work under them


@generator(CreateExecutionArgs)
def create_limited_execution(draw: Draw) -> CreateExecutionArgs:
    """With a budget, a quota policy, or both."""
    limits: list[dict[str, Any]] = [
        {"budget_ids": (budget_of(draw).budget_id,)},
        {"quota_policy_id": quota_of(draw).quota_policy_id},
    ]
    chosen = draw.pick((limits[:1], limits[1:], limits))
    fields = {name: value for limit in chosen for name, value in limit.items()}
    return draw.creation(policy=ExecutionPolicy(**fields))


def _claiming(draw: Draw, wanted: Callable[[Execution], bool]) -> ClaimCandidateArgs:
    """A claim of eligible work of which something is true."""
    eligible = [one for one in draw.executions(Situation.ELIGIBLE) if one.grant is None and wanted(one)]
    execution = draw.one_of(eligible, CreateExecutionArgs, ReportUsageAdminArgs, CheckAdmissionArgs)
    return ClaimCandidateArgs(
        execution_id=execution.execution_id,
        lane_id=execution.lane_id,
        worker_capabilities=frozenset(execution.required_capabilities),
        lease_ttl_ms=TTL_MS,
        **draw.worker(),
        **draw.minted(),
    )


@generator(ClaimCandidateArgs, provokes=errors.BudgetExceeded)
def claim_without_headroom(draw: Draw) -> ClaimCandidateArgs:
    """Of a budget that is closed."""

    def is_spent(execution: Execution) -> bool:
        ids = () if execution.policy is None else execution.policy.budget_ids or ()
        budgets = [draw.world.find(Budget, budget_identity(budget_id)) for budget_id in ids]
        return any(budget is not None and budget.closed_at is not None for budget in budgets)

    return _claiming(draw, is_spent)


def _quota_for(draw: Draw, execution: Execution) -> QuotaPolicy | None:
    policy = execution.policy
    if policy is None or policy.quota_policy_id is None or policy.budget_ids:
        return None
    return draw.world.find(QuotaPolicy, quota_identity(policy.quota_policy_id))


@generator(ClaimCandidateArgs, provokes=errors.AdmissionMissing)
def claim_without_admission(draw: Draw) -> ClaimCandidateArgs:
    """Of a policy for which nobody waits."""

    def is_unasked(execution: Execution) -> bool:
        quota = _quota_for(draw, execution)
        return quota is not None and not quota.waiting

    return _claiming(draw, is_unasked)


@generator(ClaimCandidateArgs, provokes=errors.ConcurrencyLimitExceeded)
def claim_where_all_places_are_taken(draw: Draw) -> ClaimCandidateArgs:
    """Of a policy for which others wait."""

    def is_full(execution: Execution) -> bool:
        quota = _quota_for(draw, execution)
        return quota is not None and quota.waiting and not has_concurrency_room(quota)

    return _claiming(draw, is_full)


@generator(ClaimCandidateArgs, provokes=errors.RateLimitExceeded)
def claim_where_the_window_is_full(draw: Draw) -> ClaimCandidateArgs:
    """Of a policy for which others wait."""

    def is_full(execution: Execution) -> bool:
        quota = _quota_for(draw, execution)
        return quota is not None and quota.waiting and has_concurrency_room(quota)

    return _claiming(draw, is_full)


@generator(ClaimBatchArgs)
def claim_a_batch_with_admissions(draw: Draw) -> ClaimBatchArgs:
    """Of whatever there is."""
    return ClaimBatchArgs(
        lanes=(LANE,),
        worker_capabilities=frozenset(),
        lease_ttl_ms=TTL_MS,
        limit=draw.pick((1, 4)),
        **draw.worker(),
    )


@generator(HoldBackArgs)
def hold_back(draw: Draw) -> HoldBackArgs:
    """For lack of headroom, if there is a lack."""
    return HoldBackArgs(execution_id=draw.unclaimed().execution_id)


@generator(LetGoArgs)
def let_go(draw: Draw) -> LetGoArgs:
    """One that waits, if one does."""
    waiting = [
        (one.execution_id, blocker.waits_for)
        for one in draw.executions(Situation.BLOCKED)
        for blocker in one.blockers
        if blocker.waits_for
    ]
    execution_id, waits_for = draw.pick(waiting) if waiting else (draw.execution().execution_id, "nothing")
    return LetGoArgs(execution_id=execution_id, waits_for=waits_for)


@generator(CancelForBudgetArgs)
def cancel_for_budget(draw: Draw) -> CancelForBudgetArgs:
    """Whatever its state."""
    return CancelForBudgetArgs(
        execution_id=draw.execution().execution_id, budget_id=budget_of(draw).budget_id
    )


@generator(LookAfterWaitingArgs)
def look_after_waiting(draw: Draw) -> LookAfterWaitingArgs:
    """Something to do or not."""
    subject = draw.pick((budget_of, quota_of))(draw)
    return LookAfterWaitingArgs(subject=subject.key, pages=2)


@generator(ReadRoomArgs)
def read_room(draw: Draw) -> ReadRoomArgs:
    """Any."""
    return ReadRoomArgs(quota_identity=quota_of(draw).identity, page=PAGE)


@generator(SettleBudgetHeadroomArgs)
def settle_budget_headroom(draw: Draw) -> SettleBudgetHeadroomArgs:
    """For a turn that is over, so that nobody is forgotten."""
    budget = budget_of(draw)
    return SettleBudgetHeadroomArgs(
        budget_identity=budget.identity, turn=budget.turn - 1, woken=True, cancelled=True
    )


@generator(SettleQuotaHeadroomArgs)
def settle_quota_headroom(draw: Draw) -> SettleQuotaHeadroomArgs:
    """For a turn that is over, or with others left."""
    quota = quota_of(draw)
    return SettleQuotaHeadroomArgs(
        quota_identity=quota.identity, turn=quota.turn - draw.pick((0, 1)), let_go=0, more=True
    )


# By hand


@generator(BlockExecutionArgs)
def block_execution(draw: Draw) -> BlockExecutionArgs:
    """For any of the reasons."""
    return BlockExecutionArgs(
        execution_id=draw.unclaimed().execution_id,
        blocking_reason=draw.pick(REASONS),
        blocking_detail=draw.pick((None, "by hand")),
    )


@generator(BlockExecutionArgs, provokes=errors.InvalidBlockingReason)
def block_for_no_reason(draw: Draw) -> BlockExecutionArgs:
    """That there is."""
    return BlockExecutionArgs(execution_id=draw.unclaimed().execution_id, blocking_reason="whim")


@generator(BlockRouteArgs)
def block_route(draw: Draw) -> BlockRouteArgs:
    """Whatever its state."""
    execution = draw.execution()
    return BlockRouteArgs(
        execution_id=execution.execution_id,
        lane_id=execution.lane_id,
        partition=Partition(index=partition_of(execution.execution_id)),
        reason_code="waiting_for_capable_worker",
        reason_detail="nobody can",
    )


@generator(UnblockExecutionArgs)
def unblock_execution(draw: Draw) -> UnblockExecutionArgs:
    """That was blocked by hand or for lack of headroom."""
    kinds = set(KIND_OF_REASON.values())
    blocked = [
        one
        for one in draw.executions(Situation.BLOCKED)
        if any(found.kind in kinds for found in one.blockers)
    ]
    return UnblockExecutionArgs(execution_id=draw.one_of(blocked, BlockExecutionArgs).execution_id)


@generator(PauseExecutionArgs)
def pause_execution(draw: Draw) -> PauseExecutionArgs:
    """Which has not ended."""
    going = [one for one in draw.executions() if one.completed_at is None]
    return PauseExecutionArgs(execution_id=draw.one_of(going, CreateExecutionArgs).execution_id)


@generator(UnpauseExecutionArgs)
def unpause_execution(draw: Draw) -> UnpauseExecutionArgs:
    """Paused, as a rule."""
    paused = [
        one
        for one in draw.executions()
        if one.pause_reason is not None or (not is_eligible(one) and one.blockers)
    ]
    return UnpauseExecutionArgs(execution_id=draw.one_of(paused, PauseExecutionArgs).execution_id)

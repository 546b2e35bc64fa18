"""Lost calls while work is held to budgets and quota policies, blocked and paused."""

import pytest

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
    OnHardLimit,
    RecordSpendArgs,
    ReleaseBudgetArgs,
    ReportUsageAdminArgs,
    ResetBudgetArgs,
    UsageApplied,
    UsageHardBreach,
    UsageSoftBreach,
)
from flowfabric.contracts.executions import CancelExecutionArgs
from flowfabric.contracts.ids import LeaseFence, partition_of
from flowfabric.contracts.leases import IssueClaimGrantArgs, IssueGrantAndClaimArgs
from flowfabric.contracts.partitions import Partition
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.quotas import CheckAdmissionArgs, ReleaseAdmissionArgs
from flowfabric.core.registry import EARLIER_REQUESTS_MAX
from flowfabric.core.rules.quotas import ADMISSION_GRACE_MS
from flowfabric.testing.bed import LANE, TTL_MS
from flowfabric.testing.conformance.admission import quota_creation
from flowfabric.testing.conformance.budgets import budget_creation, reporting
from tests.engine.lost_calls import (
    STORES,
    claimed,
    completed,
    created,
    kept_for_worker,
    lost,
    started,
)

PERIOD_MS = 6_000
"""Short, because work that waits is looked after every few seconds."""


async def budgeted(caller, **fields):
    """Create a budget of tokens. Returns its id."""
    return (await caller.ask(budget_creation(**fields))).budget_id


async def metered(caller, **fields):
    """Create a quota policy. Returns its id."""
    return (await caller.ask(quota_creation(**fields))).quota_policy_id


def taking(caller, execution_id):
    """The command that claims an execution by its name, with all admissions it needs."""
    return IssueGrantAndClaimArgs(
        **kept_for_worker(execution_id),
        lease_id=caller.bed.new_id(),
        attempt_id=caller.bed.new_id(),
        lease_ttl_ms=TTL_MS,
    )


async def taken(caller, execution_id):
    """Claim an execution by its name."""
    answer = await caller.ask(taking(caller, execution_id))
    fence = LeaseFence(lease_id=answer.lease_id, lease_epoch=answer.lease_epoch, attempt_id=answer.attempt_id)
    return Held(answer.execution_id, fence, answer.attempt_index)


class Held:
    """A claim, as far as its holder's commands need it."""

    def __init__(self, execution_id, fence, attempt_index):
        self.execution_id, self.fence, self.attempt_index = execution_id, fence, attempt_index


def spending(budget_id, tokens, key=None):
    return ReportUsageAdminArgs(budget_id=budget_id, dimensions=("tokens",), deltas=(tokens,), dedup_key=key)


# Budgets


async def reporting_usage_side_by_side(caller):
    budget_id = await budgeted(caller)
    claim = await started(caller)
    reports = [reporting(budget_id, claim, tokens, dedup_key=f"step {tokens}") for tokens in (1, 2, 4)]
    await caller.ask_at_once(reports)
    await caller.ask(reports[0])
    await completed(caller, claim)


async def reporting_usage_without_keys(caller):
    """More at once than one record remembers the answers of."""
    budget_id = await budgeted(caller)
    claim = await started(caller)
    count = EARLIER_REQUESTS_MAX + 2
    await caller.ask_at_once([reporting(budget_id, claim, 1 + number) for number in range(count)])
    await caller.ask_at_once([spending(budget_id, 1 + number) for number in range(count)])


async def passing_limits(caller):
    budget_id = await budgeted(caller, hard=10, soft=5)
    assert isinstance(await caller.ask(spending(budget_id, 6)), UsageSoftBreach)
    assert isinstance(await caller.ask(spending(budget_id, 5, "large")), UsageHardBreach)
    await caller.ask(
        ChangeBudgetLimitsArgs(
            budget_id=budget_id, dimensions=("tokens",), hard_limits=(20,), soft_limits=(0,)
        )
    )
    assert await caller.ask(spending(budget_id, 5, "large")) == UsageApplied()


async def waiting_for_a_budget(caller):
    budget_id = await budgeted(caller, hard=10)
    first, second = [await created(caller, policy=ExecutionPolicy(budget_ids=(budget_id,))) for _ in range(2)]
    claim = await taken(caller, first)
    await caller.ask(reporting(budget_id, claim, 10, dedup_key="all of it"))
    with pytest.raises(errors.BudgetExceeded):
        await caller.ask(taking(caller, second))
    await completed(caller, claim)
    await caller.ask(ResetBudgetArgs(budget_id=budget_id))
    await completed(caller, await taken(caller, second))


async def a_breach_that_pauses(caller):
    await _breached(caller, OnHardLimit.PAUSE)


async def a_breach_that_cancels(caller):
    await _breached(caller, OnHardLimit.CANCEL)


async def _breached(caller, consequence):
    budget_id = await budgeted(caller, hard=10, on_hard_limit=consequence)
    policy = ExecutionPolicy(budget_ids=(budget_id,))
    await created(caller, policy=policy)
    claim = await taken(caller, await created(caller, policy=policy))
    await caller.ask(reporting(budget_id, claim, 11))
    await caller.pass_time(0)


async def spending_and_releasing(caller):
    budget_id = await budgeted(caller)
    execution_id = await created(caller)
    for tokens in (250, 20):
        await caller.ask(
            RecordSpendArgs(
                budget_id=budget_id,
                execution_id=execution_id,
                deltas={"tokens": tokens},
                idempotency_key=f"{tokens}",
            )
        )
    await caller.ask(ReleaseBudgetArgs(budget_id=budget_id, execution_id=execution_id))
    await caller.ask(RecordSpendArgs(budget_id=budget_id, execution_id=execution_id, deltas={"tokens": 7}))
    await caller.ask(ResetBudgetArgs(budget_id=budget_id))
    await caller.pass_time(0)


async def periods_of_a_budget(caller):
    budget_id = await budgeted(caller, hard=10, reset_interval_ms=PERIOD_MS)
    policy = ExecutionPolicy(budget_ids=(budget_id,))
    execution_id = await created(caller, policy=policy)
    await caller.ask(spending(budget_id, 10, "this period"))
    with pytest.raises(errors.BudgetExceeded):
        await caller.ask(taking(caller, execution_id))
    await caller.pass_time(PERIOD_MS)
    await completed(caller, await taken(caller, execution_id))
    await caller.pass_time(PERIOD_MS)


# Quota policies


async def limited(caller, quota_policy_id):
    """Create an execution under the quota policy. Returns its id."""
    return await created(caller, policy=ExecutionPolicy(quota_policy_id=quota_policy_id))


async def one_at_once(caller):
    quota_policy_id = await metered(caller, cap=1)
    first, second = [await limited(caller, quota_policy_id) for _ in range(2)]
    claim = await taken(caller, first)
    with pytest.raises(errors.ConcurrencyLimitExceeded):
        await caller.ask(taking(caller, second))
    await completed(caller, claim)
    await caller.pass_time(0)
    await completed(caller, await taken(caller, second))


async def one_in_a_window(caller):
    quota_policy_id = await metered(caller, rate=1, window_seconds=PERIOD_MS // 1_000)
    first, second = [await limited(caller, quota_policy_id) for _ in range(2)]
    await completed(caller, await taken(caller, first))
    with pytest.raises(errors.RateLimitExceeded):
        await caller.ask(taking(caller, second))
    await caller.pass_time(PERIOD_MS)
    await completed(caller, await taken(caller, second))


async def a_lease_that_runs_out_under_a_quota_policy(caller):
    quota_policy_id = await metered(caller, cap=1)
    execution_id = await limited(caller, quota_policy_id)
    await taken(caller, execution_id)
    await caller.pass_time(TTL_MS)
    await caller.ask(CancelExecutionArgs(execution_id=execution_id, reason="unwanted"))
    await caller.pass_time(ADMISSION_GRACE_MS)


async def a_grant_under_a_quota_policy(caller):
    quota_policy_id = await metered(caller, cap=1)
    first, second = [await limited(caller, quota_policy_id) for _ in range(2)]
    await caller.ask(IssueClaimGrantArgs(**kept_for_worker(first), grant_ttl_ms=TTL_MS))
    # Whoever asks again because the reply was lost finds the work held back already.
    with pytest.raises((errors.ConcurrencyLimitExceeded, errors.ExecutionNotEligible)):
        await caller.ask(IssueClaimGrantArgs(**kept_for_worker(second), grant_ttl_ms=TTL_MS))
    await caller.ask(CancelExecutionArgs(execution_id=second, reason="unwanted"))
    await caller.pass_time(2 * ADMISSION_GRACE_MS)


async def admissions_that_nobody_uses(caller):
    quota_policy_id = await metered(caller, rate=3, cap=2)
    ids = [await limited(caller, quota_policy_id) for _ in range(2)]
    asking = [CheckAdmissionArgs(quota_policy_id=quota_policy_id, execution_id=one) for one in ids]
    await caller.ask_at_once(asking)
    await caller.ask(ReleaseAdmissionArgs(quota_policy_id=quota_policy_id, execution_id=ids[0]))
    await caller.pass_time(ADMISSION_GRACE_MS)


# Blocked and paused


async def blocking_for_several_reasons(caller):
    execution_id = await created(caller)
    for reason in ("paused_by_policy", "waiting_for_budget"):
        await caller.ask(BlockExecutionArgs(execution_id=execution_id, blocking_reason=reason))
    await caller.ask(
        BlockRouteArgs(
            execution_id=execution_id,
            lane_id=LANE,
            partition=Partition(index=partition_of(execution_id)),
            reason_code="waiting_for_capable_worker",
            reason_detail="nobody has a gpu",
        )
    )
    for reason in ("waiting_for_budget", "paused_by_policy", "waiting_for_capable_worker"):
        await caller.ask(UnblockExecutionArgs(execution_id=execution_id, expected_blocking_reason=reason))
    await completed(caller, await claimed(caller, execution_id))


async def pausing_what_runs(caller):
    claim = await started(caller)
    await caller.ask(PauseExecutionArgs(execution_id=claim.execution_id))
    await caller.pass_time(TTL_MS)
    await caller.ask(UnpauseExecutionArgs(execution_id=claim.execution_id))
    await completed(caller, await claimed(caller, claim.execution_id))


SCENARIOS = [
    reporting_usage_side_by_side,
    reporting_usage_without_keys,
    passing_limits,
    waiting_for_a_budget,
    a_breach_that_pauses,
    a_breach_that_cancels,
    spending_and_releasing,
    periods_of_a_budget,
    one_at_once,
    one_in_a_window,
    a_lease_that_runs_out_under_a_quota_policy,
    a_grant_under_a_quota_policy,
    admissions_that_nobody_uses,
    blocking_for_several_reasons,
    pausing_what_runs,
]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("store", STORES)
async def test_a_lost_call_around_limits_leaves_what_no_lost_call_leaves(tmp_path, store, scenario):
    assert not await lost(store, tmp_path, scenario)

"""Counting what is spent, and taking it back.

The rules this module keeps:

- The usage of a period is the sum of its ledgers: each report changes both, in one commit.
- A report is checked before it counts. What was spent and refused is not counted, because the one
  who reports it decides whether to spend.
- A release touches the ledger of the current period only, so it never takes from a period that
  did not hold the spend.
- The ledgers of executions that are gone are joined into one, so a budget that is never reset does
  not keep one for each of them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric import errors
from flowfabric.contracts.budgets import (
    EnforcementMode,
    NothingToRelease,
    OnHardLimit,
    OnSoftLimit,
    RecordSpendArgs,
    ReleaseBudgetArgs,
    ReleaseBudgetResult,
    ReportUsageAdminArgs,
    ReportUsageArgs,
    ReportUsageResult,
    SpendReleased,
    UsageAlreadyApplied,
    UsageApplied,
    UsageHardBreach,
    UsageSoftBreach,
)
from flowfabric.contracts.limits import LEDGERS_JOINED_EVERY_MS, SAFE_INTEGER_MAX, USAGE_DEDUP_MS
from flowfabric.core.commands import (
    CorrectBudgetUsageArgs,
    CountersCorrected,
    ForgetLedgersArgs,
    LedgersForgotten,
)
from flowfabric.core.events import Event, Family
from flowfabric.core.records import (
    ADMIN,
    FORGOTTEN,
    Budget,
    BudgetLedger,
    BudgetUsage,
    Dedup,
    budget_identity,
    key_for,
    ledger_identity,
)
from flowfabric.core.registry import execution_subject, no_subject, rule
from flowfabric.core.rules.budgets import (
    budget_subject,
    close_budget,
    exhausted_dimension,
    open_or_close,
    require_dimensions,
    the_budget,
    the_usage,
    usage_subject,
)
from flowfabric.core.rules.fencing import check_lease
from flowfabric.core.rules.remembered import content_digest, recall, remember

if TYPE_CHECKING:
    from flowfabric.core.records import Execution, Key
    from flowfabric.core.work import Work

Deltas = dict[str, int]

APPLIED: Final = b"applied"


class Report(msgspec.Struct, frozen=True):
    """Who has spent how much of what."""

    budget: Budget
    spender: str
    deltas: Deltas


def _report_keys(args: ReportUsageArgs) -> tuple[Key, ...]:
    """What a report is sure to read."""
    return (*_admin_keys(args), execution_subject(args))


def _admin_keys(args: ReportUsageArgs | ReportUsageAdminArgs) -> tuple[Key, ...]:
    return (budget_subject(args), *_dedup_keys(args.budget_id, args.dedup_key))


def _spend_keys(args: RecordSpendArgs) -> tuple[Key, ...]:
    keys = _dedup_keys(args.budget_id, args.idempotency_key)
    return (budget_subject(args), execution_subject(args), *keys)


def _dedup_keys(budget_id: str, dedup_key: str | None) -> tuple[Key, ...]:
    return (key_for(Dedup, "/".join(remembered_as(budget_id, dedup_key, ""))),) if dedup_key else ()


def remembered_as(budget_id: str, dedup_key: str | None, request_id: str) -> tuple[str, str]:
    """The scope and the key under which a report is remembered, in the partition of the budget.

    A report without a key has its request id for one: so many report at once that a lost answer
    may be asked for when the record has forgotten it.
    """
    if dedup_key:
        return f"{budget_identity(budget_id)}/usage", dedup_key
    return f"{budget_identity(budget_id)}/request", request_id


def digest_of(spender: str, deltas: Deltas) -> bytes:
    """What tells one report from another under the same key."""
    return content_digest((spender, sorted(deltas.items())))


@rule(ReportUsageArgs, subject=usage_subject, reads=_report_keys, acts_anew=True)
def report_usage(work: Work, args: ReportUsageArgs) -> ReportUsageResult:
    """Count what the holder of a lease has spent.

    A report that races the loss of the lease counts, because the money was spent: the commit does
    not rest on the lease.

    Raises:
        ExecutionNotFound, ExecutionNotActive, LeaseRevoked, LeaseExpired, StaleLease: the caller
            does not hold the lease.
        BudgetNotFound: there is no such budget.
        IdempotencyConflict: the key was used for another report.
        InvalidInput: a sum is above 2**53-1, or the budget has too many dimensions in this period.
    """
    execution = work.execution(args.execution_id, observed=True)
    check_lease(work, execution, args.fence)
    budget = _budget_of(work, execution, args.budget_id)
    return _count(work, budget, args.execution_id, summed(args.dimensions, args.deltas), args.dedup_key)


@rule(ReportUsageAdminArgs, subject=usage_subject, reads=_admin_keys, acts_anew=True)
def report_usage_admin(work: Work, args: ReportUsageAdminArgs) -> ReportUsageResult:
    """Count what was spent outside of any execution.

    Raises:
        BudgetNotFound, IdempotencyConflict, InvalidInput: see ``report_usage``.
    """
    budget = the_budget(work, args.budget_id)
    return _count(work, budget, ADMIN, summed(args.dimensions, args.deltas), args.dedup_key)


@rule(RecordSpendArgs, subject=usage_subject, reads=_spend_keys, acts_anew=True)
def record_spend(work: Work, args: RecordSpendArgs) -> ReportUsageResult:
    """Count what an execution has spent, whether or not it still runs.

    Raises:
        ExecutionNotFound, BudgetNotFound, IdempotencyConflict, InvalidInput: see ``report_usage``.
    """
    execution = work.execution(args.execution_id, observed=True)
    budget = _budget_of(work, execution, args.budget_id)
    return _count(work, budget, args.execution_id, args.deltas, args.idempotency_key)


def _budget_of(work: Work, execution: Execution, budget_id: str) -> Budget:
    """The budget, which has to be in the namespace of the execution.

    Raises:
        BudgetNotFound: there is none there.
    """
    budget = the_budget(work, budget_id)
    if budget.namespace != execution.namespace:
        raise errors.BudgetNotFound(budget_id=budget_id)
    return budget


def summed(dimensions: tuple[str, ...], deltas: tuple[int, ...]) -> Deltas:
    """One number for each dimension, so that one that is named twice cannot slip past a limit."""
    total: Counter[str] = Counter()
    for dimension, delta in zip(dimensions, deltas, strict=True):
        total[dimension] += delta
    return dict(total)


def _count(
    work: Work, budget: Budget, spender: str, deltas: Deltas, dedup_key: str | None
) -> ReportUsageResult:
    """Check a report against the limits, then count it."""
    scope, key = remembered_as(budget.budget_id, dedup_key, work.envelope.request_id)
    report = Report(budget, spender, deltas)
    digest = digest_of(spender, deltas)
    if recall(work, scope, key, digest) is not None:
        return UsageAlreadyApplied()
    usage = the_usage(work, budget)
    after = _added(usage.usage, deltas)
    over = _first_over(budget.hard_limits, after, deltas)
    if over and budget.enforcement_mode is EnforcementMode.STRICT:
        return _refuse(work, report, work.edit(usage), over)
    usage = work.edit(usage)
    before, usage.usage = usage.usage, after
    usage.revision += 1
    _enter_in_ledger(work, report)
    remember(work, scope, key, APPLIED, USAGE_DEDUP_MS, digest=digest)
    exhausted = exhausted_dimension(budget, after)
    if exhausted and budget.closed_at is None:
        close_budget(work, work.edit(budget), exhausted)
    return _judge(work, report, usage, before)


def _enter_in_ledger(work: Work, report: Report) -> None:
    ledger = _ledger_of(work, report.budget, report.spender)
    ledger.spent = _added(ledger.spent, report.deltas)


def _ledger_of(work: Work, budget: Budget, spender: str) -> BudgetLedger:
    """A copy of a spender's ledger in the current period, or a new one. It may be changed."""
    ledger = work.read(BudgetLedger, ledger_identity(budget.budget_id, budget.period, spender))
    if ledger is None:
        ledger = BudgetLedger(
            budget_id=budget.budget_id, namespace=budget.namespace, period=budget.period, spender=spender
        )
        work.add(ledger)
    return work.edit(ledger)


def _added(amounts: Deltas, deltas: Deltas) -> Deltas:
    total = {**amounts, **{name: amounts.get(name, 0) + delta for name, delta in deltas.items()}}
    require_dimensions(total)
    for name in deltas:
        if total[name] > SAFE_INTEGER_MAX:
            raise errors.InvalidInput(field=f"deltas.{name}", value=deltas[name], rule="a sum up to 2**53-1")
    return total


def _first_over(limits: Deltas, usage: Deltas, deltas: Deltas) -> str:
    """The first dimension of a report that is above its limit; empty if there is none."""
    over = (name for name, delta in deltas.items() if delta and 0 < limits.get(name, 0) < usage[name])
    return next(over, "")


def _refuse(work: Work, report: Report, usage: BudgetUsage, dimension: str) -> UsageHardBreach:
    """Note a report that would have passed a hard limit. ``usage`` is a copy that may be changed."""
    budget = report.budget
    usage.breach_count += 1
    usage.last_breach_at, usage.last_breach_dimension = work.now, dimension
    _publish(work, report, "hard_breach", dimension, budget.hard_limits[dimension])
    if budget.on_hard_limit is not OnHardLimit.DENY and budget.closed_at is None:
        close_budget(work, work.edit(budget), dimension)
    if budget.on_hard_limit is OnHardLimit.CANCEL:
        breached = work.edit(budget)
        breached.cancelling_at = work.now
        breached.turn += 1
    return UsageHardBreach(
        dimension=dimension,
        current_usage=usage.usage.get(dimension, 0),
        hard_limit=budget.hard_limits[dimension],
        on_hard_limit=budget.on_hard_limit,
    )


def _judge(work: Work, report: Report, usage: BudgetUsage, before: Deltas) -> UsageApplied | UsageSoftBreach:
    """Say whether a limit is passed. In advisory mode a hard one is no more than a soft one."""
    budget, limits = report.budget, report.budget.soft_limits
    hard = _first_over(budget.hard_limits, usage.usage, report.deltas)
    if hard:
        limits = {**limits, hard: budget.hard_limits[hard]}
        usage.breach_count += 1
        usage.last_breach_at, usage.last_breach_dimension = work.now, hard
        _tell_of_passed(work, report, "hard_breach", budget.hard_limits, before=before, after=usage.usage)
    over = hard or _first_over(limits, usage.usage, report.deltas)
    if not over:
        return UsageApplied()
    usage.soft_breach_count += 1
    if budget.on_soft_limit is OnSoftLimit.WARN:
        _tell_of_passed(work, report, "soft_breach", budget.soft_limits, before=before, after=usage.usage)
    return UsageSoftBreach(dimension=over, current_usage=usage.usage[over], soft_limit=limits[over])


def _tell_of_passed(
    work: Work, report: Report, name: str, limits: Deltas, *, before: Deltas, after: Deltas
) -> None:
    """Tell of each limit that this very report has passed."""
    for dimension in report.deltas:
        limit = limits.get(dimension, 0)
        if limit and before.get(dimension, 0) <= limit < after[dimension]:
            _publish(work, report, name, dimension, limit)


def _publish(work: Work, report: Report, name: str, dimension: str, limit: int) -> None:
    budget = report.budget
    work.publish(
        Event(
            family=Family.BUDGET,
            name=name,
            namespace=budget.namespace,
            execution_id="" if report.spender == ADMIN else report.spender,
            at_ms=work.now,
            data={
                "budget_id": budget.budget_id,
                "budget_name": budget.name or None,
                "dimension": dimension,
                "limit": limit,
            },
        )
    )


# Taking back


@rule(ReleaseBudgetArgs, subject=usage_subject, reads=lambda args: (budget_subject(args),), acts_anew=True)
def release_budget(work: Work, args: ReleaseBudgetArgs) -> ReleaseBudgetResult:
    """Take back what an execution has spent in the current period.

    Raises:
        BudgetNotFound: there is no such budget.
    """
    budget = the_budget(work, args.budget_id)
    ledger = work.read(BudgetLedger, ledger_identity(args.budget_id, budget.period, args.execution_id))
    if ledger is None:
        return NothingToRelease()
    usage = work.edit(the_usage(work, budget))
    usage.usage = {name: spent - ledger.spent.get(name, 0) for name, spent in usage.usage.items()}
    usage.revision += 1
    work.remove(ledger)
    if budget.closed_at is not None:
        open_or_close(work, work.edit(budget), usage)
    return SpendReleased(released=ledger.spent)


@rule(
    CorrectBudgetUsageArgs, subject=no_subject, reads=lambda args: (budget_subject(args), usage_subject(args))
)
def correct_budget_usage(work: Work, args: CorrectBudgetUsageArgs) -> CountersCorrected:
    """Set the usage to the sum of the ledgers, unless either has changed since they were added up."""
    budget = the_budget(work, args.budget_id)
    usage = the_usage(work, budget)
    if usage.revision != args.revision or budget.period != args.period:
        return CountersCorrected(action="busy")
    if _without_zeros(usage.usage) == _without_zeros(args.usage):
        return CountersCorrected(action="consistent")
    usage = work.edit(usage)
    usage.usage = args.usage
    usage.revision += 1
    open_or_close(work, work.edit(budget), usage)
    return CountersCorrected(action="corrected")


def _without_zeros(usage: Deltas) -> Deltas:
    return {name: amount for name, amount in usage.items() if amount}


@rule(ForgetLedgersArgs, subject=no_subject, reads=lambda args: (key_for(Budget, args.budget_identity),))
def forget_ledgers(work: Work, args: ForgetLedgersArgs) -> LedgersForgotten:
    """Remove ledgers of a past period, which nothing refers to any more; join those of the current one."""
    budget = work.read(Budget, args.budget_identity)
    if budget is None or args.period > budget.period:
        return LedgersForgotten(action="done")
    found = work.read_all(BudgetLedger, args.ledger_ids)
    ledgers = [one for one in found if one is not None and one.period == args.period]
    if args.period == budget.period:
        _join(work, budget, ledgers)
    else:
        for ledger in ledgers:
            work.remove(ledger)
    if args.last:
        budget = work.edit(budget)
        if args.period == budget.period:
            budget.joining_at = work.now + LEDGERS_JOINED_EVERY_MS
        elif args.period == budget.oldest_period:
            budget.oldest_period += 1
    return LedgersForgotten(action="more" if budget.oldest_period < budget.period else "done")


def _join(work: Work, budget: Budget, ledgers: list[BudgetLedger]) -> None:
    """Keep what executions that are gone have spent in one ledger, so that their number never grows."""
    for ledger in ledgers:
        if ledger.spender not in (ADMIN, FORGOTTEN):
            joined = _ledger_of(work, budget, FORGOTTEN)
            joined.spent = _added(joined.spent, ledger.spent)
            work.remove(ledger)

"""Creating, changing, resetting and reading budgets.

The rule this module keeps: a budget is closed exactly while nothing that it is attached to may be
claimed. Whoever opens it owes those that wait for its headroom a look, in the same commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from flowfabric import errors
from flowfabric.contracts.budgets import (
    BudgetCreated,
    BudgetExists,
    BudgetLimitsChanged,
    BudgetReset,
    BudgetStatus,
    BudgetUsageAndLimits,
    ChangeBudgetLimitsArgs,
    CreateBudgetArgs,
    CreateBudgetResult,
    EnforcementMode,
    GetBudgetStatusArgs,
    ReadBudgetUsageAndLimitsArgs,
    ResetBudgetArgs,
    ResetBudgetResult,
)
from flowfabric.contracts.ids import budget_id_of
from flowfabric.contracts.limits import DIMENSIONS_MAX, LEDGERS_JOINED_EVERY_MS, SAFE_INTEGER_MAX
from flowfabric.core.commands import BudgetRolled, RollBudgetArgs
from flowfabric.core.records import Budget, BudgetUsage, Key, budget_identity, key_for
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.rules.acting import log_act, spelled

if TYPE_CHECKING:
    from flowfabric.core.work import Work


class NamesBudget(Protocol):
    """A command about one budget."""

    @property
    def budget_id(self) -> str:
        """Which one."""


def budget_subject(args: NamesBudget) -> Key:
    """The subject of commands about what a budget allows."""
    return key_for(Budget, budget_identity(args.budget_id))


def usage_subject(args: NamesBudget) -> Key:
    """The subject of commands about what was spent."""
    return key_for(BudgetUsage, budget_identity(args.budget_id))


def _usage_keys(args: NamesBudget) -> tuple[Key, ...]:
    return (usage_subject(args),)


def find_budget(work: Work, budget_id: str) -> Budget | None:
    """The budget, or None if there is none in the caller's namespace."""
    budget = work.read(Budget, budget_identity(budget_id))
    namespace = work.envelope.namespace
    return None if budget is None or namespace not in (None, budget.namespace) else budget


def the_budget(work: Work, budget_id: str) -> Budget:
    """The budget with this id, in the caller's namespace.

    Raises:
        BudgetNotFound: there is none, or it belongs to another namespace.
    """
    budget = find_budget(work, budget_id)
    if budget is None:
        raise errors.BudgetNotFound(budget_id=budget_id)
    return budget


def the_usage(work: Work, budget: Budget) -> BudgetUsage:
    """The counters of a budget.

    Raises:
        StoreCorrupt: they are gone. Nothing may be taken for «nothing was spent».
    """
    usage = work.read(BudgetUsage, budget.identity)
    if usage is None:
        raise errors.StoreCorrupt(record=key_for(BudgetUsage, budget.identity))
    return usage


def own_namespace(work: Work, namespace: str | None) -> str:
    """The namespace that a new record belongs to.

    Raises:
        InvalidInput: it is not the caller's, or neither the caller nor the command names one.
    """
    found = work.envelope.namespace if namespace is None else namespace
    if found is None:
        raise errors.InvalidInput(field="namespace", value="None", rule="named by the command or the caller")
    work.require_namespace(found)
    return found


# Creating and changing


@rule(CreateBudgetArgs, subject=budget_subject, reads=_usage_keys)
def create_budget(work: Work, args: CreateBudgetArgs) -> CreateBudgetResult:
    """Create a budget. One that exists with the same definition stays as it is.

    Raises:
        InvalidInput: the namespace is not the caller's, or the id is not the one of the name.
        BudgetConflict: the id belongs to a budget with another definition.
    """
    namespace = own_namespace(work, args.namespace)
    if args.name and args.budget_id != budget_id_of(namespace, args.name):
        raise errors.InvalidInput(field="budget_id", value=args.budget_id, rule="the id of the name")
    budget = _defined(work, args, namespace)
    existing = work.read(Budget, budget.identity)
    if existing is not None:
        if existing.namespace != namespace or _definition(existing) != _definition(budget):
            raise errors.BudgetConflict(budget_id=args.budget_id, name=args.name)
        return BudgetExists(budget_id=args.budget_id)
    work.add(budget)
    work.add(BudgetUsage(budget_id=args.budget_id, namespace=namespace))
    _log(work, budget, "budget_created", new=spelled(budget.hard_limits))
    return BudgetCreated(budget_id=args.budget_id)


def _defined(work: Work, args: CreateBudgetArgs, namespace: str) -> Budget:
    """The budget that the command describes. Those that waited for it to exist are looked after."""
    interval_ms = args.reset_interval_ms
    return Budget(
        budget_id=args.budget_id,
        namespace=namespace,
        name=args.name,
        scope_type=args.scope_type,
        scope_id=args.scope_id,
        enforcement_mode=args.enforcement_mode,
        on_hard_limit=args.on_hard_limit,
        on_soft_limit=args.on_soft_limit,
        reset_interval_ms=interval_ms,
        hard_limits=dict(zip(args.dimensions, args.hard_limits, strict=True)),
        soft_limits=dict(zip(args.dimensions, args.soft_limits, strict=True)),
        created_at=work.now,
        last_updated_at=work.now,
        next_reset_at=min(work.now + interval_ms, SAFE_INTEGER_MAX) if interval_ms else None,
        waking_at=work.now,
        joining_at=work.now + LEDGERS_JOINED_EVERY_MS,
    )


def _definition(budget: Budget) -> tuple[object, ...]:
    """What two budgets must have in common to be the same."""
    return (
        budget.name,
        budget.scope_type,
        budget.scope_id,
        budget.enforcement_mode,
        budget.on_hard_limit,
        budget.on_soft_limit,
        budget.reset_interval_ms,
        budget.hard_limits,
        budget.soft_limits,
    )


@rule(ChangeBudgetLimitsArgs, subject=budget_subject, reads=_usage_keys, acts_anew=True)
def change_budget_limits(work: Work, args: ChangeBudgetLimitsArgs) -> BudgetLimitsChanged:
    """Set limits. They hold from the next report and the next claim on.

    Raises:
        BudgetNotFound: there is no such budget.
        InvalidInput: it would have too many dimensions.
    """
    budget = work.edit(the_budget(work, args.budget_id))
    hard = zip(args.dimensions, args.hard_limits, strict=True)
    soft = zip(args.dimensions, args.soft_limits, strict=True)
    before = (spelled(budget.hard_limits), spelled(budget.soft_limits))
    budget.hard_limits = {**budget.hard_limits, **dict(hard)}
    budget.soft_limits = {**budget.soft_limits, **dict(soft)}
    _log(
        work,
        budget,
        "budget_limits_changed",
        old=before[0],
        new=spelled(budget.hard_limits),
        old_soft=before[1],
        new_soft=spelled(budget.soft_limits),
    )
    require_dimensions(budget.hard_limits)
    budget.last_updated_at = work.now
    open_or_close(work, budget, the_usage(work, budget))
    return BudgetLimitsChanged(hard_limits=budget.hard_limits, soft_limits=budget.soft_limits)


def require_dimensions(amounts: dict[str, int]) -> None:
    """Refuse more dimensions than a budget may have: every report reads and writes all of them.

    Raises:
        InvalidInput: the last one that was named is one too many.
    """
    if len(amounts) > DIMENSIONS_MAX:
        rule_text = f"at most {DIMENSIONS_MAX} in one budget"
        raise errors.InvalidInput(field="dimensions", value=next(reversed(amounts)), rule=rule_text)


# Open and closed


def exhausted_dimension(budget: Budget, usage: dict[str, int]) -> str:
    """A dimension whose hard limit is reached and enforced; empty if there is none."""
    if budget.enforcement_mode is not EnforcementMode.STRICT:
        return ""
    reached = (name for name, limit in budget.hard_limits.items() if limit and usage.get(name, 0) >= limit)
    return min(reached, default="")


def open_or_close(work: Work, budget: Budget, usage: BudgetUsage) -> None:
    """Let the budget follow its counters after they, or its limits, have changed for the better.

    ``budget`` is a copy that may be changed. One that a refused report has closed opens again.
    """
    exhausted = exhausted_dimension(budget, usage.usage)
    if exhausted:
        close_budget(work, budget, exhausted)
    elif budget.closed_at is not None:
        budget.closed_at, budget.closed_dimension = None, ""
        budget.waking_at = work.now
        budget.turn += 1


def close_budget(work: Work, budget: Budget, dimension: str) -> None:
    """Have nothing claimed that the budget is attached to. ``budget`` is a copy."""
    if budget.closed_at is None:
        budget.closed_at, budget.closed_dimension = work.now, dimension


# Resetting


@rule(ResetBudgetArgs, subject=budget_subject, reads=_usage_keys, acts_anew=True)
def reset_budget(work: Work, args: ResetBudgetArgs) -> ResetBudgetResult:
    """Begin a new period, because an operator wants it.

    Raises:
        BudgetNotFound: there is no such budget.
    """
    budget = work.edit(the_budget(work, args.budget_id))
    spent = the_usage(work, budget).usage
    _begin_period(work, budget)
    _log(work, budget, "budget_reset", old=spelled(spent), period=budget.period)
    return BudgetReset(next_reset_at=budget.next_reset_at or 0)


@rule(
    RollBudgetArgs,
    subject=no_subject,
    reads=lambda args: (key_for(Budget, args.budget_identity), key_for(BudgetUsage, args.budget_identity)),
)
def roll_budget(work: Work, args: RollBudgetArgs) -> BudgetRolled:
    """Begin a new period if it is time to."""
    budget = work.read(Budget, args.budget_identity)
    if budget is None or budget.next_reset_at is None:
        return BudgetRolled(action="gone")
    if budget.next_reset_at > work.now:
        return BudgetRolled(action="kept")
    _begin_period(work, work.edit(budget))
    return BudgetRolled(action="reset")


def _log(work: Work, budget: Budget, act: str, /, **told: Any) -> None:
    log_act(work, act, namespace=budget.namespace, budget_id=budget.budget_id, name=budget.name, **told)


def _begin_period(work: Work, budget: Budget) -> None:
    """Set the usage to zero. ``budget`` is a copy that may be changed."""
    budget.period += 1
    budget.last_reset_at = budget.last_updated_at = work.now
    budget.next_reset_at = next_reset_at(budget, work.now)
    budget.joining_at = work.now + LEDGERS_JOINED_EVERY_MS
    usage = work.edit(the_usage(work, budget))
    usage.usage = {}
    usage.revision += 1
    usage.last_breach_at, usage.last_breach_dimension = None, ""
    open_or_close(work, budget, usage)


def next_reset_at(budget: Budget, now: int) -> int | None:
    """The next instant of the schedule, which counts from the creation and never drifts."""
    interval_ms = budget.reset_interval_ms
    if not interval_ms:
        return None
    periods = (now - budget.created_at) // interval_ms + 1
    return min(budget.created_at + periods * interval_ms, SAFE_INTEGER_MAX)


# Reading


@rule(GetBudgetStatusArgs, subject=budget_subject, reads=_usage_keys, query=True)
def get_budget_status(work: Work, args: GetBudgetStatusArgs) -> BudgetStatus:
    """A budget with its counters.

    Raises:
        BudgetNotFound: there is no such budget.
    """
    budget = the_budget(work, args.budget_id)
    usage = the_usage(work, budget)
    return BudgetStatus(
        budget_id=budget.budget_id,
        name=budget.name,
        scope_type=budget.scope_type,
        scope_id=budget.scope_id,
        enforcement_mode=budget.enforcement_mode,
        on_hard_limit=budget.on_hard_limit,
        on_soft_limit=budget.on_soft_limit,
        usage=usage.usage,
        hard_limits=budget.hard_limits,
        soft_limits=budget.soft_limits,
        breach_count=usage.breach_count,
        soft_breach_count=usage.soft_breach_count,
        last_breach_at=usage.last_breach_at,
        last_breach_dim=usage.last_breach_dimension or None,
        next_reset_at=budget.next_reset_at,
        created_at=budget.created_at,
        closed_at=budget.closed_at,
    )


@rule(ReadBudgetUsageAndLimitsArgs, subject=budget_subject, reads=_usage_keys, query=True)
def read_budget_usage_and_limits(work: Work, args: ReadBudgetUsageAndLimitsArgs) -> BudgetUsageAndLimits:
    """What admission looks at.

    Raises:
        BudgetNotFound: there is no such budget.
    """
    budget = the_budget(work, args.budget_id)
    usage = the_usage(work, budget).usage
    return BudgetUsageAndLimits(
        usage=usage, hard_limits=budget.hard_limits, has_headroom=budget.closed_at is None
    )

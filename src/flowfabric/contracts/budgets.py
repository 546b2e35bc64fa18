"""Budgets: what work may spend, in named dimensions, and what happens when it is spent.

A budget counts the usage of one period in each of its dimensions. A report is checked first: one
that would pass a hard limit is refused and changes nothing but the count of breaches. A limit of 0
means that there is none.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.ids import (
    Amount,
    BudgetId,
    DurationMs,
    ExecutionId,
    IdempotencyKey,
    LeaseFence,
    Name,
    Namespace,
    OptionalName,
    TimestampMs,
)
from flowfabric.contracts.limits import BUDGET_PERIOD_MS_MIN, DIMENSIONS_MAX
from flowfabric.errors import InvalidInput

Dimensions: TypeAlias = Annotated[tuple[Name, ...], Meta(max_length=DIMENSIONS_MAX)]
Amounts: TypeAlias = Annotated[tuple[Amount, ...], Meta(max_length=DIMENSIONS_MAX)]
AmountByDimension: TypeAlias = Annotated[dict[Name, Amount], Meta(max_length=DIMENSIONS_MAX)]


class EnforcementMode(StrEnum):
    """Whether hard limits are enforced."""

    STRICT = "strict"
    """A report that would pass a hard limit is refused."""
    ADVISORY = "advisory"
    """Everything is counted and told; nothing is refused."""


class OnHardLimit(StrEnum):
    """What a refused report means for the executions that the budget is attached to.

    None of them is claimed while a hard limit is reached, whatever this says.
    """

    DENY = "deny"
    """The reporter is refused; the others go on."""
    PAUSE = "pause"
    """None of them is claimed until headroom returns; one that reports is put aside until then."""
    CANCEL = "cancel"
    """All of them are cancelled."""


class OnSoftLimit(StrEnum):
    """What passing a soft limit does besides the answer that the reporter gets."""

    WARN = "warn"
    """An event is published whenever the usage of a dimension comes to be above its limit."""
    IGNORE = "ignore"


class BudgetCreated(Outcome, tag="Created"):
    """The budget exists now."""

    budget_id: BudgetId


class BudgetExists(Outcome, tag="AlreadySatisfied"):
    """The same budget existed before."""

    budget_id: BudgetId


CreateBudgetResult: TypeAlias = BudgetCreated | BudgetExists


class CreateBudgetArgs(Command[CreateBudgetResult]):
    """Create a budget. Dimensions and limits are parallel lists.

    A budget with a name has the id that ``budget_id_of`` makes of the namespace and the name.
    """

    budget_id: BudgetId
    scope_type: OptionalName
    scope_id: OptionalName
    enforcement_mode: EnforcementMode
    on_hard_limit: OnHardLimit
    on_soft_limit: OnSoftLimit
    reset_interval_ms: DurationMs
    """How long a period is, a second or more; 0 for a budget that is never reset by itself."""
    dimensions: Dimensions
    hard_limits: Amounts
    soft_limits: Amounts
    namespace: Namespace | None = None
    """The caller's own when absent."""
    name: OptionalName = ""
    now: TimestampMs | None = None

    def validate(self) -> None:
        """Check that the lists are parallel, name each dimension once, and that a period is long enough."""
        require_parallel(self.dimensions, hard_limits=self.hard_limits, soft_limits=self.soft_limits)
        require_distinct(self.dimensions)
        if 0 < self.reset_interval_ms < BUDGET_PERIOD_MS_MIN:
            raise InvalidInput(
                field="reset_interval_ms",
                value=self.reset_interval_ms,
                rule=f"0, or {BUDGET_PERIOD_MS_MIN} or more",
            )


class BudgetLimitsChanged(Outcome, tag="Changed"):
    """These limits hold from now on."""

    hard_limits: dict[str, Amount]
    soft_limits: dict[str, Amount]


class ChangeBudgetLimitsArgs(Command[BudgetLimitsChanged]):
    """Set the limits of the dimensions that are named; the others stay. Usage is not touched."""

    budget_id: BudgetId
    dimensions: Dimensions
    hard_limits: Amounts
    soft_limits: Amounts

    def validate(self) -> None:
        """Check that the lists are parallel and name each dimension once."""
        require_parallel(self.dimensions, hard_limits=self.hard_limits, soft_limits=self.soft_limits)
        require_distinct(self.dimensions)


class BudgetReset(Outcome, tag="Reset"):
    """A new period has begun."""

    next_reset_at: TimestampMs
    """When the next one begins by itself; 0 if none does."""


ResetBudgetResult: TypeAlias = BudgetReset


class ResetBudgetArgs(Command[ResetBudgetResult]):
    """Begin a new period now: usage is zero again. The schedule of the resets stays as it is."""

    budget_id: BudgetId
    now: TimestampMs | None = None


class BudgetStatus(Value):
    """A budget as operators see it."""

    budget_id: str
    scope_type: str
    scope_id: str
    enforcement_mode: str
    usage: dict[str, Amount]
    hard_limits: dict[str, Amount]
    soft_limits: dict[str, Amount]
    breach_count: Amount
    soft_breach_count: Amount
    last_breach_at: TimestampMs | None = None
    last_breach_dim: str | None = None
    next_reset_at: TimestampMs | None = None
    created_at: TimestampMs | None = None
    name: str = ""
    on_hard_limit: str = ""
    on_soft_limit: str = ""
    closed_at: TimestampMs | None = None
    """Since when attached executions are not claimed; None while they are."""


class GetBudgetStatusArgs(Command[BudgetStatus]):
    """Read a budget."""

    budget_id: BudgetId


class BudgetUsageAndLimits(Value):
    """What admission looks at."""

    usage: dict[str, Amount]
    hard_limits: dict[str, Amount]
    has_headroom: bool
    """Whether attached executions are claimed."""


class ReadBudgetUsageAndLimitsArgs(Command[BudgetUsageAndLimits]):
    """Read what admission looks at."""

    budget_id: BudgetId


class UsageApplied(Outcome, tag="Ok"):
    """Everything was counted, and no limit is passed."""


class UsageSoftBreach(Outcome, tag="SoftBreach"):
    """Everything was counted, and a soft limit is passed."""

    dimension: str
    current_usage: Amount
    """With this report."""
    soft_limit: Amount


class UsageHardBreach(Outcome, tag="HardBreach"):
    """Nothing was counted: a hard limit would have been passed."""

    dimension: str
    current_usage: Amount
    """Without this report."""
    hard_limit: Amount
    on_hard_limit: OnHardLimit = OnHardLimit.DENY
    """What the budget does about it."""


class UsageAlreadyApplied(Outcome, tag="AlreadyApplied"):
    """A report with this key was counted before."""


ReportUsageResult: TypeAlias = UsageApplied | UsageSoftBreach | UsageHardBreach | UsageAlreadyApplied


class ReportUsageArgs(Command[ReportUsageResult]):
    """Count what the holder of a lease has spent. A dimension that is named twice is summed first."""

    budget_id: BudgetId
    execution_id: ExecutionId
    fence: LeaseFence
    dimensions: Dimensions
    deltas: Amounts
    now: TimestampMs | None = None
    dedup_key: IdempotencyKey | None = None
    """A report with the same key and content counts once in 24 hours."""

    def validate(self) -> None:
        """Check that the lists are parallel."""
        require_parallel(self.dimensions, deltas=self.deltas)


class ReportUsageAdminArgs(Command[ReportUsageResult]):
    """Count what was spent outside of any execution."""

    budget_id: BudgetId
    dimensions: Dimensions
    deltas: Amounts
    dedup_key: IdempotencyKey | None = None
    now: TimestampMs | None = None

    def validate(self) -> None:
        """Check that the lists are parallel."""
        require_parallel(self.dimensions, deltas=self.deltas)


class RecordSpendArgs(Command[ReportUsageResult]):
    """Count what an execution has spent, on behalf of a system that holds no lease."""

    budget_id: BudgetId
    execution_id: ExecutionId
    deltas: AmountByDimension
    idempotency_key: IdempotencyKey | None = None
    """A spend with the same key and content counts once in 24 hours."""


class SpendReleased(Outcome, tag="Released"):
    """What the execution had spent in this period is free again."""

    released: dict[str, Amount]


class NothingToRelease(Outcome, tag="Noop"):
    """The execution has spent nothing in this period."""


ReleaseBudgetResult: TypeAlias = SpendReleased | NothingToRelease


class ReleaseBudgetArgs(Command[ReleaseBudgetResult]):
    """Take back what an execution has spent in the current period. Earlier periods stay as they are."""

    budget_id: BudgetId
    execution_id: ExecutionId


class BudgetReconciled(Outcome, tag="Reconciled"):
    """The usage was ``consistent`` with the ledgers, was ``corrected``, or is ``busy``."""

    action: str
    usage: dict[str, Amount]


class ReconcileBudgetCountersArgs(Command[BudgetReconciled]):
    """Add up what all executions have spent in this period, and correct the usage if it differs."""

    budget_id: BudgetId


def require_parallel(dimensions: tuple[str, ...], **lists: tuple[int, ...]) -> None:
    """Refuse lists that are not as long as the list of dimensions.

    Raises:
        InvalidInput: the list and both lengths are named.
    """
    for field, amounts in lists.items():
        if len(amounts) != len(dimensions):
            raise InvalidInput(
                field=field,
                value=f"{len(amounts)} values",
                rule=f"one for each of {len(dimensions)} dimensions",
            )


def require_distinct(dimensions: tuple[str, ...]) -> None:
    """Refuse a dimension that is named twice, because only one of its limits could hold.

    Raises:
        InvalidInput: the dimension is named.
    """
    for place, dimension in enumerate(dimensions):
        if dimension in dimensions[:place]:
            raise InvalidInput(field="dimensions", value=repr(dimension), rule="each dimension once")

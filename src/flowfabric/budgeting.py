"""Budgets and quota policies as users of ``FlowFabric`` hold them: by name."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from flowfabric import errors
from flowfabric.contracts.budgets import (
    BudgetStatus,
    ChangeBudgetLimitsArgs,
    CreateBudgetArgs,
    EnforcementMode,
    GetBudgetStatusArgs,
    OnHardLimit,
    OnSoftLimit,
    ReleaseBudgetArgs,
    ReportUsageAdminArgs,
    ReportUsageResult,
    ResetBudgetArgs,
    SpendReleased,
)
from flowfabric.contracts.ids import budget_id_of, quota_policy_id_of
from flowfabric.contracts.quotas import (
    CreateQuotaPolicyArgs,
    QuotaPolicyLimits,
    ReadQuotaPolicyLimitsArgs,
)

if TYPE_CHECKING:
    from flowfabric.engine.interface import AnyEngine

Amounts: TypeAlias = Mapping[str, int]
W = TypeVar("W", bound=StrEnum)


class Budget:
    """A budget of one namespace, by its name or id. Making one asks the store nothing.

    Attributes:
        name: the name or id.
        budget_id: the id that the contracts know it by.
    """

    def __init__(self, engine: AnyEngine, namespace: str, name: str) -> None:
        self.name = name
        self.budget_id = budget_id_of(namespace, name)
        self._engine = engine
        self._namespace = namespace

    def __repr__(self) -> str:
        return f"<Budget {self.name!r} in {self._namespace!r}>"

    async def status(self) -> BudgetStatus:
        """Limits, usage, breaches and the next reset.

        Raises:
            BudgetNotFound: there is no such budget.
        """
        return await self._engine.execute(
            GetBudgetStatusArgs(budget_id=self.budget_id), namespace=self._namespace
        )

    async def report(self, amounts: Amounts, *, key: str | None = None) -> ReportUsageResult:
        """Count what was spent outside of any execution; handlers use ``task.report_usage``.

        Args:
            amounts: how much of which dimension.
            key: a report with the same key and content counts once in 24 hours.

        Returns:
            What became of it. ``UsageHardBreach`` says that nothing was counted.
        """
        return await self._engine.execute(
            ReportUsageAdminArgs(
                budget_id=self.budget_id,
                dimensions=tuple(amounts),
                deltas=tuple(amounts.values()),
                dedup_key=key,
            ),
            namespace=self._namespace,
        )

    async def release(self, execution_id: str) -> dict[str, int]:
        """Take back what an execution has spent in this period. Returns how much that was."""
        released = await self._engine.execute(
            ReleaseBudgetArgs(budget_id=self.budget_id, execution_id=execution_id), namespace=self._namespace
        )
        return released.released if isinstance(released, SpendReleased) else {}

    async def reset(self) -> None:
        """Begin a new period now: usage is zero again. Scheduled resets stay where they are."""
        await self._engine.execute(ResetBudgetArgs(budget_id=self.budget_id), namespace=self._namespace)

    async def change_limits(self, *, hard: Amounts | None = None, soft: Amounts | None = None) -> None:
        """Set limits by dimension; 0 means none. Those that are not named stay.

        Raises:
            BudgetNotFound: there is no such budget.
        """
        hard, soft = hard or {}, soft or {}
        current = await self.status() if hard.keys() != soft.keys() else None
        known = ({}, {}) if current is None else (current.hard_limits, current.soft_limits)
        dimensions = tuple(dict.fromkeys((*hard, *soft)))
        await self._engine.execute(
            ChangeBudgetLimitsArgs(
                budget_id=self.budget_id,
                dimensions=dimensions,
                hard_limits=_limits(dimensions, {**known[0], **hard}),
                soft_limits=_limits(dimensions, {**known[1], **soft}),
            ),
            namespace=self._namespace,
        )


def budget_creation(
    name: str,
    namespace: str,
    *,
    hard: Amounts | None = None,
    soft: Amounts | None = None,
    on_hard_limit: str = OnHardLimit.DENY,
    on_soft_limit: str = OnSoftLimit.WARN,
    enforcement_mode: str = EnforcementMode.STRICT,
    reset_interval_ms: int = 0,
    scope: tuple[str, str] = ("", ""),
) -> CreateBudgetArgs:
    """The command that creates a budget of this name.

    Raises:
        InvalidInput: a word is none of those that there are.
    """
    hard, soft = hard or {}, soft or {}
    dimensions = tuple(dict.fromkeys((*hard, *soft)))
    return CreateBudgetArgs(
        budget_id=budget_id_of(namespace, name),
        namespace=namespace,
        name="" if name == budget_id_of(namespace, name) else name,
        scope_type=scope[0],
        scope_id=scope[1],
        reset_interval_ms=reset_interval_ms,
        dimensions=dimensions,
        hard_limits=_limits(dimensions, hard),
        soft_limits=_limits(dimensions, soft),
        on_hard_limit=_word(OnHardLimit, "on_hard_limit", on_hard_limit),
        on_soft_limit=_word(OnSoftLimit, "on_soft_limit", on_soft_limit),
        enforcement_mode=_word(EnforcementMode, "enforcement_mode", enforcement_mode),
    )


def _word(known: type[W], field: str, word: str) -> W:
    if word not in tuple(known):
        raise errors.InvalidInput(field=field, value=repr(word), rule=f"one of {', '.join(known)}")
    return known(word)


def _limits(dimensions: tuple[str, ...], limits: Amounts) -> tuple[int, ...]:
    return tuple(limits.get(dimension, 0) for dimension in dimensions)


class Quota:
    """A quota policy of one namespace, by its name or id. Making one asks the store nothing."""

    def __init__(self, engine: AnyEngine, namespace: str, name: str) -> None:
        self.name = name
        self.quota_policy_id = quota_policy_id_of(namespace, name)
        self._engine = engine
        self._namespace = namespace

    def __repr__(self) -> str:
        return f"<Quota {self.name!r} in {self._namespace!r}>"

    async def limits(self) -> QuotaPolicyLimits:
        """The limits, and how many are active.

        Raises:
            QuotaPolicyNotFound: there is no such policy.
        """
        found = await self._engine.execute(
            ReadQuotaPolicyLimitsArgs(quota_policy_id=self.quota_policy_id), namespace=self._namespace
        )
        if found is None:
            raise errors.QuotaPolicyNotFound(name=self.name)
        return found


def quota_creation(
    name: str, namespace: str, *, window_ms: int, max_requests: int, max_concurrent: int
) -> CreateQuotaPolicyArgs:
    """The command that creates a quota policy of this name.

    Raises:
        InvalidQuotaSpec: the window is not a whole number of seconds.
    """
    if window_ms % 1_000:
        raise errors.InvalidQuotaSpec(field="window", value=f"{window_ms} ms", rule="whole seconds")
    policy_id = quota_policy_id_of(namespace, name)
    return CreateQuotaPolicyArgs(
        quota_policy_id=policy_id,
        namespace=namespace,
        name="" if name == policy_id else name,
        window_seconds=window_ms // 1_000,
        max_requests_per_window=max_requests,
        max_concurrent=max_concurrent,
    )

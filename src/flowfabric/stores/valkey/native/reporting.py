"""Counting what is spent of budgets on the server: see ``core.rules.spending``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.contracts.budgets import (
    EnforcementMode,
    RecordSpendArgs,
    ReportUsageAdminArgs,
    ReportUsageArgs,
    UsageApplied,
    UsageSoftBreach,
)
from flowfabric.contracts.limits import SAFE_INTEGER_MAX, USAGE_DEDUP_MS
from flowfabric.core.indexes import DUE_DEDUP
from flowfabric.core.records import (
    ADMIN,
    Budget,
    BudgetLedger,
    Dedup,
    encode_record,
)
from flowfabric.core.registry import execution_subject
from flowfabric.core.rules.budgets import budget_subject, usage_subject
from flowfabric.core.rules.fencing import check_lease
from flowfabric.core.rules.spending import APPLIED, digest_of, remembered_as, summed
from flowfabric.stores.keys import stored_key
from flowfabric.stores.valkey.native.function import asked_list, seen_by, without_zero

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.records import Key
    from flowfabric.core.rules.spending import Deltas
    from flowfabric.core.work import Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects

_encode: Final = msgspec.msgpack.Encoder().encode
_APPLIED: Final = _encode(UsageApplied())
_TAG_FIELD: Final = str(UsageSoftBreach.__struct_config__.tag_field)
_SOFT_BREACH: Final = str(UsageSoftBreach.__struct_config__.tag)
_DECODER: Final[msgspec.msgpack.Decoder[UsageApplied | UsageSoftBreach]] = msgspec.msgpack.Decoder(
    UsageApplied | UsageSoftBreach
)


class ReportUsage:
    """Stands in for the rule of ``ReportUsageArgs``.

    The budget's partition has the counters, the ledger and the memory of reports. The execution lives in
    another one, so its lease is looked at right before the call, as the rule does, which does not rest on
    it either.
    """

    name: Final = "report_usage"
    command_type: type[Command[Any]] = ReportUsageArgs
    serves: tuple[type[Command[Any]], ...] = (ReportUsageArgs,)

    def subject(self, asked: Asked) -> Key:
        return usage_subject(asked.command)

    def owner(self, command: Any) -> Key:
        return budget_subject(command)

    def relied_on(self, asked: Asked) -> Key:
        """The budget: its period, and the limits that a report is held against."""
        return budget_subject(asked.command)

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The budget. Whoever may not report, and what there is no budget for, is refused by the rule."""
        budget = self._budget(asked)
        if budget is None or budget.namespace != asked.namespace or not self._allowed_until(asked):
            return None
        return self.command_type, budget.budget_id

    def shared(self, first: Asked) -> Sequence[Argument]:
        budget = self._budget(first)
        assert budget is not None
        soft_limits = {name: limit for name, limit in budget.soft_limits.items() if limit}
        return (
            _encode(ceilings(budget)),
            _encode(soft_limits),
            USAGE_DEDUP_MS,
            _APPLIED,
            _TAG_FIELD,
            _SOFT_BREACH,
            type(first.command).__name__,
        )

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        budget, spender = self._budget(asked), self._spender(asked.command)
        assert budget is not None
        ledger = BudgetLedger(
            budget_id=budget.budget_id, namespace=budget.namespace, period=budget.period, spender=spender
        )
        dedup = self._dedup(asked, expires_at=0)
        return (
            keys.record(self.subject(asked)),
            keys.record(ledger.key),
            keys.record(dedup.key),
        ), (
            asked_list(asked.envelope.request_id),
            self._allowed_until(asked),
            _encode(self._deltas(asked.command)),
            encode_record(ledger),
            stored_key(ledger.key),
            without_zero(encode_record(dedup)),
            dedup.identity,
            stored_key(dedup.key),
        )

    def answer(self, asked: Asked, reply: bytes, effects: Effects) -> UsageApplied | UsageSoftBreach:
        dedup = self._dedup(asked, expires_at=min(effects.now + USAGE_DEDUP_MS, SAFE_INTEGER_MAX))
        effects.rows.append((DUE_DEDUP, "", dedup.expires_at, dedup.identity))
        return _DECODER.decode(reply)

    def _budget(self, asked: Asked) -> Budget | None:
        """The budget as it was seen before the call."""
        _, budget = asked.seen.get(self.relied_on(asked), (0, None))
        assert budget is None or isinstance(budget, Budget)
        return budget

    def _dedup(self, asked: Asked, *, expires_at: int) -> Dedup:
        command = asked.command
        scope, key = remembered_as(command.budget_id, self._dedup_key(command), asked.envelope.request_id)
        digest = digest_of(self._spender(command), self._deltas(command))
        return Dedup(scope=scope, dedup_key=key, digest=digest, value=APPLIED, expires_at=expires_at)

    # What the kinds of reports say each in its way

    def _allowed_until(self, asked: Asked) -> int:
        """Until when the caller may report: while it holds the lease. 0 if it does not."""
        work = seen_by(asked, execution_subject(asked.command))
        try:
            execution = work.execution(asked.command.execution_id, observed=True)
            lease, _ = check_lease(work, execution, asked.command.fence)
        except errors.FlowFabricError:
            return 0
        # Whoever has no bounds may name an execution of another namespace than the budget's.
        return lease.expires_at if execution.namespace == asked.namespace else 0

    def _spender(self, command: Any) -> str:
        spender: str = command.execution_id
        return spender

    def _deltas(self, command: Any) -> Deltas:
        return summed(command.dimensions, command.deltas)

    def _dedup_key(self, command: Any) -> str | None:
        key: str | None = command.dedup_key
        return key


class ReportUsageAdmin(ReportUsage):
    """Stands in for the rule of ``ReportUsageAdminArgs``."""

    command_type = ReportUsageAdminArgs
    serves = (ReportUsageAdminArgs,)

    def _allowed_until(self, asked: Asked) -> int:
        return SAFE_INTEGER_MAX

    def _spender(self, command: Any) -> str:
        return ADMIN


class RecordSpend(ReportUsage):
    """Stands in for the rule of ``RecordSpendArgs``."""

    command_type = RecordSpendArgs
    serves = (RecordSpendArgs,)

    def _allowed_until(self, asked: Asked) -> int:
        """At any time, if there is such an execution in the budget's namespace."""
        try:
            work = seen_by(asked, execution_subject(asked.command))
            execution = work.execution(asked.command.execution_id, observed=True)
        except errors.FlowFabricError:
            return 0
        return SAFE_INTEGER_MAX if execution.namespace == asked.namespace else 0

    def _deltas(self, command: Any) -> Deltas:
        deltas: Deltas = command.deltas
        return deltas

    def _dedup_key(self, command: Any) -> str | None:
        key: str | None = command.idempotency_key
        return key


def ceilings(budget: Budget) -> dict[str, int]:
    """The highest amounts by dimension that a hard limit lets pass without a word."""
    exhausting = budget.enforcement_mode is EnforcementMode.STRICT
    return {name: limit - exhausting for name, limit in budget.hard_limits.items() if limit}

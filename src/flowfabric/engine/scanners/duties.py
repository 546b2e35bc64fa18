"""Every duty, as data: which index tells what is due, and which command acts on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric.contracts.base import Command
from flowfabric.contracts.executions import ExpireExecutionArgs, ExpireReason, PromoteDelayedArgs
from flowfabric.contracts.limits import RETENTION_MS
from flowfabric.contracts.suspensions import ExpireSuspensionArgs
from flowfabric.core import indexes
from flowfabric.core.commands import (
    EndReclaimGraceArgs,
    ExpireLeaseArgs,
    ExpireLiveFramesArgs,
    ExpireWaitpointArgs,
    ExpireWorkerArgs,
    ForgetDedupArgs,
    LookAfterWaitingArgs,
    PruneLedgersArgs,
    RollBudgetArgs,
    SettleAdmissionArgs,
    SettleReservationArgs,
    SettleWorkerDeathArgs,
)
from flowfabric.core.rules.creation import RESERVATION_GRACE_MS
from flowfabric.engine.deliveries import cancel_member, deliver, forget_given_back, give_back
from flowfabric.engine.retention import PAGE as RETENTION_PAGE
from flowfabric.engine.retention import trim_command, trim_log

if TYPE_CHECKING:
    from flowfabric.engine.engine import Engine

HEADROOM_PAGES: Final = 100
"""How many pages of those that wait one sweep lets go."""
PAGE: Final = 100


def _no_command(member: str) -> Command[Any]:
    raise AssertionError(f"a duty without an index was given {member}")


class Duty(msgspec.Struct, frozen=True, kw_only=True):
    """One background duty."""

    name: str
    index: str
    interval_ms: int
    """The longest pause between two sweeps; the next entry, or a wake-up, ends it sooner."""
    command: Callable[[str], Command[Any]] = _no_command
    """Makes the command for one index member."""
    forget: Callable[[str], Command[Any]] | None = None
    """Makes the command that removes the entry, if ``command`` cannot: it lies in another partition."""
    scope: str = ""
    grace_ms: int = 0
    """How long after its instant an entry is due."""
    page: int = PAGE
    """How many entries are done side by side."""
    whole: Callable[[Engine], Awaitable[int]] | None = None
    """Does the duty without an index of instants. Returns how much there was to do."""


_ALWAYS: Final = (
    Duty(
        name="reclaim_grace",
        index=indexes.DUE_RECLAIM,
        interval_ms=1_500,
        command=lambda member: EndReclaimGraceArgs(execution_id=member),
    ),
    Duty(
        name="delayed_promoter",
        index=indexes.DUE_DELAY,
        interval_ms=750,
        command=lambda member: PromoteDelayedArgs(execution_id=member),
    ),
    Duty(
        name="attempt_timeout",
        index=indexes.DUE_ATTEMPT,
        interval_ms=2_000,
        command=lambda member: ExpireExecutionArgs(
            execution_id=member, expire_reason=ExpireReason.ATTEMPT_TIMEOUT
        ),
    ),
    Duty(
        name="execution_deadline",
        index=indexes.DUE_DEADLINE,
        interval_ms=5_000,
        command=lambda member: ExpireExecutionArgs(
            execution_id=member, expire_reason=ExpireReason.EXECUTION_DEADLINE
        ),
    ),
    Duty(
        name="suspension_timeout",
        index=indexes.DUE_SUSPENSION,
        interval_ms=2_000,
        command=lambda member: ExpireSuspensionArgs(execution_id=member),
    ),
    Duty(
        name="pending_wp_expiry",
        index=indexes.DUE_WAITPOINT,
        interval_ms=5_000,
        command=lambda member: ExpireWaitpointArgs(waitpoint_identity=member),
    ),
    Duty(
        name="reservation_settler",
        index=indexes.DUE_RESERVATION,
        scope="open",
        grace_ms=RESERVATION_GRACE_MS,
        interval_ms=15_000,
        command=lambda member: SettleReservationArgs(reservation_id=member),
    ),
    Duty(
        name="reservation_expiry",
        index=indexes.DUE_RESERVATION,
        scope="confirmed",
        interval_ms=60_000,
        command=lambda member: SettleReservationArgs(reservation_id=member),
    ),
    Duty(
        name="dedup_expiry",
        index=indexes.DUE_DEDUP,
        interval_ms=60_000,
        command=lambda member: ForgetDedupArgs(dedup_id=member),
    ),
    Duty(
        name="live_frame_expiry",
        index=indexes.DUE_LIVE_FRAMES,
        interval_ms=5_000,
        command=lambda member: ExpireLiveFramesArgs(stream_id=member),
    ),
    Duty(name="message_delivery", index=indexes.DUE_MESSAGE, interval_ms=15_000, command=deliver),
    Duty(
        name="flow_cancellation",
        index=indexes.DUE_MEMBER_CANCEL,
        interval_ms=15_000,
        command=cancel_member,
    ),
    Duty(
        name="budget_reset",
        index=indexes.DUE_BUDGET_RESET,
        interval_ms=15_000,
        command=lambda member: RollBudgetArgs(budget_identity=member),
    ),
    Duty(
        name="ledger_pruner",
        index=indexes.DUE_LEDGER,
        interval_ms=15_000,
        command=lambda member: PruneLedgersArgs(budget_identity=member),
    ),
    Duty(
        name="unblock",
        index=indexes.DUE_HEADROOM,
        interval_ms=5_000,
        command=lambda member: LookAfterWaitingArgs(subject=member, pages=HEADROOM_PAGES),
    ),
    Duty(
        name="quota_reconciler",
        index=indexes.DUE_ADMISSION,
        interval_ms=30_000,
        command=lambda member: SettleAdmissionArgs(admission_id=member),
    ),
    Duty(
        name="admission_return",
        index=indexes.DUE_GIVEN_BACK,
        interval_ms=15_000,
        command=give_back,
        forget=forget_given_back,
    ),
    Duty(
        name="worker_registry_ttl_sweep",
        index=indexes.DUE_WORKER,
        interval_ms=30_000,
        command=lambda member: ExpireWorkerArgs(worker_identity=member),
    ),
    Duty(
        name="worker_death",
        index=indexes.DUE_WORKER_DEATH,
        interval_ms=5_000,
        command=lambda member: SettleWorkerDeathArgs(death_id=member),
    ),
)
"""The duties that nobody can set."""


def duties(*, reclaim_grace_ms: int = 0, retention_ms: int | None = RETENTION_MS) -> tuple[Duty, ...]:
    """All duties of an engine.

    Args:
        reclaim_grace_ms: how long a lapsed lease keeps others from reclaiming the execution.
        retention_ms: how long what has ended is kept; None keeps it for ever.
    """
    lease_expiry = Duty(
        name="lease_expiry",
        index=indexes.DUE_LEASE,
        interval_ms=1_500,
        command=lambda member: ExpireLeaseArgs(execution_id=member, reclaim_grace_ms=reclaim_grace_ms),
    )
    retention = () if retention_ms is None else retention_duties(retention_ms)
    return (lease_expiry, *_ALWAYS, *retention)


def with_intervals(found: Iterable[Duty], intervals: Mapping[str, int | None]) -> tuple[Duty, ...]:
    """The duties with other intervals, without those that have none.

    Args:
        found: some duties.
        intervals: the longest pause of duties in milliseconds, by their names; None leaves one out.
    """
    chosen = [(duty, intervals.get(duty.name, duty.interval_ms)) for duty in found]
    return tuple(
        msgspec.structs.replace(duty, interval_ms=interval_ms)
        for duty, interval_ms in chosen
        if interval_ms is not None
    )


def retention_duties(retention_ms: int) -> tuple[Duty, ...]:
    """Those that remove what ended longer ago, the oldest first, and the events of that time."""
    graces = {"": retention_ms, indexes.OWN_SCOPE: 0, indexes.FLOW_SCOPE: retention_ms}
    names = {
        "": "retention_trimmer",
        indexes.OWN_SCOPE: "retention_trimmer_own_date",
        indexes.FLOW_SCOPE: "retention_trimmer_flows",
    }
    return (
        *(
            Duty(
                name=names[scope],
                index=indexes.RETENTION,
                scope=scope,
                grace_ms=grace_ms,
                interval_ms=60_000,
                page=RETENTION_PAGE,
                command=partial(trim_command, scope, retention_ms=retention_ms),
            )
            for scope, grace_ms in graces.items()
        ),
        Duty(
            name="event_log_trimmer",
            index="",
            interval_ms=60_000,
            whole=partial(trim_log, retention_ms=retention_ms),
        ),
    )


DUTIES: Final = duties()

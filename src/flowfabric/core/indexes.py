"""Which index rows a record has. A pure function of the record, never maintained by hand.

A row is ``(index, scope, sort, member)``. A store keeps the rows of an index ordered by scope,
sort and member, and updates them from the difference between a record's old and new rows.

``eligible`` holds what a worker may claim, in claiming order: priority first, then creation.
Its scope ends with the capabilities that the work requires, so a worker reads only the scopes it
can serve, and work it cannot run never stands in its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric.contracts.states import LifecyclePhase
from flowfabric.core.records import (
    Dedup,
    Execution,
    FlowMember,
    FlowProgress,
    JournalRecord,
    Message,
    Record,
    Reservation,
    StreamMeta,
    Suspension,
    Waitpoint,
    kept_until,
)
from flowfabric.core.state import PUBLIC_OF_OUTCOME, first_blocker
from flowfabric.core.vocabulary import BlockerKind, LeaseState

if TYPE_CHECKING:
    from collections.abc import Callable

IndexRow = tuple[str, str, int, str]

SEPARATOR: Final = "\x1f"
"""Joins the parts of a scope. Control characters are refused in every name."""

PRIORITY_MAX: Final = 9_000
_PRIORITY_STEP: Final = 1 << 42
"""More milliseconds than any creation time has, so that priority always comes first."""

FOREVER: Final = 9_999_999_999_999
"""Sorts a suspended execution without a timeout behind all others."""

CREATED: Final = "created"
ELIGIBLE: Final = "eligible"
DELAYED: Final = "delayed"
BLOCKED: Final = "blocked"
ACTIVE: Final = "active"
SUSPENDED: Final = "suspended"
TERMINAL: Final = "terminal"
WORKER_LEASES: Final = "worker_leases"
LAPSED: Final = "lapsed"
WAITPOINTS: Final = "waitpoints"
JOURNAL: Final = "journal"

DUE_DELAY: Final = "due_delay"
DUE_LEASE: Final = "due_lease"
DUE_RECLAIM: Final = "due_reclaim"
DUE_ATTEMPT: Final = "due_attempt"
DUE_DEADLINE: Final = "due_deadline"
DUE_SUSPENSION: Final = "due_suspension"
DUE_WAITPOINT: Final = "due_waitpoint"
DUE_RESERVATION: Final = "due_reservation"
DUE_DEDUP: Final = "due_dedup"
DUE_LIVE_FRAMES: Final = "due_live_frames"
DUE_MESSAGE: Final = "due_message"
DUE_MEMBER_CANCEL: Final = "due_member_cancel"
RETENTION: Final = "retention"
"""Ended executions by their end; in scopes of their own those with a date of their own, and flows."""

OWN_SCOPE: Final = "own"
FLOW_SCOPE: Final = "flow"

PRIMARY: Final = frozenset({ELIGIBLE, DELAYED, BLOCKED, ACTIVE, SUSPENDED, TERMINAL})
"""Every execution has exactly one row in one of these; a lapsed lease adds one in ``eligible``."""

NAMES: Final = PRIMARY | {
    CREATED,
    WORKER_LEASES,
    LAPSED,
    WAITPOINTS,
    JOURNAL,
    DUE_DELAY,
    DUE_LEASE,
    DUE_RECLAIM,
    DUE_ATTEMPT,
    DUE_DEADLINE,
    DUE_SUSPENSION,
    DUE_WAITPOINT,
    DUE_RESERVATION,
    DUE_DEDUP,
    DUE_LIVE_FRAMES,
    DUE_MESSAGE,
    DUE_MEMBER_CANCEL,
    RETENTION,
}
"""Every index there is."""


def scope_of(*parts: str) -> str:
    """Join the parts of a scope."""
    return SEPARATOR.join(parts)


def claim_order(priority: int, created_at: int) -> int:
    """The sort value of ``eligible``: higher priority first, then older first."""
    return (PRIORITY_MAX - priority) * _PRIORITY_STEP + created_at


def index_rows(record: Record) -> set[IndexRow]:
    """All index rows of a record."""
    make = _ROWS.get(type(record))
    return set() if make is None else make(record)


def eligible_scope(execution: Execution) -> str:
    """Where workers look for this execution."""
    return scope_of(execution.namespace, execution.lane_id, ",".join(execution.required_capabilities))


def _execution_rows(execution: Execution) -> set[IndexRow]:
    member = execution.execution_id
    if execution.removing_since is not None:
        return _retention_rows(execution)
    lane = scope_of(execution.namespace, execution.lane_id)
    rows: set[IndexRow] = {(CREATED, execution.namespace, execution.created_at, member)}
    match execution.phase:
        case LifecyclePhase.RUNNABLE:
            rows |= _runnable_rows(execution, lane, member)
        case LifecyclePhase.ACTIVE:
            rows |= _active_rows(execution, lane, member)
        case LifecyclePhase.SUSPENDED:
            pass  # the suspension record knows the timeout, and has the rows
        case _:
            scope = scope_of(lane, PUBLIC_OF_OUTCOME[execution.outcome])
            rows.add((TERMINAL, scope, execution.completed_at or 0, member))
            rows |= _retention_rows(execution)
    if execution.deadline_at is not None and execution.phase is not LifecyclePhase.TERMINAL:
        rows.add((DUE_DEADLINE, "", execution.deadline_at, member))
    return rows


def _retention_rows(execution: Execution) -> set[IndexRow]:
    """When the execution may be removed. A member of a flow goes with its flow."""
    since, until = execution.retention_from, kept_until(execution)
    if since is None or execution.flow_id is not None:
        return set()
    if until > (execution.completed_at or 0):
        return {(RETENTION, OWN_SCOPE, max(since, until), execution.execution_id)}
    return {(RETENTION, "", since, execution.execution_id)}


def _runnable_rows(execution: Execution, lane: str, member: str) -> set[IndexRow]:
    blocker = first_blocker(execution)
    rows: set[IndexRow] = set()
    if blocker is None:
        return {
            (
                ELIGIBLE,
                eligible_scope(execution),
                claim_order(execution.priority, execution.created_at),
                member,
            )
        }
    if blocker.kind is BlockerKind.TIME:
        rows.add((DELAYED, lane, blocker.until_ms or 0, member))
    else:
        rows.add((BLOCKED, scope_of(lane, blocker.kind), execution.created_at, member))
    for other in execution.blockers:
        if other.until_ms is not None:
            rows.add((DUE_DELAY, "", other.until_ms, member))
    return rows


def _active_rows(execution: Execution, lane: str, member: str) -> set[IndexRow]:
    lease, attempt = execution.lease, execution.attempt
    assert lease is not None
    assert attempt is not None
    rows: set[IndexRow] = {(ACTIVE, lane, lease.expires_at, member)}
    if lease.state is LeaseState.HELD:
        rows.add((DUE_LEASE, "", lease.expires_at, member))
        rows.add(
            (WORKER_LEASES, scope_of(execution.namespace, lease.worker_instance_id), lease.expires_at, member)
        )
        if attempt.timeout_at is not None:
            rows.add((DUE_ATTEMPT, "", attempt.timeout_at, member))
        return rows
    rows.add((LAPSED, "", lease.expires_at, member))
    if lease.reclaimable_at is None:
        rows.add(
            (
                ELIGIBLE,
                eligible_scope(execution),
                claim_order(execution.priority, execution.created_at),
                member,
            )
        )
    else:
        rows.add((DUE_RECLAIM, "", lease.reclaimable_at, member))
    return rows


def _suspension_rows(suspension: Suspension) -> set[IndexRow]:
    if suspension.closed_at is not None:
        return set()
    member = suspension.execution_id
    lane = scope_of(suspension.namespace, suspension.lane_id)
    rows: set[IndexRow] = {(SUSPENDED, lane, suspension.timeout_at or FOREVER, member)}
    if suspension.timeout_at is not None:
        rows.add((DUE_SUSPENSION, "", suspension.timeout_at, member))
    return rows


def _waitpoint_rows(waitpoint: Waitpoint) -> set[IndexRow]:
    rows: set[IndexRow] = {(WAITPOINTS, waitpoint.execution_id, waitpoint.created_at, waitpoint.waitpoint_id)}
    if waitpoint.state == "pending" and waitpoint.expires_at is not None:
        rows.add((DUE_WAITPOINT, "", waitpoint.expires_at, waitpoint.identity))
    return rows


def _reservation_rows(reservation: Reservation) -> set[IndexRow]:
    due = reservation.expires_at if reservation.confirmed else reservation.created_at
    return {(DUE_RESERVATION, "confirmed" if reservation.confirmed else "open", due, reservation.identity)}


def _dedup_rows(dedup: Dedup) -> set[IndexRow]:
    return {(DUE_DEDUP, "", dedup.expires_at, dedup.identity)}


def _journal_rows(entry: JournalRecord) -> set[IndexRow]:
    scope = scope_of(entry.execution_id, str(entry.generation))
    return {(JOURNAL, scope, entry.recorded_at, entry.identity)}


def _stream_rows(stream: StreamMeta) -> set[IndexRow]:
    if stream.live_expires_at is None:
        return set()
    return {(DUE_LIVE_FRAMES, "", stream.live_expires_at, stream.identity)}


def _message_rows(message: Message) -> set[IndexRow]:
    return {(DUE_MESSAGE, "", message.due_at, message.identity)}


def _member_rows(member: FlowMember) -> set[IndexRow]:
    if member.cancel_requested_at is None:
        return set()
    return {(DUE_MEMBER_CANCEL, "", member.cancel_requested_at, member.identity)}


def _progress_rows(progress: FlowProgress) -> set[IndexRow]:
    if progress.retention_from is None:
        return set()
    return {(RETENTION, FLOW_SCOPE, progress.retention_from, progress.identity)}


_ROWS: Final[dict[type[Record], Callable[..., set[IndexRow]]]] = {
    Execution: _execution_rows,
    Suspension: _suspension_rows,
    Waitpoint: _waitpoint_rows,
    Reservation: _reservation_rows,
    Dedup: _dedup_rows,
    JournalRecord: _journal_rows,
    StreamMeta: _stream_rows,
    Message: _message_rows,
    FlowMember: _member_rows,
    FlowProgress: _progress_rows,
}

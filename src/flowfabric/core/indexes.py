"""Which index rows a record has. A pure function of the record, never maintained by hand.

A row is ``(index, scope, sort, member)``. A store keeps the rows of an index ordered by scope,
sort and member, and updates them from the difference between a record's old and new rows.

``eligible`` holds what a worker may claim, in claiming order: the more urgent first, where waiting
makes urgent. Its scope ends with the capabilities that the work requires, so a worker reads only
the scopes it can serve, and work it cannot run never stands in its way.

``attached`` has what a budget is attached to and has not ended; ``waiting``, in claiming order, what
waits for the headroom of a budget or a quota policy. Both have the id as their scope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric.contracts.ids import flow_partition
from flowfabric.contracts.limits import PRIORITY_MAX
from flowfabric.contracts.states import LifecyclePhase
from flowfabric.core.records import (
    Admission,
    Budget,
    Dedup,
    Execution,
    Flow,
    FlowMember,
    FlowProgress,
    GivenBack,
    JournalRecord,
    Lane,
    Message,
    QuotaPolicy,
    Record,
    Reservation,
    StreamMeta,
    Suspension,
    Waitpoint,
    WorkerDeath,
    WorkerRegistration,
    kept_until,
)
from flowfabric.core.state import PUBLIC_OF_OUTCOME, first_blocker
from flowfabric.core.vocabulary import BlockerKind, Continuation, LeaseState

if TYPE_CHECKING:
    from collections.abc import Callable

IndexRow = tuple[str, str, int, str]

SEPARATOR: Final = "\x1f"
"""Joins the parts of a scope. Control characters are refused in every name."""

EVERYWHERE: Final = ""
"""Stands for all namespaces in a scope; no namespace is named like that."""

AGEING_MS_PER_DOUBLING: Final = 2 * 3_600_000
"""How much more waiting makes up for a priority (plus one) that is half as high.

Priority 1 goes before what has waited up to two hours longer at priority 0, priority 9000 before
what has waited up to a day and two hours longer. So nothing waits for ever behind more urgent work.
"""

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
LANES: Final = "lanes"
JOURNAL: Final = "journal"
ATTACHED: Final = "attached"
WAITING: Final = "waiting"
WORKERS: Final = "workers"
WORKER_LANES: Final = "worker_lanes"

FLOWS: Final = "flows"

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
DUE_BUDGET_RESET: Final = "due_budget_reset"
DUE_LEDGER: Final = "due_ledger"
DUE_HEADROOM: Final = "due_headroom"
DUE_ADMISSION: Final = "due_admission"
DUE_GIVEN_BACK: Final = "due_given_back"
RETENTION: Final = "retention"
"""Ended executions by their end; in scopes of their own those with a date of their own, and flows."""

OWN_SCOPE: Final = "own"
FLOW_SCOPE: Final = "flow"

DUE_WORKER: Final = "due_worker"
DUE_WORKER_DEATH: Final = "due_worker_death"

PRIMARY: Final = frozenset({ELIGIBLE, DELAYED, BLOCKED, ACTIVE, SUSPENDED, TERMINAL})
"""Every execution has exactly one row in one of these; a lapsed lease adds one in ``eligible``."""

NAMES: Final = PRIMARY | {
    CREATED,
    WORKER_LEASES,
    LAPSED,
    WAITPOINTS,
    LANES,
    JOURNAL,
    ATTACHED,
    WAITING,
    FLOWS,
    WORKERS,
    WORKER_LANES,
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
    DUE_BUDGET_RESET,
    DUE_LEDGER,
    DUE_HEADROOM,
    DUE_ADMISSION,
    DUE_GIVEN_BACK,
    RETENTION,
    DUE_WORKER,
    DUE_WORKER_DEATH,
}
"""Every index there is."""


def scope_of(*parts: str) -> str:
    """Join the parts of a scope."""
    return SEPARATOR.join(parts)


def head_start_ms(priority: int) -> int:
    """How much waiting a priority is worth: a fixed amount for each doubling, even steps between.

    >>> [head_start_ms(priority) // 3_600_000 for priority in (0, 1, 3, 7, 9000)]
    [0, 2, 4, 6, 26]
    """
    doublings = (priority + 1).bit_length() - 1
    rest = priority + 1 - (1 << doublings)
    return AGEING_MS_PER_DOUBLING * doublings + (AGEING_MS_PER_DOUBLING * rest >> doublings)


HEAD_START_MS_MAX: Final = head_start_ms(PRIORITY_MAX) + AGEING_MS_PER_DOUBLING
"""The head start of work that returns, at the highest priority: no work waits longer than this for others
that became eligible later."""


def claim_order(priority: int, eligible_since: int, *, returns: bool = False) -> int:
    """The sort value of ``eligible``: an instant, brought forward by what is urgent about the work.

    It stands still while work waits, so ageing costs nothing: what comes later has a later value,
    and sooner or later even the most urgent that comes stands behind. Work that returns, because
    it resumes, has lost its worker or found no headroom when its turn came, has the head start of
    one doubling, so that it does not wait for the whole queue again at each of its waits.
    """
    head_start = head_start_ms(priority) + (AGEING_MS_PER_DOUBLING if returns else 0)
    return eligible_since + HEAD_START_MS_MAX - head_start


def index_rows(record: Record) -> set[IndexRow]:
    """All index rows of a record."""
    make = _ROWS.get(type(record))
    return set() if make is None else make(record)


def eligible_scope(execution: Execution) -> str:
    """Where workers look for this execution.

    Each capability is ended by the separator, which sorts before all that a name may hold. So the
    scopes of a lane have the order of their lists of capabilities, as a walk over them needs it.
    """
    return scope_of(execution.namespace, execution.lane_id, *execution.required_capabilities, "")


def _eligible_row(execution: Execution) -> IndexRow:
    # What is eligible became so by its latest transition.
    returns = (
        execution.continuation is Continuation.RESUME
        or execution.phase is LifecyclePhase.ACTIVE
        or execution.held_back
    )
    order = claim_order(execution.priority, execution.last_transition_at, returns=returns)
    return ELIGIBLE, eligible_scope(execution), order, execution.execution_id


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
    if execution.phase is not LifecyclePhase.TERMINAL:
        if execution.deadline_at is not None:
            rows.add((DUE_DEADLINE, "", execution.deadline_at, member))
        if execution.policy is not None and execution.policy.budget_ids:
            rows |= {(ATTACHED, found, execution.created_at, member) for found in execution.policy.budget_ids}
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
        return {_eligible_row(execution)}
    if blocker.kind is BlockerKind.TIME:
        rows.add((DELAYED, lane, blocker.until_ms or 0, member))
    else:
        rows.add((BLOCKED, scope_of(lane, blocker.kind), execution.created_at, member))
    for other in execution.blockers:
        if other.until_ms is not None:
            rows.add((DUE_DELAY, "", other.until_ms, member))
        if other.waits_for:
            order = claim_order(execution.priority, execution.created_at)
            rows.add((WAITING, other.waits_for, order, member))
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
    if execution.pause_reason is not None:
        return rows
    if lease.reclaimable_at is None:
        rows.add(_eligible_row(execution))
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
    waiting_since = reservation.created_at if reservation.closing_at is None else reservation.closing_at
    due = reservation.expires_at if reservation.confirmed else waiting_since
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


def _flow_rows(flow: Flow) -> set[IndexRow]:
    """One row for those who see one namespace, and one for those who see all."""
    if flow.removing_since is not None:
        return set()
    partition = str(flow_partition(flow.flow_id))
    return {
        (FLOWS, scope_of(namespace, partition), 0, flow.identity)
        for namespace in (flow.namespace, EVERYWHERE)
    }


def _member_rows(member: FlowMember) -> set[IndexRow]:
    if member.cancel_requested_at is None:
        return set()
    return {(DUE_MEMBER_CANCEL, "", member.cancel_requested_at, member.identity)}


def _budget_rows(budget: Budget) -> set[IndexRow]:
    rows: set[IndexRow] = set()
    if budget.next_reset_at is not None:
        rows.add((DUE_BUDGET_RESET, "", budget.next_reset_at, budget.identity))
    ledgers_at = budget.joining_at if budget.oldest_period == budget.period else budget.last_reset_at or 0
    if ledgers_at is not None:
        rows.add((DUE_LEDGER, "", ledgers_at, budget.identity))
    work_since = [at for at in (budget.waking_at, budget.cancelling_at) if at is not None]
    if work_since:
        rows.add((DUE_HEADROOM, "", min(work_since), budget.key))
    return rows


def _quota_rows(quota: QuotaPolicy) -> set[IndexRow]:
    return set() if quota.waking_at is None else {(DUE_HEADROOM, "", quota.waking_at, quota.key)}


def _admission_rows(admission: Admission) -> set[IndexRow]:
    if admission.settle_at is None:
        return set()
    return {(DUE_ADMISSION, "", admission.settle_at, admission.identity)}


def _given_back_rows(given_back: GivenBack) -> set[IndexRow]:
    return {(DUE_GIVEN_BACK, "", given_back.due_at, given_back.identity)}


def _progress_rows(progress: FlowProgress) -> set[IndexRow]:
    if progress.retention_from is None:
        return set()
    return {(RETENTION, FLOW_SCOPE, progress.retention_from, progress.identity)}


def _lane_rows(lane: Lane) -> set[IndexRow]:
    return {(LANES, scope_of(lane.namespace, lane.lane_id, lane.state), lane.changed_at, lane.identity)}


def _worker_rows(worker: WorkerRegistration) -> set[IndexRow]:
    member = worker.identity
    rows: set[IndexRow] = {
        (WORKERS, worker.namespace, worker.registered_at, member),
        (DUE_WORKER, "", worker.expires_at, member),
    }
    if not worker.draining:
        for lane_id in worker.lanes:
            rows.add((WORKER_LANES, scope_of(worker.namespace, lane_id), worker.registered_at, member))
    return rows


def _worker_death_rows(death: WorkerDeath) -> set[IndexRow]:
    return {(DUE_WORKER_DEATH, "", death.died_at, death.identity)}


_ROWS: Final[dict[type[Record], Callable[..., set[IndexRow]]]] = {
    Execution: _execution_rows,
    Suspension: _suspension_rows,
    Waitpoint: _waitpoint_rows,
    Reservation: _reservation_rows,
    Dedup: _dedup_rows,
    JournalRecord: _journal_rows,
    StreamMeta: _stream_rows,
    Message: _message_rows,
    Flow: _flow_rows,
    FlowMember: _member_rows,
    Budget: _budget_rows,
    QuotaPolicy: _quota_rows,
    Admission: _admission_rows,
    GivenBack: _given_back_rows,
    FlowProgress: _progress_rows,
    Lane: _lane_rows,
    WorkerRegistration: _worker_rows,
    WorkerDeath: _worker_death_rows,
}

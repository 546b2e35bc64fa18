"""The steps that rules are made of. Every change of an execution's state goes through one of these.

The rule this module keeps: each step leaves the record in a legal situation together with the
events that belong to it. Index rows follow from the record, so no step mentions an index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from flowfabric.contracts.limits import SAFE_INTEGER_MAX
from flowfabric.contracts.states import (
    AttemptLifecycle,
    AttemptType,
    BlockingReason,
    LifecyclePhase,
    TerminalOutcome,
    WaitpointState,
)
from flowfabric.core.events import Event, Family
from flowfabric.core.records import (
    Attempt,
    Blocker,
    Execution,
    GivenBack,
    Lease,
    Message,
    PastAttempt,
    Waitpoint,
)
from flowfabric.core.vocabulary import BlockerKind, Continuation, LeaseState

if TYPE_CHECKING:
    from flowfabric.core.work import Work

ENDED: dict[TerminalOutcome, tuple[AttemptLifecycle, str]] = {
    TerminalOutcome.SUCCESS: (AttemptLifecycle.ENDED_SUCCESS, "attempt_success"),
    TerminalOutcome.FAILED: (AttemptLifecycle.ENDED_FAILURE, "attempt_failure"),
    TerminalOutcome.CANCELLED: (AttemptLifecycle.ENDED_CANCELLED, "attempt_cancelled"),
    TerminalOutcome.EXPIRED: (AttemptLifecycle.ENDED_FAILURE, "expired"),
    TerminalOutcome.SKIPPED: (AttemptLifecycle.ENDED_CANCELLED, "dependency_impossible"),
}
"""What the outcome of an execution makes of its attempt, and why the attempt's stream closes."""

CHANGED: Final = "changed"
"""What the messages are about that tell of a member: that it ended, or runs again."""

MEMBER_ENDED: Final = "ended"
"""The cause of the message that a member has ended."""

DEPENDENCIES_UNRESOLVED: Final = " dependencies unresolved"
"""What a blocker says behind the number of open dependencies."""


def publish(
    work: Work,
    execution: Execution,
    family: Family,
    name: str,
    named: dict[str, str] | None = None,
    /,
    **data: str | int | None,
) -> None:
    """Publish an event about an execution. ``named`` is data whose names are not ours."""
    work.publish(
        Event(
            family=family,
            name=name,
            namespace=execution.namespace,
            execution_id=execution.execution_id,
            at_ms=work.now,
            flow_id=execution.flow_id,
            data={**named, **data} if named else data,
            tags=execution.tags,
        )
    )


def publish_tags(work: Work, execution: Execution, name: str, tags: dict[str, str]) -> None:
    """Publish which tags an execution got, or went away with."""
    if tags:
        publish(work, execution, Family.TAG, name, tags)


def tell_flow(work: Work, execution: Execution, cause: str) -> None:
    """Owe the flow of a member the news that it has ended or runs again.

    The identity holds the generation, which ends once and is reopened once, so the message is new
    without having been looked for.
    """
    if execution.flow_id is not None:
        work.add(news_for_flow(execution.execution_id, cause, execution.replay_count, work.now))


def news_for_flow(execution_id: str, cause: str, generation: int, due_at: int) -> Message:
    """The message that tells the flow of a member."""
    return Message(execution_id=execution_id, about=CHANGED, cause=f"{cause}/{generation}", due_at=due_at)


def mark_transition(work: Work, execution: Execution) -> None:
    """Stamp a change of state."""
    execution.last_transition_at = execution.last_mutation_at = work.now


def time_blocker(until_ms: int, reason: BlockingReason) -> Blocker:
    """A blocker that goes away by itself."""
    return Blocker(
        kind=BlockerKind.TIME, reason=reason, detail=f"delayed until {until_ms}", until_ms=until_ms
    )


def delay_blocker(work: Work, until_ms: int, reason: BlockingReason) -> Blocker | None:
    """A blocker until an instant, or None if the instant is not in the future."""
    return time_blocker(until_ms, reason) if until_ms > work.now else None


def pause_blocker(reason: str) -> Blocker:
    """A blocker that an operator sets and takes away."""
    return Blocker(kind=BlockerKind.OPERATOR, reason=BlockingReason.PAUSED_BY_OPERATOR, detail=reason)


def add_blocker(execution: Execution, blocker: Blocker) -> None:
    """Block for one more reason; a blocker of the same kind is replaced."""
    others = tuple(other for other in execution.blockers if other.kind is not blocker.kind)
    execution.blockers = (*others, blocker)


def dependency_blocker(execution: Execution) -> Blocker | None:
    """The blocker of an execution whose dependencies are not all met; None if nothing is open."""
    if execution.unresolved_dependencies == 0:
        return None
    return Blocker(
        kind=BlockerKind.DEPENDENCIES,
        reason=BlockingReason.WAITING_FOR_CHILDREN,
        detail=f"{execution.unresolved_dependencies}{DEPENDENCIES_UNRESOLVED}",
    )


def remove_blocker(execution: Execution, kind: BlockerKind) -> None:
    """Take one blocker away; the others stay."""
    execution.blockers = tuple(blocker for blocker in execution.blockers if blocker.kind is not kind)


def open_attempt(
    work: Work,
    execution: Execution,
    *,
    attempt_id: str,
    attempt_type: AttemptType,
    worker_id: str,
    worker_instance_id: str,
    policy_json: str = "",
    timeout_ms: int | None = None,
    cause: str = "",
) -> None:
    """Begin a new attempt. The one before it is kept as a record of its own."""
    previous = execution.attempt
    if previous is not None:
        work.add(PastAttempt(execution_id=execution.execution_id, attempt=previous))
    execution.attempt = Attempt(
        attempt_id=attempt_id,
        attempt_index=execution.attempt_count,
        attempt_type=attempt_type,
        state=AttemptLifecycle.STARTED,
        started_at=work.now,
        worker_id=worker_id,
        worker_instance_id=worker_instance_id,
        previous_attempt_index=None if previous is None else previous.attempt_index,
        cause=cause,
        policy_json=policy_json,
        timeout_ms=timeout_ms,
        generation=execution.replay_count,
    )
    execution.attempt_count += 1


def grant_lease(
    work: Work,
    execution: Execution,
    *,
    lease_id: str,
    lease_ttl_ms: int,
    worker_id: str,
    worker_instance_id: str,
    event: str = "acquired",
    **data: str | int | None,
) -> Lease:
    """Give the execution to a worker: active, leased, the current attempt running."""
    attempt = execution.attempt
    assert attempt is not None
    execution.lease_epoch += 1
    lease = Lease(
        lease_id=lease_id,
        epoch=execution.lease_epoch,
        worker_id=worker_id,
        worker_instance_id=worker_instance_id,
        acquired_at=work.now,
        expires_at=work.now + lease_ttl_ms,
        ttl_ms=lease_ttl_ms,
    )
    execution.lease = lease
    execution.phase = LifecyclePhase.ACTIVE
    execution.blockers = ()
    execution.continuation = Continuation.NONE
    execution.grant = None
    execution.held_back = False
    if attempt.timeout_ms is not None:
        timeout_at = min(work.now + attempt.timeout_ms, SAFE_INTEGER_MAX)
        execution.attempt = replace(attempt, timeout_at=timeout_at)
    if execution.started_at is None:
        execution.started_at = work.now
    mark_transition(work, execution)
    publish(
        work,
        execution,
        Family.LEASE,
        event,
        **_lease_data(lease, attempt),
        **data,
    )
    return lease


def extend_lease(work: Work, execution: Execution, lease_ttl_ms: int) -> Lease:
    """Extend the live lease. It never gets shorter, and keeps its id and epoch."""
    lease, attempt = execution.lease, execution.attempt
    assert lease is not None
    assert attempt is not None
    renewed = replace(
        lease,
        expires_at=max(lease.expires_at, work.now + lease_ttl_ms),
        ttl_ms=lease_ttl_ms,
        last_renewed_at=work.now,
    )
    execution.lease = renewed
    execution.last_mutation_at = work.now
    publish(
        work,
        execution,
        Family.LEASE,
        "renewed",
        **_lease_data(renewed, attempt),
        expires_at=renewed.expires_at,
    )
    return renewed


def lapse_lease(
    work: Work,
    execution: Execution,
    state: LeaseState,
    *,
    reason: str = "",
    reclaimable_at: int | None = None,
) -> None:
    """Mark the lease as expired or revoked. The execution stays active until it is reclaimed or ended.

    The attempt's time stops here: nobody works on it any more. An expired lease also closes the
    attempt's stream, so that readers do not wait for a worker that is gone.
    """
    lease, attempt = execution.lease, execution.attempt
    assert lease is not None
    assert attempt is not None
    execution.lease = replace(
        lease, state=state, ended_at=work.now, revoke_reason=reason, reclaimable_at=reclaimable_at
    )
    attempt = replace(attempt, timeout_at=None)
    if state is LeaseState.EXPIRED:
        attempt = replace(attempt, stream_closed_at=work.now, stream_closed_reason="lease_expired")
    execution.attempt = attempt
    mark_transition(work, execution)
    publish(work, execution, Family.LEASE, state, **_lease_data(lease, attempt), reason=reason or None)


def _lease_data(lease: Lease, attempt: Attempt) -> dict[str, str | int | None]:
    return {
        "lease_id": lease.lease_id,
        "lease_epoch": lease.epoch,
        "attempt_id": attempt.attempt_id,
        "attempt_index": attempt.attempt_index,
        "worker_id": lease.worker_id,
        "worker_instance_id": lease.worker_instance_id,
    }


def release_lease(work: Work, execution: Execution, reason: str) -> None:
    """Take the lease back, whatever became of it. The time used is subtracted from the timeout."""
    lease, attempt = execution.lease, execution.attempt
    if lease is None or attempt is None:
        return
    execution.lease = None
    give_admission_back(work, execution)
    if attempt.timeout_at is not None:
        remaining = max(0, attempt.timeout_at - work.now)
        execution.attempt = replace(attempt, timeout_ms=remaining, timeout_at=None)
    publish(
        work,
        execution,
        Family.LEASE,
        "released",
        **_lease_data(lease, attempt),
        reason=reason,
    )


def give_admission_back(work: Work, execution: Execution) -> None:
    """Owe the quota policy the news that the execution does not count as active any more."""
    policy, admitted_round = execution.policy, execution.admitted_round
    if admitted_round is None or policy is None or policy.quota_policy_id is None:
        return
    execution.admitted_round = None
    work.add(
        GivenBack(
            execution_id=execution.execution_id,
            quota_policy_id=policy.quota_policy_id,
            round=admitted_round,
            due_at=work.now,
        )
    )


def interrupt_attempt(work: Work, execution: Execution, suspension_id: str) -> None:
    """Put the current attempt aside; the next claim continues it."""
    assert execution.attempt is not None
    execution.attempt = replace(
        execution.attempt,
        state=AttemptLifecycle.SUSPENDED,
        suspended_at=work.now,
        suspension_id=suspension_id,
    )
    execution.continuation = Continuation.RESUME


def suspend_attempt(
    work: Work, execution: Execution, suspension_id: str, waitpoint_id: str, reason: BlockingReason
) -> None:
    """Take the lease back and let the execution wait for signals, an operator or a deadline."""
    release_lease(work, execution, "suspend")
    interrupt_attempt(work, execution, suspension_id)
    execution.phase = LifecyclePhase.SUSPENDED
    execution.suspended_reason = reason
    execution.suspension_id = suspension_id
    execution.waitpoint_id = waitpoint_id
    mark_transition(work, execution)


def close_waitpoints(work: Work, execution: Execution, waitpoint_ids: tuple[str, ...], reason: str) -> None:
    """Close those of the waitpoints that are open. A closed one never takes a signal again."""
    if not waitpoint_ids:
        return
    identities = [f"{execution.execution_id}/{waitpoint_id}" for waitpoint_id in waitpoint_ids]
    for waitpoint in work.read_all(Waitpoint, identities):
        if waitpoint is None or waitpoint.state == WaitpointState.CLOSED:
            continue
        waitpoint = work.edit(waitpoint)  # noqa: PLW2901 - from here on it is the copy
        waitpoint.state = WaitpointState.CLOSED
        waitpoint.closed_at = work.now
        waitpoint.close_reason = reason
        waitpoint.buffered = ()
    closed = set(waitpoint_ids)
    execution.open_waitpoint_ids = tuple(
        waitpoint_id for waitpoint_id in execution.open_waitpoint_ids if waitpoint_id not in closed
    )


def end_attempt(
    work: Work,
    execution: Execution,
    state: AttemptLifecycle,
    stream_reason: str,
    *,
    failure_reason: str = "",
    failure_category: str = "",
) -> None:
    """End the current attempt for good, and with it its frame stream.

    Waitpoints stay open: a token that was handed out before a retry or a reclaim is still good.
    """
    attempt = execution.attempt
    if attempt is None or attempt.ended_at is not None:
        return
    execution.attempt = replace(
        attempt,
        state=state,
        ended_at=work.now,
        timeout_at=None,
        stream_closed_at=work.now,
        stream_closed_reason=stream_reason,
        failure_reason=failure_reason,
        failure_category=failure_category,
    )


def make_runnable(work: Work, execution: Execution, blocker: Blocker | None = None) -> None:
    """Let the execution wait for a worker, or for what blocks it to go away first.

    An edge that was added during a run has not interrupted it, and holds it back from now on; so
    does a pause that an operator has asked for meanwhile.
    """
    execution.phase = LifecyclePhase.RUNNABLE
    execution.suspended_reason = BlockingReason.NONE
    for found in (blocker, dependency_blocker(execution)):
        if found is not None:
            add_blocker(execution, found)
    if execution.pause_reason is not None:
        add_blocker(execution, pause_blocker(execution.pause_reason))
        execution.pause_reason = None
    mark_transition(work, execution)


def end_execution(
    work: Work,
    execution: Execution,
    outcome: TerminalOutcome,
    *,
    release_reason: str,
    stream_reason: str | None = None,
    failure_reason: str = "",
    failure_category: str = "",
) -> None:
    """End the execution. This is the only way into the terminal phase.

    The lease, grant, blockers, open waitpoints and running attempt go, and the completion event
    is published in the same commit. A member's flow is told by a message, which resolves the edges
    that leave it. A suspension is closed by the caller, which knows why.
    """
    state, default_reason = ENDED[outcome]
    release_lease(work, execution, release_reason)
    close_waitpoints(work, execution, execution.open_waitpoint_ids, stream_reason or default_reason)
    end_attempt(
        work,
        execution,
        state,
        stream_reason or default_reason,
        failure_reason=failure_reason,
        failure_category=failure_category,
    )
    if execution.attempt is not None or outcome is TerminalOutcome.SKIPPED:
        execution.continuation = Continuation.NONE
    execution.cancelled_from = execution.phase if outcome is TerminalOutcome.CANCELLED else None
    execution.phase = LifecyclePhase.TERMINAL
    execution.outcome = outcome
    execution.blockers = ()
    execution.pause_reason = None
    execution.held_back = False
    execution.grant = None
    execution.suspension_id = None
    execution.waitpoint_id = None
    execution.suspended_reason = BlockingReason.NONE
    execution.failure_reason = failure_reason
    execution.failure_category = failure_category
    execution.completed_at = execution.retention_from = work.now
    mark_transition(work, execution)
    publish(
        work,
        execution,
        Family.COMPLETION,
        outcome,
        generation=execution.replay_count,
        failure_reason=failure_reason or None,
        failure_category=failure_category or None,
    )
    tell_flow(work, execution, MEMBER_ENDED)


def reopen_execution(work: Work, execution: Execution, *, keep_journal: bool) -> None:
    """Let an ended execution run again in a new attempt, which the next claim opens.

    How it ended is forgotten, and it has all its retries and reclaims again: otherwise one that
    had used them up would fail at its first stumble. A deadline that has passed is dropped, for
    the execution would expire at once; one that is still to come stays.
    """
    execution.outcome = TerminalOutcome.NONE
    execution.continuation = Continuation.REPLAY
    execution.replay_count += 1
    execution.retry_count = execution.reclaim_count = 0
    execution.retry_reason = f"replayed by {work.envelope.actor}" if work.envelope.actor else "replayed"
    execution.failure_reason = execution.failure_category = ""
    execution.cancellation_reason = execution.cancelled_by = ""
    execution.cancelled_from = execution.completed_at = execution.resumed_suspension_id = None
    execution.retention_from = None
    execution.progress_pct = execution.progress_message = execution.progress_updated_at = None
    execution.has_result = False
    if not keep_journal:
        execution.journal_generation = execution.replay_count
    if execution.deadline_at is not None and execution.deadline_at <= work.now:
        execution.deadline_at = None
    make_runnable(work, execution)
    tell_flow(work, execution, "reopened")

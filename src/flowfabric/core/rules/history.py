"""Reading what has happened to one execution, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.contracts.history import (
    AttemptInfo,
    ListAttemptsArgs,
    ListAttemptsPage,
    ListSignalsArgs,
    ListSignalsPage,
    SignalInfo,
)
from flowfabric.core.records import PastAttempt, Signal
from flowfabric.core.registry import rule

if TYPE_CHECKING:
    from flowfabric.core.records import Attempt, Execution
    from flowfabric.core.work import Work


@rule(ListAttemptsArgs, query=True)
def list_attempts(work: Work, args: ListAttemptsArgs) -> ListAttemptsPage:
    """A page of attempts, the earliest first.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    execution = work.execution(args.execution_id)
    if execution.attempt is None:
        return ListAttemptsPage(attempts=())
    first = 0 if args.cursor is None else args.cursor + 1
    behind = min(execution.attempt_count, first + args.limit)
    attempts = _attempts(work, execution, range(first, behind))
    return ListAttemptsPage(
        attempts=tuple(map(_attempt_info, attempts)),
        next_cursor=behind - 1 if first < behind < execution.attempt_count else None,
    )


def _attempts(work: Work, execution: Execution, indices: range) -> list[Attempt]:
    """The attempts with these indices; the latest one is kept in the execution itself."""
    latest = execution.attempt
    assert latest is not None
    earlier = [f"{execution.execution_id}/{index}" for index in indices if index != latest.attempt_index]
    found = [past.attempt for past in work.read_all(PastAttempt, earlier) if past is not None]
    return [*found, latest] if latest.attempt_index in indices else found


def _attempt_info(attempt: Attempt) -> AttemptInfo:
    return AttemptInfo(
        attempt_id=attempt.attempt_id,
        attempt_index=attempt.attempt_index,
        attempt_type=attempt.attempt_type,
        attempt_state=attempt.state,
        previous_attempt_index=attempt.previous_attempt_index,
        cause=attempt.cause,
        generation=attempt.generation,
        worker_id=attempt.worker_id,
        worker_instance_id=attempt.worker_instance_id,
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        suspended_at=attempt.suspended_at,
        resumed_at=attempt.resumed_at,
        failure_reason=attempt.failure_reason,
        failure_category=attempt.failure_category,
        stream_closed_at=attempt.stream_closed_at,
        stream_closed_reason=attempt.stream_closed_reason,
    )


@rule(ListSignalsArgs, query=True)
def list_signals(work: Work, args: ListSignalsArgs) -> ListSignalsPage:
    """A page of signals in the order in which they arrived.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    execution = work.execution(args.execution_id)
    first = 1 if args.cursor is None else args.cursor + 1
    last = min(execution.signal_count, first + args.limit - 1)
    identities = [f"{args.execution_id}/{sequence}" for sequence in range(first, last + 1)]
    signals = [found for found in work.read_all(Signal, identities) if found is not None]
    return ListSignalsPage(
        signals=tuple(_signal_info(signal, with_payload=args.with_payloads) for signal in signals),
        next_cursor=last if first <= last < execution.signal_count else None,
    )


def _signal_info(signal: Signal, *, with_payload: bool) -> SignalInfo:
    return SignalInfo(
        sequence=signal.sequence,
        signal_id=signal.signal_id,
        signal_name=signal.signal_name,
        signal_category=signal.signal_category,
        source_type=signal.source_type,
        source_identity=signal.source_identity,
        waitpoint_id=signal.waitpoint_id,
        waitpoint_key=signal.waitpoint_key,
        target_scope=signal.target_scope,
        effect=signal.effect,
        accepted_at=signal.accepted_at,
        created_at=signal.created_at,
        correlation_id=signal.correlation_id,
        idempotency_key=signal.idempotency_key,
        payload=signal.payload if with_payload else None,
        payload_encoding=signal.payload_encoding,
    )

"""Signals: one way in for all of them, whatever the state of the waitpoint they are sent to.

The rules this module keeps:

- The token is checked before anything is said about the waitpoint; an unknown one looks like a
  wrong token.
- An accepted signal is recorded once, under the next sequence number of its execution. In the same
  change it is evaluated, if the waitpoint's suspension is the current one, or kept for later.
- A signal that was received before is answered with the first one's id, even after the wait is over.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric import errors
from flowfabric.contracts.ids import SignalId
from flowfabric.contracts.limits import (
    SAFE_INTEGER_MAX,
    SIGNAL_DEDUP_TTL_MS,
    SIGNAL_STREAM_LENGTH,
    SIGNALS_PER_EXECUTION_MAX,
)
from flowfabric.contracts.signals import (
    BufferSignalArgs,
    BufferSignalResult,
    DeliverApprovalSignalArgs,
    DeliverSignalArgs,
    DeliverSignalResult,
    ObservedSignals,
    ObserveSignalsArgs,
    SignalAccepted,
    SignalBuffered,
    SignalDuplicate,
    SignalEffect,
)
from flowfabric.contracts.states import WaitpointState
from flowfabric.core.events import Family
from flowfabric.core.indexes import FOREVER
from flowfabric.core.records import (
    KEYRING_ID,
    BufferedSignal,
    Dedup,
    Execution,
    Key,
    Keyring,
    Signal,
    Suspension,
    Waitpoint,
    key_for,
)
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.fencing import check_lease
from flowfabric.core.rules.journal import satisfying_signals
from flowfabric.core.rules.remembered import content_digest, recall
from flowfabric.core.rules.suspending import (
    RESUMED,
    apply_to_suspension,
    current_suspension,
    keeps_signals,
    resume,
    resume_condition,
    resume_policy,
)
from flowfabric.core.rules.transitions import publish
from flowfabric.core.rules.waitpoints import find_waitpoint, is_expired, keyring, keyring_key
from flowfabric.core.state import is_terminal
from flowfabric.core.tokens import check_token, token_of

if TYPE_CHECKING:
    from flowfabric.contracts.keyring import WaitpointToken
    from flowfabric.core.work import Work

APPROVAL_CATEGORY: Final = "approval"
APPROVAL_SOURCE: Final = "operator"
BY_SIGNAL: Final = "signal"
"""What has resumed an execution that signals have resumed."""

_SIGNAL_NAMESPACE: Final = uuid.UUID("6f1d2a53-3c0e-5b5e-9a7e-3f2b8a4d9c10")
"""Under which ids of signals are made that their sender did not name."""


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """A signal that is about to be received, whichever command brought it."""

    signal_id: str
    signal_name: str
    signal_category: str = ""
    source_type: str = ""
    source_identity: str = ""
    payload: bytes | None = None
    payload_encoding: str | None = None
    correlation_id: str | None = None
    idempotency_key: str | None = None
    target_scope: str = "waitpoint"
    created_at: int | None = None
    dedup_ttl_ms: int | None = None
    resume_delay_ms: int | None = None
    max_signals_per_execution: int | None = None
    signal_maxlen: int | None = None


def _signal_keys(args: DeliverSignalArgs | BufferSignalArgs) -> tuple[Key, ...]:
    """What every signal reads besides its execution, so that all of it is loaded together."""
    place = f"{args.execution_id}/{args.waitpoint_id}"
    remembered = (args.idempotency_key,) if args.idempotency_key else ()
    return (
        key_for(Keyring, KEYRING_ID),
        key_for(Waitpoint, place),
        *(key_for(Dedup, f"{_key_scope(place)}/{dedup_key}") for dedup_key in remembered),
    )


def _own_key(args: DeliverSignalArgs | BufferSignalArgs) -> tuple[Key, ...]:
    """What remembers the signal by its id, which hardly ever comes twice."""
    return (key_for(Dedup, f"{_id_scope(args.execution_id)}/{args.signal_id}"),)


@rule(DeliverSignalArgs, reads=_signal_keys, makes=_own_key)
def deliver_signal(work: Work, args: DeliverSignalArgs) -> DeliverSignalResult:
    """Receive a signal: evaluate it, or keep it for the suspension that its waitpoint waits for.

    Raises:
        ExecutionNotFound: there is no such execution in the caller's namespace.
        MissingToken, InvalidToken, TokenExpired, HmacSecretNotInitialized, InvalidSecret: the
            token does not open this waitpoint.
        IdempotencyConflict: the key was used for another signal.
        TargetNotSignalable: the execution has ended.
        WaitpointClosed: the wait is over.
        SignalLimitExceeded: the execution, or the waitpoint's buffer, has its maximum.
    """
    execution, waitpoint = _authenticated(work, args.execution_id, args.waitpoint_id, args.waitpoint_token)
    return receive_signal(work, execution, waitpoint, incoming_of(args))


def incoming_of(args: DeliverSignalArgs) -> Incoming:
    """The signal that a command brings."""
    return Incoming(
        signal_id=args.signal_id,
        signal_name=args.signal_name,
        signal_category=args.signal_category,
        source_type=args.source_type,
        source_identity=args.source_identity,
        payload=args.payload,
        payload_encoding=args.payload_encoding,
        correlation_id=args.correlation_id,
        idempotency_key=args.idempotency_key,
        target_scope=args.target_scope,
        created_at=args.created_at,
        dedup_ttl_ms=args.dedup_ttl_ms,
        resume_delay_ms=args.resume_delay_ms,
        max_signals_per_execution=args.max_signals_per_execution,
        signal_maxlen=args.signal_maxlen,
    )


@rule(BufferSignalArgs, reads=_signal_keys, makes=_own_key)
def buffer_signal(work: Work, args: BufferSignalArgs) -> BufferSignalResult:
    """Receive a signal for a waitpoint that is expected to be pending.

    If a suspension has activated the waitpoint meanwhile, the signal is evaluated as any other is.

    Raises:
        ExecutionNotFound and the others: see ``deliver_signal``.
    """
    execution, waitpoint = _authenticated(work, args.execution_id, args.waitpoint_id, args.waitpoint_token)
    incoming = Incoming(
        signal_id=args.signal_id,
        signal_name=args.signal_name,
        signal_category=args.signal_category,
        source_type=args.source_type,
        source_identity=args.source_identity,
        payload=args.payload,
        payload_encoding=args.payload_encoding,
        idempotency_key=args.idempotency_key,
        target_scope=args.target_scope,
    )
    outcome = receive_signal(work, execution, waitpoint, incoming)
    return outcome if isinstance(outcome, SignalDuplicate) else SignalBuffered(signal_id=outcome.signal_id)


@rule(DeliverApprovalSignalArgs, reads=keyring_key)
def deliver_approval_signal(work: Work, args: DeliverApprovalSignalArgs) -> DeliverSignalResult:
    """Receive an operator's decision. The operator may do so without having been sent a token.

    Raises:
        ExecutionNotFound, WaitpointNotFound: there is no such execution or waitpoint.
        InvalidInput: the execution is in another lane.
        TokenExpired, HmacSecretNotInitialized, InvalidSecret: the waitpoint's own token is not valid.
        TargetNotSignalable, WaitpointClosed, SignalLimitExceeded, IdempotencyConflict: see
            ``deliver_signal``.
    """
    execution = work.execution(args.execution_id)
    if execution.lane_id != args.lane_id:
        raise errors.InvalidInput(field="lane_id", value=args.lane_id, rule="lane_mismatch")
    waitpoint = find_waitpoint(work, args.execution_id, args.waitpoint_id)
    if waitpoint is None:
        raise errors.WaitpointNotFound(waitpoint_id=args.waitpoint_id)
    if waitpoint.state != WaitpointState.CLOSED:
        token_of(keyring(work), execution.namespace, waitpoint, work.now)
    incoming = Incoming(
        signal_id=args.signal_id or minted_signal_id(args.execution_id, work.envelope.request_id),
        signal_name=args.signal_name,
        signal_category=APPROVAL_CATEGORY,
        source_type=APPROVAL_SOURCE,
        source_identity=args.source_identity,
        payload=args.payload,
        payload_encoding=args.payload_encoding,
        idempotency_key=f"approval:{args.signal_name}:{args.idempotency_suffix}",
        target_scope="execution",
        dedup_ttl_ms=args.dedup_ttl_ms,
        max_signals_per_execution=args.max_signals_per_execution,
        signal_maxlen=args.signal_maxlen,
    )
    outcome = receive_signal(work, execution, waitpoint, incoming)
    if not isinstance(outcome, SignalDuplicate):
        log_act(
            work,
            "decided",
            execution=execution,
            waitpoint_id=args.waitpoint_id,
            new=args.signal_name,
            source_identity=args.source_identity,
        )
    return outcome


@rule(ObserveSignalsArgs, subject=no_subject)
def observe_signals(work: Work, args: ObserveSignalsArgs) -> ObservedSignals:
    """The signals that ended the attempt's last suspension, in the order of their arrival.

    Raises:
        ExecutionNotActive, LeaseRevoked, LeaseExpired, StaleLease: a fence was given and is not the
            current one.
    """
    execution = work.execution(args.execution_id)
    if args.fence is not None:
        check_lease(work, execution, args.fence)
    if execution.resumed_suspension_id is None:
        return ObservedSignals()
    suspension = work.read(Suspension, f"{args.execution_id}/{execution.resumed_suspension_id}")
    if suspension is None or suspension.attempt_index != args.attempt_index:
        return ObservedSignals()
    return ObservedSignals(signals=satisfying_signals(work, suspension))


def _authenticated(
    work: Work, execution_id: str, waitpoint_id: str, token: WaitpointToken
) -> tuple[Execution, Waitpoint]:
    """The execution and the waitpoint that the token opens."""
    execution = work.execution(execution_id)
    waitpoint = find_waitpoint(work, execution_id, waitpoint_id)
    return execution, check_token(keyring(work), execution.namespace, waitpoint, token, work.now)


def minted_signal_id(execution_id: str, cause: str) -> SignalId:
    """The id of a signal that nobody named: the same cause always gives the same id."""
    return str(uuid.uuid5(_SIGNAL_NAMESPACE, f"{execution_id}/{cause}"))


# Receiving


def receive_signal(
    work: Work, execution: Execution, waitpoint: Waitpoint, incoming: Incoming
) -> DeliverSignalResult:
    """Record a signal whose sender is known to be entitled, and do what it brings about."""
    earlier = _received_before(work, waitpoint, incoming)
    if earlier is not None:
        return SignalDuplicate(existing_signal_id=earlier)
    _require_signalable(work, execution, waitpoint)
    _require_room(execution, waitpoint, incoming)
    execution, waitpoint = work.edit(execution), work.edit(waitpoint)
    sequence = next_sequence(execution)
    waitpoint.signal_count += 1
    waitpoint.last_signal_at = work.now
    effect = _evaluate_or_keep(work, execution, waitpoint, _essence(sequence, incoming))
    record_signal(work, execution, waitpoint, incoming, sequence=sequence, effect=effect)
    for received in (received_by_id(waitpoint, incoming), received_by_key(waitpoint, incoming, work.now)):
        if received is not None:
            work.add(received)
    if effect is SignalEffect.RESUME_CONDITION_SATISFIED:
        _resume(work, execution, incoming)
    return SignalAccepted(signal_id=incoming.signal_id, effect=effect)


def _received_before(work: Work, waitpoint: Waitpoint, incoming: Incoming) -> SignalId | None:
    """The id under which this signal, or one with its idempotency key, was received."""
    if recall(work, _id_scope(waitpoint.execution_id), incoming.signal_id) is not None:
        return incoming.signal_id
    if not incoming.idempotency_key:
        return None
    value = recall(work, _key_scope(waitpoint.identity), incoming.idempotency_key, _content_digest(incoming))
    return None if value is None else value.decode()


def received_by_id(waitpoint: Waitpoint, incoming: Incoming) -> Dedup:
    """What is remembered of a signal for ever: its id."""
    return Dedup(
        scope=_id_scope(waitpoint.execution_id),
        dedup_key=incoming.signal_id,
        digest=b"",
        value=incoming.signal_id.encode(),
        expires_at=FOREVER,
    )


def received_by_key(waitpoint: Waitpoint, incoming: Incoming, now: int) -> Dedup | None:
    """What is remembered of a signal for some time: the key of its sender, if there is one."""
    if not incoming.idempotency_key:
        return None
    return Dedup(
        scope=_key_scope(waitpoint.identity),
        dedup_key=incoming.idempotency_key,
        digest=_content_digest(incoming),
        value=incoming.signal_id.encode(),
        expires_at=min(now + key_window_ms(incoming), SAFE_INTEGER_MAX),
    )


def key_window_ms(incoming: Incoming) -> int:
    """For how long the key of a sender is remembered."""
    return SIGNAL_DEDUP_TTL_MS if incoming.dedup_ttl_ms is None else incoming.dedup_ttl_ms


def _id_scope(execution_id: str) -> str:
    return f"{execution_id}/signal"


def _key_scope(waitpoint_identity: str) -> str:
    return f"{waitpoint_identity}/signal_key"


def _content_digest(incoming: Incoming) -> bytes:
    """What a sender says, without what it mints anew when it says it again."""
    content = (
        incoming.signal_name,
        incoming.signal_category,
        incoming.source_type,
        incoming.source_identity,
        incoming.payload,
        incoming.payload_encoding,
    )
    return content_digest(content)


def _require_signalable(work: Work, execution: Execution, waitpoint: Waitpoint) -> None:
    """Refuse a waitpoint that is closed, is past its time, or belongs to a suspension that is over."""
    if is_terminal(execution):
        raise errors.TargetNotSignalable(
            execution_id=execution.execution_id, terminal_outcome=execution.outcome
        )
    of_current_suspension = (
        waitpoint.state == WaitpointState.ACTIVE
        and waitpoint.suspension_id is not None
        and waitpoint.suspension_id == execution.suspension_id
    )
    pending = waitpoint.state == WaitpointState.PENDING and not is_expired(waitpoint, work.now)
    if not of_current_suspension and not pending:
        raise errors.WaitpointClosed(waitpoint_id=waitpoint.waitpoint_id)


def _require_room(execution: Execution, waitpoint: Waitpoint, incoming: Incoming) -> None:
    """Refuse a signal above the execution's cap, or above what its waitpoint may keep."""
    cap = signal_cap(execution, incoming.max_signals_per_execution)
    if cap and execution.signal_count >= cap:
        raise errors.SignalLimitExceeded(received=execution.signal_count, max_signals_per_execution=cap)
    kept_max = incoming.signal_maxlen or SIGNAL_STREAM_LENGTH
    if len(waitpoint.buffered) >= kept_max:
        raise errors.SignalLimitExceeded(kept=len(waitpoint.buffered), signal_maxlen=kept_max)


def signal_cap(execution: Execution, asked: int | None) -> int:
    """How many signals the execution may receive in all: the smaller of both caps; 0 is none."""
    own = None if execution.policy is None else execution.policy.max_signals_per_execution
    caps = [cap for cap in (own, asked) if cap is not None]
    if not caps:
        return SIGNALS_PER_EXECUTION_MAX
    return min((cap for cap in caps if cap), default=0)


def next_sequence(execution: Execution) -> int:
    """Take the next sequence number. The execution must be a copy that may be changed."""
    execution.signal_count += 1
    return execution.signal_count


def _essence(sequence: int, incoming: Incoming) -> BufferedSignal:
    return BufferedSignal(
        sequence=sequence,
        signal_id=incoming.signal_id,
        signal_name=incoming.signal_name,
        source_type=incoming.source_type,
        source_identity=incoming.source_identity,
    )


def _evaluate_or_keep(
    work: Work, execution: Execution, waitpoint: Waitpoint, signal: BufferedSignal
) -> SignalEffect:
    """Apply the signal to the current suspension, or keep it in a pending waitpoint."""
    if waitpoint.state == WaitpointState.PENDING:
        waitpoint.buffered = (*waitpoint.buffered, signal)
        return SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT
    suspension = current_suspension(work, execution)
    assert suspension is not None
    suspension = work.edit(suspension)
    if keeps_signals(suspension):
        waitpoint.buffered = (*waitpoint.buffered, signal)
    return apply_to_suspension(work, suspension, waitpoint, signal, resume_condition(suspension))


def _resume(work: Work, execution: Execution, incoming: Incoming) -> None:
    suspension = current_suspension(work, execution)
    assert suspension is not None
    delay_ms = incoming.resume_delay_ms
    if delay_ms is None:
        delay_ms = resume_policy(suspension).resume_delay_ms or 0
    resume(work, execution, RESUMED, cause=BY_SIGNAL, delay_ms=delay_ms, closer_signal_id=incoming.signal_id)


def signal_of(
    waitpoint: Waitpoint, incoming: Incoming, *, sequence: int, accepted_at: int, effect: SignalEffect
) -> Signal:
    """What is on record of a signal."""
    return Signal(
        execution_id=waitpoint.execution_id,
        sequence=sequence,
        signal_id=incoming.signal_id,
        waitpoint_id=waitpoint.waitpoint_id,
        waitpoint_key=waitpoint.waitpoint_key,
        signal_name=incoming.signal_name,
        signal_category=incoming.signal_category,
        source_type=incoming.source_type,
        source_identity=incoming.source_identity,
        target_scope=incoming.target_scope,
        accepted_at=accepted_at,
        effect=effect,
        payload=incoming.payload,
        payload_encoding=incoming.payload_encoding,
        correlation_id=incoming.correlation_id,
        idempotency_key=incoming.idempotency_key,
        created_at=incoming.created_at,
    )


def record_signal(
    work: Work,
    execution: Execution,
    waitpoint: Waitpoint,
    incoming: Incoming,
    *,
    sequence: int,
    effect: SignalEffect,
) -> None:
    """Put a signal on record and tell about it."""
    work.add(signal_of(waitpoint, incoming, sequence=sequence, accepted_at=work.now, effect=effect))
    execution.last_mutation_at = work.now
    publish(
        work,
        execution,
        Family.SIGNAL,
        "delivered",
        signal_id=incoming.signal_id,
        signal_name=incoming.signal_name,
        waitpoint_id=waitpoint.waitpoint_id,
        source_identity=incoming.source_identity,
        sequence=sequence,
        effect=effect,
    )

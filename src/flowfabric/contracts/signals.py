"""Signals: delivering them, buffering early ones, and reading those that resumed a run."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.ids import (
    Amount,
    AttemptIndex,
    DurationMs,
    ExecutionId,
    IdempotencyKey,
    LaneId,
    LeaseFence,
    Name,
    OptionalName,
    SignalId,
    TimestampMs,
    WaitpointId,
)
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.contracts.limits import SIGNAL_BYTES_MAX

SignalPayload: TypeAlias = Annotated[bytes, Meta(max_length=SIGNAL_BYTES_MAX)]


class SignalEffect(StrEnum):
    """What a signal did."""

    RESUME_CONDITION_SATISFIED = "resume_condition_satisfied"
    APPENDED_TO_WAITPOINT = "appended_to_waitpoint"
    NO_OP = "no_op"
    SIGNAL_IGNORED_NOT_IN_CONDITION = "signal_ignored_not_in_condition"
    SIGNAL_IGNORED_MATCHER_FAILED = "signal_ignored_matcher_failed"
    APPENDED_TO_WAITPOINT_DUPLICATE = "appended_to_waitpoint_duplicate"
    BUFFERED_FOR_PENDING_WAITPOINT = "buffered_for_pending_waitpoint"


class SignalAccepted(Outcome, tag="Accepted"):
    """The signal is recorded; the effect says what it changed."""

    signal_id: SignalId
    effect: SignalEffect


class SignalBuffered(Outcome, tag="Buffered"):
    """The signal is kept until a suspension activates the waitpoint."""

    signal_id: SignalId


class SignalDuplicate(Outcome, tag="Duplicate"):
    """A signal with this idempotency key, or this id, was received before."""

    existing_signal_id: SignalId


DeliverSignalResult: TypeAlias = SignalAccepted | SignalDuplicate
BufferSignalResult: TypeAlias = SignalBuffered | SignalDuplicate


class DeliverSignalArgs(Command[DeliverSignalResult]):
    """Send a signal to a waitpoint; a pending one keeps it for later."""

    execution_id: ExecutionId
    waitpoint_id: WaitpointId
    signal_id: SignalId
    signal_name: Name
    signal_category: OptionalName
    source_type: OptionalName
    source_identity: OptionalName
    payload: SignalPayload | None = None
    payload_encoding: OptionalName | None = None
    correlation_id: OptionalName | None = None
    idempotency_key: IdempotencyKey | None = None
    target_scope: OptionalName = "waitpoint"
    created_at: TimestampMs | None = None
    dedup_ttl_ms: DurationMs | None = None
    resume_delay_ms: DurationMs | None = None
    max_signals_per_execution: Amount | None = None
    signal_maxlen: Amount | None = None
    waitpoint_token: WaitpointToken
    now: TimestampMs | None = None


class BufferSignalArgs(Command[BufferSignalResult]):
    """Send a signal to a pending waitpoint."""

    execution_id: ExecutionId
    waitpoint_id: WaitpointId
    signal_id: SignalId
    signal_name: Name
    signal_category: OptionalName
    source_type: OptionalName
    source_identity: OptionalName
    payload: SignalPayload | None = None
    payload_encoding: OptionalName | None = None
    idempotency_key: IdempotencyKey | None = None
    target_scope: OptionalName = "waitpoint"
    waitpoint_token: WaitpointToken
    now: TimestampMs | None = None


class DeliverApprovalSignalArgs(Command[DeliverSignalResult]):
    """Send an operator's decision; the token is looked up instead of presented.

    The idempotency key is ``approval:<signal_name>:<idempotency_suffix>``.
    """

    execution_id: ExecutionId
    lane_id: LaneId
    waitpoint_id: WaitpointId
    signal_id: SignalId | None = None
    signal_name: Name
    idempotency_suffix: OptionalName
    source_identity: OptionalName = ""
    payload: SignalPayload | None = None
    payload_encoding: OptionalName | None = None
    dedup_ttl_ms: DurationMs | None = None
    max_signals_per_execution: Amount | None = None
    signal_maxlen: Amount | None = None


class ResumeSignal(Value):
    """A signal that helped to resume the execution."""

    signal_id: SignalId
    signal_name: str
    signal_category: str
    source_type: str
    source_identity: str
    correlation_id: str | None = None
    accepted_at: TimestampMs
    payload: bytes | None = None
    payload_encoding: str | None = None
    waitpoint_id: WaitpointId | None = None
    waitpoint_key: str = ""


class ObservedSignals(Value):
    """The signals that met the last suspension's condition, in the order of their arrival."""

    signals: tuple[ResumeSignal, ...] = ()


class ObserveSignalsArgs(Command[ObservedSignals]):
    """Read the signals that resumed the attempt."""

    execution_id: ExecutionId
    fence: LeaseFence | None = None
    attempt_index: AttemptIndex

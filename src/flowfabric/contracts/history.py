"""What has happened to one execution: its attempts and its signals."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from flowfabric.contracts.base import Command, Value
from flowfabric.contracts.ids import (
    Amount,
    AttemptId,
    AttemptIndex,
    ExecutionId,
    SignalId,
    TimestampMs,
    WaitpointId,
)
from flowfabric.contracts.limits import PAGE_ROWS_MAX, SIGNALS_PAGE_MAX
from flowfabric.contracts.states import AttemptLifecycle, AttemptType

_PAGE = 50


class AttemptInfo(Value):
    """One attempt, and where it comes from."""

    attempt_id: AttemptId
    attempt_index: AttemptIndex
    attempt_type: AttemptType
    attempt_state: AttemptLifecycle
    previous_attempt_index: AttemptIndex | None = None
    cause: str = ""
    """Why it was opened: the reason of the retry, the reclaim or the replay."""
    generation: Amount = 0
    """The replay generation that it belongs to."""
    worker_id: str
    worker_instance_id: str
    """The latest worker; a resumed attempt may have had others before."""
    started_at: TimestampMs
    ended_at: TimestampMs | None = None
    suspended_at: TimestampMs | None = None
    resumed_at: TimestampMs | None = None
    failure_reason: str = ""
    failure_category: str = ""
    stream_closed_at: TimestampMs | None = None
    stream_closed_reason: str | None = None


class ListAttemptsPage(Value):
    """Attempts in their order."""

    attempts: tuple[AttemptInfo, ...]
    next_cursor: AttemptIndex | None = None


class ListAttemptsArgs(Command[ListAttemptsPage]):
    """List the attempts of an execution, those after an index."""

    execution_id: ExecutionId
    cursor: AttemptIndex | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ROWS_MAX)] = _PAGE


class SignalInfo(Value):
    """One signal on record."""

    sequence: Amount
    signal_id: SignalId
    signal_name: str
    signal_category: str
    source_type: str
    source_identity: str
    waitpoint_id: WaitpointId
    waitpoint_key: str
    target_scope: str
    effect: str
    """What it did when it arrived."""
    accepted_at: TimestampMs
    created_at: TimestampMs | None = None
    correlation_id: str | None = None
    idempotency_key: str | None = None
    payload: bytes | None = None
    """None unless payloads are asked for."""
    payload_encoding: str | None = None


class ListSignalsPage(Value):
    """Signals in the order in which they arrived."""

    signals: tuple[SignalInfo, ...]
    next_cursor: Amount | None = None


class ListSignalsArgs(Command[ListSignalsPage]):
    """List the signals that an execution has received after a sequence number."""

    execution_id: ExecutionId
    cursor: Amount | None = None
    limit: Annotated[int, Meta(ge=1, le=SIGNALS_PAGE_MAX)] = _PAGE
    with_payloads: bool = False

"""Frame streams: what an attempt writes while it runs, and how it is read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.cursors import BEGINNING, END, START, StreamCursor
from flowfabric.contracts.ids import (
    Amount,
    AttemptId,
    AttemptIndex,
    ExecutionId,
    JsonText,
    LeaseEpoch,
    LeaseId,
    Name,
    OptionalName,
    PositiveMs,
    TimestampMs,
)
from flowfabric.contracts.limits import (
    PAYLOAD_BYTES_MAX,
    STREAM_READ_HARD_CAP,
    TAIL_BLOCK_MS_MAX,
    U32_MAX,
)
from flowfabric.errors import InvalidInput

_TAIL_LIMIT = 50
_READ_LIMIT = 100
_FLOOR, _CEILING, _ALPHA = 64, 16_384, 0.2

Uint32: TypeAlias = Annotated[int, Meta(ge=0, le=U32_MAX)]


class DurableMode(Value, tag_field="mode", tag="durable"):
    """Frames are kept until the stream is longer than its retention."""


class SummaryMode(Value, tag_field="mode", tag="summary"):
    """Each frame is a JSON merge patch to one summary document."""

    patch_kind: Name = "json-merge-patch"


class BestEffortMode(Value, tag_field="mode", tag="best_effort"):
    """Frames are live output; how many are kept follows from the rate and ``ttl_ms``."""

    ttl_ms: PositiveMs
    maxlen_floor: Uint32 = _FLOOR
    maxlen_ceiling: Uint32 = _CEILING
    ema_alpha: Annotated[float, Meta(gt=0.0, le=1.0)] = _ALPHA


StreamMode: TypeAlias = DurableMode | SummaryMode | BestEffortMode


class StreamVisibility(StrEnum):
    """Which frames a read returns."""

    ALL = "all"
    EXCLUDE_BEST_EFFORT = "exclude_best_effort"


class FrameAppended(Outcome, tag="Appended"):
    """The frame is in the stream. ``frame_count`` counts all that were ever written."""

    entry_id: str
    frame_count: Amount
    summary_version: Amount | None = None


AppendFrameResult: TypeAlias = FrameAppended


class AppendFrameArgs(Command[AppendFrameResult]):
    """Write one frame to the attempt's stream.

    A payload above ``max_payload_bytes`` (65536 unless set) is refused by the rule with
    ``retention_limit_exceeded``.
    """

    execution_id: ExecutionId
    attempt_index: AttemptIndex
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_id: AttemptId
    frame_type: Name
    timestamp: TimestampMs | None = None
    payload: Annotated[bytes, Meta(max_length=PAYLOAD_BYTES_MAX)]
    encoding: OptionalName | None = None
    metadata_json: JsonText | None = None
    correlation_id: OptionalName | None = None
    source: OptionalName | None = None
    mode: StreamMode = DurableMode()
    retention_maxlen: Uint32 | None = None
    max_payload_bytes: Uint32 | None = None


class StreamFrame(Value):
    """One frame: its id, its text fields by name, and its payload.

    On the wire the payload is one of the fields: ``payload`` when it is UTF-8, else
    ``payload_base64``.
    """

    id: str
    fields: dict[str, str]
    payload: bytes = b""


class StreamFrames(Value):
    """Some frames, and when and why the stream was closed if it was."""

    frames: tuple[StreamFrame, ...] = ()
    closed_at: TimestampMs | None = None
    closed_reason: str | None = None

    @property
    def is_closed(self) -> bool:
        """Whether no more frames can come."""
        return self.closed_at is not None


class ReadFramesArgs(Command[StreamFrames]):
    """Read the frames between two positions, both included."""

    execution_id: ExecutionId
    attempt_index: AttemptIndex
    from_id: StreamCursor = START
    to_id: StreamCursor = END
    count_limit: int = _READ_LIMIT
    visibility: StreamVisibility = StreamVisibility.ALL

    def validate(self) -> None:
        """Check the limit."""
        _check_count_limit(self.count_limit)


class TailFramesArgs(Command[StreamFrames]):
    """Read the frames after a position; wait up to ``block_ms`` when there are none."""

    execution_id: ExecutionId
    attempt_index: AttemptIndex
    after: StreamCursor = BEGINNING
    block_ms: Annotated[int, Meta(ge=0, le=TAIL_BLOCK_MS_MAX)] = 0
    count_limit: int = _TAIL_LIMIT
    visibility: StreamVisibility = StreamVisibility.ALL

    def validate(self) -> None:
        """Check the limit, and that the position is an entry's id."""
        _check_count_limit(self.count_limit)
        if not self.after.is_concrete:
            raise InvalidInput(field="after", value=self.after, rule="a concrete cursor such as 0-0")


class SummaryDocument(Value):
    """The summary of a stream: a JSON document and how often it was patched."""

    document: bytes
    version: Amount
    patch_kind: str
    first_applied_ms: TimestampMs
    last_updated_ms: TimestampMs


class ReadSummaryArgs(Command[SummaryDocument | None]):
    """Read a stream's summary; ``None`` when there is none."""

    execution_id: ExecutionId
    attempt_index: AttemptIndex


def _check_count_limit(count_limit: int) -> None:
    if count_limit < 1:
        raise InvalidInput(field="count_limit", value=count_limit, rule="count_limit must be >= 1")
    if count_limit > STREAM_READ_HARD_CAP:
        raise InvalidInput(field="count_limit", value=count_limit, rule="count_limit_exceeds_hard_cap")

"""Frame streams: what an attempt writes while it runs.

A stream is closed exactly when its attempt has ended, so closing writes nothing here. The rules
this module keeps: entry ids of one attempt increase strictly, the counts in ``StreamMeta`` are
those of the frames that are kept, and only the holder of the lease appends. The execution record
is relied on and never written, so appending does not disturb whoever else changes it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from flowfabric import errors
from flowfabric.contracts.limits import FRAME_BYTES_MAX, STREAM_RETENTION_MAXLEN
from flowfabric.contracts.states import LifecyclePhase
from flowfabric.contracts.streams import (
    AppendFrameArgs,
    AppendFrameResult,
    BestEffortMode,
    DurableMode,
    FrameAppended,
    ReadSummaryArgs,
    StreamMode,
    SummaryDocument,
    SummaryMode,
)
from flowfabric.core.commands import ExpireLiveFramesArgs, LiveFramesSettled
from flowfabric.core.frames import DURABLE, LIVE, SUMMARY, Position, encode_frame, entry_id, stream_key
from flowfabric.core.merge_patch import EMPTY_DOCUMENT, patch_document
from flowfabric.core.records import Execution, StreamMeta, StreamSummary, key_for
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.vocabulary import LeaseState
from flowfabric.core.work import Trim

if TYPE_CHECKING:
    from flowfabric.core.records import Key
    from flowfabric.core.work import Work

PATCH_KIND: Final = "json-merge-patch"
SUMMARY_WINDOW: Final = 64
LIVE_HORIZON: Final = 2
"""Live frames are kept for this many times their time to live."""
SLACK_DIVISOR: Final = 100
"""A default window may run over by this fraction, so that a large one is trimmed now and then
instead of at every append."""

ENCODING: Final = "utf8"
SOURCE: Final = "worker"


class Window(NamedTuple):
    """How many frames of one part are kept; ``size`` None stands for all of them."""

    size: int | None
    slack: int = 0


def stream_identity(execution_id: str, attempt_index: int) -> str:
    """The identity of the records about one attempt's stream."""
    return f"{execution_id}/{attempt_index}"


def _subject(args: AppendFrameArgs) -> Key:
    return key_for(StreamMeta, stream_identity(args.execution_id, args.attempt_index))


def _reads(args: AppendFrameArgs) -> tuple[Key, ...]:
    execution = key_for(Execution, args.execution_id)
    if isinstance(args.mode, SummaryMode):
        return execution, key_for(StreamSummary, stream_identity(args.execution_id, args.attempt_index))
    return (execution,)


@rule(AppendFrameArgs, subject=_subject, reads=_reads, acts_anew=True)
def append_frame(work: Work, args: AppendFrameArgs) -> AppendFrameResult:
    """Write one frame, and trim what its way of keeping frames no longer keeps.

    ``retention_maxlen`` concerns durable frames and is exact; 0 keeps all of them. Without it the
    execution's stream policy says how many are kept.

    Raises:
        RetentionLimitExceeded: the payload, or the summary it would make, is too large.
        ExecutionNotFound: there is no such execution.
        StreamClosed: nobody runs the execution.
        StaleOwnerCannotAppend: the lease has lapsed, or the attempt is not the caller's.
        InvalidInput: a summary's patch is not a JSON object, or is nested too deeply.
    """
    _check_payload(args)
    execution = work.execution(args.execution_id)
    _check_owner(work, execution, args)
    stream = _open_stream(work, args)
    position = _advance(work, stream, len(args.payload))
    told_at = work.now if args.timestamp is None else args.timestamp
    fields = frame_fields(args, str(told_at))
    version: int | None = None
    match args.mode:
        case DurableMode():
            part, window = DURABLE, _durable_window(execution, args)
        case SummaryMode():
            part, window = SUMMARY, Window(SUMMARY_WINDOW)
            version = _patch_summary(work, stream, args, args.mode)
            fields["summary_version"] = str(version)
        case BestEffortMode():
            part, window = LIVE, _live_window(work, stream, args.mode)
            fields["ttl_ms"] = str(args.mode.ttl_ms)
    key = stream_key(args.execution_id, args.attempt_index, part)
    work.append(encode_frame(key, position, fields, args.payload))
    _retain(work, stream, part, window)
    return FrameAppended(entry_id=entry_id(position), frame_count=stream.frame_count, summary_version=version)


def _check_payload(args: AppendFrameArgs) -> None:
    cap = FRAME_BYTES_MAX if args.max_payload_bytes is None else args.max_payload_bytes
    if len(args.payload) > cap:
        raise errors.RetentionLimitExceeded(
            field="payload", value=f"{len(args.payload)} bytes", rule=f"at most {cap} bytes"
        )


def _check_owner(work: Work, execution: Execution, args: AppendFrameArgs) -> None:
    """Let only the holder of a live lease write, and only to the attempt it runs."""
    lease, attempt = execution.lease, execution.attempt
    if execution.phase is not LifecyclePhase.ACTIVE or lease is None or attempt is None:
        raise errors.StreamClosed(
            execution_id=args.execution_id, attempt_index=args.attempt_index, lifecycle_phase=execution.phase
        )
    alive = lease.state is LeaseState.HELD and lease.expires_at > work.now
    held = (lease.lease_id, lease.epoch, attempt.attempt_id, attempt.attempt_index)
    if not alive or held != (args.lease_id, args.lease_epoch, args.attempt_id, args.attempt_index):
        raise errors.StaleOwnerCannotAppend(
            execution_id=args.execution_id, attempt_index=args.attempt_index, current_epoch=lease.epoch
        )


def _open_stream(work: Work, args: AppendFrameArgs) -> StreamMeta:
    """The stream's record, ready to be changed; the first frame makes it."""
    stream = work.read(StreamMeta, stream_identity(args.execution_id, args.attempt_index))
    if stream is not None:
        return work.edit(stream)
    stream = StreamMeta(execution_id=args.execution_id, attempt_index=args.attempt_index, created_at=work.now)
    work.add(stream)
    return stream


def _advance(work: Work, stream: StreamMeta, payload_bytes: int) -> Position:
    """Count one more frame and return its place, which is after all others even if the clock is not."""
    ms = max(work.now, stream.last_ms)
    stream.last_seq = stream.last_seq + 1 if ms == stream.last_ms else 0
    stream.last_ms = ms
    stream.frame_count += 1
    stream.total_bytes += payload_bytes
    stream.last_frame_at = work.now
    return ms, stream.last_seq


def frame_fields(args: AppendFrameArgs, told_at: str) -> dict[str, str]:
    """What every frame says about itself, in text; ``told_at`` is its instant."""
    fields = {
        "frame_type": args.frame_type,
        "ts": told_at,
        "encoding": args.encoding or ENCODING,
        "source": args.source or SOURCE,
        "mode": mode_name(args.mode),
    }
    if args.correlation_id is not None:
        fields["correlation_id"] = args.correlation_id
    if args.metadata_json:
        fields["metadata_json"] = args.metadata_json
    return fields


def mode_name(mode: StreamMode) -> str:
    """The word for a mode, as frames carry it."""
    return str(type(mode).__struct_config__.tag)


def _durable_window(execution: Execution, args: AppendFrameArgs) -> Window:
    """What the command asks for; else what the policy says, or the default."""
    if args.retention_maxlen is not None:
        return Window(args.retention_maxlen or None)
    policy = None if execution.policy is None else execution.policy.stream_policy
    size = STREAM_RETENTION_MAXLEN if policy is None else policy.retention_maxlen
    return Window(size or None, slack=size // SLACK_DIVISOR)


def _live_window(work: Work, stream: StreamMeta, mode: BestEffortMode) -> Window:
    """How many live frames are kept: what the measured rate gives in the time they are kept for."""
    if mode.maxlen_floor > mode.maxlen_ceiling:
        raise errors.InvalidInput(
            field="mode.maxlen_floor", value=mode.maxlen_floor, rule="at most mode.maxlen_ceiling"
        )
    if stream.live_expires_at is not None and stream.live_expires_at <= work.now:
        _expire_live(work, stream)
    horizon_ms = mode.ttl_ms * LIVE_HORIZON
    stream.live_rate_hz = _live_rate(work, stream, mode, horizon_ms)
    stream.live_last_at = work.now
    # A frame with a short time to live must not take those with a longer one along.
    stream.live_expires_at = max(stream.live_expires_at or 0, work.now + horizon_ms)
    wanted = stream.live_rate_hz * horizon_ms / 1_000
    size = math.ceil(min(max(wanted, mode.maxlen_floor), mode.maxlen_ceiling))
    return Window(size, slack=size // SLACK_DIVISOR)


def _live_rate(work: Work, stream: StreamMeta, mode: BestEffortMode, horizon_ms: int) -> float:
    """The moving average of live frames per second."""
    if stream.live_rate_hz is None or stream.live_last_at is None:
        return mode.maxlen_floor * 1_000 / horizon_ms
    sample = 1_000 / max(work.now - stream.live_last_at, 1)
    return mode.ema_alpha * sample + (1 - mode.ema_alpha) * stream.live_rate_hz


def _patch_summary(work: Work, stream: StreamMeta, args: AppendFrameArgs, mode: SummaryMode) -> int:
    """Merge the frame into the summary document. Returns the document's new version."""
    if mode.patch_kind != PATCH_KIND:
        raise errors.InvalidInput(field="mode.patch_kind", value=mode.patch_kind, rule=f"only {PATCH_KIND}")
    before = work.read(StreamSummary, stream.identity)
    document = patch_document(EMPTY_DOCUMENT if before is None else before.document, args.payload)
    stream.summary_version += 1
    work.add(
        StreamSummary(
            execution_id=args.execution_id,
            attempt_index=args.attempt_index,
            document=document,
            version=stream.summary_version,
            patch_kind=mode.patch_kind,
            first_applied_ms=work.now if before is None else before.first_applied_ms,
            last_updated_ms=work.now,
        )
    )
    return stream.summary_version


def _retain(work: Work, stream: StreamMeta, part: str, window: Window) -> None:
    """Count the frame that was appended to this part, and trim the part to its window."""
    retained = _retained(stream, part) + 1
    if window.size is not None and retained > window.size + window.slack:
        _trim(work, stream, part, window.size)
    elif stream.trimmed_at == work.now:
        # A commit trims after all its appends, and the last trim of a part decides. An earlier
        # command of this batch may have trimmed, which must not cost the frame added since.
        _trim(work, stream, part, retained)
    else:
        _set_retained(stream, part, retained)


def _trim(work: Work, stream: StreamMeta, part: str, keep: int) -> None:
    work.trim(Trim(stream_key(stream.execution_id, stream.attempt_index, part), keep))
    _set_retained(stream, part, keep)
    stream.trimmed_at = work.now


def _retained(stream: StreamMeta, part: str) -> int:
    count: int = getattr(stream, f"{part}_retained")
    return count


def _set_retained(stream: StreamMeta, part: str, count: int) -> None:
    setattr(stream, f"{part}_retained", count)


def _expire_live(work: Work, stream: StreamMeta) -> None:
    """Forget the live frames and what was measured about them."""
    _trim(work, stream, LIVE, 0)
    stream.live_expires_at = stream.live_rate_hz = stream.live_last_at = None


@rule(
    ExpireLiveFramesArgs,
    subject=no_subject,
    reads=lambda args: (key_for(StreamMeta, args.stream_id),),
)
def expire_live_frames(work: Work, args: ExpireLiveFramesArgs) -> LiveFramesSettled:
    """Remove the live frames of a stream once their time is over. Others are not touched."""
    stream = work.read(StreamMeta, args.stream_id)
    if stream is None or stream.live_expires_at is None:
        return LiveFramesSettled(action="gone")
    if stream.live_expires_at > work.now:
        return LiveFramesSettled(action="kept")
    _expire_live(work, work.edit(stream))
    return LiveFramesSettled(action="expired")


@rule(
    ReadSummaryArgs,
    subject=no_subject,
    reads=lambda args: (
        key_for(Execution, args.execution_id),
        key_for(StreamSummary, stream_identity(args.execution_id, args.attempt_index)),
    ),
)
def read_summary(work: Work, args: ReadSummaryArgs) -> SummaryDocument | None:
    """The summary of an attempt's stream, or None if it has none.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    work.execution(args.execution_id)
    summary = work.read(StreamSummary, stream_identity(args.execution_id, args.attempt_index))
    if summary is None:
        return None
    return SummaryDocument(
        document=summary.document,
        version=summary.version,
        patch_kind=summary.patch_kind,
        first_applied_ms=summary.first_applied_ms,
        last_updated_ms=summary.last_updated_ms,
    )

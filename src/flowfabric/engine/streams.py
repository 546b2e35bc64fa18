"""Reading frame streams: a range of frames, or whatever comes next.

The rule this module keeps: a read never shows an entry while an earlier one could still be
missing. Every page therefore ends at the newest entry that the stream's record told of before
any frame was read, so a reader that follows the ids sees all frames that are kept.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import TYPE_CHECKING

import msgspec

from flowfabric import errors
from flowfabric.contracts.streams import ReadFramesArgs, StreamFrames, StreamVisibility, TailFramesArgs
from flowfabric.core.frames import (
    BEFORE_ALL,
    DURABLE,
    LIVE,
    POSITION_MAX,
    SUMMARY,
    Position,
    decode_frame,
    parse_position,
    stream_key,
)
from flowfabric.core.records import Attempt, Execution, PastAttempt, Record, StreamMeta, key_for
from flowfabric.engine.notifier import execution_topic
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from flowfabric.contracts.cursors import StreamCursor
    from flowfabric.core.work import Envelope, Frame
    from flowfabric.engine.engine import Engine

AFTER_ALL: Position = (POSITION_MAX, POSITION_MAX)


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt's stream at one moment."""

    newest: Position = BEFORE_ALL
    parts: tuple[str, ...] = ()
    """The keys of the parts that hold frames the reader may see."""
    closed_at: int | None = None
    closed_reason: str | None = None


@operation(ReadFramesArgs)
async def read_frames(engine: Engine, args: ReadFramesArgs, envelope: Envelope) -> StreamFrames:
    """The frames between two positions, both included.

    Raises:
        ExecutionNotFound: there is no such execution. An attempt that has not begun, or never
            wrote, reads as empty.
    """
    state = await _load_state(engine, args, envelope)
    first, last = _first_position(args.from_id), _last_position(args.to_id)
    return await _read_page(engine, state, first, last, args.count_limit)


@operation(TailFramesArgs)
async def tail_frames(engine: Engine, args: TailFramesArgs, envelope: Envelope) -> StreamFrames:
    """The frames after a position; waits for one, or for the end of the stream, if there is none.

    Nothing is held while waiting: the commit that appends a frame or ends the attempt wakes the
    reader, which then looks again.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + args.block_ms / 1_000
    first = _after(parse_position(args.after.value, missing_seq=0))
    with engine.notifier.subscribe(execution_topic(args.execution_id)) as subscription:
        while True:
            state = await _load_state(engine, args, envelope)
            page = await _read_page(engine, state, first, AFTER_ALL, args.count_limit)
            remaining_ms = (deadline - loop.time()) * 1_000
            if page.frames or page.is_closed or remaining_ms <= 0:
                return page
            if not await subscription.wait(remaining_ms) or engine.notifier.closed:
                return page


async def _load_state(
    engine: Engine, args: ReadFramesArgs | TailFramesArgs, envelope: Envelope
) -> StreamState:
    """Look at the execution, its attempt and its stream, all from one snapshot."""
    execution_key = key_for(Execution, args.execution_id)
    identity = f"{args.execution_id}/{args.attempt_index}"
    past_key, stream_meta_key = key_for(PastAttempt, identity), key_for(StreamMeta, identity)
    loaded = await engine.store.load([execution_key, past_key, stream_meta_key])
    records = {key: record for key, _, record in loaded.rows}
    execution = records[execution_key]
    if (
        not isinstance(execution, Execution)
        or execution.removing_since is not None
        or envelope.namespace not in (None, execution.namespace)
    ):
        raise errors.ExecutionNotFound(execution_id=args.execution_id)
    attempt = _attempt_at(execution, records[past_key], args.attempt_index)
    closed_at = None if attempt is None else attempt.stream_closed_at
    closed_reason = None if attempt is None else attempt.stream_closed_reason
    stream = records[stream_meta_key]
    if not isinstance(stream, StreamMeta):
        return StreamState(closed_at=closed_at, closed_reason=closed_reason)
    return StreamState(
        newest=(stream.last_ms, stream.last_seq),
        parts=_visible_parts(stream, args.visibility, loaded.now),
        closed_at=closed_at,
        closed_reason=closed_reason,
    )


def _attempt_at(execution: Execution, past: Record | None, attempt_index: int) -> Attempt | None:
    current = execution.attempt
    if current is not None and current.attempt_index == attempt_index:
        return current
    return past.attempt if isinstance(past, PastAttempt) else None


def _visible_parts(stream: StreamMeta, visibility: StreamVisibility, now: int) -> tuple[str, ...]:
    """The parts that hold frames, without live ones that are over but not removed yet."""
    live = (
        visibility is StreamVisibility.ALL
        and stream.live_expires_at is not None
        and stream.live_expires_at > now
    )
    held = (
        (DURABLE, stream.durable_retained > 0),
        (SUMMARY, stream.summary_retained > 0),
        (LIVE, live and stream.live_retained > 0),
    )
    return tuple(
        stream_key(stream.execution_id, stream.attempt_index, part) for part, present in held if present
    )


async def _read_page(
    engine: Engine, state: StreamState, first: Position, last: Position, limit: int
) -> StreamFrames:
    """Up to ``limit`` frames of all parts in the order of their ids."""
    last = min(last, state.newest)
    found: list[list[Frame]] = []
    if first <= last:
        found = [
            await engine.store.read_frames(part, first=first, last=last, limit=limit) for part in state.parts
        ]
    frames = itertools.islice(heapq.merge(*found, key=_position), limit)
    return StreamFrames(
        frames=tuple(decode_frame(frame) for frame in frames),
        closed_at=state.closed_at,
        closed_reason=state.closed_reason,
    )


def _position(frame: Frame) -> Position:
    return frame.ms, frame.seq


def _first_position(cursor: StreamCursor) -> Position:
    match cursor.value:
        case "start":
            return BEFORE_ALL
        case "end":
            return AFTER_ALL
        case text:
            return parse_position(text, missing_seq=0)


def _last_position(cursor: StreamCursor) -> Position:
    match cursor.value:
        case "start":
            return BEFORE_ALL
        case "end":
            return AFTER_ALL
        case text:
            return parse_position(text, missing_seq=POSITION_MAX)


def _after(position: Position) -> Position:
    """The first position behind this one."""
    ms, seq = position
    return (ms, seq + 1) if seq < POSITION_MAX else (min(ms + 1, POSITION_MAX), 0)

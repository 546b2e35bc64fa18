"""What a running attempt writes: frames, and the journal of its steps."""

from __future__ import annotations

from flowfabric import errors
from flowfabric.contracts.cursors import END, START, StreamCursor
from flowfabric.contracts.executions import CompleteExecutionArgs
from flowfabric.contracts.journal import ReadJournalArgs, RecordSleepArgs, RecordStepArgs
from flowfabric.contracts.streams import (
    AppendFrameArgs,
    BestEffortMode,
    DurableMode,
    ReadFramesArgs,
    ReadSummaryArgs,
    StreamVisibility,
    SummaryMode,
    TailFramesArgs,
)
from flowfabric.core.commands import ExpireLiveFramesArgs
from flowfabric.core.records import Execution, JournalRecord, StreamMeta
from flowfabric.testing.model.draw import Draw, generator, is_held
from flowfabric.testing.model.steps import Pass

LIVE_TTL_MS = 1_000


@generator(AppendFrameArgs)
def append_frame(draw: Draw) -> AppendFrameArgs:
    """A durable one or a live one, in a stream that may be trimmed."""
    return _frame(
        draw,
        draw.running(),
        payload=draw.payload(),
        mode=draw.pick((DurableMode(), DurableMode(), BestEffortMode(ttl_ms=LIVE_TTL_MS, maxlen_floor=1))),
        retention_maxlen=draw.pick((None, None, 1, 3)),
    )


def _frame(draw: Draw, execution: Execution, **fields: object) -> AppendFrameArgs:
    defaults = {"frame_type": "token", "payload": b"frame", "attempt_index": execution.attempt_count - 1}
    return AppendFrameArgs(**{**draw.owned(execution), **defaults, **fields})


@generator(AppendFrameArgs)
def append_summary_patch(draw: Draw) -> AppendFrameArgs:
    """A merge patch to the summary."""
    patch = draw.pick((b'{"a":1}', b'{"a":null}', b'{"b":{"c":[1.5,"x"]}}'))
    return _frame(draw, draw.running(), payload=patch, mode=SummaryMode())


@generator(AppendFrameArgs, provokes=errors.StreamClosed)
def append_frame_after_the_end(draw: Draw) -> AppendFrameArgs:
    """Of the attempt, by the one who held it."""
    ended = [one for one in draw.executions() if one.completed_at is not None and one.attempt is not None]
    return _frame(draw, draw.one_of(ended, CompleteExecutionArgs))


@generator(AppendFrameArgs, provokes=errors.StaleOwnerCannotAppend)
def append_frame_of_another(draw: Draw) -> AppendFrameArgs:
    """With a lease that nobody has."""
    return _frame(draw, draw.running(), lease_id=draw.new_id())


@generator(AppendFrameArgs, provokes=errors.RetentionLimitExceeded)
def append_a_frame_that_is_too_large(draw: Draw) -> AppendFrameArgs:
    """For the cap that the writer names."""
    return _frame(draw, draw.running(), payload=b"1234", max_payload_bytes=3)


@generator(ReadFramesArgs)
def read_frames(draw: Draw) -> ReadFramesArgs:
    """All of them, or some."""
    stream = draw.one_of(draw.world.all(StreamMeta), AppendFrameArgs)
    return ReadFramesArgs(
        execution_id=stream.execution_id,
        attempt_index=stream.attempt_index,
        from_id=draw.pick((START, StreamCursor(f"{stream.last_ms}-0"))),
        to_id=draw.pick((END, StreamCursor(f"{stream.last_ms}-{max(stream.last_seq, 0)}"))),
        count_limit=draw.pick((1, 100)),
        visibility=draw.pick(tuple(StreamVisibility)),
    )


@generator(TailFramesArgs)
def tail_frames(draw: Draw) -> TailFramesArgs:
    """Without waiting, because nobody would write meanwhile."""
    stream = draw.one_of(draw.world.all(StreamMeta), AppendFrameArgs)
    return TailFramesArgs(
        execution_id=stream.execution_id,
        attempt_index=stream.attempt_index,
        after=draw.pick((StreamCursor("0-0"), StreamCursor(f"{stream.last_ms}-{max(stream.last_seq, 0)}"))),
    )


@generator(TailFramesArgs, provokes=errors.InvalidInput)
def tail_frames_from_the_end(draw: Draw) -> TailFramesArgs:
    """Which is no position."""
    return TailFramesArgs(execution_id=draw.execution().execution_id, attempt_index=0, after=END)


@generator(ReadSummaryArgs)
def read_summary(draw: Draw) -> ReadSummaryArgs:
    """Of an attempt that may have one."""
    stream = draw.one_of(draw.world.all(StreamMeta), AppendFrameArgs)
    return ReadSummaryArgs(execution_id=stream.execution_id, attempt_index=stream.attempt_index)


@generator(ExpireLiveFramesArgs)
def expire_live_frames(draw: Draw) -> ExpireLiveFramesArgs:
    """Due or not."""
    live = [one for one in draw.world.all(StreamMeta) if one.live_expires_at is not None]
    stream = draw.one_of(live, AppendFrameArgs)
    if (stream.live_expires_at or 0) > draw.now and draw.chance(0.5):
        draw.one_of([], Pass(milliseconds=LIVE_TTL_MS))
    return ExpireLiveFramesArgs(stream_id=stream.identity)


# Journal


@generator(RecordStepArgs)
def record_step(draw: Draw) -> RecordStepArgs:
    """New, or recorded before."""
    return RecordStepArgs(
        **draw.fenced(draw.running()),
        name=draw.pick(("write", "read")),
        ordinal=draw.pick((0, 1)),
        value=draw.payload(),
    )


@generator(RecordSleepArgs)
def record_sleep(draw: Draw) -> RecordSleepArgs:
    """New, or recorded before."""
    return RecordSleepArgs(
        **draw.fenced(draw.running()), name="nap", ordinal=draw.pick((0, 1)), wake_at=draw.later()
    )


@generator(RecordSleepArgs, provokes=errors.JournalMismatch)
def record_sleep_where_a_step_was(draw: Draw) -> RecordSleepArgs:
    """Under the same name."""
    holders = {one.execution_id: one for one in draw.executions() if is_held(one, draw.now)}
    steps = [
        one
        for one in draw.world.all(JournalRecord)
        if one.kind == "step" and one.execution_id in holders
        if one.generation == holders[one.execution_id].journal_generation
    ]
    step = draw.one_of(steps, RecordStepArgs)
    return RecordSleepArgs(
        **draw.fenced(holders[step.execution_id]), name=step.name, ordinal=step.ordinal, wake_at=draw.now
    )


@generator(ReadJournalArgs)
def read_journal(draw: Draw) -> ReadJournalArgs:
    """Of the current generation."""
    entries = draw.one_of(draw.world.all(JournalRecord), RecordStepArgs)
    return ReadJournalArgs(execution_id=entries.execution_id)

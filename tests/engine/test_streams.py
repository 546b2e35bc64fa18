"""Reading and following frame streams through the engine."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowfabric.contracts.cursors import END, START, StreamCursor
from flowfabric.contracts.executions import CompleteExecutionArgs, FailExecutionArgs
from flowfabric.contracts.policy import ExecutionPolicy, FixedBackoff, RetryPolicy
from flowfabric.contracts.streams import (
    AppendFrameArgs,
    BestEffortMode,
    DurableMode,
    ReadFramesArgs,
    ReadSummaryArgs,
    StreamFrames,
    StreamVisibility,
    SummaryMode,
    TailFramesArgs,
)
from flowfabric.core.commands import ExpireLiveFramesArgs
from flowfabric.core.frames import DURABLE, LIVE, SUMMARY, stream_key
from flowfabric.errors import ExecutionNotFound, InvalidInput, StreamClosed
from tests.core.harness import TTL_MS, new_execution_id
from tests.engine.stage import Stage

LIVE_MODE = BestEffortMode(ttl_ms=1_000)
MODES = {DURABLE: DurableMode(), SUMMARY: SummaryMode(), LIVE: LIVE_MODE}
LONG_MS = 30_000
"""Longer than any test may take: a test that ends was woken."""


@pytest.fixture
async def stage():
    stage = Stage()
    async with stage.engine:
        yield stage


def frame(execution_id, fence, payload=b"{}", *, attempt_index=0, mode=MODES[DURABLE], **fields):
    return AppendFrameArgs(
        execution_id=execution_id,
        attempt_index=attempt_index,
        lease_id=fence.lease_id,
        lease_epoch=fence.lease_epoch,
        attempt_id=fence.attempt_id,
        frame_type="token",
        payload=payload,
        mode=mode,
        **fields,
    )


def complete(execution_id, fence):
    return CompleteExecutionArgs(execution_id=execution_id, fence=fence, attempt_index=0)


async def append_all(stage, commands):
    """Append in one batch, and fail on the first refusal."""
    answers = await stage.engine.execute_many(commands)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


async def read(stage, execution_id, *, attempt_index=0, start=START, end=END, limit=10_000, **fields):
    cursors = [StreamCursor(bound) if isinstance(bound, str) else bound for bound in (start, end)]
    return await stage.engine.execute(
        ReadFramesArgs(
            execution_id=execution_id,
            attempt_index=attempt_index,
            from_id=cursors[0],
            to_id=cursors[1],
            count_limit=limit,
            **fields,
        )
    )


def tail(execution_id, after="0-0", *, attempt_index=0, block_ms=LONG_MS, **fields):
    return TailFramesArgs(
        execution_id=execution_id,
        attempt_index=attempt_index,
        after=StreamCursor(after),
        block_ms=block_ms,
        **fields,
    )


async def waiting(stage, *commands):
    """Start tails, and return once all of them wait."""
    tasks = [asyncio.ensure_future(stage.engine.execute(command)) for command in commands]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    return tasks


def payloads(frames):
    return [frame.payload for frame in frames.frames]


class TestReading:
    @pytest.mark.scenario("STREAM-001")
    async def test_frames_stay_readable_after_the_execution_completed(self, stage):
        execution_id, fence = await stage.start_execution()
        appended = await append_all(stage, [frame(execution_id, fence, text) for text in (b"one", b"two")])
        assert not (await read(stage, execution_id)).is_closed
        await stage.engine.execute(complete(execution_id, fence))
        found = await read(stage, execution_id)
        assert payloads(found) == [b"one", b"two"]
        assert [entry.id for entry in found.frames] == [answer.entry_id for answer in appended]

    @pytest.mark.scenario("STREAM-005")
    async def test_a_frame_is_read_back_with_sorted_fields(self, stage):
        execution_id, fence = await stage.start_execution()
        await stage.engine.execute(frame(execution_id, fence, b"\xff\x00", timestamp=7))
        [found] = (await read(stage, execution_id)).frames
        assert found.payload == b"\xff\x00"
        assert list(found.fields.items()) == [
            ("encoding", "utf8"),
            ("frame_type", "token"),
            ("mode", "durable"),
            ("source", "worker"),
            ("ts", "7"),
        ]

    @pytest.mark.scenario("STREAM-006")
    async def test_an_attempt_that_never_wrote_reads_empty_and_open(self, stage):
        execution_id, _ = await stage.start_execution()
        assert await read(stage, execution_id) == StreamFrames()

    async def test_an_attempt_that_has_not_begun_reads_empty_and_open(self, stage):
        execution_id, fence = await stage.start_execution()
        await append_all(stage, [frame(execution_id, fence), complete(execution_id, fence)])
        assert await read(stage, execution_id, attempt_index=1) == StreamFrames()

    async def test_an_attempt_that_ended_without_a_frame_reads_empty_and_closed(self, stage):
        execution_id, fence = await stage.start_execution()
        await stage.engine.execute(complete(execution_id, fence))
        found = await read(stage, execution_id)
        assert (found.frames, found.closed_reason) == ((), "attempt_success")

    @pytest.mark.parametrize("namespace", [None, "other"])
    async def test_an_execution_one_may_not_see_is_not_found(self, stage, namespace):
        execution_id = new_execution_id() if namespace is None else (await stage.start_execution())[0]
        commands = [
            ReadFramesArgs(execution_id=execution_id, attempt_index=0),
            tail(execution_id),
            ReadSummaryArgs(execution_id=execution_id, attempt_index=0),
        ]
        for command in commands:
            with pytest.raises(ExecutionNotFound):
                await stage.engine.execute(command, namespace=namespace)

    @pytest.mark.scenario("STREAM-007")
    async def test_a_slice_is_continued_behind_its_last_entry(self, stage):
        execution_id, fence = await stage.start_execution()
        await append_all(stage, [frame(execution_id, fence, b"%d" % n) for n in range(50)])
        first = await read(stage, execution_id, limit=20)
        ms, seq = map(int, first.frames[-1].id.split("-"))
        again = await read(stage, execution_id, start=f"{ms}-{seq}")
        rest = await read(stage, execution_id, start=f"{ms}-{seq + 1}")
        assert payloads(first) + payloads(rest) == [b"%d" % n for n in range(50)]
        assert again.frames[0] == first.frames[-1]

    async def test_a_bare_time_means_all_entries_of_that_instant(self, stage):
        execution_id, fence = await stage.start_execution()
        for instant in range(3):
            await append_all(stage, [frame(execution_id, fence, b"%d%d" % (instant, n)) for n in range(2)])
            stage.store.now_ms += 1
        middle = str(stage.store.now_ms - 2)
        assert payloads(await read(stage, execution_id, start=middle)) == [b"10", b"11", b"20", b"21"]
        assert payloads(await read(stage, execution_id, end=middle)) == [b"00", b"01", b"10", b"11"]
        assert payloads(await read(stage, execution_id, start=middle, end=middle)) == [b"10", b"11"]

    @pytest.mark.parametrize(
        "bounds", [("end", "end"), ("start", "start"), ("9" * 400, "end"), ("0-9", "0-1")]
    )
    async def test_bounds_with_nothing_between_them_read_empty(self, stage, bounds):
        execution_id, fence = await stage.start_execution()
        await stage.engine.execute(frame(execution_id, fence))
        assert payloads(await read(stage, execution_id, start=bounds[0], end=bounds[1])) == []

    @pytest.mark.parametrize("bounds", [("0-0", "9" * 5_000), ("1-" + "9" * 400, f"{'9' * 50}-{'9' * 50}")])
    async def test_numbers_beyond_every_entry_are_harmless(self, stage, bounds):
        execution_id, fence = await stage.start_execution()
        await stage.engine.execute(frame(execution_id, fence, b"one"))
        assert payloads(await read(stage, execution_id, start=bounds[0], end=bounds[1])) == [b"one"]

    @pytest.mark.scenario("STREAM-014")
    @pytest.mark.parametrize(
        ("limit", "rule"), [(0, "count_limit must be >= 1"), (10_001, "count_limit_exceeds_hard_cap")]
    )
    async def test_a_limit_out_of_bounds_is_refused(self, stage, limit, rule):
        execution_id, _ = await stage.start_execution()
        with pytest.raises(InvalidInput) as caught:
            await read(stage, execution_id, limit=limit)
        assert caught.value.rule == rule
        with pytest.raises(InvalidInput) as caught:
            await stage.engine.execute(tail(execution_id, count_limit=limit))
        assert caught.value.rule == rule

    @pytest.mark.scenario("STREAM-029")
    async def test_attempts_do_not_mix(self, stage):
        policy = ExecutionPolicy(retry_policy=RetryPolicy(backoff=FixedBackoff(delay_ms=0)))
        execution_id, fence = await stage.start_execution(policy=policy)
        await stage.engine.execute(frame(execution_id, fence, b"first"))
        await stage.engine.execute(
            FailExecutionArgs(
                execution_id=execution_id,
                fence=fence,
                attempt_index=0,
                failure_reason="x",
                failure_category="x",
            )
        )
        found = await read(stage, execution_id)
        assert (payloads(found), found.closed_reason) == ([b"first"], "attempt_failure")
        assert await read(stage, execution_id, attempt_index=1) == StreamFrames()


class TestParts:
    @pytest.mark.scenario("STREAM-022")
    async def test_best_effort_frames_are_left_out_on_request(self, stage):
        execution_id, fence = await stage.start_execution()
        modes = [DURABLE, LIVE, SUMMARY, LIVE]
        await append_all(stage, [frame(execution_id, fence, mode=MODES[mode]) for mode in modes])
        chosen = StreamVisibility.EXCLUDE_BEST_EFFORT
        found = await read(stage, execution_id, visibility=chosen)
        assert [entry.fields["mode"] for entry in found.frames] == ["durable", "summary"]
        assert await stage.engine.execute(tail(execution_id, visibility=chosen)) == found

    async def test_the_filter_is_applied_before_the_count(self, stage):
        execution_id, fence = await stage.start_execution()
        await append_all(stage, [frame(execution_id, fence, mode=LIVE_MODE) for _ in range(5)])
        await stage.engine.execute(frame(execution_id, fence, b"durable"))
        found = await read(stage, execution_id, limit=1, visibility=StreamVisibility.EXCLUDE_BEST_EFFORT)
        assert payloads(found) == [b"durable"]

    async def test_live_frames_vanish_when_their_time_is_over_even_before_they_are_removed(self, stage):
        execution_id, fence = await stage.start_execution()
        await append_all(
            stage, [frame(execution_id, fence, b"kept"), frame(execution_id, fence, mode=LIVE_MODE)]
        )
        stage.store.now_ms += 2_000
        assert payloads(await read(stage, execution_id)) == [b"kept"]

    async def test_removing_expired_frames_leaves_the_others(self, stage):
        execution_id, fence = await stage.start_execution()
        await append_all(
            stage, [frame(execution_id, fence, mode=MODES[part]) for part in (DURABLE, SUMMARY, LIVE)]
        )
        stage.store.now_ms += 2_000
        await stage.engine.execute(ExpireLiveFramesArgs(stream_id=f"{execution_id}/0"))
        kept = [len(await stage.store.read_frames(stream_key(execution_id, 0, part))) for part in MODES]
        assert kept == [1, 1, 0]

    async def test_expired_frames_do_not_come_back_with_a_new_one(self, stage):
        execution_id, fence = await stage.start_execution()
        await append_all(stage, [frame(execution_id, fence, b"old", mode=LIVE_MODE) for _ in range(3)])
        stage.store.now_ms += 2_000
        await append_all(stage, [frame(execution_id, fence, b"new-%d" % n, mode=LIVE_MODE) for n in range(3)])
        assert payloads(await read(stage, execution_id)) == [b"new-0", b"new-1", b"new-2"]

    @pytest.mark.scenario("STREAM-003")
    async def test_an_explicit_window_keeps_exactly_the_newest(self, stage):
        execution_id, fence = await stage.start_execution()
        await append_all(
            stage, [frame(execution_id, fence, b"%d" % n, retention_maxlen=50) for n in range(200)]
        )
        assert payloads(await read(stage, execution_id)) == [b"%d" % n for n in range(150, 200)]

    @pytest.mark.scenario("STREAM-023")
    async def test_the_summary_outlives_the_frames_that_made_it(self, stage):
        execution_id, fence = await stage.start_execution()
        patches = [json.dumps({"n": n}).encode() for n in range(100)]
        await append_all(stage, [frame(execution_id, fence, patch, mode=SummaryMode()) for patch in patches])
        summary = await stage.engine.execute(ReadSummaryArgs(execution_id=execution_id, attempt_index=0))
        assert (summary.document, summary.version) == (b'{"n":99}', 100)
        assert payloads(await read(stage, execution_id)) == patches[-64:]


class TestBatches:
    async def test_a_batch_of_appends_is_one_load_and_one_commit(self, stage):
        execution_id, fence = await stage.start_execution()
        loads, commits = stage.store.loads, stage.store.commits
        commits.clear()
        await append_all(
            stage, [frame(execution_id, fence, b"%d" % n, retention_maxlen=10) for n in range(200)]
        )
        assert (stage.store.loads - loads, len(commits)) == (1, 1)
        assert (len(commits[0].changes), len(commits[0].appends), len(commits[0].trims)) == (1, 200, 1)

    async def test_a_refused_append_does_not_disturb_those_beside_it(self, stage):
        execution_id, fence = await stage.start_execution()
        commands = [frame(execution_id, fence, text) for text in (b"one", b"two")]
        commands[1:1] = [frame(execution_id, fence, b"not json", mode=SummaryMode())]
        answers = await stage.engine.execute_many(commands)
        assert isinstance(answers[1], InvalidInput)
        assert [answers[0].frame_count, answers[2].frame_count] == [1, 2]
        assert payloads(await read(stage, execution_id)) == [b"one", b"two"]

    async def test_nothing_is_appended_behind_the_end_in_the_same_batch(self, stage):
        execution_id, fence = await stage.start_execution()
        commands = [
            frame(execution_id, fence, b"in"),
            complete(execution_id, fence),
            frame(execution_id, fence),
        ]
        answers = await stage.engine.execute_many(commands)
        assert isinstance(answers[2], StreamClosed)
        assert payloads(await read(stage, execution_id)) == [b"in"]

    async def test_windows_of_several_sizes_are_applied_one_after_the_other(self, stage):
        execution_id, fence = await stage.start_execution()
        windows = [3] * 5 + [4, 9]
        await append_all(
            stage, [frame(execution_id, fence, b"%d" % n, retention_maxlen=w) for n, w in enumerate(windows)]
        )
        assert payloads(await read(stage, execution_id)) == [b"2", b"3", b"4", b"5", b"6"]


class Kept:
    """What a stream holds, kept in lists."""

    def __init__(self):
        self.parts: dict[str, list[tuple[int, bytes]]] = {DURABLE: [], SUMMARY: [], LIVE: []}
        self.expires_at = None
        self.count = 0

    def append(self, part, payload, now, window):
        if part == LIVE:
            if self.expires_at is not None and self.expires_at <= now:
                self.parts[LIVE].clear()
            self.expires_at = max(self.expires_at or 0, now + 2_000)
        self.parts[part].append((self.count, payload))
        self.count += 1
        if window:
            del self.parts[part][:-window]

    def visible(self, now):
        live = self.expires_at is not None and self.expires_at > now
        shown = [self.parts[DURABLE], self.parts[SUMMARY], self.parts[LIVE] if live else []]
        return [payload for _, payload in sorted(entry for part in shown for entry in part)]


STEPS = st.lists(
    st.tuples(
        st.sampled_from([DURABLE, SUMMARY, LIVE]),
        st.sampled_from([None, 1, 3, 0]),
        st.sampled_from([0, 0, 1, 1_999, 2_000]),
    ),
    max_size=TTL_MS // 2_000 - 1,  # the lease outlives all pauses
)


@given(STEPS, st.booleans(), st.integers(1, 7))
@settings(max_examples=60)
def test_pages_in_sequence_are_the_frames_that_are_kept(steps, at_once, page_size):
    """Whatever the modes, windows, times and batches; the pages continue behind the last entry."""
    asyncio.run(_compare_with_lists(steps, page_size, at_once=at_once))


async def _compare_with_lists(steps, page_size, *, at_once):
    stage, kept = Stage(), Kept()
    mode = BestEffortMode(ttl_ms=1_000, maxlen_floor=2, maxlen_ceiling=2)
    async with stage.engine:
        execution_id, fence = await stage.start_execution()
        batch: list[AppendFrameArgs] = []
        for number, (part, window, pause_ms) in enumerate(steps):
            if pause_ms and batch:
                await append_all(stage, batch)
                batch = []
            stage.store.now_ms += pause_ms
            payload = b'{"n":%d}' % number
            chosen = mode if part == LIVE else MODES[part]
            batch.append(frame(execution_id, fence, payload, mode=chosen, retention_maxlen=window))
            kept.append(part, payload, stage.store.now_ms, {DURABLE: window, SUMMARY: 64, LIVE: 2}[part])
            if not at_once:
                await append_all(stage, batch)
                batch = []
        if batch:
            await append_all(stage, batch)
        expected = kept.visible(stage.store.now_ms)
        assert payloads(await read(stage, execution_id)) == expected
        assert await _all_pages(stage, execution_id, page_size) == expected


async def _all_pages(stage, execution_id, page_size):
    found: list[bytes] = []
    after = "0-0"
    while True:
        page = await stage.engine.execute(tail(execution_id, after, block_ms=0, count_limit=page_size))
        assert len(page.frames) <= page_size
        if not page.frames:
            return found
        found += payloads(page)
        after = page.frames[-1].id


class TestTailing:
    @pytest.mark.scenario("STREAM-009")
    async def test_an_append_wakes_a_tail(self, stage):
        execution_id, fence = await stage.start_execution()
        [reader] = await waiting(stage, tail(execution_id))
        await stage.engine.execute(frame(execution_id, fence, b"new"))
        assert payloads(await reader) == [b"new"]

    @pytest.mark.scenario("STREAM-011")
    async def test_the_end_of_the_attempt_wakes_a_tail(self, stage):
        execution_id, fence = await stage.start_execution()
        [reader] = await waiting(stage, tail(execution_id))
        await stage.engine.execute(complete(execution_id, fence))
        page = await reader
        assert (page.frames, page.closed_at, page.closed_reason) == (
            (),
            stage.store.now_ms,
            "attempt_success",
        )

    @pytest.mark.scenario("STREAM-011")
    async def test_a_tail_at_the_tip_of_a_closed_stream_does_not_wait(self, stage):
        execution_id, fence = await stage.start_execution()
        appended, _ = await append_all(stage, [frame(execution_id, fence), complete(execution_id, fence)])
        page = await stage.engine.execute(tail(execution_id, appended.entry_id))
        assert (page.frames, page.closed_reason) == ((), "attempt_success")
        assert (await read(stage, execution_id)).closed_reason == "attempt_success"

    async def test_what_is_there_already_is_returned_at_once(self, stage):
        execution_id, fence = await stage.start_execution()
        first, _ = await append_all(stage, [frame(execution_id, fence, text) for text in (b"one", b"two")])
        assert payloads(await stage.engine.execute(tail(execution_id))) == [b"one", b"two"]
        assert payloads(await stage.engine.execute(tail(execution_id, first.entry_id))) == [b"two"]

    @pytest.mark.scenario("STREAM-008")
    async def test_a_tail_without_patience_returns_empty_and_open(self, stage):
        execution_id, _ = await stage.start_execution()
        assert await stage.engine.execute(tail(execution_id, block_ms=0)) == StreamFrames()

    @pytest.mark.scenario("STREAM-008")
    async def test_a_tail_whose_time_is_over_returns_empty_and_open(self, stage):
        execution_id, _ = await stage.start_execution()
        assert await stage.engine.execute(tail(execution_id, block_ms=1)) == StreamFrames()

    @pytest.mark.scenario("STREAM-015")
    @pytest.mark.parametrize("marker", ["start", "end"])
    async def test_a_tail_needs_a_concrete_cursor(self, stage, marker):
        execution_id, _ = await stage.start_execution()
        with pytest.raises(InvalidInput) as caught:
            await stage.engine.execute(tail(execution_id, marker))
        assert caught.value.field == "after"

    @pytest.mark.scenario("STREAM-027")
    async def test_waiting_tails_leave_the_store_alone(self, stage):
        execution_id, fence = await stage.start_execution()
        readers = await waiting(stage, *[tail(execution_id)] * 8)
        loads, frame_reads = stage.store.loads, stage.store.frame_reads
        for _ in range(20):
            await asyncio.sleep(0)
        assert (stage.store.loads, stage.store.frame_reads) == (loads, frame_reads)
        await stage.engine.execute(frame(execution_id, fence, b"new"))
        assert [payloads(page) for page in await asyncio.gather(*readers)] == [[b"new"]] * 8

    async def test_news_of_something_else_is_not_the_end_of_waiting(self, stage):
        execution_id, fence = await stage.start_execution()
        hidden = tail(execution_id, visibility=StreamVisibility.EXCLUDE_BEST_EFFORT)
        [reader] = await waiting(stage, hidden)
        await stage.engine.execute(frame(execution_id, fence, b"live", mode=LIVE_MODE))
        await asyncio.sleep(0)
        await stage.engine.execute(frame(execution_id, fence, b"durable"))
        assert payloads(await reader) == [b"durable"]

    @pytest.mark.scenario("STREAM-031")
    async def test_a_follower_sees_every_frame_in_order_and_then_the_end(self, stage):
        execution_id, fence = await stage.start_execution()

        async def follow():
            seen, after = [], "0-0"
            while True:
                page = await stage.engine.execute(tail(execution_id, after, count_limit=2))
                seen += payloads(page)
                if not page.frames and page.is_closed:
                    return seen, page.closed_reason
                after = page.frames[-1].id if page.frames else after

        follower = asyncio.ensure_future(follow())
        for number, part in enumerate([DURABLE, LIVE, SUMMARY, DURABLE]):
            stage.store.now_ms += number % 2
            await stage.engine.execute(frame(execution_id, fence, b'{"n":%d}' % number, mode=MODES[part]))
        await stage.engine.execute(complete(execution_id, fence))
        assert await follower == ([b'{"n":%d}' % number for number in range(4)], "attempt_success")

    async def test_a_page_never_shows_an_entry_while_an_earlier_one_is_missing(self, stage):
        """Two frames of two parts arrive while a reader has looked at one part only."""
        execution_id, fence = await stage.start_execution()
        await append_all(
            stage, [frame(execution_id, fence, b"0"), frame(execution_id, fence, b"1", mode=LIVE_MODE)]
        )
        read_frames, late = stage.store.read_frames, [b"2", b"3"]

        async def interrupted(stream, **bounds):
            found = await read_frames(stream, **bounds)
            if late:
                texts, late[:] = list(late), []
                await append_all(
                    stage,
                    [
                        frame(execution_id, fence, texts[0]),
                        frame(execution_id, fence, texts[1], mode=LIVE_MODE),
                    ],
                )
            return found

        stage.store.read_frames = interrupted
        first = await stage.engine.execute(tail(execution_id))
        rest = await stage.engine.execute(tail(execution_id, first.frames[-1].id))
        assert payloads(first) + payloads(rest) == [b"0", b"1", b"2", b"3"]

    async def test_stopping_the_engine_ends_every_tail(self):
        stage = Stage()
        async with stage.engine:
            execution_id, _ = await stage.start_execution()
            readers = await waiting(stage, *[tail(execution_id)] * 3)
        assert await asyncio.gather(*readers) == [StreamFrames()] * 3

    async def test_a_tail_that_is_given_up_leaves_no_subscription(self, stage):
        execution_id, _ = await stage.start_execution()
        [reader] = await waiting(stage, tail(execution_id))
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert stage.engine.notifier._waiters == {}

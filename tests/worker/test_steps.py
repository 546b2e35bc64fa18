"""Handlers run again; what they have recorded is not done again."""

import asyncio
import functools
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from msgspec import Struct

from flowfabric import FixedBackoff, FlowFabric, PublishedWaitpoint, SignalTimeout
from flowfabric.contracts.conditions import AllOf, ByName, Composite, Single
from flowfabric.contracts.executions import ReplayExecutionArgs
from flowfabric.contracts.journal import ReadJournalArgs
from flowfabric.contracts.states import PublicState
from flowfabric.contracts.suspensions import FreshWaitpoint, ResumeExecutionArgs
from flowfabric.task import Task
from tests.worker.stage import ended, until_state, work_once, working

AT_ONCE = FixedBackoff(delay_ms=0)


@dataclass
class Page:
    number: int
    words: list[str]


class Cover(Struct, frozen=True):
    title: str


async def write_page(number: int) -> Page:
    await asyncio.sleep(0)
    return Page(number, ["a", "b"])


def make_cover(title: str) -> Cover:
    return Cover(title)


class Printer:
    def cover(self, title: str) -> Cover:
        return Cover(title)

    def __call__(self, title: str) -> Cover:
        return Cover(title)


async def journal_of(app: FlowFabric, execution_id: Any) -> list[tuple[str, int]]:
    page = await app.engine.execute(ReadJournalArgs(execution_id=execution_id))
    return [(entry.name, entry.ordinal) for entry in page.entries]


class Doomed:
    """Fails a handler's first run at its end, so that it runs again."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()

    def count(self, name: str) -> str:
        self.done[name] += 1
        return f"{name} {self.done[name]}"


async def test_recorded_steps_are_not_run_again(app: FlowFabric) -> None:
    doomed = Doomed()

    @app.handler(retries=1, backoff=AT_ONCE)
    async def working_twice(task: Task) -> list[str]:
        found = [await task.step("once", doomed.count, "once") for _ in range(3)]
        doomed.count("outside")
        if task.attempt == 0:
            raise ValueError("first run")
        return found

    view = await work_once(app, working_twice)
    assert doomed.done == {"once": 3, "outside": 2}
    assert view.result == b'["once 1","once 2","once 3"]'


async def test_a_step_that_raises_is_not_recorded(app: FlowFabric) -> None:
    doomed = Doomed()

    @app.handler(retries=1, backoff=AT_ONCE)
    async def trying(task: Task) -> str:
        def unsteady() -> str:
            words = doomed.count("try")
            if task.attempt == 0:
                raise ValueError("not yet")
            return words

        return await task.step("try", unsteady)

    view = await work_once(app, trying)
    assert view.result == b'"try 2"'
    assert await journal_of(app, view.execution_id) == [("try", 0)]


CALLS: list[tuple[Any, tuple[Any, ...], Any]] = [
    (write_page, (3,), Page(3, ["a", "b"])),
    (make_cover, ("x",), Cover("x")),
    (functools.partial(make_cover, "x"), (), Cover("x")),
    (Printer().cover, ("x",), Cover("x")),
    (Printer(), ("x",), Cover("x")),
    (Cover, ("x",), Cover("x")),
    (lambda: make_cover("x"), (), {"title": "x"}),
    (len, ("abc",), 3),
    (lambda: b"\x00raw", (), b"\x00raw"),
    (lambda: None, (), None),
    (lambda: (1, 2), (), [1, 2]),
]


@pytest.mark.parametrize(("function", "arguments", "expected"), CALLS)
async def test_the_first_run_gets_what_later_runs_will_get(
    function: Any, arguments: tuple[Any, ...], expected: Any
) -> None:
    seen: list[Any] = []
    async with FlowFabric("memory://") as app:

        @app.handler(retries=1, backoff=AT_ONCE)
        async def stepping(task: Task) -> None:
            seen.append(await task.step("any", function, *arguments))
            if task.attempt == 0:
                raise ValueError("first run")

        await work_once(app, stepping)
    assert seen == [expected, expected]
    assert type(seen[0]) is type(expected)


async def test_a_step_that_cannot_be_recorded_says_so(app: FlowFabric) -> None:
    def lying() -> int:
        return "text"  # type: ignore[return-value]

    @app.handler(retries=5, backoff=AT_ONCE)
    async def stepping(task: Task, which: str) -> None:
        await task.step(which, {"object": object, "lie": lying, "large": lambda: b"x" * 2_000_000}[which])

    for which, words in (
        ("object", "object has no JSON form"),
        ("lie", "Expected `int`, got `str`"),
        ("large", "the limit is 1048576"),
    ):
        view = await work_once(app, stepping, which)
        assert view.total_attempt_count == 1
        assert f"the result of step {which!r} cannot be recorded" in view.failure_reason
        assert words in view.failure_reason
        assert await journal_of(app, view.execution_id) == []


async def test_concurrent_steps_are_numbered_in_the_order_of_their_calls(app: FlowFabric) -> None:
    @app.handler(retries=1, backoff=AT_ONCE)
    async def gathering(task: Task) -> list[list[int]]:
        async def later(number: int) -> int:
            for _ in range(10 - number):
                await asyncio.sleep(0)
            return number * 10 + task.attempt

        gathered = await asyncio.gather(*(task.step("part", later, n) for n in range(5)))
        first, second = task.step("part", later, 5), task.step("part", later, 6)
        rest = [await second, await first]
        if task.attempt == 0:
            raise ValueError("first run")
        return [list(gathered), rest]

    assert (await work_once(app, gathering)).result == b"[[0,10,20,30,40],[60,50]]"


async def test_steps_inside_a_step_do_not_shift_those_outside(app: FlowFabric) -> None:
    doomed = Doomed()

    @app.handler(retries=1, backoff=AT_ONCE)
    async def nesting(task: Task) -> list[str]:
        async def outer() -> str:
            return await task.step("inner", doomed.count, "inside")

        found = [await task.step("outer", outer), await task.step("inner", doomed.count, "outside")]
        if task.attempt == 0:
            raise ValueError("first run")
        return found

    view = await work_once(app, nesting)
    assert view.result == b'["inside 1","outside 1"]'
    recorded = {("outer[0] > inner", 0), ("outer", 0), ("inner", 0)}
    assert set(await journal_of(app, view.execution_id)) == recorded


async def test_a_step_whose_place_holds_a_wait_is_a_final_failure(app: FlowFabric) -> None:
    @app.handler(retries=5, backoff=AT_ONCE)
    async def changing(task: Task) -> None:
        if task.attempt == 0:
            await task.sleep(0, name="place")
            raise ValueError("first run")
        await task.step("place", int)

    view = await work_once(app, changing)
    assert (view.failure_category, view.total_attempt_count) == ("journal_mismatch", 2)
    assert "place" in view.failure_reason


async def test_the_idempotency_key_stays_over_attempts_and_changes_with_a_replay(app: FlowFabric) -> None:
    keys: list[str] = []

    @app.handler(retries=1, backoff=AT_ONCE)
    async def keeping(task: Task) -> None:
        keys.append(task.idempotency_key)
        if task.attempt == 0:
            raise ValueError("first run")

    async with working(app):
        run = await app.submit(keeping)
        await ended(run)
        await app.engine.execute(ReplayExecutionArgs(execution_id=run.execution_id))
        await ended(run)
    assert keys[0] == keys[1] == f"{run.execution_id}/0"
    assert keys[2] == f"{run.execution_id}/1"


async def test_a_replay_begins_with_an_empty_journal_unless_it_is_kept(app: FlowFabric) -> None:
    doomed = Doomed()

    @app.handler
    async def stepping(task: Task) -> str:
        return await task.step("once", doomed.count, "once")

    async with working(app):
        run = await app.submit(stepping)
        assert await run.result(timeout=60) == "once 1"
        await app.engine.execute(ReplayExecutionArgs(execution_id=run.execution_id))
        assert await run.result(timeout=60) == "once 2"
        await app.engine.execute(ReplayExecutionArgs(execution_id=run.execution_id, keep_journal=True))
        assert await run.result(timeout=60) == "once 2"


# Sleeping and waiting


async def test_a_sleep_holds_no_worker_and_happens_once(app: FlowFabric) -> None:
    runs: list[bool] = []

    @app.handler
    async def sleeping(task: Task) -> str:
        runs.append(task.resumed)
        await task.sleep(timedelta(milliseconds=30))
        await task.sleep(-5)
        return "awake"

    async with working(app, concurrency=1):
        run = await app.submit(sleeping)
        await until_state(run, PublicState.DELAYED)
        other = await app.submit(sleeping)
        assert [await run.result(timeout=60), await other.result(timeout=60)] == ["awake", "awake"]
    assert sorted(runs) == [False, False, True, True]
    assert (await run.view()).total_attempt_count == 1


async def test_a_signal_is_received_once_and_found_again_by_a_retry(app: FlowFabric) -> None:
    @app.handler(retries=1, backoff=AT_ONCE)
    async def waiting(task: Task) -> list[Any]:
        first = await task.wait_for_signal("go", payload_type=Page)
        if task.attempt == 0:
            raise ValueError("first run")
        return [first.payload, first.source_identity]

    async with working(app):
        run = await app.submit(waiting)
        await until_state(run, PublicState.SUSPENDED)
        await run.signal("go", Page(1, []), source_identity="ada")
        assert await run.result(timeout=60) == [{"number": 1, "words": []}, "ada"]


async def test_a_wait_that_times_out_raises_in_every_run(app: FlowFabric) -> None:
    runs: list[str] = []

    @app.handler(retries=1, backoff=AT_ONCE)
    async def waiting(task: Task) -> str:
        try:
            await task.wait_for_signal("go", timeout=0.03)
        except SignalTimeout as error:
            runs.append(str(error))
        if task.attempt == 0:
            raise ValueError("first run")
        return "late"

    assert (await work_once(app, waiting)).result == b'"late"'
    assert runs == ["no signal 'go' came before the wait ended"] * 2


async def test_an_operator_who_resumes_ends_the_wait_without_a_signal(app: FlowFabric) -> None:
    @app.handler
    async def waiting(task: Task) -> str:
        try:
            await task.wait_for_signal("go")
        except SignalTimeout:
            return "resumed"
        return "signalled"

    async with working(app):
        run = await app.submit(waiting)
        await until_state(run, PublicState.SUSPENDED)
        await app.engine.execute(ResumeExecutionArgs(execution_id=run.execution_id))
        assert await run.result(timeout=60) == "resumed"


async def test_a_signal_that_comes_early_to_a_published_waitpoint_ends_the_wait_at_once(
    app: FlowFabric,
) -> None:
    runs: list[bool] = []
    published = asyncio.Event()
    signalled = asyncio.Event()

    @app.handler
    async def waiting(task: Task) -> list[Any]:
        runs.append(task.resumed)
        waitpoint = await task.create_waitpoint("approval")
        other = await task.create_waitpoint("other")
        published.set()
        await signalled.wait()
        first, second = await asyncio.gather(
            task.wait_for_signal("approval", waitpoint=waitpoint),
            task.wait_for_signal("other", waitpoint=other),
        )
        return [first.payload, second.payload]

    async with working(app):
        run = await app.submit(waiting)
        await published.wait()
        await deliver(app, run.execution_id, "approval", 1)
        await deliver(app, run.execution_id, "other", 2)
        signalled.set()
        assert await run.result(timeout=60) == [1, 2]
    assert runs == [False]


async def deliver(app: FlowFabric, execution_id: Any, name: str, value: int) -> None:
    from flowfabric.codec import encode_value
    from flowfabric.contracts.signals import DeliverSignalArgs
    from flowfabric.contracts.suspensions import ListPendingWaitpointsArgs, ReadWaitpointTokenArgs
    from flowfabric.minting import new_signal_id

    pending = await app.engine.execute(ListPendingWaitpointsArgs(execution_id=execution_id))
    [waitpoint_id] = [entry.waitpoint_id for entry in pending.entries if entry.waitpoint_key == name]
    read = ReadWaitpointTokenArgs(execution_id=execution_id, waitpoint_id=waitpoint_id)
    token = await app.engine.execute(read)
    assert token is not None
    payload, encoding = encode_value(value)
    await app.engine.execute(
        DeliverSignalArgs(
            execution_id=execution_id,
            waitpoint_id=waitpoint_id,
            signal_id=new_signal_id(),
            signal_name=name,
            signal_category="",
            source_type="test",
            source_identity="",
            payload=payload,
            payload_encoding=encoding,
            waitpoint_token=token,
        )
    )


async def test_a_resumed_run_and_a_retry_get_the_same_waitpoint(app: FlowFabric) -> None:
    seen: list[PublishedWaitpoint] = []

    @app.handler(retries=1, backoff=AT_ONCE)
    async def publishing(task: Task) -> None:
        waitpoint = await task.create_waitpoint("approval")
        seen.append(waitpoint)
        if task.resumed or task.attempt:
            await task.wait_for_signal("approval", waitpoint=waitpoint)
            return
        await task.sleep(0.01)
        raise ValueError("not resumed")

    async with working(app):
        run = await app.submit(publishing)
        await until_state(run, PublicState.SUSPENDED)
        assert seen[0] == seen[1]
        await run.signal("approval")
        await ended(run)

    seen.clear()

    @app.handler(retries=1, backoff=AT_ONCE)
    async def retrying(task: Task) -> None:
        waitpoint = await task.create_waitpoint("approval")
        seen.append(waitpoint)
        if task.attempt == 0:
            raise ValueError("first run")
        await task.wait_for_signal("approval", waitpoint=waitpoint)

    async with working(app):
        run = await app.submit(retrying)
        await until_state(run, PublicState.SUSPENDED)
        await run.signal("approval")
        assert (await ended(run)).public_state is PublicState.COMPLETED
    assert seen[0] == seen[1] == seen[2]


async def test_a_published_waitpoint_does_not_show_its_token() -> None:
    assert "secret" not in repr(PublishedWaitpoint(waitpoint_id="w", waitpoint_key="k", token="secret"))


async def test_the_full_form_of_suspend_returns_all_signals_in_their_order(app: FlowFabric) -> None:
    from flowfabric.minting import new_waitpoint_id

    @app.handler
    async def waiting(task: Task) -> list[str]:
        waitpoints = tuple(
            FreshWaitpoint(waitpoint_id=new_waitpoint_id(), waitpoint_key=key) for key in ("legal", "money")
        )
        both = Composite(
            body=AllOf(
                members=tuple(
                    Single(
                        waitpoint_key=waitpoint.waitpoint_key, matcher=ByName(name=waitpoint.waitpoint_key)
                    )
                    for waitpoint in waitpoints
                )
            )
        )
        return [signal.signal_name for signal in await task.suspend(both, waitpoints, name="both")]

    async with working(app):
        run = await app.submit(waiting)
        await until_state(run, PublicState.SUSPENDED)
        await run.signal("money")
        assert await run.state() is PublicState.SUSPENDED
        await run.signal("legal")
        assert await run.result(timeout=60) == ["money", "legal"]
    assert ("both", 0) in await journal_of(app, run.execution_id)


async def test_frames_and_progress_are_seen_while_the_handler_runs(app: FlowFabric) -> None:
    going_on = asyncio.Event()

    @app.handler
    async def telling(task: Task) -> None:
        await task.emit("text", "häppy")
        await task.emit("json", {"n": 1}, correlation_id="c")
        await task.emit("bytes", b"\xff")
        await task.progress(10, "began")
        await task.progress(75)
        await going_on.wait()

    async with working(app):
        run = await app.submit(telling)
        frames = []
        async for frame in run.stream():
            frames.append((frame.fields["frame_type"], frame.payload, frame.fields["encoding"]))
            if len(frames) == 3:
                await until_progress(run, 75)
                going_on.set()
    assert frames == [
        ("text", "häppy".encode(), "utf8"),
        ("json", b'{"n":1}', "json"),
        ("bytes", b"\xff", "bytes"),
    ]
    assert (await run.view()).progress_message == "began"


async def until_progress(run: Any, percent: int) -> None:
    from tests.worker.stage import until

    async def reached() -> bool:
        return bool((await run.view()).progress_pct == percent)

    await until(reached)

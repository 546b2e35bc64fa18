"""Claiming, stopping and draining."""

import asyncio
from typing import Any

import pytest

from flowfabric import FlowFabric
from flowfabric.contracts.executions import CompleteExecutionArgs
from flowfabric.contracts.states import PublicState
from flowfabric.engine.layers import Door
from flowfabric.errors import InvalidInput, Unavailable
from flowfabric.stores.memory import MemoryStore
from flowfabric.task import Task
from flowfabric.worker import WorkerOptions
from flowfabric.worker.worker import RUNS_PER_SLOT
from tests.worker.stage import ended, until, until_state, working


@pytest.mark.scenario("LIFE-036")
async def test_what_is_submitted_is_completed_by_the_worker_loop(app: FlowFabric) -> None:
    @app.handler
    async def double(number: int) -> int:
        return 2 * number

    async with working(app):
        runs = await app.submit_many(double, range(50))
        assert [await run.result(timeout=60) for run in runs] == [2 * number for number in range(50)]


@pytest.mark.scenario("LIFE-020")
async def test_three_endings(app: FlowFabric) -> None:
    @app.handler
    async def reporting(task: Task) -> str:
        await task.progress(75)
        await task.emit("frame", "one")
        return "well"

    @app.handler
    async def failing() -> None:
        raise ValueError("badly")

    @app.handler
    async def endless() -> None:
        await asyncio.sleep(60)

    async with working(app, lease_ttl_ms=300):
        well, badly, cancelled = [await app.submit(h) for h in (reporting, failing, endless)]
        await until_state(cancelled, PublicState.ACTIVE)
        await cancelled.cancel()
        views = [await ended(run) for run in (well, badly, cancelled)]
    assert [view.public_state for view in views] == [
        PublicState.COMPLETED,
        PublicState.FAILED,
        PublicState.CANCELLED,
    ]
    assert views[0].progress_pct == 75
    assert len([frame async for frame in well.stream()]) == 1


@pytest.mark.scenario("STREAM-031")
async def test_a_follower_sees_all_frames_in_order_and_then_the_end(app: FlowFabric) -> None:
    @app.handler
    async def emitting(task: Task) -> None:
        for number in range(4):
            await task.emit("number", number)

    run = await app.submit(emitting)
    following = asyncio.create_task(payloads(run))
    async with working(app):
        async with asyncio.timeout(60):
            assert await following == [b"0", b"1", b"2", b"3"]


async def payloads(run: Any) -> list[bytes]:
    return [frame.payload async for frame in run.stream()]


@pytest.mark.scenario("LEASE-011")
async def test_a_busy_worker_claims_nothing(app: FlowFabric) -> None:
    going_on = asyncio.Event()
    done_by: list[int] = []

    @app.handler
    async def waiting(number: int) -> None:
        await going_on.wait()
        done_by.append(number)

    @app.handler(lane="other")
    async def quick() -> str:
        return "done"

    async with working(app, concurrency=1, lanes=["default"]):
        busy = await app.submit(waiting, 1)
        await until_state(busy, PublicState.ACTIVE)
        second = await app.submit(waiting, 2)
        # Work of another worker passes meanwhile, so the busy one had its chance to claim.
        async with working(app, lanes=["other"]):
            assert await (await app.submit(quick)).result(timeout=60) == "done"
        assert await second.state() is PublicState.WAITING
        going_on.set()
        await ended(second)
    assert done_by == [1, 2]


class HoldingBack:
    """A door that lets no completion through until it is opened."""

    def __init__(self, inner: Door, opened: asyncio.Event) -> None:
        self._inner = inner
        self._opened = opened

    async def execute(self, command: Any, **options: Any) -> Any:
        if isinstance(command, CompleteExecutionArgs):
            await self._opened.wait()
        return await self._inner.execute(command, **options)

    async def execute_many(self, commands: Any, **options: Any) -> list[Any]:
        return await self._inner.execute_many(commands, **options)


async def test_a_slot_is_free_as_its_handler_ends_but_only_so_many_outcomes_may_be_on_the_way() -> None:
    opened, begun = asyncio.Event(), list[int]()
    app = FlowFabric(store=MemoryStore(), layers=[lambda door: HoldingBack(door, opened)])

    @app.handler
    async def noting(number: int) -> None:
        begun.append(number)

    @app.handler(lane="other")
    async def failing() -> None:
        raise ValueError("this is no completion")

    async with app, working(app, concurrency=1, lanes=["default"]):
        runs = await app.submit_many(noting, range(5))
        await until(lambda: len(begun) == RUNS_PER_SLOT)
        # Work of another worker passes meanwhile, so this one had its chance to claim.
        async with working(app, lanes=["other"]):
            await ended(await app.submit(failing))
        assert len(begun) == RUNS_PER_SLOT
        opened.set()
        for run in runs:
            await ended(run)
    assert sorted(begun) == list(range(5))


@pytest.mark.scenario("TIME-002")
async def test_a_delayed_execution_runs_in_time_with_all_duties_running(app: FlowFabric) -> None:
    @app.handler
    async def quick() -> str:
        return "done"

    async with working(app):
        started = asyncio.get_running_loop().time()
        run = await app.submit(quick, delay=0.05)
        assert await run.state() is PublicState.DELAYED
        assert await run.result(timeout=60) == "done"
        assert 0.04 < asyncio.get_running_loop().time() - started < 1.0


async def test_work_that_needs_a_capability_goes_to_a_worker_that_has_it(app: FlowFabric) -> None:
    @app.handler(capabilities={"gpu"})
    async def heavy() -> str:
        return "heavy"

    @app.handler
    async def light() -> str:
        return "light"

    async with working(app):
        needy = await app.submit(heavy)
        assert await (await app.submit(light)).result(timeout=60) == "light"
        assert await needy.state() is PublicState.WAITING
        async with working(app, capabilities={"gpu", "other"}):
            assert await needy.result(timeout=60) == "heavy"


async def test_a_higher_priority_is_claimed_first(app: FlowFabric) -> None:
    order: list[int] = []

    @app.handler
    async def noting(number: int) -> None:
        order.append(number)

    runs = [await app.submit(noting, priority, priority=priority) for priority in (0, 5, 1)]
    async with working(app, concurrency=1):
        for run in runs:
            await ended(run)
    assert order == [5, 1, 0]


async def test_a_new_submission_wakes_an_idle_worker(app: FlowFabric) -> None:
    @app.handler
    async def quick() -> None: ...

    async with working(app):
        await ended(await app.submit(quick))
        started = asyncio.get_running_loop().time()
        for _ in range(5):
            await ended(await app.submit(quick))
        assert asyncio.get_running_loop().time() - started < 0.9


async def test_a_stopped_worker_lets_its_handlers_finish(app: FlowFabric) -> None:
    begun: list[int] = []

    @app.handler
    async def slow(task: Task) -> int:
        begun.append(1)
        await asyncio.sleep(0.1)
        return task.attempt

    async with working(app, drain_timeout_s=10.0) as worker:
        run, later = await app.submit_many(slow, [None, None])
        await until(lambda: len(begun) == 2)
        worker.stop()
        waiting = await app.submit(slow)
    assert await run.result(timeout=60) == await later.result(timeout=60) == 0
    assert await waiting.state() is PublicState.WAITING


@pytest.mark.parametrize("how", ["drained", "at once", "cancelled"])
async def test_what_does_not_finish_is_given_back_and_goes_on_elsewhere(app: FlowFabric, how: str) -> None:
    runs: list[tuple[int, bool]] = []

    @app.handler
    async def slow(task: Task) -> str:
        runs.append((task.attempt, task.resumed))
        await task.step("once", runs.append, (0, False))
        if not task.resumed:
            await asyncio.sleep(60)
        return "done"

    worker = app.worker(drain_timeout_s=0.02 if how == "drained" else 60.0)
    working_task = asyncio.create_task(worker.run())
    run = await app.submit(slow)
    await until(lambda: len(runs) == 2)
    await until_state(run, PublicState.ACTIVE)
    if how == "cancelled":
        working_task.cancel()
    else:
        worker.stop()
        worker.stop(at_once=how == "at once")
    async with asyncio.timeout(60):
        await asyncio.gather(working_task, return_exceptions=True)
    assert await run.state() is PublicState.WAITING
    async with working(app):
        assert await run.result(timeout=60) == "done"
    assert runs == [(0, False), (0, False), (0, True)]


async def test_what_was_claimed_while_the_worker_stopped_goes_back_unstarted(app: FlowFabric) -> None:
    started: list[int] = []

    @app.handler
    async def starting() -> None:
        started.append(1)

    run = await app.submit(starting)
    worker = app.worker()
    [lease] = await worker._claim(1)
    worker.stop()
    worker._start(lease)
    await worker.run()
    assert (started, await run.state()) == ([], PublicState.WAITING)


@pytest.mark.slow
async def test_a_handler_that_will_not_end_does_not_hold_up_the_worker(
    app: FlowFabric, caplog: pytest.LogCaptureFixture
) -> None:
    begun, let_go = asyncio.Event(), asyncio.Event()

    @app.handler
    async def stubborn() -> None:
        begun.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    async with working(app):
        await app.submit(stubborn)
        await begun.wait()
    assert "it is left behind" in caplog.text
    let_go.set()
    await asyncio.sleep(0)


async def test_a_worker_ends_loudly_when_its_engine_is_stopped(app: FlowFabric) -> None:
    worker = app.worker()
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    await app.stop()
    with pytest.raises(Unavailable):
        async with asyncio.timeout(60):
            await running


@pytest.mark.parametrize(
    "options",
    [
        {"lanes": []},
        {"lanes": "default"},
        {"lanes": ["x" * 65]},
        {"concurrency": 0},
        {"lease_ttl_ms": 0},
        {"drain_timeout_s": -1.0},
        {"capabilities": {"with space"}},
        {"worker_id": ""},
    ],
    ids=str,
)
async def test_an_option_that_breaks_a_rule_is_refused_at_once(app: FlowFabric, options: Any) -> None:
    with pytest.raises(InvalidInput):
        app.worker(**options)


async def test_the_lanes_of_a_worker_are_those_of_its_handlers(app: FlowFabric) -> None:
    @app.handler(lane="b")
    async def one() -> None: ...

    @app.handler(lane="a")
    async def two() -> None: ...

    assert app.worker().options == WorkerOptions(lanes=("a", "b"))

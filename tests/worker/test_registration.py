"""A worker's place in the registry."""

import asyncio
from typing import Any

import pytest

from flowfabric import FlowFabric
from flowfabric.contracts.workers import ListWorkersArgs, MarkWorkerDeadArgs, WorkerInfo
from flowfabric.errors import StoreUnreachable
from flowfabric.stores.memory import MemoryStore
from flowfabric.task import Task
from tests.worker.stage import until, working

SHORT_MS = 60


async def on_record(app: FlowFabric, **fields: Any) -> tuple[WorkerInfo, ...]:
    return (await app.engine.execute(ListWorkersArgs(**fields))).workers


async def test_a_worker_is_on_record_while_it_works_and_leaves_when_it_ends(app: FlowFabric) -> None:
    app.handler(name="idle")(lambda: None)
    async with working(app, capabilities=frozenset({"gpu"}), concurrency=3) as worker:
        [found] = await until(lambda: on_record(app))
        assert found.worker_instance_id == worker.instance_id
        assert (found.lanes, found.capabilities, found.concurrency) == (("default",), ("gpu",), 3)
        assert found.host
        assert found.pid
    assert await on_record(app) == ()


async def test_a_worker_that_drains_says_so(app: FlowFabric) -> None:
    begun, end = asyncio.Event(), asyncio.Event()

    @app.handler
    async def last(task: Task) -> None:
        begun.set()
        await end.wait()

    async with working(app, drain_timeout_s=10.0) as worker:
        await app.submit(last)
        await begun.wait()
        await until(lambda: on_record(app, lane_id="default"))
        worker.stop()
        await until(lambda: draining(app))
        assert await on_record(app, lane_id="default") == ()
        end.set()


async def draining(app: FlowFabric) -> bool:
    return [worker.draining for worker in await on_record(app)] == [True]


async def test_a_worker_is_heard_of_on_its_own_rhythm(
    app: FlowFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowfabric.worker.worker.WORKER_TTL_MS", SHORT_MS)
    app.handler(name="idle")(lambda: None)
    async with working(app, lease_ttl_ms=SHORT_MS):
        [first] = await until(lambda: on_record(app))

        async def heard_of_again() -> bool:
            return [w.last_heartbeat_ms > first.last_heartbeat_ms for w in await on_record(app)] == [True]

        await until(heard_of_again)


async def test_a_worker_that_was_marked_as_dead_registers_again(
    app: FlowFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowfabric.worker.worker.WORKER_TTL_MS", SHORT_MS)
    app.handler(name="idle")(lambda: None)
    async with working(app, lease_ttl_ms=SHORT_MS) as worker:
        await until(lambda: on_record(app))
        mark = MarkWorkerDeadArgs(
            worker_instance_id=worker.instance_id, namespace=app.namespace, reason="a mistake"
        )
        await app.engine.execute(mark)
        await until(lambda: on_record(app))


async def test_work_is_done_while_the_registry_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise StoreUnreachable("not now")

    async with FlowFabric(store=MemoryStore()) as app:

        @app.handler
        async def double(number: int) -> int:
            return 2 * number

        worker = app.worker()
        monkeypatch.setattr(worker._registration, "_engine", type("Broken", (), {"execute": fail})())
        running = asyncio.create_task(worker.run())
        run = await app.submit(double, 21)
        assert await run.result(timeout=60) == 42
        worker.stop()
        await running

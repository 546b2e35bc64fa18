"""Running a worker in the test's process, and waiting for what it does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from flowfabric import FlowFabric, Run
from flowfabric.contracts.runs import RunView
from flowfabric.contracts.states import PublicState
from flowfabric.engine.engine import Engine
from flowfabric.stores.base import Store
from flowfabric.worker import Worker

PATIENCE_S = 60.0


@asynccontextmanager
async def working(app: FlowFabric, **options: Any) -> AsyncIterator[Worker]:
    """A worker for the app's handlers, which runs until the block is left."""
    worker = app.worker(**{"drain_timeout_s": 0.0, **options})
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await running


def store_of(app: FlowFabric) -> Store:
    """The open store behind the app."""
    assert isinstance(app.engine, Engine)
    return app.engine.store


async def ended(run: Run[Any]) -> RunView:
    """How the run ended."""
    async with asyncio.timeout(PATIENCE_S):
        return await run.wait()


async def until(condition: Callable[[], Any | Awaitable[Any]]) -> Any:
    """Wait until the condition holds. Returns what it gave."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.002)


async def until_state(run: Run[Any], state: PublicState) -> None:
    """Wait until the execution is in this state."""

    async def is_there() -> bool:
        return await run.state() is state

    await until(is_there)


async def work_once(app: FlowFabric, handler: Any, value: Any = None, **options: Any) -> RunView:
    """Submit one execution and let a worker run it to its end."""
    async with working(app):
        return await ended(await app.submit(handler, value, **options))

"""Handlers, worker and scanners together, in real time, without any help from a test."""

import asyncio
from pathlib import Path

import pytest

from flowfabric import FlowFabric

WAIT_S = 60


@pytest.mark.realtime
@pytest.mark.scenario("LIFE-036")
@pytest.mark.parametrize("url", ["memory://", "sqlite:///{path}/work.db?synchronous=NORMAL"])
async def test_submitted_work_is_completed_by_a_worker(url: str, tmp_path: Path):
    ff = FlowFabric(url.format(path=tmp_path))

    @ff.handler
    async def double(number: int) -> int:
        return 2 * number

    async with ff:
        worker = ff.worker()
        running = asyncio.create_task(worker.run())
        run = await ff.submit(double, 21)
        assert await run.result(WAIT_S) == 42
        worker.stop()
        await running

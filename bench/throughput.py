"""How many whole executions a second: submit, claim, handler, complete, with 16 handlers at once."""

from __future__ import annotations

import asyncio
import time

from bench.scene import CONCURRENCY, PAYLOAD, Figure, Scene, running
from flowfabric.contracts.states import PublicState
from flowfabric.run import Run

EXECUTIONS = 9_600
SUBMITTERS = 16
BACKLOG = 1_000
"""Submitters pause when so many executions wait: the queue stays full and the memory small."""


async def measure(url: str, *, executions: int = EXECUTIONS) -> list[Figure]:
    """Submitters keep the queue filled while the worker empties it, in one process."""
    async with running(url) as scene:
        await run_many(scene, executions // 10)
        rate, cpu_us = await run_many(scene, executions)
    return [
        Figure(name="whole executions", value=rate, unit="1/s", floor=3_000, note=f"{CONCURRENCY} handlers"),
        Figure(name="processor time of one", value=cpu_us, unit="us"),
    ]


async def run_many(scene: Scene, executions: int) -> tuple[float, float]:
    """Executions a second, from the first submit until every completion is on disk.

    Returns:
        The rate, and the microseconds of processor time that each took.
    """
    scene.room = asyncio.Semaphore(BACKLOG)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    runs = await asyncio.gather(*(_submitter(scene, executions // SUBMITTERS) for _ in range(SUBMITTERS)))
    submitted = [run for share in runs for run in share]
    last = [run for share in runs for run in share[-BACKLOG // SUBMITTERS - CONCURRENCY :]]
    await asyncio.gather(*(run.wait() for run in last))
    rate = len(submitted) / (time.perf_counter() - begun)
    cpu_us = (time.process_time() - begun_cpu) / len(submitted) * 1e6
    assert {await run.state() for run in submitted} == {PublicState.COMPLETED}
    return rate, cpu_us


async def _submitter(scene: Scene, count: int) -> list[Run[bytes]]:
    runs = []
    for _ in range(count):
        await scene.room.acquire()
        runs.append(await scene.app.submit("echo", PAYLOAD))
    return runs

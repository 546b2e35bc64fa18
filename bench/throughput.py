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
        begun = time.process_time()
        rate = await run_many(scene, executions)
        cpu_us = (time.process_time() - begun) / executions * 1e6
    return [
        Figure(name="whole executions", value=rate, unit="1/s", floor=3_000, note=f"{CONCURRENCY} handlers"),
        Figure(name="processor time of one", value=cpu_us, unit="us"),
    ]


async def run_many(scene: Scene, executions: int) -> float:
    """Executions a second, from the first submit until every completion is on disk."""
    scene.room = asyncio.Semaphore(BACKLOG)
    begun = time.perf_counter()
    runs = await asyncio.gather(*(_submitter(scene, executions // SUBMITTERS) for _ in range(SUBMITTERS)))
    submitted = [run for share in runs for run in share]
    last = [run for share in runs for run in share[-BACKLOG // SUBMITTERS - CONCURRENCY :]]
    await asyncio.gather(*(run.wait() for run in last))
    rate = len(submitted) / (time.perf_counter() - begun)
    assert {await run.state() for run in submitted} == {PublicState.COMPLETED}
    return rate


async def _submitter(scene: Scene, count: int) -> list[Run[bytes]]:
    runs = []
    for _ in range(count):
        await scene.room.acquire()
        runs.append(await scene.app.submit("echo", PAYLOAD))
    return runs

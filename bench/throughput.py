"""How many whole executions a second: submit, claim, handler, complete, with 16 handlers at once."""

from __future__ import annotations

import asyncio
import time

from bench.scene import CONCURRENCY, PAYLOAD, Figure, Scene, running
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
    """Executions a second, from the first submit until the last completion is on disk."""
    begun = time.perf_counter()
    runs = asyncio.Queue[Run[bytes]](BACKLOG)
    ended = asyncio.create_task(_wait_for_all(runs, executions))
    await asyncio.gather(*(_submitter(scene, runs, executions // SUBMITTERS) for _ in range(SUBMITTERS)))
    await ended
    return executions / (time.perf_counter() - begun)


async def _submitter(scene: Scene, runs: asyncio.Queue[Run[bytes]], count: int) -> None:
    for _ in range(count):
        await runs.put(await scene.app.submit("echo", PAYLOAD))


async def _wait_for_all(runs: asyncio.Queue[Run[bytes]], count: int) -> None:
    """Wait for the runs in the order of their submission; most have ended when their turn comes."""
    for _ in range(count):
        await (await runs.get()).wait()

"""How long an idle worker takes to start a handler: after a submit, and after a signal."""

from __future__ import annotations

import asyncio
import time

from bench.scene import PAYLOAD, Figure, Scene, percentile, running
from flowfabric.contracts.states import PublicState

ROUNDS = 200


async def measure(url: str, *, rounds: int = ROUNDS) -> list[Figure]:
    """One execution at a time, so that every submit and every signal meets an idle worker."""
    async with running(url) as scene:
        await submit_latencies(scene, 20)
        submits = await submit_latencies(scene, rounds)
        signals = await signal_latencies(scene, rounds)
    return [
        Figure(name="submit to handler, p50", value=percentile(submits, 0.5), unit="ms", ceiling=5),
        Figure(name="submit to handler, p99", value=percentile(submits, 0.99), unit="ms"),
        Figure(name="signal to handler, p50", value=percentile(signals, 0.5), unit="ms", ceiling=5),
        Figure(name="signal to handler, p99", value=percentile(signals, 0.99), unit="ms"),
    ]


async def submit_latencies(scene: Scene, rounds: int) -> list[float]:
    """Milliseconds from calling submit to the handler's first line."""
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        run = await scene.app.submit("echo", PAYLOAD)
        await run.wait()
        found.append((scene.started.pop(run.execution_id) - begun) * 1_000)
    return found


async def signal_latencies(scene: Scene, rounds: int) -> list[float]:
    """Milliseconds from calling signal to the first line after the wait."""
    found = []
    for _ in range(rounds):
        run = await scene.app.submit("wait_once", PAYLOAD)
        while await run.state() is not PublicState.SUSPENDED:
            await asyncio.sleep(0.001)
        begun = time.perf_counter()
        await run.signal("go", {"approved": True})
        await run.wait()
        found.append((scene.started.pop(run.execution_id) - begun) * 1_000)
    return found

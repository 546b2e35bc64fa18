"""How many durable steps one handler records in a row, each waiting for the disk."""

from __future__ import annotations

from bench.scene import Figure, running

STEPS = 3_000


async def measure(url: str, *, steps: int = STEPS) -> list[Figure]:
    """One handler, one step after the other."""
    async with running(url) as scene:
        warm = await scene.app.submit("many_steps", steps // 10)
        await warm.result()
        run = await scene.app.submit("many_steps", steps)
        seconds = float(await run.result())
    return [Figure(name="durable steps in a row", value=steps / seconds, unit="1/s", floor=1_500)]

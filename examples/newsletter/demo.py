"""A newsletter made by a flow: ``python demo.py``."""

import asyncio
import sys
import tempfile
from pathlib import Path

from flowfabric import FlowFabric, Task, quorum

PATIENCE_S = 10.0
SLOW_S = 60.0


def make_app(url: str) -> FlowFabric:
    """The handlers of the flow's members."""
    ff = FlowFabric(url)

    @ff.handler
    async def read(source: str) -> str:
        if source == "archive":
            await asyncio.sleep(SLOW_S)
        return f"news of {source}"

    @ff.handler
    async def weather() -> str:
        return "sunny"

    @ff.handler
    async def digest(task: Task) -> list[str]:
        return sorted((await task.inputs(str)).values())

    @ff.handler
    async def send(task: Task, reader: str) -> str:
        parts = await task.inputs()
        return f"Dear {reader}: {', '.join(parts['digest'])}; the weather is {parts['weather']}."

    return ff


async def main(url: str) -> bool:
    """Make the newsletter; returns whether everything went as it should."""
    async with make_app(url) as ff:
        worker = asyncio.create_task(ff.run_worker())
        flow = ff.flow("newsletter")
        sources = [flow.add("read", name) for name in ("town", "harbour", "archive")]
        digest = flow.add("digest", after=quorum(2, sources))
        flow.add("send", "Ada", after=[digest, flow.add("weather")])
        run = await ff.submit_flow(flow, idempotency_key="newsletter of today")
        letter = (await run.result(timeout=PATIENCE_S))["send"]
        print(letter)
        states = [str(member.public_state) async for member in run.members()]
        print("members:", ", ".join(states))
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    expected = "Dear Ada: news of harbour, news of town; the weather is sunny."
    return letter == expected and states.count("cancelled") == 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(not asyncio.run(main(f"sqlite:///{Path(folder) / 'newsletter.db'}")))

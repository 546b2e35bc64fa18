"""Apps and workers that know nothing but a server's address; servers and workers that are killed."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

import flowfabric
from flowfabric import FlowFabric, Task, errors
from flowfabric.audit import audit
from flowfabric.contracts.states import PublicState
from flowfabric.engine.engine import Engine
from flowfabric.urls import store_for
from tests import postgres, valkey
from tests.worker.stage import until, until_state, working

pytestmark = pytest.mark.realtime

SCENES = Path(__file__).parents[1] / "worker" / "scenes.py"
TOKEN = "token-of-the-tests"
EXECUTIONS = 60


STORES: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/work.db?synchronous=NORMAL",
    "postgres": lambda folder: postgres.durable_server().url(schema=postgres.schema_of(folder)),
    "valkey": lambda folder: valkey.server().url(prefix=valkey.prefix_of(folder)),
}


class Site:
    """Servers on one store, and workers that reach it only through them."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.store_url = STORES[store](folder)
        self.processes: list[asyncio.subprocess.Process] = []
        sources = str(Path(str(flowfabric.__file__)).parents[1])
        self._environment = {**os.environ, "PYTHONPATH": sources, "FF_API_TOKEN": TOKEN, "FF_TOKEN": TOKEN}

    async def serve(self, port: int) -> asyncio.subprocess.Process:
        """Start a server and wait until it answers."""
        words = ("-m", "flowfabric", "server", "--url", self.store_url, "--listen", f"127.0.0.1:{port}")
        process = await self._spawn(*words)

        async def answers() -> bool:
            try:
                return (await client.get(f"http://127.0.0.1:{port}/readyz")).is_success
            except httpx.TransportError:
                return False

        async with httpx.AsyncClient() as client:
            await until(answers)
        return process

    async def work(self, port: int) -> asyncio.subprocess.Process:
        """Start a worker that knows this server only, and wait until it is about to claim."""
        process = await self._spawn(str(SCENES), f"http://127.0.0.1:{port}", str(self.folder), "1200", "4")
        workers = self.folder / "workers"
        await until(lambda: workers.exists() and f"ready {process.pid}" in workers.read_text())
        return process

    async def _spawn(self, *words: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(sys.executable, *words, env=self._environment)
        self.processes.append(process)
        return process

    async def end(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(params=["sqlite"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path, request.param)
    yield made
    await made.end()


async def test_an_app_and_its_worker_need_only_the_address(site: Site) -> None:
    port = free_port()
    await site.serve(port)
    app = FlowFabric(f"http://127.0.0.1:{port}", token=TOKEN)

    @app.handler
    async def ask(task: Task, name: str) -> str:
        await task.emit("word", f"asking {name}")
        greeting = await task.step("greet", lambda: f"hello {name}")
        verdict = await task.wait_for_signal("go")
        return f"{greeting}: {verdict.payload}"

    async with app, working(app):
        run = await app.submit(ask, "ana", delay=0.001)
        await until_state(run, PublicState.SUSPENDED)
        await run.signal("go", "yes")
        assert await run.result(timeout=60) == "hello ana: yes"
        frames = [frame.fields["frame_type"] async for frame in run.stream()]
        assert frames.count("word") == 2


async def test_a_stranger_is_not_let_in(site: Site) -> None:
    port = free_port()
    await site.serve(port)
    with pytest.raises(errors.Unauthorized):
        await FlowFabric(f"http://127.0.0.1:{port}", token="wrong").start()


async def test_a_server_that_is_not_there_is_said_to_be_unreachable() -> None:
    with pytest.raises(errors.StoreUnreachable):
        await FlowFabric(f"http://127.0.0.1:{free_port()}").start()


@pytest.mark.slow
@pytest.mark.parametrize("site", list(STORES), indirect=True)
async def test_nothing_is_lost_when_a_server_and_a_worker_are_killed(site: Site) -> None:
    """Two servers on one store, a worker on each; one of both kinds is killed in the middle."""
    first_port, second_port = free_port(), free_port()
    first = await site.serve(first_port)
    await site.serve(second_port)
    worker = await site.work(first_port)
    await site.work(second_port)
    app = FlowFabric(f"http://127.0.0.1:{second_port}", token=TOKEN)
    async with app:
        runs = await app.submit_many("count", list(range(EXECUTIONS)))
        counted = site.folder / "counts"
        await until(lambda: counted.exists() and len(counted.read_text().splitlines()) > EXECUTIONS // 6)
        for process in (first, worker):
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await site.serve(first_port)
        await site.work(first_port)
        results = await asyncio.gather(*(run.result(timeout=60) for run in runs))
    assert sorted(results) == list(range(EXECUTIONS))
    await site.end()
    async with Engine(store_for(site.store_url)) as engine:
        assert (await audit(engine)).violations == ()

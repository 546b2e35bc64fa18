"""Real server processes: how they end, and that several of them on one store do everything once."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

import flowfabric
from flowfabric import FlowFabric
from flowfabric.audit import audit
from flowfabric.contracts.events import Family
from flowfabric.contracts.states import PublicState
from flowfabric.engine.engine import Engine
from flowfabric.urls import store_for
from tests.server.conftest import CREATION, EXECUTION
from tests.worker.stage import until

pytestmark = pytest.mark.realtime

PATIENCE_S = 60.0
EXECUTIONS = 60
CLAIM = {"lanes": ["nothing-here"], "worker_id": "w", "worker_instance_id": "i", "lease_ttl_ms": 60_000}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class Site:
    """Server processes on one SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.store_url = f"sqlite:///{folder}/work.db?synchronous=NORMAL"
        self.folder = folder
        self.processes: list[asyncio.subprocess.Process] = []
        self.log = folder / "log"

    async def serve(
        self, address: str | None = None, **variables: str
    ) -> tuple[asyncio.subprocess.Process, str]:
        """Start a server, wait until it is ready, and return where it is."""
        address = address or f"127.0.0.1:{free_port()}"
        sources = str(Path(str(flowfabric.__file__)).parents[1])
        environment = {**os.environ, "PYTHONPATH": sources, "FF_URL": self.store_url, "FF_LOG_FORMAT": "json"}
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "flowfabric", "server", "--listen", address),
                env={**environment, **variables},
                stderr=log,
            )
        self.processes.append(process)

        async def is_ready() -> bool:
            assert process.returncode is None, self.log.read_text()
            try:
                return (await client.get("/readyz")).is_success
            except httpx.TransportError:
                return False

        async with httpx.AsyncClient(base_url=f"http://{address}") as client:
            await until(is_ready)
        return process, address

    def messages(self) -> list[str]:
        return [json.loads(line)["message"] for line in self.log.read_text().splitlines()]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    yield made
    for process in made.processes:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ended(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(PATIENCE_S):
        return await process.wait()


async def waiting(client: httpx.AsyncClient, count: int) -> None:
    """Wait until so many requests wait on the server."""

    async def all_wait() -> bool:
        text = (await client.get("/metrics")).text
        return f"ff_http_requests_waiting {count}.0" in text

    await until(all_wait)


@pytest.mark.scenario("BOOT-006")
async def test_a_server_that_is_told_to_stop_lets_everybody_go_and_ends_well(site: Site) -> None:
    process, address = await site.serve(FF_METRICS="on")
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=30) as client:
        await client.post("/v1/executions", json=CREATION)
        mark = (await client.get("/v1/changes")).json()["mark"]
        tail = f"{EXECUTION}/attempts/0/stream/tail?block_ms=20000"
        requests = [
            *(client.post("/v1/claims?wait_ms=20000", json=CLAIM) for _ in range(4)),
            *(client.get(f"/v1/changes?after={mark}&wait_ms=20000") for _ in range(4)),
            *(client.get(tail) for _ in range(16)),
        ]
        asked = [asyncio.create_task(request) for request in requests]
        await waiting(client, len(asked))
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {503}
        assert await ended(process) == 0
        with pytest.raises(httpx.TransportError):
            await client.get("/healthz")
    assert "the server stopped by SIGTERM" in site.messages()
    async with Engine(store_for(site.store_url)) as engine:
        assert (await audit(engine)).violations == ()


@pytest.mark.scenario("BOOT-006")
async def test_a_request_that_does_not_end_is_cut_off_when_its_time_is_over(site: Site) -> None:
    process, address = await site.serve(FF_SHUTDOWN_TIMEOUT_MS="100")
    writer = await half_a_request(address)
    process.send_signal(signal.SIGTERM)
    assert await ended(process) == 0
    writer.close()
    assert "requests were cut off, because they did not end in time" in site.messages()


async def test_a_second_signal_ends_a_server_at_once(site: Site) -> None:
    process, address = await site.serve(FF_SHUTDOWN_TIMEOUT_MS="60000")
    writer = await half_a_request(address)
    process.send_signal(signal.SIGTERM)
    await until(lambda: any("SIGTERM received" in message for message in site.messages()))
    process.send_signal(signal.SIGTERM)
    assert await ended(process) == 130
    writer.close()


async def half_a_request(address: str) -> asyncio.StreamWriter:
    """Begin a request whose body never ends, and wait until the server reads it."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"POST /v1/flows HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
    assert b"100" in await asyncio.wait_for(reader.readline(), PATIENCE_S)
    return writer


# Several servers on one store


async def test_several_servers_share_the_background_duties_without_doing_anything_twice(site: Site) -> None:
    """Executions pass their deadline and end once each, although three servers look and one is killed."""
    servers = [await site.serve() for _ in range(3)]
    app = FlowFabric(f"http://{servers[1][1]}")
    async with app:
        deadline = datetime.now(UTC) + timedelta(seconds=0.5)
        runs = await app.submit_many("nobody-runs-it", list(range(EXECUTIONS)), deadline=deadline)
        servers[0][0].send_signal(signal.SIGKILL)
        await servers[0][0].wait()

        async def all_ended() -> bool:
            return {await run.state() for run in runs} == {PublicState.EXPIRED}

        await until(all_ended)
    for process, _ in servers[1:]:
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
    async with Engine(store_for(site.store_url)) as engine:
        assert (await audit(engine)).violations == ()
        events = await engine.store.read_events(0, families=frozenset({Family.COMPLETION}), limit=1_000)
    assert sorted(one.event.execution_id for one in events) == sorted(run.execution_id for run in runs)


async def test_a_worker_outlives_the_graceful_end_of_its_server(site: Site) -> None:
    """A server that is restarted takes no worker with it: what it says is no reason to end."""
    process, address = await site.serve()
    app = FlowFabric(f"http://{address}")

    @app.handler
    async def echo(text: str) -> str:
        return text

    async with app:
        worker = app.worker()
        working = asyncio.create_task(worker.run())
        assert await (await app.submit(echo, "before")).result(timeout=PATIENCE_S) == "before"
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
        await site.serve(address)
        assert await (await app.submit(echo, "after")).result(timeout=PATIENCE_S) == "after"
        worker.stop()
        await working

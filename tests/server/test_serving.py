"""The server on a real socket: slow and endless heads, and how it ends."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from flowfabric import errors
from flowfabric.contracts.reads import ServerTimeArgs
from flowfabric.engine.engine import Engine
from flowfabric.remote import HttpEngine
from flowfabric.server.serving import Server, make_server
from flowfabric.server.settings import read_settings
from flowfabric.stores.memory import MemoryStore
from tests.server.conftest import CREATION, EXECUTION

pytestmark = pytest.mark.realtime


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[tuple[Server, int]]:
    port = free_port()
    environment = {name: str(value) for name, value in settings.items()}
    async with Engine(MemoryStore()) as engine:
        server = make_server(engine, read_settings({"listen": f"127.0.0.1:{port}"}, environment, None))
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield server, port
        finally:
            server.stop()
            await running


async def first_line(port: int, *pieces: bytes) -> bytes:
    """What the server says to a client that sends this and then waits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    line = await asyncio.wait_for(reader.readline(), 60)
    writer.close()
    return line


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x"])
async def test_a_head_that_never_ends_is_given_up(sent: bytes) -> None:
    async with serving(FF_HEAD_TIMEOUT_MS="100") as (_, port):
        assert b"408" in await first_line(port, sent)


async def test_a_head_beyond_the_limit_is_given_up() -> None:
    async with serving() as (_, port):
        endless = [b"GET / HTTP/1.1\r\n", *(b"x-%d: %s\r\n" % (n, b"y" * 8_000) for n in range(60))]
        try:
            line = await first_line(port, *endless)
        except ConnectionError:
            return
        assert b"431" in line or b"400" in line


async def test_a_body_that_never_ends_is_given_up() -> None:
    head = (
        b"POST /v1/flows HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    async with serving(FF_BODY_TIMEOUT_MS="100") as (_, port):
        assert b"408" in await first_line(port, head)


@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
    ],
)
async def test_a_request_that_can_be_read_in_two_ways_is_refused(request_: bytes) -> None:
    async with serving() as (_, port):
        assert b" 400" in await first_line(port, request_)


async def test_a_server_that_ends_lets_go_of_those_who_wait() -> None:
    async with (
        serving() as (server, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        mark = (await client.get("/v1/changes")).json()["mark"]
        query = {"after": mark, "wait_ms": 20_000}
        waiting = asyncio.create_task(client.get("/v1/changes", params=query))
        while not server.service.waiting:
            await asyncio.sleep(0.005)
        server.stop()
        assert (await waiting).status_code == 503


async def test_a_client_that_has_gone_is_given_no_work() -> None:
    claim = b'{"lanes": ["default"], "worker_id": "w", "worker_instance_id": "i", "lease_ttl_ms": 60000}'
    head = b"POST /v1/claims?wait_ms=20000 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"FlowFabric-Namespace: demo\r\nContent-Length: %d\r\n\r\n" % len(claim)
    async with serving() as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + claim)
        while not server.service.waiting:
            await asyncio.sleep(0.005)
        writer.close()
        await writer.wait_closed()
        while server.server_state.connections:
            await asyncio.sleep(0.005)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await client.post("/v1/executions", json=CREATION)
            while server.service.waiting:
                await asyncio.sleep(0.005)
            assert (await client.get(f"{EXECUTION}/state")).json() == "waiting"


async def test_a_client_that_stops_has_the_answers_to_what_it_sent() -> None:
    async with serving() as (_, port):
        engine = HttpEngine(f"http://127.0.0.1:{port}")
        await engine.start()
        asked = [asyncio.create_task(engine.execute(ServerTimeArgs())) for _ in range(600)]
        await asyncio.sleep(0)
        await engine.stop()
        assert all(answer.now_ms for answer in await asyncio.gather(*asked))
        with pytest.raises(errors.Unavailable):
            await engine.execute(ServerTimeArgs())


async def test_a_client_finds_the_engine_behind_the_server() -> None:
    async with serving() as (_, port), HttpEngine(f"http://127.0.0.1:{port}") as engine:
        assert engine.durability is not None
        assert engine.durability.store == "memory"

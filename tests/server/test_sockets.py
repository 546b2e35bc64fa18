"""What arrives on a socket that no client of ours would send: nothing of it is read in two ways."""

from __future__ import annotations

import asyncio
import contextlib
import resource

import httpx
import pytest

from flowfabric.server import Role, entry_for
from tests.server.test_serving import serving

pytestmark = pytest.mark.realtime

PATIENCE_S = 30
GOOD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SMUGGLED = b"GET /v1/server HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
POST = b"POST /v1/flows HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def exchange(port: int, *pieces: bytes, ends: bool = False) -> bytes:
    """Everything that the server says until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if ends:
                writer.write_eof()
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def statuses(answer: bytes) -> list[int]:
    """The statuses of the answers in what a server said."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


DOUBTFUL = {
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}" + SMUGGLED,
    "two lengths in one": POST + b"Content-Length: 2, 40\r\n\r\n{}" + SMUGGLED,
    "a length with a sign": POST + b"Content-Length: +2\r\n\r\n{}" + SMUGGLED,
    "a length in hexadecimal": POST + b"Content-Length: 0x2\r\n\r\n{}" + SMUGGLED,
    "an endless length": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n{}",
    "a length and chunks": POST
    + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    + SMUGGLED,
    "chunks and a length": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n"
    + SMUGGLED,
    "a chunk beyond all numbers": POST
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"F" * 20
    + b"\r\n{}\r\n0\r\n\r\n",
    "a chunk below zero": POST + CHUNKED + b"\r\n-2\r\n{}\r\n0\r\n\r\n",
    "a chunk that is no number": POST + CHUNKED + b"\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than it says": POST
    + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n"
    + SMUGGLED,
    "a space before the colon": POST + b"Content-Length : 2\r\n\r\n{}" + SMUGGLED,
    "a head that is folded": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c: d\r\n\r\n",
    "a head without a colon": b"GET /healthz HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n",
    "a head without a name": b"GET /healthz HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
    "a zero byte in a head": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
    "a zero byte in the line": b"GET /health\x00z HTTP/1.1\r\nHost: x\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "another version": b"GET /healthz HTTP/7.3\r\nHost: x\r\n\r\n",
    "another protocol": b"GET /healthz FTP/1.1\r\nHost: x\r\n\r\n",
    "no method": b" /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method of letters": b"G" * 5_000 + b" / HTTP/1.1\r\nHost: x\r\n\r\n",
    "the beginning of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
    "HTTP/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("name", DOUBTFUL)
async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(name: str) -> None:
    async with serving(FF_API_TOKEN="t", FF_HEAD_TIMEOUT_MS="500", FF_BODY_TIMEOUT_MS="500") as (_, port):
        told = statuses(await exchange(port, DOUBTFUL[name], ends=True))
        assert len(told) <= 1
        assert all(status >= 400 for status in told)
        assert statuses(await exchange(port, LAST)) == [200]


async def test_requests_that_are_sent_at_once_are_answered_in_their_order() -> None:
    unknown = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving() as (_, port):
        assert statuses(await exchange(port, GOOD + unknown + GOOD + unknown + LAST)) == [
            200,
            404,
            200,
            404,
            200,
        ]


async def test_a_body_is_no_request() -> None:
    length = b"Content-Length: %d\r\n\r\n" % len(SMUGGLED)
    async with serving() as (_, port):
        assert statuses(await exchange(port, POST + length + SMUGGLED + LAST)) == [400, 200]


async def test_two_tokens_are_none(tmp_path) -> None:
    tokens = tmp_path / "tokens.toml"
    entry = entry_for("good", "ana", (Role.ADMIN,), None)
    tokens.write_text(f'[[token]]\nname="ana"\nsha256="{entry.sha256}"\nroles=["admin"]\n')
    one = b"Authorization: Bearer good\r\n"
    async with serving(FF_TOKENS_FILE=str(tokens)) as (_, port):
        for heads, status in ((one, 200), (one * 2, 401), (one + b"authorization: Bearer bad\r\n", 401)):
            request = b"GET /v1/server HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + heads + b"\r\n"
            assert statuses(await exchange(port, request)) == [status]


async def test_what_a_proxy_may_say_is_not_believed() -> None:
    heads = b"X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-HTTP-Method-Override: POST\r\n"
    request = b"GET /v1/flows HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n" + heads + b"\r\n"
    async with serving() as (_, port):
        answer = await exchange(port, request)
    assert statuses(answer) == [405]
    assert b"evil" not in answer


@pytest.mark.parametrize("sent", [b"", b"GET", GOOD[:-2], POST + b"Content-Length: 9\r\n\r\n{"])
async def test_a_client_that_stops_in_the_middle_is_let_go(sent: bytes) -> None:
    async with serving() as (server, port):
        told = statuses(await exchange(port, sent, ends=True))
        assert all(status >= 400 for status in told)
        async with asyncio.timeout(PATIENCE_S):
            while server.server_state.connections:
                await asyncio.sleep(0.005)


async def test_those_who_send_slowly_are_let_go_and_others_are_served_meanwhile() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with (
        serving(FF_HEAD_TIMEOUT_MS="2000", FF_BODY_TIMEOUT_MS="2000") as (server, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        slow = [GOOD[:-2], POST + b"Content-Length: 9000\r\n\r\n{"] * 150
        waiting = [asyncio.create_task(exchange(port, piece)) for piece in slow]
        async with asyncio.timeout(PATIENCE_S):
            while len(server.server_state.connections) < len(slow):
                await asyncio.sleep(0.005)
        assert (await client.get("/healthz")).status_code == 200
        answers = [statuses(answer) for answer in await asyncio.gather(*waiting)]
    assert answers == [[408]] * len(slow)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 * 1024


async def test_those_who_are_too_many_are_told_so_and_places_become_free() -> None:
    async with serving(FF_MAX_CONNECTIONS="4") as (server, port):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        assert statuses(await exchange(port, LAST)) == [503]
        for _, writer in idle:
            writer.close()
        async with asyncio.timeout(PATIENCE_S):
            while server.server_state.connections:
                await asyncio.sleep(0.005)
        assert statuses(await exchange(port, LAST)) == [200]


async def said_until_the_end(reader: asyncio.StreamReader) -> bytes:
    """What a server says until it closes the connection, which may happen while it is sent more."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65_536):
            said += piece
    return said


async def drip(port: int, head: bytes) -> bytes:
    """Send a head, and then its body byte by byte for as long as the server takes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    answer = asyncio.create_task(said_until_the_end(reader))
    async with asyncio.timeout(PATIENCE_S):
        while not answer.done():
            writer.write(b" ")
            await asyncio.sleep(0.02)
    writer.close()
    return await answer


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (POST + b"Content-Length: 60000\r\n\r\n", 408),
        (POST + b"Content-Length: 60000000\r\n\r\n", 413),
        (b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n", 404),
    ],
)
async def test_whoever_goes_on_sending_what_was_refused_is_let_go(head: bytes, status: int) -> None:
    async with serving(FF_HEAD_TIMEOUT_MS="300", FF_BODY_TIMEOUT_MS="300") as (_, port):
        assert statuses(await drip(port, head)) == [status]


async def test_a_refused_body_that_arrives_in_time_leaves_the_connection_open() -> None:
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        async with asyncio.timeout(PATIENCE_S):
            assert b"404" in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"{}" + LAST)
            assert statuses(await reader.read()) == [200]
        writer.close()

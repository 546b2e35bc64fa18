"""Whoever sends a token on a way that others can read is told so."""

from __future__ import annotations

import asyncio
import ssl

import httpx
import pytest
import trustme

from flowfabric import errors
from flowfabric.remote import HttpEngine
from tests.remote.test_retries import Server


async def start(url: str) -> None:
    async with HttpEngine(url, token="word", transport=httpx.MockTransport(Server())):
        pass


@pytest.mark.parametrize(
    "url", ["http://flows.example", "http://192.0.2.1:9090", "http://[2001:db8::1]:9090"]
)
async def test_a_server_reached_in_clear_is_told_of(url: str, caplog: pytest.LogCaptureFixture) -> None:
    await start(url)
    [message] = [text for text in caplog.messages if "can be read on the way" in text]
    assert url in message
    assert "word" not in message


@pytest.mark.parametrize(
    "url", ["https://flows.example", "http://localhost:9090", "http://127.0.0.1:9090", "http://[::1]:9090"]
)
async def test_no_risk_no_words(url: str, caplog: pytest.LogCaptureFixture) -> None:
    await start(url)
    assert "can be read on the way" not in caplog.text


async def test_a_server_of_an_unknown_authority_is_told_nothing() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    met: list[asyncio.StreamWriter] = []

    async def meet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer)
        writer.close()

    async with await asyncio.start_server(meet, "127.0.0.1", 0, ssl=context) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(errors.StoreUnreachable, match="cannot be reached"):
            await HttpEngine(f"https://127.0.0.1:{port}", token="word").start()
    assert met == []

"""Behind a pooler that hands every transaction to another connection of the server."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from flowfabric.stores.postgres import PostgresStore
from flowfabric.testing import Bed
from tests.postgres import PORT, Server, schema_of, server
from tests.stores.builders import commit, counter, creation, event, record_of

BACKENDS = 2
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Pooler:
    """Holds several server connections for each client and changes over when a transaction ends.

    Stricter than a real pooler: no two transactions after each other meet the same session.
    """

    def __init__(self, target: Server, folder: Path) -> None:
        self._target = str(target.folder / f".s.PGSQL.{PORT}")
        self._path = str(folder / f".s.PGSQL.{PORT}")
        self._listening: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self.changes = 0

    async def __aenter__(self) -> Self:
        self._listening = await asyncio.start_unix_server(self._accept, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listening is not None
        self._listening.close()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        backends: list[Streams] = []
        try:
            length = await reader.readexactly(4)
            startup = length + await reader.readexactly(struct.unpack("!I", length)[0] - 4)
            for number in range(BACKENDS):
                backend = await asyncio.open_unix_connection(self._target)
                backends.append(backend)
                backend[1].write(startup)
                greeting = await _until_ready(backend[0])
                if number == 0:
                    writer.write(greeting)
            await self._relay(reader, writer, backends)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for _, closing in [*backends, (reader, writer)]:
                closing.close()
                with suppress(ConnectionError):
                    await closing.wait_closed()
            self._clients.discard(task)

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, backends: list[Streams]
    ) -> None:
        current = 0
        while True:
            kind, message = await _message(reader)
            if kind == b"X":
                return
            backends[current][1].write(message)
            if kind == b"H":  # flush: the answers so far are wanted, and the transaction goes on
                while True:
                    kind, message = await _message(backends[current][0])
                    writer.write(message)
                    if kind in (b"T", b"n", b"E"):
                        break
            elif kind in (b"Q", b"S"):
                answer = await _until_ready(backends[current][0])
                writer.write(answer)
                if answer[-1:] == b"I":
                    current = (current + 1) % BACKENDS
                    self.changes += 1


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)


async def _until_ready(reader: asyncio.StreamReader) -> bytes:
    """Everything up to «ready for query», whose last byte says whether a transaction is open."""
    found = b""
    while True:
        kind, message = await _message(reader)
        found += message
        if kind == b"Z":
            return found


@pytest.fixture
async def pooler(tmp_path: Path) -> AsyncIterator[Pooler]:
    async with Pooler(server(), tmp_path) as pooler:
        yield pooler


def through(pooler: Pooler, path: Path, **options: Any) -> PostgresStore:
    url = f"postgresql://postgres@/postgres?host={path}&port={PORT}"
    return PostgresStore(url, schema=schema_of(path), required_level="D1", pooler=True, **options)


async def test_a_store_works_although_every_transaction_meets_another_session(
    pooler: Pooler, tmp_path: Path
) -> None:
    store = through(pooler, tmp_path)
    await store.open()
    for number in range(5):
        await store.commit(creation(counter(number)))
        await store.commit(commit(events=[event(number)], rows_added=[("due", "a", number, "x")]))
    loaded = await asyncio.gather(*(record_of(store, counter(number).key) for number in range(5)))
    assert loaded == [counter(number) for number in range(5)]
    assert await store.read_index("due", "a") == [(number, "x") for number in range(5)]
    assert [found.sequence for found in await store.read_events(0)] == [1, 2, 3, 4, 5]
    assert pooler.changes > 20
    await store.close()


async def test_an_engine_works_behind_a_pooler(pooler: Pooler, tmp_path: Path) -> None:
    async with Bed(through(pooler, tmp_path)) as bed:
        claim = await bed.start()
        await bed.complete(claim)
        await bed.check()


async def test_changes_are_heard_past_the_pooler(pooler: Pooler, tmp_path: Path) -> None:
    waiting = through(pooler, tmp_path, direct_url=server().url())
    other = through(pooler, tmp_path)
    await waiting.open()
    await other.open()
    woken = asyncio.ensure_future(waiting.wait_for_change(90_000))
    await asyncio.sleep(0)
    await other.commit(creation(counter()))
    async with asyncio.timeout(60):
        assert await woken
    await waiting.close()
    await other.close()

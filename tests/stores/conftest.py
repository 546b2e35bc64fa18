"""Stores, each empty and open."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from flowfabric.stores.memory import MemoryStore
from flowfabric.stores.sqlite import SqliteStore
from flowfabric.stores.sqlite.driver import ApswDriver, Driver, StandardDriver
from tests import postgres, valkey
from tests.stores.pair import Pair

DRIVERS: dict[str, type[ApswDriver] | type[StandardDriver]] = {"apsw": ApswDriver, "sqlite3": StandardDriver}


MAKERS: dict[str, Callable[[str], Any]] = {
    "memory": lambda path: MemoryStore(),
    "sqlite in memory": lambda path: SqliteStore(":memory:"),
    "sqlite": SqliteStore,
    "sqlite over sqlite3": lambda path: SqliteStore(path, driver=StandardDriver()),
    "postgres": lambda path: postgres.server().store(path),
    "postgres behind a pooler": lambda path: postgres.server().store(path, pooler=True),
    "valkey": lambda path: valkey.server().store(path),
}


@pytest.fixture(params=list(MAKERS))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """Every store there is."""
    made = MAKERS[request.param](str(tmp_path / "work.db"))
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def spare() -> Iterator[valkey.Server]:
    """A Valkey server of the test's own, to be configured, flushed and killed."""
    made = valkey.Server()
    yield made
    made.remove()


@pytest.fixture(params=list(DRIVERS))
def driver(request: pytest.FixtureRequest) -> Driver:
    """Both drivers."""
    return DRIVERS[request.param]()


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a file may be made."""
    return str(tmp_path / "work.db")


@pytest.fixture
async def open_store(path: str) -> AsyncIterator[Callable[..., Any]]:
    """Opens stores on one file and closes what is still open in the end."""
    async with AsyncExitStack() as stack:

        async def open_one(**options: Any) -> SqliteStore:
            made = SqliteStore(path, **options)
            await made.open()
            stack.push_async_callback(made.close)
            return made

        yield open_one


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """Two beds of a Valkey server, their stores in one shard, or in several with the log in the first."""
    async with Pair(valkey.server(), tmp_path, shards=request.param) as made:
        yield made

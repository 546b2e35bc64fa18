"""Apps over a store, and the user's own connections to its database, whatever the driver.

A party's methods are awaited for every driver, so that one test serves them all.
"""

import inspect
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import psycopg

from flowfabric import Flow, FlowFabric, FlowRun, Run
from flowfabric.stores.postgres import migrate as migrate_database
from flowfabric.stores.sqlite import SqliteStore, migrate
from flowfabric.stores.sqlite.driver import ApswDriver, StandardDriver
from tests.postgres import server

SCHEMA = "within_transactions"
"""One for all tests of a process: each has a namespace of its own, and the users' table is emptied."""

DRIVERS = ("apsw", "sqlite3", "asyncpg", "asyncpg pool", "psycopg", "psycopg async")


async def finished(answer: Any) -> Any:
    """The answer of a method that may or may not have to be awaited."""
    return await answer if inspect.isawaitable(answer) else answer


class Party:
    """One user's connection and transaction, and the submissions in it."""

    def __init__(self, app: FlowFabric, connection: Any, *, begins: bool = False) -> None:
        self.app = app
        self.connection = connection
        self.begins_by_itself = begins

    async def execute(self, sql: str) -> Any:
        return await finished(self.connection.execute(sql))

    async def begin(self) -> None:
        """Begin, where the driver does not do so by itself."""
        if not self.begins_by_itself:
            await self.execute("BEGIN")

    async def commit(self) -> None:
        await self.execute("COMMIT")

    async def roll_back(self) -> None:
        await self.execute("ROLLBACK")

    async def submit(self, handler: Any, value: Any = None, **options: Any) -> Run[Any]:
        run: Run[Any] = await finished(self.app.within(self.connection).submit(handler, value, **options))
        return run

    async def submit_many(self, handler: Any, values: list[Any], **options: Any) -> list[Run[Any]]:
        answer = self.app.within(self.connection).submit_many(handler, values, **options)
        runs: list[Run[Any]] = await finished(answer)
        return runs

    async def submit_flow(self, flow: Flow, **options: Any) -> FlowRun:
        run: FlowRun = await finished(self.app.within(self.connection).submit_flow(flow, **options))
        return run

    async def signal(self, run: Run[Any] | str, name: str, payload: Any = None, **options: Any) -> Any:
        return await finished(self.app.within(self.connection).signal(run, name, payload, **options))

    async def orders(self) -> list[int]:
        """What the user's own table holds, seen through this connection."""
        return [number for (number,) in await rows(self.connection, "SELECT number FROM orders ORDER BY 1")]

    async def order(self, number: int) -> None:
        """Write to the user's own table."""
        await self.execute(f"INSERT INTO orders VALUES ({number})")  # noqa: S608 - a number of ours

    async def close(self) -> None:
        await finished(self.connection.close())


async def rows(connection: Any, sql: str) -> list[Any]:
    """The rows of a statement through any driver."""
    if hasattr(connection, "fetch"):
        return [tuple(row) for row in await connection.fetch(sql)]
    cursor = await finished(connection.execute(sql))
    return list(await finished(cursor.fetchall()))


class Place:
    """One database, and a namespace in it: makes apps and parties for it.

    Args:
        driver: one of ``DRIVERS``.
        folder: of the test.
    """

    def __init__(self, driver: str, folder: Path) -> None:
        self.driver = driver
        self.path = str(folder / "work.db")
        self.namespace = folder.name
        self.is_file = driver in ("apsw", "sqlite3")
        self.url = ""
        """Of the server; the one of this process unless set."""
        self._parties: list[Party] = []
        self._pool: Any = None

    def app(self) -> FlowFabric:
        """An app over a store of its own, not started."""
        return FlowFabric(store=self.store(), namespace=self.namespace)

    def store(self) -> Any:
        """A store over the same copy of SQLite that the users have, not opened."""
        if not self.is_file:
            return server().store(SCHEMA, schema=SCHEMA)
        return SqliteStore(self.path, driver=StandardDriver() if self.driver == "sqlite3" else ApswDriver())

    async def prepare(self) -> None:
        """Make the store's tables and the user's own one."""
        if self.is_file:
            migrate(self.path)
            connection = apsw.Connection(self.path)
            connection.execute("CREATE TABLE orders (number INTEGER)")
            connection.close()
            return
        await migrate_database(self.store().settings)
        admin = await asyncpg.connect(server().url())
        await admin.execute(f"CREATE TABLE IF NOT EXISTS {SCHEMA}.orders (number integer)")
        await admin.execute(f"TRUNCATE {SCHEMA}.orders")
        await admin.close()

    async def party(self, app: FlowFabric) -> Party:
        """One more user, connected."""
        made = await self._connected(app)
        self._parties.append(made)
        if not self.is_file:
            await made.execute(f"SET search_path = {SCHEMA}")
            if self.driver.startswith("psycopg"):
                await made.commit()
        return made

    async def _connected(self, app: FlowFabric) -> Party:
        url = self.url or ("" if self.is_file else server().url())
        match self.driver:
            case "apsw":
                return Party(app, apsw.Connection(self.path))
            case "sqlite3":
                return Party(app, sqlite3.connect(self.path), begins=True)
            case "asyncpg":
                return Party(app, await asyncpg.connect(url))
            case "asyncpg pool":
                self._pool = self._pool or await asyncpg.create_pool(url, min_size=0, max_size=4)
                return Party(app, await self._pool.acquire())
            case "psycopg":
                return Party(app, psycopg.connect(url), begins=True)
            case _:
                return Party(app, await psycopg.AsyncConnection.connect(url), begins=True)

    async def close(self) -> None:
        for party in self._parties:
            if self._pool is None:
                await party.close()
            else:
                await self._pool.release(party.connection)
        if self._pool is not None:
            await self._pool.close()


@asynccontextmanager
async def place_for(driver: str, folder: Path) -> AsyncIterator[Place]:
    """A database that is ready, whose connections are closed in the end."""
    place = Place(driver, folder)
    await place.prepare()
    try:
        yield place
    finally:
        await place.close()

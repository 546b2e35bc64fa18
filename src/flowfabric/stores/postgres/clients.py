"""Connections of somebody else's, through asyncpg or psycopg, as the borrowed store uses them.

psycopg is not a dependency: whoever hands over one of its connections has imported it.
"""

from __future__ import annotations

import sys
from typing import Any, Final, Protocol

import asyncpg

from flowfabric import errors
from flowfabric.stores.postgres.faults import FAULTS

TEXT_ONLY: Final = (
    "the connection does not give text as str. Take back the codec or loader that was set for the type text."
)


class Client(Protocol):
    """What the borrowed store needs of a connection."""

    faults: tuple[type[BaseException], ...]
    """What its driver raises."""
    is_awaited: bool
    """True if its statements are awaited, False if they block."""

    def can_go_on(self) -> bool:
        """True if the next statement takes part in a transaction that is ended explicitly."""

    async def run(self, sql: str) -> None:
        """Execute statements that have no values and no rows."""

    async def text(self, sql: str, value: str) -> str:
        """Execute a statement with one place ``%s`` whose answer is one text."""


class AsyncpgClient:
    """A connection of asyncpg, or one that its pool has lent out."""

    faults: tuple[type[BaseException], ...] = FAULTS
    is_awaited = True

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def can_go_on(self) -> bool:
        # What is closed says so by itself at the next statement.
        return bool(self._connection.is_closed() or self._connection.is_in_transaction())

    async def run(self, sql: str) -> None:
        await self._connection.execute(sql)

    async def text(self, sql: str, value: str) -> str:
        return _require_text(await self._connection.fetchval(sql.replace("%s", "$1"), value))


class PsycopgClient:
    """A connection of psycopg that blocks. Nothing of it waits for an event loop."""

    is_awaited = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.faults: tuple[type[BaseException], ...] = (sys.modules["psycopg"].Error, OSError)

    def can_go_on(self) -> bool:
        return _psycopg_can_go_on(self._connection)

    async def run(self, sql: str) -> None:
        with self._cursor() as cursor:
            cursor.execute(sql, prepare=False)

    async def text(self, sql: str, value: str) -> str:
        with self._cursor() as cursor:
            cursor.execute(sql, (value,), prepare=False)
            return _require_text(cursor.fetchone()[0])

    def _cursor(self) -> Any:
        return _plain_cursor(sys.modules["psycopg"].Cursor, self._connection)


class AsyncPsycopgClient:
    """An asynchronous connection of psycopg."""

    is_awaited = True

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.faults: tuple[type[BaseException], ...] = (sys.modules["psycopg"].Error, OSError)

    def can_go_on(self) -> bool:
        return _psycopg_can_go_on(self._connection)

    async def run(self, sql: str) -> None:
        async with self._cursor() as cursor:
            await cursor.execute(sql, prepare=False)

    async def text(self, sql: str, value: str) -> str:
        async with self._cursor() as cursor:
            await cursor.execute(sql, (value,), prepare=False)
            return _require_text((await cursor.fetchone())[0])

    def _cursor(self) -> Any:
        return _plain_cursor(sys.modules["psycopg"].AsyncCursor, self._connection)


def client_of(connection: object) -> Client | None:
    """How to talk through this connection; None if it is not one that can be borrowed."""
    if isinstance(connection, (asyncpg.Connection, asyncpg.pool.PoolConnectionProxy)):
        return AsyncpgClient(connection)
    psycopg = sys.modules.get("psycopg")
    if psycopg is None:
        return None
    if isinstance(connection, psycopg.Connection):
        return PsycopgClient(connection)
    return AsyncPsycopgClient(connection) if isinstance(connection, psycopg.AsyncConnection) else None


def _psycopg_can_go_on(connection: Any) -> bool:
    # Without autocommit the driver itself begins with the next statement.
    status = sys.modules["psycopg"].pq.TransactionStatus
    return not connection.autocommit or connection.info.transaction_status != status.IDLE


def _plain_cursor(cursor_type: Any, connection: Any) -> Any:
    """A cursor without the connection's factories, dumpers and loaders for text."""
    psycopg = sys.modules["psycopg"]
    cursor = cursor_type(connection, row_factory=psycopg.rows.tuple_row)
    cursor.adapters.register_dumper(str, psycopg.types.string.StrDumper)
    cursor.adapters.register_loader("text", psycopg.types.string.TextLoader)
    return cursor


def _require_text(found: object) -> str:
    if not isinstance(found, str):
        raise errors.UnusableConnection(TEXT_ONLY)
    return found

"""The pool of connections, and the one place where faults of the driver become our errors.

No state is kept in a session except for LISTEN, which has a connection of its own. So connections
need no reset when they are given back, and a pooler may hand every transaction to another server
connection: with ``pooler`` no statement is prepared by name and no setting is sent at connecting.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

import asyncpg
import msgspec

from flowfabric import errors
from flowfabric.stores.postgres.faults import FAULTS, store_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

CONNECTIONS_MAX: Final = 8
TIMEOUT_MS: Final = 30_000
CLOSE_TIMEOUT_MS: Final = 5_000

_PLANNER: Final = {
    "application_name": "flowfabric",
    # Statements stay prepared while the tables grow from empty to millions of rows; a plan that
    # was right for the small table must not survive. Everything here is reached by key.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the database is reached."""

    url: str
    direct_url: str | None = None
    """Reaches the server itself where ``url`` reaches a pooler; for LISTEN."""
    schema: str = "flowfabric"
    connections_max: int = CONNECTIONS_MAX
    timeout_ms: int = TIMEOUT_MS
    pooler: bool = False
    listen: bool = True

    @property
    def place(self) -> str:
        """The database and schema as errors name them: without user, password and options."""
        parts = urlsplit(self.url)
        return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path} (schema {self.schema})"

    @property
    def listen_url(self) -> str | None:
        """Where to listen for changes; None to look for them instead."""
        if not self.listen:
            return None
        return self.direct_url or (None if self.pooler else self.url)

    def __repr__(self) -> str:
        return f"Settings({self.place})"


class Connections:
    """The open pool. Use it as an async context manager, or open and close it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._pool: Any = None

    async def open(self) -> None:
        """Connect.

        Raises:
            StoreError: the server cannot be reached or refuses us.
        """
        settings = self.settings
        with self._faults():
            self._pool = await asyncpg.create_pool(
                settings.url,
                # A floor would be restored behind our back, which races with whoever asks for a
                # connection while the server is down.
                min_size=0,
                max_size=settings.connections_max,
                reset=_keep_session,
                timeout=settings.timeout_ms / 1_000,
                command_timeout=settings.timeout_ms / 1_000,
                statement_cache_size=0 if settings.pooler else 100,
                server_settings={} if settings.pooler else _PLANNER,
            )

    async def close(self) -> None:
        """Give back every connection; those of a dead server are dropped."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_MS / 1_000):
                await pool.close()
        except FAULTS:
            pool.terminate()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Any]:
        """Borrow a connection. What fails while it is used becomes one of our errors."""
        if self._pool is None:
            raise errors.StoreUnreachable(
                f"the store {self.settings.place} is not open. Open it before using it."
            )
        with self._faults():
            async with self._pool.acquire(timeout=self.settings.timeout_ms / 1_000) as connection:
                yield connection

    async def fetch(self, sql: str, *values: Any) -> list[Any]:
        """Run one statement in a transaction of its own and return its rows."""
        async with self.use() as connection:
            rows: list[Any] = await connection.fetch(sql, *values)
        return rows

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except FAULTS as fault:
            raise store_error(fault, self.settings.place) from fault


async def connect_listener(
    settings: Settings, url: str, channel: str, hear: Callable[[Any, int, str, str], None]
) -> Any:
    """A connection outside the pool that hears what is told on the channel.

    Raises:
        StoreError: the server cannot be reached or refuses us.
    """
    try:
        connection = await asyncpg.connect(
            url,
            timeout=settings.timeout_ms / 1_000,
            command_timeout=settings.timeout_ms / 1_000,
            statement_cache_size=0,
        )
        await connection.add_listener(channel, hear)
        return connection
    except FAULTS as fault:
        raise store_error(fault, settings.place) from fault


def quoted(identifier: str) -> str:
    """An identifier as SQL wants it."""
    return '"' + identifier.replace('"', '""') + '"'


async def _keep_session(_: Any) -> None:
    """What the pool does when a connection comes back: nothing, and no round trip for it."""

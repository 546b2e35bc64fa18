"""The connections, and the place where faults of the driver become our errors.

No state is kept in a session except for LISTEN, which has a connection of its own. So a pooler may
hand every transaction to another server connection: with ``pooler`` no statement is prepared by
name and no setting is sent at connecting.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg
import msgspec

from flowfabric import errors
from flowfabric.stores.postgres.faults import FAULTS, store_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

CONNECTIONS_MAX: Final = 8
TIMEOUT_MS: Final = 30_000
CLOSE_TIMEOUT_S: Final = 5
STATEMENTS_MAX: Final = 100
"""How many statements a connection keeps prepared."""
IDLE_S_MAX: Final = 300
"""A connection that was idle for longer is not trusted: something between may have forgotten it."""

_SSLMODE: Final = "prefer"
"""What the driver does unless it is told otherwise: TLS if the server has it, and no look at who it is."""
_PLANNER: Final = {
    "application_name": "flowfabric",
    # Statements stay prepared while the tables grow from empty to millions of rows; a plan that
    # was right for the small table must not survive. Everything here is reached by key.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
}


class Link(msgspec.Struct, frozen=True):
    """How the driver reaches a server."""

    hosts: tuple[str, ...]
    """Names, addresses, or the folders of sockets; none for a server on this machine."""
    sslmode: str


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
    def lock_timeout_ms(self) -> int:
        """How long a commit waits for others; the rest of the time is left for the disk."""
        return max(1, self.timeout_ms // 2)

    @property
    def listen_url(self) -> str | None:
        """Where to listen for changes; None to look for them instead."""
        if not self.listen:
            return None
        return self.direct_url or (None if self.pooler else self.url)

    def links(self) -> list[Link]:
        """The ways to the server: that of ``url``, and that of ``direct_url`` if it is another."""
        urls = [self.url, *([self.direct_url] if self.direct_url else [])]
        return [link_of(url, os.environ) for url in dict.fromkeys(urls)]

    def __repr__(self) -> str:
        return f"Settings({self.place})"


def link_of(url: str, environment: Mapping[str, str]) -> Link:
    """What the driver makes of a URL: hosts from it, else its ``host`` option, else the variables.

    >>> link_of("postgresql://me@db.example:6000,[::1]/work?sslmode=require", {})
    Link(hosts=('db.example', '::1'), sslmode='require')
    >>> link_of("postgresql:///work", {"PGHOST": "/run/postgresql"})
    Link(hosts=('/run/postgresql',), sslmode='prefer')
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    named = unquote(parts.netloc.rpartition("@")[2]) or options.get("host") or environment.get("PGHOST", "")
    hosts = tuple(_host_of(place) for place in named.split(",") if place)
    sslmode = options.get("sslmode") or environment.get("PGSSLMODE") or _SSLMODE
    return Link(hosts=hosts, sslmode=sslmode)


def _host_of(place: str) -> str:
    """A host without its port."""
    if place.startswith("["):
        return place[1:].partition("]")[0]
    return place.partition(":")[0] if place.count(":") == 1 else place


class Connections:
    """A small pool: connections are made when needed, kept while idle, dropped after a fault.

    The driver's own pool resets sessions and guards them behind proxies, which costs more than a
    short statement does; without session state neither is needed.

    Use it as an async context manager, or open and close it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._idle: list[tuple[float, Any]] = []
        self._made = 0
        """How many connections there are, with those that are being made."""
        self._returned = asyncio.Event()
        self._room: asyncio.Semaphore | None = None
        self._dropping: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect once, to learn that it works.

        Raises:
            StoreError: the server cannot be reached or refuses us.
        """
        self._room = asyncio.Semaphore(self.settings.connections_max)
        self._returned = asyncio.Event()
        async with self.use():
            pass

    async def close(self) -> None:
        """Close what is idle now, and what is in use as soon as it comes back."""
        self._room = None
        idle, self._idle = self._idle, []
        for _, connection in idle:
            self._drop(connection)
        await asyncio.gather(*self._dropping)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Any]:
        """Borrow a connection. What fails while it is used becomes one of our errors."""
        room = self._room
        if room is None:
            raise errors.StoreUnreachable(
                f"the store {self.settings.place} is not open. Open it before using it."
            )
        try:
            await self._wait_for(room)
            try:
                async with self._taken(room) as connection:
                    yield connection
            finally:
                room.release()
        except FAULTS as fault:
            raise store_error(fault, self.settings.place) from fault

    @asynccontextmanager
    async def _taken(self, room: asyncio.Semaphore) -> AsyncIterator[Any]:
        connection = await self._take()
        sound = False
        try:
            yield connection
            sound = True
        except asyncpg.PostgresError:
            sound = True
            raise
        finally:
            self._give_back(connection, keep=sound and room is self._room)
            self._returned.set()

    async def fetch(self, sql: str, *values: Any) -> list[Any]:
        """Run one statement in a transaction of its own and return its rows."""
        async with self.use() as connection:
            rows: list[Any] = await connection.fetch(sql, *values)
        return rows

    async def _wait_for(self, room: asyncio.Semaphore) -> None:
        if not room.locked():
            await room.acquire()
            return
        async with asyncio.timeout(self.settings.timeout_ms / 1_000):
            await room.acquire()

    async def _take(self) -> Any:
        """The connection that was used last, or a new one, or the next that comes back."""
        connection = self._take_idle()
        if connection is not None:
            return connection
        async with asyncio.timeout(self.settings.timeout_ms / 1_000):
            while True:
                self._returned.clear()
                connection = self._take_idle() or await self._connect_if_allowed()
                if connection is not None:
                    return connection
                await self._returned.wait()

    async def _connect_if_allowed(self) -> Any:
        """A new connection; None if the server has no room for one, but others here have theirs."""
        self._made += 1
        try:
            return await _connect(self.settings, self.settings.url)
        except BaseException as fault:
            self._made -= 1
            if self._made and isinstance(fault, asyncpg.TooManyConnectionsError):
                return None
            self._returned.set()
            raise

    def _take_idle(self) -> Any:
        while self._idle:
            since, connection = self._idle.pop()
            if time.monotonic() - since < IDLE_S_MAX and not connection.is_closed():
                return connection
            self._drop(connection)
        return None

    def _give_back(self, connection: Any, *, keep: bool) -> None:
        # After a timeout or a cancellation the server may still be at work; what it answers then
        # must not meet the next statement.
        if keep and not connection.is_closed() and not connection.is_in_transaction():
            self._idle.append((time.monotonic(), connection))
        else:
            self._drop(connection)

    def _drop(self, connection: Any) -> None:
        self._made -= 1
        task = asyncio.create_task(_close(connection), name="flowfabric close connection")
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)


async def _connect(settings: Settings, url: str) -> Any:
    return await asyncpg.connect(
        url,
        timeout=settings.timeout_ms / 1_000,
        command_timeout=settings.timeout_ms / 1_000,
        statement_cache_size=0 if settings.pooler else STATEMENTS_MAX,
        server_settings={} if settings.pooler else _PLANNER,
        # After a failover the address may still lead to the old primary, now a standby: it would
        # answer reads from the past.
        target_session_attrs="primary",
    )


async def _close(connection: Any) -> None:
    try:
        await connection.close(timeout=CLOSE_TIMEOUT_S)
    except FAULTS:
        connection.terminate()


async def connect_listener(
    settings: Settings, url: str, channel: str, hear: Callable[[Any, int, str, str], None]
) -> Any:
    """A connection outside the pool that hears what is told on the channel.

    Raises:
        StoreError: the server cannot be reached or refuses us.
    """
    try:
        connection = await _connect(settings, url)
        try:
            await connection.add_listener(channel, hear)
        except BaseException:
            connection.terminate()
            raise
        return connection
    except FAULTS as fault:
        raise store_error(fault, settings.place) from fault


def quoted(identifier: str) -> str:
    """An identifier as SQL wants it."""
    return '"' + identifier.replace('"', '""') + '"'

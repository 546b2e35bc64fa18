"""The connections to one server, and the place where its faults become our errors.

Reading and writing have a connection each, so that a large answer does not stand before a commit, nor a
commit that waits for replicas before an answer. A lost connection is made anew by the next command;
a command whose answer was lost is never sent again. The one exception is a function that the server
does not know: then it has certainly not acted, so the library is loaded and the call repeated.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, Final

import msgspec
from hiredis import ReplyError

from flowfabric import errors
from flowfabric.stores.valkey.connection import Connection
from flowfabric.stores.valkey.faults import (
    FUNCTION_MISSING,
    LIBRARY_EXISTS,
    connection_error,
    server_error,
)
from flowfabric.stores.valkey.library import library

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowfabric.stores.valkey.connection import Command

TIMEOUT_MS: Final = 30_000
PORT: Final = 6379
CLIENT_NAME: Final = "flowfabric"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the server is reached, and what is asked of it."""

    host: str = "localhost"
    port: int = PORT
    socket: str | None = None
    """A Unix socket, which takes the place of host and port."""
    database: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca_file: str | None = None
    """The authorities to trust; those of this host when absent."""
    prefix: str = "ff"
    timeout_ms: int = TIMEOUT_MS
    durability: str = "D1"
    """Refuse to open below this level."""
    replicas: int = 0
    """How many replicas must have a commit before it is acknowledged."""

    @property
    def place(self) -> str:
        """The server, database and prefix as errors name them: without user and password."""
        scheme = "valkeys" if self.tls else "valkey"
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = self.socket or f"{host}:{self.port}"
        return f"{scheme}://{where}/{self.database} (prefix {self.prefix})"

    @property
    def channel(self) -> str:
        """Where commits are told of. Channels are shared by all databases of a server."""
        return f"{self.prefix}:{self.database}:changed"

    def __repr__(self) -> str:
        return f"Settings({self.place})"


class Client:
    """Sends commands to the server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.reloads = 0
        """How often the server had lost the library and was given it again."""
        self._open = False
        self._reading = _Line(settings)
        self._writing = _Line(settings)

    def open(self) -> None:
        """Allow commands. They connect when there is no connection."""
        self._open = True

    def close(self) -> None:
        """Give the connections up."""
        self._open = False
        self._reading.close()
        self._writing.close()

    async def read(self, *commands: Command) -> list[Any]:
        """Send commands that change nothing of ours, in their order, and return their answers.

        Raises:
            StoreError: the server refused one of them, or cannot be reached.
        """
        return self._checked(await self._send(self._reading, commands))

    async def write(self, *commands: Command) -> list[Any]:
        """Send commands that change something, in their order, and return their answers.

        Raises:
            StoreError: the server refused one of them, or cannot be reached.
        """
        return self._checked(await self._send(self._writing, commands))

    async def invoke(
        self, function: str, keys: Sequence[str], arguments: Sequence[str | bytes | int], *then: Command
    ) -> list[Any]:
        """Call a function of the library, and send other commands behind it.

        Raises:
            StoreError: as for ``write``.
        """
        call = ("FCALL", library().function(function), len(keys), *keys, *arguments)
        replies = await self._send(self._writing, (call, *then))
        if _misses_function(replies[0]):
            self.reloads += 1
            await self.load_library()
            replies = await self._send(self._writing, (call, *then))
        return self._checked(replies)

    async def load_library(self) -> None:
        """Make sure that the server has the library of this program.

        Raises:
            StoreError: the server refuses it.
        """
        [reply] = await self._send(self._writing, (("FUNCTION", "LOAD", library().source),))
        if isinstance(reply, ReplyError) and LIBRARY_EXISTS not in str(reply):
            raise server_error(reply, self.settings.place) from reply

    async def has_library(self) -> bool:
        """Whether the server has the library of this program.

        Raises:
            StoreError: the server refuses to say, or cannot be reached.
        """
        [found] = await self.read(("FUNCTION", "LIST", "LIBRARYNAME", library().name))
        return bool(found)

    async def _send(self, line: _Line, commands: Sequence[Command]) -> list[Any]:
        if not self._open:
            raise errors.StoreUnreachable(
                f"the store {self.settings.place} is not open. Open it before using it."
            )
        try:
            connection = await line.connection()
            return await connection.send(commands)
        except OSError as fault:
            raise connection_error(fault, self.settings.place) from fault

    def _checked(self, replies: list[Any]) -> list[Any]:
        return checked(replies, self.settings.place)


class _Line:
    """A connection that is made when it is needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connecting: asyncio.Task[Connection] | None = None
        self._connection: Connection | None = None

    async def connection(self) -> Connection:
        """The connection; a new one if there is none that lives.

        Raises:
            OSError: it cannot be made.
            StoreError: the server refuses us.
        """
        connection = self._connection
        if connection is not None and not connection.closed:
            return connection
        if self._connecting is None:
            self._connecting = asyncio.create_task(connect(self._settings), name="flowfabric connect")
            self._connecting.add_done_callback(self._connected)
        return await asyncio.shield(self._connecting)

    def _connected(self, task: asyncio.Task[Connection]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._connection = task.result()

    def close(self) -> None:
        """Give the connection up."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


async def connect(
    settings: Settings,
    hear: Callable[[bytes], None] | None = None,
    on_lost: Callable[[], None] | None = None,
) -> Connection:
    """Make a connection that has introduced itself.

    Raises:
        OSError: the server cannot be reached.
        StoreError: the server refuses us.
    """

    def protocol() -> Connection:
        return Connection(settings.timeout_ms, hear, on_lost)

    loop = asyncio.get_running_loop()
    async with asyncio.timeout(settings.timeout_ms / 1_000):
        if settings.socket is not None:
            _, connection = await loop.create_unix_connection(protocol, settings.socket)
        else:
            tls = ssl.create_default_context(cafile=settings.ca_file) if settings.tls else None
            _, connection = await loop.create_connection(protocol, settings.host, settings.port, ssl=tls)
    try:
        checked(await connection.send(_introduction(settings)), settings.place)
    except BaseException:
        connection.close()
        raise
    return connection


def checked(replies: list[Any], place: str) -> list[Any]:
    """The answers, if the server refused nothing.

    Raises:
        StoreError: it refused something.
    """
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise server_error(reply, place) from reply
    return replies


def _introduction(settings: Settings) -> list[Command]:
    commands: list[Command] = []
    if settings.password is not None:
        user = () if settings.username is None else (settings.username,)
        commands.append(("AUTH", *user, settings.password))
    commands.append(("CLIENT", "SETNAME", CLIENT_NAME))
    if settings.database:
        commands.append(("SELECT", settings.database))
    return commands


def _misses_function(reply: Any) -> bool:
    return isinstance(reply, ReplyError) and str(reply).startswith(FUNCTION_MISSING)

"""The servers, and which of them has which slot.

A server that is no part of a cluster has them all. In a cluster the slots of keys decide, and any server
can tell where they are; that may be out of date, which whoever asks the wrong server is told.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, Final

import msgspec
from hiredis import ReplyError

from flowfabric import errors
from flowfabric.stores.valkey.connection import Connection
from flowfabric.stores.valkey.faults import connection_error, server_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowfabric.stores.valkey.connection import Command
    from flowfabric.stores.valkey.settings import Settings

CLIENT_NAME: Final = "flowfabric"

Address = tuple[str, int]


class Server:
    """One server, with a connection for reading and one for writing.

    So a large answer does not stand before a commit, nor a commit that waits for replicas before an
    answer. A lost connection is made anew by the next command.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._reading = _Line(settings)
        self._writing = _Line(settings)

    async def send(self, commands: Sequence[Command], *, writing: bool = False) -> list[Any]:
        """Send some commands together and return their answers; errors of the server among them.

        Raises:
            StoreUnreachable: the connection broke. Whether the server acted is not known.
            StoreTimeout: no answer came in time.
        """
        line = self._writing if writing else self._reading
        try:
            connection = await line.connection()
            return await connection.send(commands)
        except OSError as fault:
            raise connection_error(fault, self.settings.place) from fault

    def close(self) -> None:
        """Give the connections up."""
        self._reading.close()
        self._writing.close()


class Servers:
    """All servers that are known.

    Args:
        settings: how the first one is reached.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._first = Server(settings)
        self._known: dict[Address, Server] = {}
        self._ranges: list[tuple[int, int, Server]] = []
        self._owners: dict[int, Server] = {}
        self._learning: asyncio.Task[None] | None = None
        for seed in settings.seeds:
            self.at(seed)
        self.outdated = settings.cluster
        """Where the slots are has to be asked before the next command."""

    async def owner(self, slot: int) -> Server:
        """The server that has a slot, as far as is known.

        Raises:
            StoreUnreachable: no server tells, or no server has it.
        """
        if not self._settings.cluster:
            return self._first
        if self.outdated:
            await self._learn_once()
        if slot in self._owners:
            return self._owners[slot]
        for first, last, server in self._ranges:
            if first <= slot <= last:
                self._owners[slot] = server
                return server
        self.outdated = True
        raise errors.StoreUnreachable(
            f"no server of {self._settings.place} has slot {slot}. Check the state of the cluster."
        )

    async def primaries(self) -> list[Server]:
        """Every server that has slots."""
        if not self._settings.cluster:
            return [self._first]
        await self._learn_once()
        return list({id(server): server for _, _, server in self._ranges}.values())

    def known(self) -> list[Server]:
        """Every server that was ever heard of, the first one last: it may be long gone."""
        return [*self._known.values(), self._first]

    def at(self, address: Address) -> Server:
        """The server with this address."""
        host, port = address
        if address not in self._known:
            self._known[address] = Server(msgspec.structs.replace(self._settings, host=host, port=port))
        return self._known[address]

    def note_moved(self, slot: int, server: Server) -> None:
        """A server has said that another one has the slot. It knows best, so nobody else is asked."""
        self._owners[slot] = server

    async def _learn_once(self) -> None:
        """Ask where the slots are; those who need to know at once share one question."""
        if self._learning is None:
            self._learning = asyncio.create_task(self._learn(), name="flowfabric learn slots")
            self._learning.add_done_callback(self._learnt)
        await asyncio.shield(self._learning)

    def _learnt(self, task: asyncio.Task[None]) -> None:
        self._learning = None
        if not task.cancelled():
            task.exception()  # those who asked have got it

    async def _learn(self) -> None:
        """Ask all at once and believe the first to answer: one that is gone would take its time."""
        asking = [asyncio.ensure_future(self._slots_by(server)) for server in self.known()]
        fault: errors.StoreError | None = None
        try:
            for answer in asyncio.as_completed(asking):
                try:
                    self._take(*await answer)
                    return
                except errors.StoreError as error:
                    fault = error
        finally:
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        assert fault is not None
        raise fault

    async def _slots_by(self, server: Server) -> tuple[list[list[Any]], str]:
        """Where the slots are by one server's account, and its own host."""
        [reply] = await server.send([("CLUSTER", "SLOTS")])
        if isinstance(reply, ReplyError):
            raise _not_a_cluster(reply, self._settings)
        return reply, server.settings.host

    def _take(self, slots: Iterable[list[Any]], asked_host: str) -> None:
        self._ranges = [
            (first, last, self.at((primary[0].decode() if primary[0] else asked_host, primary[1])))
            for first, last, primary, *_ in slots
        ]
        self._owners.clear()
        self.outdated = False

    def close(self) -> None:
        """Give all connections up."""
        if self._learning is not None:
            self._learning.cancel()
        for server in self.known():
            server.close()


def _not_a_cluster(reply: ReplyError, settings: Settings) -> errors.StoreError:
    if "cluster support disabled" in str(reply):
        return errors.StoreUnusable(
            f"{settings.place} is not part of a cluster. Use a URL that begins with valkey:// or valkeys://."
        )
    return server_error(reply, settings.place)


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


def _introduction(settings: Settings) -> list[Command]:
    commands: list[Command] = []
    if settings.password is not None:
        user = () if settings.username is None else (settings.username,)
        commands.append(("AUTH", *user, settings.password))
    commands.append(("CLIENT", "SETNAME", CLIENT_NAME))
    if settings.database:
        commands.append(("SELECT", settings.database))
    return commands


def checked(replies: list[Any], place: str) -> list[Any]:
    """The answers, if the server refused nothing.

    Raises:
        StoreError: it refused something.
    """
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise server_error(reply, place) from reply
    return replies

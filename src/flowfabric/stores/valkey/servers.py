"""The servers, and which of them has which slot.

A server that is no part of a cluster has them all. In a cluster the slots of keys decide, and any server
can tell where they are; that may be out of date, which whoever asks the wrong server is told.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from hiredis import ReplyError

from flowfabric import errors
from flowfabric.stores.valkey.dialling import connect
from flowfabric.stores.valkey.faults import connection_error, denies_writes, server_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowfabric.stores.valkey.connection import Command, Connection
    from flowfabric.stores.valkey.settings import Settings

OPINION_S: Final = 0.5
"""How long another account of the slots is waited for where the only one is doubted."""

Address = tuple[str, int]
R = TypeVar("R")
Account = tuple[list[list[Any]], str]
"""Where the slots are by what a server says, and the host under which it was asked."""


class Use(Enum):
    """What a connection is used for.

    A server carries out the commands of one connection in their order, and those of several in turn. So a
    large answer does not stand before a commit, nor a commit that waits for replicas before an answer.
    """

    READING = auto()
    WRITING = auto()
    CLAIMING = auto()
    """Writing, too, but what has come before is not waited for: workers have nothing to do until then."""


class Server:
    """One server, with a connection for each ``Use``. A lost one is made anew by the next command."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lines = {use: _Line(settings) for use in Use}

    @property
    def address(self) -> Address:
        """Where it is."""
        return self.settings.host, self.settings.port

    async def send(self, commands: Sequence[Command], use: Use = Use.READING) -> list[Any]:
        """Send some commands together and return their answers; errors of the server among them.

        Raises:
            StoreUnreachable: the connection broke. Whether the server acted is not known.
            StoreTimeout: no answer came in time.
        """
        try:
            connection = await self._lines[use].connection()
            replies = await connection.send(commands)
        except OSError as fault:
            raise connection_error(fault, self.settings.place) from fault
        if any(map(denies_writes, replies)):
            # It follows another server now, and would answer from the past. The address may lead to the
            # new primary by now; a connection that is there leads to the old one for ever.
            self.close()
        return replies

    def close(self) -> None:
        """Give the connections up."""
        for line in self._lines.values():
            line.close()

    def retire(self) -> bool:
        """Give the connections up as soon as what is in flight has its answer. True if none is left."""
        idle = [line.retire() for line in self._lines.values()]  # each of them, also if one is busy
        return all(idle)


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
        self._doubted: set[Address] = set()
        self._leaving: list[Server] = []
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

    def doubt(self, server: Server) -> None:
        """A server has said that it knows too little of the cluster; it is believed last about the slots."""
        self._doubted.add(server.address)

    async def _learn_once(self) -> None:
        """Ask where the slots are; those who need to know at once share one question."""
        if self._learning is None:
            self._learning = asyncio.create_task(self._learn(), name="flowfabric learn slots")
            self._learning.add_done_callback(self._learnt)
        try:
            await shared(self._learning)
        except ConnectionAbortedError as fault:
            raise connection_error(fault, self._settings.place) from fault

    def _learnt(self, task: asyncio.Task[None]) -> None:
        self._learning = None
        if not task.cancelled():
            task.exception()  # those who asked have got it

    async def _learn(self) -> None:
        """Ask all at once and believe the first to answer: one that is gone would take its time."""
        asking = {asyncio.create_task(self._slots_by(server)): server for server in self.known()}
        try:
            self._take(*await self._first_account(asking))
        finally:
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _first_account(self, asking: dict[asyncio.Task[Account], Server]) -> Account:
        """What the first server says that is not doubted; if there is none, what any of them says."""
        pending, doubtful = set(asking), None
        fault: BaseException | None = None
        while pending:
            patience_s = None if doubtful is None else OPINION_S
            done, pending = await asyncio.wait(
                pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            for one in done:
                fault = one.exception() or fault
                if one.exception() is None:
                    if asking[one].address not in self._doubted:
                        return one.result()
                    doubtful = one.result()
        if doubtful is not None:
            return doubtful
        assert fault is not None
        raise fault

    async def _slots_by(self, server: Server) -> Account:
        """Where the slots are by one server's account, and its own host."""
        [reply] = await server.send([("CLUSTER", "SLOTS")])
        if isinstance(reply, ReplyError):
            raise _not_a_cluster(reply, self._settings)
        return reply, server.settings.host

    def _take(self, slots: Iterable[list[Any]], asked_host: str) -> None:
        self._ranges, found = [], set(self._settings.seeds)
        for first, last, *nodes in slots:
            addresses = [_address_of(node, asked_host) for node in nodes]
            self._ranges.append((first, last, self.at(addresses[0])))
            # Replicas are asked where the slots are, too, when the primaries are gone.
            found.update(addresses)
        for address in found:
            self.at(address)
        self._leaving += [self._known.pop(address) for address in self._known.keys() - found]
        # Whoever was about to ask one of them may still make a connection, so they are looked at again.
        self._leaving = [server for server in self._leaving if not server.retire()]
        self._owners.clear()
        self._doubted.clear()
        self.outdated = False

    def close(self) -> None:
        """Give all connections up."""
        if self._learning is not None:
            self._learning.cancel()
        for server in (*self.known(), *self._leaving):
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
        return await shared(self._connecting)

    def _connected(self, task: asyncio.Task[Connection]) -> None:
        made = None if task.cancelled() or task.exception() is not None else task.result()
        if task is self._connecting:
            self._connecting, self._connection = None, made
        elif made is not None:  # given up while it was on its way
            made.close()

    def close(self) -> None:
        """Give the connection up."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def retire(self) -> bool:
        """Give the connection up as soon as what is in flight has its answer. True if there is none."""
        if self._connection is not None and not self._connection.closed:
            self._connection.close_when_idle()
        return self._connecting is None and (self._connection is None or self._connection.closed)


async def shared(task: asyncio.Task[R]) -> R:
    """The result of a task that others may wait for, too.

    Raises:
        ConnectionAbortedError: the task was cancelled. Whoever waits for it was not.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        waiter = asyncio.current_task()
        if task.cancelled() and waiter is not None and not waiter.cancelling():
            raise ConnectionAbortedError from None
        raise


def _address_of(node: list[Any], asked_host: str) -> Address:
    """Where a node of a cluster is reached, as the cluster tells it."""
    host, port, _, *more = node
    if host == b"?":  # it is to be named by a name that it has not got
        told = dict(zip(more[0][::2], more[0][1::2], strict=True)) if more else {}
        host = told.get(b"ip")
    return (host.decode() if host else asked_host), port

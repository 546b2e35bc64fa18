"""Commands on their way to the server that has their slot.

A command whose answer was lost is never sent again. It is sent again only where the server has said
that it did not act: because another one has the slot, because the slot is just moving or nobody has it,
or because it does not know the function, in which case the library is loaded first.
"""

from __future__ import annotations

import asyncio
import time
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from hiredis import ReplyError

from flowfabric import errors
from flowfabric.stores.valkey.dialling import connect
from flowfabric.stores.valkey.faults import (
    FUNCTION_MISSING,
    LIBRARY_EXISTS,
    NOT_ALLOWED,
    checked,
    server_error,
)
from flowfabric.stores.valkey.library import library
from flowfabric.stores.valkey.servers import Server, Servers, Use

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowfabric.stores.valkey.connection import Command, Connection
    from flowfabric.stores.valkey.settings import Settings

PATIENCE_S: Final = 5.0
"""How long a command looks for the server that has its slot, while a cluster changes."""
PAUSE_S: Final = 0.02
"""How long it waits before it asks again."""
TRY_AGAIN: Final = "TRYAGAIN"
"""How a server says that keys of a command are on both sides of a slot that is moving."""


class SlotIsMoving(Exception):
    """The server did not act: of the keys of the command, some are not there, or not any more."""


class Client:
    """Sends commands to one server or to a cluster."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.reloads = 0
        """How often a server had lost the library and was given it again."""
        self.redirects = 0
        """How often a command was sent to a server that did not have its slot."""
        self._open = False
        self._servers = Servers(settings)

    def open(self) -> None:
        """Allow commands. They connect when there is no connection."""
        self._open = True

    def close(self) -> None:
        """Give the connections up."""
        self._open = False
        self._servers.close()

    async def read(self, slot: int, *commands: Command) -> list[Any]:
        """Send commands that change nothing, in their order, and return their answers.

        Raises:
            StoreError: the server refused one of them, or cannot be reached.
        """
        return checked(await self._ask_with_library(slot, commands, Use.READING), self.settings.place)

    async def read_each(self, asked: Sequence[tuple[int, Command]]) -> list[Any]:
        """Read something in each of some slots, together where they are on one server.

        Raises:
            StoreError: as for ``read``.
        """
        self._require_open()
        places: dict[int, list[int]] = {}
        servers: dict[int, Server] = {}
        for place, (slot, _) in enumerate(asked):
            server = await self._servers.owner(slot)
            servers[id(server)] = server
            places.setdefault(id(server), []).append(place)
        answers = await asyncio.gather(
            *(
                self._read_there(servers[key], [asked[place] for place in found])
                for key, found in places.items()
            )
        )
        found = dict(zip((place for part in places.values() for place in part), chain(*answers), strict=True))
        return [found[place] for place in range(len(asked))]

    async def _read_there(self, server: Server, asked: list[tuple[int, Command]]) -> list[Any]:
        """What one server answers; what it has not is asked for again, one by one."""
        try:
            replies = await server.send([command for _, command in asked])
        except errors.StoreError:
            self._servers.outdated = self.settings.cluster
            raise
        if any(map(_misses_function, replies)):
            self.reloads += 1
            await self.load_library()
        for place, (slot, command) in enumerate(asked):
            if _pointer_of([replies[place]]) is not None or _misses_function(replies[place]):
                [replies[place]] = await self._ask(slot, [command], Use.READING)
        return checked(replies, self.settings.place)

    async def write(self, slot: int, *commands: Command) -> list[Any]:
        """Send commands that change something, in their order, and return their answers.

        Raises:
            StoreError: the server refused one of them, or cannot be reached.
        """
        return checked(await self._ask(slot, commands, Use.WRITING), self.settings.place)

    async def invoke(
        self,
        slot: int,
        function: str,
        keys: Sequence[str],
        arguments: Sequence[str | bytes | int],
        *then: Command,
        use: Use = Use.WRITING,
        waits: bool = True,
    ) -> list[Any]:
        """Call a function of the library, and send other commands behind it.

        Args:
            slot: the slot of the keys.
            function: the name of the function.
            keys: all that it may touch.
            arguments: what else it is told.
            then: commands that follow it.
            use: over which connection.
            waits: wait if the slot is just moving key by key.

        Raises:
            SlotIsMoving: it is, and this was not to wait.
            StoreError: as for ``write``.
        """
        call = ("FCALL", library().function(function), len(keys), *keys, *arguments)
        replies = await self._ask_with_library(slot, (call, *then), use, waits=waits)
        if not waits and _pointed_by(replies) == TRY_AGAIN:
            raise SlotIsMoving
        return checked(replies, self.settings.place)

    async def read_everywhere(self, *commands: Command) -> list[tuple[str, list[Any]]]:
        """Ask every primary the same. Returns how errors name each of them, and its answers.

        Raises:
            StoreError: one of them refused, or cannot be reached.
        """
        self._require_open()
        servers = await self._servers.primaries()
        answers = await asyncio.gather(*(server.send(commands) for server in servers))
        return [
            (server.settings.place, checked(replies, server.settings.place))
            for server, replies in zip(servers, answers, strict=True)
        ]

    async def load_library(self) -> None:
        """Make sure that every primary has the library of this program.

        A user who may not load functions is content with those that are there.

        Raises:
            StoreError: one of them refuses it, or lacks it and the user may not load it.
        """
        self._require_open()
        load: Command = ("FUNCTION", "LOAD", library().source)
        for server in await self._servers.primaries():
            [reply] = await server.send([load], Use.WRITING)
            if not isinstance(reply, ReplyError) or LIBRARY_EXISTS in str(reply):
                continue
            if not str(reply).startswith(NOT_ALLOWED):
                raise server_error(reply, server.settings.place) from reply
            if not await self._has_library(server):
                raise errors.StoreUnusable(
                    f"{server.settings.place} lacks the functions of this program, and its user may not load "
                    "them. Run `flowfabric migrate` as a user who may, then try again."
                )

    async def _has_library(self, server: Server) -> bool:
        replies = await server.send([("FUNCTION", "LIST", "LIBRARYNAME", library().name)])
        return bool(checked(replies, server.settings.place)[0])

    async def has_library(self) -> bool:
        """Whether every primary has the library of this program.

        Raises:
            StoreError: one of them refuses to say, or cannot be reached.
        """
        found = await self.read_everywhere(("FUNCTION", "LIST", "LIBRARYNAME", library().name))
        return all(replies[0] for _, replies in found)

    async def listen(
        self, slot: int, channel: str, hear: Callable[[bytes], None], on_lost: Callable[[], None]
    ) -> Connection:
        """A connection of its own that hears what is published; every server of a cluster passes it on.

        Raises:
            OSError: no server can be reached.
            StoreError: the server refuses us.
        """
        server = await self._servers.owner(slot)
        try:
            connection = await connect(server.settings, hear, on_lost)
        except OSError:
            self._servers.outdated = self.settings.cluster
            raise
        try:
            checked(await connection.send([("SUBSCRIBE", channel)]), server.settings.place)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _ask_with_library(
        self, slot: int, commands: Sequence[Command], use: Use, *, waits: bool = True
    ) -> list[Any]:
        """Send commands of which only the first may write, and send them again if a function was missing."""
        replies = await self._ask(slot, commands, use, waits=waits)
        if any(map(_misses_function, replies)):
            self.reloads += 1
            await self.load_library()
            replies = await self._ask(slot, commands, use, waits=waits)
        return replies

    async def _ask(
        self, slot: int, commands: Sequence[Command], use: Use, *, waits: bool = True
    ) -> list[Any]:
        """Send commands to the server that has the slot, and follow where it points.

        What the server does not do because the slot is just moving is sent again, if it ``waits``.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self._require_open()
            server = await self._servers.owner(slot)
            try:
                replies = await server.send(commands, use)
                pointer = _pointer_of(replies)
                if pointer is not None and pointer[0] == "ASK":
                    replies = await self._ask_aside(server, pointer, commands)
                    pointer = _pointer_of(replies)
            except errors.StoreError:
                self._servers.outdated = self.settings.cluster
                raise
            if pointer is None or time.monotonic() > deadline or (pointer[0] == TRY_AGAIN and not waits):
                return replies
            self.redirects += 1
            if pointer[0] == "MOVED":
                self._servers.note_moved(slot, self._pointed_at(server, pointer))
            else:
                self._servers.outdated = True
                if pointer[0] == "CLUSTERDOWN":
                    self._servers.doubt(server)
                await asyncio.sleep(PAUSE_S)

    async def _ask_aside(self, server: Server, pointer: list[str], commands: Sequence[Command]) -> list[Any]:
        """Send commands once to the server to which a slot is just moving."""
        asking: Command = ("ASKING",)
        aside = [part for command in commands for part in (asking, command)]
        replies = await self._pointed_at(server, pointer).send(aside, Use.WRITING)
        return replies[1::2]

    def _pointed_at(self, server: Server, pointer: list[str]) -> Server:
        host, _, port = pointer[2].rpartition(":")
        return self._servers.at((host or server.settings.host, int(port)))

    def _require_open(self) -> None:
        if not self._open:
            raise errors.StoreUnreachable(
                f"the store {self.settings.place} is not open. Open it before using it."
            )


def _pointer_of(replies: list[Any]) -> list[str] | None:
    """The words with which a server says that it did not act because of how the cluster is, if it does."""
    for reply in replies:
        if isinstance(reply, ReplyError):
            words = str(reply).split(" ")
            if words[0] in ("MOVED", "ASK", TRY_AGAIN, "CLUSTERDOWN"):
                return words
    return None


def _pointed_by(replies: list[Any]) -> str | None:
    """The first of these words, if there is one."""
    pointer = _pointer_of(replies)
    return None if pointer is None else pointer[0]


def _misses_function(reply: Any) -> bool:
    return isinstance(reply, ReplyError) and str(reply).startswith(FUNCTION_MISSING)

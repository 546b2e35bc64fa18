"""One connection to the server: many commands in flight, answered in the order in which they were sent.

What is sent during one turn of the event loop leaves in one write, unless it is large. Nothing is ever
sent twice: when the connection breaks, everything in flight fails, since the server may have acted on any
of it. The protocol is RESP2, which every server speaks from the beginning: version 3 has nothing that is
needed here, since what is subscribed to has a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

import hiredis

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Command = tuple[str | bytes | int, ...]

LARGE_BYTES: Final = 4_096
"""What is as large as this leaves at once, so that the server begins while the next call is written."""


class Waiting:
    """Commands that were sent together, and their answers so far."""

    __slots__ = ("count", "deadline", "future", "replies")

    def __init__(self, count: int, deadline: float, future: asyncio.Future[list[Any]]) -> None:
        self.count = count
        self.deadline = deadline
        """When they are late, on the event loop's clock."""
        self.future = future
        self.replies: list[Any] = []


class Connection(asyncio.Protocol):
    """Sends commands and matches the answers to them.

    Args:
        timeout_ms: how long an answer may take. An answer that is late blocks those behind it, so
            the connection is then given up.
        hear: called with every message of the channels that are subscribed to.
        on_lost: called once when the connection is gone.
    """

    def __init__(
        self,
        timeout_ms: int,
        hear: Callable[[bytes], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._timeout_s = timeout_ms / 1_000
        self._hear = hear
        self._on_lost = on_lost
        self._reader = hiredis.Reader()
        self._waiting: deque[Waiting] = deque()
        self._unsent: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        """Looks for answers that are late: one timer for all, since answers come in their order."""
        self._retired = False
        self.closed = False

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Send some commands together and return their answers; errors of the server among them.

        Raises:
            TimeoutError: no answer came in time.
            OSError: the connection is gone. Whether the server acted is not known.
        """
        if self.closed:
            raise ConnectionResetError
        if not commands:
            return []  # nothing would ever arrive for them
        # Before anything waits: what cannot be written must not wait for an answer.
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
        deadline = self._loop.time() + self._timeout_s
        waiting = Waiting(len(commands), deadline, self._loop.create_future())
        self._waiting.append(waiting)
        if self._watch is None:
            self._watch = self._loop.call_at(deadline, self._look_for_late)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += packed
        if sum(map(len, packed)) >= LARGE_BYTES:
            self._flush()
        return await waiting.future

    def _look_for_late(self) -> None:
        """Give the connection up if an answer is late, or look again when the next one would be."""
        self._watch = None
        if not self._waiting:
            return
        earliest = self._waiting[0]
        if earliest.deadline > self._loop.time():
            self._watch = self._loop.call_at(earliest.deadline, self._look_for_late)
            return
        if not earliest.future.done():
            earliest.future.set_exception(TimeoutError())
        self.close()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None and not self.closed:
            self._transport.write(b"".join(unsent))

    def close(self) -> None:
        """Give the connection up. What is in flight fails."""
        if self._transport is not None:
            self._transport.abort()
        self._lose()

    def close_when_idle(self) -> None:
        """Give the connection up as soon as nothing is in flight."""
        self._retired = True
        if not self._waiting:
            self.close()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._take(reply)
        except hiredis.ProtocolError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._lose()

    def _take(self, reply: Any) -> None:
        if self._hear is not None and isinstance(reply, list) and reply[0] == b"message":
            self._hear(reply[2])
            return
        if not self._waiting:  # the server says why it hangs up, without having been asked
            self.close()
            return
        waiting = self._waiting[0]
        waiting.replies.append(reply)
        if len(waiting.replies) == waiting.count:
            self._waiting.popleft()
            if not waiting.future.done():
                waiting.future.set_result(waiting.replies)
            if self._retired and not self._waiting:
                self.close()

    def _lose(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for waiting in self._waiting:
            if not waiting.future.done():
                waiting.future.set_exception(ConnectionResetError())
        self._waiting.clear()
        if self._on_lost is not None:
            self._on_lost()

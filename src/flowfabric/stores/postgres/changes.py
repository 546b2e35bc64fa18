"""Noticing that another process has committed.

Listening costs a connection of its own that reaches the server itself. Telling others happens after
the commit and off its path: NOTIFY inside the commit would wait for every other notifier. It is
gathered, so many commits tell once, and it need not be durable.

A notification may be lost with its connection. So whoever waits looks at the commit counter once
more when the time is over; without a listener that is done every ``LOOK_MS``. A listener that was
lost is replaced behind the backs of those who wait. One that may be deaf, because the counter told
what it had not, is asked for a sign of life: the network may have swallowed its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from flowfabric import errors
from flowfabric.stores.postgres.connections import connect_listener
from flowfabric.stores.postgres.faults import FAULTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flowfabric.stores.postgres.connections import Connections

LOOK_MS: Final = 50
"""How often the counter is read where nothing can be listened to."""
TELL_MS: Final = 10
"""How long commits are gathered before others are told again."""
CLOSE_TIMEOUT_S: Final = 1
LISTEN_AGAIN_S: Final = 5
"""How long nothing is listened to after it could not be, and how long a listener may take to answer."""

_logger = logging.getLogger("flowfabric.stores")

_TELL: Final = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)"


class Changes:
    """What is known about the commits of others.

    Args:
        connections: where to look and to tell.
        last_commit: reads the number of the latest commit.
    """

    def __init__(self, connections: Connections, last_commit: Callable[[], Awaitable[int]]) -> None:
        self._connections = connections
        self._read_last_commit = last_commit
        self._channel = channel_of(connections.settings.schema)
        self._origin = secrets.token_hex(8)
        self._own = 0
        self._foreign = 0
        self._heard = asyncio.Event()
        self._listener: Any = None
        self._mending: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._untold = False

    async def open(self) -> None:
        """Begin to listen, and remember how many commits there are."""
        await self._listen()
        try:
            self._foreign = await self._read_last_commit()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop listening. What was not told yet is told by the counter."""
        tasks = [task for task in (self._telling, self._mending) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(Exception):  # a dead connection need not be closed well
                await listener.close(timeout=CLOSE_TIMEOUT_S)

    # Telling

    def committed(self) -> None:
        """Note a commit of our own, and let others know soon."""
        self._own += 1
        self._untold = True
        if self._telling is None and self._connections.settings.listen:
            self._telling = asyncio.create_task(self._tell(), name="flowfabric tell")

    async def _tell(self) -> None:
        try:
            while self._untold:
                self._untold = False
                await self._connections.fetch(_TELL, self._channel, self._origin)
                await asyncio.sleep(TELL_MS / 1_000)
        except errors.StoreError:
            pass  # they look at the counter; the next commit tells again
        finally:
            self._telling = None

    # Noticing

    async def wait(self, timeout_ms: int) -> bool:
        """True as soon as another process may have committed, False when the time is over."""
        deadline = time.monotonic() + timeout_ms / 1_000
        while (remaining_s := deadline - time.monotonic()) > 0:
            if self._has_lost_listener():
                self._mend()
            await self._pause(remaining_s)
            heard = self._heard.is_set()
            if heard or await self._counted():
                self._heard.clear()
                if not heard and self._listener is not None:
                    self._mend()
                return True
        return False

    async def _pause(self, remaining_s: float) -> None:
        if self._listener is None or self._listener.is_closed():
            await asyncio.sleep(min(remaining_s, LOOK_MS / 1_000))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(remaining_s):
                await self._heard.wait()

    async def _counted(self) -> bool:
        """True if the commits that are not our own have become more since this was last asked."""
        foreign = await self._read_last_commit() - self._own
        changed = foreign != self._foreign
        self._foreign = foreign
        return changed

    # The listener

    async def _listen(self) -> None:
        """Connect the listener if there should be one."""
        settings = self._connections.settings
        if settings.listen_url is None:
            return
        self._listener = None
        self._listener = await connect_listener(settings, settings.listen_url, self._channel, self._hear)
        self._listener.add_termination_listener(lambda _: self._heard.set())

    def _has_lost_listener(self) -> bool:
        if self._connections.settings.listen_url is None:
            return False
        return self._listener is None or self._listener.is_closed()

    def _mend(self) -> None:
        """Have the listener replaced unless it gives a sign of life. Nobody waits for that."""
        if self._mending is None:
            self._mending = asyncio.create_task(self._replace_listener(), name="flowfabric listen")

    async def _replace_listener(self) -> None:
        try:
            if not await self._answers():
                await self._listen()
        except errors.StoreError as error:
            _logger.warning("cannot listen for changes by other processes, looking for them: %s", error)
            await asyncio.sleep(LISTEN_AGAIN_S)
        finally:
            self._mending = None

    async def _answers(self) -> bool:
        listener = self._listener
        if listener is None or listener.is_closed():
            return False
        try:
            await listener.execute("SELECT 1", timeout=LISTEN_AGAIN_S)
        except FAULTS:
            listener.terminate()
            return False
        return True

    def _hear(self, _connection: Any, _process: int, _channel: str, origin: str) -> None:
        if origin != self._origin:
            self._heard.set()


def channel_of(schema: str) -> str:
    """Where the commits to a schema are told."""
    return f"{schema}_changed"

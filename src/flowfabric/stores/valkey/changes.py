"""Noticing that another process has committed.

Every commit is published by the function that applies it. Listening has a connection of its own, and a
message may be lost with it, so whoever waits also looks at the commit counter when the time is over. A
listener to whom that happens again and again is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Final

from flowfabric.stores.valkey.faults import connection_error
from flowfabric.stores.valkey.telling import note_told, origin_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flowfabric.stores.valkey.client import Client
    from flowfabric.stores.valkey.connection import Connection
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.sightings import Sightings

DEAF_AFTER: Final = 3
"""After how many commits in a row that the counter told of and the listener did not, another one listens."""
WAKE_MS_MIN: Final = 5
"""The least time between two wake-ups: a busy process commits far more often than others should look."""


class Changes:
    """What is known about the commits of others.

    Args:
        client: the way to the servers.
        home: the shard whose server is listened to.
        commits: reads how many commits there are.
        sightings: told of the work that others make claimable.
    """

    def __init__(
        self, client: Client, home: Keys, commits: Callable[[], Awaitable[int]], sightings: Sightings
    ) -> None:
        self.origin = secrets.token_hex(8)
        """What the commits of this process are published under."""
        self._client = client
        self._home = home
        self._read_commits = commits
        self._sightings = sightings
        self._own = 0
        self._foreign = 0
        self._unheard = 0
        self._woken_at = 0.0
        self._heard = asyncio.Event()
        self._listener: Connection | None = None

    async def open(self) -> None:
        """Begin to listen, and remember how many commits there are."""
        await self._listen()
        try:
            self._foreign = await self._read_commits()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def committed(self) -> None:
        """Note a commit of our own."""
        self._own += 1

    async def wait(self, timeout_ms: int) -> bool:
        """True as soon as another process may have committed, False when the time is over."""
        deadline = time.monotonic() + timeout_ms / 1_000
        await self._listen()
        await asyncio.sleep(max(0.0, self._woken_at + WAKE_MS_MIN / 1_000 - time.monotonic()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._heard.wait()
        self._woken_at = time.monotonic()
        if self._heard.is_set():
            self._heard.clear()
            self._unheard = 0
            return True
        changed = await self._counted()
        if changed:
            self._sightings.forget_all()
            self._doubt_listener()
        return changed

    def _doubt_listener(self) -> None:
        """Give a listener up that keeps missing what happens.

        The network may have swallowed its connection, or its server may be cut off from the others of its
        cluster; either looks like a quiet day.
        """
        self._unheard += 1
        if self._unheard >= DEAF_AFTER:
            self._unheard = 0
            self.close()

    async def _counted(self) -> bool:
        """True if the commits that are not our own have become more since this was last asked."""
        own = self._own
        foreign = await self._read_commits() - own
        changed = foreign != self._foreign
        self._foreign = foreign
        return changed

    async def _listen(self) -> None:
        """Connect the listener if there is none that lives."""
        if self._listener is not None and not self._listener.closed:
            return
        settings = self._client.settings
        try:
            self._listener = await self._client.listen(
                self._home.slot, settings.channel, self._hear, self._heard.set
            )
        except OSError as fault:
            raise connection_error(fault, settings.place) from fault
        self._sightings.forget_all()  # nobody has listened since the last one was lost

    def _hear(self, told: bytes) -> None:
        # One of our own may be of a commit whose answer nobody has waited for.
        note_told(told, self._sightings)
        if origin_of(told) != self.origin:
            self._heard.set()

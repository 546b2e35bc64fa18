"""The way of events into the log, where a store has several shards.

A commit reaches one shard only, so it puts its events into the outbox there, together with everything
else. From there they are carried into the one log, in the home shard, which numbers them without gaps.
Whoever commits sees to it at once; what a crash left is found by the next look at that outbox.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.stores.valkey.confirming import require_confirmed, waiting
from flowfabric.stores.valkey.records import log_call
from flowfabric.stores.valkey.telling import teller

if TYPE_CHECKING:
    from flowfabric.stores.valkey.client import Client
    from flowfabric.stores.valkey.keys import Keys, Shards

CARRIED_AT_ONCE: Final = 500
"""How many events one call puts into the log."""

_logger = logging.getLogger("flowfabric.stores")


class Outboxes:
    """Carries events from the outboxes into the log.

    Args:
        client: the way to the shards.
        shards: the shards of the store.
        origin: who tells others that the log has grown.
    """

    def __init__(self, client: Client, shards: Shards, origin: str) -> None:
        self._client = client
        self._shards = shards
        self._origin = origin
        self._filled: dict[int, Keys] = {}
        self._carrying: asyncio.Task[None] | None = None
        self._failing = False
        """The last attempt has failed, and it was said."""

    def note(self, *filled: Keys) -> None:
        """Look into these outboxes soon."""
        if len(self._shards.all) == 1:
            return
        self._filled.update({keys.shard: keys for keys in filled})
        # Between its end and the callback that tells of it, a task carries nothing any more.
        if self._carrying is None or self._carrying.done():
            self._carrying = asyncio.create_task(self._carry_all(), name="flowfabric outboxes")
            self._carrying.add_done_callback(self._carried)

    async def settle(self) -> None:
        """Wait until everything that was noted is in the log.

        Raises:
            StoreError: it could not be carried there. It stays where it is.
        """
        if self._filled:
            self.note()
        if self._carrying is not None:
            await asyncio.shield(self._carrying)

    async def close(self) -> None:
        """Finish what is under way, as far as the store can be reached."""
        try:
            await self.settle()
        except errors.StoreError:
            pass  # the events are safe where they are, and the next process carries them
        finally:
            if self._carrying is not None:
                self._carrying.cancel()

    async def _carry_all(self) -> None:
        while self._filled:
            filled = list(self._filled.values())
            await asyncio.gather(*(self._carry(keys) for keys in filled))

    async def _carry(self, keys: Keys) -> None:
        """Empty one outbox. It counts as filled until that has succeeded."""
        while True:
            self._filled.pop(keys.shard, None)
            try:
                left = await self._carry_some(keys)
            except BaseException:
                self._filled[keys.shard] = keys
                raise
            if not left:
                return

    async def _carry_some(self, keys: Keys) -> bool:
        """Put the beginning of an outbox into the log. True if there may be more."""
        home = self._shards.home
        read = ("XRANGE", keys.outbox, "-", "+", "COUNT", CARRIED_AT_ONCE)
        [entries] = await self._client.read(keys.slot, read)
        if not entries:
            return False
        settings = self._client.settings
        call = log_call(home, keys.shard, entries, settings, teller(self._origin, home.shard))
        # What goes from the outbox must be as safe in the log as it was there.
        [taken, *confirmed] = await self._client.invoke(home.slot, "log", *call, *waiting(settings))
        require_confirmed(confirmed, settings)
        await self._client.write(keys.slot, ("XTRIM", keys.outbox, "MINID", int(taken) + 1))
        return len(entries) == CARRIED_AT_ONCE

    def _carried(self, task: asyncio.Task[None]) -> None:
        if self._carrying is task:
            self._carrying = None
        if task.cancelled():
            return
        fault, failed_before = task.exception(), self._failing
        self._failing = fault is not None
        if fault is not None and not failed_before:
            _logger.warning("events wait in their outboxes and are carried to the log later: %s", fault)

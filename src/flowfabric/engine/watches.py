"""What an engine looks at all the time: changes by other processes, and what a commit survives."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from flowfabric import errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flowfabric.engine.endings import Endings
    from flowfabric.engine.notifier import Notifier
    from flowfabric.stores.base import Store

ATTEST_S: Final = 60
"""How often the store is asked again what an acknowledged commit survives."""
WATCH_MS: Final = 1_000
"""How long one look for changes by other processes takes at most, and the pause after a fault."""

log = logging.getLogger("flowfabric.engine")


async def watch_store(store: Store, notifier: Notifier, endings: Endings) -> None:
    """Wake those who wait in this process whenever another process has changed the store."""
    while True:
        try:
            if await store.wait_for_change(WATCH_MS):
                notifier.publish_foreign_change(sparing=endings.take_over())
        except errors.StoreError as error:
            log.warning("cannot look for changes by other processes, trying again: %s", error)
            await asyncio.sleep(WATCH_MS / 1_000)
        except Exception:  # a watch that ended unseen would leave everyone here asleep
            log.exception("looking for changes by other processes failed unexpectedly")
            await asyncio.sleep(WATCH_MS / 1_000)


async def watch_durability(attest: Callable[[], Awaitable[object]]) -> None:
    """Keep ``durability`` true: the owner of a server may change what commits survive."""
    while True:
        await asyncio.sleep(ATTEST_S)
        try:
            await attest()
        except errors.StoreError as error:
            log.warning("cannot learn what a commit survives, trying again: %s", error)
        except Exception:  # a watch that ended unseen would leave the old answer standing
            log.exception("learning what a commit survives failed unexpectedly")

"""Who waits for the end of an execution, when another process has changed anything.

Whoever is woken asks for all that is to be known of an execution. Where many wait, a busy process elsewhere
would have all of them ask after each of its commits. So their executions are looked at together then, and
those are woken whose execution has ended. Few wake as quickly as they could be looked after.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.core.records import Execution, key_for
from flowfabric.core.state import is_terminal
from flowfabric.engine.notifier import ENDED, ended_topic

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from flowfabric.engine.notifier import Notifier
    from flowfabric.stores.base import Store

FEW: Final = 8
"""How many executions are waited for at most if all who wait are woken."""
LOADED_AT_ONCE: Final = 256
REST_S: Final = 0.01
"""How long a look is behind the one before it at least, however often something changes."""

log = logging.getLogger("flowfabric.engine")


class Endings:
    """Looks after those who wait, where they are many.

    Args:
        store: where their executions are looked at.
        notifier: where they wait.
    """

    def __init__(self, store: Store, notifier: Notifier) -> None:
        self._store = store
        self._notifier = notifier
        self._changed = asyncio.Event()

    def open(self) -> None:
        """Begin anew. The event loop may be another one from now on."""
        self._changed = asyncio.Event()

    def take_over(self) -> Collection[str]:
        """Look after those who wait, because anything may have changed.

        Returns:
            Their topics; none if they are few, and have to be woken.
        """
        topics = self._notifier.waited_for(ENDED)
        if len(topics) <= FEW:
            return ()
        self._changed.set()
        return topics

    async def watch(self) -> None:
        """Do that for as long as the engine runs."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            topics = self._notifier.waited_for(ENDED)
            try:
                await self._wake([topic.removeprefix(ENDED) for topic in topics])
            except errors.FlowFabricError as error:
                log.warning("cannot see what has ended, all who wait for that look for themselves: %s", error)
                self._notifier.publish(topics)
            await asyncio.sleep(REST_S)

    async def _wake(self, execution_ids: Sequence[str]) -> None:
        """Wake those whose execution has ended, or is not there."""
        for start in range(0, len(execution_ids), LOADED_AT_ONCE):
            part = execution_ids[start : start + LOADED_AT_ONCE]
            loaded = await self._store.load([key_for(Execution, execution_id) for execution_id in part])
            records = {key: record for key, _, record in loaded.rows}
            for execution_id in part:
                record = records[key_for(Execution, execution_id)]
                if not isinstance(record, Execution) or is_terminal(record):
                    self._notifier.publish([ended_topic(execution_id)])

"""Write combining: while one batch of commands is in flight, the next one fills."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric.engine.tickets import group_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.work import Envelope
    from flowfabric.engine.cycle import Cycle
    from flowfabric.engine.tickets import Ticket

BATCH_MAX: Final = 256
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""How many bytes of payloads go into one batch; one command may have more. All others wait while a
store writes them, and a commit of all the largest payloads would outlast the store's patience."""


class Batches:
    """Gathers commands into batches, and runs one batch after the other."""

    def __init__(self, cycle: Cycle) -> None:
        self._cycle = cycle
        self._queue: list[Ticket] = []
        self.pump: asyncio.Task[None] | None = None
        """What runs the batches, as long as there are any."""

    @property
    def waiting(self) -> int:
        """How many commands wait for the next batch."""
        return len(self._queue)

    async def decide(self, asked: Sequence[tuple[Command[Any], Envelope]]) -> list[Any]:
        """Have the rules of some commands decide them, in one batch as far as possible.

        Returns:
            For each command its outcome, or the exception that refused it.
        """
        if not asked:
            return []
        loop = asyncio.get_running_loop()
        answers: asyncio.Future[list[Any]] = loop.create_future()
        waiting = group_of(asked, answers).start()
        if waiting:
            self._queue.extend(waiting)
            if self.pump is None:
                self.pump = loop.create_task(self._run())
        return await answers

    async def drain(self) -> None:
        """Wait until every command has its answer."""
        if self.pump is not None:
            await asyncio.wait([self.pump])  # unlike a plain await, it never cancels the pump

    async def _run(self) -> None:
        try:
            while self._queue:
                size = _batch_size(self._queue)
                batch, self._queue = self._queue[:size], self._queue[size:]
                await self._cycle.run(batch)
        finally:
            self.pump = None


def _batch_size(queue: list[Ticket]) -> int:
    """How many of the tickets fit into one batch."""
    payload_bytes = 0
    for size, ticket in enumerate(queue[:BATCH_MAX]):
        payload_bytes += sum(
            len(getattr(ticket.command, field) or b"") for field in _payload_fields(type(ticket.command))
        )
        if size and payload_bytes > BATCH_BYTES_MAX:
            return size
    return min(len(queue), BATCH_MAX)


@cache
def _payload_fields(command_type: type[Command[Any]]) -> tuple[str, ...]:
    """The fields that hold bytes."""
    found = msgspec.inspect.type_info(command_type)
    assert isinstance(found, msgspec.inspect.StructType)
    return tuple(field.name for field in found.fields if _holds_bytes(field.type))


def _holds_bytes(found: msgspec.inspect.Type) -> bool:
    if isinstance(found, msgspec.inspect.UnionType):
        return any(_holds_bytes(one) for one in found.types)
    return isinstance(found, msgspec.inspect.BytesType)

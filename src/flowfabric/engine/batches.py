"""Write combining: while some batches of commands are in flight, the next one fills."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from flowfabric.engine.native import subjects_of
from flowfabric.engine.sizes import payload_bytes
from flowfabric.engine.tickets import group_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.records import Key
    from flowfabric.core.work import Envelope
    from flowfabric.engine.cycle import Cycle
    from flowfabric.engine.tickets import Ticket

BATCH_MAX: Final = 256
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""How many bytes of payloads go into one batch; one command may have more. All others wait while a
store writes them, and a commit of all the largest payloads would outlast the store's patience."""

LOOKED_AT_MAX: Final = 4 * BATCH_MAX
"""How many of the commands that wait are looked at to find those of the next batch."""


class Batches:
    """Gathers commands into batches, and runs them.

    Args:
        cycle: gives the commands of a batch their answers.
        at_once: how many batches are under way at the same time.
    """

    def __init__(self, cycle: Cycle, *, at_once: int) -> None:
        self._cycle = cycle
        self._at_once = at_once
        self._queue: list[Ticket] = []
        self._held: list[Ticket] = []
        """What waits for a batch under way, which is about a record that it reads; ahead of the queue."""
        self._subjects: set[Key] = set()
        """What the batches under way are about."""
        self._gathering: asyncio.Task[None] | None = None
        """The pump that takes a batch at the next turn of the event loop."""
        self.pumps: set[asyncio.Task[None]] = set()
        """What runs the batches, as long as there are any."""

    @property
    def waiting(self) -> int:
        """How many commands wait for the next batch."""
        return len(self._held) + len(self._queue)

    async def decide(self, asked: Sequence[tuple[Command[Any], Envelope]]) -> list[Any]:
        """Have the rules of some commands decide them, in one batch as far as possible.

        Returns:
            For each command its outcome, or the exception that refused it.
        """
        if not asked:
            return []
        answers: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        waiting = group_of(asked, answers).start()
        if waiting:
            self._queue.extend(waiting)
            self._gather()
        return await answers

    async def drain(self) -> None:
        """Wait until every command has its answer."""
        while running := [pump for pump in self.pumps if not pump.done()]:
            await asyncio.wait(running)  # unlike a plain await, it never cancels the pumps

    def _gather(self) -> None:
        """Have what waits taken soon, with what comes up until then."""
        if not self._queue or len(self.pumps) >= self._at_once:
            return
        if self._gathering is None or self._gathering.done():
            self._gathering = pump = asyncio.get_running_loop().create_task(self._run())
            self.pumps.add(pump)
            pump.add_done_callback(self.pumps.discard)

    async def _run(self) -> None:
        """Run one batch after the other, until nothing waits but for other batches.

        The first one is taken after two turns of the event loop: what is done in one turn wakes others for
        the next, such as those that submit as soon as there is room, so they need no batch of their own.
        """
        await asyncio.sleep(0)
        pump, self._gathering = self._gathering, None
        try:
            while batch := self._take():
                self._gather()
                await self._run_one(batch)
        finally:
            if pump is not None:
                # Not only when it is done, a turn later: whoever asks until then needs a new one.
                self.pumps.discard(pump)

    async def _run_one(self, batch: list[Ticket]) -> None:
        subjects = subjects_of(batch)
        self._subjects |= subjects
        try:
            await self._cycle.run(batch)
        finally:
            self._subjects -= subjects
            self._queue, self._held = self._held + self._queue, []

    def _take(self) -> list[Ticket]:
        """The next batch. What is sure to read a record that a batch under way is about is held back."""
        looked_at, behind = self._queue[:LOOKED_AT_MAX], self._queue[LOOKED_AT_MAX:]
        free, held = _part(looked_at, self._subjects) if self._subjects else (looked_at, [])
        size = _batch_size(free)
        self._queue = free[size:] + behind
        self._held += held
        return free[:size]


def _part(queue: list[Ticket], subjects: set[Key]) -> tuple[list[Ticket], list[Ticket]]:
    """The tickets that need none of these records, and the others, each in their order.

    What is about the same record as one of the others, or is sure to read that, stays behind it.
    """
    free: list[Ticket] = []
    held: list[Ticket] = []
    busy = set(subjects)
    for ticket in queue:
        if busy.isdisjoint(ticket.first_reads()):
            free.append(ticket)
        else:
            held.append(ticket)
            if ticket.subject is not None:
                busy.add(ticket.subject)
    return free, held


def _batch_size(queue: list[Ticket]) -> int:
    """How many of the tickets fit into one batch."""
    carried = 0
    for size, ticket in enumerate(queue[:BATCH_MAX]):
        carried += payload_bytes(ticket.command)
        if size and carried > BATCH_BYTES_MAX:
            return size
    return min(len(queue), BATCH_MAX)

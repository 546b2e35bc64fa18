"""Sees to what commits owe to other records, before they are answered.

It acts in the task of the batch that owes it, beside the queue: the queue waits for that batch, so
commands that went through it would wait for ever. What cannot be done now is left to the scanners.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from flowfabric.engine.batches import BATCH_MAX
from flowfabric.engine.cycle import Cycle
from flowfabric.engine.deliveries import deliver, news_of
from flowfabric.engine.notifier import due_topic
from flowfabric.engine.tickets import group_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.work import Envelope
    from flowfabric.engine.cycle import Deliverer
    from flowfabric.engine.deliveries import CarryOutAside, Owed
    from flowfabric.engine.known import Known
    from flowfabric.engine.notifier import Notifier
    from flowfabric.engine.observing import Observer
    from flowfabric.engine.tickets import Ticket
    from flowfabric.stores.base import Store

ACTOR: Final = "engine"
DELIVERY_ROUNDS_MAX: Final = 8
"""How many steps of what a commit owes are done before it is answered; a scanner does the rest."""

log = logging.getLogger("flowfabric.engine")


class Courier:
    """Delivers what commits owe.

    Args:
        store, known, notifier, observer: see ``Cycle``.
        envelope: makes what travels with a command that may concern any namespace, for an actor.
    """

    def __init__(
        self,
        store: Store,
        known: Known,
        notifier: Notifier,
        envelope: Callable[[str], Envelope],
        *,
        observer: Observer | None = None,
    ) -> None:
        self._store = store
        self._notifier = notifier
        self._envelope = envelope

        def cycle_for(deliverer: Deliverer) -> Cycle:
            return Cycle(store, known, notifier, deliverer, observer=observer)

        self._cycle_for = cycle_for

    async def deliver(self, owed: list[Owed]) -> None:
        """Do what a commit owes to other records, and what follows from that, up to a bound.

        The scanners are woken for what is left.
        """
        errand = Errand(self._store, self._cycle_for, self._envelope)
        left = {one.index for one in owed}
        try:
            left = await self._deliver(errand, owed)
        finally:
            self._notifier.publish(map(due_topic, left))

    async def _deliver(self, errand: Errand, owed: list[Owed]) -> set[str]:
        """The same. Returns the indexes that have entries left."""
        left: set[str] = set()
        for _ in range(DELIVERY_ROUNDS_MAX):
            if not owed:
                break
            left.update(await errand.run(owed[:BATCH_MAX]))
            owed = owed[BATCH_MAX:] + errand.take_following()
        return left.union(one.index for one in owed)

    def following(self, batch: list[Ticket], now: int) -> list[Ticket]:
        """See ``Deliverer``."""
        return _following(batch, now, self._envelope)


class Errand:
    """What one commit owes. It is the engine of the commands that this takes."""

    def __init__(
        self,
        store: Store,
        cycle_for: Callable[[Deliverer], Cycle],
        envelope: Callable[[str], Envelope],
    ) -> None:
        self.store = store
        self._cycle = cycle_for(self)
        self._envelope = envelope
        self._following: list[Owed] = []

    async def run(self, owed: list[Owed]) -> set[str]:
        """See to some entries. Returns the indexes in which entries are left to the scanners."""
        ruled = [one for one in owed if one.delivery.carry_out is None]
        done = await self._run_rules([(one, one.delivery.act(one.member)) for one in ruled])
        forgetting = [
            (one, one.delivery.forget(one.member)) for one in done if one.delivery.forget is not None
        ]
        settled = [one for one in done if one.delivery.forget is None] + await self._run_rules(forgetting)
        for one in owed:
            if one.delivery.carry_out is not None:  # one after the other: each takes several commits
                await self._run_operation(one, one.delivery.carry_out)
        # Of an operation a part may be left, so it is not settled.
        return {one.index for one in {*owed} - {*settled}}

    async def deliver(self, owed: list[Owed]) -> None:
        """Note what a commit of this errand owes in turn."""
        self._following += owed

    def following(self, batch: list[Ticket], now: int) -> list[Ticket]:
        """See ``Deliverer``."""
        return _following(batch, now, self._envelope)

    def take_following(self) -> list[Owed]:
        """What the commits of this errand owed since the last call."""
        taken, self._following = self._following, []
        return taken

    async def execute_unbounded(self, commands: Sequence[Command[Any]], *, actor: str = ACTOR) -> list[Any]:
        """Carry out commands that rules alone answer, at once."""
        answers: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        waiting = group_of([(command, self._envelope(actor)) for command in commands], answers).start()
        for start in range(0, len(waiting), BATCH_MAX):
            await self._cycle.run(waiting[start : start + BATCH_MAX])
        return await answers

    async def _run_rules(self, asked: list[tuple[Owed, Command[Any]]]) -> list[Owed]:
        """Run the commands for some entries. Returns the entries whose command was carried out."""
        if not asked:
            return []
        answers = await self.execute_unbounded([command for _, command in asked])
        done = []
        for (one, command), answer in zip(asked, answers, strict=True):
            if isinstance(answer, Exception):
                _leave(command, answer)
            else:
                done.append(one)
        return done

    async def _run_operation(self, one: Owed, carry_out: CarryOutAside) -> None:
        command = one.delivery.act(one.member)
        try:
            await carry_out(self, command, self._envelope(ACTOR))
        except Exception as error:  # noqa: BLE001 - the commit stands, whatever becomes of this
            _leave(command, error)


def _following(batch: list[Ticket], now: int, envelope: Callable[[str], Envelope]) -> list[Ticket]:
    """Tickets that deliver the news of a batch, as many as a batch may have."""
    news = news_of((ticket.work for ticket in batch), now)
    if not news:
        return []
    group = group_of([(deliver(message.identity), envelope(ACTOR)) for message in news[:BATCH_MAX]])
    for ticket in group.tickets:
        ticket.follows = True
    return group.tickets


def _leave(command: Command[Any], error: Exception) -> None:
    log.warning("%s is left to the scanners: %s", type(command).__name__, error)

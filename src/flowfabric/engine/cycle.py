"""What happens to a batch: load, decide, commit, see to what is owed, answer.

The rules this module keeps:

- An answer is given after the commit that made it true, never before.
- A refused command never fails its batch; a conflict runs again only the commands that touched the
  changed records.
- A store fault fails every command of the batch with that fault. Whether it took effect is
  learned by asking again with the same request id.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from flowfabric import errors
from flowfabric.core.commands import ClaimCandidateArgs
from flowfabric.engine.commits import affected_by, build_commit
from flowfabric.engine.deciding import decide_batch, decide_following
from flowfabric.engine.deliveries import owed_by
from flowfabric.engine.native import choose, decide_natively, native_of
from flowfabric.stores.base import Conflict

if TYPE_CHECKING:
    from flowfabric.core.work import WorkingSet
    from flowfabric.engine.deliveries import Owed
    from flowfabric.engine.known import Known
    from flowfabric.engine.notifier import Notifier
    from flowfabric.engine.observing import Observer
    from flowfabric.engine.tickets import Ticket
    from flowfabric.engine.underway import Writing
    from flowfabric.stores.base import Commit, Store

CONFLICTS_MAX: Final = 8


class Deliverer(Protocol):
    """What is told what a commit owes to other records, before the commit is answered."""

    async def deliver(self, owed: list[Owed]) -> None:
        """See to it now, or see that somebody does. It is on record, so nothing is lost."""

    def following(self, batch: list[Ticket], now: int) -> list[Ticket]:
        """Tickets for what a batch that was decided owes in its own place, so that one commit does both."""


class Cycle:
    """Gives the tickets of a batch their answers.

    Args:
        store: what is loaded from and committed to.
        known: what need not be loaded, and what is just being written.
        notifier: is told what every commit has changed.
        deliverer: is told what every commit owes.
        observer: is told how every commit went.
    """

    def __init__(
        self,
        store: Store,
        known: Known,
        notifier: Notifier,
        deliverer: Deliverer,
        *,
        observer: Observer | None = None,
    ) -> None:
        self._store = store
        self._known = known
        self._notifier = notifier
        self._deliverer = deliverer
        self._observer = observer
        self._native = native_of(store)

    async def run(self, batch: list[Ticket]) -> None:
        """Give every ticket of the batch its answer, whatever happens: those who ask would wait for ever."""
        try:
            await self._run(batch)
        except BaseException as error:
            _settle_all(batch, error)
            if not isinstance(error, Exception):
                raise

    async def _run(self, batch: list[Ticket]) -> None:
        """Have the store itself decide where it can, and the rules where it cannot."""
        taken, others = (
            ([], batch) if self._native is None else choose(self._native, batch, self._known.recent)
        )
        if not taken:
            await self._run_rules(batch)
            return
        parts = _by_kind(taken)
        if len(parts) == 1 and not others:
            await self._run_natively_or_by_rules(taken)
            return
        await asyncio.gather(*map(self._run_natively_or_by_rules, parts), self._run_rules(others))

    async def _run_natively_or_by_rules(self, batch: list[Ticket]) -> None:
        """Have the store decide, and the rules what it declines."""
        if declined := await self._run_natively(batch):
            await self._run_rules(declined)

    async def _run_natively(self, batch: list[Ticket]) -> list[Ticket]:
        """Have the store decide. Returns the tickets that are left to the rules."""
        assert self._native is not None
        began = time.perf_counter()
        try:
            declined = await decide_natively(
                self._native, batch, self._known, self._notifier, self._deliverer
            )
        except BaseException as error:
            _settle_all(batch, error)
            if not isinstance(error, Exception):
                raise
            return []
        if self._observer is not None and len(declined) < len(batch):
            self._observer.committed(len(batch) - len(declined), time.perf_counter() - began)
        return declined

    async def _run_rules(self, batch: list[Ticket]) -> None:
        """Have the rules decide, those of each place together."""
        parts = _by_place(batch, self._store)
        if len(parts) == 1:
            await self._run_part(*parts.popitem())
        elif parts:
            await asyncio.gather(*(self._run_part(place, part) for place, part in parts.items()))

    async def _run_part(self, place: int, batch: list[Ticket]) -> None:
        """Load, decide and commit until every ticket has its answer."""
        working_set = self._known.working_set()
        try:
            while batch:
                whole, writing = await self._decide(place, batch, working_set)
                with writing:
                    commit, done, again = await self._commit(whole, working_set)
                # Not while it is writing: what it owes may have to be written to the same records.
                await self._answer(commit, done)
                batch = again
                if batch:
                    working_set.clear()
                    await _pause(batch)
        except errors.StoreCorrupt as error:
            await self._run_apart(place, [ticket for ticket in batch if not ticket.settled], error)
        except errors.FlowFabricError as error:
            for ticket in batch:
                ticket.settle(error)
        except Exception as error:  # noqa: BLE001 - a value that cannot be stored, or a fault of ours
            await self._run_apart(place, [ticket for ticket in batch if not ticket.settled], error)
        except asyncio.CancelledError as error:
            _settle_all(batch, error)
            raise

    async def _decide(
        self, place: int, batch: list[Ticket], working_set: WorkingSet
    ) -> tuple[list[Ticket], Writing]:
        """Run the rules of a batch, while no other one of this place decides.

        Returns:
            The batch with what follows from it, and what keeps others from deciding by what it writes.
        """
        async with self._known.under_way.deciding(place):
            await decide_batch(self._store, batch, working_set, self._known.under_way)
            whole = await self._and_following(batch, working_set)
            return whole, self._known.under_way.begin(key for ticket in whole for key in ticket.work.writes)

    async def _and_following(self, batch: list[Ticket], working_set: WorkingSet) -> list[Ticket]:
        """The batch, with what it owes in the same place and need not be a commit of its own.

        A message that is delivered here never reaches the store. What cannot be decided here, or is in
        doubt, is delivered after the commit.
        """
        following = self._deliverer.following(batch, working_set.now)
        if not following:
            return batch
        return batch + await decide_following(self._store, following, working_set, self._known.under_way)

    async def _run_apart(self, place: int, batch: list[Ticket], error: Exception) -> None:
        """Run each ticket alone, so that what is damaged fails only the one that needs it."""
        if len(batch) == 1:
            batch[0].settle(error)
            return
        for ticket in batch:
            await self._run_part(place, [ticket])

    async def _commit(
        self, batch: list[Ticket], working_set: WorkingSet
    ) -> tuple[Commit | None, list[Ticket], list[Ticket]]:
        """Commit what the batch changed, without the tickets that a conflict touches.

        Returns:
            What was committed, the tickets that it answers, and those that must run again.
        """
        again: list[Ticket] = []
        while (commit := build_commit([ticket.work for ticket in batch], working_set)) is not None:
            try:
                await self._apply(commit, len(batch))
                break
            except Conflict as conflict:
                batch, touched = self._divide(batch, conflict)
                again += touched
        return commit, batch, again

    async def _answer(self, commit: Commit | None, batch: list[Ticket]) -> None:
        """Wake who waits for what was committed, deliver what it owes, and settle the tickets."""
        if commit is not None:
            self._notifier.publish_commit(commit)
            if owed := owed_by(commit):
                await self._deliverer.deliver(owed)
        for ticket in batch:
            ticket.settle()

    async def _apply(self, commit: Commit, commands: int) -> None:
        """Commit, remember what was written, and tell the observer how that went."""
        if self._observer is None:
            self._known.recent.keep(commit, await self._store.commit(commit))
            return
        began = time.perf_counter()
        try:
            self._known.recent.keep(commit, await self._store.commit(commit))
        except Conflict:
            self._observer.conflicted(commands, time.perf_counter() - began)
            raise
        self._observer.committed(commands, time.perf_counter() - began)

    def _divide(self, batch: list[Ticket], conflict: Conflict) -> tuple[list[Ticket], list[Ticket]]:
        """The tickets that the conflict did not touch, and those of the others that run again."""
        self._known.lanes.forget(conflict.keys)
        self._known.recent.share(conflict.keys)
        affected = affected_by(conflict.keys, [ticket.work for ticket in batch])
        touched = [ticket for ticket, is_touched in zip(batch, affected, strict=True) if is_touched]
        rest = [ticket for ticket, is_touched in zip(batch, affected, strict=True) if not is_touched]
        for ticket in touched:
            ticket.conflicts += 1
            if ticket.conflicts >= CONFLICTS_MAX:
                ticket.settle(errors.Contention(record=min(conflict.keys), tries=CONFLICTS_MAX))
        # What follows comes up again by itself, or with the commit of what it follows from.
        return rest, [ticket for ticket in touched if ticket.conflicts < CONFLICTS_MAX and not ticket.follows]


async def _pause(batch: list[Ticket]) -> None:
    """Wait a moment before tickets run again, each time longer.

    Several engines that want the same record would else keep meeting again.
    """
    patience_ms = 2 ** max(ticket.conflicts for ticket in batch)
    await asyncio.sleep(random.random() * patience_ms / 1_000)  # noqa: S311 - spreads retries


def _settle_all(batch: list[Ticket], error: BaseException) -> None:
    """Answer whatever has no answer yet with what stopped the batch."""
    if not isinstance(error, Exception):
        error = errors.Unavailable("The engine was cancelled. Whether it acted is not known.")
    for ticket in batch:
        ticket.settle(error)


def _by_kind(batch: list[Ticket]) -> list[list[Ticket]]:
    """The tickets by their command's type, so that none waits for the answers to others.

    Claims come first: handlers wait for them.
    """
    parts: dict[type[Any], list[Ticket]] = {}
    for ticket in batch:
        parts.setdefault(type(ticket.command), []).append(ticket)
    claims = parts.pop(ClaimCandidateArgs, None)
    return list(parts.values()) if claims is None else [claims, *parts.values()]


def _by_place(batch: list[Ticket], store: Store) -> dict[int, list[Ticket]]:
    """The tickets by the place in which their commands write: that of the first record they read."""
    parts: dict[int, list[Ticket]] = {}
    for ticket in batch:
        key = next(iter(ticket.first_reads()), "")
        parts.setdefault(store.place_of(key), []).append(ticket)
    return parts

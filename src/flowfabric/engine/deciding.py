"""Runs the rules of a batch, and loads what they turn out to need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric.core.work import Missing, Work
from flowfabric.engine.commits import remember_outcome, repeated_outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowfabric.core.records import Key
    from flowfabric.core.work import WorkingSet
    from flowfabric.engine.tickets import Ticket
    from flowfabric.engine.underway import UnderWay
    from flowfabric.stores.base import Ledger

ROUNDS_MAX: Final = 1_100
"""How often the rules of one batch may ask for records that are not loaded yet. One that makes many
records may ask once for each."""

FOLLOWING_ROUNDS_MAX: Final = 16
"""The same for what follows from a batch. What asks more often is left to a commit of its own."""


async def decide_batch(
    store: Ledger, batch: Sequence[Ticket], working_set: WorkingSet, under_way: UnderWay | None = None
) -> None:
    """Run the rules of the batch, loading whatever they turn out to need.

    Args:
        store: what is loaded from.
        batch: whose rules are run.
        working_set: gets what is loaded.
        under_way: what others are just writing, which is waited for where it is needed.
    """
    wanted = _first_reads(batch, working_set)
    for _ in range(ROUNDS_MAX):
        await _load(store, wanted, working_set, under_way)
        working_set.current.clear()
        wanted = {key for ticket in batch for key in _decide_one(ticket, working_set)}
        if not wanted:
            return
    raise AssertionError(f"rules still ask for records after {ROUNDS_MAX} rounds: {sorted(wanted)[:3]}")


async def decide_following(
    store: Ledger, tickets: Sequence[Ticket], working_set: WorkingSet, under_way: UnderWay | None = None
) -> list[Ticket]:
    """Run the rules of commands that follow from those of a batch, behind them. See ``decide_batch``.

    Returns:
        The tickets that change something. All others are left out: a commit does not need them.
    """
    changing: list[Ticket] = []
    waiting = list(tickets)
    for _ in range(FOLLOWING_ROUNDS_MAX):
        missing = {ticket: set(_decide_one(ticket, working_set)) for ticket in waiting}
        changing += [ticket for ticket in waiting if not missing[ticket] and ticket.work.changed]
        # What is in doubt is not loaded anew: the commands before these have been decided by it.
        waiting = [ticket for ticket in waiting if missing[ticket] - working_set.loaded.keys()]
        if not waiting:
            break
        await _load(store, {key for ticket in waiting for key in missing[ticket]}, working_set, under_way)
    return changing


async def _load(store: Ledger, wanted: set[Key], working_set: WorkingSet, under_way: UnderWay | None) -> None:
    """Load records, and the time if it is not known yet; but no record that one's own commit is changing.

    That commit is waited for, and what it has written need not be loaded then.
    """
    if under_way is not None and not under_way.isdisjoint(wanted):
        await under_way.wait_for(wanted)
        wanted = {key for key in wanted if key in working_set.doubtful or not working_set.has(key)}
    if wanted or not working_set.now:
        loaded = await store.load(wanted)
        working_set.put_loaded(loaded.now, loaded.rows)


def _first_reads(batch: Sequence[Ticket], working_set: WorkingSet) -> set[Key]:
    """What the commands of the batch are sure to read and has to be loaded."""
    for ticket in batch:
        for key in ticket.rule.makes(ticket.command):
            working_set.expect_none(key)
    return {key for ticket in batch for key in ticket.first_reads() if not working_set.has(key)}


def _decide_one(ticket: Ticket, working_set: WorkingSet) -> Iterable[Key]:
    """Run one rule. Returns the keys of the records that have to be loaded before its answer counts."""
    work = Work(working_set, ticket.envelope)
    ticket.work, ticket.error = work, None
    try:
        repeated = repeated_outcome(ticket.rule, ticket.command, work)
        if repeated is not None:
            ticket.answer = repeated
            return work.doubts
        ticket.answer = ticket.rule.decide(work, ticket.command)
        remember_outcome(ticket.rule, ticket.command, work, ticket.answer)
    except Missing as missing:
        return missing.keys
    except Exception as refusal:  # noqa: BLE001 - a broken rule must not fail the commands beside it
        work.discard()
        ticket.error = refusal
        return work.doubts
    working_set.absorb(work)
    return work.doubts

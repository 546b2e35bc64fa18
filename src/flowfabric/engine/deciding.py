"""Runs the rules of a batch, and loads what they turn out to need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric.core.work import Missing, Work
from flowfabric.engine.commits import remember_outcome, repeated_outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.core.work import WorkingSet
    from flowfabric.engine.tickets import Ticket
    from flowfabric.stores.base import Ledger

ROUNDS_MAX: Final = 1_100
"""How often the rules of one batch may ask for records that are not loaded yet. One that makes many
records may ask once for each."""


async def decide_batch(store: Ledger, batch: Sequence[Ticket], working_set: WorkingSet) -> None:
    """Run the rules of the batch, loading whatever they turn out to need."""
    wanted = _first_reads(batch) - working_set.loaded.keys()
    for _ in range(ROUNDS_MAX):
        if wanted or not working_set.now:
            loaded = await store.load(wanted)
            working_set.put_loaded(loaded.now, loaded.rows)
        working_set.current.clear()
        wanted = {key for ticket in batch for key in _decide_one(ticket, working_set)}
        if not wanted:
            return
    raise AssertionError(f"rules still ask for records after {ROUNDS_MAX} rounds: {sorted(wanted)[:3]}")


def _first_reads(batch: Sequence[Ticket]) -> set[str]:
    return {key for ticket in batch for key in ticket.first_reads()}


def _decide_one(ticket: Ticket, working_set: WorkingSet) -> tuple[str, ...]:
    """Run one rule. Returns the keys of the records it needs and that are not loaded."""
    work = Work(working_set, ticket.envelope)
    ticket.work, ticket.error = work, None
    try:
        repeated = repeated_outcome(ticket.rule, ticket.command, work)
        if repeated is not None:
            ticket.answer = repeated
            return ()
        ticket.answer = ticket.rule.decide(work, ticket.command)
        remember_outcome(ticket.rule, ticket.command, work, ticket.answer)
    except Missing as missing:
        return missing.keys
    except Exception as refusal:  # noqa: BLE001 - a broken rule must not fail the commands beside it
        work.discard()
        ticket.error = refusal
        return ()
    working_set.absorb(work)
    return ()

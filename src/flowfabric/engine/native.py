"""Has the store decide by itself what it can decide: one call in the place of a load and a commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.engine.deliveries import owed_by
from flowfabric.engine.notifier import topics_of
from flowfabric.stores.base import DECLINED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowfabric.core.records import Key
    from flowfabric.engine.cycle import Deliverer
    from flowfabric.engine.known import Known
    from flowfabric.engine.notifier import Notifier
    from flowfabric.engine.recent import RecentRecords
    from flowfabric.engine.tickets import Ticket
    from flowfabric.stores.base import Native, Store


def native_of(store: Store) -> Native | None:
    """What a store decides by itself; None for one that decides nothing."""
    native: Native | None = getattr(store, "native", None)
    return native


def choose(
    native: Native, batch: Sequence[Ticket], recent: RecentRecords
) -> tuple[list[Ticket], list[Ticket]]:
    """The tickets that the store may decide, and the others.

    Commands about one record belong together: they are decided in their order, by the store if it keeps
    that for commands of their kind, and if it does not leave them to the rules for what is remembered. Those
    that the store would look at such a record for belong with them, and only the rules keep an order among
    all of these.
    """
    about: dict[Key | Ticket, list[Ticket]] = {}
    for ticket in batch:
        # What is about no record is idempotent, so it has no place in an order either.
        about.setdefault(ticket.subject() or ticket, []).append(ticket)
    looked_at = {
        subject: {key for ticket in tickets for key in native.looks_at(ticket.command)}
        for subject, tickets in about.items()
        if _may_be_taken(native, tickets, recent)
    }
    both = about.keys() & {key for keys in looked_at.values() for key in keys}
    theirs = {
        ticket
        for subject, keys in looked_at.items()
        if subject not in both and keys.isdisjoint(both)
        for ticket in about[subject]
    }
    taken = [ticket for ticket in batch if ticket in theirs]
    others = [ticket for ticket in batch if ticket not in theirs]
    return taken, others


def _may_be_taken(native: Native, tickets: Sequence[Ticket], recent: RecentRecords) -> bool:
    """Whether the store may decide all of these, which are about one record."""
    first = tickets[0].command
    kinds = {type(ticket.command) for ticket in tickets}
    return (len(tickets) == 1 or (len(kinds) == 1 and native.orders(first))) and all(
        native.takes(ticket.command) and not _is_left(native, ticket, recent) for ticket in tickets
    )


def subjects_of(tickets: Iterable[Ticket]) -> set[Key]:
    """The records that some tickets are about."""
    return {subject for ticket in tickets if (subject := ticket.subject()) is not None}


def _is_left(native: Native, ticket: Ticket, recent: RecentRecords) -> bool:
    """Whether the store leaves a command to its rule for what is remembered of its record."""
    subject = ticket.subject()
    known = None if subject is None else recent.recall(subject)
    return known is not None and native.leaves(ticket.command, known[1])


async def decide_natively(
    native: Native,
    tickets: Sequence[Ticket],
    known: Known,
    notifier: Notifier,
    deliverer: Deliverer,
) -> list[Ticket]:
    """Have the store decide, wake and deliver as after a commit, and answer. Returns what it declined."""
    subjects = subjects_of(tickets)
    # The store tells no versions of what it decides by itself.
    known.recent.forget(subjects)
    with known.under_way.begin(subjects):
        decided = await native.decide([(ticket.command, ticket.envelope) for ticket in tickets], known.lanes)
    known.recent.forget(change.key for change in decided.effects.changes)
    notifier.publish(topics_of(decided.effects))
    if owed := owed_by(decided.effects):
        await deliverer.deliver(owed)
    declined: list[Ticket] = []
    for ticket, answer in zip(tickets, decided.answers, strict=True):
        if answer is DECLINED:
            declined.append(ticket)
        elif isinstance(answer, Exception):
            ticket.settle(answer)
        else:
            ticket.answer = answer
            ticket.settle()
    return declined

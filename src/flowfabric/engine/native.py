"""Has the store decide by itself what it can decide: one call in the place of a load and a commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.engine.deliveries import owed_by
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
        about.setdefault(ticket.subject or ticket, []).append(ticket)
    theirs = {
        subject: tickets for subject, tickets in about.items() if _may_be_taken(native, tickets, recent)
    }
    looked_at = {
        subject: keys
        for subject, tickets in theirs.items()
        if (keys := {key for ticket in tickets for key in native.looks_at(ticket.command)})
    }
    if both := about.keys() & {key for keys in looked_at.values() for key in keys}:
        for subject in [one for one in theirs if one in both or not both.isdisjoint(looked_at.get(one, ()))]:
            del theirs[subject]
    taken = [ticket for ticket in batch if (ticket.subject or ticket) in theirs]
    others = [ticket for ticket in batch if (ticket.subject or ticket) not in theirs]
    return taken, others


def _may_be_taken(native: Native, tickets: Sequence[Ticket], recent: RecentRecords) -> bool:
    """Whether the store may decide all of these, which are about one record."""
    first = tickets[0]
    if len(tickets) > 1 and not (
        native.orders(first.command) and len({type(ticket.command) for ticket in tickets}) == 1
    ):
        return False
    if not native.takes(first.command):
        return False
    known = None if first.subject is None else recent.recall(first.subject)
    return known is None or not any(native.leaves(ticket.command, known[1]) for ticket in tickets)


def subjects_of(tickets: Iterable[Ticket]) -> set[Key]:
    """The records that some tickets are about."""
    return {ticket.subject for ticket in tickets if ticket.subject is not None}


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
    notifier.publish_commit(decided.effects)
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

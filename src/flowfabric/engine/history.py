"""Reading what has happened to one execution's leases: a filter over the log of events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.contracts.history import LeaseEvent, LeaseHistoryPage, ReadLeaseHistoryArgs
from flowfabric.core.events import Family
from flowfabric.engine.listing import load_executions
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from flowfabric.core.events import StoredEvent
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine


@operation(ReadLeaseHistoryArgs)
async def read_lease_history(
    engine: Engine, args: ReadLeaseHistoryArgs, envelope: Envelope
) -> LeaseHistoryPage:
    """A page of what happened to an execution's leases."""
    if not await load_executions(engine, [args.execution_id], envelope.namespace):
        return LeaseHistoryPage(events=())
    found = await engine.store.read_events(
        args.cursor or 0,
        families=frozenset({Family.LEASE}),
        execution_id=args.execution_id,
        limit=args.limit + 1,
    )
    page = found[: args.limit]
    return LeaseHistoryPage(
        events=tuple(map(_lease_event, page)),
        next_cursor=page[-1].sequence if len(found) > args.limit else None,
    )


def _lease_event(stored: StoredEvent) -> LeaseEvent:
    event = stored.event
    told = {name: value for name, value in event.data.items() if name in LeaseEvent.__struct_fields__}
    return LeaseEvent(event=event.name, sequence=stored.sequence, at_ms=event.at_ms, **told)  # type: ignore[arg-type]

"""Reading the log of events."""

from __future__ import annotations

from flowfabric import errors
from flowfabric.contracts.events import FROM_NOW, FROM_START, Family, ListEventsArgs, TailEventsArgs
from flowfabric.contracts.handles import BackendTag
from flowfabric.contracts.retention import TrimRetentionArgs
from flowfabric.engine.cursors import format_event_cursor
from flowfabric.testing.model.draw import Draw, Lacking, generator

EVERYTHING = frozenset(Family)


@generator(ListEventsArgs)
def list_events(draw: Draw) -> ListEventsArgs:
    """The history of an execution, or a page of it."""
    cursor = draw.pick((None, format_event_cursor(BackendTag.MEMORY, 3)))
    return ListEventsArgs(
        execution_id=draw.execution().execution_id, cursor=cursor, limit=draw.pick((1, 100))
    )


@generator(TailEventsArgs)
def tail_events(draw: Draw) -> TailEventsArgs:
    """Without waiting, because nobody would write meanwhile."""
    families = draw.pick((EVERYTHING, frozenset({Family.COMPLETION}), frozenset({Family.LEASE, Family.TAG})))
    return TailEventsArgs(
        families=families, after=draw.pick((FROM_NOW, FROM_START)), limit=draw.pick((1, 50))
    )


@generator(TailEventsArgs, provokes=errors.InvalidEventCursor)
def tail_events_from_elsewhere(draw: Draw) -> TailEventsArgs:
    """With the cursor of another kind of store, or with none."""
    cursor = draw.pick((format_event_cursor(BackendTag.POSTGRES, 1), "00"))
    return TailEventsArgs(families=EVERYTHING, after=cursor)


@generator(TailEventsArgs, provokes=errors.EventsTrimmed)
def tail_events_that_were_trimmed(draw: Draw) -> TailEventsArgs:
    """From the beginning that the log had once."""
    if not draw.world.events_trimmed:
        raise Lacking(TrimRetentionArgs)
    return TailEventsArgs(families=EVERYTHING, after=format_event_cursor(BackendTag.MEMORY, 0))

"""Feeds: what happened, in commit order, from a cursor on.

A cursor is opaque text. It names a place in the log of one store; the empty one stands for «from
now on», and ``start`` for the oldest event that is kept. Whoever keeps the cursor of the last event
it has dealt with, and comes back with it, gets every event at least once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.ids import (
    Amount,
    AttemptId,
    AttemptIndex,
    ExecutionId,
    FlowId,
    LeaseEpoch,
    LeaseId,
    TimestampMs,
)
from flowfabric.contracts.limits import (
    EVENT_CURSOR_CHARS_MAX,
    PAGE_ROWS_MAX,
    TAG_VALUE_CHARS_MAX,
    TAIL_BLOCK_MS_MAX,
)
from flowfabric.contracts.states import TerminalOutcome

FROM_NOW: Final = ""
FROM_START: Final = "start"

_PAGE: Final = 100

EventCursor: TypeAlias = Annotated[str, Meta(max_length=EVENT_CURSOR_CHARS_MAX)]
EventsLimit: TypeAlias = Annotated[int, Meta(ge=1, le=PAGE_ROWS_MAX)]
Tag: TypeAlias = tuple[
    Annotated[str, Meta(min_length=1, max_length=256)], Annotated[str, Meta(max_length=TAG_VALUE_CHARS_MAX)]
]


class Family(StrEnum):
    """The feed an event belongs to."""

    EXECUTION = "execution"
    LEASE = "lease"
    SIGNAL = "signal"
    COMPLETION = "completion"
    OPERATOR = "operator"
    TAG = "tag"
    BUDGET = "budget"


class LeaseChange(StrEnum):
    """What became of a lease."""

    ACQUIRED = "acquired"
    RENEWED = "renewed"
    EXPIRED = "expired"
    REVOKED = "revoked"
    RECLAIMED = "reclaimed"
    RELEASED = "released"


class SignalResult(StrEnum):
    """What a signal did. One that repeats another does nothing, so it is in no feed."""

    SATISFIED = "satisfied"
    """The wait is over."""
    APPENDED = "appended"
    """It counts, and more is waited for."""
    BUFFERED = "buffered"
    """It is kept for a wait that has not begun."""
    IGNORED = "ignored"
    """The condition does not ask for it."""


class TagChange(StrEnum):
    """Whether tags came or went. They go with their execution, when its retention is over."""

    ATTACHED = "attached"
    CLEARED = "cleared"


class FeedEvent(Value):
    """What all events tell."""

    cursor: EventCursor
    """Continue behind this event with it."""
    at_ms: TimestampMs
    namespace: str
    """Empty for what an operator did to all of them at once."""
    execution_id: str
    """Empty for what concerns more than one execution, such as a whole flow."""
    flow_id: str | None = None
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    """Those of the execution at that moment."""


class CompletionEvent(FeedEvent, tag="Completion"):
    """An execution ended. A replayed one ends once in every generation."""

    outcome: TerminalOutcome
    generation: Amount
    failure_reason: str | None = None
    failure_category: str | None = None


class LeaseEvent(FeedEvent, tag="Lease"):
    """Something became of a lease."""

    change: LeaseChange
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_id: AttemptId
    attempt_index: AttemptIndex
    worker_id: str
    worker_instance_id: str
    expires_at: TimestampMs | None = None
    """Of a renewed lease."""
    reason: str | None = None
    previous_epoch: LeaseEpoch | None = None
    """Of a reclaimed lease: that of the one that had lapsed, and who held it."""
    previous_worker_instance_id: str | None = None


class SignalEvent(FeedEvent, tag="Signal"):
    """A signal was received."""

    signal_id: str
    signal_name: str
    waitpoint_id: str
    source_identity: str
    sequence: Amount
    effect: SignalResult


class TagEvent(FeedEvent, tag="Tag"):
    """An execution got tags, or went away with those it had."""

    change: TagChange
    changed: dict[str, str]


class HistoryEvent(FeedEvent, tag="History"):
    """Anything else that happened to an execution or a flow, or what an operator did."""

    family: Family
    name: str
    data: dict[str, str | int | None] = msgspec.field(default_factory=dict)


AnyEvent: TypeAlias = CompletionEvent | LeaseEvent | SignalEvent | TagEvent | HistoryEvent


_FAMILY_OF: Final[dict[type[FeedEvent], Family]] = {
    CompletionEvent: Family.COMPLETION,
    LeaseEvent: Family.LEASE,
    SignalEvent: Family.SIGNAL,
    TagEvent: Family.TAG,
}


def family_of(event: AnyEvent) -> Family:
    """The feed that an event belongs to."""
    return event.family if isinstance(event, HistoryEvent) else _FAMILY_OF[type(event)]


class EventsPage(Outcome, tag="Events"):
    """Events in commit order, and where to go on, which moves on even where nothing matched."""

    events: tuple[AnyEvent, ...]
    next_cursor: EventCursor


class TailEventsArgs(Command[EventsPage]):
    """Read what follows a cursor; if nothing does, wait for it.

    Nothing is held for a reader that stays away, and nothing is left out for one that is slow.
    """

    families: Annotated[frozenset[Family], Meta(min_length=1)]
    after: EventCursor = FROM_NOW
    execution_id: ExecutionId | None = None
    flow_id: FlowId | None = None
    """Only of this flow and its members."""
    tag: Tag | None = None
    """Only of executions that had this tag when it happened."""
    limit: EventsLimit = _PAGE
    block_ms: Annotated[int, Meta(ge=0, le=TAIL_BLOCK_MS_MAX)] = 0


class EventHistory(Outcome, tag="History"):
    """What is kept of the history of one execution."""

    events: tuple[AnyEvent, ...]
    next_cursor: EventCursor | None
    """None if there is no more."""
    trimmed: bool
    """True if the log may have held earlier events, which were removed since."""


class ListEventsArgs(Command[EventHistory]):
    """Read the history of one execution, the oldest events first."""

    execution_id: ExecutionId
    families: Annotated[frozenset[Family], Meta(min_length=1)] = frozenset(Family)
    cursor: EventCursor | None = None
    limit: EventsLimit = _PAGE

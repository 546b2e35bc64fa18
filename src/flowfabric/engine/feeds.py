"""Feeds: the log of events, read from a cursor on, filtered and typed.

The rules this module keeps:

- A reader holds a place in the log and nothing else. The engine keeps nothing for it: no queue, no
  task. A slow reader reads later, and a reader that goes away is gone.
- A place never moves past an event that the reader might want: the end of the log is looked up
  before the page is read, and whether the log was trimmed after it.
- Wake-ups only say «look again». A look every ``block_ms`` finds what no wake-up told of.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypedDict, TypeVar, Unpack

import msgspec
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.events import (
    FROM_NOW,
    FROM_START,
    AnyEvent,
    CompletionEvent,
    EventHistory,
    EventsPage,
    Family,
    FeedEvent,
    HistoryEvent,
    LeaseEvent,
    ListEventsArgs,
    SignalEvent,
    SignalResult,
    TagEvent,
    TailEventsArgs,
)
from flowfabric.contracts.limits import TAIL_BLOCK_MS_MAX
from flowfabric.contracts.signals import SignalEffect
from flowfabric.core.events import SPARED
from flowfabric.engine.cursors import format_event_cursor, parse_event_cursor
from flowfabric.engine.listing import load_executions
from flowfabric.engine.notifier import EVENTS, execution_topic, feed_topic
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowfabric.core.events import StoredEvent
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine
    from flowfabric.engine.interface import AnyEngine

E = TypeVar("E", bound=FeedEvent, covariant=True)

RESULT_OF_EFFECT: Final = {
    SignalEffect.RESUME_CONDITION_SATISFIED: SignalResult.SATISFIED,
    SignalEffect.APPENDED_TO_WAITPOINT: SignalResult.APPENDED,
    SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT: SignalResult.BUFFERED,
}
"""All other effects mean that the signal was ignored."""


class FeedOptions(TypedDict, total=False):
    """Where a feed begins, and what it leaves out."""

    after: str
    """The cursor of the last event that was dealt with; absent, from now on; ``start``, all that are kept."""
    execution_id: str
    """Only of this execution."""
    flow_id: str
    """Only of this flow and its members."""
    tag: tuple[str, str]
    """Only of executions that had this tag when it happened, such as ``("team.name", "media")``."""


class Feed(Generic[E]):
    """Events as they happen, to be iterated with ``async for``.

    Entered with ``async with``, it begins at that moment; else when the first event is asked for.
    An error of the store ends neither the feed nor its place: ask for the next event again.

    Raises:
        EventsTrimmed: what follows the cursor was removed from the log before it was read.
        InvalidEventCursor: the cursor is damaged, or of another store.
    """

    def __init__(self, engine: AnyEngine, asked: TailEventsArgs, namespace: str | None) -> None:
        self._engine = engine
        self._asked = asked
        self._namespace = namespace
        self._page: deque[Any] = deque()
        self._behind_page = self.cursor = asked.after

    cursor: str
    """Where to go on after the last event that was handed out. It also moves on, now and then,
    while nothing happens, so that keeping it protects against the trimming of the log."""

    async def __aenter__(self) -> Self:
        await self._turn_page(block_ms=0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._page.clear()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        while not self._page:
            if self._engine.notifier.closed:
                raise StopAsyncIteration
            await self._turn_page(block_ms=TAIL_BLOCK_MS_MAX)
        event: E = self._page.popleft()
        self.cursor = event.cursor if self._page else self._behind_page
        return event

    async def _turn_page(self, *, block_ms: int) -> None:
        asked = replace(self._asked, after=self._behind_page, block_ms=block_ms)
        page = await self._engine.execute(asked, namespace=self._namespace)
        self._page.extend(page.events)
        self._behind_page = page.next_cursor
        if not page.events:
            self.cursor = page.next_cursor


class Subscribing:
    """What an engine offers to subscribers, whether it is over a store or over a server."""

    def subscribe(
        self: AnyEngine, *families: Family | str, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[AnyEvent]:
        """The events of some families, or of all: ``async for event in engine.subscribe("lease")``.

        Args:
            families: ``completion``, ``lease``, ``signal``, ``tag``, ``execution``, ``operator``, ``budget``.
            namespace: the only namespace whose events are read.
            options: see ``FeedOptions``.

        Raises:
            ValueError: there is no such family.
        """
        chosen = frozenset(map(Family, families)) or frozenset(Family)
        return Feed(self, TailEventsArgs(families=chosen, **options), namespace)

    def subscribe_completion(
        self: AnyEngine, *, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[CompletionEvent]:
        """How executions end; see ``subscribe``."""
        return Feed(self, TailEventsArgs(families=frozenset({Family.COMPLETION}), **options), namespace)

    def subscribe_lease_history(
        self: AnyEngine, *, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[LeaseEvent]:
        """What becomes of leases; see ``subscribe``."""
        return Feed(self, TailEventsArgs(families=frozenset({Family.LEASE}), **options), namespace)

    def subscribe_signal_delivery(
        self: AnyEngine, *, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[SignalEvent]:
        """Which signals are received, and what they do; see ``subscribe``."""
        return Feed(self, TailEventsArgs(families=frozenset({Family.SIGNAL}), **options), namespace)

    def subscribe_instance_tags(
        self: AnyEngine, *, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[TagEvent]:
        """Which executions get tags, and lose them; see ``subscribe``."""
        return Feed(self, TailEventsArgs(families=frozenset({Family.TAG}), **options), namespace)


# Reading


@operation(TailEventsArgs)
async def tail_events(engine: Engine, args: TailEventsArgs, envelope: Envelope) -> EventsPage:
    """What follows a cursor; waits for it if there is nothing yet.

    Raises:
        InvalidEventCursor: the cursor is damaged, or of another store.
        EventsTrimmed: what follows it was removed before it was read.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + args.block_ms / 1_000
    with engine.notifier.subscribe(*_topics(args, envelope.namespace)) as changes:
        place = await _place_of(engine, args.after, envelope, spared=args.families <= SPARED)
        while True:
            page, place = await _look(engine, args, envelope.namespace, place)
            events = tuple(typed_event(stored, envelope) for stored in page if _is_meant(stored, args))
            remaining_ms = (deadline - loop.time()) * 1_000
            if events or remaining_ms <= 0 or engine.notifier.closed:
                cursor = format_event_cursor(envelope.backend, place)
                return EventsPage(events=events, next_cursor=cursor)
            if not page:
                await changes.wait(remaining_ms)


def _topics(args: TailEventsArgs, namespace: str | None) -> list[str]:
    """Whose wake-ups concern the reader: the narrower, the fewer looks in vain."""
    if args.execution_id is not None:
        return [execution_topic(args.execution_id)]
    if namespace is None:
        return [EVENTS]
    return [feed_topic(family, namespace) for family in args.families]


async def _place_of(engine: Engine, cursor: str, envelope: Envelope, *, spared: bool) -> int:
    """The place in the log that a cursor stands for; what is ``spared`` begins before the log."""
    if cursor == FROM_NOW:
        return await engine.store.last_event()
    if cursor == FROM_START:
        return 0 if spared else await engine.store.trimmed_events()
    place = parse_event_cursor(cursor, envelope.backend)
    if place > await engine.store.last_event():
        raise errors.InvalidEventCursor(
            field="cursor", value=cursor, rule="a place that the log of this store has reached"
        )
    return place


async def _look(
    engine: Engine, args: TailEventsArgs, namespace: str | None, place: int
) -> tuple[list[StoredEvent], int]:
    """The next page, and the place behind all that was looked at."""
    store = engine.store
    end = await store.last_event()
    page = await store.read_events(
        place,
        families=args.families,
        namespace=namespace,
        execution_id=args.execution_id,
        limit=args.limit,
    )
    trimmed = 0 if args.families <= SPARED else await store.trimmed_events()
    if trimmed > place:
        raise errors.EventsTrimmed(place=place, trimmed_upto=trimmed)
    behind_page = page[-1].sequence if page else max(place, end)
    if engine.observer is not None:
        engine.observer.tailed(max(0, end - behind_page))
    return page, behind_page


def _is_meant(stored: StoredEvent, args: TailEventsArgs) -> bool:
    event = stored.event
    if args.flow_id is not None and event.flow_id != args.flow_id:
        return False
    return args.tag is None or event.tags.get(args.tag[0]) == args.tag[1]


@operation(ListEventsArgs)
async def list_events(engine: Engine, args: ListEventsArgs, envelope: Envelope) -> EventHistory:
    """What is kept of the history of one execution.

    Raises:
        ExecutionNotFound: there is no such execution.
        InvalidEventCursor: the cursor is damaged, or of another store.
    """
    store = engine.store
    found = await load_executions(engine, [args.execution_id], envelope.namespace)
    if not found:
        raise errors.ExecutionNotFound(execution_id=args.execution_id)
    [execution] = found
    place = parse_event_cursor(args.cursor, envelope.backend) if args.cursor else 0
    stored_events = await store.read_events(
        place, families=args.families, execution_id=args.execution_id, limit=args.limit + 1
    )
    trimmed = await store.trimmed_events()
    oldest = await store.read_events(trimmed, limit=1) if trimmed else []
    events = tuple(typed_event(stored, envelope) for stored in stored_events[: args.limit])
    return EventHistory(
        events=events,
        next_cursor=events[-1].cursor if len(stored_events) > args.limit else None,
        trimmed=bool(trimmed) and (not oldest or execution.created_at <= oldest[0].event.at_ms),
    )


# Typing


def typed_event(stored: StoredEvent, envelope: Envelope) -> AnyEvent:
    """An event of the log in the words of the contracts."""
    event = stored.event
    common = {
        "cursor": format_event_cursor(envelope.backend, stored.sequence),
        "at_ms": event.at_ms,
        "namespace": event.namespace,
        "execution_id": event.execution_id,
        "flow_id": event.flow_id,
        "tags": event.tags,
    }
    make = _TYPED.get(event.family, _history_event)
    return make(stored, common)


def _completion_event(stored: StoredEvent, common: dict[str, Any]) -> CompletionEvent:
    told = {**common, **stored.event.data, "outcome": stored.event.name}
    return msgspec.convert(told, CompletionEvent)


def _lease_event(stored: StoredEvent, common: dict[str, Any]) -> LeaseEvent:
    told = {**common, **stored.event.data, "change": stored.event.name}
    return msgspec.convert(told, LeaseEvent)


def _signal_event(stored: StoredEvent, common: dict[str, Any]) -> SignalEvent:
    effect = SignalEffect(str(stored.event.data["effect"]))
    told = {**stored.event.data, "effect": RESULT_OF_EFFECT.get(effect, SignalResult.IGNORED)}
    return msgspec.convert({**common, **told}, SignalEvent)


def _tag_event(stored: StoredEvent, common: dict[str, Any]) -> TagEvent:
    told = {**common, "change": stored.event.name, "changed": stored.event.data}
    return msgspec.convert(told, TagEvent)


def _history_event(stored: StoredEvent, common: dict[str, Any]) -> HistoryEvent:
    event = stored.event
    return HistoryEvent(**common, family=event.family, name=event.name, data=event.data)


_TYPED: Final[dict[Family, Callable[[StoredEvent, dict[str, Any]], AnyEvent]]] = {
    Family.COMPLETION: _completion_event,
    Family.LEASE: _lease_event,
    Family.SIGNAL: _signal_event,
    Family.TAG: _tag_event,
}
"""Events of all other families tell their own story."""

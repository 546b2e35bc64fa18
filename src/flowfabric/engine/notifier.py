"""Wakes whoever waits inside this process. A wake-up says «look again», never what was changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Self

from flowfabric.core.events import Family
from flowfabric.core.indexes import ELIGIBLE, LANES, SEPARATOR
from flowfabric.core.records import Execution, Flow, FlowProgress, key_for
from flowfabric.engine.deliveries import is_owed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.stores.base import Commit

DUE = "due/"
EVENTS = "events"
"""The topic that every commit with events wakes."""

_EXECUTION: Final = key_for(Execution, "")

NEAR_MS: Final = 5_000
"""What becomes due later than this is found in time without waking anybody."""


def claimable_topic(namespace: str, lane_id: str) -> str:
    """Woken when work in this lane becomes claimable, or the lane itself is changed."""
    return f"claimable/{namespace}{SEPARATOR}{lane_id}"


def execution_topic(execution_id: str) -> str:
    """Woken when anything happens to this execution, its stream included."""
    return f"execution/{execution_id}"


def flow_topic(flow_id: str) -> str:
    """Woken when this flow changes, or one of its members has ended."""
    return f"flow/{flow_id}"


def ended_topic(execution_id: str) -> str:
    """Woken when this execution ends."""
    return f"ended/{execution_id}"


def feed_topic(family: Family, namespace: str) -> str:
    """Woken when a namespace has a new event of this family."""
    return f"{EVENTS}/{family}/{namespace}"


def due_topic(index: str) -> str:
    """Woken when an index of instants gets an entry that is due soon, maybe before all others."""
    return DUE + index


def topics_of(commit: Commit) -> set[str]:
    """Whom a commit wakes. No duty for what it owes: whoever delivers that wakes them for the rest."""
    topics = {execution_topic(event.execution_id) for event in commit.events}
    topics.update(
        ended_topic(event.execution_id) for event in commit.events if event.family is Family.COMPLETION
    )
    topics.update(
        flow_topic(change.record.flow_id)
        for change in commit.changes
        if isinstance(change.record, (Flow, FlowProgress))
    )
    topics.update(
        execution_topic(identity)
        for change in commit.changes
        if (identity := change.key.removeprefix(_EXECUTION)) != change.key
    )
    topics.update(execution_topic(frame.stream.partition("/")[0]) for frame in commit.appends)
    for index, scope, sort, _ in commit.rows_added:
        if index in (ELIGIBLE, LANES):
            namespace, lane_id = scope.split(SEPARATOR)[:2]
            topics.add(claimable_topic(namespace, lane_id))
        elif _wakes_duty(index, sort, commit.now):
            topics.add(due_topic(index))
    if commit.events:
        topics.add(EVENTS)
        topics.update(feed_topic(event.family, event.namespace) for event in commit.events)
    return topics


def _wakes_duty(index: str, sort: int, now: int) -> bool:
    return index.startswith("due_") and sort < now + NEAR_MS and not is_owed(index, sort, now)


class Notifier:
    """Topics and those who wait for them."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._closed = False

    def publish(self, topics: Iterable[str]) -> None:
        """Wake everyone who waits for one of the topics."""
        for topic in topics:
            for event in self._waiters.get(topic, ()):
                event.set()

    def publish_all(self) -> None:
        """Wake everyone: another process may have changed anything."""
        self.publish(list(self._waiters))

    def publish_foreign_change(self) -> None:
        """Wake everyone but the background duties: another process may have changed anything.

        The duties look by themselves, and so does the process that made the change; a busy one
        would otherwise make all duties of all others sweep after each of its commits.
        """
        self.publish([topic for topic in self._waiters if not topic.startswith(DUE)])

    @property
    def closed(self) -> bool:
        """True once the engine stops; there is nothing to wait for any more."""
        return self._closed

    def open(self) -> None:
        """Begin, or begin again after the engine was stopped."""
        self._closed = False

    def close(self) -> None:
        """Wake everyone for the last time."""
        self._closed = True
        self.publish_all()

    def subscribe(self, *topics: str) -> Subscription:
        """Begin to listen. What happens from now on sets the subscription's event."""
        subscription = Subscription(self, topics)
        for topic in topics:
            self._waiters.setdefault(topic, set()).add(subscription.event)
        if self._closed:
            subscription.event.set()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening."""
        for topic in subscription.topics:
            waiters = self._waiters.get(topic)
            if waiters is not None:
                waiters.discard(subscription.event)
                if not waiters:
                    del self._waiters[topic]


class Subscription:
    """An interest in some topics. Use it as a context manager."""

    def __init__(self, notifier: Notifier, topics: tuple[str, ...]) -> None:
        self.topics = topics
        self.event = asyncio.Event()
        self._notifier = notifier

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._notifier.unsubscribe(self)

    async def wait(self, timeout_ms: float | None) -> bool:
        """Wait for a wake-up since the last call. Returns False when the time is over."""
        try:
            async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1_000):
                await self.event.wait()
        except TimeoutError:
            return False
        self.event.clear()
        return True

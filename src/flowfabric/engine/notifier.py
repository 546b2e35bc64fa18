"""Wakes whoever waits inside this process. A wake-up says «look again», never what was changed."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final, Self

from flowfabric.core.events import Family
from flowfabric.core.indexes import ELIGIBLE, LANES, SEPARATOR
from flowfabric.core.records import Execution, Flow, FlowProgress, key_for
from flowfabric.engine.deliveries import is_owed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from flowfabric.stores.base import Commit

DUE = "due/"
ENDED = "ended/"
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
    return ENDED + execution_id


def feed_topic(family: Family, namespace: str) -> str:
    """Woken when a namespace has a new event of this family."""
    return f"{EVENTS}/{family}/{namespace}"


def due_topic(index: str) -> str:
    """Woken when an index of instants gets an entry that is due soon, maybe before all others."""
    return DUE + index


def _executions_of(commit: Commit) -> Iterator[str]:
    """Executions to which something has happened."""
    for execution_id in {event.execution_id for event in commit.events}:
        yield execution_topic(execution_id)
    for change in commit.changes:
        if (identity := change.key.removeprefix(_EXECUTION)) != change.key:
            yield execution_topic(identity)
    for frame in commit.appends:
        yield execution_topic(frame.stream.partition("/")[0])


def _ended_of(commit: Commit) -> Iterator[str]:
    """Executions that have ended."""
    for event in commit.events:
        if event.family is Family.COMPLETION:
            yield ended_topic(event.execution_id)


def _flows_of(commit: Commit) -> Iterator[str]:
    """Flows that have changed."""
    for change in commit.changes:
        if isinstance(change.record, (Flow, FlowProgress)):
            yield flow_topic(change.record.flow_id)


def _claimable_of(commit: Commit) -> Iterator[str]:
    """Lanes with something new to claim."""
    for scope in {scope for index, scope, _, _ in commit.rows_added if index in (ELIGIBLE, LANES)}:
        namespace, lane_id = scope.split(SEPARATOR)[:2]
        yield claimable_topic(namespace, lane_id)


def _due_of(commit: Commit) -> Iterator[str]:
    """Duties with something due soon. Not for what is owed: whoever delivers that wakes them for the rest."""
    for index, _, sort, _ in commit.rows_added:
        if index.startswith("due_") and sort < commit.now + NEAR_MS and not is_owed(index, sort, commit.now):
            yield due_topic(index)


def _feeds_of(commit: Commit) -> Iterator[str]:
    """Feeds that have news."""
    if commit.events:
        yield EVENTS
    for family, namespace in {(event.family, event.namespace) for event in commit.events}:
        yield feed_topic(family, namespace)


_TOPICS_OF: Final = {
    "execution": _executions_of,
    "ended": _ended_of,
    "flow": _flows_of,
    "claimable": _claimable_of,
    "due": _due_of,
    EVENTS: _feeds_of,
}
"""How the topics of each kind, the first part of their names, follow from a commit."""


def _kind_of(topic: str) -> str:
    return topic.partition("/")[0]


class Notifier:
    """Topics and those who wait for them."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._kinds: Counter[str] = Counter()
        """How many topics of each kind somebody waits for."""
        self._closed = False

    def publish(self, topics: Iterable[str]) -> None:
        """Wake everyone who waits for one of the topics."""
        for topic in topics:
            for event in self._waiters.get(topic, ()):
                event.set()

    def publish_commit(self, commit: Commit) -> None:
        """Wake everyone who waits for something that a commit has done."""
        for kind, topics_of in _TOPICS_OF.items():
            if self._kinds[kind]:
                self.publish(topics_of(commit))

    def publish_all(self) -> None:
        """Wake everyone: another process may have changed anything."""
        self.publish(list(self._waiters))

    def waited_for(self, beginning: str) -> list[str]:
        """The topics of one kind that somebody waits for, by the beginning of their names."""
        if not self._kinds[_kind_of(beginning)]:
            return []
        return [topic for topic in self._waiters if topic.startswith(beginning)]

    def publish_foreign_change(self, *, sparing: Collection[str] = ()) -> None:
        """Wake everyone but the background duties: another process may have changed anything.

        The duties look by themselves, and so does the process that made the change; a busy one
        would otherwise make all duties of all others sweep after each of its commits.

        Args:
            sparing: topics that somebody else looks after.
        """
        spared = frozenset(sparing)
        self.publish([topic for topic in self._waiters if not topic.startswith(DUE) and topic not in spared])

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
            if topic not in self._waiters:
                self._waiters[topic] = set()
                self._kinds[_kind_of(topic)] += 1
            self._waiters[topic].add(subscription.event)
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
                    self._kinds[_kind_of(topic)] -= 1


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

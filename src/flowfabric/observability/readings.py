"""Gauges that need the store: read when somebody asks for the metrics, in bounded work.

The rules this module keeps:

- One reading costs at most ``SCOPES_MAX`` counts for each index and ``ROWS_MAX`` rows in all,
  whatever the store holds. What it left out, it says in ``ff_store_reading_complete``.
- Readings that follow one another closely are one: anybody may ask for metrics, and must not be
  able to keep the store busy by asking often.
- A store that fails leaves the gauges out, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from flowfabric import errors
from flowfabric.core import indexes
from flowfabric.core.indexes import SEPARATOR
from flowfabric.observability.metrics import Definition, Names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import CollectorRegistry

    from flowfabric.engine.engine import Engine
    from flowfabric.engine.scanners.duties import Duty
    from flowfabric.stores.base import Store

log = logging.getLogger("flowfabric.metrics")

FRESH_S: Final = 5.0
"""How long a reading is good enough for others who ask."""
SCOPES_MAX: Final = 200
COUNT_MAX: Final = 20_000
"""What one lane is counted up to; a gauge of this value means «at least»."""
ROWS_MAX: Final = 200_000
WORKERS_MAX: Final = 1_000
LAST: Final = "\U0010ffff"
"""Comes after every member of an index."""

STATES: Final = {
    "eligible": indexes.ELIGIBLE,
    "delayed": indexes.DELAYED,
    "blocked": indexes.BLOCKED,
    "active": indexes.ACTIVE,
    "suspended": indexes.SUSPENDED,
}
"""What executions are counted by, with the index that holds them."""


def _gauge(name: str, meaning: str, *labels: str) -> tuple[str, Definition]:
    return name, Definition(name, "gauge", labels, meaning)


GAUGES: Final = dict(
    (
        _gauge("ff_queue_depth", "Executions that wait for a worker and may be claimed now.", "lane"),
        _gauge(
            "ff_executions",
            "Executions that have not ended: eligible, delayed, blocked, active or suspended. "
            "An active one whose lease has lapsed is eligible as well.",
            "lane",
            "state",
        ),
        _gauge("ff_workers", "Workers on record: live, or silent for longer than they said.", "state"),
        _gauge("ff_cancel_backlog_depth", "Members of cancelled flows that are still to be cancelled."),
        _gauge("ff_message_backlog_depth", "Effects on other partitions that are still to be delivered."),
        _gauge(
            "ff_scanner_lag_seconds",
            "How long the oldest entry of a background duty has been due.",
            "scanner",
        ),
        _gauge("ff_event_log_position", "The place of the newest event."),
        _gauge("ff_event_log_length", "Events that are kept."),
        _gauge("ff_commands_waiting", "Commands of this process that wait for the next commit."),
        _gauge("ff_store_up", "1 if the store answered this reading."),
        _gauge("ff_store_reading_complete", "0 if there was more in the store than one reading may look at."),
    )
)
"""Every gauge that a reading gives, and what it means."""


class Sample(NamedTuple):
    """One value of a gauge."""

    gauge: str
    labels: dict[str, str]
    value: float


class Readings(Collector):
    """The gauges of one engine's store.

    Args:
        engine: a running engine.
        duties: the duties whose lag is told.
        fresh_s: how long a reading is kept.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        engine: Engine,
        duties: Iterable[Duty],
        *,
        fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._duties = tuple(duties)
        self._fresh_s = fresh_s
        self._clock = clock
        self._samples: list[Sample] = []
        self._read_at: float | None = None
        self._reading = asyncio.Lock()
        self._lanes = Names()

    def register(self, registry: CollectorRegistry) -> None:
        """Have the gauges told together with the metrics of a registry."""
        registry.register(self)

    async def refresh(self) -> None:
        """Read the store, unless that was done just now. Never raises for a store that fails."""
        async with self._reading:
            now = self._clock()
            if self._read_at is not None and now - self._read_at < self._fresh_s:
                return
            try:
                self._samples = await read_store(self._engine, self._duties, self._lanes)
            except errors.FlowFabricError as error:
                log.warning("the store's gauges cannot be read: %s", error)
                self._samples = [Sample("ff_store_up", {}, 0)]
            self._read_at = self._clock()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of the latest reading, in the library's own form."""
        for gauge, told in GAUGES.items():
            samples = [sample for sample in self._samples if sample.gauge == gauge]
            if samples:
                family = GaugeMetricFamily(gauge, told.meaning, labels=told.labels)
                for sample in samples:
                    family.add_metric([sample.labels[label] for label in told.labels], sample.value)
                yield family

    def describe(self) -> list[GaugeMetricFamily]:
        """The names, so that registering reads nothing."""
        return [GaugeMetricFamily(gauge, told.meaning) for gauge, told in GAUGES.items()]


async def read_store(engine: Engine, duties: Iterable[Duty], lanes: Names) -> list[Sample]:
    """One reading.

    Raises:
        StoreError: the store failed.
    """
    now = await engine.store.now()
    counts = Counts(engine.store, lanes)
    samples = [sample for state, index in STATES.items() for sample in await counts.by_lane(state, index)]
    samples += [
        Sample("ff_queue_depth", {"lane": sample.labels["lane"]}, sample.value)
        for sample in samples
        if sample.labels["state"] == "eligible"
    ]
    samples += await _workers(engine.store, now)
    samples += await _lags(engine.store, duties, now)
    last, trimmed = await engine.store.last_event(), await engine.store.trimmed_events()
    plain = {
        "ff_cancel_backlog_depth": await counts.of(indexes.DUE_MEMBER_CANCEL, ""),
        "ff_message_backlog_depth": await counts.of(indexes.DUE_MESSAGE, ""),
        "ff_event_log_position": last,
        "ff_event_log_length": last - trimmed,
        "ff_commands_waiting": engine.waiting,
        "ff_store_up": 1,
        "ff_store_reading_complete": int(counts.complete),
    }
    return samples + [Sample(gauge, {}, value) for gauge, value in plain.items()]


class Counts:
    """Counts rows of indexes until too many were looked at."""

    def __init__(self, store: Store, lanes: Names) -> None:
        self._store = store
        self._lanes = lanes
        self._rows_left = ROWS_MAX
        self.complete = True
        """Whether everything was counted to its end."""

    async def of(self, index: str, scope: str) -> int:
        """How many rows a scope has, as far as may be looked."""
        limit = min(COUNT_MAX, self._rows_left)
        count = await self._store.count_index(index, scope, limit=limit) if limit else 0
        self._rows_left -= count
        self.complete = self.complete and count < limit
        return count

    async def by_lane(self, state: str, index: str) -> list[Sample]:
        """The executions of each lane in a state, those of all namespaces together."""
        scopes = await self._store.index_scopes(index, "", limit=SCOPES_MAX)
        self.complete = self.complete and len(scopes) < SCOPES_MAX
        found = dict.fromkeys(self._lanes.known, 0)  # a lane that has emptied is at zero, not gone
        for scope in scopes:
            lane = self._lanes.of(scope.split(SEPARATOR)[1])
            found[lane] = found.get(lane, 0) + await self.of(index, scope)
        return [
            Sample("ff_executions", {"lane": lane, "state": state}, count) for lane, count in found.items()
        ]


async def _workers(store: Store, now: int) -> list[Sample]:
    """The workers whose time has not run out, and those whose has."""
    live = await store.read_index(indexes.DUE_WORKER, "", after=(now, LAST), limit=WORKERS_MAX)
    silent = await store.read_index(indexes.DUE_WORKER, "", upto=now, limit=WORKERS_MAX)
    return [
        Sample("ff_workers", {"state": state}, len(rows))
        for state, rows in (("live", live), ("silent", silent))
    ]


async def _lags(store: Store, duties: Iterable[Duty], now: int) -> list[Sample]:
    """How far each duty is behind, by the first entry of its index."""
    samples = []
    for duty in duties:
        if duty.index:
            first = await store.read_index(duty.index, duty.scope, upto=now - duty.grace_ms, limit=1)
            lag_ms = now - duty.grace_ms - first[0][0] if first else 0
            samples.append(Sample("ff_scanner_lag_seconds", {"scanner": duty.name}, lag_ms / 1_000))
    return samples

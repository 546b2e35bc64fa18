"""The gauges of a store: what they count, what they may cost, and what a broken store does to them."""

from collections.abc import AsyncIterator

import pytest

from flowfabric import FlowFabric, errors
from flowfabric.contracts.leases import ClaimBatchArgs
from flowfabric.contracts.workers import RegisterWorkerArgs
from flowfabric.core import indexes
from flowfabric.engine.engine import Engine
from flowfabric.engine.scanners.duties import DUTIES
from flowfabric.observability import readings
from flowfabric.observability.metrics import Metrics, Names
from flowfabric.observability.readings import GAUGES, Readings, read_store
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing.stores import FaultyStore


class Counted(FaultyStore):
    """Knows how often it was read."""

    reads = 0
    broken = False

    async def count_index(self, index: str, scope: str, *, limit: int | None = None) -> int:
        if self.broken:
            raise errors.StoreUnreachable
        self.reads += 1
        return await self.inner.count_index(index, scope, limit=limit)


@pytest.fixture
def store() -> Counted:
    return Counted(MemoryStore())


@pytest.fixture
async def app(store: Counted) -> AsyncIterator[FlowFabric]:
    app = FlowFabric(store=store)
    await app.start(scanners=False)
    yield app
    await app.stop()


async def read(app: FlowFabric) -> dict[tuple[str, ...], float]:
    assert isinstance(app.engine, Engine)
    samples = await read_store(app.engine, DUTIES, Names())
    return {(sample.gauge, *sample.labels.values()): sample.value for sample in samples}


async def test_executions_are_counted_by_lane_and_state(app: FlowFabric) -> None:
    await app.submit_many("resize", [None] * 3, lane="images")
    await app.submit("resize", delay=60)
    claim = ClaimBatchArgs(lanes=("images",), worker_id="w", worker_instance_id="i", lease_ttl_ms=60_000)
    await app.engine.execute(claim)
    found = await read(app)
    assert found["ff_queue_depth", "images"] == 2
    assert found["ff_executions", "images", "eligible"] == 2
    assert found["ff_executions", "images", "active"] == 1
    assert found["ff_executions", "default", "delayed"] == 1
    assert found["ff_store_up",] == found["ff_store_reading_complete",] == 1
    assert found["ff_event_log_length",] > 0


async def test_workers_are_live_until_they_are_silent(app: FlowFabric, store: Counted) -> None:
    worker = RegisterWorkerArgs(
        worker_id="w", worker_instance_id="i", namespace="default", lanes=("default",), ttl_ms=30_000
    )
    await app.engine.execute(worker)
    assert (await read(app))["ff_workers", "live"] == 1
    await store.set_clock_offset(60_000)
    found = await read(app)
    assert (found["ff_workers", "live"], found["ff_workers", "silent"]) == (0, 1)
    assert found["ff_scanner_lag_seconds", "worker_registry_ttl_sweep"] >= 29


async def test_every_gauge_is_told(app: FlowFabric) -> None:
    await app.submit("resize")
    assert {name for name, *_ in await read(app)} == set(GAUGES)


async def test_a_reading_counts_no_further_than_its_limit(
    app: FlowFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "COUNT_MAX", 4)
    monkeypatch.setattr(readings, "ROWS_MAX", 6)
    await app.submit_many("resize", [None] * 9, lane="a")
    await app.submit_many("resize", [None] * 9, lane="b")
    await app.submit_many("resize", [None] * 9, lane="c")
    found = await read(app)
    assert [found["ff_queue_depth", lane] for lane in "abc"] == [4, 2, 0]
    assert found["ff_store_reading_complete",] == 0


async def test_a_reading_looks_at_no_more_scopes_than_its_limit(
    app: FlowFabric, store: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "SCOPES_MAX", 5)
    for number in range(9):
        await app.submit("resize", lane=f"lane-{number}")
    assert (await read(app))["ff_store_reading_complete",] == 0
    assert store.reads <= 5 * len(readings.STATES) + 2


async def test_those_who_ask_often_share_a_reading(app: FlowFabric, store: Counted) -> None:
    assert isinstance(app.engine, Engine)
    now = 0.0
    shared = Readings(app.engine, DUTIES, fresh_s=5, clock=lambda: now)
    await shared.refresh()
    once = store.reads
    await shared.refresh()
    assert store.reads == once
    now = 5.0
    await shared.refresh()
    assert store.reads == 2 * once


async def test_a_lane_that_has_emptied_is_at_zero(app: FlowFabric) -> None:
    assert isinstance(app.engine, Engine)
    lanes = Names()
    await app.submit("resize", lane="images")
    await read_store(app.engine, (), lanes)
    claim = ClaimBatchArgs(lanes=("images",), worker_id="w", worker_instance_id="i", lease_ttl_ms=60_000)
    await app.engine.execute(claim)
    depths = [one.value for one in await read_store(app.engine, (), lanes) if one.gauge == "ff_queue_depth"]
    assert depths == [0]


async def test_a_store_that_fails_leaves_the_other_metrics_alone(app: FlowFabric, store: Counted) -> None:
    assert isinstance(app.engine, Engine)
    metrics = Metrics()
    shared = Readings(app.engine, DUTIES, fresh_s=0)
    shared.register(metrics.registry)
    await app.submit("resize")
    await shared.refresh()
    store.broken = True
    await shared.refresh()
    text = metrics.render().decode()
    assert "ff_store_up 0.0" in text
    assert "ff_queue_depth{" not in text
    assert "ff_commit_total" in text


def test_what_is_counted_by_state_has_the_index_of_that_name() -> None:
    assert set(readings.STATES.values()) == indexes.PRIMARY - {indexes.TERMINAL}

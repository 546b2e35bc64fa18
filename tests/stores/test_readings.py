"""The gauges of a store, read from every store there is."""

from types import SimpleNamespace
from typing import Any

from flowfabric.core import indexes
from flowfabric.core.indexes import scope_of
from flowfabric.engine.scanners.duties import DUTIES
from flowfabric.observability.metrics import Names
from flowfabric.observability.readings import GAUGES, read_store
from tests.stores.builders import commit, counter, creation, event, execution_id


async def test_every_store_tells_its_gauges(store: Any) -> None:
    now = await store.now()
    rows = [
        (indexes.ELIGIBLE, scope_of(namespace, lane, ""), 1, execution_id(number))
        for number, (namespace, lane) in enumerate([("a", "x"), ("b", "x"), ("b", "y")])
    ]
    rows += [
        (indexes.SUSPENDED, scope_of("a", "x"), 1, execution_id(7)),
        (indexes.DUE_DELAY, "", now - 5_000, execution_id(8)),
        (indexes.DUE_WORKER, "", now + 60_000, "a/live"),
        (indexes.DUE_WORKER, "", now - 60_000, "a/silent"),
    ]
    await store.commit(creation(counter()))
    for row in rows:
        await store.commit(commit(rows_added=[row], events=[event()]))
    engine: Any = SimpleNamespace(store=store, waiting=3)
    samples = await read_store(engine, DUTIES, Names())
    found = {(sample.gauge, *sample.labels.values()): sample.value for sample in samples}
    assert (found["ff_queue_depth", "x"], found["ff_queue_depth", "y"]) == (2, 1)
    assert found["ff_executions", "x", "suspended"] == 1
    assert (found["ff_workers", "live"], found["ff_workers", "silent"]) == (1, 1)
    assert found["ff_scanner_lag_seconds", "delayed_promoter"] >= 5
    assert found["ff_event_log_length",] == len(rows)
    assert found["ff_commands_waiting",] == 3
    assert {name for name, *_ in found} == set(GAUGES)

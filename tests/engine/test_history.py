"""The history of leases: a filter over the log."""

from collections.abc import Callable

import pytest

from flowfabric.contracts.history import ReadLeaseHistoryArgs
from flowfabric.contracts.leases import RevokeLeaseArgs
from flowfabric.stores.memory import MemoryStore
from flowfabric.stores.sqlite import SqliteStore
from flowfabric.testing import Bed
from flowfabric.testing.bed import INSTANCE, TTL_MS
from flowfabric.testing.clock import ClockedStore

STORES: dict[str, Callable[[], ClockedStore]] = {
    "memory": MemoryStore,
    "sqlite": lambda: SqliteStore(":memory:"),
}


@pytest.fixture(params=STORES)
async def bed(request):
    async with Bed(STORES[request.param]()) as bed:
        yield bed


async def history(bed, execution_id, limit=50):
    """All pages of an execution's history."""
    pages, cursor = [], None
    while True:
        ask = ReadLeaseHistoryArgs(execution_id=execution_id, cursor=cursor, limit=limit)
        page = await bed.unchanging(ask)
        pages.append(page.events)
        cursor = page.next_cursor
        if cursor is None:
            return pages


async def test_it_tells_every_step_with_its_lease(bed):
    claim = await bed.start()
    await bed.start()
    await bed.renew(claim)
    await bed.execute(RevokeLeaseArgs(execution_id=claim.execution_id, reason="stuck"))
    await bed.claim(claim.execution_id, worker_instance_id="worker-2")
    [events] = await history(bed, claim.execution_id)
    assert [one.event for one in events] == ["acquired", "renewed", "revoked", "reclaimed"]
    assert [one.lease_epoch for one in events] == [1, 1, 1, 2]
    assert events[0].worker_instance_id == INSTANCE
    assert events[1].expires_at == bed.clock.now_ms + TTL_MS
    assert events[2].reason == "stuck"
    assert (events[3].previous_epoch, events[3].previous_worker_instance_id) == (1, INSTANCE)


async def test_its_pages_follow_each_other(bed):
    claim = await bed.start()
    for _ in range(4):
        await bed.renew(claim)
    pages = await history(bed, claim.execution_id, limit=2)
    assert [len(page) for page in pages] == [2, 2, 1]
    sequences = [one.sequence for page in pages for one in page]
    assert sequences == sorted(set(sequences))


async def test_another_namespace_reads_nothing(bed):
    claim = await bed.start()
    ask = ReadLeaseHistoryArgs(execution_id=claim.execution_id)
    assert (await bed.execute(ask, namespace="other")).events == ()

"""The death of a worker: what was promised is done, whoever crashes in between."""

import pytest

from flowfabric.audit import audit
from flowfabric.contracts.workers import ListWorkersArgs
from flowfabric.core import indexes
from flowfabric.core.commands import SettleWorkerDeathArgs
from flowfabric.core.records import WorkerDeath
from flowfabric.core.state import Situation
from flowfabric.engine import workers
from flowfabric.engine.scanners.duties import DUTIES
from flowfabric.engine.scanners.loop import sweep
from flowfabric.errors import InvalidInput
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, RecordingStore
from flowfabric.testing.bed import NAMESPACE
from flowfabric.testing.conformance.workers import marking_dead, on_record, registering

DEATHS = next(duty for duty in DUTIES if duty.index == indexes.DUE_WORKER_DEATH)


@pytest.fixture
async def bed():
    async with Bed(RecordingStore(MemoryStore())) as bed:
        yield bed
        await bed.check()


async def deaths(bed):
    return await bed.store.list_keys(f"{WorkerDeath.KIND}/", limit=10)


async def mark_dead_and_crash(bed):
    """The commit of the mark, and nothing after it."""
    [answer] = await bed.engine.decide([(marking_dead(), bed.engine.envelope(None, NAMESPACE, ""))])
    return answer


async def test_a_crash_after_the_mark_leaves_the_leases_to_the_duty(bed):
    await bed.execute(registering())
    claim = await bed.start()
    await mark_dead_and_crash(bed)
    assert await bed.situation(claim.execution_id) is Situation.RUNNING
    assert len(await deaths(bed)) == 1
    assert await sweep(bed.engine, DEATHS) == 1
    assert await bed.situation(claim.execution_id) is Situation.LEASE_REVOKED
    assert await deaths(bed) == []


async def test_settling_a_death_twice_changes_nothing(bed):
    await bed.execute(registering())
    await bed.start()
    await mark_dead_and_crash(bed)
    [key] = await deaths(bed)
    settle = SettleWorkerDeathArgs(death_id=key.partition("/")[2])
    assert (await bed.execute(settle)).revoked_leases == 1
    assert (await bed.unchanging(settle)).revoked_leases == 0


async def test_a_death_with_more_leases_than_one_go_may_revoke_stays_until_all_are(bed, monkeypatch):
    monkeypatch.setattr(workers, "PAGE", 2)
    monkeypatch.setattr(workers, "PAGES_MAX", 1)
    await bed.execute(registering())
    for _ in range(5):
        await bed.start()
    assert (await bed.execute(marking_dead())).revoked_leases == 2
    assert len(await deaths(bed)) == 1
    for _ in range(3):
        await sweep(bed.engine, DEATHS)
    assert await deaths(bed) == []
    assert await bed.store.index_scopes(indexes.WORKER_LEASES, "") == []


async def test_a_caller_without_a_namespace_lists_the_workers_of_all(bed):
    await bed.execute(registering("a"))
    bed.clock.advance(1)
    await bed.engine.execute(registering("b", namespace="other"), namespace="other")
    async with Bed(MemoryStore(), namespace=None) as everywhere:
        await everywhere.execute(registering("a"))
        await everywhere.execute(registering("a", namespace="other"))
        assert await on_record(everywhere) == ["a", "a"]
        assert await on_record(everywhere, namespace="other") == ["a"]
    assert await on_record(bed) == ["a"]


async def test_a_cursor_that_no_list_has_returned_is_refused(bed):
    assert isinstance(await bed.refused(ListWorkersArgs(cursor="nonsense")), InvalidInput)


async def test_an_audit_of_one_namespace_counts_its_workers_only(bed):
    await bed.execute(registering())
    await bed.engine.execute(registering(namespace="other"), namespace="other")
    report = await audit(bed.engine, namespace="other")
    assert report.checked["worker"] == 1


async def test_a_worker_registered_with_the_last_lease_time_stays_within_what_can_be_stored(bed):
    await bed.execute(registering(ttl_ms=86_400_000))
    [worker] = (await bed.execute(ListWorkersArgs())).workers
    assert worker.expires_at_ms == bed.clock.now_ms + 86_400_000

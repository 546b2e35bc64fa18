"""Finding work behind what others have taken or keep for themselves."""

from typing import Any

import pytest

from flowfabric import errors
from flowfabric.contracts.leases import (
    ClaimBatchArgs,
    ClaimForWorkerArgs,
    IssueClaimGrantArgs,
    NoWork,
    WorkGranted,
)
from flowfabric.contracts.policy import ExecutionPolicy, RoutingRequirements
from flowfabric.engine import scheduler
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, FaultyStore
from flowfabric.testing.bed import INSTANCE, LANE, TTL_MS, WORKER

WORKER_FIELDS: dict[str, Any] = {
    "worker_id": WORKER,
    "worker_instance_id": INSTANCE,
    "worker_capabilities": frozenset(),
}


@pytest.fixture
async def bed():
    async with Bed(MemoryStore()) as bed:
        yield bed
        await bed.check()


async def grant_to_another(bed, execution_id):
    grant = {"worker_id": "another", "worker_instance_id": "another-1", "grant_ttl_ms": 1_000}
    args = {**WORKER_FIELDS, **grant, "execution_id": execution_id, "lane_id": LANE}
    await bed.execute(IssueClaimGrantArgs(**args))


async def claim_batch(bed, limit):
    args = ClaimBatchArgs(**WORKER_FIELDS, lanes=(LANE,), limit=limit, lease_ttl_ms=TTL_MS)
    return [work.execution_id for work in (await bed.execute(args)).claims]


async def test_work_behind_many_granted_executions_is_found(bed):
    for _ in range(2 * scheduler.PAGES_MAX):
        await grant_to_another(bed, await bed.create())
    behind = [await bed.create() for _ in range(3)]
    assert await claim_batch(bed, 1) == behind[:1]
    found = await bed.execute(ClaimForWorkerArgs(**WORKER_FIELDS, lane_id=LANE, grant_ttl_ms=1_000))
    assert isinstance(found, WorkGranted)
    assert found.grant.execution_id == behind[1]


async def test_work_behind_more_granted_executions_than_one_search_looks_at_is_found_next(bed, monkeypatch):
    monkeypatch.setattr(scheduler, "PAGES_MAX", 2)
    monkeypatch.setattr(scheduler, "PAGE_ROWS", 2)
    for _ in range(6):
        await grant_to_another(bed, await bed.create())
    behind = [await bed.create() for _ in range(2)]
    assert [await claim_batch(bed, 1) for _ in range(3)] == [[], [], behind[:1]]
    args = ClaimForWorkerArgs(**WORKER_FIELDS, lane_id=LANE, grant_ttl_ms=1_000)
    assert await bed.execute(args) == NoWork()
    found = await bed.execute(args)
    assert isinstance(found, WorkGranted)
    assert found.grant.execution_id == behind[1]


async def test_nothing_is_granted_where_nothing_waits_for_this_worker(bed):
    await grant_to_another(bed, await bed.create())
    await bed.create(lane_id="another")
    for lane in (LANE, "empty"):
        args = ClaimForWorkerArgs(**WORKER_FIELDS, lane_id=lane, grant_ttl_ms=1_000)
        assert await bed.unchanging(args) == NoWork()


async def test_no_more_is_claimed_than_was_asked_for(bed):
    for _ in range(3):
        await grant_to_another(bed, await bed.create())
    behind = [await bed.create() for _ in range(5)]
    assert await claim_batch(bed, 2) == behind[:2]
    assert await claim_batch(bed, 9) == behind[2:]
    assert await claim_batch(bed, 1) == []


async def test_work_is_found_behind_more_scopes_than_one_page_has(bed, monkeypatch):
    monkeypatch.setattr(scheduler, "SCOPES_PER_READ", 2)
    for number in range(5):
        needs = RoutingRequirements(required_capabilities=(f"can-{number}",))
        await bed.create(policy=ExecutionPolicy(routing_requirements=needs))
    able = frozenset({"can-4"})
    args: dict[str, Any] = {
        **WORKER_FIELDS,
        "worker_capabilities": able,
        "lanes": (LANE,),
        "limit": 5,
        "lease_ttl_ms": TTL_MS,
    }
    assert len((await bed.execute(ClaimBatchArgs(**args))).claims) == 1


async def test_what_was_claimed_before_a_fault_is_handed_out_and_the_fault_comes_next(monkeypatch):
    store = FaultyStore(MemoryStore())
    async with Bed(store) as bed:
        await grant_to_another(bed, await bed.create())
        behind = [await bed.create() for _ in range(2)]
        commit, commits = store.inner.commit, 0

        async def failing_commit(commit_of_batch):
            nonlocal commits
            commits += 1
            if commits > 1:
                raise errors.StoreUnreachable
            await commit(commit_of_batch)

        monkeypatch.setattr(store.inner, "commit", failing_commit)
        assert await claim_batch(bed, 2) == behind[:1]
        with pytest.raises(errors.StoreUnreachable):
            await claim_batch(bed, 2)

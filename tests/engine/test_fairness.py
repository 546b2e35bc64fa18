"""Nobody waits for ever: many lanes, namespaces, priorities and capabilities, over days of a set clock."""

import random
from typing import Any

import pytest

from flowfabric.contracts.leases import ClaimBatchArgs
from flowfabric.contracts.policy import ExecutionPolicy, RoutingRequirements
from flowfabric.core.indexes import HEAD_START_MS_MAX
from flowfabric.engine import scheduler
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, RecordingStore
from flowfabric.testing.bed import INSTANCE, LANE, TTL_MS, WORKER
from flowfabric.testing.conformance.admission import limited, new_quota
from flowfabric.testing.conformance.budgets import claim_work

TICK_MS = 600_000
BUSY_TICKS = 170
NAMESPACES = ["a", "b", "c"]
LANES = ["fast", "slow", "bulk"]
CAPABILITIES = ["cpu", "gpu", "net"]
PRIORITIES = [0, 0, 0, 1, 5, 10, 100, 9_000]


@pytest.fixture
async def everywhere():
    """An engine that is bound to no namespace."""
    async with Bed(RecordingStore(MemoryStore()), namespace=None) as bed:
        yield bed
        await bed.check()


async def claim(bed: Bed, limit: int = 1, **fields: Any) -> list[str]:
    defaults: dict[str, Any] = {"lanes": (LANE,), "worker_id": WORKER, "worker_instance_id": INSTANCE}
    args = ClaimBatchArgs(**{**defaults, **fields}, limit=limit, lease_ttl_ms=TTL_MS)
    works = (await bed.execute(args)).claims
    for work in works:
        await bed.complete(work)
    return [work.execution_id for work in works]


def needs(*capabilities: str) -> ExecutionPolicy:
    return ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=capabilities))


async def test_low_priority_work_is_claimed_under_a_stream_of_urgent_work_that_takes_every_claim():
    async with Bed(MemoryStore()) as bed:
        low = await bed.create(priority=0)
        begun = bed.clock.now_ms
        while True:
            await bed.create(priority=9_000)
            if low in await claim(bed):
                break
            bed.clock.advance(TICK_MS)
        assert bed.clock.now_ms - begun <= HEAD_START_MS_MAX + TICK_MS


async def test_what_a_quota_policy_lets_go_is_not_overtaken_by_those_who_came_later():
    """A free worker looks at all that waits while there is no room; others come before there is some."""
    async with Bed(MemoryStore()) as bed:
        await new_quota(bed, cap=1)
        first, *oldest = [await limited(bed) for _ in range(4)]
        [claim] = await claim_work(bed, limit=1)
        assert claim.execution_id == first
        done = []
        for _ in oldest:
            assert await claim_work(bed) == ()
            await limited(bed)
            bed.clock.advance(1)
            await bed.complete(claim)
            [claim] = await claim_work(bed, limit=1)
            done.append(claim.execution_id)
        assert done == oldest
        await bed.check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
async def test_with_capable_workers_and_headroom_all_work_is_claimed_within_a_bound(everywhere, seed):
    bed, chance = everywhere, random.Random(seed)
    workers: list[dict[str, Any]] = [
        {"lanes": tuple(LANES), "worker_capabilities": frozenset(CAPABILITIES)},
        {"lanes": ("fast", "slow"), "worker_capabilities": frozenset({"cpu"})},
        {"lanes": ("bulk",)},
    ]
    waiting: dict[str, int] = {}
    total, tick, longest = 0, 0, 0
    while waiting or tick < BUSY_TICKS:
        for _ in range(chance.choice([0, 0, 2, 12]) if tick < BUSY_TICKS else 0):
            execution_id = await bed.create(
                namespace=chance.choice(NAMESPACES),
                lane_id=chance.choice(LANES),
                priority=chance.choice(PRIORITIES),
                policy=needs(*sorted(chance.sample(CAPABILITIES, chance.randrange(3)))),
            )
            waiting[execution_id] = bed.clock.now_ms
            total += 1
        for worker in workers:
            for execution_id in await claim(bed, chance.choice([1, 2, 5]), **worker):
                longest = max(longest, bed.clock.now_ms - waiting.pop(execution_id))
        bed.clock.advance(TICK_MS)
        tick += 1
        assert tick < BUSY_TICKS + total
    # The worker that serves everything claims at least one for each tick, so what was there before
    # some work and what may overtake it is done after so long.
    assert longest <= HEAD_START_MS_MAX + total * TICK_MS / 2


async def test_a_busy_namespace_keeps_no_other_waiting(everywhere):
    bed = everywhere
    for _ in range(50):
        await bed.create(namespace="busy", priority=100)
    bed.clock.advance(1)
    quiet = {await bed.create(namespace=f"quiet-{number}") for number in range(7)}
    claimed = [found for _ in range(2 * 8) for found in await claim(bed)]
    assert quiet <= set(claimed)


async def test_a_batch_is_shared_as_single_claims_are(everywhere):
    bed = everywhere
    for _ in range(50):
        await bed.create(namespace="busy", priority=100)
    quiet = {await bed.create(namespace=f"quiet-{number}") for number in range(7)}
    claimed = await claim(bed, 16)
    assert quiet <= set(claimed)
    assert len(claimed) == 16


async def test_more_queues_than_one_claim_looks_at_are_all_served(everywhere):
    bed = everywhere
    queues = 3 * scheduler.SCOPES_MAX + 5
    made = {await bed.create(namespace=f"tenant-{number:04}") for number in range(queues)}
    claimed: set[str] = set()
    for _ in range(queues):
        bed.store.index_reads = 0
        claimed.update(await claim(bed, 8))
        assert bed.store.index_reads <= 2 * (scheduler.SCOPES_MAX + scheduler.SCOPES_PER_READ)
    assert claimed == made


async def test_a_lone_execution_behind_many_queues_of_others_is_found_at_once(everywhere):
    bed = everywhere
    for number in range(200):
        await bed.create(namespace=f"tenant-{number:04}", lane_id="other")
    lone = await bed.create(namespace="tenant-9999")
    bed.store.index_reads = 0
    assert await claim(bed) == [lone]
    assert bed.store.index_reads < 20

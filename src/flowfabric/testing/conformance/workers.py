"""The worker registry on every store: who is on record, and what a death does to leases."""

from __future__ import annotations

from typing import Any

from flowfabric import errors
from flowfabric.contracts.executions import CompleteExecutionArgs
from flowfabric.contracts.workers import (
    DeregisterWorkerArgs,
    HeartbeatWorkerArgs,
    ListWorkersArgs,
    MarkWorkerDeadArgs,
    RegisterWorkerArgs,
    WorkerDeregistered,
    WorkerMarkedDead,
    WorkerNotRegistered,
    WorkerRefreshed,
    WorkerRegistered,
)
from flowfabric.core import indexes
from flowfabric.core.state import Situation
from flowfabric.testing.bed import INSTANCE, LANE, NAMESPACE, TTL_MS, WORKER, Bed
from flowfabric.testing.conformance.base import StoreSuite

OTHER = "other"


def registering(instance: str = INSTANCE, **fields: Any) -> RegisterWorkerArgs:
    """The arguments that register a worker; any of them can be given."""
    defaults: dict[str, Any] = {
        "worker_id": WORKER,
        "worker_instance_id": instance,
        "namespace": NAMESPACE,
        "lanes": (LANE,),
        "ttl_ms": TTL_MS,
    }
    return RegisterWorkerArgs(**{**defaults, **fields})


def heartbeat(instance: str = INSTANCE) -> HeartbeatWorkerArgs:
    """The arguments of a heartbeat."""
    return HeartbeatWorkerArgs(worker_instance_id=instance, namespace=NAMESPACE)


def marking_dead(instance: str = INSTANCE, reason: str = "gone") -> MarkWorkerDeadArgs:
    """The arguments that mark a worker as dead."""
    return MarkWorkerDeadArgs(worker_instance_id=instance, namespace=NAMESPACE, reason=reason)


async def on_record(bed: Bed, **fields: Any) -> list[str]:
    """The instance ids of all workers, page by page."""
    found: list[str] = []
    cursor = None
    while True:
        page = await bed.execute(ListWorkersArgs(**{"cursor": cursor, "limit": 2, **fields}))
        found += [worker.worker_instance_id for worker in page.workers]
        cursor = page.next_cursor
        if cursor is None:
            return found


class WorkerConformance(StoreSuite):
    """Workers on record."""

    async def test_a_worker_is_on_record_with_all_it_said(self, bed: Bed) -> None:
        now = bed.clock.now_ms
        command = registering(capabilities=frozenset({"gpu", "big"}), concurrency=4, host="here", pid=7)
        assert await bed.execute(command) == WorkerRegistered(next_expiry_ms=now + TTL_MS)
        bed.clock.advance(5)
        assert await bed.execute(heartbeat()) == WorkerRefreshed(next_expiry_ms=now + 5 + TTL_MS)
        [worker] = (await bed.execute(ListWorkersArgs())).workers
        assert (worker.worker_id, worker.lanes, worker.capabilities) == (WORKER, (LANE,), ("big", "gpu"))
        assert (worker.registered_at_ms, worker.last_heartbeat_ms) == (now, now + 5)
        assert (worker.concurrency, worker.host, worker.pid) == (4, "here", 7)
        assert (worker.alive, worker.draining, worker.held_leases) == (True, False, None)

    async def test_registering_again_replaces_what_was_said(self, bed: Bed) -> None:
        await bed.execute(registering(lanes=("a", "b")))
        bed.clock.advance(5)
        again = await bed.execute(registering(lanes=("c",)))
        assert again == WorkerRefreshed(next_expiry_ms=bed.clock.now_ms + TTL_MS)
        assert await on_record(bed, lane_id="a") == []
        assert await on_record(bed, lane_id="c") == [INSTANCE]

    async def test_an_instance_id_of_another_worker_is_refused(self, bed: Bed) -> None:
        await bed.execute(registering())
        refusal = await bed.refused(registering(worker_id=OTHER))
        assert isinstance(refusal, errors.InstanceIdReassigned)
        assert refusal.details["registered_worker_id"] == WORKER

    async def test_an_instance_id_is_free_once_its_worker_is_silent(self, bed: Bed) -> None:
        await bed.execute(registering())
        bed.clock.advance(TTL_MS)
        assert isinstance(await bed.execute(registering(worker_id=OTHER)), WorkerRegistered)

    async def test_the_heartbeat_of_an_unknown_worker_changes_nothing(self, bed: Bed) -> None:
        assert await bed.unchanging(heartbeat()) == WorkerNotRegistered()

    async def test_a_silent_worker_is_not_brought_back_by_a_heartbeat(self, bed: Bed) -> None:
        await bed.execute(registering())
        bed.clock.advance(TTL_MS)
        assert await bed.unchanging(heartbeat()) == WorkerNotRegistered()

    async def test_a_worker_that_leaves_is_off_the_record_and_keeps_its_leases(self, bed: Bed) -> None:
        await bed.execute(registering())
        claim = await bed.start()
        leaving = DeregisterWorkerArgs(worker_instance_id=INSTANCE, namespace=NAMESPACE)
        assert await bed.execute(leaving) == WorkerDeregistered()
        assert await bed.execute(leaving) == WorkerNotRegistered()
        assert await on_record(bed) == []
        await bed.renew(claim)

    async def test_a_list_is_paged_in_the_order_of_registration(self, bed: Bed) -> None:
        names = ["e", "d", "c", "b", "a"]
        for name in names:
            await bed.execute(registering(name))
            bed.clock.advance(1)
        assert await on_record(bed) == names
        await bed.execute(heartbeat("e"))
        assert await on_record(bed) == names

    async def test_another_namespace_sees_and_touches_nothing(self, bed: Bed) -> None:
        await bed.execute(registering())
        assert (await bed.execute(ListWorkersArgs(), namespace=OTHER)).workers == ()
        foreign = ListWorkersArgs(namespace=NAMESPACE)
        assert (await bed.execute(foreign, namespace=OTHER)).workers == ()
        for command in (registering(), heartbeat(), marking_dead()):
            assert isinstance(await bed.refused(command, namespace=OTHER), errors.InvalidInput)

    async def test_a_draining_worker_is_on_record_and_claims_from_no_lane(self, bed: Bed) -> None:
        await bed.execute(registering())
        await bed.execute(registering(draining=True))
        assert await on_record(bed) == [INSTANCE]
        assert await on_record(bed, lane_id=LANE) == []

    async def test_what_a_worker_runs_is_counted(self, bed: Bed) -> None:
        await bed.execute(registering())
        for _ in range(3):
            await bed.start()
        [worker] = (await bed.execute(ListWorkersArgs(count_leases=True))).workers
        assert worker.held_leases == 3


class DeathConformance(StoreSuite):
    """What the death of a worker does."""

    async def test_the_work_of_a_dead_worker_is_reclaimed_at_once(self, bed: Bed) -> None:
        await bed.execute(registering())
        claims = [await bed.start() for _ in range(3)]
        assert await bed.execute(marking_dead()) == WorkerMarkedDead(revoked_leases=3)
        again = [
            await bed.claim(claim.execution_id, worker_instance_id="worker-2", worker_id=OTHER)
            for claim in claims
        ]
        assert [claim.attempt_index for claim in again] == [1, 1, 1]
        assert await on_record(bed) == []
        assert await bed.store.index_scopes(indexes.DUE_WORKER_DEATH, "") == []

    async def test_a_worker_marked_as_dead_that_lives_changes_nothing(self, bed: Bed) -> None:
        await bed.execute(registering())
        claim = await bed.start()
        await bed.execute(marking_dead())
        late = CompleteExecutionArgs(
            execution_id=claim.execution_id,
            fence=claim.fence,
            attempt_index=claim.attempt_index,
            source="lease_holder",
        )
        assert isinstance(await bed.refused(late), errors.LeaseRevoked)
        await bed.claim(claim.execution_id, worker_instance_id="worker-2")
        assert isinstance(await bed.refused(late), errors.StaleLease)

    async def test_the_leases_of_other_workers_are_left_alone(self, bed: Bed) -> None:
        await bed.execute(registering())
        claim = await bed.start()
        other = await bed.create()
        await bed.claim(other, worker_instance_id="worker-2")
        await bed.execute(marking_dead())
        assert await bed.situation(claim.execution_id) is Situation.LEASE_REVOKED
        assert await bed.situation(other) is Situation.RUNNING

    async def test_marking_an_unknown_worker_as_dead_changes_nothing(self, bed: Bed) -> None:
        claim = await bed.start()
        assert await bed.unchanging(marking_dead()) == WorkerNotRegistered()
        assert await bed.situation(claim.execution_id) is Situation.RUNNING

    async def test_marking_twice_does_no_harm(self, bed: Bed) -> None:
        await bed.execute(registering())
        await bed.start()
        await bed.execute(marking_dead())
        assert await bed.unchanging(marking_dead()) == WorkerNotRegistered()

    async def test_a_dead_worker_may_register_and_claim_again(self, bed: Bed) -> None:
        await bed.execute(registering())
        await bed.execute(marking_dead())
        assert isinstance(await bed.execute(registering()), WorkerRegistered)
        bed.clock.advance(1)
        claim = await bed.start()
        await bed.settle()
        await bed.renew(claim)

    async def test_more_leases_than_one_page_are_revoked(self, bed: Bed) -> None:
        await bed.execute(registering())
        claims = [await bed.start() for _ in range(105)]
        assert await bed.execute(marking_dead()) == WorkerMarkedDead(revoked_leases=len(claims))

    async def test_missed_heartbeats_take_a_worker_off_the_record_and_its_leases_away(self, bed: Bed) -> None:
        await bed.execute(registering(ttl_ms=1_000))
        claim = await bed.start()
        await bed.advance(1_000)
        assert await on_record(bed) == []
        assert await bed.situation(claim.execution_id) is Situation.LEASE_REVOKED

    async def test_a_worker_that_is_heard_of_stays_on_record(self, bed: Bed) -> None:
        await bed.execute(registering(ttl_ms=1_000))
        for _ in range(5):
            await bed.advance(500)
            await bed.execute(heartbeat())
        assert await on_record(bed) == [INSTANCE]

    async def test_silence_takes_no_lease_that_was_renewed_in_the_meantime(self, bed: Bed) -> None:
        """Whose heartbeats fail while its leases are renewed is alive, and goes on working."""
        await bed.execute(registering(ttl_ms=1_000))
        claim = await bed.start()
        await bed.advance(600)
        await bed.renew(claim)
        await bed.advance(400)
        assert await on_record(bed) == []
        await bed.complete(claim)

    async def test_a_death_reaches_no_lease_that_was_granted_after_it(self, bed: Bed) -> None:
        await bed.execute(registering(ttl_ms=1_000))
        await bed.advance(1_000)
        claim = await bed.start()
        await bed.settle()
        assert await bed.situation(claim.execution_id) is Situation.RUNNING

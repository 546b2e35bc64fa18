"""Lanes: what their states let through, who gets what of them, and that none waits for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import ChangePriorityArgs
from flowfabric.contracts.explaining import ExplainExecutionArgs, WaitingReason
from flowfabric.contracts.lanes import DescribeLaneArgs, SetLaneStateArgs
from flowfabric.contracts.leases import (
    ClaimBatchArgs,
    ClaimForWorkerArgs,
    NoWork,
    ScanEligibleArgs,
    WorkGranted,
)
from flowfabric.contracts.policy import ExecutionPolicy, RoutingRequirements
from flowfabric.contracts.reads import ListExecutionSummariesArgs, ListLanesArgs, ReadStateVectorArgs
from flowfabric.contracts.states import EligibilityState, LaneState, PublicState
from flowfabric.core.indexes import HEAD_START_MS_MAX
from flowfabric.core.records import Lane, kind_of
from flowfabric.engine.engine import Engine
from flowfabric.engine.notifier import claimable_topic
from flowfabric.stores.base import Durability
from flowfabric.testing.bed import INSTANCE, LANE, NAMESPACE, TTL_MS, WORKER, Bed
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.stores import RecordingStore, StoreAround

if TYPE_CHECKING:
    from pathlib import Path

    from flowfabric.contracts.ids import ExecutionId

HOUR_MS = 3_600_000


def set_state(state: LaneState, lane_id: str = LANE, namespace: str = NAMESPACE) -> SetLaneStateArgs:
    """An operator's word about a lane."""
    return SetLaneStateArgs(namespace=namespace, lane_id=lane_id, state=state)


class OpenStore(StoreAround):
    """A store that another engine has opened and will close, and watches."""

    async def open(self) -> Durability:
        return Durability(level="D0", store="memory", settings={})

    async def close(self) -> None:
        pass

    async def wait_for_change(self, timeout_ms: int) -> bool:
        return await asyncio.Event().wait()


async def claim_some(engine: Bed | Engine, limit: int = 1, **fields: Any) -> list[ExecutionId]:
    """What a worker gets that asks for so much."""
    defaults: dict[str, Any] = {
        "lanes": (LANE,),
        "worker_id": WORKER,
        "worker_instance_id": INSTANCE,
        "lease_ttl_ms": TTL_MS,
    }
    result = await engine.execute(ClaimBatchArgs(**{**defaults, **fields}, limit=limit))
    return [work.execution_id for work in result.claims]


async def summaries(bed: Bed, state: PublicState) -> set[str]:
    """The executions that are listed in a state."""
    page = await bed.execute(ListExecutionSummariesArgs(public_state=state))
    return {entry.execution_id for entry in page.executions}


class LaneStates(StoreSuite):
    """Pausing, draining and disabling a lane."""

    async def test_nothing_is_claimed_from_a_paused_lane_until_it_is_active_again(self, bed: Bed) -> None:
        waiting = await bed.create()
        await bed.execute(set_state(LaneState.PAUSED))
        assert await claim_some(bed, 5) == []
        assert (await bed.refused(bed.claiming(waiting))).code == "execution_not_eligible"
        await bed.execute(set_state(LaneState.ACTIVE))
        assert await claim_some(bed, 5) == [waiting]

    async def test_a_paused_lane_keeps_no_worker_from_its_other_lanes(self, bed: Bed) -> None:
        for _ in range(5):
            await bed.create()
        await bed.execute(set_state(LaneState.PAUSED))
        other = await bed.create(lane_id="other")
        for _ in range(2):
            assert await claim_some(bed, 3, lanes=(LANE, "other")) in ([other], [])
        assert await bed.state(other) is PublicState.ACTIVE

    async def test_a_draining_lane_gives_what_is_there_and_takes_nothing(self, bed: Bed) -> None:
        waiting = await bed.create()
        await bed.execute(set_state(LaneState.DRAINING))
        assert (await bed.refused(bed.creation())).code == "lane_closed"
        assert await claim_some(bed) == [waiting]

    async def test_a_pause_in_one_engine_holds_in_the_next_claim_of_another(self, bed: Bed) -> None:
        # The other engine has met the lane while it was active and remembers it so.
        waiting = [await bed.create() for _ in range(3)]
        async with Engine(OpenStore(bed.store), namespace=NAMESPACE) as other:
            assert await claim_some(other) == waiting[:1]
            await bed.execute(set_state(LaneState.PAUSED))
            assert await claim_some(other) == []
            with pytest.raises(errors.ExecutionNotEligible):
                await other.execute(bed.claiming(waiting[1]))
            await bed.execute(set_state(LaneState.DRAINING))
            assert await claim_some(other) == waiting[1:2]
            with pytest.raises(errors.LaneClosed):
                await other.execute(bed.creation())
            await bed.execute(set_state(LaneState.ACTIVE))
            await other.execute(bed.creation())

    async def test_no_claim_commits_after_a_pause(self, bed: Bed) -> None:
        for _ in range(40):
            await bed.create()

        async def work() -> int:
            return sum([len(await claim_some(bed)) for _ in range(10)])

        *claimed, _ = await asyncio.gather(work(), work(), work(), bed.execute(set_state(LaneState.PAUSED)))
        names = [found.event.name for found in await bed.store.read_events(0, limit=1_000)]
        assert "acquired" not in names[names.index("lane_state_set") :]
        assert names.count("acquired") == sum(claimed) < 30
        assert await claim_some(bed, 40) == []

    async def test_a_pause_that_is_sent_again_does_not_come_after_another_change(self, bed: Bed) -> None:
        paused = await bed.execute(set_state(LaneState.PAUSED), request_id="asked")
        await bed.execute(set_state(LaneState.ACTIVE))
        assert await bed.unchanging(set_state(LaneState.PAUSED), request_id="asked") == paused

    async def test_making_a_lane_active_wakes_its_workers(self, bed: Bed) -> None:
        await bed.execute(set_state(LaneState.PAUSED))
        with bed.engine.notifier.subscribe(claimable_topic(NAMESPACE, LANE)) as changes:
            await bed.execute(set_state(LaneState.ACTIVE))
            assert changes.event.is_set()

    async def test_lists_and_reads_agree_on_what_a_paused_lane_holds(self, bed: Bed) -> None:
        waiting, delayed = await bed.create(), await bed.create(delay_until=bed.clock.now_ms + HOUR_MS)
        elsewhere = await bed.create(lane_id="other", delay_until=bed.clock.now_ms + HOUR_MS)
        assert await summaries(bed, PublicState.DELAYED) == {delayed, elsewhere}
        await bed.execute(set_state(LaneState.PAUSED))
        assert await summaries(bed, PublicState.WAITING) == {waiting, delayed}
        assert await summaries(bed, PublicState.DELAYED) == {elsewhere}
        for execution_id in (waiting, delayed):
            found = await bed.execute(ReadStateVectorArgs(execution_id=execution_id))
            assert found is not None
            assert found.state_vector.eligibility_state is EligibilityState.BLOCKED_BY_LANE_STATE
            assert found.state_vector.public_state is PublicState.WAITING
        scan = ScanEligibleArgs(lane_id=LANE, limit=10)
        assert (await bed.execute(scan)).executions == ()
        await bed.execute(set_state(LaneState.ACTIVE))
        assert (await bed.execute(scan)).executions == (waiting,)

    async def test_what_waits_in_a_paused_lane_is_explained_by_the_lane(self, bed: Bed) -> None:
        delayed = await bed.create(delay_until=bed.clock.now_ms + HOUR_MS)
        await bed.execute(set_state(LaneState.PAUSED))
        found = await bed.execute(ExplainExecutionArgs(execution_id=delayed))
        assert found is not None
        assert found.code is WaitingReason.LANE_NOT_OPEN

    async def test_lanes_are_listed_with_their_states(self, bed: Bed) -> None:
        for lane_id in ("b", "a", "a b"):
            await bed.create(lane_id=lane_id)
        needs = RoutingRequirements(required_capabilities=("gpu",))
        await bed.create(lane_id="a", policy=ExecutionPolicy(routing_requirements=needs))
        await bed.execute(set_state(LaneState.PAUSED, "a"))
        await bed.execute(set_state(LaneState.DISABLED, "never used"))
        await bed.execute(set_state(LaneState.DISABLED, "foreign", "other"), namespace="other")
        page = await bed.execute(ListLanesArgs())
        assert page.lanes == ("a", "a b", "b", "never used")
        states = {lane.lane_id: lane.state for lane in page.details}
        assert states == {
            "a": LaneState.PAUSED,
            "a b": LaneState.ACTIVE,
            "b": LaneState.ACTIVE,
            "never used": LaneState.DISABLED,
        }

    async def test_lanes_are_listed_page_by_page(self, bed: Bed) -> None:
        names = [f"lane-{number}" for number in range(7)]
        for name in names:
            await bed.create(lane_id=name)
        found: list[str] = []
        cursor = None
        while True:
            page = await bed.execute(ListLanesArgs(cursor=cursor, limit=3))
            found += page.lanes
            assert [lane.lane_id for lane in page.details] == list(page.lanes)
            cursor = page.next_cursor
            if cursor is None:
                break
        assert found == names

    async def test_a_lane_is_described_whether_or_not_anybody_has_set_it(self, bed: Bed) -> None:
        args = DescribeLaneArgs(namespace=NAMESPACE, lane_id=LANE)
        assert (await bed.unchanging(args)).state is LaneState.ACTIVE
        await bed.execute(set_state(LaneState.DRAINING), actor="ops")
        found = await bed.unchanging(args)
        assert (found.state, found.changed_by) == (LaneState.DRAINING, "ops")


class LaneShares(StoreSuite):
    """Who gets which work."""

    async def test_a_long_queue_does_not_keep_another_lane_waiting(self, bed: Bed) -> None:
        for _ in range(20):
            await bed.create(lane_id="busy", priority=100)
        quiet = await bed.create(lane_id="quiet")
        claimed = [found for _ in range(4) for found in await claim_some(bed, lanes=("busy", "quiet"))]
        assert quiet in claimed

    @pytest.mark.scenario("CAP-006")
    async def test_a_workers_capabilities_are_compared_as_it_names_them(self, bed: Bed) -> None:
        names = ("GPU", "gpu", "gpu-2", "gpu+x", "\u00fc")
        made = {}
        for name in names:
            needs = RoutingRequirements(required_capabilities=(name,))
            made[name] = await bed.create(policy=ExecutionPolicy(routing_requirements=needs))
        for name in names:
            own = frozenset({name})
            args = ClaimForWorkerArgs(
                lane_id=LANE,
                worker_id=WORKER,
                worker_instance_id=INSTANCE,
                worker_capabilities=own,
                grant_ttl_ms=1_000,
            )
            granted = await bed.execute(args)
            assert isinstance(granted, WorkGranted)
            assert granted.grant.execution_id == made[name]
            assert isinstance(await bed.execute(args), NoWork)
        bed.clock.advance(1_000)
        assert set(await claim_some(bed, 9, worker_capabilities=frozenset(names[1:]))) == {
            made[name] for name in names[1:]
        }

    async def test_waiting_makes_up_for_a_low_priority(self, bed: Bed) -> None:
        low = await bed.create(priority=0)
        bed.clock.advance(HEAD_START_MS_MAX + 1)
        await bed.create(priority=9_000)
        assert await claim_some(bed) == [low]

    async def test_time_that_work_could_not_run_in_counts_for_nothing(self, bed: Bed) -> None:
        slept = await bed.create(delay_until=bed.clock.now_ms + 40 * HOUR_MS)
        await bed.advance(40 * HOUR_MS - 1)
        urgent = await bed.create(priority=1)
        await bed.advance(1)
        assert await claim_some(bed, 2) == [urgent, slept]

    async def test_a_raised_priority_counts_from_when_the_work_began_to_wait(self, bed: Bed) -> None:
        first = await bed.create()
        second = await bed.create()
        await bed.execute(ChangePriorityArgs(execution_id=second, new_priority=1))
        assert await claim_some(bed, 2) == [second, first]

    async def test_an_engine_without_a_namespace_serves_all_of_them(self, tmp_path: Path) -> None:
        async with Bed(self.make_store(tmp_path), namespace=None) as bed:
            made = {name: await bed.create(namespace=name) for name in ("a", "a!", "b")}
            await bed.execute(set_state(LaneState.PAUSED, namespace="b"))
            assert set(await claim_some(bed, 9)) == {made["a"], made["a!"]}
            page = await bed.execute(ListLanesArgs())
            assert page.lanes == (LANE,)
            assert {(lane.namespace, lane.state) for lane in page.details} == {
                ("a", LaneState.ACTIVE),
                ("a!", LaneState.ACTIVE),
                ("b", LaneState.PAUSED),
            }

    async def test_work_for_others_costs_a_claim_nothing(self, tmp_path: Path) -> None:
        async with Bed(RecordingStore(self.make_store(tmp_path))) as bed:
            assert isinstance(bed.store, RecordingStore)
            for number in range(100):
                needs = RoutingRequirements(required_capabilities=(f"can-{number:03}",))
                await bed.create(policy=ExecutionPolicy(routing_requirements=needs))
                await bed.create(lane_id=f"{LANE}-{number:03}")
            own = await bed.create()
            bed.store.index_reads = 0
            assert await claim_some(bed, worker_capabilities=frozenset({"zzz"})) == [own]
            assert bed.store.index_reads <= 3

    async def test_claiming_and_creating_load_no_lane_that_was_met_before(self, tmp_path: Path) -> None:
        async with Bed(RecordingStore(self.make_store(tmp_path))) as bed:
            assert isinstance(bed.store, RecordingStore)
            await bed.start()
            bed.store.loaded.clear()
            await bed.start()
            assert not [key for key in bed.store.loaded if kind_of(key) == Lane.KIND]

    async def test_a_store_that_fails_while_work_is_looked_for_is_retryable(self, tmp_path: Path) -> None:
        async with Bed(RecordingStore(self.make_store(tmp_path))) as bed:
            await bed.create()

            async def failing(*_: Any, **__: Any) -> Any:
                raise errors.StoreUnreachable

            bed.store.index_scopes = failing  # type: ignore[method-assign]
            with pytest.raises(errors.StoreUnreachable) as raised:
                await claim_some(bed)
            assert raised.value.retryable


class LaneConformance(LaneStates, LaneShares):
    """Everything about lanes."""

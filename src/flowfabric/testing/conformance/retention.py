"""Retention on every store: what goes, when, and that nothing of it is left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from flowfabric import errors
from flowfabric.contracts.events import FROM_START, Family, TagChange, TagEvent, TailEventsArgs
from flowfabric.contracts.executions import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric.contracts.flows import CancelFlowArgs, DescribeFlowArgs, FlowCancellationPolicy
from flowfabric.contracts.limits import DAY_MS
from flowfabric.contracts.policy import ExecutionPolicy, StreamPolicy
from flowfabric.contracts.reads import DescribeExecutionArgs
from flowfabric.contracts.retention import TrimRetentionArgs
from flowfabric.core.commands import RemoveExecutionArgs
from flowfabric.core.frames import PARTS
from flowfabric.core.records import Execution, StreamMeta
from flowfabric.core.rules import retention as rules
from flowfabric.engine import retention as engine
from flowfabric.testing.bed import Bed
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.conformance.flows import Graph
from flowfabric.testing.conformance.scenarios import frame
from flowfabric.testing.conformance.situations import SITUATION_STEPS, bring, seed_key, signal
from flowfabric.testing.stores import RecordingStore, StoreAround

if TYPE_CHECKING:
    from pathlib import Path

    from flowfabric.stores.base import Commit
    from flowfabric.testing.clock import ClockedStore, ManualClock

ENDED = ("completed", "failed", "cancelled", "cancelled_unclaimed", "expired", "skipped")
COMMITS_MAX = 60
SMALL_STEP = 3
ATTEMPTS = 3


async def ended(bed: Bed, **fields: Any) -> str:
    """Create, claim and complete an execution."""
    claim = await bed.start(**fields)
    await bed.complete(claim)
    return claim.execution_id


async def ended_flow(bed: Bed, names: str = "abc") -> Graph:
    """A sealed flow whose members, each behind the one before, have all succeeded."""
    graph = await Graph(bed).open(names)
    pairs = " ".join(names[place : place + 2] for place in range(len(names) - 1))
    await bed.execute(graph.adding_edges(pairs))
    for name in names:
        await bed.complete(await bed.claim(graph.ids[name]))
    return graph


async def holds(bed: Bed) -> dict[str, Any]:
    """What the store holds, but for the log."""
    return {part: held for part, held in (await bed.dump()).items() if part != "events"}


async def retire(bed: Bed, milliseconds: int = DAY_MS) -> None:
    """Let the retention of everything that has ended pass."""
    await bed.advance(milliseconds)
    await bed.check()


class StoppingStore(StoreAround):
    """Loses every commit once it has made so many."""

    def __init__(self, inner: ClockedStore) -> None:
        super().__init__(inner)
        self.commits_left = COMMITS_MAX * COMMITS_MAX

    async def commit(self, commit: Commit) -> int | None:
        self.commits_left -= 1
        if self.commits_left < 0:
            raise errors.StoreUnreachable
        return await self.inner.commit(commit)


class RetentionConformance(StoreSuite):
    """Retention."""

    @pytest.fixture
    def small_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let removing take many steps."""
        monkeypatch.setattr(rules, "FRAMES_PER_STEP", SMALL_STEP)
        monkeypatch.setattr(engine, "RECORDS_PER_STEP", SMALL_STEP)

    async def test_of_what_ended_long_ago_nothing_is_left(self, bed: Bed) -> None:
        await seed_key(bed)
        before = await bed.dump()
        for situation in ENDED:
            await bring(bed, situation, 2)
        await bed.create(idempotency_key="key", policy=ExecutionPolicy(dedup_window_ms=1_000))
        [place] = await bring(bed, "suspended", 1)
        await bed.execute(signal(bed, place, idempotency_key="once"))
        for execution_id in [row[3] for row in (await bed.dump())["rows"] if row[0] == "eligible"]:
            claim = await bed.claim(execution_id)
            await bed.execute(frame(claim))
            await bed.complete(claim, result_payload=b"result")
        streams = await all_streams(bed)
        await retire(bed, 2 * DAY_MS)
        after = await bed.dump()
        acts = [stored for stored in after["events"] if stored["event"]["family"] == Family.OPERATOR]
        assert after == {**before, "events": acts}
        assert [await bed.store.read_frames(key) for key in streams] == [[]] * len(streams)

    async def test_what_has_not_ended_stays_for_ever(self, bed: Bed) -> None:
        await seed_key(bed)
        waiting = [name for name in SITUATION_STEPS if name in ("blocked", "suspended", "eligible")]
        places = [(await bring(bed, name, 1))[0] for name in waiting]
        await bed.advance(30 * DAY_MS)
        for place in places:
            assert await bed.execute(DescribeExecutionArgs(execution_id=place.execution_id))

    async def test_the_retention_counts_from_the_end_and_is_kept_to_the_millisecond(self, bed: Bed) -> None:
        claim = await bed.start()
        await bed.advance(1_000)
        await bed.complete(claim)
        await bed.advance(DAY_MS - 1)
        assert await bed.find(Execution, claim.execution_id)
        await bed.advance(1)
        assert not await bed.find(Execution, claim.execution_id)

    async def test_a_replay_begins_the_retention_anew(self, bed: Bed) -> None:
        execution_id = await ended(bed)
        await bed.advance(DAY_MS - 1)
        await bed.execute(ReplayExecutionArgs(execution_id=execution_id))
        await bed.complete(await bed.claim(execution_id))
        await bed.advance(DAY_MS - 1)
        assert await bed.find(Execution, execution_id)
        await bed.advance(1)
        assert not await bed.find(Execution, execution_id)

    async def test_a_policy_lengthens_the_retention_and_never_shortens_it(self, bed: Bed) -> None:
        policies = [
            ExecutionPolicy(stream_policy=StreamPolicy(retention_ttl_ms=ttl_ms))
            for ttl_ms in (3 * DAY_MS, 1_000)
        ]
        long, short = [await ended(bed, policy=policy) for policy in policies]
        await bed.advance(DAY_MS - 1)
        assert await bed.find(Execution, short)
        await bed.advance(2 * DAY_MS)
        assert not await bed.find(Execution, short)
        assert await bed.find(Execution, long)
        await bed.advance(1)
        assert not await bed.find(Execution, long)

    async def test_an_idempotency_key_finds_its_execution_as_long_as_it_is_bound(self, bed: Bed) -> None:
        keyed = await ended(bed, idempotency_key="key", policy=ExecutionPolicy(dedup_window_ms=3 * DAY_MS))
        await bed.advance(3 * DAY_MS - 1)
        assert await bed.find(Execution, keyed)
        await bed.advance(1)
        assert not await bed.find(Execution, keyed)

    async def test_a_flow_goes_with_its_members_and_its_graph(self, bed: Bed) -> None:
        before = await holds(bed)
        graph = await ended_flow(bed)
        await bed.advance(DAY_MS - 1)
        assert await bed.execute(DescribeFlowArgs(flow_id=graph.flow_id))
        await retire(bed, 1)
        assert await holds(bed) == before

    async def test_members_of_an_open_flow_stay(self, bed: Bed) -> None:
        graph = await Graph(bed).open("ab")
        for name in "ab":
            await bed.complete(await bed.claim(graph.ids[name]))
        await retire(bed, 5 * DAY_MS)
        assert all([await bed.find(Execution, execution_id) for execution_id in graph.ids.values()])

    async def test_a_flow_waits_for_the_member_it_spared(self, bed: Bed) -> None:
        before = await holds(bed)
        graph = await Graph(bed).open("ab")
        spared = await bed.claim(graph.ids["a"])
        policy = FlowCancellationPolicy.CANCEL_PENDING
        await bed.execute(CancelFlowArgs(flow_id=graph.flow_id, reason="enough", cancellation_policy=policy))
        for _ in range(4):
            await bed.renew(spared, DAY_MS)
            await bed.advance(DAY_MS - 1)
        assert await bed.find(Execution, graph.ids["b"])
        await bed.complete(spared)
        await retire(bed, 2 * DAY_MS)
        assert await holds(bed) == before

    async def test_a_removal_that_is_stopped_anywhere_is_finished_later(
        self, tmp_path: Path, clock: ManualClock, small_steps: None
    ) -> None:
        store = StoppingStore(self.make_store(tmp_path))
        async with Bed(store, clock=clock) as bed:
            before = await holds(bed)
            for stop in range(COMMITS_MAX):
                await large_execution(bed)
                await ended_flow(bed, "ab")
                clock.advance(DAY_MS)
                store.commits_left = stop
                await asyncio.gather(bed.settle(), return_exceptions=True)
                stopped, store.commits_left = store.commits_left < 0, COMMITS_MAX * COMMITS_MAX
                await bed.check()
                await bed.settle()
                assert await holds(bed) == before
                if not stopped:
                    return
        raise AssertionError(f"more than {COMMITS_MAX} commits")

    async def test_removing_is_done_in_small_commits(
        self, tmp_path: Path, clock: ManualClock, small_steps: None
    ) -> None:
        store = RecordingStore(self.make_store(tmp_path))
        async with Bed(store, clock=clock) as bed:
            execution_id = await large_execution(bed)
            clock.advance(DAY_MS)
            store.commits.clear()
            await bed.settle()
            assert not await bed.store.list_owned(execution_id)
            assert max(len(commit.changes) for commit in store.commits) <= SMALL_STEP + 1
            kept = [trim.keep for commit in store.commits for trim in commit.trims]
            assert kept == [1, 0, 2, 0, 3, 0], "three streams of four frames, three frames in each commit"

    async def test_from_its_first_step_on_it_is_gone_for_everyone(self, bed: Bed) -> None:
        execution_id = await ended(bed)
        bed.clock.advance(DAY_MS)
        [begun] = await bed.engine.execute_unbounded([RemoveExecutionArgs(execution_id=execution_id)])
        assert begun.action == "removing"
        assert await bed.execute(DescribeExecutionArgs(execution_id=execution_id)) is None
        for command in (
            ReplayExecutionArgs(execution_id=execution_id),
            CancelExecutionArgs(execution_id=execution_id, reason="late", source="operator_override"),
        ):
            assert isinstance(await bed.refused(command), errors.ExecutionNotFound)
        assert await bed.indexes_of(execution_id) == {"retention"}
        assert isinstance(await bed.refused(bed.creation(execution_id=execution_id)), errors.Contention)
        await bed.settle()
        assert await bed.create(execution_id=execution_id) == execution_id

    async def test_two_who_trim_at_once_do_no_harm(self, bed: Bed) -> None:
        before = await holds(bed)
        for _ in range(30):
            await ended(bed)
        bed.clock.advance(DAY_MS)
        await asyncio.gather(bed.settle(), bed.settle())
        assert await holds(bed) == before

    async def test_the_tags_of_what_goes_are_cleared(self, bed: Bed) -> None:
        tags = {"team.name": "media"}
        await ended(bed, tags=tags)
        await bed.advance(DAY_MS)
        page = await bed.execute(TailEventsArgs(families=frozenset({Family.TAG}), after=FROM_START))
        [cleared] = page.events
        assert isinstance(cleared, TagEvent)
        assert (cleared.change, cleared.changed) == (TagChange.CLEARED, tags)

    async def test_a_pass_says_what_it_removed_and_whether_there_is_more(self, bed: Bed) -> None:
        for _ in range(3):
            await ended(bed)
        await ended_flow(bed, "ab")
        bed.clock.advance(1_000)
        young = await ended(bed)
        logged = await bed.store.last_event()
        passes = [await trimmed(bed, limit=3) for _ in range(2)]
        assert [(one.executions, one.flows, one.more) for one in passes] == [(3, 0, True), (2, 1, False)]
        assert 0 < passes[0].events < logged
        assert await bed.find(Execution, young)

    async def test_only_who_is_bound_to_no_namespace_may_trim(self, bed: Bed) -> None:
        await ended(bed)
        assert isinstance(await bed.refused(TrimRetentionArgs(retention_ms=0)), errors.Unauthorized)


async def trimmed(bed: Bed, **fields: Any) -> Any:
    """What one pass with a short retention removed."""
    [answer] = await bed.engine.execute_unbounded([TrimRetentionArgs(retention_ms=1_000, **fields)])
    return answer


async def large_execution(bed: Bed) -> str:
    """An execution with more attempts and more frames than go in one small step."""
    claim = await bed.start()
    for _ in range(ATTEMPTS):
        for _ in range(SMALL_STEP + 1):
            await bed.execute(frame(claim))
        await bed.complete(claim)
        await bed.execute(ReplayExecutionArgs(execution_id=claim.execution_id))
        claim = await bed.claim(claim.execution_id)
    await bed.complete(claim, result_payload=b"result")
    return claim.execution_id


async def all_streams(bed: Bed) -> list[str]:
    """The keys of all streams."""
    records = (await bed.dump())["records"]
    found = [key.partition("/")[2] for key in records if key.startswith(StreamMeta.KIND + "/")]
    return [f"{identity}/{part}" for identity in found for part in PARTS]

"""Several batches under way: none decides by what another one is just writing, and each has its own fate."""

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import ChangePriorityArgs, ExecutionCreated, PriorityChanged
from flowfabric.contracts.lanes import SetLaneStateArgs
from flowfabric.contracts.states import LaneState, PublicState
from flowfabric.core.records import Execution, Lane, key_for, lane_identity
from flowfabric.engine.underway import UnderWay
from flowfabric.stores.base import DECLINED, Commit, Conflict, Decided
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, RecordingStore
from flowfabric.testing.bed import LANE, NAMESPACE
from flowfabric.testing.conformance.flows import graph


class HeldStore(RecordingStore):
    """Takes several batches at once, and holds their commits until the test lets them through."""

    def __init__(self, at_once=2):
        super().__init__(MemoryStore())
        self.at_once = at_once
        self.holds = False
        self.held = []
        self.conflicts = 0

    @property
    def batches_at_once(self):
        return self.at_once

    async def commit(self, commit):
        if self.holds:
            gate = asyncio.get_running_loop().create_future()
            self.held.append(gate)
            await gate
        try:
            return await super().commit(commit)
        except Conflict:
            self.conflicts += 1
            raise

    def let_go(self):
        """Let every commit through, those on their way and those to come."""
        self.holds = False
        for gate in self.held:
            if not gate.done():
                gate.set_result(None)


@pytest.fixture
async def store():
    return HeldStore()


@pytest.fixture
async def bed(store):
    async with Bed(store) as bed:
        yield bed
        store.let_go()
        await bed.check()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


async def turns() -> None:
    """Let everything happen that waits for nothing but the event loop."""
    for _ in range(50):
        await asyncio.sleep(0)


def priority(execution_id, value):
    return ChangePriorityArgs(execution_id=execution_id, new_priority=value)


def priorities(bed, execution_id):
    """What the priority of an execution was changed to, in the order of the commits."""
    events = [event for commit in bed.store.commits for event in commit.events]
    return [
        event.data["new"] for event in events if event.execution_id == execution_id and "new" in event.data
    ]


@asynccontextmanager
async def under_way(bed, command):
    """A command whose commit is held."""
    bed.store.holds = True
    before = len(bed.store.held)
    asked = asyncio.create_task(bed.execute(command))
    await until(lambda: len(bed.store.held) > before)
    yield asked
    bed.store.let_go()
    await asked


async def test_a_batch_is_decided_while_another_one_is_on_its_way(bed):
    one, other = await bed.create(), await bed.create()
    async with under_way(bed, priority(one, 1)) as first:
        second = asyncio.create_task(bed.execute(priority(other, 2)))
        await until(lambda: len(bed.store.held) == 2)
        bed.store.held[1].set_result(None)
        assert isinstance(await second, PriorityChanged)
        assert not first.done()


async def test_no_more_batches_are_under_way_than_the_store_wants(bed):
    ids = [await bed.create() for _ in range(6)]
    async with under_way(bed, priority(ids[0], 1)):
        second = asyncio.create_task(bed.execute(priority(ids[1], 1)))
        await until(lambda: len(bed.store.held) == 2)
        others = [asyncio.create_task(bed.execute(priority(one, 1))) for one in ids[2:]]
        await turns()
        assert len(bed.store.held) == 2
        assert bed.engine.waiting == 4
        bed.store.held[1].set_result(None)
        await second
        await until(lambda: len(bed.store.held) == 3)
        assert bed.engine.waiting == 0
        bed.store.let_go()
        await asyncio.gather(*others)


async def test_a_store_that_wants_one_batch_gets_one():
    store = HeldStore(at_once=1)
    async with Bed(store) as bed:
        ids = [await bed.create() for _ in range(2)]
        async with under_way(bed, priority(ids[0], 1)):
            second = asyncio.create_task(bed.execute(priority(ids[1], 1)))
            await turns()
            assert len(store.held) == 1
            store.let_go()
            await second


async def test_commands_about_one_record_keep_their_order_and_hold_up_no_others(bed):
    one, other = await bed.create(), await bed.create()
    async with under_way(bed, priority(one, 1)) as first:
        later = [asyncio.create_task(bed.execute(priority(one, value))) for value in (2, 3)]
        await turns()
        free = asyncio.create_task(bed.execute(priority(other, 7)))
        await until(lambda: len(bed.store.held) == 2)
        bed.store.held[1].set_result(None)
        await free
        last = asyncio.create_task(bed.execute(priority(one, 4)))
        await turns()
        assert len(bed.store.held) == 2
        assert not any(task.done() for task in (first, *later, last))
        bed.store.let_go()
        await asyncio.gather(first, *later, last)
    assert priorities(bed, one) == [1, 2, 3, 4]
    assert bed.store.conflicts == 0


async def test_who_needs_what_another_batch_is_writing_waits_for_it_and_loads_nothing(bed):
    """Two members of one join end in two batches: the counts of the join are in one record."""
    flow = await graph(bed, "abc")
    await flow.connect("ac bc")
    claims = [await bed.claim(flow.ids[name]) for name in "ab"]
    bed.store.holds = True
    first = asyncio.create_task(bed.complete(claims[0]))
    await until(lambda: len(bed.store.held) == 1)
    second = asyncio.create_task(bed.complete(claims[1]))
    await turns()
    assert len(bed.store.held) == 1
    bed.store.loaded.clear()
    bed.store.let_go()
    await asyncio.gather(first, second)
    assert bed.store.conflicts == 0
    assert not bed.store.loaded
    assert await bed.state(flow.ids["c"]) is PublicState.WAITING


async def test_what_is_refused_is_refused_by_what_was_committed(bed):
    """A lane that is just being paused must not be relied on as it was remembered."""
    execution_id = await bed.create()
    await bed.claim(await bed.create())
    pausing = SetLaneStateArgs(namespace=NAMESPACE, lane_id=LANE, state=LaneState.PAUSED, reason="upgrade")
    async with under_way(bed, pausing):
        claiming = asyncio.create_task(bed.claim(execution_id))
        await turns()
        assert len(bed.store.held) == 1
        bed.store.let_go()
        with pytest.raises(errors.StateRefusal):
            await claiming
    assert bed.store.conflicts == 0
    assert (await bed.get(Lane, lane_identity(NAMESPACE, LANE))).state is LaneState.PAUSED


async def test_a_fault_in_one_batch_leaves_the_other_alone(bed):
    one, other = await bed.create(), await bed.create()
    async with under_way(bed, priority(one, 1)):
        second = asyncio.create_task(bed.execute(priority(other, 2)))
        await until(lambda: len(bed.store.held) == 2)
        behind = asyncio.create_task(bed.execute(priority(other, 3)))
        await turns()
        bed.store.held[1].set_exception(errors.StoreUnreachable())
        with pytest.raises(errors.StoreUnreachable):
            await second
        bed.store.let_go()
        await behind
    assert (priorities(bed, one), priorities(bed, other)) == ([1], [3])


async def test_a_batch_that_is_cancelled_leaves_the_other_alone(bed):
    one, other = await bed.create(), await bed.create()
    async with under_way(bed, priority(one, 1)):
        [first_pump] = bed.engine._batches.pumps
        second = asyncio.create_task(bed.execute(priority(other, 2)))
        await until(lambda: len(bed.store.held) == 2)
        behind = asyncio.create_task(bed.execute(priority(other, 3)))
        await turns()
        [second_pump] = bed.engine._batches.pumps - {first_pump}
        second_pump.cancel()
        with pytest.raises(errors.Unavailable, match="not known"):
            await second
        bed.store.let_go()
        await behind
    assert (priorities(bed, one), priorities(bed, other)) == ([1], [3])


async def test_a_conflict_with_somebody_else_lets_the_next_batch_decide(bed):
    one, other = await bed.create(), await bed.create()
    async with under_way(bed, priority(one, 1)) as first:
        second = asyncio.create_task(bed.execute(priority(other, 2)))
        await until(lambda: len(bed.store.held) == 2)
        for gate in bed.store.held:
            gate.set_exception(Conflict(frozenset({key_for(Execution, one)})))
        bed.store.held.clear()
        await until(lambda: len(bed.store.held) == 2)
        bed.store.let_go()
        await asyncio.gather(first, second)
    assert (priorities(bed, one), priorities(bed, other)) == ([1], [2])


class AskedStore(HeldStore):
    """Is asked to decide priorities by itself, and declines when the test lets it."""

    def __init__(self):
        super().__init__()
        self.native = self
        self.asked = []

    def takes(self, command):
        return isinstance(command, ChangePriorityArgs)

    def forget(self):
        pass

    def leaves(self, command, known):
        return False

    def looks_at(self, command):
        return ()

    def orders(self, command):
        return False

    async def decide(self, asked, remembered):
        gate = asyncio.get_running_loop().create_future()
        self.asked.append(([command.execution_id for command, _ in asked], gate))
        await gate
        effects = Commit(
            now=0,
            changes=[],
            relied_on=[],
            rows_removed=[],
            rows_added=[],
            events=[],
            appends=[],
            trims=[],
        )
        return Decided(answers=[DECLINED] * len(asked), effects=effects)

    def decline(self):
        for _, gate in self.asked:
            if not gate.done():
                gate.set_result(None)


async def test_a_store_decides_several_batches_at_once_but_never_two_commands_about_one_record():
    store = AskedStore()
    async with Bed(store) as bed:
        one, other = await bed.create(), await bed.create()
        changing = [asyncio.create_task(bed.execute(priority(one, 1)))]
        await until(lambda: len(store.asked) == 1)
        changing += [asyncio.create_task(bed.execute(priority(which, 2))) for which in (one, other)]
        await until(lambda: len(store.asked) == 2)
        await turns()
        assert [ids for ids, _ in store.asked] == [[one], [other]]
        store.decline()
        await until(lambda: len(store.asked) == 3)
        store.decline()
        await asyncio.gather(*changing)
        assert (priorities(bed, one), priorities(bed, other)) == ([1, 2], [2])
        assert store.conflicts == 0


async def test_a_rule_waits_for_what_the_store_is_just_deciding():
    store = AskedStore()
    async with Bed(store) as bed:
        parent = await bed.create()
        changing = asyncio.create_task(bed.execute(priority(parent, 1)))
        await until(lambda: len(store.asked) == 1)
        flow = await graph(bed)
        flow.ids["a"] = parent
        adding = asyncio.create_task(flow.add("a"))
        await turns()
        assert not adding.done()
        store.decline()
        await asyncio.gather(changing, adding)
        assert store.conflicts == 0


async def test_nobody_waits_for_writes_that_began_later():
    under_way = UnderWay()
    first, other = under_way.begin(["a", "b"]), under_way.begin(["c"])
    waiting = asyncio.create_task(under_way.wait_for(["b", "c", "d"]))
    await turns()
    assert not waiting.done()
    later = under_way.begin(["b"])
    with first, other:
        pass
    await waiting
    assert "b" in under_way
    assert not under_way.isdisjoint(["b"])
    with later:
        pass
    assert under_way.isdisjoint(["a", "b", "c"])


async def test_stopping_waits_for_all_batches(store):
    bed = Bed(store)
    await bed.engine.start()
    store.holds = True
    asked = [asyncio.create_task(bed.execute(bed.creation()))]
    await until(lambda: len(store.held) == 1)
    asked.append(asyncio.create_task(bed.execute(bed.creation())))
    await until(lambda: len(store.held) == 2)
    stopping = asyncio.create_task(bed.engine.stop())
    store.held[0].set_result(None)
    await asked[0]
    await turns()
    assert not stopping.done()
    store.held[1].set_result(None)
    await stopping
    assert isinstance(await asked[1], ExecutionCreated)

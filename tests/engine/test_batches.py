"""Batches: what is submitted together shares commits, and nothing else."""

import asyncio
import gc

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import ChangePriorityArgs, CompleteExecutionArgs, CreateExecutionArgs
from flowfabric.contracts.limits import PAYLOAD_BYTES_MAX
from flowfabric.core.commands import ClaimCandidateArgs
from flowfabric.core.registry import RULES
from flowfabric.engine.batches import BATCH_BYTES_MAX, BATCH_MAX
from flowfabric.engine.tickets import Ticket
from flowfabric.minting import new_attempt_id, new_lease_id
from flowfabric.stores.base import Commit, Decided
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, RecordingStore
from flowfabric.testing.bed import LANE


@pytest.fixture
async def bed():
    async with Bed(RecordingStore(MemoryStore())) as bed:
        yield bed
        await bed.check()


class SlowStore(RecordingStore):
    """Holds every commit until it is let through, so that commands gather behind it."""

    def __init__(self):
        super().__init__(MemoryStore())
        self.gate = asyncio.Event()

    async def commit(self, commit):
        await self.gate.wait()
        return await super().commit(commit)


class LostStore(RecordingStore):
    """Does not know where a record lives while it is lost."""

    lost = False

    def place_of(self, key):
        if self.lost:
            raise RuntimeError("where am I?")
        return super().place_of(key)


async def test_a_fault_before_a_batch_is_decided_reaches_those_who_asked():
    store = LostStore(MemoryStore())
    async with Bed(store) as bed:
        store.lost = True
        asked = [bed.engine.execute(bed.creation()) for _ in range(2)]
        async with asyncio.timeout(60):
            found = await asyncio.gather(*asked, return_exceptions=True)
        assert [str(error) for error in found] == ["where am I?"] * 2
        store.lost = False
        await bed.create()


async def test_what_is_answered_is_not_left_to_the_garbage_collector(bed):
    """A ticket holds its group and the group its tickets, and with them the payloads of all commands."""
    creations = [bed.creation() for _ in range(20)]
    gc.disable()
    try:
        for creation in creations:
            await bed.engine.execute(creation)
        left = [one.command for one in gc.get_objects() if isinstance(one, Ticket)]
        assert not [one for one in left if any(one is creation for creation in creations)]
    finally:
        gc.enable()


async def test_commands_that_are_sent_together_share_one_commit(bed):
    await bed.create()
    bed.store.loads, bed.store.commits = 0, []
    await bed.engine.execute_many([bed.creation() for _ in range(50)])
    assert len(bed.store.commits) == 1
    assert bed.store.loads == 1


async def test_large_payloads_are_spread_over_commits(bed):
    largest = bytes(PAYLOAD_BYTES_MAX)
    await bed.engine.execute_many([bed.creation(input_payload=largest) for _ in range(20)])
    held = BATCH_BYTES_MAX // PAYLOAD_BYTES_MAX
    assert [len(commit.changes) // 2 for commit in bed.store.commits] == [held, held, 20 - 2 * held]


async def test_commands_that_come_while_a_commit_is_under_way_share_the_next():
    store = SlowStore()
    async with Bed(store) as bed:
        first = asyncio.create_task(bed.execute(bed.creation()))
        await asyncio.sleep(0)
        others = [asyncio.create_task(bed.execute(bed.creation())) for _ in range(30)]
        await asyncio.sleep(0)
        store.gate.set()
        await asyncio.gather(first, *others)
        assert len(store.commits) <= 2


async def test_those_who_are_woken_by_the_same_turn_share_one_commit(bed):
    """Handlers that end make room for submitters, who come one turn behind the first outcome."""
    await bed.create()
    bed.store.commits = []
    room = asyncio.Semaphore(0)

    async def make_room():
        room.release()
        await bed.create()

    async def take_room():
        await room.acquire()
        await bed.create()

    waiting = [asyncio.create_task(take_room()) for _ in range(8)]
    await asyncio.sleep(0)
    await asyncio.gather(*(make_room() for _ in range(8)), *waiting)
    assert len(bed.store.commits) == 1


class SlowForOne:
    """Decides by itself, and takes until it is told to for whatever is not a claim."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.asked = []

    def takes(self, command):
        return True

    def looks_at(self, command):
        return ()

    def leaves(self, command, known):
        return False

    def orders(self, command):
        return False

    def forget(self):
        pass

    async def decide(self, asked, remembered):
        kinds = {type(command) for command, _ in asked}
        self.asked.append(kinds)
        if kinds != {ClaimCandidateArgs}:
            await self.gate.wait()
        nothing = Commit(1, [], [], [], [], [], [], [])
        return Decided([errors.ExecutionNotFound()] * len(asked), nothing)


class DecidingStore(RecordingStore):
    """Has some commands decided by itself."""

    def __init__(self, native):
        super().__init__(MemoryStore())
        self.native = native


async def test_what_a_store_decides_waits_for_no_commands_of_another_kind():
    """Claims are asked for first, and answered while the store still decides the others."""
    native = SlowForOne()
    async with Bed(DecidingStore(native)) as bed:
        claims = [candidate(bed.creation().execution_id) for _ in range(2)]
        creating = asyncio.create_task(bed.engine.execute_many([bed.creation()]))
        claiming = asyncio.create_task(bed.engine.execute_many(claims))
        async with asyncio.timeout(60):
            assert [type(one) for one in await claiming] == [errors.ExecutionNotFound] * 2
        assert native.asked == [{ClaimCandidateArgs}, {CreateExecutionArgs}]
        assert not creating.done()
        native.gate.set()
        await creating


def candidate(execution_id):
    return ClaimCandidateArgs(
        execution_id=execution_id,
        lane_id=LANE,
        worker_id="w",
        worker_instance_id="w1",
        worker_capabilities=frozenset(),
        lease_id=new_lease_id(),
        attempt_id=new_attempt_id(),
        lease_ttl_ms=1_000,
        policies={},
    )


async def test_whoever_waits_for_a_commit_that_is_cancelled_is_told_that_nothing_is_known():
    store = SlowStore()
    async with Bed(store) as bed:
        waiting = [asyncio.create_task(bed.execute(bed.creation())) for _ in range(2)]
        for _ in range(3):
            await asyncio.sleep(0)
        [pump] = bed.engine._batches.pumps
        pump.cancel()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [errors.Unavailable] * 2
        store.gate.set()
        await bed.create()


async def test_a_batch_has_a_bound(bed):
    await bed.engine.execute_many([bed.creation() for _ in range(2 * BATCH_MAX + 1)])
    assert len(bed.store.commits) == 3


async def test_no_commands_need_no_commit(bed):
    assert await bed.engine.execute_many([]) == []
    assert bed.store.commits == []


async def test_a_refused_command_does_not_fail_those_beside_it(bed):
    good, other = await bed.create(), await bed.create()
    answers = await bed.engine.execute_many(
        [
            ChangePriorityArgs(execution_id=good, new_priority=5),
            ChangePriorityArgs(execution_id=bed.new_execution_id(), new_priority=5),
            ChangePriorityArgs(execution_id=good, new_priority=2**40),
            ChangePriorityArgs(execution_id=other, new_priority=5),
        ]
    )
    assert [type(answer).__name__ for answer in answers] == [
        "PriorityChanged",
        "ExecutionNotFound",
        "InvalidInput",
        "PriorityChanged",
    ]
    assert (await bed.execution(good)).priority == (await bed.execution(other)).priority == 5


async def test_a_broken_rule_fails_only_its_own_command(bed, monkeypatch):
    def broken(work, args):
        if args.new_priority == 13:
            work.edit(work.execution(args.execution_id)).priority = 99
            raise ZeroDivisionError
        return decide(work, args)

    decide = RULES[ChangePriorityArgs].decide
    monkeypatch.setattr(RULES[ChangePriorityArgs], "decide", broken)
    ids = [await bed.create() for _ in range(3)]
    answers = await bed.engine.execute_many(
        [
            ChangePriorityArgs(execution_id=execution_id, new_priority=priority)
            for execution_id, priority in zip(ids, (5, 13, 5), strict=True)
        ]
    )
    assert isinstance(answers[1], ZeroDivisionError)
    assert [(await bed.execution(execution_id)).priority for execution_id in ids] == [5, 0, 5]


async def test_a_command_sees_what_those_before_it_in_the_batch_have_done(bed):
    claim = await bed.start()
    complete = CompleteExecutionArgs(execution_id=claim.execution_id, fence=claim.fence, attempt_index=0)
    again = CompleteExecutionArgs(
        execution_id=claim.execution_id, attempt_index=0, source="operator_override"
    )
    first, second = await bed.engine.execute_many([complete, again])
    assert type(first).__name__ == "ExecutionCompleted"
    assert isinstance(second, errors.ExecutionNotActive)


async def test_a_read_commits_nothing(bed):
    execution_id = await bed.create()
    commits = len(bed.store.commits)
    await bed.unchanging(ChangePriorityArgs(execution_id=execution_id, new_priority=0))
    assert len(bed.store.commits) == commits


async def test_a_stopped_engine_refuses_and_says_why():
    bed = Bed(MemoryStore())
    with pytest.raises(errors.Unavailable, match="not running"):
        await bed.create()
    async with bed:
        await bed.create()
    with pytest.raises(errors.Unavailable, match="not running"):
        await bed.create()


async def test_stopping_waits_for_the_commands_in_flight():
    store = SlowStore()
    bed = Bed(store)
    await bed.engine.start()
    asked = asyncio.create_task(bed.execute(bed.creation()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stopping = asyncio.create_task(bed.engine.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    store.gate.set()
    await stopping
    assert type(await asked).__name__ == "ExecutionCreated"


async def test_a_caller_that_leaves_does_not_stop_its_command():
    store = SlowStore()
    async with Bed(store) as bed:
        asked = asyncio.create_task(bed.execute(args := bed.creation()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asked.cancel()
        store.gate.set()
        await bed.create()
        assert await bed.state(args.execution_id) == "waiting"

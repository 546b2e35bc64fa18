"""The duties: what is due is done, what stays put starves nobody, and two scanners do no harm."""

import asyncio

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import PromoteDelayedArgs
from flowfabric.contracts.limits import DAY_MS
from flowfabric.core import indexes
from flowfabric.core.indexes import NAMES, RETENTION
from flowfabric.engine.engine import Engine
from flowfabric.engine.scanners import Scanners
from flowfabric.engine.scanners.duties import DUTIES, PAGE, Duty
from flowfabric.engine.scanners.loop import sweep
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, FaultyStore, RecordingStore
from flowfabric.testing.bed import TTL_MS

PROMOTER = next(duty for duty in DUTIES if duty.index == indexes.DUE_DELAY)
PATIENCE_S = 60


@pytest.fixture
async def bed():
    async with Bed(RecordingStore(MemoryStore())) as bed:
        yield bed
        await bed.check()


def test_every_index_of_instants_has_a_duty():
    due = {index for index in NAMES if index.startswith("due_")}
    assert {duty.index for duty in DUTIES} == due | {RETENTION, ""}


async def test_a_duty_without_an_index_does_what_there_is_to_do(bed):
    duty = next(duty for duty in DUTIES if duty.whole is not None)
    await bed.create()
    bed.clock.advance(DAY_MS)
    assert await sweep(bed.engine, duty) == 1
    assert await sweep(bed.engine, duty) == 0


@pytest.mark.scenario("BOOT-007")
def test_every_duty_pauses_between_its_sweeps():
    assert all(duty.interval_ms > 0 for duty in DUTIES)


@pytest.mark.scenario("BOOT-007")
async def test_scanners_that_are_stopped_at_once_leave_nothing_behind(bed):
    scanners = Scanners(bed.engine)
    await scanners.stop()
    scanners.start()
    await scanners.stop()
    names = {f"flowfabric {duty.name}" for duty in DUTIES}
    assert not [task for task in asyncio.all_tasks() if task.get_name() in names]


def test_the_duties_have_names_of_their_own():
    names = [duty.name for duty in DUTIES]
    assert len(set(names)) == len(names)


async def delayed(bed, count):
    later = bed.clock.now_ms + 1_000
    args = [bed.creation(delay_until=later) for _ in range(count)]
    await bed.engine.execute_many(args)
    return [one.execution_id for one in args]


async def test_a_sweep_does_everything_that_is_due_and_nothing_else(bed):
    due = await delayed(bed, 2 * PAGE + 3)
    bed.clock.advance(500)
    await delayed(bed, 1)
    bed.clock.advance(500)
    assert await sweep(bed.engine, PROMOTER) == len(due)
    assert await bed.store.count_index(indexes.DUE_DELAY, "") == 1
    assert await sweep(bed.engine, PROMOTER) == 0


async def test_a_sweep_moves_on_behind_entries_that_stay_put(bed):
    """The first page is refused for ever, and the last entry is reached all the same."""
    stuck = set(await delayed(bed, PAGE + 5))
    bed.clock.advance(1)
    [last] = await delayed(bed, 1)
    bed.clock.advance(1_000)
    asked = []

    def command(member):
        asked.append(member)
        target = bed.new_execution_id() if member in stuck else member
        return PromoteDelayedArgs(execution_id=target)

    duty = Duty(name="stuck", index=indexes.DUE_DELAY, interval_ms=1, command=command)
    assert await sweep(bed.engine, duty) == PAGE + 6
    assert len(set(asked)) == PAGE + 6
    assert await bed.state(last) == "waiting"


async def test_a_sweep_that_is_repeated_changes_nothing_more(bed):
    claim = await bed.start()
    await delayed(bed, 3)
    await bed.advance(TTL_MS)
    before = await bed.dump()
    await bed.settle()
    assert await bed.dump() == before
    assert await bed.state(claim.execution_id) == "active"


async def test_two_scanners_at_once_do_the_work_once():
    store = MemoryStore()
    async with Bed(store) as ours, Bed(store) as theirs:
        theirs.clock.now_ms = ours.clock.now_ms
        claim = await ours.start()
        ours.clock.advance(TTL_MS)
        theirs.clock.advance(TTL_MS)
        await asyncio.gather(ours.settle(), theirs.settle())
        assert (await ours.events(claim.execution_id, "lease")).count("expired") == 1
        await ours.check()


async def test_a_duty_with_a_grace_waits_for_it(bed):
    await bed.create(idempotency_key="once")
    settler = next(duty for duty in DUTIES if duty.grace_ms)
    assert await sweep(bed.engine, settler) == 0
    bed.clock.advance(settler.grace_ms)
    assert await sweep(bed.engine, settler) == 1


async def until(condition):
    """Wait for a condition, in real time."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.005)


@pytest.mark.realtime
@pytest.mark.scenario("TIME-002")
async def test_with_all_scanners_running_a_delay_ends_in_time():
    async with Bed(MemoryStore()) as bed:
        bed.store.clock = MemoryStore().clock  # the host's
        scanners = Scanners(bed.engine)
        scanners.start()
        scanners.start()
        execution_id = await bed.create(delay_until=await bed.store.now() + 50)

        async def waiting():
            return await bed.state(execution_id) == "waiting"

        await until(waiting)
        await bed.complete(await bed.claim(execution_id))
        await scanners.stop()
        assert await bed.state(execution_id) == "completed"
        assert all(scanners.cycles.values())


@pytest.mark.realtime
@pytest.mark.scenario("RECLAIM-015")
async def test_with_all_scanners_running_a_lost_lease_is_marked():
    async with Bed(MemoryStore()) as bed:
        bed.store.clock = MemoryStore().clock
        scanners = Scanners(bed.engine)
        scanners.start()
        execution_id = await bed.create()
        await bed.claim(execution_id, lease_ttl_ms=50)

        async def lapsed():
            return await bed.situation(execution_id) == "lease_expired"

        await until(lapsed)
        await scanners.stop()


@pytest.mark.realtime
@pytest.mark.parametrize("fault", [errors.StoreUnreachable, ZeroDivisionError])
async def test_scanners_go_on_after_the_store_has_failed(monkeypatch, fault):
    monkeypatch.setattr("flowfabric.engine.scanners.loop.PAUSE_AFTER_FAULT_MS", 1)
    store = FaultyStore(MemoryStore())
    async with Engine(store, namespace="tenant") as engine:
        reads = store.inner.read_index
        failures = 5

        async def read_index(*args, **options):
            nonlocal failures
            if failures:
                failures -= 1
                raise fault
            return await reads(*args, **options)

        monkeypatch.setattr(store.inner, "read_index", read_index)
        scanners = Scanners(engine, [PROMOTER])
        scanners.start()

        async def swept():
            return scanners.cycles[PROMOTER.name] > 0

        await until(swept)
        await scanners.stop()
        assert failures == 0


async def test_what_becomes_due_during_a_sweep_is_swept_at_once(bed):
    delay_until = bed.clock.now_ms + 10
    await bed.create(delay_until=delay_until)
    scanners = Scanners(bed.engine, [PROMOTER])
    swept_upto = bed.clock.now_ms
    bed.clock.advance(20)
    assert await scanners._until_next(PROMOTER, swept_upto) == 1
    assert await scanners._until_next(PROMOTER, delay_until) == PROMOTER.interval_ms

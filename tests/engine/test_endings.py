"""Many who wait for ends are woken by the end that they wait for, and not by all that happens elsewhere."""

import asyncio
from contextlib import ExitStack

import pytest

from flowfabric import errors
from flowfabric.engine.endings import FEW, LOADED_AT_ONCE
from flowfabric.engine.notifier import ended_topic
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, FaultyStore


@pytest.fixture
def waiting():
    """Begins to wait for the ends of executions."""
    with ExitStack() as stack:

        def wait(bed, execution_ids):
            return [
                stack.enter_context(bed.engine.notifier.subscribe(ended_topic(one))) for one in execution_ids
            ]

        yield wait


async def test_of_many_those_are_woken_whose_execution_has_ended(beds, waiting):
    bed, other = beds
    ids = [await bed.create() for _ in range(FEW + 1)]
    *others, last = waiting(bed, ids)
    await other.complete(await other.claim(ids[-1]))
    bed.store.loads = 0
    bed.engine.notifier.publish_foreign_change(sparing=bed.engine.endings.take_over())
    assert await last.wait(5_000)
    assert bed.store.loads == 1
    assert not any(one.event.is_set() for one in others)


async def test_more_than_one_load_has_are_looked_at_all_the_same(beds, waiting):
    bed, other = beds
    ids = [await bed.create() for _ in range(LOADED_AT_ONCE + 1)]
    *_, last = waiting(bed, ids)
    await other.complete(await other.claim(ids[-1]))
    bed.engine.endings.take_over()
    assert await last.wait(5_000)


async def test_few_are_woken_by_whatever_happens(beds, waiting):
    bed, _ = beds
    found = waiting(bed, [await bed.create() for _ in range(FEW)])
    assert not bed.engine.endings.take_over()
    bed.engine.notifier.publish_foreign_change(sparing=bed.engine.endings.take_over())
    assert all(one.event.is_set() for one in found)


async def test_who_waits_for_an_execution_that_is_not_there_is_woken(beds, waiting):
    bed, _ = beds
    *_, missing = waiting(bed, [*[await bed.create() for _ in range(FEW)], bed.new_execution_id()])
    bed.engine.endings.take_over()
    assert await missing.wait(5_000)


async def test_all_look_for_themselves_when_nobody_can_look_for_them(waiting, caplog):
    store = FaultyStore(MemoryStore())
    async with Bed(store) as bed:
        found = waiting(bed, [await bed.create() for _ in range(FEW + 1)])
        store.lost_loads = 1
        bed.engine.endings.take_over()
        assert all([await one.wait(5_000) for one in found])
        assert store.lost_loads == 0
        await bed.complete(await bed.claim(await bed.create()))
    assert str(errors.StoreUnreachable()) in caplog.text


def test_an_engine_that_is_started_in_another_event_loop_looks_after_them_there():
    bed = Bed(MemoryStore())

    async def wait_in_this_loop():
        async with bed:
            await bed.create()  # until then the engine is watching
            with ExitStack() as stack:
                missing = [
                    stack.enter_context(bed.engine.notifier.subscribe(ended_topic(bed.new_execution_id())))
                    for _ in range(FEW + 1)
                ]
                bed.engine.endings.take_over()
                assert await missing[0].wait(5_000)

    for _ in range(2):
        asyncio.run(wait_in_this_loop())

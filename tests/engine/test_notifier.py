"""Wake-ups: they say «look again», and nobody is woken for nothing."""

import asyncio

import pytest

from flowfabric import errors
from flowfabric.core import indexes
from flowfabric.engine.courier import Errand
from flowfabric.engine.notifier import EVENTS, claimable_topic, due_topic, execution_topic
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed
from flowfabric.testing.bed import LANE, NAMESPACE
from flowfabric.testing.conformance.flows import graph
from flowfabric.testing.conformance.scenarios import frame


@pytest.fixture
async def bed():
    async with Bed(MemoryStore()) as bed:
        yield bed


async def woken(bed, topic, happen):
    """Whether what happens wakes those who wait for the topic."""
    with bed.engine.notifier.subscribe(topic) as changes:
        await happen
        return await changes.wait(0)


async def test_work_that_becomes_claimable_wakes_its_lane(bed):
    assert await woken(bed, claimable_topic(NAMESPACE, LANE), bed.create())


async def test_work_in_another_lane_or_namespace_wakes_nobody_here(bed):
    assert not await woken(bed, claimable_topic(NAMESPACE, LANE), bed.create(lane_id="other"))
    assert not await woken(bed, claimable_topic(NAMESPACE, LANE), bed.create(namespace="other"))


async def test_delayed_work_wakes_the_promoter_and_not_the_lane(bed):
    later = bed.clock.now_ms + 1_000
    assert await woken(bed, due_topic(indexes.DUE_DELAY), bed.create(delay_until=later))
    assert not await woken(bed, claimable_topic(NAMESPACE, LANE), bed.create(delay_until=later))


async def test_whatever_happens_to_an_execution_wakes_those_who_follow_it(bed):
    claim = await bed.start()
    topic = execution_topic(claim.execution_id)
    assert await woken(bed, topic, bed.execute(frame(claim)))
    assert await woken(bed, topic, bed.complete(claim))
    assert not await woken(bed, topic, bed.create())


async def test_events_wake_those_who_follow_the_log(bed):
    assert await woken(bed, EVENTS, bed.create())


async def test_a_wake_up_before_the_wait_is_not_lost(bed):
    with bed.engine.notifier.subscribe(EVENTS) as changes:
        await bed.create()
        assert await changes.wait(0)
        assert not await changes.wait(0)


async def test_who_has_left_is_forgotten(bed):
    with bed.engine.notifier.subscribe(EVENTS):
        pass
    assert bed.engine.notifier._waiters == {}


async def test_closing_wakes_everyone_for_the_last_time(bed):
    with bed.engine.notifier.subscribe("nothing") as changes:
        bed.engine.notifier.close()
        assert await changes.wait(0)
    with bed.engine.notifier.subscribe("nothing") as late:
        assert await late.wait(0)


async def test_a_waiter_sleeps_until_it_is_woken(bed):
    with bed.engine.notifier.subscribe(EVENTS) as changes:
        waiting = asyncio.create_task(changes.wait(None))
        await asyncio.sleep(0)
        assert not waiting.done()
        await bed.create()
        assert await waiting


async def end_of_a_member(bed):
    """The end of a member, whose flow is owed the news."""
    flow = await graph(bed, "ab")
    await flow.connect("ab")
    claim = await bed.claim(flow.ids["a"])
    await bed.complete(claim)


async def test_what_is_delivered_at_once_wakes_no_duty(bed, monkeypatch):
    monkeypatch.setattr(bed.engine._courier, "following", lambda _batch, _now: [])
    assert not await woken(bed, due_topic(indexes.DUE_MESSAGE), end_of_a_member(bed))
    assert not await bed.store.read_index(indexes.DUE_MESSAGE, "")


async def test_what_could_not_be_delivered_wakes_the_duty(bed, monkeypatch):
    async def fails(_errand, commands, **_options):
        return [errors.Contention(record="edge_group/x", tries=8) for _ in commands]

    monkeypatch.setattr(bed.engine._courier, "following", lambda _batch, _now: [])
    monkeypatch.setattr(Errand, "execute_unbounded", fails)
    assert await woken(bed, due_topic(indexes.DUE_MESSAGE), end_of_a_member(bed))
    assert await bed.store.read_index(indexes.DUE_MESSAGE, "")

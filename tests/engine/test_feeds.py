"""What a look at the log costs, and what a feed does when the store fails."""

import asyncio

import pytest

from flowfabric.contracts.events import FROM_START, EventsPage, Family, ListEventsArgs, TailEventsArgs
from flowfabric.errors import ExecutionNotFound, InvalidInput, StoreUnreachable
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed
from flowfabric.testing.stores import StoreAround

COMPLETIONS = frozenset({Family.COMPLETION})
LONG_MS = 30_000
"""Longer than any test may take: a test that ends was woken."""


class CountingStore(StoreAround):
    """Counts the events that are read, and fails when told to."""

    def __init__(self):
        super().__init__(MemoryStore())
        self.looks = self.events_read = self.faults = 0

    async def read_events(self, after, **filters):
        if self.faults:
            self.faults -= 1
            raise StoreUnreachable
        self.looks += 1
        found = await super().read_events(after, **filters)
        self.events_read += len(found)
        return found


@pytest.fixture
async def bed():
    async with Bed(CountingStore()) as bed:
        yield bed


def tail(after=FROM_START, **fields):
    return TailEventsArgs(**{"families": COMPLETIONS, "after": after, **fields})


async def test_nothing_is_read_for_a_feed_that_nobody_asks(bed):
    async with bed.engine.subscribe_completion():
        looks = bed.store.looks
        for _ in range(5):
            await bed.complete(await bed.start())
        assert bed.store.looks == looks


async def test_events_of_others_are_not_read(bed):
    for _ in range(5):
        await bed.execute(bed.creation(namespace="other"), namespace="other")
    await bed.execute(tail(families=frozenset(Family)))
    assert bed.store.events_read == 0


async def test_a_page_is_never_longer_than_was_asked_for(bed):
    for _ in range(3):
        await bed.complete(await bed.start())
    page = await bed.execute(tail(limit=2))
    rest = await bed.execute(tail(page.next_cursor, limit=2))
    assert (len(page.events), len(rest.events)) == (2, 1)


async def test_a_page_without_a_match_moves_on(bed):
    await bed.complete(await bed.start())
    await bed.complete(await bed.start(tags={"team.name": "media"}))
    page = await bed.execute(tail(tag=("team.name", "media"), limit=1))
    assert page.events == ()
    page = await bed.execute(tail(page.next_cursor, tag=("team.name", "media"), limit=1))
    assert [event.tags for event in page.events] == [{"team.name": "media"}]


async def test_waiting_goes_on_over_events_that_do_not_match(bed):
    waiting = asyncio.ensure_future(bed.execute(tail(tag=("team.name", "media"), limit=1, block_ms=LONG_MS)))
    for tags in ({}, {}, {"team.name": "media"}):
        await bed.complete(await bed.start(tags=tags))
    async with asyncio.timeout(LONG_MS / 2_000):
        page = await waiting
    assert [event.tags for event in page.events] == [{"team.name": "media"}]


async def test_a_fault_of_the_store_costs_no_event(bed):
    async with bed.engine.subscribe_completion() as feed:
        claim = await bed.start()
        await bed.complete(claim)
        bed.store.faults = 1
        with pytest.raises(StoreUnreachable):
            await anext(feed)
        assert (await anext(feed)).execution_id == claim.execution_id


async def test_a_tail_answers_at_once_when_it_may_not_wait(bed):
    page = await bed.execute(tail())
    assert isinstance(page, EventsPage)
    assert page.events == ()


async def test_a_feed_of_nothing_is_refused(bed):
    assert isinstance(await bed.refused(tail(families=frozenset())), InvalidInput)


async def test_the_history_of_an_execution_is_hidden_from_other_namespaces(bed):
    execution_id = await bed.create()
    refusal = await bed.refused(ListEventsArgs(execution_id=execution_id), namespace="other")
    assert isinstance(refusal, ExecutionNotFound)

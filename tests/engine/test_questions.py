"""Queries: what was written here tells which records they need, and the store alone what is in them."""

import pytest

from flowfabric.contracts.suspensions import ListPendingWaitpointsArgs
from flowfabric.testing.conformance.situations import bring, seed_key, signal


@pytest.fixture(autouse=True)
async def signing_key(beds):
    """Waitpoints can be signed."""
    await seed_key(beds[0])


async def pending(bed, place):
    """What an execution waits for, and how many loads it took to learn that."""
    before = bed.store.loads
    answer = await bed.execute(ListPendingWaitpointsArgs(execution_id=place.execution_id))
    return [one.waitpoint_id for one in answer.entries], bed.store.loads - before


async def test_a_query_that_has_asked_again_once_takes_one_load_from_then_on(beds):
    bed, _ = beds
    first, second = await bring(bed, "suspended", 2)
    assert await pending(bed, first) == ([first.waitpoint_id], 2)
    assert await pending(bed, second) == ([second.waitpoint_id], 1)


async def test_what_was_written_elsewhere_takes_as_many_loads_as_ever(beds):
    bed, other = beds
    [own] = await bring(bed, "suspended", 1)
    [foreign] = await bring(other, "suspended", 1)
    await pending(bed, own)
    assert await pending(bed, foreign) == ([foreign.waitpoint_id], 2)


async def test_looking_ahead_in_vain_ends_it_until_a_query_asks_again(beds):
    bed, _ = beds
    [place], [idle] = await bring(bed, "suspended", 1), await bring(bed, "eligible", 1)
    await pending(bed, place)
    assert await pending(bed, place) == ([place.waitpoint_id], 1)
    assert await pending(bed, idle) == ([], 1)
    assert await pending(bed, place) == ([place.waitpoint_id], 2)
    assert await pending(bed, place) == ([place.waitpoint_id], 1)


async def test_a_query_is_answered_by_what_is_stored_and_not_by_what_was_foreseen(beds):
    bed, other = beds
    first, second = await bring(bed, "suspended", 2)
    await pending(bed, first)
    await other.execute(signal(other, second))
    assert await pending(bed, second) == ([], 1)
    assert await pending(bed, second) == ([], 1)

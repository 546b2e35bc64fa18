"""Claims that come at the same time do not run after the same work."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from flowfabric import FlowFabric, errors
from flowfabric.contracts.leases import ClaimBatchArgs
from flowfabric.engine.engine import Engine
from flowfabric.engine.layers import Metered
from flowfabric.engine.pursuits import FURTHER_MAX, Pursuits
from flowfabric.stores.base import Commit
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing.stores import FaultyStore


class Tries:
    """Counts commands by their outcome."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str]] = Counter()

    def record_call(self, method: str, elapsed_s: float, outcome: str) -> None:
        self.found[method, outcome] += 1


class Breaking(FaultyStore):
    """Refuses commits while it is told to."""

    broken = False

    async def commit(self, commit: Commit) -> None:
        if self.broken:
            raise errors.StoreUnreachable
        await self.inner.commit(commit)


@pytest.fixture
def tries() -> Tries:
    return Tries()


@pytest.fixture
def store() -> Breaking:
    return Breaking(MemoryStore())


@pytest.fixture
async def app(store: Breaking, tries: Tries) -> AsyncIterator[FlowFabric]:
    app = FlowFabric(store=store, layers=[lambda door: Metered(door, tries)])
    await app.start(scanners=False)
    yield app
    await app.stop()


def claim(number: int, limit: int = 1) -> ClaimBatchArgs:
    return ClaimBatchArgs(
        lanes=("default",),
        worker_id="w",
        worker_instance_id=f"i{number}",
        limit=limit,
        lease_ttl_ms=60_000,
    )


async def claim_at_once(app: FlowFabric, *limits: int) -> list[list[str]]:
    asked = (app.engine.execute(claim(number, limit)) for number, limit in enumerate(limits))
    return [[work.execution_id for work in result.claims] for result in await asyncio.gather(*asked)]


@pytest.mark.parametrize("limits", [(1,) * 16, (1, 5, 20), (7, 7, 7, 7)])
async def test_claims_at_the_same_time_all_get_what_they_want(
    app: FlowFabric, tries: Tries, limits: tuple[int, ...]
) -> None:
    runs = await app.submit_many("resize", [None] * sum(limits))
    found = await claim_at_once(app, *limits)
    assert [len(own) for own in found] == list(limits)
    assert sorted(one for own in found for one in own) == sorted(run.execution_id for run in runs)
    assert tries.found["claim_candidate", "ok"] == sum(limits)
    assert {outcome for _, outcome in tries.found} == {"ok"}


async def test_the_most_urgent_work_goes_first_whoever_gets_it(app: FlowFabric) -> None:
    later = await app.submit_many("resize", [None] * 8)
    urgent = await app.submit_many("resize", [None] * 4, priority=9_000)
    found = await claim_at_once(app, 1, 1, 1, 1)
    assert sorted(one for own in found for one in own) == sorted(run.execution_id for run in urgent)
    assert later


async def test_where_there_is_less_than_all_want_some_get_nothing(app: FlowFabric) -> None:
    await app.submit_many("resize", [None] * 5)
    found = await claim_at_once(app, *([2] * 8))
    assert sum(len(own) for own in found) == 5
    assert await claim_at_once(app, 2) == [[]]


async def test_what_was_not_claimed_after_all_is_found_by_the_next_claim(
    app: FlowFabric, store: Breaking
) -> None:
    run = await app.submit("resize")
    store.broken = True
    with pytest.raises(errors.StoreUnreachable):
        await app.engine.execute(claim(0))
    store.broken = False
    assert await claim_at_once(app, 1) == [[run.execution_id]]
    assert isinstance(app.engine, Engine)
    assert app.engine.pursuits.further(0) == 0


def test_a_claim_reads_further_for_the_others_up_to_a_bound() -> None:
    pursuits = Pursuits()
    with pursuits.wanting(3), pursuits.wanting(4):
        assert (pursuits.further(3), pursuits.further(4)) == (4, 3)
        with pursuits.wanting(10_000):
            assert pursuits.further(3) == FURTHER_MAX
    assert pursuits.further(3) == 0

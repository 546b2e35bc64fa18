"""Claims of several processes keep out of each other's way, and miss nothing for it."""

from collections.abc import AsyncIterator

import pytest

from flowfabric.contracts.leases import ClaimBatchArgs, IssueClaimGrantArgs
from flowfabric.engine.crowding import CALM_CLAIMS, LOSSES, WINDOW_MAX, Crowding
from flowfabric.engine.engine import Engine
from flowfabric.engine.scheduler import NEAR_MS
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing.bed import LANE, NAMESPACE, Bed


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    async with Bed(MemoryStore()) as made:
        yield made


@pytest.fixture
async def other(bed: Bed) -> AsyncIterator[Engine]:
    """The engine of another process on the same store."""
    engine = Engine(bed.store, namespace=NAMESPACE)
    await engine.start()
    yield engine
    await engine.stop()


async def claimed(engine: Engine, limit: int) -> list[str]:
    """Executions that a worker gets, in the order in which it gets them."""
    wanted = ClaimBatchArgs(
        lanes=(LANE,), worker_id="w", worker_instance_id="w-1", limit=limit, lease_ttl_ms=60_000
    )
    return [work.execution_id for work in (await engine.execute(wanted, namespace=NAMESPACE)).claims]


def crowded(engine: Engine, place: int) -> None:
    """Let an engine have lost much, and choose this block of what it finds next."""
    engine.crowding = Crowding(choose=lambda blocks: min(place, blocks - 1))
    for _ in range(WINDOW_MAX):
        engine.crowding.note(lost=True)


class TestCrowding:
    def test_whoever_is_alone_looks_at_no_more_than_is_wanted(self) -> None:
        crowding = Crowding()
        for _ in range(100):
            crowding.note(lost=False)
        assert crowding.window == 1

    def test_the_window_grows_at_once_and_shrinks_slowly(self) -> None:
        crowding = Crowding()
        grown = []
        for _ in range(6):
            crowding.note(lost=True)
            grown.append(crowding.window)
        assert grown == [1, 2, 4, 8, WINDOW_MAX, WINDOW_MAX]
        for _ in range(CALM_CLAIMS - 1):
            crowding.note(lost=False)
        assert crowding.window == WINDOW_MAX
        crowding.note(lost=False)
        assert crowding.window == WINDOW_MAX - 1
        for _ in range(CALM_CLAIMS * WINDOW_MAX):
            crowding.note(lost=False)
        assert crowding.window == 1

    def test_a_loss_now_and_then_is_chance(self) -> None:
        crowding = Crowding()
        for lost in (True, False, True, False, True):
            crowding.note(lost=lost)
        assert crowding.window == 1

    @pytest.mark.parametrize(("found", "blocks"), [(16, 1), (17, 2), (64, 4)])
    def test_a_search_begins_at_a_multiple_of_what_is_wanted(self, found: int, blocks: int) -> None:
        asked: list[int] = []

        def choose(below: int) -> int:
            asked.append(below)
            return below - 1

        assert Crowding(choose).place(found, 16) == 16 * (blocks - 1)
        assert asked == [blocks]


async def test_an_engine_learns_from_what_another_one_has_taken(bed: Bed, other: Engine) -> None:
    read_index = bed.store.read_index

    async def read_and_be_late(*args: object, **options: object) -> object:
        found = await read_index(*args, **options)  # type: ignore[arg-type]
        bed.store.read_index = read_index  # type: ignore[method-assign]
        assert len(await claimed(other, 2)) == 2
        return found

    for _ in range(LOSSES):
        for _ in range(4):
            await bed.create()
        bed.store.read_index = read_and_be_late  # type: ignore[assignment, method-assign]
        assert len(await claimed(bed.engine, 2)) == 2
    assert (bed.engine.crowding.window, other.crowding.window) == (2, 1)


async def test_who_loses_begins_further_down_and_leaves_nothing_out(bed: Bed) -> None:
    created = [await bed.create() for _ in range(20)]
    crowded(bed.engine, 3)
    assert await claimed(bed.engine, 2) == created[6:8]
    rest = [*created[:6], *created[8:]]
    crowded(bed.engine, 2)
    assert await claimed(bed.engine, 18) == rest
    assert await claimed(bed.engine, 1) == []


async def test_who_wants_everything_that_there_is_gets_it_in_order(bed: Bed) -> None:
    created = [await bed.create() for _ in range(5)]
    crowded(bed.engine, 7)
    assert await claimed(bed.engine, 5) == created


async def test_what_is_more_urgent_is_never_passed_over(bed: Bed) -> None:
    old = await bed.create()
    bed.clock.advance(NEAR_MS + 1)
    later = [await bed.create() for _ in range(8)]
    urgent = await bed.create(priority=1)
    for expected in (urgent, old):
        crowded(bed.engine, 4)
        assert await claimed(bed.engine, 1) == [expected]
    crowded(bed.engine, 4)
    assert await claimed(bed.engine, 1) == [later[4]]


async def test_lanes_share_the_claims_of_an_engine_that_loses(bed: Bed) -> None:
    created = {lane: [await bed.create(lane_id=lane) for _ in range(8)] for lane in ("left", "right")}
    crowded(bed.engine, 1)
    wanted = ClaimBatchArgs(
        lanes=("left", "right"), worker_id="w", worker_instance_id="w-1", limit=4, lease_ttl_ms=60_000
    )
    claims = (await bed.engine.execute(wanted, namespace=NAMESPACE)).claims
    found = {work.execution_id for work in claims}
    assert [len(found.intersection(own)) for own in created.values()] == [2, 2]


async def test_grants_of_others_and_claims_of_the_same_engine_are_no_losses(bed: Bed) -> None:
    granted = await bed.create()
    await bed.execute(
        IssueClaimGrantArgs(
            execution_id=granted,
            lane_id=LANE,
            worker_id="another",
            worker_instance_id="another-1",
            worker_capabilities=frozenset(),
            grant_ttl_ms=60_000,
        )
    )
    created = [await bed.create() for _ in range(6)]
    found = [await claimed(bed.engine, 1) for _ in range(3)]
    assert found == [[one] for one in created[:3]]
    read_index = bed.store.read_index

    async def read_and_be_late(*args: object, **options: object) -> object:
        rows = await read_index(*args, **options)  # type: ignore[arg-type]
        bed.store.read_index = read_index  # type: ignore[method-assign]
        assert await claimed(bed.engine, 1) == created[3:4]
        return rows

    for _ in range(LOSSES):
        bed.store.read_index = read_and_be_late  # type: ignore[assignment, method-assign]
        assert await claimed(bed.engine, 1) == created[4:5]
        del created[3:5]
        created += [await bed.create() for _ in range(2)]
    assert bed.engine.crowding.window == 1


async def test_many_lanes_have_one_window_together(bed: Bed) -> None:
    lanes = tuple(f"lane-{number}" for number in range(8))
    for lane in lanes:
        for _ in range(4):
            await bed.create(lane_id=lane)
    crowded(bed.engine, 0)
    read: list[int] = []
    read_index = bed.store.read_index

    async def read_and_count(*args: object, **options: object) -> object:
        rows = await read_index(*args, **options)  # type: ignore[arg-type]
        read.append(len(rows))
        return rows

    bed.store.read_index = read_and_count  # type: ignore[assignment, method-assign]
    wanted = ClaimBatchArgs(
        lanes=lanes, worker_id="w", worker_instance_id="w-1", limit=1, lease_ttl_ms=60_000
    )
    assert len((await bed.engine.execute(wanted, namespace=NAMESPACE)).claims) == 1
    assert read == [WINDOW_MAX // len(lanes)] * len(lanes)

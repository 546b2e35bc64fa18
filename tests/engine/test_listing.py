"""Lists: what is on a page, in which order, and how pages follow each other."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from flowfabric.contracts.executions import CancelExecutionArgs, ChangePriorityArgs, ReplayExecutionArgs
from flowfabric.contracts.leases import MarkLeaseExpiredArgs, RevokeLeaseArgs, ScanEligibleArgs
from flowfabric.contracts.partitions import Partition
from flowfabric.contracts.policy import ExecutionPolicy, RoutingRequirements
from flowfabric.contracts.reads import (
    ListExecutionsArgs,
    ListExecutionSummariesArgs,
    ListExpiredLeasesArgs,
    ListLanesArgs,
    ListSuspendedArgs,
    ServerTimeArgs,
)
from flowfabric.contracts.states import BlockingReason, PublicState
from flowfabric.contracts.suspensions import ResumeExecutionArgs, SuspensionReasonCode
from flowfabric.core.indexes import FOREVER
from flowfabric.core.records import Blocker
from flowfabric.core.rules.transitions import add_blocker
from flowfabric.core.vocabulary import BlockerKind
from flowfabric.engine import listing
from flowfabric.errors import InvalidInput
from flowfabric.stores.memory import MemoryStore
from flowfabric.stores.sqlite import SqliteStore
from flowfabric.testing import Bed
from flowfabric.testing.bed import LANE, NAMESPACE, TTL_MS
from flowfabric.testing.clock import ClockedStore
from flowfabric.testing.conformance.situations import (
    SITUATION_STEPS,
    Place,
    bring,
    plant,
    seed_key,
    suspension,
)

STORES: dict[str, Callable[[], ClockedStore]] = {
    "memory": MemoryStore,
    "sqlite": lambda: SqliteStore(":memory:"),
}
OTHER = "other"
PAGES_MAX = 50


@pytest.fixture(params=STORES)
async def bed(request):
    async with Bed(STORES[request.param]()) as bed:
        await seed_key(bed)
        yield bed
        await bed.check()


async def pages_of(bed, args, **options):
    """The pages from the first to the last."""
    pages = []
    for _ in range(PAGES_MAX):
        pages.append(await bed.execute(args, **options))
        cursor = pages[-1].next_cursor
        if cursor is None:
            return pages
        args = replace(args, cursor=cursor)
    raise AssertionError("the pages never end")


async def summaries(bed, **fields):
    """The ids of all summaries, page by page."""
    pages = await pages_of(bed, ListExecutionSummariesArgs(**fields))
    assert all(page.total_returned == len(page.executions) for page in pages)
    return [[one.execution_id for one in page.executions] for page in pages]


async def create_later(bed, count, **fields):
    """So many executions, each a millisecond younger than the one before."""
    created = []
    for _ in range(count):
        bed.clock.advance(1)
        created.append(await bed.create(**fields))
    return created


async def suspend(bed, timeout_ms=None, *, namespace=NAMESPACE, partition=7, **fields):
    """An execution that is suspended."""
    execution_id = await bed.create(namespace=namespace, execution_id=bed.new_execution_id(partition))
    claimed = await bed.execute(bed.claiming(execution_id), namespace=namespace)
    return await suspend_again(bed, claimed.work, timeout_ms, namespace=namespace, **fields)


async def suspend_again(bed, claim, timeout_ms=None, *, namespace=NAMESPACE, **fields):
    timeout_at = None if timeout_ms is None else bed.clock.now_ms + timeout_ms
    place = Place(execution_id=claim.execution_id, claim=claim)
    await bed.execute(suspension(bed, place, timeout_at=timeout_at, **fields), namespace=namespace)
    return claim.execution_id


class TestExecutionIds:
    async def ids(self, bed, **fields):
        return [list(page.executions) for page in await pages_of(bed, ListExecutionsArgs(**fields))]

    async def test_all_come_in_the_order_of_their_ids_without_the_partition(self, bed):
        created = [await bed.create(execution_id=bed.new_execution_id(partition)) for partition in (9, 7, 8)]
        assert await self.ids(bed) == [created]

    async def test_those_of_one_partition_come_in_the_order_of_their_text(self, bed):
        numbers = (2, 10, 1)
        for number in numbers:
            await bed.create(execution_id=f"{{fp:7}}:00000000-0000-4000-8000-{number:012d}")
        await bed.create(execution_id=bed.new_execution_id(70))
        assert await self.ids(bed, partition=7) == [
            [f"{{fp:7}}:00000000-0000-4000-8000-{number:012d}" for number in sorted(numbers)]
        ]

    async def test_a_partition_without_executions_is_empty(self, bed):
        await bed.create(execution_id=bed.new_execution_id(7))
        assert await self.ids(bed, partition=0) == [[]]

    @pytest.mark.parametrize("partition", [None, 7])
    async def test_pages_follow_each_other(self, bed, partition):
        created = await create_later(bed, 5)
        pages = await self.ids(bed, partition=partition, limit=2)
        assert pages == [created[:2], created[2:4], created[4:]]

    async def test_a_last_page_that_is_full_says_that_nothing_follows(self, bed):
        created = await create_later(bed, 4)
        assert await self.ids(bed, limit=2) == [created[:2], created[2:]]

    async def test_a_page_of_none_is_empty(self, bed):
        await bed.create()
        assert await self.ids(bed, limit=0) == [[]]

    async def test_a_page_of_one_has_one(self, bed):
        created = await create_later(bed, 3)
        assert await self.ids(bed, limit=1) == [[one] for one in created]

    async def test_other_namespaces_are_invisible_and_make_no_page_short(self, bed):
        own = []
        for _ in range(4):
            await create_later(bed, 3, namespace=OTHER)
            own += await create_later(bed, 1)
        assert await self.ids(bed, limit=2) == [own[:2], own[2:]]

    async def test_a_cursor_need_not_exist_any_more(self, bed):
        first, missing, last = (bed.new_execution_id() for _ in range(3))
        for execution_id in (first, last):
            await bed.create(execution_id=execution_id)
        assert await self.ids(bed, cursor=missing) == [[last]]

    async def test_a_malformed_cursor_is_refused(self, bed):
        assert (await bed.refused(ListExecutionsArgs(cursor="17~a"))).field == "cursor"


def blocked_by(kind):
    reason = BlockingReason.PAUSED_BY_POLICY
    return lambda work, execution: add_blocker(execution, Blocker(kind=kind, reason=reason))


def state_of_situation(name):
    """The public state of a situation that is named as in the conformance suite."""
    for beginning, state in (
        ("eligible", PublicState.WAITING),
        ("blocked", PublicState.WAITING),
        ("running", PublicState.ACTIVE),
        ("lease", PublicState.ACTIVE),
    ):
        if name.startswith(beginning):
            return state
    return PublicState(name.partition("_")[0])


class TestSummaries:
    async def one_of_each(self, bed):
        """Public state -> the ids of its executions; every situation and every blocker is there."""
        found: dict[PublicState, set[str]] = {state: set() for state in PublicState}
        for name in SITUATION_STEPS:
            if name == "blocked_dependencies":
                continue  # it comes with another execution; the blocker is planted below
            [place] = await bring(bed, name, 1)
            found[state_of_situation(name)].add(place.execution_id)
        for kind, state in (
            (BlockerKind.LANE, PublicState.WAITING),
            (BlockerKind.ROUTE, PublicState.WAITING),
            (BlockerKind.BUDGET, PublicState.RATE_LIMITED),
            (BlockerKind.QUOTA, PublicState.RATE_LIMITED),
            (BlockerKind.DEPENDENCIES, PublicState.WAITING_CHILDREN),
        ):
            execution_id = await bed.create()
            await plant(bed, execution_id, blocked_by(kind))
            found[state].add(execution_id)
        return found

    async def test_each_state_has_its_executions_and_no_others(self, bed):
        expected = await self.one_of_each(bed)
        neighbour = await bed.create(lane_id=f"{LANE}-2")
        for state, ids in expected.items():
            assert await bed.state(neighbour) is PublicState.WAITING
            in_lane = await pages_of(bed, ListExecutionSummariesArgs(public_state=state, lane_id=LANE))
            assert {one.execution_id for page in in_lane for one in page.executions} == ids, state
            assert {one.public_state for page in in_lane for one in page.executions} <= {state}
            [everywhere] = await summaries(bed, public_state=state)
            assert set(everywhere) - ids == ({neighbour} if state is PublicState.WAITING else set()), state
            for one in everywhere:
                assert await bed.state(one) is state

    async def test_a_rare_lane_is_looked_for_in_bounded_steps(self, bed, monkeypatch):
        monkeypatch.setattr(listing, "PLACES_PER_CALL", 10)
        wanted = await create_later(bed, 1, lane_id="few")
        await create_later(bed, 25, lane_id="many")
        wanted = [*await create_later(bed, 1, lane_id="few"), *wanted]
        pages = await summaries(bed, lane_id="few", limit=2)
        assert [one for page in pages for one in page] == wanted
        assert len(pages) > 1
        assert pages[0] == wanted[:1]

    async def test_small_pages_have_the_same_in_the_same_order(self, bed):
        expected = await self.one_of_each(bed)
        for state in expected:
            [whole] = await summaries(bed, public_state=state)
            for limit in (1, 2):
                pages = await summaries(bed, public_state=state, limit=limit)
                assert [one for page in pages for one in page] == whole
                assert all(len(page) == limit for page in pages[:-1])

    async def test_a_summary_shows_what_the_record_holds(self, bed):
        execution_id = await bed.create(priority=3)
        [found] = (await bed.execute(ListExecutionSummariesArgs())).executions
        assert (found.execution_id, found.namespace, found.lane_id) == (execution_id, NAMESPACE, LANE)
        assert (found.execution_kind, found.priority, found.public_state) == ("kind", 3, PublicState.WAITING)
        assert found.created_at == bed.clock.now_ms

    async def test_without_a_state_the_newest_come_first(self, bed):
        created = await create_later(bed, 5)
        newest_first = created[::-1]
        assert await summaries(bed, limit=2) == [newest_first[:2], newest_first[2:4], newest_first[4:]]

    async def test_those_of_one_instant_are_neither_repeated_nor_skipped(self, bed):
        created = [await bed.create() for _ in range(5)]
        pages = await summaries(bed, limit=2)
        assert [one for page in pages for one in page] == created[::-1]

    async def test_a_lane_makes_no_page_short(self, bed):
        wanted = []
        for _ in range(3):
            await create_later(bed, 4, lane_id="many")
            wanted += await create_later(bed, 1, lane_id="few")
        assert await summaries(bed, lane_id="few", limit=2) == [wanted[:0:-1], wanted[:1]]

    async def test_waiting_work_comes_in_the_order_of_claiming(self, bed):
        low, high = await bed.create(priority=1), await bed.create(priority=5)
        bed.clock.advance(1)
        later = await bed.create(priority=5)
        needs = RoutingRequirements(required_capabilities=("gpu",))
        routed = await bed.create(priority=3, policy=ExecutionPolicy(routing_requirements=needs))
        pages = await summaries(bed, public_state=PublicState.WAITING, limit=3)
        assert pages == [[high, later, routed], [low]]

    async def test_ended_work_comes_with_the_latest_end_first(self, bed):
        first, second, third = await create_later(bed, 3)
        for execution_id in (second, third, first):
            bed.clock.advance(1)
            await bed.execute(CancelExecutionArgs(execution_id=execution_id, reason="unwanted"))
        pages = await summaries(bed, public_state=PublicState.CANCELLED, limit=2)
        assert pages == [[first, third], [second]]

    async def test_what_has_changed_its_state_between_two_pages_is_left_out(self, bed):
        first, second, third = await create_later(bed, 3)
        args = ListExecutionSummariesArgs(public_state=PublicState.WAITING, limit=1)
        page = await bed.execute(args)
        for execution_id in (first, second):
            await bed.execute(CancelExecutionArgs(execution_id=execution_id, reason="unwanted"))
        page = await bed.execute(replace(args, cursor=page.next_cursor))
        assert [one.execution_id for one in page.executions] == [third]
        assert page.next_cursor is None

    @pytest.mark.parametrize("state", [None, PublicState.WAITING, PublicState.FAILED])
    async def test_a_page_of_none_is_empty(self, bed, state):
        await bed.create()
        assert await summaries(bed, public_state=state, limit=0) == [[]]

    @pytest.mark.parametrize("state", [None, PublicState.WAITING])
    async def test_other_namespaces_are_invisible(self, bed, state):
        await bed.create(namespace=OTHER)
        own = await bed.create()
        assert await summaries(bed, public_state=state) == [[own]]
        [page] = await pages_of(bed, ListExecutionSummariesArgs(public_state=state), namespace="oth")
        assert page.executions == ()

    async def test_an_empty_cursor_is_the_beginning(self, bed):
        execution_id = await bed.create()
        assert await summaries(bed, cursor="") == [[execution_id]]

    @pytest.mark.parametrize("cursor", ["17", "~a", "x~a", "1.5~a", "--1~a", "²~a", f"{10**18}~a", "17 ~a"])
    async def test_a_malformed_cursor_is_refused(self, bed, cursor):
        refusal = await bed.refused(ListExecutionSummariesArgs(cursor=cursor))
        assert isinstance(refusal, InvalidInput)
        assert refusal.field == "cursor"

    async def test_more_scopes_than_one_reading_has_are_all_read(self, bed, monkeypatch):
        monkeypatch.setattr(listing, "SCOPES_PER_READ", 2)
        created = [(await create_later(bed, 1, lane_id=f"lane-{number}"))[0] for number in range(5)]
        assert await summaries(bed, public_state=PublicState.WAITING) == [created]
        assert await summaries(bed, public_state=PublicState.WAITING, lane_id="lane-4") == [created[4:]]


class TestSuspended:
    async def entries(self, bed, **fields):
        return [list(page.entries) for page in await pages_of(bed, ListSuspendedArgs(**fields))]

    async def ids(self, bed, **fields):
        return [[one.execution_id for one in page] for page in await self.entries(bed, **fields)]

    async def test_the_earliest_deadline_comes_first_and_none_at_all_last(self, bed):
        never, late, early = await suspend(bed), await suspend(bed, 2_000), await suspend(bed, 1_000)
        [page] = await self.entries(bed)
        assert [(one.execution_id, one.suspended_at_ms) for one in page] == [
            (early, bed.clock.now_ms + 1_000),
            (late, bed.clock.now_ms + 2_000),
            (never, FOREVER),
        ]

    async def test_each_says_why_it_was_suspended(self, bed):
        for number, reason in enumerate(SuspensionReasonCode, 1):
            await suspend(bed, number * 1_000, reason_code=reason)
        [page] = await self.entries(bed)
        assert [one.reason for one in page] == list(SuspensionReasonCode)

    @pytest.mark.parametrize("timeout_ms", [None, 1_000])
    async def test_pages_follow_each_other_through_equal_deadlines(self, bed, timeout_ms):
        suspended = [await suspend(bed, timeout_ms) for _ in range(5)]
        assert await self.ids(bed, limit=2) == [suspended[:2], suspended[2:4], suspended[4:]]

    async def test_pages_go_across_lanes(self, bed):
        suspended = []
        for number in range(4):
            claim = await bed.start(lane_id=f"lane-{number % 2}")
            suspended.append(await suspend_again(bed, claim, 1_000 + number))
        assert await self.ids(bed, limit=3) == [suspended[:3], suspended[3:]]

    async def test_one_partition_makes_no_page_short(self, bed):
        wanted = []
        for number in range(3):
            for partition in (70, 8, 7):
                suspended = await suspend(bed, 1_000 + number, partition=partition)
            wanted.append(suspended)
        assert await self.ids(bed, partition=7, limit=2) == [wanted[:2], wanted[2:]]

    async def test_other_namespaces_are_invisible(self, bed):
        await suspend(bed, 1_000, namespace=OTHER)
        own = await suspend(bed, 2_000)
        assert await self.ids(bed, limit=1) == [[own]]

    async def test_a_page_of_none_is_empty(self, bed):
        await suspend(bed)
        assert await self.ids(bed, limit=0) == [[]]

    @pytest.mark.parametrize("goes_on", ["claimed", "cancelled", "cancelled and replayed", "delayed"])
    async def test_a_cursor_whose_execution_has_gone_on_keeps_its_place(self, bed, goes_on):
        suspended = [await suspend(bed, 1_000 + number) for number in range(3)]
        first = await bed.execute(ListSuspendedArgs(limit=2))
        await self.go_on(bed, suspended[1], goes_on)
        second = await bed.execute(ListSuspendedArgs(limit=2, cursor=first.next_cursor))
        assert [one.execution_id for one in second.entries] == suspended[2:]

    async def go_on(self, bed, execution_id, how):
        if how.startswith("cancelled"):
            await bed.execute(CancelExecutionArgs(execution_id=execution_id, reason="unwanted"))
            if "replayed" in how:
                await bed.execute(ReplayExecutionArgs(execution_id=execution_id))
            return
        await bed.execute(ResumeExecutionArgs(execution_id=execution_id))
        claim = await bed.claim(execution_id)
        if how == "delayed":
            await bed.delay(claim, 1_000)

    async def test_a_cursor_that_is_suspended_again_continues_behind_its_new_deadline(self, bed):
        early, late = await suspend(bed, 1_000), await suspend(bed, 3_000)
        await bed.execute(ResumeExecutionArgs(execution_id=early))
        await suspend_again(bed, await bed.claim(early), 2_000)
        assert await self.ids(bed, cursor=early) == [[late]]

    async def test_a_cursor_that_was_never_suspended_is_refused(self, bed):
        foreign = await suspend(bed, namespace=OTHER)
        for cursor in (await bed.create(), bed.new_execution_id(), foreign):
            refusal = await bed.refused(ListSuspendedArgs(cursor=cursor))
            assert isinstance(refusal, InvalidInput)
            assert refusal.field == "cursor"


class TestLanes:
    async def lanes(self, bed, **fields):
        return [list(page.lanes) for page in await pages_of(bed, ListLanesArgs(**fields))]

    async def test_each_lane_is_named_once_in_order_whatever_its_executions_do(self, bed):
        for situation in ("eligible", "delayed", "blocked", "running", "suspended", "completed"):
            await bring(bed, situation, 2)
        ended = await bed.create(lane_id="ended")
        await bed.execute(CancelExecutionArgs(execution_id=ended, reason="unwanted"))
        await bed.create(lane_id="z")
        assert await self.lanes(bed) == [["ended", LANE, "z"]]

    async def test_pages_follow_each_other(self, bed):
        for name in ("c", "a", "b"):
            await bed.create(lane_id=name)
        assert await self.lanes(bed, limit=2) == [["a", "b"], ["c"]]
        assert await self.lanes(bed, limit=1) == [["a"], ["b"], ["c"]]
        assert await self.lanes(bed, limit=0) == [[]]
        assert await self.lanes(bed, cursor="bb") == [["c"]]

    async def test_more_lanes_than_one_reading_has_are_all_found(self, bed, monkeypatch):
        monkeypatch.setattr(listing, "SCOPES_PER_READ", 2)
        names = [f"lane-{number}" for number in range(5)]
        for name in names:
            await bed.create(lane_id=name)
        assert await self.lanes(bed) == [names]

    async def test_other_namespaces_are_invisible(self, bed):
        await bed.create(lane_id="foreign", namespace=OTHER)
        assert await self.lanes(bed) == [[]]


class TestEligible:
    async def scan(self, bed, **fields):
        args = ScanEligibleArgs(**{"lane_id": LANE, "limit": 100, **fields})
        return list((await bed.unchanging(args)).executions)

    async def test_work_comes_in_the_order_of_claiming(self, bed):
        low, high = await bed.create(priority=1), await bed.create(priority=5)
        bed.clock.advance(1)
        later = await bed.create(priority=5)
        assert await self.scan(bed) == [high, later, low]
        await bed.execute(ChangePriorityArgs(execution_id=low, new_priority=9))
        assert await self.scan(bed) == [low, high, later]

    async def test_capabilities_make_no_difference_to_the_order(self, bed):
        created = []
        for number in (2, 1, 3):
            needs = RoutingRequirements(required_capabilities=(f"can-{number}",))
            created += await create_later(bed, 1, policy=ExecutionPolicy(routing_requirements=needs))
        assert await self.scan(bed) == created
        assert await self.scan(bed, limit=2) == created[:2]

    async def test_only_what_waits_for_a_worker_is_there(self, bed):
        for situation in ("delayed", "blocked", "running", "suspended", "completed"):
            await bring(bed, situation, 1)
        waiting = await bed.create()
        await bed.create(lane_id=f"{LANE}-2")
        await bed.create(namespace=OTHER)
        assert await self.scan(bed) == [waiting]

    async def test_lapsed_leases_are_left_out_and_make_no_page_short(self, bed):
        for _ in range(3):
            claim = await bed.start(priority=9)
            await bed.execute(RevokeLeaseArgs(execution_id=claim.execution_id, reason="moved"))
        waiting = await create_later(bed, 3)
        assert await self.scan(bed, limit=2) == waiting[:2]

    async def test_one_partition_makes_no_page_short(self, bed):
        wanted = []
        for partition in (8, 70, 7, 8, 7):
            created = await bed.create(execution_id=bed.new_execution_id(partition))
            wanted += [created] if partition == 7 else []
        assert await self.scan(bed, partition=Partition(index=7), limit=2) == wanted


class TestExpiredLeases:
    async def entries(self, bed, **fields):
        return [list(page.entries) for page in await pages_of(bed, ListExpiredLeasesArgs(**fields))]

    async def test_a_lapsed_lease_is_there_before_and_after_it_is_marked(self, bed):
        claim = await bed.start()
        bed.clock.advance(TTL_MS - 1)
        assert await self.entries(bed) == [[]]
        bed.clock.advance(1)
        unmarked = await self.entries(bed)
        await bed.execute(MarkLeaseExpiredArgs(execution_id=claim.execution_id))
        assert await self.entries(bed) == unmarked
        [[entry]] = unmarked
        assert (entry.execution_id, entry.lease_id) == (claim.execution_id, claim.fence.lease_id)
        assert (entry.lease_epoch, entry.attempt_index) == (1, 0)
        assert (entry.worker_instance_id, entry.expires_at) == ("worker-1", bed.clock.now_ms)

    async def test_the_oldest_comes_first_whether_it_is_marked_or_not(self, bed):
        ids = []
        for _ in range(4):
            ids.append((await bed.start()).execution_id)
            bed.clock.advance(1)
        bed.clock.advance(TTL_MS)
        for execution_id in ids[1::2]:
            await bed.execute(MarkLeaseExpiredArgs(execution_id=execution_id))
        pages = await self.entries(bed, limit=3)
        assert [[one.execution_id for one in page] for page in pages] == [ids[:3], ids[3:]]

    async def test_a_revoked_lease_is_there_and_one_that_was_taken_over_is_not(self, bed):
        revoked, taken = await bed.start(), await bed.start()
        for claim in (revoked, taken):
            await bed.execute(RevokeLeaseArgs(execution_id=claim.execution_id, reason="moved"))
        await bed.claim(taken.execution_id)
        [[entry]] = await self.entries(bed)
        assert entry.execution_id == revoked.execution_id

    async def test_a_malformed_cursor_is_refused(self, bed):
        assert (await bed.refused(ListExpiredLeasesArgs(cursor="17"))).field == "cursor"


async def test_the_time_is_the_store_s(bed):
    bed.clock.advance(17)
    assert (await bed.execute(ServerTimeArgs())).now_ms == bed.clock.now_ms


@pytest.fixture(params=STORES)
async def unbound(request):
    """An engine that is bound to no namespace."""
    async with Bed(STORES[request.param](), namespace=None) as bed:
        await seed_key(bed)
        yield bed
        await bed.check()


async def test_without_a_namespace_every_list_is_about_all_of_them(unbound):
    created = []
    for namespace in ("b", "a", "c"):
        created += await create_later(unbound, 1, namespace=namespace)
    assert await summaries(unbound, limit=2) == [created[:0:-1], created[:1]]
    assert await summaries(unbound, public_state=PublicState.WAITING, limit=2) == [created[:2], created[2:]]
    assert await summaries(unbound, public_state=PublicState.WAITING, lane_id="none") == [[]]
    assert (await unbound.execute(ListExecutionsArgs())).executions == tuple(created)
    assert (await unbound.execute(ScanEligibleArgs(lane_id=LANE, limit=9))).executions == tuple(created)
    assert (await unbound.execute(ListLanesArgs())).lanes == (LANE,)
    claims = [await unbound.claim(execution_id) for execution_id in created]
    for number, claim in enumerate(claims[1:]):
        await suspend_again(unbound, claim, 1_000 + number, namespace=None)
    unbound.clock.advance(TTL_MS)
    [suspended] = await pages_of(unbound, ListSuspendedArgs())
    assert [one.execution_id for one in suspended.entries] == created[1:]
    [lapsed] = await pages_of(unbound, ListExpiredLeasesArgs())
    assert [one.execution_id for one in lapsed.entries] == created[:1]


async def test_a_row_that_is_gone_when_its_record_is_read_is_left_out(bed, monkeypatch):
    """Rows and records are read one after the other; others may act in between."""
    claim = await bed.start()
    bed.clock.advance(TTL_MS)
    load = bed.store.load

    async def act_before_loading(keys):
        monkeypatch.setattr(bed.store, "load", load)
        await bed.claim(claim.execution_id)
        return await load(keys)

    await bed.execute(MarkLeaseExpiredArgs(execution_id=claim.execution_id))
    monkeypatch.setattr(bed.store, "load", act_before_loading)
    assert (await bed.execute(ListExpiredLeasesArgs())).entries == ()

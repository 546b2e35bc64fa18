"""Finding work in several shards without asking those that have none, and without missing any for long."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from flowfabric import errors
from flowfabric.contracts.leases import ClaimBatchArgs, ClaimForWorkerArgs, NoWork, WorkGranted
from flowfabric.core.indexes import ELIGIBLE, scope_of
from flowfabric.stores.valkey import ValkeyStore
from flowfabric.stores.valkey.changes import Changes
from flowfabric.stores.valkey.client import Client
from flowfabric.stores.valkey.keys import SCOPE_END
from flowfabric.stores.valkey.sightings import LASTING_S, LOOKS_MAX, Sightings
from flowfabric.stores.valkey.telling import SCOPES_MAX, message, note_told, origin_of
from flowfabric.testing.bed import INSTANCE, LANE, NAMESPACE, TTL_MS, WORKER, Bed
from tests.stores.builders import commit, execution_id
from tests.valkey import cluster

SHARDS = 16
SCOPE = scope_of(NAMESPACE, LANE, "")
OTHER = scope_of(NAMESPACE, "other", "")
PLACE = (SCOPE, None)
OpenBed = Callable[[], Awaitable[Bed]]


class Seconds:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def sightings(seconds: Seconds) -> Sightings:
    return Sightings(2, seconds)


def look(sightings: Sightings, *found: str, place: tuple[str, str | None] = PLACE) -> None:
    """A look into the first shard."""
    sightings.end(sightings.begin(0, place), set(found), is_all=True)


class TestSightings:
    def test_what_a_look_has_seen_is_known_for_a_second(self, sightings: Sightings, seconds: Seconds) -> None:
        assert sightings.scopes(0, PLACE) is None
        assert sightings.may_have(0, SCOPE)
        look(sightings)
        seconds.now += LASTING_S - 0.01
        assert sightings.scopes(0, PLACE) == set()
        assert not sightings.may_have(0, SCOPE)
        assert sightings.scopes(1, PLACE) is None
        seconds.now += 0.01
        assert sightings.scopes(0, PLACE) is None
        assert sightings.may_have(0, SCOPE)

    def test_the_second_begins_before_the_shard_is_asked(
        self, sightings: Sightings, seconds: Seconds
    ) -> None:
        begun = sightings.begin(0, PLACE)
        seconds.now += LASTING_S
        sightings.end(begun, set(), is_all=True)
        assert sightings.scopes(0, PLACE) is None

    def test_nothing_is_known_of_what_a_look_did_not_reach(self, sightings: Sightings) -> None:
        look(sightings, place=(NAMESPACE, SCOPE))
        assert sightings.may_have(0, SCOPE)
        assert not sightings.may_have(0, OTHER)
        assert sightings.may_have(0, scope_of("another", LANE, ""))

    def test_a_look_that_saw_a_part_denies_nothing(self, sightings: Sightings) -> None:
        sightings.end(sightings.begin(0, PLACE), {SCOPE}, is_all=False)
        assert sightings.scopes(0, PLACE) is None

    def test_what_is_put_is_known_at_once(self, sightings: Sightings) -> None:
        look(sightings)
        sightings.put(0, [OTHER])
        assert sightings.scopes(0, PLACE) == set()
        sightings.put(0, [OTHER, SCOPE])
        assert sightings.scopes(0, PLACE) == {SCOPE}
        assert sightings.may_have(0, SCOPE)

    def test_what_is_put_while_a_shard_is_asked_is_not_missed(self, sightings: Sightings) -> None:
        begun = sightings.begin(0, PLACE)
        sightings.put(0, [SCOPE])
        sightings.end(begun, set(), is_all=True)
        assert sightings.scopes(0, PLACE) == {SCOPE}

    def test_a_look_during_which_something_may_have_been_missed_is_not_believed(
        self, sightings: Sightings
    ) -> None:
        begun = sightings.begin(0, PLACE)
        sightings.forget_all()
        sightings.end(begun, set(), is_all=True)
        assert sightings.scopes(0, PLACE) is None
        sightings.give_up(begun)

    def test_a_later_look_corrects_all_that_were_before(self, sightings: Sightings) -> None:
        look(sightings, place=(NAMESPACE, None))
        look(sightings, SCOPE)
        assert sightings.may_have(0, SCOPE)
        assert sightings.scopes(0, (NAMESPACE, None)) == {SCOPE}

    def test_a_scope_without_rows_is_known_to_have_none(self, sightings: Sightings) -> None:
        look(sightings, SCOPE)
        sightings.note_empty(0, SCOPE, sightings.puts(0))
        assert not sightings.may_have(0, SCOPE)

    def test_a_scope_that_gets_rows_while_it_is_read_keeps_them(self, sightings: Sightings) -> None:
        look(sightings, SCOPE)
        puts = sightings.puts(0)
        sightings.put(0, [SCOPE])
        sightings.note_empty(0, SCOPE, puts)
        assert sightings.may_have(0, SCOPE)

    def test_a_look_that_failed_is_given_up(self, sightings: Sightings) -> None:
        begun = sightings.begin(0, PLACE)
        sightings.give_up(begun)
        sightings.end(begun, set(), is_all=True)
        assert sightings.scopes(0, PLACE) is None

    def test_not_too_many_looks_are_remembered(self, sightings: Sightings) -> None:
        for number in range(LOOKS_MAX + 1):
            look(sightings, place=(f"namespace-{number}", None))
        assert sightings.scopes(0, ("namespace-0", None)) is None
        assert sightings.scopes(0, (f"namespace-{LOOKS_MAX}", None)) == set()


class TestTelling:
    def test_a_message_says_who_has_committed_where_and_what_can_be_claimed(
        self, sightings: Sightings
    ) -> None:
        look(sightings)
        told = message("me", 0, commit(rows_added=[(ELIGIBLE, SCOPE, 1, "a"), ("due", OTHER, 1, "a")]))
        assert told == b"me 0" + SCOPE_END + SCOPE.encode()
        assert origin_of(told) == "me"
        note_told(told, sightings)
        assert sightings.scopes(0, PLACE) == {SCOPE}

    def test_a_commit_that_makes_nothing_claimable_leaves_what_is_known(self, sightings: Sightings) -> None:
        look(sightings)
        note_told(message("me", 0, commit()), sightings)
        assert sightings.scopes(0, PLACE) == set()

    @pytest.mark.parametrize("told", [b"me", b"me x", b"me 7", b""])
    def test_a_message_that_says_less_may_say_anything(self, sightings: Sightings, told: bytes) -> None:
        look(sightings)
        note_told(told, sightings)
        assert sightings.scopes(0, PLACE) is None

    def test_a_message_does_not_name_very_many_scopes(self) -> None:
        rows = [(ELIGIBLE, scope_of(NAMESPACE, f"lane-{number}", ""), 1, "a") for number in range(65)]
        assert message("me", 0, commit(rows_added=rows)) == b"me"
        assert message("me", 0, commit(rows_added=rows[:SCOPES_MAX])).count(SCOPE_END) == SCOPES_MAX


@pytest.fixture
async def open_bed(tmp_path: Path, seconds: Seconds) -> AsyncIterator[OpenBed]:
    """Opens engines of their own on one store of a cluster, as processes have.

    What they know does not go out of date unless a test moves the clock, and they do not look by
    themselves whether others have committed.
    """

    async def watch(timeout_ms: int) -> bool:
        return await asyncio.Event().wait()

    async with AsyncExitStack() as stack:

        async def open_one() -> Bed:
            store = cluster().store(tmp_path, shards=SHARDS)
            store.wait_for_change = watch  # type: ignore[method-assign]
            bed = await stack.enter_async_context(Bed(store))
            store._sightings._clock = seconds
            return bed

        yield open_one


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many shards each read of the eligible index has asked so far."""
    sent: list[int] = []
    read_each = Client.read_each

    async def counted(self: Any, asked: Any) -> Any:
        if any(str(part).endswith(f"index:{ELIGIBLE}") for _, command in asked for part in command):
            sent.append(len(asked))
        return await read_each(self, asked)

    monkeypatch.setattr(Client, "read_each", counted)
    return sent


def store_of(bed: Bed) -> ValkeyStore:
    return cast("ValkeyStore", bed.store)


async def create(bed: Bed, number: int, shard: int, **fields: Any) -> str:
    """An execution in one of the shards."""
    return await bed.create(execution_id=execution_id(number, f"{{fp:{shard}}}"), **fields)


async def claim(bed: Bed, limit: int = 1) -> list[str]:
    args = ClaimBatchArgs(
        worker_id=WORKER, worker_instance_id=INSTANCE, lanes=(LANE,), limit=limit, lease_ttl_ms=TTL_MS
    )
    return [work.execution_id for work in (await bed.execute(args)).claims]


def lose_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be learned from what is heard from now on."""
    monkeypatch.setattr("flowfabric.stores.valkey.changes.note_told", lambda told, sightings: None)


class TestClaims:
    async def test_a_claim_asks_only_the_shard_that_has_work(
        self, open_bed: OpenBed, reads: list[int]
    ) -> None:
        bed = await open_bed()
        made = [await create(bed, number, 3) for number in range(4)]
        assert await claim(bed) == made[:1]
        reads.clear()
        for one in made[1:]:
            assert await claim(bed) == [one]
        assert reads == [1, 1, 1]

    async def test_a_claim_that_finds_too_little_asks_all_shards(
        self, open_bed: OpenBed, reads: list[int]
    ) -> None:
        bed = await open_bed()
        made = [await create(bed, number, 3) for number in range(3)]
        assert await claim(bed) == made[:1]
        reads.clear()
        assert await claim(bed, 5) == made[1:]
        assert reads[:2] == [1, SHARDS]
        reads.clear()
        assert await claim(bed) == []
        assert SHARDS in reads

    async def test_a_poll_of_an_idle_store_asks_each_shard_once(
        self, open_bed: OpenBed, reads: list[int]
    ) -> None:
        bed = await open_bed()
        for _ in range(3):
            reads.clear()
            assert await claim(bed) == []
            assert reads == [SHARDS]

    async def test_work_of_another_process_is_found_although_its_message_was_lost(
        self, open_bed: OpenBed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = await open_bed(), await open_bed()
        assert await claim(two) == []
        lose_messages(monkeypatch)
        for number, shard in enumerate((2, 9)):
            made = await create(one, number, shard)
            assert await claim(two) == [made]
        made = await create(one, 3, 4)
        args = ClaimForWorkerArgs(
            worker_id=WORKER, worker_instance_id=INSTANCE, lane_id=LANE, grant_ttl_ms=1_000
        )
        granted = await two.execute(args)
        assert isinstance(granted, WorkGranted)
        assert granted.grant.execution_id == made
        assert isinstance(await two.execute(args), NoWork)

    async def test_urgent_work_whose_message_was_lost_waits_a_second_behind_other_work(
        self, open_bed: OpenBed, seconds: Seconds, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = await open_bed(), await open_bed()
        made = [await create(two, number, 3) for number in range(4)]
        assert await claim(two) == made[:1]
        lose_messages(monkeypatch)
        urgent = await create(one, 9, 5, priority=9_000)
        seconds.now += LASTING_S - 0.01
        assert await claim(two) == made[1:2]
        seconds.now += 0.01
        assert await claim(two) == [urgent]

    async def test_urgent_work_of_another_process_comes_first_once_its_message_is_heard(
        self, open_bed: OpenBed
    ) -> None:
        one, two = await open_bed(), await open_bed()
        made = [await create(two, number, 3) for number in range(3)]
        assert await claim(two) == made[:1]
        assert not store_of(two)._sightings.may_have(5, SCOPE)
        urgent = await create(one, 9, 5, priority=9_000)
        async with asyncio.timeout(60):
            while not store_of(two)._sightings.may_have(5, SCOPE):
                await asyncio.sleep(0.001)
        assert await claim(two) == [urgent]

    async def test_engines_that_claim_side_by_side_get_everything_once(self, open_bed: OpenBed) -> None:
        one, two = await open_bed(), await open_bed()
        made = [await create(one, number, number) for number in range(40)]
        found: list[str] = []

        async def drain(bed: Bed) -> None:
            while claimed := await claim(bed, 3):
                found.extend(claimed)

        await asyncio.gather(drain(one), drain(two))
        assert sorted(found) == sorted(made)

    async def test_whether_a_commit_has_put_work_is_open_when_its_answer_is_lost(
        self, open_bed: OpenBed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bed = await open_bed()
        store = store_of(bed)
        lose_messages(monkeypatch)
        made = [await create(bed, number, 3) for number in range(2)]
        assert await claim(bed) == made[:1]
        invoke = store._client.invoke

        async def lost(*call: Any, **options: Any) -> Any:
            await invoke(*call, **options)
            raise errors.StoreUnreachable

        with monkeypatch.context() as patch:
            patch.setattr(store._client, "invoke", lost)
            with pytest.raises(errors.StoreUnreachable):
                await create(bed, 9, 5, priority=9_000)
        assert await claim(bed) == [execution_id(9, "{fp:5}")]

    async def test_a_commit_that_was_counted_and_not_heard_makes_all_doubtful(
        self, open_bed: OpenBed
    ) -> None:
        one, two = await open_bed(), await open_bed()
        store = store_of(two)
        changes = await knowing_and_deaf(two)
        await create(one, 9, 5)
        assert not store._sightings.may_have(5, SCOPE)
        async with asyncio.timeout(60):
            assert await changes.wait(1)
        assert store._sightings.may_have(5, SCOPE)

    async def test_what_happened_while_nobody_listened_makes_all_doubtful(self, open_bed: OpenBed) -> None:
        bed = await open_bed()
        changes = await knowing_and_deaf(bed)
        assert not store_of(bed)._sightings.may_have(5, SCOPE)
        changes.close()
        await changes.wait(1)
        assert store_of(bed)._sightings.may_have(5, SCOPE)


async def knowing_and_deaf(bed: Bed) -> Changes:
    """Let an engine have claimed, know of all shards, and hear nothing any more."""
    store = store_of(bed)
    changes = store._changes
    assert changes is not None
    assert changes._listener is not None
    await changes._listener.send([("UNSUBSCRIBE", store.settings.channel)])
    await create(bed, 1, 3)
    assert len(await claim(bed)) == 1
    return changes


async def test_a_function_and_a_rule_tell_the_same(
    open_bed: OpenBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await open_bed(), await open_bed()
    heard: list[bytes] = []
    monkeypatch.setattr("flowfabric.stores.valkey.changes.note_told", lambda told, _: heard.append(told))
    changes, native = store_of(one)._changes, store_of(one).native
    assert changes is not None
    wanted = f"{changes.origin} 5".encode() + SCOPE_END + SCOPE.encode()
    await create(one, 1, 5)  # by the rule, which learns the lane
    assert native.statistics.accepted == {}
    await create(one, 2, 5)
    assert native.statistics.accepted == {"create_execution": 1}
    async with asyncio.timeout(60):
        while heard.count(wanted) < 4:  # both engines hear both
            await asyncio.sleep(0.001)
    work = (await claim(two, 2)) + (await claim(two, 2))
    assert len(work) == 2
    assert heard.count(wanted) == 4

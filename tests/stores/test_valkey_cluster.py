"""Several shards: where things live, how events get into the one log, and a cluster that changes."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from flowfabric import errors
from flowfabric.audit import audit
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.core.commands import SettleReservationArgs
from flowfabric.core.records import Keyring, PastAttempt, Reservation, key_for
from flowfabric.core.rules.creation import RESERVATION_GRACE_MS, reservation_identity
from flowfabric.engine.engine import Engine
from flowfabric.stores.base import Change, Commit, Conflict
from flowfabric.stores.valkey import ValkeyStore, outboxes
from flowfabric.stores.valkey.keys import Keys, Shards
from flowfabric.testing.bed import Bed
from flowfabric.testing.clock import ManualClock
from tests.core.requests import candidate, complete, renew
from tests.stores.builders import (
    commit,
    counter,
    creation,
    event,
    execution_id,
    increment,
    record_of,
    version_of,
)
from tests.valkey import Cluster, Server, cluster, server, wait_until

SHARDS = 4
OpenStore = Callable[..., Awaitable[ValkeyStore]]


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens stores below one prefix of a cluster, each with connections of its own, as processes have."""
    async with AsyncExitStack() as stack:

        async def open_one(on: Cluster | Server | None = None, **options: Any) -> ValkeyStore:
            made = (on or cluster()).store(tmp_path, **options)
            await made.open()
            stack.push_async_callback(made.close)
            return made

        yield open_one


@pytest.fixture
def replicated() -> Iterator[Cluster]:
    """A cluster in which every primary has a replica."""
    made = Cluster(replicas=1)
    yield made
    made.remove()


def tagged(partition: int) -> str:
    """The tag of a partition."""
    return f"{{fp:{partition}}}"


class TestPlaces:
    def test_a_shard_knows_the_slot_of_its_keys(self) -> None:
        for shard in range(20):
            keys = Keys("tasks", shard)
            for key in (keys.state, keys.record("execution/{fp:9}:x"), keys.index("{a}"), keys.outbox):
                assert cluster().servers[0].ask("CLUSTER", "KEYSLOT", key) == b":%d" % keys.slot

    def test_everything_of_one_partition_is_in_one_shard(self) -> None:
        shards = Shards("tasks", SHARDS)
        for partition in range(300):
            name = execution_id(1, tagged(partition))
            records = [key_for(kind, f"{name}/0") for kind in (PastAttempt, Keyring)]
            assert {shards.of(name).shard, *(shards.of_record(key).shard for key in records)} == {
                partition % SHARDS
            }

    def test_what_has_no_partition_has_a_shard_too_and_keeps_it(self) -> None:
        shards = Shards("tasks", SHARDS)
        places = [shards.of_record(f"lane/tenant/{number}").shard for number in range(100)]
        assert set(places) == set(range(SHARDS))
        assert places == [shards.of_record(f"lane/tenant/{number}").shard for number in range(100)]

    async def test_the_number_of_shards_is_chosen_once(self, open_store: OpenStore, tmp_path: Path) -> None:
        first = await open_store(shards=SHARDS)
        again = await open_store()
        assert len(first._shards.all) == len(again._shards.all) == SHARDS
        with pytest.raises(errors.StoreUnusable, match="was made with 4 shards, but 5 are asked for"):
            await open_store(shards=5)

    async def test_a_server_that_is_no_cluster_may_have_several_too(self, open_store: OpenStore) -> None:
        store = await open_store(server(), shards=SHARDS)
        await store.commit(creation(counter(1, tag=tagged(1))))
        await store.commit(creation(counter(2, tag=tagged(2))))
        assert (await store.load([])).now > 0
        keys = [counter(number, tag=tagged(number)).key for number in (1, 2, 3)]
        assert {key: found is None for key, _, found in (await store.load(keys)).rows} == dict(
            zip(keys, [False, False, True], strict=True)
        )

    async def test_a_url_says_whether_it_is_a_cluster(self, tmp_path: Path) -> None:
        alone = server().store(tmp_path, socket=None, cluster=True, host="127.0.0.1", port=server().listen())
        with pytest.raises(errors.StoreUnusable, match="is not part of a cluster"):
            await alone.open()
        part = cluster().store(tmp_path, cluster=False)
        with pytest.raises(errors.StoreUnusable, match=r"is part of a cluster. Use .* valkey\+cluster://"):
            await part.open()


class TestCommits:
    async def test_a_record_in_another_shard_that_was_relied_on_conflicts_when_it_has_changed(
        self, open_store: OpenStore
    ) -> None:
        store = await open_store(shards=SHARDS)
        here, there = counter(1, tag=tagged(1)), counter(2, tag=tagged(2))
        await store.commit(creation(there))
        version = await version_of(store, there.key)
        await store.commit(commit(changes=[Change(here.key, 0, here)], relied_on=[(there.key, version)]))
        await store.commit(commit(changes=[Change(there.key, version, there)]))
        with pytest.raises(Conflict) as caught:
            await store.commit(
                commit(
                    changes=[Change(here.key, await version_of(store, here.key), here)],
                    relied_on=[(there.key, version)],
                )
            )
        assert caught.value.keys == {there.key}

    async def test_a_batch_with_commands_of_many_partitions_is_decided_as_one_of_each_shard(
        self, tmp_path: Path
    ) -> None:
        async with Engine(cluster().store(tmp_path, shards=SHARDS), namespace="tenant") as engine:
            commands = [
                CreateExecutionArgs(
                    execution_id=execution_id(number, tagged(number)),
                    namespace="tenant",
                    lane_id="lane",
                    execution_kind="kind",
                    input_payload=b"",
                    priority=0,
                    creator_identity="tests",
                )
                for number in range(40)
            ]
            answers = await engine.execute_many(commands)
            assert not [answer for answer in answers if isinstance(answer, Exception)]
            again = await engine.execute_many(commands)
            assert len(again) == 40
            rows = await engine.store.read_index("created", "tenant", limit=100)
            assert {member for _, member in rows} == {command.execution_id for command in commands}
            assert sorted(rows) == rows
            assert await engine.store.last_event() == 40
            assert isinstance(engine.store, ValkeyStore)
            assert engine.store.statistics.commits == SHARDS


class TestLog:
    async def test_events_of_all_shards_are_numbered_in_one_log(self, open_store: OpenStore) -> None:
        writers = [await open_store(shards=SHARDS) for _ in range(3)]
        reader = await open_store()

        async def write(place: int, store: ValkeyStore) -> None:
            for number in range(20):
                record = counter(100 * place + number, tag=tagged(number))
                told = [event(100 * place + number)]
                await store.commit(commit(changes=[Change(record.key, 0, record)], events=told))

        writing = asyncio.gather(*(write(place, store) for place, store in enumerate(writers)))
        seen: list[int] = []
        async with asyncio.timeout(60):
            while len(seen) < 60:
                seen += [one.sequence for one in await reader.read_events(seen[-1] if seen else 0, limit=7)]
        await writing
        assert seen == list(range(1, 61))

    async def test_who_commits_reads_its_own_events_at_once(self, open_store: OpenStore) -> None:
        store = await open_store(shards=SHARDS)
        for number in range(1, 6):
            record = counter(number, tag=tagged(number))
            await store.commit(commit(changes=[Change(record.key, 0, record)], events=[event(number)]))
            assert [one.event for one in await store.read_events(number - 1)] == [event(number)]

    async def test_what_a_process_left_in_an_outbox_is_carried_by_another_once(
        self, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, *others = [await open_store(shards=SHARDS) for _ in range(3)]
        assert [await store.last_event() for store in (one, *others)] == [0, 0, 0]
        assert one._outboxes is not None
        with monkeypatch.context() as patch:
            patch.setattr(one._outboxes, "note", lambda *noted: None)
            for number in range(8):
                record = counter(number, tag=tagged(number))
                await one.commit(commit(changes=[Change(record.key, 0, record)], events=[event(number)]))
        assert await one.last_event() == 0
        for store in others:
            assert store._outboxes is not None
            store._outboxes.doubt(store._shards.all)
        assert await asyncio.gather(*(store.last_event() for store in others)) == [8, 8]
        for shard in one._shards.all:
            [left] = await one._client.read(shard.slot, ("XLEN", shard.outbox))
            assert left == 0

    async def test_a_commit_at_the_moment_when_all_has_been_carried_is_carried_too(
        self, open_store: OpenStore
    ) -> None:
        store = await open_store(shards=SHARDS)
        carrier = store._outboxes
        assert carrier is not None
        await store.last_event()
        records = [counter(number, tag=tagged(number)) for number in (1, 2)]
        await store.commit(commit(changes=[Change(records[0].key, 0, records[0])], events=[event(1)]))
        carrying = carrier._carrying
        assert carrying is not None
        while not carrying.done():
            await asyncio.sleep(0)
        assert carrier._carrying is carrying, "its end has been noticed, which this test has to come before"
        carrier.doubt([store._shards.of_record(records[1].key)])
        assert carrier._carrying is not carrying
        await store.commit(commit(changes=[Change(records[1].key, 0, records[1])], events=[event(2)]))
        assert await store.last_event() == 2

    @pytest.mark.parametrize("at_once", [2, outboxes.CARRIED_AT_ONCE])
    async def test_what_a_process_commits_is_told_in_that_order(
        self, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, at_once: int
    ) -> None:
        """Whichever shards it is in, and also if much waits to be carried."""
        store = await open_store(shards=SHARDS)
        monkeypatch.setattr(outboxes, "CARRIED_AT_ONCE", at_once)
        await store.last_event()
        assert store._outboxes is not None
        told = [event(number) for number in range(12)]
        with monkeypatch.context() as patch:
            patch.setattr(store._outboxes, "_start", lambda: None)
            for number, one in enumerate(told):
                record = counter(number, tag=tagged((0, 1, 0, 2, 2, 1)[number % 6]))
                await store.commit(commit(changes=[Change(record.key, 0, record)], events=[one]))
        assert [found.event for found in await store.read_events(0)] == told

    async def test_who_reads_the_log_does_not_wait_for_what_is_committed_meanwhile(
        self, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_store(shards=SHARDS)
        await store.last_event()
        carrier = store._outboxes
        assert carrier is not None
        read = carrier._read
        made = 0

        async def read_while_one_more_is_committed(wanted: Any) -> Any:
            nonlocal made
            made += 1
            record = counter(made, tag=tagged(made))
            await store.commit(commit(changes=[Change(record.key, 0, record)], events=[event(made)]))
            return await read(wanted)

        with monkeypatch.context() as patch:
            patch.setattr(carrier, "_read", read_while_one_more_is_committed)
            carrier.doubt(store._shards.all)
            async with asyncio.timeout(60):
                assert await store.last_event() <= made

    async def test_an_outbox_that_cannot_be_reached_holds_up_no_other(
        self, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_store(shards=SHARDS)
        await store.last_event()
        read, gone = store._client.read, store._shards.all[1]

        async def read_if_there(slot: int, *commands: Any) -> Any:
            if slot == gone.slot:
                raise errors.StoreUnreachable
            return await read(slot, *commands)

        told = [event(number) for number in range(1, 4)]
        with monkeypatch.context() as patch:
            patch.setattr(store._client, "read", read_if_there)
            for number, one in enumerate(told, start=1):
                record = counter(number, tag=tagged(number))
                await store.commit(commit(changes=[Change(record.key, 0, record)], events=[one]))
            async with asyncio.timeout(60):
                while await store._read_counter("events") < 2:
                    await asyncio.sleep(0.001)
            with pytest.raises(errors.StoreUnreachable):
                await store.last_event()
        assert [found.event for found in await store.read_events(0)] == [*told[1:], told[0]]

    async def test_looking_for_changes_looks_into_the_outboxes(
        self, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = await open_store(shards=SHARDS), await open_store()
        assert one._outboxes is not None
        monkeypatch.setattr(one._outboxes, "note", lambda *noted: None)
        record = counter(3, tag=tagged(3))
        await one.commit(commit(changes=[Change(record.key, 0, record)], events=[event(3)]))
        async with asyncio.timeout(60):
            while await two.wait_for_change(1):
                pass
        assert await two.last_event() == 1

    async def test_a_log_that_cannot_be_completed_is_not_read_as_complete(
        self, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_store(shards=SHARDS)

        async def broken(*call: Any) -> Any:
            raise errors.StoreUnreachable

        record = counter(1, tag=tagged(1))
        assert store._outboxes is not None
        with monkeypatch.context() as patch:
            patch.setattr(store._outboxes, "_log", broken)
            await store.commit(commit(changes=[Change(record.key, 0, record)], events=[event(1)]))
            with pytest.raises(errors.StoreUnreachable):
                await store.read_events(0)
        assert await store.last_event() == 1


class TestHearing:
    async def test_a_commit_at_any_server_wakes_who_waits_at_another(self, open_store: OpenStore) -> None:
        one, two = await open_store(shards=SHARDS), await open_store()
        for number in range(SHARDS):
            waiting = asyncio.create_task(one.wait_for_change(90_000))
            await asyncio.sleep(0.01)
            begun = time.monotonic()
            await two.commit(creation(counter(number, tag=tagged(number))))
            assert await waiting
            assert time.monotonic() - begun < 10


class TestChange:
    """The cluster changes while a store is open."""

    @pytest.fixture
    def pair(self) -> Iterator[Cluster]:
        """Two primaries whose slots nobody else uses."""
        made = Cluster(primaries=2)
        yield made
        made.remove()

    @staticmethod
    def owners(pair: Cluster, store: ValkeyStore, shard: int) -> tuple[Keys, Server, Server]:
        """The keys of a shard, the server that has its slot, and the other one."""
        keys = store._shards.all[shard]
        one, two = pair.primaries
        return (keys, two, one) if one.ask("EXISTS", keys.state).startswith(b"-MOVED") else (keys, one, two)

    @staticmethod
    def name_of(one: Server) -> str:
        return one.ask_all("CLUSTER", "MYID").splitlines()[1].decode()

    def give(self, slot: int, owner: Server, other: Server) -> None:
        """Make another server the owner of a slot that has no keys."""
        for told in (other, owner):
            assert told.ask("CLUSTER", "SETSLOT", str(slot), "NODE", self.name_of(other)) == b"+OK"

    async def test_a_slot_that_has_moved_is_followed(self, pair: Cluster, open_store: OpenStore) -> None:
        store = await open_store(pair, shards=SHARDS)
        keys, owner, other = self.owners(pair, store, 1)
        self.give(keys.slot, owner, other)
        record = counter(1, tag=tagged(1))
        await store.commit(creation(record))
        assert store._client.redirects > 0
        assert await record_of(store, record.key) == record
        assert other.ask("EXISTS", keys.record(record.key)) == b":1"

    async def test_a_slot_that_is_moving_is_asked_for_at_both(
        self, pair: Cluster, open_store: OpenStore
    ) -> None:
        store = await open_store(pair, shards=SHARDS)
        keys, owner, other = self.owners(pair, store, 2)
        assert other.ask("CLUSTER", "SETSLOT", str(keys.slot), "IMPORTING", self.name_of(owner)) == b"+OK"
        assert owner.ask("CLUSTER", "SETSLOT", str(keys.slot), "MIGRATING", self.name_of(other)) == b"+OK"
        record = counter(2, tag=tagged(2))
        assert await version_of(store, record.key) == 0
        assert store._client.redirects == 0
        committing = asyncio.create_task(store.commit(creation(record)))
        async with asyncio.timeout(60):
            while not store._client.redirects:  # neither has all of its keys
                await asyncio.sleep(0.001)
        self.give(keys.slot, owner, other)
        await committing
        assert await record_of(store, record.key) == record

    async def test_a_commit_in_a_slot_that_is_moving_is_whole(
        self, pair: Cluster, open_store: OpenStore
    ) -> None:
        """A function may touch no key there that is gone, such as a set that it has just emptied."""
        store = await open_store(pair, shards=SHARDS)
        keys, owner, other = self.owners(pair, store, 2)
        record, scope = counter(2, tag=tagged(2)), tagged(2)
        row, passed = ("due", scope, 1, record.identity), ("eligible", scope, 1, "member")
        change = Change(record.key, 0, record)
        await store.commit(commit(changes=[change], rows_added=[row, passed], events=[event()]))
        assert other.ask("CLUSTER", "SETSLOT", str(keys.slot), "IMPORTING", self.name_of(owner)) == b"+OK"
        assert owner.ask("CLUSTER", "SETSLOT", str(keys.slot), "MIGRATING", self.name_of(other)) == b"+OK"
        version = await version_of(store, record.key)
        later = ("due", scope, 2, record.identity)
        change = Change(record.key, version, record)
        await store.commit(
            commit(changes=[change], rows_removed=[row, passed], rows_added=[later, passed], events=[event()])
        )
        assert await store.read_index("due", scope) == [(2, record.identity)]
        assert await store.read_index("eligible", scope) == [(1, "member")]
        change = Change(record.key, await version_of(store, record.key), record)
        await store.commit(commit(changes=[change], rows_removed=[later, passed], events=[event()]))
        assert await store.count_index("due", scope) == await store.count_index("eligible", scope) == 0
        assert await store.index_scopes("due", scope) == []
        assert await store.last_event() == 3

    async def test_a_lease_in_a_slot_that_is_moving_is_renewed(self, pair: Cluster, tmp_path: Path) -> None:
        """It has rows in indexes that have no others, whose sets the renewal replaces."""
        async with Engine(pair.store(tmp_path, shards=SHARDS), namespace="tenant") as engine:
            store = cast("ValkeyStore", engine.store)
            name = execution_id(1, tagged(2))
            await engine.execute(
                CreateExecutionArgs(
                    execution_id=name,
                    namespace="tenant",
                    lane_id="lane",
                    execution_kind="kind",
                    input_payload=b"",
                    priority=0,
                    creator_identity="tests",
                )
            )
            claimed: Any = await engine.execute(candidate(name, lane_id="lane", lease_ttl_ms=60_000))
            await store.last_event()
            keys, owner, other = self.owners(pair, store, 2)
            asking = renew(name, claimed.work.fence, lease_ttl_ms=120_000)
            renewed, _ = await asyncio.gather(
                engine.execute(asking), asyncio.to_thread(pair.move, keys.slot, owner, other)
            )
            assert renewed.expires_at > claimed.work.lease_expires_at
            assert (await audit(engine)).violations == ()

    async def test_a_function_that_cannot_reach_its_keys_leaves_it_to_the_rule(
        self, pair: Cluster, tmp_path: Path
    ) -> None:
        """It names indexes without rows, too, and so would wait until the slot has moved."""
        async with Engine(pair.store(tmp_path, shards=SHARDS), namespace="tenant") as engine:
            store = cast("ValkeyStore", engine.store)
            made = CreateExecutionArgs(
                execution_id=execution_id(1, tagged(2)),
                namespace="tenant",
                lane_id="lane",
                execution_kind="kind",
                input_payload=b"",
                priority=0,
                creator_identity="tests",
            )
            await engine.execute(made)
            claimed: Any = await engine.execute(
                candidate(made.execution_id, lane_id="lane", lease_ttl_ms=60_000)
            )
            last = await store.last_event()
            keys, owner, other = self.owners(pair, store, 2)
            assert other.ask("CLUSTER", "SETSLOT", str(keys.slot), "IMPORTING", self.name_of(owner)) == b"+OK"
            assert owner.ask("CLUSTER", "SETSLOT", str(keys.slot), "MIGRATING", self.name_of(other)) == b"+OK"
            fence = claimed.work.fence
            renewed: Any = await engine.execute(renew(made.execution_id, fence, lease_ttl_ms=120_000))
            assert renewed.expires_at > claimed.work.lease_expires_at
            assert store.native.statistics.declined["renew_lease"] == 1
            completing = asyncio.create_task(
                engine.execute(complete(made.execution_id, fence), request_id="c")
            )
            async with asyncio.timeout(60):
                while not store._client.redirects:  # its result is a key that is not there yet
                    await asyncio.sleep(0.001)
            await asyncio.to_thread(pair.move, keys.slot, owner, other)
            completed = await completing
            assert await engine.execute(complete(made.execution_id, fence), request_id="c") == completed
            told = [found.event.name for found in await store.read_events(last)]
            assert told == ["renewed", "released", "success"]
            assert (await audit(engine)).violations == ()

    @pytest.mark.slow
    async def test_after_a_failover_everything_that_replicas_confirmed_is_there(
        self, replicated: Cluster, open_store: OpenStore
    ) -> None:
        store = await open_store(replicated, shards=SHARDS, replicas=1)
        records = [counter(number, tag=tagged(number)) for number in range(2 * SHARDS)]
        for record in records:
            await store.commit(commit(changes=[Change(record.key, 0, record)], events=[event()]))
        assert await store.last_event() == len(records)
        replicated.primaries[0].stop(signal.SIGKILL)
        wait_until(
            lambda: (
                sum(b"role:master" in one.ask_all("INFO", "replication") for one in running(replicated)) == 3
            ),
            "no replica was promoted",
        )
        replicated.until("cluster_state:ok")
        found = await until_reachable(lambda: store.load([record.key for record in records]))
        assert [record for _, _, record in found.rows if record is None] == []
        assert await store.last_event() == len(records)
        after = await open_store(replicated)
        for record in records:
            await increment(after, record.key)


def running(cluster: Cluster) -> list[Server]:
    return [one for one in cluster.servers if one.runs]


async def until_reachable(call: Callable[[], Awaitable[Any]]) -> Any:
    """Ask again for as long as the store cannot be reached."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except errors.StoreUnreachable:
                await asyncio.sleep(0.05)


class TestKeys:
    """An idempotency key lives in another shard than what was created under it."""

    async def test_a_key_is_not_freed_while_what_it_is_for_is_on_its_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The scanner looks at it after the comparison and before the commit, when its grace is over."""
        clock = ManualClock()
        one, two = (Bed(cluster().store(tmp_path, shards=SHARDS), clock=clock) for _ in range(2))
        async with one as bed, two as scanner:
            store = cast("ValkeyStore", bed.store)
            args = bed.creation(execution_id=execution_id(1, tagged(0)), idempotency_key="once")
            place = reservation_identity(args.namespace, "once")
            assert store._shards.of(place) is not store._shards.of(args.execution_id)
            compare = store._compare_elsewhere

            async def compare_and_pause(shard: Keys, changes: Commit) -> Commit:
                left = await compare(shard, changes)
                if any(key.startswith("reservation/") for key, _ in changes.relied_on):
                    monkeypatch.setattr(store, "_compare_elsewhere", compare)
                    clock.advance(RESERVATION_GRACE_MS)
                    settled = await scanner.execute(SettleReservationArgs(reservation_id=place))
                    assert settled.action == "closed"
                return left

            monkeypatch.setattr(store, "_compare_elsewhere", compare_and_pause)
            await bed.execute(args)
            again = msgspec.structs.replace(args, execution_id=execution_id(2, tagged(0)))
            assert (await bed.execute(again)).execution_id == args.execution_id
            await bed.advance(RESERVATION_GRACE_MS)
            assert (await bed.get(Reservation, place)).confirmed

"""Many processes on one server: what they commit at once, what is refused, how they hear of each other."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop

from flowfabric import errors
from flowfabric.core.events import Family
from flowfabric.core.records import ExecutionResult, PastAttempt
from flowfabric.core.work import Frame
from flowfabric.stores.base import Change
from flowfabric.stores.valkey import ValkeyStore
from flowfabric.stores.valkey.changes import DEAF_AFTER
from flowfabric.stores.valkey.records import MEMBERS_MAX, frees_memory
from flowfabric.testing import dump
from tests.stores.builders import (
    commit,
    counter,
    creation,
    event,
    execution_id,
    increment,
    payload,
    record_of,
    version_of,
)
from tests.valkey import Server, server

STREAM = f"{execution_id(1)}/0"
OpenStore = Callable[..., Awaitable[ValkeyStore]]


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens stores below one prefix, each with connections of its own, as processes have."""
    async with AsyncExitStack() as stack:

        async def open_one(on: Server | None = None, **options: Any) -> ValkeyStore:
            made = (on or server()).store(tmp_path, **options)
            await made.open()
            stack.push_async_callback(made.close)
            return made

        yield open_one


class TestAtOnce:
    async def test_increments_of_several_stores_all_count(self, open_store: OpenStore) -> None:
        stores = [await open_store() for _ in range(4)]
        await stores[0].commit(creation(counter()))

        async def work(store: ValkeyStore) -> None:
            for _ in range(10):
                await increment(store, counter().key)

        await asyncio.gather(*map(work, stores))
        assert (await record_of(stores[0], counter().key)).frame_count == 40

    async def test_of_two_that_rely_on_what_the_other_changes_one_fails(self, open_store: OpenStore) -> None:
        one, two = await open_store(), await open_store()
        await one.commit(creation(counter(1), counter(2)))
        first, second = [await version_of(one, counter(number).key) for number in (1, 2)]
        found = await asyncio.gather(
            one.commit(
                commit(
                    changes=[Change(counter(1).key, first, counter(1))],
                    relied_on=[(counter(2).key, second)],
                )
            ),
            two.commit(
                commit(
                    changes=[Change(counter(2).key, second, counter(2))],
                    relied_on=[(counter(1).key, first)],
                )
            ),
            return_exceptions=True,
        )
        assert sorted(type(one).__name__ for one in found) == ["Conflict", "int"]

    async def test_a_reader_of_the_log_never_passes_an_event_that_comes_later(
        self, open_store: OpenStore
    ) -> None:
        writers = [await open_store() for _ in range(3)]
        reader = await open_store()
        families = [Family.EXECUTION, Family.LEASE, Family.COMPLETION]

        async def write(store: ValkeyStore, base: int) -> None:
            for number in range(20):
                await store.commit(commit(events=[event(base + number, family) for family in families]))

        writing = asyncio.gather(*(write(store, 100 * place) for place, store in enumerate(writers)))
        seen: list[int] = []
        while len(seen) < 180:
            seen += [one.sequence for one in await reader.read_events(seen[-1] if seen else 0, limit=7)]
        await writing
        assert seen == list(range(1, 181))

    async def test_more_rows_than_one_call_takes_at_once_are_one_commit(self, open_store: OpenStore) -> None:
        store = await open_store()
        rows = [("eligible", "scope", number, "m") for number in range(2 * MEMBERS_MAX + 1)]
        await store.commit(commit(rows_added=rows))
        assert await store.count_index("eligible", "scope") == len(rows)
        await store.commit(commit(rows_removed=rows))
        assert await store.index_scopes("eligible", "") == []

    def test_everything_works_on_uvloop_too(self, tmp_path: Path) -> None:
        async def work() -> None:
            one, two = server().store(tmp_path), server().store(tmp_path)
            await asyncio.gather(one.open(), two.open())
            waiting = asyncio.create_task(one.wait_for_change(10_000))
            await asyncio.sleep(0)
            await asyncio.gather(*(two.commit(creation(counter(number))) for number in range(20)))
            assert await waiting
            assert await version_of(one, counter(19).key) > 0
            await asyncio.gather(one.close(), two.close())

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work())


class TestRefusals:
    async def test_bytes_that_are_no_record_are_corruption_not_absence(self, open_store: OpenStore) -> None:
        store = await open_store()
        await store.commit(creation(counter()))
        for damaged in (b"1:\xc1", b"no version"):
            await store._client.write(0, ("SET", store._shards.home.record(counter().key), damaged))
            with pytest.raises(errors.StoreCorrupt):
                await store.load([counter().key])

    async def test_a_key_of_another_type_is_corruption_and_nothing_is_committed(
        self, open_store: OpenStore
    ) -> None:
        store = await open_store()
        await store._client.write(0, ("LPUSH", store._shards.home.record(counter(2).key), "theirs"))
        with pytest.raises(errors.StoreCorrupt, match="WRONGTYPE"):
            await store.commit(creation(counter(1), counter(2)))
        assert await version_of(store, counter(1).key) == 0

    async def test_a_frame_that_is_not_behind_the_last_one_is_refused_and_nothing_is_committed(
        self, open_store: OpenStore
    ) -> None:
        store = await open_store()
        await store.commit(commit(appends=[Frame(STREAM, 5, 1, b"")]))
        before = await dump(store)
        for place in ((5, 1), (5, 0), (4, 9)):
            frames = [Frame(STREAM, *place, b"")]
            with pytest.raises(errors.StoreCorrupt, match="FFORDER"):
                await store.commit(commit(changes=[Change(counter().key, 0, counter())], appends=frames))
        assert await dump(store) == before
        assert len(await store.read_frames(STREAM)) == 1


class TestFullMemory:
    async def test_new_work_is_refused_and_work_can_still_end(
        self, spare: Server, open_store: OpenStore
    ) -> None:
        store = await open_store(spare)
        await store.commit(creation(counter()))
        spare.configure("maxmemory", "1")
        with pytest.raises(errors.StoreFull, match="Raise maxmemory"):
            await store.commit(creation(payload()))
        assert await version_of(store, payload().key) == 0
        await increment(store, counter().key)
        result = ExecutionResult(execution_id=execution_id(), generation=0, data=b"result")
        await store.commit(creation(result))
        assert await record_of(store, result.key) == result

    def test_what_brings_something_new_that_stays_does_not_free_memory(self) -> None:
        change = Change(counter().key, 7, counter())
        assert frees_memory(commit(changes=[change, Change(f"{PastAttempt.KIND}/x", 0, None)]))
        assert not frees_memory(creation(payload()))
        assert not frees_memory(commit(changes=[change], appends=[Frame(STREAM, 1, 0, b"")]))


class TestReplicas:
    @pytest.mark.slow
    async def test_a_commit_is_acknowledged_when_a_replica_has_it_and_not_before(
        self, spare: Server, open_store: OpenStore
    ) -> None:
        with spare.replicated() as replica:
            store = await open_store(spare, replicas=1)
            impatient = await open_store(spare, replicas=1, timeout_ms=1_000)
            await store.commit(creation(counter(1)))
            assert replica.ask("EXISTS", store._shards.home.record(counter(1).key)) == b":1"
            replica.stop()
            with pytest.raises(errors.StoreTimeout, match="only 0 of 1 replicas"):
                await impatient.commit(creation(counter(2)))
            assert await version_of(store, counter(2).key) == 2


class TestHearing:
    async def test_a_commit_of_another_store_wakes_who_waits(self, open_store: OpenStore) -> None:
        one, two = await open_store(), await open_store()
        waiting = asyncio.create_task(one.wait_for_change(10_000))
        await asyncio.sleep(0)
        begun = time.monotonic()
        await two.commit(creation(counter()))
        assert await waiting
        assert time.monotonic() - begun < 5

    async def test_a_commit_of_ones_own_wakes_nobody(self, open_store: OpenStore) -> None:
        store = await open_store()
        await store.commit(creation(counter()))
        assert not await store.wait_for_change(20)

    async def test_a_commit_that_was_not_heard_of_is_noticed_when_the_time_is_over(
        self, open_store: OpenStore
    ) -> None:
        one, two = await open_store(), await open_store()
        await two.commit(creation(counter()))
        assert one._changes is not None
        one._changes._heard.clear()  # as if the message were lost
        assert await one.wait_for_change(1)

    async def test_a_listener_that_was_cut_off_listens_again(self, open_store: OpenStore) -> None:
        one, two = await open_store(), await open_store()
        server().ask("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(60):
            assert await one.wait_for_change(5_000)  # it may have missed something
            waiting = asyncio.create_task(one.wait_for_change(10_000))
            await asyncio.sleep(0.05)
            await two.commit(creation(counter()))
            assert await waiting

    async def test_a_listener_that_hears_nothing_any_more_is_replaced(self, open_store: OpenStore) -> None:
        """Such as one whose connection the network has swallowed."""
        one, two = await open_store(), await open_store()
        assert one._changes is not None
        deaf = one._changes._listener
        assert deaf is not None
        await deaf.send([("UNSUBSCRIBE", one.settings.channel)])
        for number in range(DEAF_AFTER):
            assert not deaf.closed
            await two.commit(creation(counter(number)))
            assert await one.wait_for_change(1)
        assert deaf.closed
        assert await one.wait_for_change(1)  # it may have missed something
        waiting = asyncio.create_task(one.wait_for_change(90_000))
        await asyncio.sleep(0.02)
        begun = time.monotonic()
        await two.commit(creation(counter(99)))
        assert await waiting
        assert time.monotonic() - begun < 10

"""What a failover may lose and what it must not do: the numbers that a store counts with never repeat.

The replica is held back, so what was acknowledged last is certainly lost.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from flowfabric import errors
from flowfabric.stores.base import Change, Conflict
from flowfabric.stores.valkey import ValkeyStore
from flowfabric.stores.valkey.keys import Keys
from tests.stores.builders import commit, counter, creation, event, version_of
from tests.valkey import Cluster

SHARDS = 4
RECOVERY_S = 60
OpenStore = Callable[..., Awaitable[ValkeyStore]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    made = Cluster(replicas=1)
    yield made
    made.remove()


@pytest.fixture
def replicated(shared: Cluster) -> Iterator[Cluster]:
    """A cluster in which every primary has a replica, whole again after each test."""
    yield shared
    shared.heal()


@pytest.fixture
async def open_store(tmp_path: Path, replicated: Cluster) -> AsyncIterator[OpenStore]:
    """Opens stores below one prefix, each with connections of its own, as processes have."""
    async with AsyncExitStack() as stack:

        async def open_one(**options: Any) -> ValkeyStore:
            made = replicated.store(tmp_path, **{"shards": SHARDS} | options)
            await made.open()
            stack.push_async_callback(made.close)
            return made

        yield open_one


def tagged(shard: int) -> str:
    """The tag of a partition in a shard."""
    return f"{{fp:{shard}}}"


def away_from_home(cluster: Cluster, store: ValkeyStore) -> Keys:
    """A shard whose server is not that of the log."""
    home = cluster.owner_of(store._shards.home.state)
    return next(keys for keys in store._shards.all if cluster.owner_of(keys.state) is not home)


async def until_reachable(call: Callable[[], Awaitable[Any]]) -> Any:
    """Ask again for as long as the store cannot be reached."""
    async with asyncio.timeout(RECOVERY_S):
        while True:
            try:
                return await call()
            except (errors.StoreUnreachable, errors.StoreTimeout):
                await asyncio.sleep(0.02)


async def write(store: ValkeyStore, keys: Keys, number: int) -> None:
    """A commit with an event, in one shard."""
    record = counter(number, tag=tagged(keys.shard))
    await store.commit(commit(changes=[Change(record.key, 0, record)], events=[event(number)]))


async def logged_by(store: ValkeyStore) -> list[int]:
    """The numbers with which the events in the log were written."""
    return [int(one.event.execution_id[-4:], 16) for one in await store.read_events(0)]


async def test_events_after_a_failover_are_not_taken_for_those_that_it_lost(
    replicated: Cluster, open_store: OpenStore
) -> None:
    store = await open_store()
    keys = away_from_home(replicated, store)
    await write(store, keys, 1)
    assert await logged_by(store) == [1]
    with replicated.held_back(replicated.owner_of(keys.state), keys.state + ":filler"):
        for number in range(2, 6):
            await write(store, keys, number)
        assert await logged_by(store) == [1, 2, 3, 4, 5]
    # The outbox counts from one event again, and the log has five of them.
    await until_reachable(lambda: store.load([counter(tag=tagged(keys.shard)).key]))
    for number in range(12, 15):
        await write(store, keys, number)
    assert await logged_by(store) == [1, 2, 3, 4, 5, 12, 13, 14]


async def test_a_reader_ahead_of_a_log_that_was_shortened_gets_what_comes_then(
    replicated: Cluster, open_store: OpenStore
) -> None:
    store = await open_store()
    home = store._shards.home
    await write(store, home, 1)
    kept = await store.last_event()
    with replicated.held_back(replicated.owner_of(home.state), home.state + ":filler"):
        for number in range(2, 6):
            await write(store, home, number)
        place = await store.last_event()
        assert place == kept + 4
    assert await until_reachable(store.last_event) == kept
    await write(store, home, 12)
    assert [one.event for one in await store.read_events(place)] == [event(12)]


async def test_a_version_that_was_lost_never_comes_to_stand_for_something_else(
    replicated: Cluster, open_store: OpenStore
) -> None:
    store = await open_store()
    keys = store._shards.all[1]
    record = counter(1, tag=tagged(1))
    await store.commit(creation(record))
    kept = await version_of(store, record.key)
    with replicated.held_back(replicated.owner_of(keys.state), keys.state + ":filler"):
        record.frame_count = 1
        await store.commit(commit(changes=[Change(record.key, kept, record)]))
        lost = await version_of(store, record.key)
    assert await until_reachable(lambda: version_of(store, record.key)) == kept
    record.frame_count = 2
    await store.commit(commit(changes=[Change(record.key, kept, record)]))
    record.frame_count = 3
    with pytest.raises(Conflict):
        await store.commit(commit(changes=[Change(record.key, lost, record)]))


async def test_nothing_repeats_even_if_everything_was_lost(
    replicated: Cluster, open_store: OpenStore
) -> None:
    store = await open_store()
    keys = away_from_home(replicated, store)
    with replicated.held_back(replicated.owner_of(keys.state), keys.state + ":filler"):
        for number in range(1, 4):
            await write(store, keys, number)
        assert await logged_by(store) == [1, 2, 3]
    await until_reachable(lambda: store.load([counter(tag=tagged(keys.shard)).key]))
    await write(store, keys, 12)
    assert await logged_by(store) == [1, 2, 3, 12]


async def test_an_event_stays_in_its_outbox_until_the_log_is_as_safe(
    replicated: Cluster, open_store: OpenStore
) -> None:
    store = await open_store(replicas=1, timeout_ms=2_000)
    keys, home = away_from_home(replicated, store), store._shards.home
    replica = replicated.replica_of(replicated.owner_of(home.state))
    replica.pause()
    try:
        await write(store, keys, 1)
        with pytest.raises(errors.StoreTimeout, match="only 0 of 1 replicas"):
            await store.read_events(0)
        assert await store._client.read(keys.slot, ("XLEN", keys.outbox)) == [1]
    finally:
        replica.resume()
    assert await until_reachable(lambda: logged_by(store)) == [1]
    assert await store._client.read(keys.slot, ("XLEN", keys.outbox)) == [0]

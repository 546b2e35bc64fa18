"""A cluster whose primaries are killed, replaced and overtaken while work goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowfabric.stores.valkey import ValkeyStore
from flowfabric.stores.valkey.library import library
from tests.failover.rounds import (
    SHARDS,
    Counts,
    held_back,
    in_background,
    kill_and_return,
    move_slot,
    place_for,
    primary_of,
    under_load,
)
from tests.valkey import Cluster, Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    made = Cluster(replicas=1)
    yield made
    made.remove()


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """A cluster in which every primary has a replica, whole again after each test."""
    yield shared
    shared.heal()


def store_on(cluster: Cluster, place: Path, **options: Any) -> ValkeyStore:
    return cluster.store(place, **{"shards": SHARDS, "timeout_ms": 5_000} | options)


def nothing_was_lost(counts: Counts) -> None:
    """Everything that was acknowledged is there, and nobody was told otherwise in between."""
    assert counts.completed > 0
    assert (counts.lost_creations, counts.lost_completions) == (0, 0)
    assert dict(counts.refused) == {}
    assert counts.violations == []


async def test_an_orderly_failover_under_load_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    switch = in_background(lambda: cluster.switch(primary_of(cluster)))
    counts = await under_load(store_on(cluster, tmp_path), switch)
    nothing_was_lost(counts)


async def test_what_a_replica_confirmed_survives_the_death_of_a_primary_under_load(
    cluster: Cluster, tmp_path: Path
) -> None:
    # Without a replica, the new primary's commits would wait for one.
    counts = await under_load(store_on(cluster, tmp_path, replicas=1), kill_and_return(cluster))
    nothing_was_lost(counts)
    assert counts.again


@pytest.mark.parametrize("apart", [False, True], ids=["with the log", "but for the log"])
async def test_a_lease_that_a_failover_lost_is_refused_though_its_epoch_was_granted_again(
    cluster: Cluster, tmp_path: Path, apart: bool
) -> None:
    place = place_for(cluster, str(tmp_path), apart=apart)
    stale = await held_back(cluster.store(place, shards=SHARDS, timeout_ms=5_000), cluster, 20)
    assert stale.epochs_repeated == 20
    assert sum(stale.refused.values()) == stale.sent == 7 * 20
    assert stale.accepted_twice == 0
    assert stale.violations == []


async def test_functions_that_the_new_primary_lacks_are_loaded_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    """As after a failover to a server that never got the library."""

    def flush() -> None:
        for one in cluster.servers:
            if one.is_primary:
                assert one.ask("FUNCTION", "FLUSH") == b"+OK"

    counts = await under_load(store_on(cluster, tmp_path), in_background(flush))
    nothing_was_lost(counts)
    assert counts.reloads > 0


async def test_a_newer_library_is_loaded_under_load_beside_the_older_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    newer = library().source.replace(library().digest, "0123456789ab")

    def upgrade() -> None:
        for one in cluster.servers:
            if one.is_primary:
                assert one.ask("FUNCTION", "LOAD", newer) == b"$23"

    counts = await under_load(store_on(cluster, tmp_path), in_background(upgrade))
    nothing_was_lost(counts)
    assert counts.reloads == 0
    assert dict(counts.again) == {}


async def test_slots_that_move_under_load_are_followed(cluster: Cluster, tmp_path: Path) -> None:
    store = store_on(cluster, tmp_path)
    counts = await under_load(store, in_background(lambda: move_slot(cluster, store)))
    nothing_was_lost(counts)


def test_the_servers_of_a_cluster_are_told_apart(cluster: Cluster) -> None:
    primaries = [one for one in cluster.servers if one.is_primary]
    replicas: list[Server] = [cluster.replica_of(one) for one in primaries]
    assert len({one.socket for one in (*primaries, *replicas)}) == 6

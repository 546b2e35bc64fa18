"""Several engines, and several processes, do the same thing at once: exactly one of them wins."""

import pytest

from flowfabric.stores.memory import MemoryStore
from tests import valkey
from tests.postgres import schema_of, server
from tests.races.rounds import CONTESTANTS, KINDS, race, race_in_one_process

ROUNDS = 34


class Shared(MemoryStore):
    """One of several engines' view of the same dictionaries."""

    def __init__(self, whole):
        self.__dict__ = whole.__dict__


@pytest.mark.parametrize("kind", KINDS)
async def test_one_engine_wins_each_round_on_one_store_in_memory(kind):
    whole = MemoryStore()
    winners = await race_in_one_process([Shared(whole) for _ in range(CONTESTANTS)], kind, ROUNDS)
    assert winners == [1] * ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_one_process_wins_each_round_on_sqlite(tmp_path, kind):
    url = f"sqlite:///{tmp_path}/work.db?synchronous=NORMAL"
    assert await race(url, kind, ROUNDS) == [1] * ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_one_process_wins_each_round_on_postgres(tmp_path, kind):
    place = f"{server().url()}#{schema_of(tmp_path)}"
    assert await race(place, kind, ROUNDS) == [1] * ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_one_process_wins_each_round_on_valkey(tmp_path, kind):
    url = valkey.server().url(prefix=valkey.prefix_of(tmp_path))
    assert await race(url, kind, ROUNDS) == [1] * ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_one_process_wins_each_round_on_a_valkey_cluster(tmp_path, kind):
    url = valkey.cluster().url(prefix=valkey.prefix_of(tmp_path))
    assert await race(url, kind, ROUNDS) == [1] * ROUNDS

"""Several engines, and several processes, do the same thing at once: as many of them win as must."""

import pytest

from flowfabric.stores.memory import MemoryStore
from tests import valkey
from tests.postgres import schema_of, server
from tests.races.kinds import CONTESTANTS, KINDS
from tests.races.rounds import expected_winners, race, race_in_one_process

ROUNDS = 18
"""Of each kind: some two hundred on each store."""


class Shared(MemoryStore):
    """One of several engines' view of the same dictionaries."""

    def __init__(self, whole):
        self.__dict__ = whole.__dict__


@pytest.mark.parametrize("kind", KINDS)
async def test_as_many_engines_as_must_win_each_round_on_one_store_in_memory(kind):
    whole = MemoryStore()
    stores = [Shared(whole) for _ in range(CONTESTANTS)]
    assert await race_in_one_process(stores, [kind], ROUNDS) == expected_winners([kind], ROUNDS)


@pytest.mark.slow
async def test_as_many_processes_as_must_win_each_round_on_sqlite(tmp_path):
    url = f"sqlite:///{tmp_path}/work.db?synchronous=NORMAL"
    assert await race(url, KINDS, ROUNDS) == expected_winners(KINDS, ROUNDS)


@pytest.mark.slow
async def test_as_many_processes_as_must_win_each_round_on_postgres(tmp_path):
    place = f"{server().url()}#{schema_of(tmp_path)}"
    assert await race(place, KINDS, ROUNDS) == expected_winners(KINDS, ROUNDS)


@pytest.mark.slow
async def test_as_many_processes_as_must_win_each_round_on_valkey(tmp_path):
    url = valkey.server().url(prefix=valkey.prefix_of(tmp_path))
    assert await race(url, KINDS, ROUNDS) == expected_winners(KINDS, ROUNDS)


@pytest.mark.slow
async def test_as_many_processes_as_must_win_each_round_on_a_valkey_cluster(tmp_path):
    url = valkey.cluster().url(prefix=valkey.prefix_of(tmp_path))
    assert await race(url, KINDS, ROUNDS) == expected_winners(KINDS, ROUNDS)

"""Names that are meant to break out of keys: kept as they are, or refused, and always in one slot."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from valkey.crc import key_slot

from flowfabric.core.events import Family
from flowfabric.errors import InvalidInput
from flowfabric.stores.valkey.keys import Keys
from flowfabric.stores.valkey.native.signatures import SIGNATURES
from tests.stores.pair import Pair
from tests.stores.test_valkey_native import completing, created, started
from tests.valkey import server

NAMES = st.text(
    st.sampled_from(["{", "}", ":", "\r", "\n", "\x00", "/", "*", "é", "\u2028", "a"]), max_size=12
)
KEPT = ["{}", "{a}", "}{", "{fp:9}", "a:b", "*", "\u2028", "é" * 100, "\U0001f600", "x" * 256]
REFUSED = ["a\r\nDEL x", "\x00", "a\x1f", "x" * 257, ""]


@given(NAMES, st.integers(0, 300))
def test_all_keys_of_a_shard_share_one_slot_whatever_they_are_named_after(name: str, shard: int) -> None:
    keys = Keys("ff", shard)
    made = [
        keys.state,
        keys.outbox,
        keys.record(f"execution/{name}"),
        keys.listing(name),
        keys.index(name),
        keys.log(Family.EXECUTION),
        keys.told(name),
        keys.told_in(name, Family.TAG),
        keys.frames(name),
        *(key for signature in SIGNATURES.values() for key in keys.named(signature, name)),
    ]
    assert {key_slot(key.encode()) for key in made} == {keys.slot}


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """A store whose server decides, and one whose server does not."""
    async with Pair(server(), tmp_path, shards=3) as made:
        yield made


@pytest.mark.parametrize("name", KEPT, ids=ascii)
async def test_a_name_of_odd_characters_is_kept_as_it_is(pair: Pair, name: str) -> None:
    claim = await started(pair, execution_kind=name, creator_identity=name, tags={"crew.team": name})
    await pair.ask(completing(claim))
    await pair.compare()


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
@pytest.mark.parametrize("field", ["namespace", "lane_id", "execution_kind"])
async def test_a_name_with_control_characters_is_refused(pair: Pair, field: str, name: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        await created(pair, **{field: name})
    await pair.compare()

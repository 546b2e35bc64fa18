"""How keys are spelled in tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric.core.records import RECORD_TYPES
from flowfabric.stores.base import key_order
from flowfabric.stores.keys import (
    prefix_bounds,
    restored_key,
    stored_key,
    stored_prefix_bounds,
    stored_suffix,
)

NAMES = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), max_size=8)
IDENTITIES = NAMES | st.builds("{{fp:{}}}:{}".format, st.integers(0, 300), NAMES) | NAMES.map("{{{}".format)
KEYS = st.builds("{}/{}".format, st.sampled_from(sorted(RECORD_TYPES)), IDENTITIES)


def test_tag_and_kind_come_last() -> None:
    assert stored_key("signal/{fp:7}:0190/3") == "0190/3\x1f{fp:7}:\x1fsignal"
    assert stored_key("reservation/{fp:7}/tenant/key") == "{fp:7}/tenant/key\x1f\x1freservation"


@given(KEYS)
def test_a_stored_key_can_be_read_back(key: str) -> None:
    assert restored_key(stored_key(key)) == key


@given(KEYS, KEYS)
def test_stored_keys_sort_like_key_order(one: str, two: str) -> None:
    assert (stored_key(one).encode() < stored_key(two).encode()) == (key_order(one) < key_order(two))


@given(KEYS, st.integers(0, 40))
def test_every_key_lies_within_the_bounds_of_its_prefixes(key: str, length: int) -> None:
    low, high = stored_prefix_bounds(key[:length])
    assert low <= stored_key(key)
    assert high is None or stored_key(key) < high
    assert stored_key(key).endswith(stored_suffix(key[:length]))


@given(NAMES, NAMES)
def test_prefix_bounds_hold_exactly_what_begins_with_the_prefix(prefix: str, text: str) -> None:
    low, high = prefix_bounds(prefix)
    within = low <= text and (high is None or text < high)
    assert within == text.startswith(prefix)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [("", None), ("a", "b"), ("a\U0010ffff", "b"), ("\U0010ffff", None), ("\ud7ff", "\ue000")],
)
def test_the_end_of_a_prefix(prefix: str, end: str | None) -> None:
    assert prefix_bounds(prefix) == (prefix, end)

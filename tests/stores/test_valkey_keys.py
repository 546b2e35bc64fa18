"""The order of an index is that of the bytes it is stored as."""

from hypothesis import given
from hypothesis import strategies as st

from flowfabric.core.indexes import SEPARATOR
from flowfabric.stores.valkey.keys import row_member, row_of, scope_range

SORTS = st.integers(min_value=-(2**63), max_value=2**63 - 1)
MEMBERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
SCOPES = st.text(st.sampled_from([SEPARATOR, "a", "b", "\u00e9"]), max_size=3)
ROWS = st.tuples(SCOPES, SORTS, MEMBERS)


@given(ROWS)
def test_a_row_comes_back_as_it_was(row: tuple[str, int, str]) -> None:
    assert row_of(row_member(*row)) == row[1:]


@given(ROWS, ROWS)
def test_rows_compare_like_their_bytes(one: tuple[str, int, str], two: tuple[str, int, str]) -> None:
    assert (one < two) == (row_member(*one) < row_member(*two))


@given(SCOPES, ROWS)
def test_a_scopes_range_has_its_rows_and_no_others(scope: str, row: tuple[str, int, str]) -> None:
    found = scope_range(scope)
    within = found.start[1:] <= row_member(*row) < found.end[1:]
    assert within == (row[0] == scope)

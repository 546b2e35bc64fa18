"""The order of an index is that of the bytes it is stored as."""

from hypothesis import given
from hypothesis import strategies as st

from flowfabric.stores.valkey.keys import row_member, row_of

SORTS = st.integers(min_value=-(2**63), max_value=2**63 - 1)
MEMBERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
ROWS = st.tuples(SORTS, MEMBERS)


@given(ROWS)
def test_a_row_comes_back_as_it_was(row: tuple[int, str]) -> None:
    assert row_of(row_member(*row)) == row


@given(ROWS, ROWS)
def test_rows_compare_like_their_bytes(one: tuple[int, str], two: tuple[int, str]) -> None:
    assert (one < two) == (row_member(*one) < row_member(*two))

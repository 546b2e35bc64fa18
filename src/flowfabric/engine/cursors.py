"""Opaque cursors of lists: the sort value and the member of the last row that was returned."""

from __future__ import annotations

from typing import Final

from flowfabric.errors import InvalidInput

_DIGITS_MAX: Final = 18
"""Sort values are 64-bit integers."""


def format_cursor(row: tuple[int, str]) -> str:
    """The cursor that continues behind this row.

    >>> format_cursor((17, "a"))
    '17~a'
    """
    return f"{row[0]}~{row[1]}"


def parse_cursor(cursor: str | None) -> tuple[int, str] | None:
    """The row behind which to continue; None and the empty cursor start at the beginning.

    Raises:
        InvalidInput: the cursor is not one that a list has returned.
    """
    if not cursor:
        return None
    sort, separator, member = cursor.partition("~")
    digits = sort.removeprefix("-")
    if not (separator and digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_MAX):
        raise InvalidInput(field="cursor", value=repr(cursor[:64]), rule="a cursor that a list has returned")
    return int(sort), member

"""Opaque cursors.

Those of lists hold the sort value and the member of the last row that was returned, those of feeds
the kind of store and a place in its log.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

from flowfabric.contracts.handles import TAG_BYTES
from flowfabric.errors import InvalidEventCursor, InvalidInput

if TYPE_CHECKING:
    from flowfabric.contracts.handles import BackendTag

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


_EVENT: Final = struct.Struct(">BQ")
_CHECKSUM: Final = struct.Struct(">I")


def format_event_cursor(backend: BackendTag, place: int) -> str:
    """The cursor behind a place in the log: its store's byte, the place and a checksum, in hex.

    >>> from flowfabric.contracts.handles import BackendTag
    >>> format_event_cursor(BackendTag.POSTGRES, 258)
    '0200000000000001020ef3e8b4'
    """
    packed = _EVENT.pack(TAG_BYTES[backend], place)
    return (packed + _CHECKSUM.pack(zlib.crc32(packed))).hex()


def parse_event_cursor(cursor: str, backend: BackendTag) -> int:
    """The place that a cursor names.

    Raises:
        InvalidEventCursor: it is damaged, or comes from another kind of store.
    """
    try:
        data = bytes.fromhex(cursor)
        tag, place = _EVENT.unpack(data[: _EVENT.size])
        (checksum,) = _CHECKSUM.unpack(data[_EVENT.size :])
    except (ValueError, struct.error) as error:
        raise _bad_cursor(cursor, "a cursor that a feed has returned") from error
    if checksum != zlib.crc32(data[: _EVENT.size]):
        raise _bad_cursor(cursor, "a cursor that a feed has returned, unchanged")
    if tag != TAG_BYTES[backend]:
        raise _bad_cursor(cursor, f"a cursor of this kind of store, {backend}")
    found: int = place
    return found


def _bad_cursor(cursor: str, rule: str) -> InvalidEventCursor:
    return InvalidEventCursor(field="cursor", value=repr(cursor[:64]), rule=rule)

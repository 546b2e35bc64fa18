"""How records are written on the server: ``<version>:`` and then the record.

Most records are what ``encode_record`` makes of them, and no function looks into them. An execution has
its parts in their order, see ``core.layout``, and their lengths in front of them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from flowfabric.core.layout import MAP_16, Parts, take_apart
from flowfabric.core.records import Execution, decode_record, encode_record

if TYPE_CHECKING:
    from flowfabric.core.records import Key, Record

FRAME: Final = struct.Struct(f">B{len(Parts._fields)}I")
"""How many pairs the rest has, and the lengths of all parts."""
MAP: Final = struct.Struct(">BH")
_PREFIX: Final = f"{Execution.KIND}/"


def pack_record(record: Record) -> bytes:
    """A record as it is written, without its version."""
    if not isinstance(record, Execution):
        return encode_record(record)
    parts, count, rest_count = take_apart(record)
    return b"".join((FRAME.pack(rest_count, *map(len, parts)), MAP.pack(MAP_16, count), *parts))


def unpack_record(key: Key, data: bytes) -> Record:
    """The inverse of ``pack_record``.

    Raises:
        msgspec.MsgspecError, ValueError: the bytes are not a record of the key's kind.
    """
    return decode_record(key, data[FRAME.size :] if key.startswith(_PREFIX) else data)

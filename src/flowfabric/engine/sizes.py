"""How many bytes of payload a command or a record carries."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec


def payload_bytes(struct: msgspec.Struct) -> int:
    """The length of all its fields of bytes together."""
    size = 0
    for field in _payload_fields(type(struct)):
        size += len(getattr(struct, field) or b"")
    return size


@cache
def _payload_fields(struct_type: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields that hold bytes."""
    found: Any = msgspec.inspect.type_info(struct_type)
    return tuple(field.name for field in found.fields if _holds_bytes(field.type))


def _holds_bytes(found: msgspec.inspect.Type) -> bool:
    if isinstance(found, msgspec.inspect.UnionType):
        return any(_holds_bytes(one) for one in found.types)
    return isinstance(found, msgspec.inspect.BytesType)

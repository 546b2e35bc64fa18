"""The other form of commands and outcomes on the wire: msgpack, or JSON with bytes in base64.

It is what ``msgspec`` makes of the types by themselves, so it needs no table and loses nothing;
variants carry their tag in the field ``type``. The form of ``wire.py`` serves the routes that other
clients know; this one serves every operation.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, Protocol

import msgspec

from flowfabric.errors import InvalidInput

MSGPACK: Final = "application/msgpack"
JSON: Final = "application/json"


class _Decoder(Protocol):
    def decode(self, data: bytes, /) -> Any:
        """A value of the decoder's type."""


def pack(value: Any, form: str) -> bytes:
    """Write a command, an outcome or a message made of them."""
    return _ENCODERS[form](value)


def unpack(data: bytes | msgspec.Raw, kind: Any, form: str) -> Any:
    """Read a value of type ``kind``.

    Raises:
        InvalidInput: the bytes are no such value; the field is named.
    """
    try:
        return _decoder(kind, form).decode(bytes(data))
    except msgspec.ValidationError as error:
        rule, _, path = str(error).partition(" - at `")
        field = path.rstrip("`").removeprefix("$").lstrip(".") or "body"
        raise InvalidInput(field=field, rule=rule) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidInput(field="body", rule=f"valid {form} ({error})") from error


_ENCODERS: Final = {MSGPACK: msgspec.msgpack.encode, JSON: msgspec.json.encode}


@cache
def _decoder(kind: Any, form: str) -> _Decoder:
    return msgspec.msgpack.Decoder(kind) if form == MSGPACK else msgspec.json.Decoder(kind)

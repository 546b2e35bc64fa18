"""Between Python values and the opaque bytes that the engine keeps.

Values travel as JSON. What is ``bytes`` stays as it is. The encoding is kept beside the bytes,
so a reader knows which of the two it holds. pydantic models are understood when pydantic is
installed; everything else is msgspec's: structs, dataclasses, typed dicts, enums, dates.
"""

from __future__ import annotations

import inspect
import typing
from typing import Any, Final

import msgspec

JSON: Final = "json"
BYTES: Final = "bytes"


class Undecodable(ValueError):
    """A payload is not what the types of its reader say it is."""


class Unencodable(TypeError):
    """A value cannot be stored: it has no JSON form, or it is too large."""


def encode_value(value: Any) -> tuple[bytes, str]:
    """The bytes of a value, and the name of their encoding.

    Raises:
        Unencodable: the value has no JSON form.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), BYTES
    try:
        if _is_pydantic(type(value)):
            return value.model_dump_json().encode(), JSON
        return msgspec.json.encode(value, enc_hook=_encode_inner), JSON
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise Unencodable(f"a {_name(type(value))} cannot be stored: {error}") from error


def require_size(data: bytes, bytes_max: int, what: str) -> None:
    """Refuse bytes that the engine would not keep.

    Raises:
        Unencodable: there are too many.
    """
    if len(data) > bytes_max:
        raise Unencodable(
            f"{what} has {len(data)} bytes and the limit is {bytes_max}; "
            "store the value elsewhere and return a reference to it"
        )


def decode_value(data: bytes, encoding: str | None, expected: Any = Any) -> Any:
    """The value that some bytes stand for.

    Args:
        data: the bytes.
        encoding: what ``encode_value`` said; None is taken for JSON, or for bytes where the
            expected type is ``bytes``.
        expected: the type that the value must have.

    Raises:
        Undecodable: the bytes are not such a value.
    """
    if encoding == BYTES or (encoding is None and expected is bytes):
        if not _takes_bytes(expected):
            raise Undecodable(f"expected {_name(expected)}, got raw bytes")
        return data
    if encoding not in (None, JSON):
        raise Undecodable(f"unknown payload encoding {encoding!r}; known: json, bytes")
    try:
        if _is_pydantic(expected):
            return expected.model_validate_json(data)
        return msgspec.json.decode(data, type=expected, dec_hook=_decode_inner)
    except (TypeError, ValueError, RecursionError) as error:
        raise Undecodable(f"not a valid {_name(expected)}: {_why(error)}") from None


def _takes_bytes(expected: Any) -> bool:
    return expected in (bytes, object, Any) or bytes in typing.get_args(expected)


def _is_pydantic(kind: Any) -> bool:
    return inspect.isclass(kind) and hasattr(kind, "model_validate_json")


def _encode_inner(value: Any) -> Any:
    if _is_pydantic(type(value)):
        return value.model_dump(mode="json")
    raise TypeError(
        f"{_name(type(value))} has no JSON form; use a dataclass, a msgspec struct or plain values"
    )


def _decode_inner(kind: Any, value: Any) -> Any:
    if not _is_pydantic(kind):
        raise TypeError(f"{_name(kind)} cannot be read from JSON")
    try:
        return kind.model_validate(value)
    except ValueError as error:
        raise ValueError(_why(error)) from None


def _why(error: Exception) -> str:
    """What is wrong, without the values that were wrong: they may be secret."""
    details = getattr(error, "errors", None)
    if not callable(details):
        return str(error)
    found = details(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'value'}: {one['msg']}" for one in found)


def _name(kind: Any) -> str:
    return str(kind) if typing.get_args(kind) else getattr(kind, "__name__", str(kind))

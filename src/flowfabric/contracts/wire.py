"""The public JSON form of the contracts, made here and nowhere else.

- An outcome is externally tagged: ``{"Created": {...}}``; one without fields is a bare string.
- Bytes are arrays of numbers. Sets are sorted arrays. Enumerations are their words.
- An optional field prints as ``null``, except where the contract leaves it out.
- Reading ignores unknown fields and brings ids into their canonical form. Only inside a policy
  is an unknown field refused, because a policy is honoured or refused, never ignored.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints, overload

import msgspec

from flowfabric.contracts import ids
from flowfabric.contracts.budgets import BudgetStatus
from flowfabric.contracts.conditions import ByName, Composite, Count
from flowfabric.contracts.cursors import StreamCursor
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.contracts.leases import (
    IssueReclaimGrantResult,
    LeaseWasRevoked,
    ReclaimGranted,
    WorkGranted,
)
from flowfabric.contracts.policy import (
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    RetryPolicy,
    StreamPolicy,
    SuspensionPolicy,
    TimeoutPolicy,
    policy_from_builtins,
)
from flowfabric.contracts.reads import ExecutionInfo, ExecutionSummary
from flowfabric.contracts.streams import FrameAppended, StreamFrame, StreamFrames
from flowfabric.contracts.suspensions import PendingWaitpointInfo, ResumePolicy, SuspendExecutionArgs
from flowfabric.errors import InvalidInput

T = TypeVar("T")
_Struct = type[msgspec.Struct]

# Structs that are nothing but their one field on the wire.
BARE: dict[_Struct, str] = {WaitpointToken: "value", StreamCursor: "value"}
# Variants whose content is their one field: {"ByName": "approve"}.
NEWTYPES: dict[_Struct, str] = {
    ByName: "name",
    Composite: "body",
    WorkGranted: "grant",
    ReclaimGranted: "grant",
}
# The default tag field of msgspec stands for external tags, except in these.
_INTERNALLY_TAGGED: frozenset[_Struct] = frozenset({FixedBackoff, ExponentialBackoff})
_EXTERNAL = "type"

_ALL = ("*",)
# Optional fields that are left out when unset; all others print as null.
OMITTED: dict[_Struct, tuple[str, ...]] = {
    ExecutionPolicy: _ALL,
    RetryPolicy: _ALL,
    TimeoutPolicy: _ALL,
    SuspensionPolicy: _ALL,
    StreamPolicy: _ALL,
    ResumePolicy: ("resume_delay_ms",),
    Count: ("matcher",),
    SuspendExecutionArgs: ("timeout_at", "continuation_metadata_pointer", "idempotency_key"),
    PendingWaitpointInfo: ("activated_at", "expires_at"),
    ExecutionInfo: ("started_at", "completed_at"),
    StreamFrames: ("closed_at", "closed_reason"),
    FrameAppended: ("summary_version",),
}
# Numbers that the contract writes as strings of digits.
DIGITS: dict[_Struct, tuple[str, ...]] = {
    BudgetStatus: ("last_breach_at", "next_reset_at", "created_at", "closed_at"),
    ExecutionInfo: ("created_at", "started_at", "completed_at"),
    ExecutionSummary: ("created_at",),
    LeaseWasRevoked: ("lease_epoch",),
}
_PAYLOAD, _PAYLOAD_BASE64 = "payload", "payload_base64"


@overload
def from_json(data: bytes | str, kind: type[T]) -> T: ...
@overload
def from_json(data: bytes | str, kind: Any) -> Any: ...
def from_json(data: bytes | str, kind: Any) -> Any:
    """Read a command, a result or a read model of type ``kind`` from JSON.

    Raises:
        InvalidInput: the text is not JSON, or not of this type; the field is named.
    """
    try:
        return from_wire(msgspec.json.decode(data), kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidInput(field="body", rule=f"valid JSON ({error})") from error


def to_json(value: Any) -> bytes:
    """Write a command, a result or a read model as JSON."""
    return msgspec.json.encode(to_wire(value))


def from_wire(raw: Any, kind: Any) -> Any:
    """Make a value of type ``kind`` from what a JSON decoder returns.

    Raises:
        InvalidInput: the value is not of this type; the field is named.
    """
    try:
        return msgspec.convert(_native(raw, kind), kind)
    except msgspec.ValidationError as error:
        rule, _, path = str(error).partition(" - at `")
        field = path.rstrip("`").removeprefix("$").lstrip(".") or "body"
        raise InvalidInput(field=field, rule=rule) from error


def to_wire(value: Any) -> Any:
    """Turn a value into what a JSON encoder takes."""
    if isinstance(value, msgspec.Struct):
        return _struct_to_wire(value)
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, (tuple, list)):
        return [to_wire(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {key: to_wire(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value


def reclaim_grant_to_wire(result: IssueReclaimGrantResult) -> dict[str, Any]:
    """Write the answer of the reclaim route, the only one that is tagged by ``status``."""
    if isinstance(result, ReclaimGranted):
        return {"status": "granted", **to_wire(result.grant)}
    [(tag, fields)] = to_wire(result).items()
    return {"status": _snake_case(tag), **fields}


# Writing


def _snake_case(tag: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in tag).lstrip("_")


def _struct_to_wire(value: msgspec.Struct) -> Any:
    kind = type(value)
    if kind in BARE:
        return getattr(value, BARE[kind])
    if kind in NEWTYPES:
        return {_tag(kind): to_wire(getattr(value, NEWTYPES[kind]))}
    fields = _frame_fields(value) if isinstance(value, StreamFrame) else _fields(value)
    if kind.__struct_config__.tag is None:
        return fields
    if not is_external(kind):
        return {kind.__struct_config__.tag_field: _tag(kind), **fields}
    return {_tag(kind): fields} if kind.__struct_fields__ else _tag(kind)


def _fields(value: msgspec.Struct) -> dict[str, Any]:
    kind = type(value)
    omitted, digits = OMITTED.get(kind, ()), DIGITS.get(kind, ())
    fields = {}
    for name in kind.__struct_fields__:
        item = getattr(value, name)
        if item is None and (omitted is _ALL or name in omitted):
            continue
        fields[name] = str(item) if name in digits and item is not None else to_wire(item)
    return fields


def _frame_fields(frame: StreamFrame) -> dict[str, Any]:
    try:
        payload = {_PAYLOAD: frame.payload.decode()}
    except UnicodeDecodeError:
        payload = {_PAYLOAD_BASE64: base64.b64encode(frame.payload).decode()}
    return {"id": frame.id, "fields": dict(sorted({**frame.fields, **payload}.items()))}


def _tag(kind: _Struct) -> str:
    return str(kind.__struct_config__.tag)


def is_external(kind: _Struct) -> bool:
    """Whether a variant is written as its name around its fields."""
    return kind.__struct_config__.tag_field == _EXTERNAL and kind not in _INTERNALLY_TAGGED


# Reading: each type gets a function from its JSON form to the form that msgspec converts

_Reader = Callable[[Any], Any]

_CANONICAL: dict[Any, Callable[[str], str]] = {
    ids.ExecutionId: ids.parse_execution_id,
    ids.FlowId: ids.parse_uuid,
    ids.AttemptId: ids.parse_uuid,
    ids.LeaseId: ids.parse_uuid,
    ids.SignalId: ids.parse_uuid,
    ids.WaitpointId: ids.parse_uuid,
    ids.SuspensionId: ids.parse_uuid,
    ids.EdgeId: ids.parse_uuid,
    ids.BudgetId: ids.parse_uuid,
    ids.QuotaPolicyId: ids.parse_uuid,
}


def _native(raw: Any, kind: Any) -> Any:
    return _reader(kind)(raw)


@cache
def _reader(hint: Any) -> _Reader:
    if hint in _CANONICAL:
        return _id_reader(_CANONICAL[hint])
    origin = get_origin(hint) or hint
    if origin is Annotated:
        return _reader(get_args(hint)[0])
    if origin in (Union, UnionType):
        return _union_reader(get_args(hint))
    if origin is bytes:
        return _read_bytes
    if origin is dict:
        read_value = _reader(get_args(hint)[1])
        return lambda raw: {k: read_value(v) for k, v in raw.items()} if isinstance(raw, dict) else raw
    if origin in (tuple, frozenset):
        read_item = _reader(get_args(hint)[0])
        return lambda raw: [read_item(item) for item in raw] if isinstance(raw, list) else raw
    if isinstance(origin, type) and issubclass(origin, msgspec.Struct):
        return _variant_reader((origin,)) if _tagged(origin) else _struct_reader(origin)
    return _read_scalar


def _read_scalar(raw: Any) -> Any:
    return raw


def _read_bytes(raw: Any) -> Any:
    """Read an array of numbers; a string would be taken for base64 by msgspec, so it is refused."""
    if isinstance(raw, list):
        if bool in set(map(type, raw)):  # true and false would count as 1 and 0
            raise msgspec.ValidationError("Expected an array of numbers from 0 to 255, got `bool`")
        try:
            return bytes(raw)
        except (TypeError, ValueError) as error:
            raise msgspec.ValidationError("Expected an array of numbers from 0 to 255") from error
    if isinstance(raw, str):
        raise msgspec.ValidationError("Expected an array of numbers from 0 to 255, got `str`")
    return raw


def _id_reader(parse: Callable[[str], str]) -> _Reader:
    return lambda raw: parse(raw) if isinstance(raw, str) else raw


def _tagged(kind: _Struct) -> bool:
    return kind.__struct_config__.tag is not None


def _union_reader(members: tuple[Any, ...]) -> _Reader:
    structs = tuple(m for m in members if isinstance(m, type) and issubclass(m, msgspec.Struct))
    others = tuple(m for m in members if m is not NoneType and m not in structs)
    if others:
        inner = _reader(others[0])
    else:
        inner = _variant_reader(structs) if _tagged(structs[0]) else _struct_reader(structs[0])
    return lambda raw: None if raw is None and NoneType in members else inner(raw)


def _variant_reader(kinds: tuple[_Struct, ...]) -> _Reader:
    by_tag = {_tag(kind): kind for kind in kinds}
    tag_field = kinds[0].__struct_config__.tag_field
    external = is_external(kinds[0])

    def read_variant(raw: Any) -> Any:
        if not external:
            tag, content = (raw.get(tag_field), raw) if isinstance(raw, dict) else (None, raw)
        elif isinstance(raw, dict) and len(raw) == 1:
            [(tag, content)] = raw.items()
        else:
            tag, content = raw, {}
        kind = by_tag.get(tag) if isinstance(tag, str) else None
        if kind is None:
            raise msgspec.ValidationError(f"Expected one of {', '.join(by_tag)}")
        fields = {NEWTYPES[kind]: content} if kind in NEWTYPES else content
        native = _struct_reader(kind)(fields)
        return {**native, tag_field: tag} if isinstance(native, dict) else native

    return read_variant


@cache
def _struct_reader(kind: _Struct) -> _Reader:
    if kind in BARE:
        field = BARE[kind]
        return lambda raw: {field: raw}
    if kind is ExecutionPolicy:
        return _read_policy
    if kind is StreamFrame:
        return _read_frame
    hints = get_type_hints(kind, include_extras=True)
    digits = DIGITS.get(kind, ())

    def read_struct(raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        native = {}
        for name in kind.__struct_fields__:
            if name in raw:
                native[name] = _read_field(raw[name], hints[name], name, digits=name in digits)
        return native

    return read_struct


def _read_field(raw: Any, hint: Any, name: str, *, digits: bool) -> Any:
    if digits and isinstance(raw, str) and raw.isascii() and raw.isdigit():
        return int(raw)
    try:
        return _native(raw, hint)
    except msgspec.ValidationError as error:
        rule, _, path = str(error).partition(" - at `$")
        raise msgspec.ValidationError(f"{rule} - at `$.{name}{path.rstrip('`')}`") from error


def _read_policy(raw: Any) -> Any:
    return policy_from_builtins(raw) or ExecutionPolicy()


def _read_frame(raw: Any) -> Any:
    if not isinstance(raw, dict) or not isinstance(raw.get("fields"), dict):
        return raw
    fields = dict(raw["fields"])
    text, encoded = fields.pop(_PAYLOAD, ""), fields.pop(_PAYLOAD_BASE64, None)
    try:
        payload = base64.b64decode(encoded, validate=True) if encoded is not None else text.encode()
    except (binascii.Error, AttributeError, TypeError, ValueError) as error:
        raise msgspec.ValidationError("Expected a payload of text or of base64") from error
    return {**raw, "fields": fields, _PAYLOAD: payload}

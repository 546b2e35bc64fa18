"""A sample of every contract type, made from its annotations, so that none can be forgotten."""

from __future__ import annotations

import importlib
import pkgutil
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, NewType, Union, get_args, get_origin, get_type_hints

import msgspec

import flowfabric.contracts
from flowfabric.contracts import ids, keyring, partitions, policy, streams
from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.cursors import StreamCursor

UUID = "11111111-2222-4333-8444-555555555555"

BY_HINT: dict[Any, Any] = {
    ids.ExecutionId: f"{{fp:7}}:{UUID}",
    partitions.PartitionKey: "{fp:7}",
    ids.TagKey: "team.name",
    keyring.SecretHex: "ab" * 32,
    StreamCursor: StreamCursor("12-3"),
    keyring.WaitpointToken: keyring.WaitpointToken("k1:" + "ab" * 32),
    policy.RoutingRequirements: policy.RoutingRequirements(required_capabilities=("cpu", "gpu")),
    streams.StreamFrame: streams.StreamFrame(id="1-0", fields={"ts": "1"}, payload=b"\xff\x00"),
}


def struct_types() -> list[type[msgspec.Struct]]:
    """Every struct of the contracts, found by walking the package."""
    found = {}
    for module in pkgutil.iter_modules(flowfabric.contracts.__path__, "flowfabric.contracts."):
        for name, item in vars(importlib.import_module(module.name)).items():
            own = isinstance(item, type) and item.__module__ == module.name
            if own and issubclass(item, msgspec.Struct) and item not in (Command, Outcome, Value):
                found[name] = item
    return [found[name] for name in sorted(found)]


def command_types() -> list[type[Command[Any]]]:
    return [kind for kind in struct_types() if issubclass(kind, Command)]


def result_of(command: type[Command[Any]]) -> Any:
    return get_args(command.__orig_bases__[0])[0]  # type: ignore[attr-defined]


def sample(hint: Any, *, full: bool, depth: int = 0) -> Any:
    """Make a value; ``full`` fills the optional fields and takes the last member of a union."""
    if hint in BY_HINT:
        return BY_HINT[hint]
    if isinstance(hint, NewType):
        return sample(hint.__supertype__, full=full, depth=depth)
    origin = get_origin(hint) or hint
    if origin is Annotated:
        return _annotated(hint, full=full, depth=depth)
    if origin in (Union, UnionType):
        return _member(get_args(hint), full=full, depth=depth)
    if origin is dict:
        key, value = (sample(part, full=full, depth=depth) for part in get_args(hint))
        return {key: value}
    if origin is tuple and Ellipsis not in get_args(hint):
        return tuple(sample(part, full=full, depth=depth) for part in get_args(hint))
    if origin in (tuple, frozenset):
        return origin([sample(get_args(hint)[0], full=full, depth=depth)])
    if issubclass(origin, msgspec.Struct):
        return struct(origin, full=full, depth=depth + 1)
    if issubclass(origin, Enum):
        return list(origin)[-1 if full else 0]
    return {str: "text", int: 7, float: 1.0, bool: True, bytes: bytes(range(256))}[origin]


def struct(kind: type[msgspec.Struct], *, full: bool, depth: int = 0) -> Any:
    if kind in BY_HINT:
        return BY_HINT[kind]
    hints = get_type_hints(kind, include_extras=True)
    fields = {
        info.name: sample(hints[info.name], full=full, depth=depth)
        for info in msgspec.structs.fields(kind)
        if full or info.required
    }
    return kind(**fields)


def _annotated(hint: Any, *, full: bool, depth: int) -> Any:
    inner, *extras = get_args(hint)
    pattern = next((m.pattern for m in extras if isinstance(m, msgspec.Meta) and m.pattern), "")
    if pattern == rf"\A{ids.UUID_PATTERN}\Z":
        return UUID
    lowest = next((m.ge for m in extras if isinstance(m, msgspec.Meta) and m.ge is not None), None)
    return lowest if lowest is not None and lowest > 7 else sample(inner, full=full, depth=depth)


def _member(members: tuple[Any, ...], *, full: bool, depth: int) -> Any:
    if NoneType in members and not full:
        return None
    real = [member for member in members if member is not NoneType]
    return sample(real[-1 if full and depth < 3 else 0], full=full, depth=depth)

"""Checking a command that was built in Python, where msgspec checks nothing.

The limits stand in one place, the types. Decoding checks them by itself; here a quick predicate
passes what is good, and a checker, compiled once per type, says what is wrong with the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from flowfabric.contracts.base import Command
from flowfabric.contracts.ids import (
    EXECUTION_ID_PATTERN,
    ID_PATTERN,
    LANE_PATTERN,
    NO_CONTROL_PATTERN,
    TAG_KEY_PATTERN,
    TEXT_PATTERN,
)
from flowfabric.contracts.predicates import passes, unwrap
from flowfabric.errors import InvalidInput, InvalidTagKey

_SHOWN_CHARS = 64
_NO_LIMIT = 2**63

_Checker = Callable[[Any], None]

_PATTERN_RULES = {
    ID_PATTERN: "a hyphenated lower-case uuid",
    EXECUTION_ID_PATTERN: "an execution id of the form {fp:7}:<uuid>",
    LANE_PATTERN: "printable ASCII characters",
    NO_CONTROL_PATTERN: "no control characters",
    TEXT_PATTERN: "no NUL and no lone surrogates",
    TAG_KEY_PATTERN: "a key of the form owner.name in lower case",
}


def check(command: Command[Any]) -> None:
    """Check every limit of a command's fields, then the rules that span fields.

    Raises:
        InvalidInput: the field, the value and the rule are named; bytes and secrets are not shown.
    """
    if not passes(command):
        try:
            _check_fields(command)
        except _BrokenRuleError as broken:
            raise _refusal(broken) from None
    command.validate()


def _check_fields(struct: msgspec.Struct) -> None:
    for name, check_field in _fields_of(type(struct)):
        try:
            check_field(getattr(struct, name))
        except _BrokenRuleError as broken:
            broken.path.append(name)
            raise


class _BrokenRuleError(Exception):
    """A value breaks a rule; the path is collected on the way out, innermost first."""

    def __init__(self, rule: str, value: object, *, tag_key: bool = False) -> None:
        super().__init__(rule)
        self.rule = rule
        self.value = value
        self.secret = False
        self.tag_key = tag_key
        self.path: list[str] = []


def _refusal(broken: _BrokenRuleError) -> InvalidInput:
    field = "".join(_step(part) for part in reversed(broken.path)).lstrip(".")
    value = "<redacted>" if broken.secret else _shown(broken.value)
    refusal = InvalidTagKey if broken.tag_key else InvalidInput
    return refusal(field=field, value=value, rule=broken.rule)


def _step(part: str) -> str:
    return part if part.startswith("[") else f".{part}"


def _shown(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN_CHARS else value[:_SHOWN_CHARS] + "…")
    if value is None or isinstance(value, (bool, int, float)):
        text = repr(value)
        return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        return f"<{type(value).__name__} of {len(value)}>"
    return f"<{type(value).__name__}>"


# Compiling


@cache
def _fields_of(struct: type[msgspec.Struct]) -> tuple[tuple[str, _Checker], ...]:
    hints = get_type_hints(struct, include_extras=True)
    return tuple((name, _compile(hints[name])) for name in struct.__struct_fields__)


def _compile(hint: Any) -> _Checker:
    plain, rules, secret = unwrap(hint)
    checker = _compile_plain(plain, rules)
    return _hiding(checker) if secret else checker


def _compile_plain(hint: Any, rules: dict[str, Any]) -> _Checker:
    origin = get_origin(hint) or hint
    if origin in (Union, UnionType):
        return _union(get_args(hint))
    if origin is str:
        return _text(rules)
    if origin in (int, float):
        return _number(origin, rules)
    if origin is dict:
        return _mapping(hint, rules)
    if origin in (tuple, frozenset):
        return _sequence(origin, get_args(hint)[0], rules)
    if issubclass(origin, msgspec.Struct):
        return _nested((origin,))
    return _sized(origin, rules)


def _hiding(inner: _Checker) -> _Checker:
    def check_secret(value: Any) -> None:
        try:
            inner(value)
        except _BrokenRuleError as broken:
            broken.secret = True
            raise

    return check_secret


def _union(members: tuple[Any, ...]) -> _Checker:
    structs = tuple(m for m in members if isinstance(m, type) and issubclass(m, msgspec.Struct))
    others = tuple(_compile(m) for m in members if m is not NoneType and m not in structs)
    inner = _nested(structs) if structs else others[0]
    assert len(others) + bool(structs) == 1, "a union of structs, or one type, or None"
    if NoneType not in members:
        return inner

    def check_optional(value: Any) -> None:
        if value is not None:
            inner(value)

    return check_optional


def _nested(structs: tuple[type[msgspec.Struct], ...]) -> _Checker:
    expected = " or ".join(struct.__name__ for struct in structs)

    def check_struct(value: Any) -> None:
        if type(value) not in structs:
            raise _BrokenRuleError(f"must be {expected}", value)
        _check_fields(value)

    return check_struct


def _text(rules: dict[str, Any]) -> _Checker:
    shortest, longest = rules.get("min_length", 0), rules.get("max_length", _NO_LIMIT)
    pattern = rules.get("pattern", "")
    matches = re.compile(pattern).search
    # A printable text has no control characters, and that is quicker to find out.
    printable_passes = pattern in ("", NO_CONTROL_PATTERN, TEXT_PATTERN)

    def check_text(value: Any) -> None:
        if type(value) is not str:
            raise _BrokenRuleError("must be str", value)
        if not shortest <= len(value) <= longest:
            raise _BrokenRuleError(f"{shortest} to {longest} characters", value)
        if not (printable_passes and value.isprintable()) and matches(value) is None:
            rule = _PATTERN_RULES.get(pattern, f"must match {pattern}")
            raise _BrokenRuleError(rule, value, tag_key=pattern == TAG_KEY_PATTERN)

    return check_text


def _number(kind: type[Any], rules: dict[str, Any]) -> _Checker:
    lowest, highest = rules.get("ge", -_NO_LIMIT), rules.get("le", _NO_LIMIT)
    above = rules.get("gt", -_NO_LIMIT)
    kinds = (int,) if kind is int else (float, int)

    def check_number(value: Any) -> None:
        if type(value) not in kinds:
            raise _BrokenRuleError(f"must be {kind.__name__}", value)
        if not (lowest <= value <= highest and value > above):
            raise _BrokenRuleError(f"{max(lowest, above)} to {highest}", value)

    return check_number


def _mapping(hint: Any, rules: dict[str, Any]) -> _Checker:
    check_key, check_value = (_compile(argument) for argument in get_args(hint))
    most = rules.get("max_length", _NO_LIMIT)

    def check_mapping(value: Any) -> None:
        if type(value) is not dict:
            raise _BrokenRuleError("must be dict", value)
        if len(value) > most:
            raise _BrokenRuleError(f"at most {most} entries", value)
        for key, entry in value.items():
            try:
                check_key(key)
                check_value(entry)
            except _BrokenRuleError as broken:
                broken.path.append(f"[{_shown(key)}]")
                raise

    return check_mapping


def _sequence(kind: type[Any], item: Any, rules: dict[str, Any]) -> _Checker:
    check_item = _compile(item)
    fewest, most = rules.get("min_length", 0), rules.get("max_length", _NO_LIMIT)

    def check_sequence(value: Any) -> None:
        if not isinstance(value, kind):
            raise _BrokenRuleError(f"must be {kind.__name__}", value)
        if not fewest <= len(value) <= most:
            raise _BrokenRuleError(f"{fewest} to {most} entries", value)
        for index, entry in enumerate(value):
            try:
                check_item(entry)
            except _BrokenRuleError as broken:
                broken.path.append(f"[{index}]")
                raise

    return check_sequence


def _sized(kind: type[Any], rules: dict[str, Any]) -> _Checker:
    """Check bytes, booleans and enumerations."""
    most = rules.get("max_length")
    expected = f"must be {kind.__name__}"
    if issubclass(kind, Enum):
        expected = "one of " + ", ".join(str(member.value) for member in kind)

    def check_sized(value: Any) -> None:
        if type(value) is not kind:
            raise _BrokenRuleError(expected, value)
        if most is not None and len(value) > most:
            raise _BrokenRuleError(f"at most {most} bytes", value)

    return check_sized

"""The quick half of checking: one compiled expression per type that says «certainly good».

Every command passes here, so this is written as source text and compiled once per type, the way
``dataclasses`` makes its methods. A predicate that does not pass says nothing: the slow half in
``check.py`` then finds out what is wrong, and its word counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from flowfabric.contracts.ids import NO_CONTROL_PATTERN, TEXT_PATTERN
from flowfabric.contracts.keyring import Secret

_RULES = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")


def passes(struct: msgspec.Struct) -> bool:
    """Say whether every field certainly keeps its limits."""
    return _predicate(type(struct))(struct)


def unwrap(hint: Any) -> tuple[Any, dict[str, Any], bool]:
    """Take a type apart: the plain type, its rules, and whether its values are secret."""
    rules: dict[str, Any] = {}
    secret = False
    while get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        secret = secret or Secret in extras
        for extra in extras:
            if isinstance(extra, Meta):
                rules |= {n: getattr(extra, n) for n in _RULES if getattr(extra, n) is not None}
    return hint, rules, secret


@cache
def _predicate(struct: type[msgspec.Struct]) -> Callable[[Any], bool]:
    names: dict[str, Any] = {"passes": passes}
    hints = get_type_hints(struct, include_extras=True)
    terms = [f"({_term(hints[name], f'(v := s.{name})', 'v', names)})" for name in struct.__struct_fields__]
    source = f"lambda s: {' and '.join(terms) or 'True'}"
    # The text is made of our own annotations only; no value that a caller sends gets into it.
    predicate: Callable[[Any], bool] = eval(source, names)  # noqa: S307
    return predicate


def _term(hint: Any, first: str, var: str, names: dict[str, Any]) -> str:
    """Write the test of one value; ``first`` reads it, afterwards it is called ``var``."""
    plain, rules, _ = unwrap(hint)
    origin = get_origin(plain) or plain
    if origin in (Union, UnionType):
        return _union_term(get_args(plain), first, var, names)
    tests = [f"type({first}) is {_named(origin, names)}"]
    if origin is str:
        tests += _length_tests(rules, var) + _pattern_tests(rules.get("pattern"), var, names)
    elif origin in (int, float):
        tests += _range_tests(rules, var)
    elif origin in (tuple, frozenset):
        item = _term(get_args(plain)[0], "i" + var, "i" + var, names)
        tests += [*_length_tests(rules, var), f"(not {var} or all({item} for i{var} in {var}))"]
    elif origin is dict:
        tests += [*_length_tests(rules, var), _entries_test(get_args(plain), var, names)]
    elif issubclass(origin, msgspec.Struct):
        tests.append(f"passes({var})")
    else:
        tests += _length_tests(rules, var)
    return " and ".join(tests)


def _union_term(members: tuple[Any, ...], first: str, var: str, names: dict[str, Any]) -> str:
    real = [member for member in members if member is not NoneType]
    if NoneType in members:
        inner = _term(real[0], var, var, names) if len(real) == 1 else _union_of(real, var, var, names)
        return f"{first} is None or {inner}"
    return _union_of(real, first, var, names)


def _union_of(kinds: list[Any], first: str, var: str, names: dict[str, Any]) -> str:
    any_of = ", ".join(_named(kind, names) for kind in kinds)
    return f"type({first}) in ({any_of}) and passes({var})"


def _entries_test(parts: tuple[Any, ...], var: str, names: dict[str, Any]) -> str:
    key, value = f"k{var}", f"w{var}"
    tests = f"{_term(parts[0], key, key, names)} and {_term(parts[1], value, value, names)}"
    return f"(not {var} or all({tests} for {key}, {value} in {var}.items()))"


def _length_tests(rules: dict[str, Any], var: str) -> list[str]:
    fewest, most = rules.get("min_length", 0), rules.get("max_length")
    if most is None:
        return [f"len({var}) >= {fewest}"] if fewest else []
    return [f"{fewest} <= len({var}) <= {most}"] if fewest else [f"len({var}) <= {most}"]


def _pattern_tests(pattern: str | None, var: str, names: dict[str, Any]) -> list[str]:
    if pattern is None:
        return []
    # Printable text has no control characters; other text is left to the slow half.
    if pattern in (NO_CONTROL_PATTERN, TEXT_PATTERN):
        return [f"{var}.isprintable()"]
    return [f"{_named(re.compile(pattern).search, names)}({var}) is not None"]


def _range_tests(rules: dict[str, Any], var: str) -> list[str]:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return [f"{var} {sign} {rules[name]!r}" for name, sign in signs.items() if name in rules]


def _named(thing: Any, names: dict[str, Any]) -> str:
    """Give an object a name that the expression can use."""
    name = f"n{len(names)}"
    names[name] = thing
    return name

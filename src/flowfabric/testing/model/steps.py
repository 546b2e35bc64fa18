"""The steps of a program: what is sent to both stores, and how a program is written down again.

A step holds finished commands, with all their ids. So a program can be cut down and run again
without the chance that made it, and can be pasted into a test.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from flowfabric.contracts.base import Command

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """One command of one caller."""

    command: Command[Any]
    request_id: str
    namespace: str | None = None
    """The caller's namespace; None for the engine itself, which may see all of them."""


class Together(msgspec.Struct, frozen=True, kw_only=True):
    """Commands that are sent at once, and so share a batch."""

    sends: tuple[Send, ...]


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """Let time pass; with ``duties``, the scanners do at each instant what is due then."""

    milliseconds: int
    duties: bool = False


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """Close the engine and the store, and open both again."""


Step: TypeAlias = Send | Together | Pass | Restart


def sends_of(step: Step) -> tuple[Send, ...]:
    """The commands of a step."""
    if isinstance(step, Send):
        return (step,)
    return step.sends if isinstance(step, Together) else ()


def write_program(steps: Sequence[Step]) -> str:
    """A program as the source of a test that runs it again."""
    lines = sorted(f"from {module} import {name}" for module, name in set(_names_in(steps)))
    body = "".join(f"            {_source(step)},\n" for step in steps)
    return (
        "\n".join([*lines, "from flowfabric.testing.model import replay"])
        + "\n\n\nasync def test_found_by_the_model(tmp_path):\n"
        + f"    await replay(\n        make_store,\n        tmp_path,\n        [\n{body}        ],\n    )\n"
    )


def _source(value: Any) -> str:
    """The expression that makes a value."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, msgspec.Struct):
        given = [
            (field.name, getattr(value, field.name))
            for field in msgspec.structs.fields(value)
            if getattr(value, field.name) != field.default
        ]
        inner = ", ".join(f"{name}={_source(part)}" for name, part in given)
        return f"{type(value).__name__}({inner})"
    if isinstance(value, tuple):
        return f"({''.join(_source(item) + ', ' for item in value)})"
    if isinstance(value, dict):
        inner = ", ".join(f"{_source(name)}: {_source(item)}" for name, item in value.items())
        return f"{{{inner}}}"
    return repr(value)


def _names_in(value: Any) -> Iterator[tuple[str, str]]:
    """The module and name of every type that the source of a value mentions."""
    if isinstance(value, (msgspec.Struct, Enum)):
        yield type(value).__module__, type(value).__name__
    yield from (found for part in _parts_of(value) for found in _names_in(part))


def _parts_of(value: Any) -> Iterable[Any]:
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.astuple(value)
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    return value if isinstance(value, (tuple, list)) else ()

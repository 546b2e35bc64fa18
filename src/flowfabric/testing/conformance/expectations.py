"""What every command answers in every situation to every caller, as a table.

The table is data, in ``expectations.toml`` beside this module: a section per command, a line per
situation that differs from the section's first line. A single word is the answer to everyone;
otherwise each caller that differs has a word. A word is the outcome's name, with what it says in
parentheses, or the code of the error.

``python -m flowfabric.testing.conformance`` prints the table as the memory store
answers. Its output replaces the file only after someone has read the difference.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from flowfabric import errors
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing.bed import Bed
from flowfabric.testing.conformance.callers import build, callers_of, command_types
from flowfabric.testing.conformance.situations import SITUATION_STEPS, Place, bring, seed_key
from flowfabric.testing.stores import RecordingStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowfabric.contracts.base import Command
    from flowfabric.testing.clock import ClockedStore
    from flowfabric.testing.dump import Dump

Cell = tuple[str, str, str]
"""Command, situation, caller."""
Table = dict[Cell, str]

OTHERWISE: Final = "otherwise"

READS: Final = ("read_", "get_", "list_", "describe_", "explain_", "resolve_execution_", "observe_", "tail_")
"""How the names of commands begin that never change anything."""

_TELLING: Final = (
    "code",
    "reason",
    "action",
    "effect",
    "behavior_applied",
    "public_state",
    "resumed",
    "status",
)
"""The fields of outcomes that say what happened; the first that an outcome has is shown."""


@cache
def _rows() -> dict[str, dict[str, dict[str, str] | str]]:
    return tomllib.loads(table_text())


def table_text() -> str:
    """The file that is kept with the package."""
    return (files("flowfabric.testing.conformance") / "expectations.toml").read_text("utf-8")


def expected_word(cell: Cell) -> str | None:
    """What the table says about one cell; None if it says nothing."""
    command, situation, caller = cell
    rows = _rows().get(command, {})
    for row in (rows.get(situation), rows.get(OTHERWISE)):
        word = row.get(caller) if isinstance(row, dict) else row
        if word is not None:
            return word
    return None


def render(table: Table) -> str:
    """The table as TOML. What is most common for a caller is said once, under ``otherwise``."""
    lines = ["# What each command answers: the outcome, or the code of the refusal.", ""]
    for command in sorted({cell[0] for cell in table}):
        lines += [f"[{command}]", *_section(command, table), ""]
    return "\n".join(lines)


def _section(command: str, table: Table) -> list[str]:
    rows = {
        situation: {cell[2]: word for cell, word in table.items() if cell[:2] == (command, situation)}
        for situation in SITUATION_STEPS
    }
    callers = list(dict.fromkeys(caller for row in rows.values() for caller in row))
    usual = {
        caller: Counter(row[caller] for row in rows.values() if caller in row).most_common(1)[0][0]
        for caller in callers
    }
    lines = [_line(OTHERWISE, usual, callers)]
    for situation, row in rows.items():
        unusual = {caller: word for caller, word in row.items() if word != usual[caller]}
        if unusual:
            lines.append(_line(situation, unusual, callers))
    return lines


def _line(situation: str, words: dict[str, str], callers: list[str]) -> str:
    if len(words) == len(callers) and len(set(words.values())) == 1:
        return f'{situation} = "{next(iter(words.values()))}"'
    parts = ", ".join(f'{caller} = "{word}"' for caller, word in words.items())
    return f"{situation} = {{ {parts} }}"


async def answers_of(
    store: ClockedStore, situation: str, make_bed: Callable[[ClockedStore], Bed] = Bed
) -> tuple[Table, Dump]:
    """Send every command as every caller in one situation, each to an execution of its own.

    Makes sure on the way that a refusal and a read commit nothing, and that a repeated request
    gets the same answer and commits nothing.
    """
    recording = RecordingStore(store)
    async with make_bed(recording) as bed:
        await seed_key(bed)
        cells = _cells(situation, *await bring(bed, situation, 1))
        places = await bring(bed, situation, len(cells))
        table: Table = {}
        for cell, place in zip(cells, places, strict=True):
            table[cell] = await _answer(bed, recording, cell, place)
        await bed.check()
        return table, await bed.dump()


def _cells(situation: str, sample: Place) -> list[Cell]:
    return [
        (name, situation, caller)
        for name, (command_type, _) in command_types().items()
        for caller in callers_of(command_type, sample)
    ]


async def _answer(bed: Bed, store: RecordingStore, cell: Cell, place: Place) -> str:
    name, _, caller = cell
    command_type, fixed = command_types()[name]
    command = await build(bed, command_type, place, caller, fixed)
    request_id = "/".join(cell)
    commits = len(store.commits)
    try:
        answer = await bed.execute(command, request_id=request_id)
    except errors.FlowFabricError as refusal:
        assert len(store.commits) == commits, f"{cell} was refused and committed"
        return refusal.code
    assert not name.startswith(READS) or len(store.commits) == commits, f"{cell} reads and commits"
    await _repeat(bed, store, command, request_id, answer)
    return word_of(answer)


async def _repeat(
    bed: Bed, store: RecordingStore, command: Command[Any], request_id: str, answer: Any
) -> None:
    commits = len(store.commits)
    again = await bed.execute(command, request_id=request_id)
    assert again == answer, f"{request_id} was answered {answer}, then {again}"
    assert len(store.commits) == commits, f"{request_id} was repeated and committed again"


def word_of(answer: Any) -> str:
    """An answer in one word."""
    if answer is None:
        return "none"
    if isinstance(answer, StrEnum):
        return str(answer)
    told = next((str(getattr(answer, name)) for name in _TELLING if hasattr(answer, name)), None)
    name = type(answer).__name__
    return name if told is None else f"{name}({told})"


async def table_of_memory() -> Table:
    """The whole table, as the memory store answers."""
    table: Table = {}
    for situation in SITUATION_STEPS:
        found, _ = await answers_of(MemoryStore(), situation)
        table |= found
    return table

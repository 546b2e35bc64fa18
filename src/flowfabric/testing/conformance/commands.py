"""Every command in every situation by every caller: the same answers and the same stored records.

What is expected stands in a table (``expectations.py``). The memory store is the reference: a store
passes if it gives the answers of the table and holds what the memory store holds afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flowfabric.core.registry import RULES
from flowfabric.core.state import Situation
from flowfabric.engine.layers import operation_name
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.conformance.callers import NOT_ABOUT_ONE, command_types
from flowfabric.testing.conformance.expectations import (
    Table,
    answers_of,
    expected_word,
    render,
    table_text,
)
from flowfabric.testing.conformance.situations import SITUATION_STEPS, situation_named
from flowfabric.testing.dump import differences

if TYPE_CHECKING:
    from pathlib import Path

    from flowfabric.testing.dump import Dump

_reference: dict[str, tuple[Table, Dump]] = {}


async def reference(situation: str) -> tuple[Table, Dump]:
    """What the memory store answers and holds. Computed once."""
    if situation not in _reference:
        _reference[situation] = await answers_of(MemoryStore(), situation)
    return _reference[situation]


class CommandConformance(StoreSuite):
    """The table of commands, situations and callers."""

    @pytest.mark.parametrize("situation", SITUATION_STEPS)
    async def test_every_command_answers_as_the_table_says(self, tmp_path: Path, situation: str) -> None:
        """Also: refusals and reads commit nothing, and a repeated request changes nothing."""
        answers, held = await answers_of(self.make_store(tmp_path), situation, self.make_bed)
        wrong = {
            cell: f"{word}, not {expected_word(cell)}"
            for cell, word in answers.items()
            if word != expected_word(cell)
        }
        assert not wrong
        _, expected = await reference(situation)
        assert not differences(held, expected)


async def check_table_is_current() -> None:
    """The table says what the commands answer, and nothing about cells that there are not."""
    table: Table = {}
    for situation in SITUATION_STEPS:
        found, _ = await reference(situation)
        table |= found
    assert render(table) == table_text(), "print the table anew and read the difference"


def check_table_is_complete() -> None:
    """Every situation has a way to it, and every command about one execution has its row."""
    assert {situation_named(name) for name in SITUATION_STEPS} == set(Situation)
    names = {name for name, (_, fixed) in command_types().items() if not fixed}
    about_one = {
        operation_name(found)
        for found in RULES
        if "execution_id" in found.__struct_fields__ and operation_name(found) not in NOT_ABOUT_ONE
    }
    variants = {"expire_execution", "fail_execution"}
    assert about_one - variants <= names

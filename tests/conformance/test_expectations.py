"""The table of expectations itself."""

import pytest

from flowfabric.testing.conformance.commands import check_table_is_complete, check_table_is_current


@pytest.mark.slow
async def test_the_table_says_what_the_commands_answer():
    await check_table_is_current()


def test_every_situation_and_every_command_is_in_the_table():
    check_table_is_complete()

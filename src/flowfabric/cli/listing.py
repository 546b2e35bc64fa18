"""``list``: a page of executions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.cli.exits import OK
from flowfabric.cli.output import print_json, print_note, print_table, shown_age
from flowfabric.cli.session import open_engine, run
from flowfabric.contracts.reads import ListExecutionSummariesArgs
from flowfabric.contracts.states import PublicState

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.reads import ListExecutionsResult


def list_executions(arguments: Namespace) -> int:
    """Carry out ``list``."""
    return run(_list(arguments))


async def _list(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        page = await engine.execute(
            ListExecutionSummariesArgs(
                lane_id=None if arguments.lane is None else arguments.lane,
                public_state=None if arguments.state is None else PublicState(arguments.state),
                cursor=arguments.cursor,
                limit=arguments.limit,
            )
        )
        now = await engine.now()
    if arguments.json:
        print_json(page)
    else:
        _print_page(page, now)
    return OK


def _print_page(page: ListExecutionsResult, now: int) -> None:
    rows = [
        [
            entry.execution_id,
            entry.public_state,
            entry.execution_kind,
            entry.lane_id,
            str(entry.priority),
            shown_age(entry.created_at, now),
        ]
        for entry in page.executions
    ]
    print_table(["EXECUTION", "STATE", "KIND", "LANE", "PRIORITY", "CREATED"], rows, flexible=2)
    if page.next_cursor is not None:
        print_note(f"there is more: add --cursor '{page.next_cursor}'")

"""``explain``: the one reason why an execution does not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric import errors
from flowfabric.cli.exits import OK
from flowfabric.cli.output import print_json, printable
from flowfabric.cli.session import open_engine, run
from flowfabric.contracts.explaining import ExplainExecutionArgs

if TYPE_CHECKING:
    from argparse import Namespace


def explain(arguments: Namespace) -> int:
    """Carry out ``explain``."""
    return run(_explain(arguments))


async def _explain(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        found = await engine.execute(ExplainExecutionArgs(execution_id=arguments.execution_id))
    if found is None:
        raise errors.ExecutionNotFound(arguments.execution_id)
    if arguments.json:
        print_json(found)
    else:
        print(printable(found.sentence))
        if found.would_change_it:
            print(f"What would change it: {printable(found.would_change_it)}")
    return OK

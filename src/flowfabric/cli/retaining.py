"""``retention``: remove what ended long ago."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.app import retention_ms_of
from flowfabric.cli.exits import OK, UsageError
from flowfabric.cli.output import print_fields, print_json, print_note
from flowfabric.cli.session import open_engine, run
from flowfabric.contracts.retention import TrimRetentionArgs

if TYPE_CHECKING:
    from argparse import Namespace


def trim(arguments: Namespace) -> int:
    """Carry out ``retention``."""
    return run(_trim(arguments))


async def _trim(arguments: Namespace) -> int:
    retention_ms = _default_ms() if arguments.older_than is None else arguments.older_than
    async with open_engine(arguments, everywhere=True) as engine:
        trimmed = await engine.execute(TrimRetentionArgs(retention_ms=retention_ms, limit=arguments.limit))
    if arguments.json:
        print_json(trimmed)
        return OK
    counts = {"executions": trimmed.executions, "flows": trimmed.flows, "events": trimmed.events}
    print_fields((name, str(count)) for name, count in counts.items())
    if trimmed.more:
        print_note("There may be more; run it again.")
    return OK


def _default_ms() -> int:
    """What the environment says.

    Raises:
        UsageError: it says that nothing is to be removed, or nothing that can be read.
    """
    try:
        kept_ms = retention_ms_of(None)
    except ValueError as error:
        raise UsageError(f"FF_RETENTION: {error}.") from error
    if kept_ms is None:
        raise UsageError("FF_RETENTION is off. Say --older-than to remove something all the same.")
    return kept_ms

"""``tail``: frames as they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowfabric.cli.exits import OK
from flowfabric.cli.output import print_json, printable, shown_payload
from flowfabric.cli.session import open_engine, run
from flowfabric.core.instants import shown_time
from flowfabric.run import Run

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.streams import StreamFrame


def tail(arguments: Namespace) -> int:
    """Carry out ``tail``."""
    return run(_tail(arguments))


async def _tail(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        followed = Run[Any](lambda: engine, arguments.execution_id, arguments.namespace)
        await followed.view()
        async for frame in followed.stream(arguments.attempt):
            if arguments.json:
                print_json(frame)
            else:
                print(frame_line(frame), flush=True)
    return OK


def frame_line(frame: StreamFrame) -> str:
    """When, what kind, and the payload."""
    at_ms = int(frame.id.partition("-")[0])
    kind = printable(frame.fields.get("frame_type", ""))
    return f"{shown_time(at_ms)}  {kind}  {shown_payload(frame.payload)}".rstrip()

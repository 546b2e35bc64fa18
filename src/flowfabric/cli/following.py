"""``events``: what happened, in order, and what happens; ``log``: what operators did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from flowfabric.cli.exits import OK, UsageError
from flowfabric.cli.output import print_json, print_note, printable
from flowfabric.cli.session import open_engine, run
from flowfabric.contracts.events import (
    FROM_NOW,
    FROM_START,
    CompletionEvent,
    Family,
    HistoryEvent,
    LeaseEvent,
    SignalEvent,
    TagEvent,
    TailEventsArgs,
    family_of,
)
from flowfabric.core.instants import shown_time

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.events import AnyEvent
    from flowfabric.engine.interface import AnyEngine


def events(arguments: Namespace) -> int:
    """Carry out ``events``."""
    return run(_events(arguments))


def log(arguments: Namespace) -> int:
    """Carry out ``log``: the events of one family, with the same options."""
    arguments.family, arguments.tag = (Family.OPERATOR,), None
    return run(_events(arguments))


async def _events(arguments: Namespace) -> int:
    options = _options(arguments)
    async with open_engine(arguments, everywhere=arguments.everywhere) as engine:
        if not arguments.follow:
            await _print_what_happened(engine, TailEventsArgs(**options), as_json=arguments.json)
            return OK
        families = options.pop("families")
        async for event in engine.subscribe(*families, **options):
            _print_event(event, as_json=arguments.json)
    return OK


def _options(arguments: Namespace) -> dict[str, Any]:
    beginning = FROM_NOW if arguments.follow else FROM_START
    options = {
        "families": _families(arguments.family),
        "after": arguments.cursor or beginning,
        "execution_id": arguments.execution,
        "tag": arguments.tag,
    }
    return {name: value for name, value in options.items() if value is not None}


def _families(names: tuple[str, ...]) -> frozenset[Family]:
    try:
        return frozenset(map(Family, names)) or frozenset(Family)
    except ValueError as error:
        known = ", ".join(sorted(Family))
        raise UsageError(f"{error}. Name some of: {known}.") from error


async def _print_what_happened(engine: AnyEngine, args: TailEventsArgs, *, as_json: bool) -> None:
    """Print what is kept behind the cursor, up to the end of the log."""
    cursor = ""
    while cursor != args.after:
        cursor = args.after
        page = await engine.execute(args)
        for event in page.events:
            _print_event(event, as_json=as_json)
        args = replace(args, after=page.next_cursor)
    if not as_json:
        print_note(f"continue with --cursor {cursor}")


def _print_event(event: AnyEvent, *, as_json: bool) -> None:
    if as_json:
        print_json(event)
    else:
        print(event_line(event), flush=True)


def event_line(event: AnyEvent) -> str:
    """When, what, about which execution, and the details that tell most."""
    name, details = event_told(event)
    shown = " ".join(f"{key}={value}" for key, value in details.items() if value not in (None, ""))
    subject = event.execution_id or event.flow_id
    return printable(f"{shown_time(event.at_ms)}  {family_of(event)} {name}  {subject}  {shown}").rstrip()


def event_told(event: AnyEvent) -> tuple[str, dict[str, Any]]:
    """What happened, in a word, and the details that tell most."""
    match event:
        case CompletionEvent():
            return event.outcome, {"reason": event.failure_reason}
        case LeaseEvent():
            worker = event.worker_instance_id
            return event.change, {
                "epoch": event.lease_epoch,
                "worker": worker,
                "reason": event.reason,
            }
        case SignalEvent():
            return event.effect, {"name": event.signal_name, "from": event.source_identity}
        case TagEvent():
            return event.change, dict(event.changed)
        case HistoryEvent():
            return event.name, dict(event.data)

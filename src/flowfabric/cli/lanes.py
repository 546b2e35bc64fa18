"""``lane``: list lanes, say what they let through, and which share a partition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowfabric.cli.exits import OK, REFUSED, UsageError, failure_to_wire, print_failure
from flowfabric.cli.output import print_json, print_note, print_table, printable, shown_age
from flowfabric.cli.session import open_engine, run
from flowfabric.contracts.lanes import LaneStateUnchanged, SetLaneStateArgs
from flowfabric.contracts.reads import ListLanesArgs
from flowfabric.contracts.states import LaneState
from flowfabric.core.collisions import report_collisions
from flowfabric.errors import InvalidInput, StoreError

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.reads import ListLanesPage
    from flowfabric.core.collisions import CollisionReport

STATE_OF_ACTION: Final = {
    "pause": LaneState.PAUSED,
    "resume": LaneState.ACTIVE,
    "drain": LaneState.DRAINING,
    "disable": LaneState.DISABLED,
}


def manage_lanes(arguments: Namespace) -> int:
    """Carry out ``lane``."""
    if arguments.action == "list":
        return run(_list(arguments))
    if arguments.action == "collisions":
        return run(_show_collisions(arguments))
    if not arguments.lanes:
        raise UsageError(f"name the lanes: flowfabric lane {arguments.action} NAME")
    return run(_set(arguments))


async def _list(arguments: Namespace) -> int:
    cursor = arguments.cursor
    async with open_engine(arguments) as engine:
        page = await engine.execute(ListLanesArgs(cursor=cursor, limit=arguments.limit))
        now = await engine.now()
    if arguments.json:
        print_json(page)
        return OK
    _print_page(page, now)
    if page.next_cursor is not None:
        print_note(f"there are more: --cursor {page.next_cursor!r}")
    return OK


def _print_page(page: ListLanesPage, now: int) -> None:
    rows = [
        [
            lane.lane_id,
            lane.state,
            "" if lane.changed_at is None else shown_age(lane.changed_at, now),
            printable(lane.reason),
        ]
        for lane in page.details
    ]
    print_table(["LANE", "STATE", "SET", "REASON"], rows, flexible=3)


async def _set(arguments: Namespace) -> int:
    commands = [
        SetLaneStateArgs(
            namespace=arguments.namespace,
            lane_id=lane_id,
            state=STATE_OF_ACTION[arguments.action],
            reason=arguments.reason,
        )
        for lane_id in arguments.lanes
    ]
    async with open_engine(arguments) as engine:
        answers = await engine.execute_many(commands)
    codes = [
        _report(lane_id, answer, as_json=arguments.json)
        for lane_id, answer in zip(arguments.lanes, answers, strict=True)
    ]
    return max(codes)


def _report(lane_id: str, answer: Any, *, as_json: bool) -> int:
    if isinstance(answer, StoreError):
        raise answer
    if isinstance(answer, Exception):
        if as_json:
            print_json(failure_to_wire(answer))
        print_failure(answer, subject=lane_id)
        return REFUSED
    if as_json:
        print_json(answer)
    elif isinstance(answer, LaneStateUnchanged):
        print(f"lane {lane_id} was {answer.state} already")
    else:
        print(f"lane {lane_id} is {answer.state} now; it was {answer.previous}")
    return OK


async def _show_collisions(arguments: Namespace) -> int:
    lanes = arguments.lanes or await _all_lanes(arguments)
    try:
        report = report_collisions(lanes, arguments.partitions)
    except InvalidInput as error:
        raise UsageError(str(error)) from error
    if arguments.json:
        print_json(report)
    else:
        _print_collisions(report)
    return OK


async def _all_lanes(arguments: Namespace) -> list[str]:
    """The lanes of the namespace, page by page."""
    found: list[str] = []
    cursor: str | None = None
    async with open_engine(arguments) as engine:
        while True:
            page = await engine.execute(ListLanesArgs(cursor=cursor))
            found += page.lanes
            cursor = page.next_cursor
            if cursor is None:
                return found


def _print_collisions(report: CollisionReport) -> None:
    rows = [[place.lane_id, str(place.partition), ", ".join(place.shared_with)] for place in report.lanes]
    print_table(["LANE", "PARTITION", "SHARED WITH"], rows, flexible=2)
    counted = f"{report.colliding} of {len(report.lanes)} lanes share one of {report.partitions} partitions"
    print_note(f"{report.severity}: {counted}. {report.severity.advice}")

"""``lane``: list lanes, and say what they let through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowfabric.cli.exits import OK, REFUSED, UsageError, failure_to_wire, print_failure
from flowfabric.cli.output import print_json, print_note, print_table, printable, shown_age
from flowfabric.cli.session import open_engine, run
from flowfabric.contracts.lanes import LaneStateUnchanged, SetLaneStateArgs
from flowfabric.contracts.reads import ListLanesArgs
from flowfabric.contracts.states import LaneState
from flowfabric.errors import StoreError

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.reads import ListLanesPage

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
    if not arguments.lanes:
        raise UsageError(f"name the lanes: flowfabric lane {arguments.action} NAME")
    return run(_set(arguments))


async def _list(arguments: Namespace) -> int:
    cursor = arguments.cursor
    async with open_engine(arguments) as engine:
        page = await engine.execute(ListLanesArgs(cursor=cursor, limit=arguments.limit))
        now = await engine.store.now()
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

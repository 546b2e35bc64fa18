"""Following what happens, as server-sent events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace
from starlette.responses import Response

from flowfabric import errors
from flowfabric.contracts.cursors import BEGINNING, StreamCursor
from flowfabric.contracts.events import FROM_NOW, FROM_START, Family, TailEventsArgs
from flowfabric.contracts.ids import parse_execution_id, parse_uuid
from flowfabric.contracts.schema import Form
from flowfabric.server.access import Role
from flowfabric.server.live import END, LiveResponse
from flowfabric.server.routes.executions import execution_id_of
from flowfabric.server.routes.streams import attempt_index_of
from flowfabric.server.routes.table import EventText, Parameter, route, text
from flowfabric.server.sources import (
    EventSource,
    ExecutionPlace,
    ExecutionSource,
    FlowSource,
    FrameSource,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowfabric.server.calls import Call
    from flowfabric.server.live import Source

LAST_EVENT_ID = "last-event-id"
FAMILIES = Parameter(
    "the kinds of events, separated by commas; all of them when absent",
    {"type": "string", "pattern": f"^({'|'.join(Family)})(,({'|'.join(Family)}))*$"},
)
LOG_QUERY = {
    "families": FAMILIES,
    "execution_id": text("only of this execution"),
    "flow_id": text("only of this flow and its members"),
    "tag": text("only of executions that have this tag, as key=value"),
}
"""Which events of the log are asked for."""
AFTER = text("the place to go on behind, as in Last-Event-ID: start, or the id of the last message")


@route(
    "GET",
    "/v1/live/events",
    Role.READ,
    statuses={200: EventText, 204: None},
    form=Form.PLAIN,
    query={**LOG_QUERY, "after": AFTER},
)
async def follow_events(call: Call) -> Response:
    """Follow the log of events, from now on or from a place."""
    asked = log_asked(call)
    return await followed(call, lambda place: EventSource(call, replace(asked, after=place or FROM_NOW)))


@route(
    "GET",
    "/v1/live/executions/{execution_id}",
    Role.READ,
    statuses={200: EventText, 204: None},
    form=Form.PLAIN,
    query={"families": FAMILIES, "after": AFTER},
)
async def follow_execution(call: Call) -> Response:
    """Follow an execution's life: state, progress, events and frames, from its beginning to its end."""
    execution_id, families = execution_id_of(call), families_of(call)

    def from_place(place: str | None) -> Source:
        start = ExecutionPlace(FROM_START) if place in (None, FROM_START) else ExecutionPlace.parse(place)
        return ExecutionSource(call, execution_id, start, families)

    return await followed(call, from_place)


@route(
    "GET",
    "/v1/live/executions/{execution_id}/attempts/{attempt_index}",
    Role.READ,
    statuses={200: EventText, 204: None},
    form=Form.PLAIN,
    query={"after": AFTER},
)
async def follow_attempt(call: Call) -> Response:
    """Follow the frames of one attempt until its stream is closed."""
    execution_id, attempt_index = execution_id_of(call), attempt_index_of(call)

    def from_place(place: str | None) -> Source:
        after = BEGINNING if place in (None, FROM_START) else StreamCursor(place)
        return FrameSource(call, execution_id, attempt_index, after)

    return await followed(call, from_place)


@route(
    "GET",
    "/v1/live/flows/{flow_id}",
    Role.READ,
    statuses={200: EventText, 204: None},
    form=Form.PLAIN,
    query={"families": FAMILIES, "after": AFTER},
)
async def follow_flow(call: Call) -> Response:
    """Follow a flow and its members until it has ended, from now on or from a place."""
    flow_id, families = call.path_id("flow_id"), families_of(call)

    def from_place(place: str | None) -> Source:
        return FlowSource(call, flow_id, TailEventsArgs(families=families, after=place or FROM_NOW))

    return await followed(call, from_place)


def log_asked(call: Call) -> TailEventsArgs:
    """Which events of the log the query asks for.

    Raises:
        InvalidInput: an id, a tag or a kind is none.
    """
    execution_id, flow_id, tag = call.query("execution_id"), call.query("flow_id"), call.query("tag")
    return TailEventsArgs(
        families=families_of(call),
        execution_id=None if execution_id is None else parse_execution_id(execution_id),
        flow_id=None if flow_id is None else parse_uuid(flow_id, "flow_id"),
        tag=None if tag is None else _tag_of(tag),
    )


def place_of(call: Call) -> str | None:
    """The place to go on behind: what a client that comes back says counts more than the address."""
    return call.request.headers.get(LAST_EVENT_ID) or call.query("after")


def families_of(call: Call) -> frozenset[Family]:
    """The kinds of events that are asked for.

    Raises:
        InvalidInput: there is no such kind.
    """
    told = call.request.query_params.get("families")
    try:
        return frozenset(Family) if told is None else frozenset(Family(name) for name in told.split(","))
    except ValueError as error:
        raise errors.InvalidInput(
            field="families", value=repr(told[:64] if told else told), rule=f"of {', '.join(Family)}"
        ) from error


def _tag_of(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise errors.InvalidInput(field="tag", value=repr(text[:64]), rule="key=value")
    return key, value


async def followed(call: Call, source_from: Callable[[str | None], Source]) -> Response:
    """The answer that follows a source from the place that was asked for.

    What is wrong with the request is found before the answer begins.

    Raises:
        Refused: too many are followed already, or the server is shutting down.
        FlowFabricError: the source cannot be read from this place.
    """
    place = place_of(call)
    if place == END:
        return Response(status_code=204)
    source = source_from(place)
    first = await source.look(0)
    call.service.require_live_place(call.place.party)
    call.place.wait()
    return LiveResponse(source, first, call.service, call.place.party)

"""Looking at everything with plain GET requests, in JSON with base64 or in msgpack.

Every row is a read of the contracts: what is in the path and in the query are the fields of its
command, and the answer is its outcome. What is not there is 404.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import replace
from starlette.responses import Response

from flowfabric import errors
from flowfabric.contracts.events import FROM_START, EventsPage, ListEventsArgs
from flowfabric.contracts.explaining import ExplainExecutionArgs
from flowfabric.contracts.flows import (
    DescribeEdgeArgs,
    DescribeFlowArgs,
    EdgeList,
    IncomingEdges,
    ListEdgesArgs,
    ListFlowMembersArgs,
    ListFlowsArgs,
    OutgoingEdges,
    ReadParentResultsArgs,
)
from flowfabric.contracts.history import ListAttemptsArgs, ListSignalsArgs
from flowfabric.contracts.ids import parse_execution_id
from flowfabric.contracts.journal import ReadJournalArgs
from flowfabric.contracts.keyring import ListWaitpointHmacKidsArgs
from flowfabric.contracts.limits import PAGE_ROWS_MAX
from flowfabric.contracts.packed import JSON, MSGPACK, pack
from flowfabric.contracts.predicates import unwrap
from flowfabric.contracts.quotas import ReadQuotaPolicyLimitsArgs
from flowfabric.contracts.reads import (
    DescribeExecutionArgs,
    ListExecutionSummariesArgs,
    ListExpiredLeasesArgs,
    ListLanesArgs,
    ListSuspendedArgs,
    ReadExecutionContextArgs,
)
from flowfabric.contracts.schema import Form, Schemas
from flowfabric.contracts.streams import ReadSummaryArgs
from flowfabric.contracts.suspensions import ListPendingWaitpointsArgs
from flowfabric.contracts.workers import ListWorkersArgs
from flowfabric.core.registry import result_type_of
from flowfabric.engine.layers import operation_name
from flowfabric.server.access import Role
from flowfabric.server.calls import refused
from flowfabric.server.permissions import roles_for
from flowfabric.server.routes.live import LOG_QUERY, log_asked
from flowfabric.server.routes.table import PATH_FIELD, Parameter, route, text, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowfabric.contracts.base import Command
    from flowfabric.server.calls import Call

_PARSERS: Final[dict[str, Callable[[str], str] | None]] = {
    "execution_id": parse_execution_id,
    "flow_id": None,
    "edge_id": None,
    "quota_policy_id": None,
}
"""How ids in the path are read; None stands for a uuid."""
_LISTS: Final = (frozenset, tuple)
PAGE_ROWS: Final = 100


def form_wanted(call: Call) -> str:
    """The form that the client prefers; JSON unless it asks for msgpack."""
    return MSGPACK if MSGPACK in call.request.headers.get("accept", "") else JSON


def answered(call: Call, outcome: Any) -> Response:
    """The outcome of a read.

    Raises:
        Refused: there is no such thing.
    """
    if outcome is None:
        raise refused(404, "not found")
    form = form_wanted(call)
    return Response(pack(outcome, form), media_type=form, headers={"Vary": "Accept"})


def view(path: str, kind: type[Command[Any]], summary: str) -> None:
    """Register a GET route for a read.

    Args:
        path: where; what is in braces are fields of the command.
        kind: the command. Its other fields are query parameters; the namespace is the caller's.
        summary: what is seen.
    """
    in_path = PATH_FIELD.findall(path)
    hints = get_type_hints(kind, include_extras=True)
    asked = [field for field in msgspec.structs.fields(kind) if field.name not in {*in_path, "namespace"}]

    async def answer(call: Call) -> Response:
        told: dict[str, Any] = {name: _read(name, _path_part(call, name), hints[name]) for name in in_path}
        for field in asked:
            value = call.request.query_params.get(field.name)
            if value is not None:
                told[field.name] = _read(field.name, value, hints[field.name])
        if "namespace" in hints:
            told["namespace"] = call.namespace
        return answered(call, await call.execute(_made(kind, told)))

    answer.__name__ = f"view_{operation_name(kind)}"
    answer.__doc__ = summary
    schemas = Schemas(Form.PLAIN)
    route(
        "GET",
        path,
        *roles_for(operation_name(kind)),
        statuses={200: _without_none(result_type_of(kind))},
        form=Form.PLAIN,
        query={
            field.name: Parameter(
                _words(field.name), _query_schema(schemas, hints[field.name]), required=field.required
            )
            for field in asked
        },
    )(answer)


def _path_part(call: Call, name: str) -> str:
    return call.path_id(name, _PARSERS[name]) if name in _PARSERS else call.path(name)


def _words(name: str) -> str:
    """What a query parameter is, where its name says it all."""
    return {
        "cursor": "the next_cursor of the page before",
        "limit": "rows",
        "families": "the kinds of events, separated by commas",
    }.get(name, name.removesuffix("_id").replace("_", " "))


def _made(kind: type[Command[Any]], told: dict[str, Any]) -> Command[Any]:
    try:
        made: Command[Any] = msgspec.convert(told, kind)
    except msgspec.ValidationError as error:
        rule, _, path = str(error).partition(" - at `")
        raise errors.InvalidInput(field=path.rstrip("`").removeprefix("$").lstrip("."), rule=rule) from error
    return made


def _read(name: str, value: str, hint: Any) -> Any:
    """The value of a query parameter; the word null is text like any other.

    Raises:
        InvalidInput: it is no such value.
    """
    wanted = _present(hint)
    try:
        return msgspec.convert(value.split(",") if _is_list(hint) else value, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise errors.InvalidInput(field=name, value=value[:64], rule=str(error)) from error


def _present(hint: Any) -> Any:
    """What a value is when it is there."""
    members = [member for member in get_args(hint) if member is not NoneType]
    return reduce(or_, members) if NoneType in get_args(hint) else hint


def _is_list(hint: Any) -> bool:
    plain = unwrap(hint)[0]
    return (get_origin(plain) or plain) in _LISTS


def _query_schema(schemas: Schemas, hint: Any) -> dict[str, Any]:
    """The schema of a query parameter: of a scalar, or of several with commas between."""
    plain = unwrap(hint)[0]
    if _is_list(hint):
        return {"type": "string"}
    members = [member for member in get_args(plain) if member is not NoneType]
    return schemas.of(members[0]) if NoneType in get_args(plain) else schemas.of(hint)


def _without_none(result: Any) -> Any:
    """What a read answers with when there is something."""
    members = get_args(result)
    if NoneType not in members:
        return result
    [found, *_] = [member for member in members if member is not NoneType]
    return found


EXECUTION: Final = "/v1/view/executions/{execution_id}"
FLOW: Final = "/v1/view/flows/{flow_id}"

view("/v1/view/executions", ListExecutionSummariesArgs, "List executions, the newest first.")
view(EXECUTION, DescribeExecutionArgs, "Look at an execution as it is now.")
view(f"{EXECUTION}/explanation", ExplainExecutionArgs, "Say why an execution does not run.")
view(f"{EXECUTION}/input", ReadExecutionContextArgs, "Read what an execution's handler is given.")
view(f"{EXECUTION}/inputs", ReadParentResultsArgs, "Read what its upstreams hand down to an execution.")
view(f"{EXECUTION}/attempts", ListAttemptsArgs, "List the attempts of an execution.")
view(
    f"{EXECUTION}/attempts/{{attempt_index}}/summary",
    ReadSummaryArgs,
    "Read the summary document of an attempt's stream.",
)
view(f"{EXECUTION}/signals", ListSignalsArgs, "List the signals that an execution has received.")
view(f"{EXECUTION}/waitpoints", ListPendingWaitpointsArgs, "List what an execution waits for.")
view(f"{EXECUTION}/journal", ReadJournalArgs, "Read the journal of an execution's current generation.")
view(f"{EXECUTION}/events", ListEventsArgs, "Read the history of an execution, the oldest events first.")
view("/v1/view/suspended", ListSuspendedArgs, "List suspended executions, the earliest deadline first.")
view("/v1/view/expired-leases", ListExpiredLeasesArgs, "List lapsed leases, the oldest first.")
view("/v1/view/flows", ListFlowsArgs, "List flows.")
view(FLOW, DescribeFlowArgs, "Look at a flow as it is now.")
view(f"{FLOW}/members", ListFlowMembersArgs, "List the members of a flow.")
view(f"{FLOW}/edges/{{edge_id}}", DescribeEdgeArgs, "Look at one edge.")
view("/v1/view/lanes", ListLanesArgs, "List lanes, and what operators have said about them.")
view("/v1/view/workers", ListWorkersArgs, "List workers.")
view("/v1/view/quotas/{quota_policy_id}", ReadQuotaPolicyLimitsArgs, "Look at a quota policy.")
view("/v1/view/keys", ListWaitpointHmacKidsArgs, "List the ids of the keys that sign waitpoint tokens.")


@route(
    "GET",
    f"{FLOW}/members/{{execution_id}}/edges",
    Role.READ,
    statuses={200: EdgeList},
    form=Form.PLAIN,
    query={"direction": Parameter("in, the default, or out", {"type": "string", "enum": ["in", "out"]})},
)
async def view_edges(call: Call) -> Response:
    """List the edges before or behind a member of a flow."""
    member, direction = call.path_id("execution_id", parse_execution_id), call.query("direction") or "in"
    if direction not in ("in", "out"):
        raise errors.InvalidInput(field="direction", value=repr(direction[:64]), rule="in or out")
    side = IncomingEdges(to_node=member) if direction == "in" else OutgoingEdges(from_node=member)
    asked = ListEdgesArgs(flow_id=call.path_id("flow_id"), direction=side)
    return answered(call, await call.execute(asked))


@route(
    "GET",
    "/v1/view/events",
    Role.READ,
    statuses={200: EventsPage},
    form=Form.PLAIN,
    query={
        **LOG_QUERY,
        "after": text("the next_cursor of the page before; absent, all that are kept"),
        "limit": whole_number("events", 1, PAGE_ROWS_MAX),
    },
)
async def view_events(call: Call) -> Response:
    """Read the log of events from a place on; it ends where next_cursor stays the same."""
    asked = replace(log_asked(call), limit=call.query_number("limit", PAGE_ROWS, PAGE_ROWS_MAX))
    after = call.query("after") or FROM_START
    return answered(call, await call.execute(replace(asked, after=after)))

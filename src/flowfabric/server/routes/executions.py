"""Executions: create, look, cancel, signal, replay, and what operators do to leases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from flowfabric import errors
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    CreateExecutionArgs,
    CreateExecutionResult,
    ExecutionCancelled,
    ExecutionCreated,
    ExecutionReplayed,
    PriorityChanged,
    ReplayExecutionArgs,
)
from flowfabric.contracts.ids import parse_execution_id
from flowfabric.contracts.leases import (
    ClaimForWorkerArgs,
    ClaimGrant,
    IssueReclaimGrantArgs,
    RevokeLeaseArgs,
    RevokeLeaseResult,
    WorkGranted,
)
from flowfabric.contracts.limits import PAGE_ROWS_MAX, U16_MAX
from flowfabric.contracts.reads import (
    ExecutionInfo,
    GetExecutionResultArgs,
    ListExecutionsArgs,
    ListExecutionsPage,
    ReadExecutionInfoArgs,
    ReadExecutionStateArgs,
)
from flowfabric.contracts.signals import DeliverSignalArgs, DeliverSignalResult
from flowfabric.contracts.states import PublicState
from flowfabric.contracts.suspensions import (
    ListPendingWaitpointsArgs,
    PendingWaitpointInfo,
    ReadWaitpointTokenArgs,
)
from flowfabric.contracts.wire import reclaim_grant_to_wire
from flowfabric.server.access import Role
from flowfabric.server.calls import NO_STORE, refused
from flowfabric.server.problems import plain_problem
from flowfabric.server.routes.table import EXECUTION_BODY_BYTES, SIGNAL_BODY_BYTES, route, text, whole_number

if TYPE_CHECKING:
    from flowfabric.server.calls import Call

EXECUTION = "/v1/executions/{execution_id}"


def execution_id_of(call: Call) -> str:
    """The execution that the path names.

    Raises:
        Refused: it is no execution id.
    """
    return call.path_id("execution_id", parse_execution_id)


@route(
    "GET",
    "/v1/executions",
    Role.READ,
    statuses={200: ListExecutionsPage},
    query={
        "partition": whole_number("which partition to list", 0, U16_MAX, required=True),
        "cursor": text("the last id of the page before"),
        "limit": whole_number("rows; more than 1000 are not given", 0, 10**15),
    },
)
async def list_executions(call: Call) -> Response:
    """List the ids of one partition's executions."""
    cursor = call.query("cursor")
    try:
        after = None if cursor is None else parse_execution_id(cursor)
    except errors.InvalidInput as error:
        raise refused(400, f"invalid cursor: {error.rule}") from error
    limit = min(call.query_number("limit", 50), PAGE_ROWS_MAX)
    page = await call.execute(
        ListExecutionsArgs(partition=call.query_number("partition", most=U16_MAX), cursor=after, limit=limit)
    )
    return call.answer(page)


@route(
    "POST",
    "/v1/executions",
    Role.SUBMIT,
    body=CreateExecutionArgs,
    statuses={201: CreateExecutionResult, 200: CreateExecutionResult},
    body_bytes_max=EXECUTION_BODY_BYTES,
)
async def create_execution(call: Call) -> Response:
    """Create an execution; repeating it answers Duplicate."""
    outcome = await call.execute(await call.command(CreateExecutionArgs))
    return call.answer(outcome, 201 if isinstance(outcome, ExecutionCreated) else 200)


@route("GET", EXECUTION, Role.READ, statuses={200: ExecutionInfo})
async def read_execution(call: Call) -> Response:
    """Read one execution."""
    execution_id = execution_id_of(call)
    info = await call.execute(ReadExecutionInfoArgs(execution_id=execution_id))
    if info is None:
        raise refused(404, f"execution not found: {execution_id}")
    return call.answer(info)


@route("GET", f"{EXECUTION}/state", Role.READ, statuses={200: PublicState})
async def read_state(call: Call) -> Response:
    """Read the one word that says how an execution stands."""
    execution_id = execution_id_of(call)
    state = await call.execute(ReadExecutionStateArgs(execution_id=execution_id))
    if state is None:
        raise refused(404, f"execution not found: {execution_id}")
    return call.answer(state)


@route(
    "GET",
    f"{EXECUTION}/pending-waitpoints",
    Role.READ,
    statuses={200: list[PendingWaitpointInfo]},
)
async def list_pending_waitpoints(call: Call) -> Response:
    """List what an execution waits for; the tokens themselves are not shown."""
    page = await call.execute(ListPendingWaitpointsArgs(execution_id=execution_id_of(call)))
    return call.answer(page.entries)


@route(
    "GET",
    f"{EXECUTION}/waitpoints/{{waitpoint_id}}/token",
    Role.OPERATOR,
    statuses={200: dict[str, str]},
)
async def read_waitpoint_token(call: Call) -> Response:
    """Fetch the token that answers a waitpoint."""
    waitpoint_id = call.path_id("waitpoint_id")
    command = ReadWaitpointTokenArgs(execution_id=execution_id_of(call), waitpoint_id=waitpoint_id)
    try:
        token = await call.execute(command)
    except errors.NotFound:
        token = None
    if token is None:
        missing = plain_problem(404, "waitpoint token not found (consumed, expired, or unknown id)")
        return call.answer(missing.body, 404, NO_STORE)
    return call.answer({"token": token}, headers=NO_STORE)


@route("GET", f"{EXECUTION}/result", Role.READ, statuses={200: bytes})
async def read_result(call: Call) -> Response:
    """Read the bytes with which an execution completed."""
    execution_id = execution_id_of(call)
    try:
        result = await call.execute(GetExecutionResultArgs(execution_id=execution_id))
    except errors.NotFound:
        result = None
    if result is None:
        raise refused(404, f"execution result not found: {execution_id}")
    return Response(result, media_type="application/octet-stream")


@route(
    "POST", f"{EXECUTION}/cancel", Role.SUBMIT, body=CancelExecutionArgs, statuses={200: ExecutionCancelled}
)
async def cancel_execution(call: Call) -> Response:
    """Cancel an execution; a lease holder sends its fence along."""
    command = await call.command(CancelExecutionArgs, execution_id=execution_id_of(call))
    return call.answer(await call.execute(command))


@route(
    "POST",
    f"{EXECUTION}/signal",
    Role.SIGNAL,
    body=DeliverSignalArgs,
    statuses={200: DeliverSignalResult},
    body_bytes_max=SIGNAL_BODY_BYTES,
)
async def deliver_signal(call: Call) -> Response:
    """Answer a waitpoint with its token."""
    command = await call.command(DeliverSignalArgs, execution_id=execution_id_of(call))
    return call.answer(await call.execute(command))


@route(
    "PUT", f"{EXECUTION}/priority", Role.OPERATOR, body=ChangePriorityArgs, statuses={200: PriorityChanged}
)
async def change_priority(call: Call) -> Response:
    """Change how urgent an execution is while it waits."""
    command = await call.command(ChangePriorityArgs, execution_id=execution_id_of(call))
    return call.answer(await call.execute(command))


@route(
    "POST",
    f"{EXECUTION}/replay",
    Role.OPERATOR,
    statuses={200: ExecutionReplayed},
)
async def replay_execution(call: Call) -> Response:
    """Run an ended execution again."""
    return call.answer(await call.execute(ReplayExecutionArgs(execution_id=execution_id_of(call))))


@route(
    "POST",
    f"{EXECUTION}/revoke-lease",
    Role.OPERATOR,
    statuses={200: RevokeLeaseResult},
)
async def revoke_lease(call: Call) -> Response:
    """Take an execution away from the worker that holds it."""
    command = RevokeLeaseArgs(execution_id=execution_id_of(call), reason="operator_revoke")
    return call.answer(await call.execute(command))


@route(
    "POST",
    f"{EXECUTION}/reclaim",
    Role.WORKER,
    body=IssueReclaimGrantArgs,
    statuses={200: dict[str, Any]},
)
async def issue_reclaim_grant(call: Call) -> Response:
    """Ask for permission to take over an execution whose worker is gone."""
    body = await call.json()
    _require_grant_ttl(body)
    command = await call.command(IssueReclaimGrantArgs, execution_id=execution_id_of(call))
    return call.answer(reclaim_grant_to_wire(await call.execute(command)))


@route(
    "POST",
    "/v1/workers/{worker_id}/claim",
    Role.WORKER,
    body=ClaimForWorkerArgs,
    statuses={200: ClaimGrant, 204: None},
)
async def claim_for_worker(call: Call) -> Response:
    """Reserve the most urgent execution of a lane that this worker can run."""
    worker_id = call.path("worker_id")
    length = len(worker_id.encode(errors="replace"))
    if not worker_id.isprintable() or any(map(str.isspace, worker_id)) or length > _WORKER_ID_BYTES:
        raise refused(400, "worker_id must be 1 to 256 bytes without whitespace or control characters")
    body = await call.json()
    _require_grant_ttl(body)
    command = await call.command(
        ClaimForWorkerArgs, worker_id=worker_id, worker_capabilities=body.get("capabilities", [])
    )
    outcome = await call.execute(command)
    if not isinstance(outcome, WorkGranted):
        return Response(status_code=204)
    return call.answer(outcome.grant)


_WORKER_ID_BYTES = 256
_GRANT_TTL_MS_MAX = 60_000


def _require_grant_ttl(body: dict[str, Any]) -> None:
    ttl = body.get("grant_ttl_ms")
    if isinstance(ttl, int) and not 1 <= ttl <= _GRANT_TTL_MS_MAX:
        raise refused(400, f"grant_ttl_ms must be in 1..={_GRANT_TTL_MS_MAX}")

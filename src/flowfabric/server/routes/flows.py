"""Flows: open, add members and edges, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric import errors
from flowfabric.contracts.flows import (
    AddExecutionToFlowArgs,
    AddExecutionToFlowResult,
    ApplyDependencyToChildArgs,
    ApplyDependencyToChildResult,
    CancelFlowArgs,
    CancelFlowResult,
    CreateFlowArgs,
    CreateFlowResult,
    EdgeStaged,
    FlowCreated,
    MemberAdded,
    StageDependencyEdgeArgs,
)
from flowfabric.server.access import Role
from flowfabric.server.calls import refused
from flowfabric.server.routes.table import route, text

if TYPE_CHECKING:
    from starlette.responses import Response

    from flowfabric.server.calls import Call

FLOW = "/v1/flows/{flow_id}"


@route(
    "POST",
    "/v1/flows",
    Role.SUBMIT,
    body=CreateFlowArgs,
    statuses={201: CreateFlowResult, 200: CreateFlowResult},
)
async def create_flow(call: Call) -> Response:
    """Open a flow; repeating it answers AlreadySatisfied."""
    outcome = await call.execute(await call.command(CreateFlowArgs))
    return call.answer(outcome, 201 if isinstance(outcome, FlowCreated) else 200)


@route(
    "POST",
    f"{FLOW}/members",
    Role.SUBMIT,
    body=AddExecutionToFlowArgs,
    statuses={201: AddExecutionToFlowResult, 200: AddExecutionToFlowResult},
)
async def add_member(call: Call) -> Response:
    """Make an execution a member of a flow."""
    command = await call.command(AddExecutionToFlowArgs, flow_id=call.path_id("flow_id"))
    try:
        outcome = await call.execute(command)
    except errors.InvalidInput as error:
        raise refused(400, f"{error.code}: add_execution_to_flow: {error.rule}") from error
    return call.answer(outcome, 201 if isinstance(outcome, MemberAdded) else 200)


@route(
    "POST",
    f"{FLOW}/cancel",
    Role.SUBMIT,
    body=CancelFlowArgs,
    statuses={200: CancelFlowResult},
    query={"wait": text("true or 1: answer when all members are cancelled")},
)
async def cancel_flow(call: Call) -> Response:
    """Cancel a flow, and its members as the policy says."""
    wait = (call.query("wait") or "").lower() in ("true", "1")
    command = await call.command(CancelFlowArgs, flow_id=call.path_id("flow_id"), wait=wait)
    return call.answer(await call.execute(command))


@route("POST", f"{FLOW}/edges", Role.SUBMIT, body=StageDependencyEdgeArgs, statuses={201: EdgeStaged})
async def stage_edge(call: Call) -> Response:
    """Add an edge to a flow's graph."""
    command = await call.command(StageDependencyEdgeArgs, flow_id=call.path_id("flow_id"))
    return call.answer(await call.execute(command), 201)


@route(
    "POST",
    f"{FLOW}/edges/apply",
    Role.SUBMIT,
    body=ApplyDependencyToChildArgs,
    statuses={200: ApplyDependencyToChildResult},
)
async def apply_edge(call: Call) -> Response:
    """Let an edge that was added decide about its child."""
    command = await call.command(ApplyDependencyToChildArgs, flow_id=call.path_id("flow_id"))
    return call.answer(await call.execute(command))

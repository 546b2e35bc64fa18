"""Creating a whole flow in one commit, out of the rules that build one step by step."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from flowfabric import errors
from flowfabric.contracts.executions import ExecutionDuplicate
from flowfabric.contracts.flows import (
    AddEdgesArgs,
    AddExecutionToFlowArgs,
    CreateFlowArgs,
    FlowExists,
    FlowSubmitted,
    SubmitFlowArgs,
    SubmitFlowResult,
)
from flowfabric.core.records import Execution
from flowfabric.core.registry import rule
from flowfabric.core.rules.creation import create_execution, request_digest
from flowfabric.core.rules.edges import add_edges
from flowfabric.core.rules.flows import add_execution_to_flow, create_flow
from flowfabric.core.rules.graph import flow_subject, the_flow

if TYPE_CHECKING:
    from flowfabric.core.work import Work


@rule(SubmitFlowArgs, subject=flow_subject)
def submit_flow(work: Work, args: SubmitFlowArgs) -> SubmitFlowResult:
    """Create the flow, its members and its graph, all or nothing. A flow that exists stays as it is.

    Raises:
        IdempotencyConflict: the flow exists, and not because of this very submission.
        InvalidInput: an execution exists already, or is in another partition or namespace; or see
            ``create_flow`` and ``add_edges``, which say what else is refused.
    """
    opening = CreateFlowArgs(flow_id=args.flow_id, flow_kind=args.flow_kind, namespace=args.namespace)
    created = create_flow(work, opening)
    flow = the_flow(work, args.flow_id)
    digest = submission_digest(args)
    if isinstance(created, FlowExists):
        if flow.submission_sha256 != digest:
            raise errors.IdempotencyConflict(flow_id=args.flow_id)
        return created
    work.edit(flow).submission_sha256 = digest
    ids = tuple(execution.execution_id for execution in args.executions)
    work.read_all(Execution, ids)
    for execution in args.executions:
        if isinstance(create_execution(work, execution), ExecutionDuplicate):
            raise errors.InvalidInput(field="execution_id", value=execution.execution_id, rule="is in use")
        joining = AddExecutionToFlowArgs(flow_id=args.flow_id, execution_id=execution.execution_id)
        add_execution_to_flow(work, joining)
    add_edges(work, AddEdgesArgs(flow_id=args.flow_id, edges=args.edges, groups=args.groups, seal=args.seal))
    return FlowSubmitted(flow_id=args.flow_id, execution_ids=ids)


def submission_digest(args: SubmitFlowArgs) -> bytes:
    """A digest of the flow that is asked for, without the ids of edges, which are minted anew."""
    content = (
        args.flow_kind,
        [(execution.execution_id, request_digest(execution)) for execution in args.executions],
        [
            (edge.upstream_execution_id, edge.downstream_execution_id, edge.data_passing_ref)
            for edge in args.edges
        ],
        args.groups,
        args.seal,
    )
    return hashlib.sha256(msgspec.msgpack.encode(content)).digest()

"""Creating a whole flow in one commit, out of the rules that build one step by step."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

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
from flowfabric.core.policies import resolve_names
from flowfabric.core.records import (
    Budget,
    Edge,
    EdgeGroup,
    Execution,
    Flow,
    FlowNode,
    Key,
    Lane,
    QuotaPolicy,
    budget_identity,
    flow_identity,
    key_for,
    lane_identity,
    quota_identity,
)
from flowfabric.core.registry import rule
from flowfabric.core.rules.creation import create_execution, request_digest
from flowfabric.core.rules.edges import add_edges
from flowfabric.core.rules.flows import add_execution_to_flow, create_flow
from flowfabric.core.rules.graph import flow_subject, the_flow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowfabric.core.work import Work


def _touched(args: SubmitFlowArgs) -> tuple[Key, ...]:
    """What is there before the flow is, all of it read together.

    Were it asked for member by member, the rule would run once more for each of them.
    """
    return (*_made(args), *dict.fromkeys(_policies_named(args)))


def _made(args: SubmitFlowArgs) -> tuple[Key, ...]:
    """What is new, as far as it is read before it is written."""
    members = [execution.execution_id for execution in args.executions]
    flow = flow_identity(args.flow_id)
    return (
        key_for(Flow, flow),
        *(key_for(record_type, member) for record_type in MEMBER_RECORDS for member in members),
        *(key_for(Edge, f"{flow}/{edge.edge_id}") for edge in args.edges),
    )


MEMBER_RECORDS: Final = (Execution, FlowNode, EdgeGroup)
"""What is read of every member."""


def _policies_named(args: SubmitFlowArgs) -> Iterator[Key]:
    """The budgets and quota policies that the members name."""
    for execution in args.executions:
        policy = resolve_names(execution.policy, execution.namespace)
        if policy is None:
            continue
        yield from (key_for(Budget, budget_identity(budget_id)) for budget_id in policy.budget_ids or ())
        if policy.quota_policy_id is not None:
            yield key_for(QuotaPolicy, quota_identity(policy.quota_policy_id))


@rule(SubmitFlowArgs, subject=flow_subject, reads=_touched, makes=_made)
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
    lanes = {lane_identity(execution.namespace, execution.lane_id) for execution in args.executions}
    work.read_all(Lane, lanes)
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

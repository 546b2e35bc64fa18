"""Flows: members, edges, joins, cancelling, and what is carried from one member to another."""

from __future__ import annotations

from typing import Any, Final

from flowfabric import errors
from flowfabric.contracts.executions import CompleteExecutionArgs, CreateExecutionArgs
from flowfabric.contracts.flows import (
    AckCancelMemberArgs,
    AddEdgesArgs,
    AddExecutionToFlowArgs,
    AllOfEdges,
    AnyOfEdges,
    ApplyDependencyToChildArgs,
    CancelFlowArgs,
    CancelFlowHeaderArgs,
    CascadeCompletionArgs,
    CreateFlowArgs,
    DescribeEdgeArgs,
    DescribeFlowArgs,
    EdgeDependencyPolicy,
    EdgeDirection,
    EvaluateFlowEligibilityArgs,
    FlowCancellationPolicy,
    GetFlowTagArgs,
    GroupPolicy,
    IncomingEdges,
    ListEdgesArgs,
    ListFlowMembersArgs,
    ListFlowsArgs,
    NewEdge,
    OnSatisfied,
    OutgoingEdges,
    PromoteBlockedToEligibleArgs,
    QuorumOfEdges,
    ReadParentResultsArgs,
    ResolveDependencyArgs,
    SetEdgeGroupPolicyArgs,
    SetFlowTagArgs,
    SetFlowTagsArgs,
    StageDependencyEdgeArgs,
    SubmitFlowArgs,
)
from flowfabric.contracts.ids import flow_partition
from flowfabric.contracts.limits import TAGS_MAX
from flowfabric.core.commands import CancelFlowMemberArgs, DeliverMessageArgs
from flowfabric.core.records import (
    Edge,
    EdgeGroup,
    Execution,
    Flow,
    FlowMember,
    FlowNode,
    Message,
    flow_identity,
)
from flowfabric.core.state import Situation
from flowfabric.testing.bed import NAMESPACE
from flowfabric.testing.model.draw import PARTITION, Draw, generator

JOINS: Final[tuple[EdgeDependencyPolicy, ...]] = (
    AllOfEdges(),
    AnyOfEdges(),
    AnyOfEdges(on_satisfied=OnSatisfied.LET_RUN),
    QuorumOfEdges(k=2),
    QuorumOfEdges(k=1, on_satisfied=OnSatisfied.LET_RUN),
)
MEMBERS: Final = 4


@generator(CreateFlowArgs)
def create_flow(draw: Draw) -> CreateFlowArgs:
    """An empty one."""
    return CreateFlowArgs(flow_id=draw.new_flow_id(), flow_kind="dag", namespace=NAMESPACE)


@generator(SubmitFlowArgs)
def submit_flow(draw: Draw) -> SubmitFlowArgs:
    """With its members and edges, from earlier ones to later ones."""
    flow_id = draw.new_flow_id()
    place = flow_partition(flow_id)
    members = [draw.creation(execution_id=draw.id_in(place)) for _ in range(draw.pick((1, 2, MEMBERS)))]
    ids = [member.execution_id for member in members]
    edges = _edges_among(draw, ids)
    joined = {edge.downstream_execution_id: 0 for edge in edges}
    for edge in edges:
        joined[edge.downstream_execution_id] += 1
    return SubmitFlowArgs(
        flow_id=flow_id,
        flow_kind="dag",
        namespace=NAMESPACE,
        executions=tuple(members),
        edges=tuple(edges),
        groups=tuple(
            GroupPolicy(downstream_execution_id=child, policy=draw.pick(JOINS))
            for child, count in joined.items()
            if count > 1
        ),
        seal=draw.chance(0.7),
    )


def _edges_among(draw: Draw, ids: list[str]) -> list[NewEdge]:
    return [
        _edge(draw, upstream, downstream)
        for position, downstream in enumerate(ids)
        for upstream in ids[:position]
        if draw.chance(0.6)
    ]


def _edge(draw: Draw, upstream: str, downstream: str) -> NewEdge:
    return NewEdge(
        edge_id=draw.new_id(),
        upstream_execution_id=upstream,
        downstream_execution_id=downstream,
        data_passing_ref=draw.pick((None, "input")),
    )


@generator(AddExecutionToFlowArgs)
def add_execution_to_flow(draw: Draw) -> AddExecutionToFlowArgs:
    """A new member."""
    flow = draw.flow()
    free = [
        one
        for one in draw.executions(Situation.ELIGIBLE, Situation.DELAYED, Situation.RUNNING)
        if one.flow_id is None and one.execution_id.startswith(f"{{fp:{PARTITION}}}")
        if one.namespace == flow.namespace
    ]
    execution = draw.one_of(free, CreateExecutionArgs)
    return AddExecutionToFlowArgs(flow_id=flow.flow_id, execution_id=execution.execution_id)


@generator(AddExecutionToFlowArgs, provokes=errors.AlreadyMemberOfDifferentFlow)
def add_execution_to_another_flow(draw: Draw) -> AddExecutionToFlowArgs:
    """A member of one that there is."""
    members = draw.one_of(draw.world.all(FlowMember), AddExecutionToFlowArgs, SubmitFlowArgs)
    others = [
        one
        for one in draw.world.all(Flow)
        if one.flow_id != members.flow_id and one.sealed_at is None and one.cancelled_at is None
    ]
    return AddExecutionToFlowArgs(
        flow_id=draw.one_of(others, CreateFlowArgs).flow_id, execution_id=members.execution_id
    )


@generator(AddExecutionToFlowArgs, provokes=errors.FlowAlreadyTerminal)
def add_execution_to_a_cancelled_flow(draw: Draw) -> AddExecutionToFlowArgs:
    """Too late."""
    return AddExecutionToFlowArgs(flow_id=_cancelled(draw).flow_id, execution_id=draw.eligible().execution_id)


@generator(AddExecutionToFlowArgs, provokes=errors.FlowSealed)
def add_execution_to_a_sealed_flow(draw: Draw) -> AddExecutionToFlowArgs:
    """Whose graph is closed, while its members are at work."""
    sealed = [one for one in draw.world.all(Flow) if one.sealed_at is not None and one.cancelled_at is None]
    flow = draw.one_of(sealed, SubmitFlowArgs)
    return AddExecutionToFlowArgs(flow_id=flow.flow_id, execution_id=draw.eligible().execution_id)


@generator(DescribeFlowArgs)
def describe_flow(draw: Draw) -> DescribeFlowArgs:
    """With its joins."""
    return DescribeFlowArgs(flow_id=draw.flow(open_only=False).flow_id)


@generator(ListFlowMembersArgs)
def list_flow_members(draw: Draw) -> ListFlowMembersArgs:
    """A page."""
    flow = draw.flow(open_only=False)
    return ListFlowMembersArgs(flow_id=flow.flow_id, cursor=draw.pick((None, 0, 2)), limit=draw.pick((1, 50)))


@generator(ListFlowsArgs)
def list_flows(draw: Draw) -> ListFlowsArgs:
    """A page, from the beginning or behind one of them."""
    flow = draw.flow(open_only=False)
    return ListFlowsArgs(
        partition=flow_partition(flow.flow_id),
        cursor=draw.pick((None, flow.flow_id)),
        limit=draw.pick((1, 50)),
    )


# Tags


@generator(SetFlowTagsArgs)
def set_flow_tags(draw: Draw) -> SetFlowTagsArgs:
    """One or two."""
    tags = {key: draw.new_id() for key in draw.some(("owner.name", "cost.centre"), 2)}
    return SetFlowTagsArgs(flow_id=draw.flow(open_only=False).flow_id, tags=tags)


@generator(SetFlowTagsArgs, provokes=errors.FlowNotFound)
def set_tags_of_a_flow_that_is_not_there(draw: Draw) -> SetFlowTagsArgs:
    """Under an id that nothing has."""
    return SetFlowTagsArgs(flow_id=draw.new_id(), tags={f"many.n{number}": "" for number in range(TAGS_MAX)})


@generator(SetFlowTagArgs)
def set_flow_tag(draw: Draw) -> SetFlowTagArgs:
    """One."""
    return SetFlowTagArgs(flow_id=draw.flow(open_only=False).flow_id, key="owner.name", value=draw.new_id())


@generator(GetFlowTagArgs)
def get_flow_tag(draw: Draw) -> GetFlowTagArgs:
    """Set or not."""
    return GetFlowTagArgs(flow_id=draw.flow(open_only=False).flow_id, key="owner.name")


# Edges


@generator(StageDependencyEdgeArgs)
def stage_dependency_edge(draw: Draw) -> StageDependencyEdgeArgs:
    """From an earlier member to a later one."""
    flow = draw.flow()
    upstream, downstream = draw.members(flow, 2)
    return _staging(draw, flow, upstream.execution_id, downstream.execution_id)


def _staging(
    draw: Draw, flow: Flow, upstream: str, downstream: str, **fields: Any
) -> StageDependencyEdgeArgs:
    defaults: dict[str, Any] = {
        "flow_id": flow.flow_id,
        "edge_id": draw.new_id(),
        "upstream_execution_id": upstream,
        "downstream_execution_id": downstream,
        "expected_graph_revision": flow.graph_revision,
        "data_passing_ref": draw.pick((None, "input")),
    }
    return StageDependencyEdgeArgs(**{**defaults, **fields})


@generator(StageDependencyEdgeArgs, provokes=errors.CycleDetected)
def stage_an_edge_that_leads_back(draw: Draw) -> StageDependencyEdgeArgs:
    """From a member to one that it depends on."""
    open_flows = {
        one.flow_id: one for one in draw.world.all(Flow) if one.sealed_at is None and one.cancelled_at is None
    }
    edges = [one for one in draw.world.all(Edge) if one.flow_id in open_flows]
    edge = draw.one_of(edges, StageDependencyEdgeArgs)
    flow = open_flows[edge.flow_id]
    return _staging(draw, flow, edge.downstream_execution_id, edge.upstream_execution_id)


@generator(StageDependencyEdgeArgs, provokes=errors.SelfReferencingEdge)
def stage_an_edge_to_itself(draw: Draw) -> StageDependencyEdgeArgs:
    """Both ends are the same."""
    flow = draw.flow()
    [member] = draw.members(flow, 1)
    return _staging(draw, flow, member.execution_id, member.execution_id)


@generator(StageDependencyEdgeArgs, provokes=errors.StaleGraphRevision)
def stage_an_edge_upon_an_old_graph(draw: Draw) -> StageDependencyEdgeArgs:
    """With a revision that is not the flow's."""
    flow = draw.flow()
    upstream, downstream = draw.members(flow, 2)
    revision = flow.graph_revision + 1
    return _staging(
        draw, flow, upstream.execution_id, downstream.execution_id, expected_graph_revision=revision
    )


@generator(StageDependencyEdgeArgs, provokes=errors.ExecutionNotInFlow)
def stage_an_edge_from_outside(draw: Draw) -> StageDependencyEdgeArgs:
    """From an execution that is no member."""
    flow = draw.flow()
    [member] = draw.members(flow, 1)
    return _staging(draw, flow, draw.new_execution_id(), member.execution_id)


@generator(StageDependencyEdgeArgs, provokes=errors.DependencyAlreadyExists)
def stage_another_edge_under_an_id(draw: Draw) -> StageDependencyEdgeArgs:
    """With the ends the other way round."""
    edge = draw.edge()
    flow = next(one for one in draw.world.all(Flow) if one.flow_id == edge.flow_id)
    return _staging(
        draw, flow, edge.downstream_execution_id, edge.upstream_execution_id, edge_id=edge.edge_id
    )


@generator(StageDependencyEdgeArgs, provokes=errors.InvalidDependency)
def stage_an_edge_to_a_member_that_has_ended(draw: Draw) -> StageDependencyEdgeArgs:
    """Which can wait for nothing any more."""
    flow = draw.flow()
    upstream, downstream = draw.members(flow, 2)
    if downstream.completed_at is None:
        draw.one_of([], CompleteExecutionArgs)
    return _staging(draw, flow, upstream.execution_id, downstream.execution_id)


@generator(ApplyDependencyToChildArgs)
def apply_dependency_to_child(draw: Draw) -> ApplyDependencyToChildArgs:
    """Staged, and applied or not."""
    staged = [one for one in draw.world.all(Edge) if one.applied_at is None]
    edge = draw.one_of(staged or draw.world.all(Edge), StageDependencyEdgeArgs)
    return ApplyDependencyToChildArgs(
        flow_id=edge.flow_id,
        edge_id=edge.edge_id,
        downstream_execution_id=edge.downstream_execution_id,
        upstream_execution_id=edge.upstream_execution_id,
        graph_revision=edge.staged_revision,
    )


@generator(AddEdgesArgs)
def add_edges(draw: Draw) -> AddEdgesArgs:
    """One or more, with the policy of a join, sealing the graph or not."""
    flow = draw.flow()
    members = draw.members(flow, min(max(flow.node_count, 2), MEMBERS))
    ids = [one.execution_id for one in members]
    edges = [_edge(draw, upstream, ids[-1]) for upstream in ids[:-1]]
    joined = draw.world.find(EdgeGroup, ids[-1])
    fresh = joined is None or joined.total == 0
    policy = draw.pick(JOINS if len(edges) > 1 else JOINS[:3])
    groups = (GroupPolicy(downstream_execution_id=ids[-1], policy=policy),) if fresh else ()
    return AddEdgesArgs(flow_id=flow.flow_id, edges=tuple(edges), groups=groups, seal=draw.chance(0.2))


@generator(SetEdgeGroupPolicyArgs)
def set_edge_group_policy(draw: Draw) -> SetEdgeGroupPolicyArgs:
    """Before the first edge, or the same once more."""
    flow = draw.flow()
    [member] = draw.members(flow, 1)
    return SetEdgeGroupPolicyArgs(
        flow_id=flow.flow_id, downstream_execution_id=member.execution_id, policy=draw.pick(JOINS)
    )


@generator(DescribeEdgeArgs)
def describe_edge(draw: Draw) -> DescribeEdgeArgs:
    """Any."""
    edge = draw.edge()
    return DescribeEdgeArgs(flow_id=edge.flow_id, edge_id=edge.edge_id)


@generator(ListEdgesArgs)
def list_edges(draw: Draw) -> ListEdgesArgs:
    """At either side of a member."""
    node = draw.one_of(draw.world.all(FlowNode), AddEdgesArgs, SubmitFlowArgs)
    sides: tuple[EdgeDirection, ...] = (
        OutgoingEdges(from_node=node.execution_id),
        IncomingEdges(to_node=node.execution_id),
    )
    return ListEdgesArgs(flow_id=node.flow_id, direction=draw.pick(sides))


@generator(ResolveDependencyArgs)
def resolve_dependency(draw: Draw) -> ResolveDependencyArgs:
    """Whose upstream has ended."""
    ended = [
        (edge, upstream)
        for edge in draw.world.all(Edge)
        for upstream in [draw.world.find(Execution, edge.upstream_execution_id)]
        if upstream is not None and upstream.completed_at is not None
    ]
    edge, upstream = draw.one_of(ended, CompleteExecutionArgs if draw.world.all(Edge) else AddEdgesArgs)
    return ResolveDependencyArgs(
        flow_id=edge.flow_id, edge_id=edge.edge_id, upstream_outcome=str(upstream.outcome)
    )


# What follows from an end


@generator(CascadeCompletionArgs)
def cascade_completion(draw: Draw) -> CascadeCompletionArgs:
    """Of a member that has ended."""
    return CascadeCompletionArgs(execution_id=draw.terminal().execution_id)


@generator(DeliverMessageArgs)
def deliver_message(draw: Draw) -> DeliverMessageArgs:
    """One that is on its way, or one that has arrived."""
    waiting = draw.world.all(Message)
    if waiting:
        return DeliverMessageArgs(message_id=draw.pick(waiting).identity)
    return DeliverMessageArgs(message_id=f"{draw.execution().execution_id}/gone/0")


@generator(PromoteBlockedToEligibleArgs)
def promote_blocked_to_eligible(draw: Draw) -> PromoteBlockedToEligibleArgs:
    """Whose join is satisfied."""
    free = [
        one
        for one in draw.executions(Situation.ELIGIBLE, Situation.DELAYED)
        if draw.world.find(EdgeGroup, one.execution_id) is not None and not one.unresolved_dependencies
    ]
    execution = draw.one_of(free, SetEdgeGroupPolicyArgs, ResolveDependencyArgs)
    return PromoteBlockedToEligibleArgs(execution_id=execution.execution_id)


@generator(PromoteBlockedToEligibleArgs, provokes=errors.NotBlockedByDeps)
def promote_what_no_join_holds(draw: Draw) -> PromoteBlockedToEligibleArgs:
    """Because it has none."""
    alone = [one for one in draw.executions(Situation.ELIGIBLE) if one.flow_id is None]
    return PromoteBlockedToEligibleArgs(execution_id=draw.one_of(alone, CreateExecutionArgs).execution_id)


@generator(PromoteBlockedToEligibleArgs, provokes=errors.DepsNotSatisfied)
def promote_what_still_waits(draw: Draw) -> PromoteBlockedToEligibleArgs:
    """For its upstreams."""
    held = [one for one in draw.executions(Situation.BLOCKED) if one.unresolved_dependencies]
    found = draw.one_of(held, SubmitFlowArgs, AddEdgesArgs)
    return PromoteBlockedToEligibleArgs(execution_id=found.execution_id)


@generator(PromoteBlockedToEligibleArgs, provokes=errors.NotRunnable)
def promote_what_runs(draw: Draw) -> PromoteBlockedToEligibleArgs:
    """Which needs no promoting."""
    return PromoteBlockedToEligibleArgs(execution_id=draw.running().execution_id)


@generator(PromoteBlockedToEligibleArgs, provokes=errors.Terminal)
def promote_what_has_ended(draw: Draw) -> PromoteBlockedToEligibleArgs:
    """Too late."""
    return PromoteBlockedToEligibleArgs(execution_id=draw.terminal().execution_id)


@generator(EvaluateFlowEligibilityArgs)
def evaluate_flow_eligibility(draw: Draw) -> EvaluateFlowEligibilityArgs:
    """Whatever its state."""
    return EvaluateFlowEligibilityArgs(execution_id=draw.execution().execution_id)


@generator(ReadParentResultsArgs)
def read_parent_results(draw: Draw) -> ReadParentResultsArgs:
    """Of a member with dependencies."""
    group = draw.one_of(draw.world.all(EdgeGroup), AddEdgesArgs, SubmitFlowArgs)
    return ReadParentResultsArgs(execution_id=group.execution_id)


# Cancelling


@generator(CancelFlowArgs)
def cancel_flow(draw: Draw) -> CancelFlowArgs:
    """Waiting for its members or not."""
    return CancelFlowArgs(
        flow_id=draw.flow(open_only=False).flow_id,
        reason="unwanted",
        cancellation_policy=draw.pick(tuple(FlowCancellationPolicy)),
        wait=draw.chance(0.5),
    )


@generator(CancelFlowHeaderArgs)
def cancel_flow_header(draw: Draw) -> CancelFlowHeaderArgs:
    """The first half of cancelling."""
    return CancelFlowHeaderArgs(
        flow_id=draw.flow(open_only=False).flow_id,
        reason="unwanted",
        cancellation_policy=draw.pick(tuple(FlowCancellationPolicy)),
    )


def _cancelled(draw: Draw) -> Flow:
    found = [one for one in draw.world.all(Flow) if one.cancelled_at is not None]
    return draw.one_of(found, CancelFlowArgs, CancelFlowHeaderArgs)


@generator(CancelFlowMemberArgs)
def cancel_flow_member(draw: Draw) -> CancelFlowMemberArgs:
    """On the list or not."""
    flow = _cancelled(draw)
    place = draw.random.randrange(max(flow.node_count, 1))
    return CancelFlowMemberArgs(member_id=f"{flow_identity(flow.flow_id)}/{place}")


@generator(AckCancelMemberArgs)
def ack_cancel_member(draw: Draw) -> AckCancelMemberArgs:
    """On the list or not."""
    flow = _cancelled(draw)
    [member] = draw.members(flow, 1)
    return AckCancelMemberArgs(flow_id=flow.flow_id, execution_id=member.execution_id)

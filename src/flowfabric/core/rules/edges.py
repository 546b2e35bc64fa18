"""Building the graph of a flow: edges, and the policies of the joins they lead to.

The rules this module keeps:

- A staged edge holds its downstream back from the same commit on, so no crash leaves an edge that
  is in the graph and does not count.
- Staging never decides a join: the next edge may be on its way. Applying does, and adding edges
  together does it once, after the last of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric import errors
from flowfabric.contracts.flows import (
    ALL_REQUIRED,
    ENGINE,
    SUCCESS_ONLY,
    AddEdgesArgs,
    AddEdgesResult,
    ApplyDependencyToChildArgs,
    ApplyDependencyToChildResult,
    DependencyAlreadyApplied,
    DependencyApplied,
    DescribeEdgeArgs,
    EdgeDependencyPolicy,
    EdgeGroupPolicyAlreadySet,
    EdgeGroupPolicySet,
    EdgeGroupState,
    EdgeList,
    EdgesAdded,
    EdgeSnapshot,
    EdgeStaged,
    ListEdgesArgs,
    NewEdge,
    OutgoingEdges,
    SetEdgeGroupPolicyArgs,
    SetEdgeGroupPolicyResult,
    StageDependencyEdgeArgs,
    StageDependencyEdgeResult,
)
from flowfabric.contracts.limits import EDGES_PER_NODE_MAX, FLOW_NODES_MAX, GRAPH_WALK_MAX
from flowfabric.contracts.states import LifecyclePhase
from flowfabric.core.records import (
    Edge,
    EdgeGroup,
    Execution,
    Flow,
    FlowNode,
    Key,
    Link,
    flow_identity,
    key_for,
)
from flowfabric.core.registry import rule
from flowfabric.core.rules.graph import (
    find_flow,
    flow_subject,
    refuse_cycles,
    require_members,
    require_open,
    the_edge,
    the_flow,
)
from flowfabric.core.rules.joins import (
    PENDING,
    block_or_free,
    count_member,
    edges_at,
    is_short,
    judge,
    needed,
    open_dependencies,
    resolve_later,
    settle_edge,
    the_group,
    verdict_of,
)
from flowfabric.core.state import is_terminal

if TYPE_CHECKING:
    from flowfabric.core.work import Work


def _edge_subject(command: ApplyDependencyToChildArgs) -> Key:
    return key_for(Edge, f"{flow_identity(command.flow_id)}/{command.edge_id}")


def _group_subject(command: SetEdgeGroupPolicyArgs) -> Key:
    return key_for(EdgeGroup, command.downstream_execution_id)


# Staging and applying


@rule(StageDependencyEdgeArgs, subject=flow_subject)
def stage_dependency_edge(work: Work, args: StageDependencyEdgeArgs) -> StageDependencyEdgeResult:
    """Put an edge into the graph. Asking for the same edge again gives the first answer.

    Raises:
        SelfReferencingEdge, FlowNotFound, DependencyAlreadyExists (with other ends),
        FlowAlreadyTerminal, FlowSealed, StaleGraphRevision, ExecutionNotInFlow, FlowTooLarge,
        CycleDetected, InvalidDependency (the downstream has ended): in this order.
    """
    asked = NewEdge(
        edge_id=args.edge_id,
        upstream_execution_id=args.upstream_execution_id,
        downstream_execution_id=args.downstream_execution_id,
        data_passing_ref=args.data_passing_ref,
    )
    _refuse_self_reference(asked)
    flow = the_flow(work, args.flow_id)
    existing = _same_edge(work, flow, asked)
    if existing is not None:
        return EdgeStaged(edge_id=args.edge_id, new_graph_revision=existing.staged_revision)
    require_open(work, flow)
    _require_revision(flow, args.expected_graph_revision)
    flow = work.edit(flow)
    edge = _link(work, flow, asked)
    refuse_cycles(work, flow, [edge], GRAPH_WALK_MAX)
    _hold_back(work, flow, edge.downstream_execution_id)
    upstream = work.read(Execution, edge.upstream_execution_id)
    if upstream is not None and is_terminal(upstream):
        resolve_later(work, upstream)
    return EdgeStaged(edge_id=args.edge_id, new_graph_revision=flow.graph_revision)


def _refuse_self_reference(asked: NewEdge) -> None:
    if asked.upstream_execution_id == asked.downstream_execution_id:
        raise errors.SelfReferencingEdge(execution_id=asked.upstream_execution_id)


def _require_revision(flow: Flow, expected: int | None) -> None:
    if expected is not None and expected != flow.graph_revision:
        raise errors.StaleGraphRevision(expected=expected, current=flow.graph_revision)


def _same_edge(work: Work, flow: Flow, asked: NewEdge) -> Edge | None:
    """The edge with this id, if it is the one that is asked for.

    Raises:
        DependencyAlreadyExists: the id belongs to another edge.
    """
    edge = the_edge(work, flow.flow_id, asked.edge_id)
    if edge is None:
        return None
    same = (edge.upstream_execution_id, edge.downstream_execution_id, edge.data_passing_ref) == (
        asked.upstream_execution_id,
        asked.downstream_execution_id,
        asked.data_passing_ref,
    )
    if not same:
        raise errors.DependencyAlreadyExists(
            edge_id=edge.edge_id,
            upstream_execution_id=edge.upstream_execution_id,
            downstream_execution_id=edge.downstream_execution_id,
        )
    return edge


def _link(work: Work, flow: Flow, asked: NewEdge) -> Edge:
    """Put a new edge into the graph. ``flow`` is a copy that may be changed."""
    upstream_id, downstream_id = asked.upstream_execution_id, asked.downstream_execution_id
    require_members(work, flow, [upstream_id, downstream_id])
    upstream, downstream = _node(work, flow, upstream_id), _node(work, flow, downstream_id)
    if max(len(upstream.outgoing), len(downstream.incoming)) >= EDGES_PER_NODE_MAX:
        raise errors.FlowTooLarge(edge_id=asked.edge_id, edges_per_node_max=EDGES_PER_NODE_MAX)
    upstream.outgoing = (*upstream.outgoing, Link(asked.edge_id, downstream_id))
    _count_again(work, upstream)
    downstream.incoming = (*downstream.incoming, Link(asked.edge_id, upstream_id))
    flow.graph_revision += 1
    flow.edge_count += 1
    flow.last_mutation_at = work.now
    edge = Edge(
        flow_id=flow.flow_id,
        namespace=flow.namespace,
        edge_id=asked.edge_id,
        upstream_execution_id=upstream_id,
        downstream_execution_id=downstream_id,
        data_passing_ref=asked.data_passing_ref,
        created_at=work.now,
        staged_revision=flow.graph_revision,
    )
    work.add(edge)
    return edge


def _node(work: Work, flow: Flow, execution_id: str) -> FlowNode:
    """A copy of the member's node that may be changed; a new one if it has no edges yet."""
    node = work.read(FlowNode, execution_id)
    if node is not None:
        return work.edit(node)
    node = FlowNode(execution_id=execution_id, flow_id=flow.flow_id)
    work.add(node)
    return node


def _count_again(work: Work, upstream: FlowNode) -> None:
    """A member that has ended without success is not the last of its branch any more."""
    member = work.read(Execution, upstream.execution_id)
    if len(upstream.outgoing) == 1 and member is not None and is_terminal(member):
        count_member(work, member)


def _group(work: Work, flow: Flow, execution_id: str) -> EdgeGroup:
    """A copy of the member's join that may be changed; a new one if it has none yet."""
    group = work.read(EdgeGroup, execution_id)
    if group is not None:
        return work.edit(group)
    group = EdgeGroup(execution_id=execution_id, flow_id=flow.flow_id)
    work.add(group)
    return group


def _hold_back(work: Work, flow: Flow, execution_id: str) -> None:
    """Count one more edge in the join; one that needs every upstream is undecided again."""
    child = work.read(Execution, execution_id)
    if child is None or is_terminal(child):
        raise errors.InvalidDependency(
            field="downstream_execution_id", value=execution_id, rule="an execution that has not ended"
        )
    group = _group(work, flow, execution_id)
    flow.short_joins -= is_short(group)
    group.total += 1
    flow.short_joins += is_short(group)
    if group.state is EdgeGroupState.SATISFIED and verdict_of(group) is EdgeGroupState.PENDING:
        group.state, group.decided_at = EdgeGroupState.PENDING, None
    child = work.edit(child)
    child.unresolved_dependencies = open_dependencies(group)
    if child.phase is LifecyclePhase.RUNNABLE:
        child.grant = None if child.unresolved_dependencies else child.grant
        block_or_free(work, child)


@rule(ApplyDependencyToChildArgs, subject=_edge_subject)
def apply_dependency_to_child(work: Work, args: ApplyDependencyToChildArgs) -> ApplyDependencyToChildResult:
    """Confirm a staged edge. If its upstream has ended, it is resolved here and now.

    Raises:
        FlowNotFound: there is no such flow.
        InvalidDependency: no such edge was staged, or it has other ends.
    """
    flow = the_flow(work, args.flow_id)
    edge = the_edge(work, flow.flow_id, args.edge_id)
    ends = (args.upstream_execution_id, args.downstream_execution_id)
    if edge is None or (edge.upstream_execution_id, edge.downstream_execution_id) != ends:
        raise errors.InvalidDependency(field="edge_id", value=args.edge_id, rule="an edge that was staged")
    if edge.applied_at is not None:
        return DependencyAlreadyApplied()
    edge = work.edit(edge)
    edge.applied_at = work.now
    _settle_if_ended(work, edge)
    judge(work, edge.downstream_execution_id)
    group = the_group(work, edge.downstream_execution_id)
    return DependencyApplied(unsatisfied_count=open_dependencies(group))


def _settle_if_ended(work: Work, edge: Edge) -> None:
    upstream = work.read(Execution, edge.upstream_execution_id)
    if edge.state == PENDING and upstream is not None and is_terminal(upstream):
        settle_edge(work, edge, upstream)


# Many at once


@rule(AddEdgesArgs, subject=flow_subject)
def add_edges(work: Work, args: AddEdgesArgs) -> AddEdgesResult:
    """Add edges with the policies of their joins, and seal the graph if asked to. All or nothing.

    Raises:
        FlowNotFound, FlowAlreadyTerminal, FlowSealed, StaleGraphRevision: in this order.
        InvalidInput: a join's policy is fixed, or it asks for more upstreams than there are.
        SelfReferencingEdge, DependencyAlreadyExists, ExecutionNotInFlow, CycleDetected,
        InvalidDependency, FlowTooLarge: see ``stage_dependency_edge``.
    """
    flow = the_flow(work, args.flow_id)
    require_open(work, flow)
    _require_revision(flow, args.expected_graph_revision)
    ends = [edge.upstream_execution_id for edge in args.edges]
    downstream_ids = [edge.downstream_execution_id for edge in args.edges]
    named = [group.downstream_execution_id for group in args.groups]
    _load(work, flow, args, [*ends, *downstream_ids, *named])
    require_members(work, flow, named)
    for group in args.groups:
        _set_policy(work, flow, group.downstream_execution_id, group.policy)
    flow = work.edit(flow)
    added = [_link(work, flow, asked) for asked in args.edges if _is_new(work, flow, asked)]
    refuse_cycles(work, flow, added, FLOW_NODES_MAX)
    for edge in added:
        _hold_back(work, flow, edge.downstream_execution_id)
    _require_attainable([the_group(work, execution_id) for execution_id in (*downstream_ids, *named)])
    for asked in args.edges:
        _apply_now(work, flow, asked)
    for execution_id in dict.fromkeys(downstream_ids):
        judge(work, execution_id)
    if args.seal:
        _seal(work, flow)
    return EdgesAdded(edge_count=flow.edge_count, new_graph_revision=flow.graph_revision)


def _load(work: Work, flow: Flow, args: AddEdgesArgs, execution_ids: list[str]) -> None:
    """Read together what the edges are going to touch."""
    ids = list(dict.fromkeys(execution_ids))
    work.read_all(Execution, ids)
    work.read_all(FlowNode, ids)
    work.read_all(EdgeGroup, ids)
    work.read_all(Edge, [f"{flow.identity}/{edge.edge_id}" for edge in args.edges])


def _is_new(work: Work, flow: Flow, asked: NewEdge) -> bool:
    _refuse_self_reference(asked)
    return _same_edge(work, flow, asked) is None


def _apply_now(work: Work, flow: Flow, asked: NewEdge) -> None:
    edge = the_edge(work, flow.flow_id, asked.edge_id)
    assert edge is not None
    if edge.applied_at is None:
        edge = work.edit(edge)
        edge.applied_at = work.now
    _settle_if_ended(work, edge)


def _require_attainable(groups: list[EdgeGroup]) -> None:
    """Refuse a join that asks for more successes than it has upstreams.

    Raises:
        InvalidInput: it would never be decided.
    """
    for group in groups:
        if is_short(group):
            raise errors.InvalidInput(
                field="policy.k",
                value=str(needed(group.policy, group.total)),
                rule=f"at most {group.total}, the incoming edges of {group.execution_id}",
            )


def _seal(work: Work, flow: Flow) -> None:
    if flow.short_joins:
        raise errors.InvalidInput(
            field="policy.k",
            value=str(flow.short_joins),
            rule="no join that asks for more upstreams than it has",
        )
    flow.sealed_at = flow.last_mutation_at = work.now


# Policies


@rule(SetEdgeGroupPolicyArgs, subject=_group_subject)
def set_edge_group_policy(work: Work, args: SetEdgeGroupPolicyArgs) -> SetEdgeGroupPolicyResult:
    """Say how the edges to a member are joined. It is fixed once the first of them is staged.

    Raises:
        FlowNotFound, FlowAlreadyTerminal, FlowSealed, ExecutionNotInFlow: in this order.
        InvalidInput: the member has incoming edges already, and another policy.
    """
    flow = the_flow(work, args.flow_id)
    require_open(work, flow)
    require_members(work, flow, [args.downstream_execution_id])
    changed = _set_policy(work, flow, args.downstream_execution_id, args.policy)
    return EdgeGroupPolicySet() if changed else EdgeGroupPolicyAlreadySet()


def _set_policy(work: Work, flow: Flow, execution_id: str, policy: EdgeDependencyPolicy) -> bool:
    group = work.read(EdgeGroup, execution_id)
    if group is not None and group.policy == policy:
        return False
    if group is not None and group.total:
        raise errors.InvalidInput(
            field="policy", value=type(policy).__name__, rule="edge_group_policy_already_fixed"
        )
    _group(work, flow, execution_id).policy = policy
    return True


# Reads


@rule(DescribeEdgeArgs, subject=flow_subject, query=True)
def describe_edge(work: Work, args: DescribeEdgeArgs) -> EdgeSnapshot | None:
    """One edge, or None."""
    flow = find_flow(work, args.flow_id)
    edge = None if flow is None else the_edge(work, flow.flow_id, args.edge_id)
    return None if edge is None else _snapshot(edge)


@rule(ListEdgesArgs, subject=flow_subject, query=True)
def list_edges(work: Work, args: ListEdgesArgs) -> EdgeList:
    """The edges at one side of a member; none for an execution without edges or an unknown flow.

    Raises:
        StoreCorrupt: an edge that the member's node names is gone or has other ends.
    """
    flow = find_flow(work, args.flow_id)
    subject = args.direction.subject
    node = None if flow is None else work.read(FlowNode, subject)
    if flow is None or node is None or node.flow_id != flow.flow_id:
        return EdgeList(edges=())
    outgoing = isinstance(args.direction, OutgoingEdges)
    links = node.outgoing if outgoing else node.incoming
    edges = edges_at(work, flow.flow_id, links)
    for link, edge in zip(links, edges, strict=True):
        ends = (edge.upstream_execution_id, edge.downstream_execution_id)
        if ends != ((subject, link.execution_id) if outgoing else (link.execution_id, subject)):
            raise errors.StoreCorrupt(record=edge.key, named_by=node.key)
    return EdgeList(edges=tuple(_snapshot(edge) for edge in edges))


def _snapshot(edge: Edge) -> EdgeSnapshot:
    return EdgeSnapshot(
        edge_id=edge.edge_id,
        flow_id=edge.flow_id,
        upstream_execution_id=edge.upstream_execution_id,
        downstream_execution_id=edge.downstream_execution_id,
        dependency_kind=SUCCESS_ONLY,
        satisfaction_condition=ALL_REQUIRED,
        data_passing_ref=edge.data_passing_ref,
        edge_state=edge.state,
        created_at=edge.created_at,
        created_by=ENGINE,
    )

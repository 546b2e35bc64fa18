"""Finding one's way in a flow: its records, its state, its members, and the walk over its edges."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from flowfabric import errors
from flowfabric.contracts.flows import FlowCancellationPolicy
from flowfabric.contracts.limits import FLOW_NODES_MAX
from flowfabric.contracts.states import TerminalOutcome
from flowfabric.core.records import (
    Edge,
    Execution,
    Flow,
    FlowMember,
    FlowNode,
    FlowProgress,
    Key,
    flow_identity,
    key_for,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.core.work import Work

DROPPED: Final = "dropped"
"""How a member is counted that was cancelled because no join needed it any more."""

OPEN: Final = "open"
RUNNING: Final = "running"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"

GOOD: Final = frozenset({TerminalOutcome.SUCCESS, DROPPED})
"""The ends of members that are no failure."""


STEPS_LOADED_ALONE: Final = 16
"""How deep the graph is walked before all of it is loaded."""


def flow_subject(command: Any) -> Key:
    """The subject of every command that names one flow."""
    return key_for(Flow, flow_identity(command.flow_id))


def find_flow(work: Work, flow_id: str) -> Flow | None:
    """The flow, or None if there is none in the caller's namespace."""
    flow = work.read(Flow, flow_identity(flow_id))
    namespace = work.envelope.namespace
    if flow is None or flow.removing_since is not None:
        return None
    return flow if namespace in (None, flow.namespace) else None


def the_flow(work: Work, flow_id: str) -> Flow:
    """The flow.

    Raises:
        FlowNotFound: there is none, or it belongs to another namespace.
    """
    flow = find_flow(work, flow_id)
    if flow is None:
        raise errors.FlowNotFound(flow_id=flow_id)
    return flow


def progress_of(work: Work, flow: Flow) -> FlowProgress:
    """How the members of a flow have ended."""
    progress = work.read(FlowProgress, flow.identity)
    if progress is None:
        raise errors.StoreCorrupt(record=key_for(FlowProgress, flow.identity))
    return progress


def flow_state(flow: Flow, progress: FlowProgress) -> str:
    """The public state of a flow: a pure function, so that nothing can leave it stale.

    Whether a failure counts is told by what followed: a join that needed the failed member has
    skipped its downstream, and so on to a member that no other depends on. So only those are judged.
    """
    if flow.cancelled_at is not None:
        return CANCELLED
    ended = sum(progress.outcomes.values())
    if flow.sealed_at is None or ended < flow.node_count:
        return RUNNING if ended or flow.sealed_at is not None else OPEN
    return FAILED if progress.lost_sinks else COMPLETED


def require_open(work: Work, flow: Flow) -> None:
    """Refuse a flow that takes no members and edges any more.

    Raises:
        FlowAlreadyTerminal, FlowSealed: it has ended, or its graph is closed.
    """
    state = flow_state(flow, progress_of(work, flow))
    if state in (CANCELLED, COMPLETED, FAILED):
        raise errors.FlowAlreadyTerminal(flow_id=flow.flow_id, flow_state=state)
    if flow.sealed_at is not None:
        raise errors.FlowSealed(flow_id=flow.flow_id)


def members_of(work: Work, flow: Flow, *, first: int = 0, limit: int = FLOW_NODES_MAX) -> list[FlowMember]:
    """Members of a flow from a position on, in the order in which they were added.

    Raises:
        StoreCorrupt: one of them is gone.
    """
    positions = range(first, min(flow.node_count, first + limit))
    members = work.read_all(FlowMember, [f"{flow.identity}/{position}" for position in positions])
    found = [member for member in members if member is not None]
    if len(found) < len(positions):
        raise errors.StoreCorrupt(record=flow.key, members=len(found), expected=len(positions))
    return found


def require_members(work: Work, flow: Flow, execution_ids: list[str]) -> None:
    """Refuse executions that are not members of the flow.

    Raises:
        ExecutionNotInFlow: the first one that is not.
    """
    for execution_id, execution in zip(execution_ids, work.read_all(Execution, execution_ids), strict=True):
        if execution is None or execution.flow_id != flow.flow_id:
            raise errors.ExecutionNotInFlow(execution_id=execution_id, flow_id=flow.flow_id)


def the_edge(work: Work, flow_id: str, edge_id: str) -> Edge | None:
    """The edge of a flow with this id."""
    return work.read(Edge, f"{flow_identity(flow_id)}/{edge_id}")


def refuse_cycles(work: Work, flow: Flow, edges: Sequence[Edge], nodes_max: int) -> None:
    """Refuse edges that close a cycle. They are in the nodes of the graph already.

    A cycle has an edge that leads on at both ends, and all of it is reached from there. Most graphs
    are built from their sources on, one edge at a time, and then one look at both ends is enough.

    Raises:
        CycleDetected: they close a cycle, or more nodes than ``nodes_max`` are reached from them.
    """
    uppers = work.read_all(FlowNode, [edge.upstream_execution_id for edge in edges])
    lowers = work.read_all(FlowNode, [edge.downstream_execution_id for edge in edges])
    inner = [
        edge
        for edge, upper, lower in zip(edges, uppers, lowers, strict=True)
        if upper is not None and upper.incoming and lower is not None and lower.outgoing
    ]
    reached = _reached(work, flow, {edge.downstream_execution_id for edge in inner}, nodes_max)
    too_many = len(reached) > nodes_max
    cyclic = set() if too_many else _on_cycles(reached)
    for edge in inner:
        if too_many or {edge.upstream_execution_id, edge.downstream_execution_id} <= cyclic:
            raise errors.CycleDetected(
                upstream_execution_id=edge.upstream_execution_id,
                downstream_execution_id=edge.downstream_execution_id,
                walked=len(reached),
            )


def _reached(work: Work, flow: Flow, starts: set[str], nodes_max: int) -> dict[str, list[str]]:
    """Where one gets to from the members, with the members that follow each.

    Every step may be a load and a new run of the rule, so a deep graph is loaded as a whole.
    """
    reached: dict[str, list[str]] = {}
    front = list(starts)
    for depth in count():
        if not front or len(reached) > nodes_max:
            return reached
        if depth == STEPS_LOADED_ALONE:
            members = members_of(work, flow)
            work.read_all(FlowNode, [member.execution_id for member in members])
        for execution_id, node in zip(front, work.read_all(FlowNode, front), strict=True):
            reached[execution_id] = [] if node is None else [link.execution_id for link in node.outgoing]
        following = dict.fromkeys(name for execution_id in front for name in reached[execution_id])
        front = [name for name in following if name not in reached]
    return reached


def _on_cycles(following: dict[str, list[str]]) -> set[str]:
    """What is left of a graph when members to which nothing leads are taken away, again and again."""
    leading = Counter(name for names in following.values() for name in names)
    free = [name for name in following if not leading[name]]
    left = set(following)
    while free:
        name = free.pop()
        left.discard(name)
        for other in following[name]:
            leading[other] -= 1
            if not leading[other]:
                free.append(other)
    return left


def refuse_cancelled_flow(work: Work, execution: Execution) -> None:
    """Refuse to give out a member that its cancelled flow is about to cancel.

    Raises:
        ExecutionNotEligible: the flow was cancelled, and its policy does not spare this member.
    """
    if execution.flow_id is None:
        return
    flow = work.read(Flow, flow_identity(execution.flow_id))
    if flow is not None and flow.cancelled_at is not None and cancels(flow, execution):
        raise errors.ExecutionNotEligible(execution_id=execution.execution_id, flow_state=CANCELLED)


def cancels(flow: Flow, execution: Execution) -> bool:
    """Whether the cancelled flow's policy cancels this member."""
    if flow.cancellation_policy == FlowCancellationPolicy.CANCEL_ALL:
        return True
    never_ran = execution.attempt is None
    return flow.cancellation_policy == FlowCancellationPolicy.CANCEL_PENDING and never_ran

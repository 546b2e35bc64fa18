"""Finding one's way in a flow: its records, its state, its members, and the walk over its edges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowfabric import errors
from flowfabric.contracts.flows import FlowCancellationPolicy
from flowfabric.contracts.limits import GRAPH_WALK_MAX
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
    from flowfabric.core.work import Work

DROPPED: Final = "dropped"
"""How a member is counted that was cancelled because no join needed it any more."""

OPEN: Final = "open"
RUNNING: Final = "running"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"

GOOD: Final = frozenset({TerminalOutcome.SUCCESS, DROPPED})
"""The ends of members that let their flow complete."""


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
    """The public state of a flow: a pure function, so that nothing can leave it stale."""
    if flow.cancelled_at is not None:
        return CANCELLED
    ended = sum(progress.outcomes.values())
    if flow.sealed_at is None or ended < flow.node_count:
        return RUNNING if ended or flow.sealed_at is not None else OPEN
    good = sum(count for word, count in progress.outcomes.items() if word in GOOD)
    return COMPLETED if good == ended else FAILED


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


def members_of(work: Work, flow: Flow) -> list[FlowMember]:
    """All members of a flow, in the order in which they were added."""
    identities = [f"{flow.identity}/{position}" for position in range(flow.node_count)]
    members = work.read_all(FlowMember, identities)
    found = [member for member in members if member is not None]
    if len(found) < flow.node_count:
        raise errors.StoreCorrupt(record=flow.key, members=len(found), expected=flow.node_count)
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


def refuse_cycle(work: Work, upstream_id: str, downstream_id: str) -> None:
    """Refuse an edge that would close a cycle.

    Most graphs are built from their sources on, and then one look at both ends is enough.

    Raises:
        CycleDetected: the upstream is reached from the downstream, or the walk would be too long.
    """
    upstream, downstream = work.read_all(FlowNode, (upstream_id, downstream_id))
    if upstream is None or not upstream.incoming or downstream is None or not downstream.outgoing:
        return
    seen = {downstream_id}
    front = [downstream_id]
    while front:
        nodes = work.read_all(FlowNode, front)
        front = []
        for node in nodes:
            for link in () if node is None else node.outgoing:
                if link.execution_id not in seen:
                    seen.add(link.execution_id)
                    front.append(link.execution_id)
        if upstream_id in seen or len(seen) > GRAPH_WALK_MAX:
            raise errors.CycleDetected(
                upstream_execution_id=upstream_id,
                downstream_execution_id=downstream_id,
                walked=len(seen),
            )


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

"""Gathering what an explanation is made of: a bounded number of reads, whatever the store holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric.contracts.explaining import ExplainExecutionArgs, Explanation
from flowfabric.contracts.states import LifecyclePhase
from flowfabric.core import indexes
from flowfabric.core.explaining import Facts, explain
from flowfabric.core.indexes import index_rows, scope_of
from flowfabric.core.records import (
    Edge,
    EdgeGroup,
    Execution,
    Flow,
    FlowNode,
    Lane,
    Record,
    Suspension,
    WorkerRegistration,
    flow_identity,
    key_for,
    lane_identity,
)
from flowfabric.core.rules.joins import PENDING
from flowfabric.core.rules.lanes import under_lane
from flowfabric.core.vocabulary import BlockerKind
from flowfabric.engine.listing import load_executions, load_records
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine

WORKERS_MAX: Final = 200
"""How many workers of a lane are looked at."""
AHEAD_MAX: Final = 1_000
"""How far the queue before an execution is counted."""
SCOPES_MAX: Final = 64
"""In how many sets of capabilities the queue is counted."""


@operation(ExplainExecutionArgs)
async def explain_execution(
    engine: Engine, args: ExplainExecutionArgs, envelope: Envelope
) -> Explanation | None:
    """The one reason why an execution stands where it stands."""
    found = await load_executions(engine, [args.execution_id], envelope.namespace)
    if not found:
        return None
    [execution] = found
    ahead, ahead_is_all = await _ahead(engine, execution)
    open_edges = await _open_edges(engine, execution)
    flow, group, suspension, lane = await _records_beside(engine, execution)
    lane = lane if isinstance(lane, Lane) else None
    now = await engine.store.now()
    return explain(
        Facts(
            execution=under_lane(execution, lane),
            now=now,
            lane=lane,
            flow=flow if isinstance(flow, Flow) else None,
            group=group if isinstance(group, EdgeGroup) else None,
            suspension=suspension if isinstance(suspension, Suspension) else None,
            open_edges=open_edges,
            workers=await live_workers(engine, execution, now),
            ahead=ahead,
            ahead_is_all=ahead_is_all,
        )
    )


async def _records_beside(engine: Engine, execution: Execution) -> list[Record | None]:
    """The flow, the join and the open suspension of an execution, and its lane."""
    return await load_records(
        engine.store,
        [
            key_for(Flow, flow_identity(execution.flow_id) if execution.flow_id else execution.execution_id),
            key_for(EdgeGroup, execution.execution_id),
            key_for(Suspension, f"{execution.execution_id}/{execution.suspension_id}"),
            key_for(Lane, lane_identity(execution.namespace, execution.lane_id)),
        ],
    )


async def _open_edges(engine: Engine, execution: Execution) -> tuple[Edge, ...]:
    blocked = any(blocker.kind is BlockerKind.DEPENDENCIES for blocker in execution.blockers)
    if not blocked or execution.flow_id is None:
        return ()
    [node] = await load_records(engine.store, [key_for(FlowNode, execution.execution_id)])
    if not isinstance(node, FlowNode):
        return ()
    identity = flow_identity(execution.flow_id)
    edges = await load_records(
        engine.store, [key_for(Edge, f"{identity}/{link.edge_id}") for link in node.incoming]
    )
    return tuple(edge for edge in edges if isinstance(edge, Edge) and edge.state == PENDING)


async def live_workers(engine: Engine, execution: Execution, now: int) -> tuple[WorkerRegistration, ...]:
    """Workers that are alive and claim from the execution's lane."""
    if execution.phase not in (LifecyclePhase.RUNNABLE, LifecyclePhase.ACTIVE):
        return ()
    scope = scope_of(execution.namespace, execution.lane_id)
    rows = await engine.store.read_index(indexes.WORKER_LANES, scope, limit=WORKERS_MAX, descending=True)
    workers = await load_records(engine.store, [key_for(WorkerRegistration, member) for _, member in rows])
    return tuple(
        worker for worker in workers if isinstance(worker, WorkerRegistration) and worker.expires_at > now
    )


async def _ahead(engine: Engine, execution: Execution) -> tuple[int, bool]:
    """How many executions of the lane come before this one, and whether that is all of them."""
    own = next(
        ((sort, member) for index, _, sort, member in index_rows(execution) if index == indexes.ELIGIBLE),
        None,
    )
    if own is None:
        return 0, True
    prefix = scope_of(execution.namespace, execution.lane_id, "")
    scopes = await engine.store.index_scopes(indexes.ELIGIBLE, prefix, limit=SCOPES_MAX)
    count = 0
    for scope in scopes:
        rows = await engine.store.read_index(
            indexes.ELIGIBLE, scope, upto=own[0], limit=AHEAD_MAX + 1 - count
        )
        count += sum(row < own for row in rows)
        if count >= AHEAD_MAX:
            return AHEAD_MAX, False
    return count, len(scopes) < SCOPES_MAX

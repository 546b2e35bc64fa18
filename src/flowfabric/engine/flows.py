"""Cancelling a flow with its members, and listing flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric.contracts.flows import (
    CancelFlowArgs,
    CancelFlowHeaderArgs,
    CancelFlowResult,
    CancellationScheduled,
    FlowAlreadyEnded,
    FlowCancelled,
    FlowStatus,
    FlowSummary,
    ListFlowsArgs,
    ListFlowsPage,
    PartiallyCancelled,
)
from flowfabric.core.commands import CancelFlowMemberArgs
from flowfabric.core.indexes import EVERYWHERE, FLOWS, scope_of
from flowfabric.core.records import Flow, FlowMember, FlowProgress, flow_identity, key_for
from flowfabric.core.rules.flows import CANCELLING
from flowfabric.core.rules.graph import CANCELLED, COMPLETED, FAILED, flow_state
from flowfabric.engine.listing import load_records
from flowfabric.engine.operations import operation
from flowfabric.stores.base import split_tag

if TYPE_CHECKING:
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine

MEMBERS_PER_BATCH: Final = 256
FLOWS_LOOKED_AT_MAX: Final = 5_000
FLOW_KEYS: Final = key_for(Flow, "")
"""How the keys of flows begin."""

STATUS_OF_STATE: Final = {
    COMPLETED: FlowStatus.COMPLETED,
    FAILED: FlowStatus.FAILED,
    CANCELLED: FlowStatus.CANCELLED,
}
"""All other states are those of a flow at work."""


@operation(CancelFlowArgs)
async def cancel_flow(engine: Engine, args: CancelFlowArgs, envelope: Envelope) -> CancelFlowResult:
    """Cancel a flow; with ``wait``, try every member before answering.

    Raises:
        FlowNotFound: there is no such flow.
    """
    header = CancelFlowHeaderArgs(
        flow_id=args.flow_id, reason=args.reason, cancellation_policy=args.cancellation_policy
    )
    [answer] = await engine.decide([(header, envelope)])
    if isinstance(answer, Exception):
        raise answer
    policy, members = str(args.cancellation_policy), answer.member_execution_ids
    if isinstance(answer, FlowAlreadyEnded):
        stored = answer.stored_cancellation_policy or policy
        return FlowCancelled(cancellation_policy=stored, member_execution_ids=members)
    if args.cancellation_policy not in CANCELLING or not members:
        return FlowCancelled(cancellation_policy=policy, member_execution_ids=members)
    if not args.wait:
        return CancellationScheduled(
            cancellation_policy=policy, member_count=answer.member_count, member_execution_ids=members
        )
    failed = await _cancel_members(engine, args.flow_id, answer.member_count)
    if failed:
        return PartiallyCancelled(
            cancellation_policy=policy, member_execution_ids=members, failed_member_execution_ids=failed
        )
    return FlowCancelled(cancellation_policy=policy, member_execution_ids=members)


async def _cancel_members(engine: Engine, flow_id: str, count: int) -> tuple[str, ...]:
    """Cancel all members that are still to be cancelled. Returns those that could not be."""
    failed: list[str] = []
    places = [f"{flow_identity(flow_id)}/{position}" for position in range(count)]
    for start in range(0, count, MEMBERS_PER_BATCH):
        batch = places[start : start + MEMBERS_PER_BATCH]
        commands = [CancelFlowMemberArgs(member_id=place) for place in batch]
        answers = await engine.execute_unbounded(commands, actor=f"flow {flow_id}")
        failed += [
            place for place, answer in zip(batch, answers, strict=True) if isinstance(answer, Exception)
        ]
    members = await load_records(engine.store, [key_for(FlowMember, place) for place in failed])
    return tuple(member.execution_id for member in members if isinstance(member, FlowMember))


@operation(ListFlowsArgs)
async def list_flows(engine: Engine, args: ListFlowsArgs, envelope: Envelope) -> ListFlowsPage:
    """A page of flows, of one partition or of all."""
    if args.partition is None:
        return await _list_everywhere(engine, args, envelope)
    scope = scope_of(envelope.namespace or EVERYWHERE, str(args.partition))
    after = None if args.cursor is None else (0, f"{{fp:{args.partition}}}:{args.cursor}")
    rows = await engine.store.read_index(FLOWS, scope, after=after, limit=args.limit + 1)
    shown = [identity for _, identity in rows[: args.limit]]
    last = split_tag(shown[-1])[0] if shown and len(rows) > len(shown) else None
    return ListFlowsPage(flows=tuple(await _summaries(engine, shown)), next_cursor=last)


async def _list_everywhere(engine: Engine, args: ListFlowsArgs, envelope: Envelope) -> ListFlowsPage:
    """Walk over the keys of flows, which no index has of all partitions together."""
    found: list[FlowSummary] = []
    after = None if args.cursor is None else key_for(Flow, flow_identity(args.cursor))
    looked = 0
    while len(found) < args.limit and looked < FLOWS_LOOKED_AT_MAX:
        wanted = args.limit - len(found)
        keys = await engine.store.list_keys(FLOW_KEYS, after=after, limit=wanted)
        found += await _summaries(engine, [key.removeprefix(FLOW_KEYS) for key in keys], envelope.namespace)
        looked += len(keys)
        if len(keys) < wanted:
            return ListFlowsPage(flows=tuple(found))
        after = keys[-1]
    last = None if after is None else split_tag(after.removeprefix(FLOW_KEYS))[0]
    return ListFlowsPage(flows=tuple(found), next_cursor=last)


async def _summaries(
    engine: Engine, identities: list[str], namespace: str | None = None
) -> list[FlowSummary]:
    flows = await load_records(engine.store, [key_for(Flow, identity) for identity in identities])
    progresses = await load_records(
        engine.store, [key_for(FlowProgress, identity) for identity in identities]
    )
    return [
        FlowSummary(
            flow_id=flow.flow_id,
            created_at=flow.created_at,
            status=STATUS_OF_STATE.get(flow_state(flow, progress), FlowStatus.ACTIVE),
            flow_kind=flow.flow_kind,
            public_flow_state=flow_state(flow, progress),
            node_count=flow.node_count,
            ended_count=sum(progress.outcomes.values()),
        )
        for flow, progress in zip(flows, progresses, strict=True)
        if isinstance(flow, Flow) and isinstance(progress, FlowProgress) and flow.removing_since is None
        if namespace in (None, flow.namespace)
    ]

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
from flowfabric.core.records import Flow, FlowProgress, flow_identity, key_for
from flowfabric.core.rules.flows import CANCELLING
from flowfabric.core.rules.graph import CANCELLED, COMPLETED, FAILED, flow_state
from flowfabric.engine.listing import load_records
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine

MEMBERS_SHOWN_MAX: Final = 1_000
"""How many members the answer names when the flow had ended before."""

MEMBERS_PER_BATCH: Final = 256

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
        return FlowCancelled(cancellation_policy=stored, member_execution_ids=members[:MEMBERS_SHOWN_MAX])
    if args.cancellation_policy not in CANCELLING or not members:
        return FlowCancelled(cancellation_policy=policy, member_execution_ids=members)
    if not args.wait:
        return CancellationScheduled(
            cancellation_policy=policy, member_count=len(members), member_execution_ids=members
        )
    failed = await _cancel_members(engine, args.flow_id, members)
    if failed:
        return PartiallyCancelled(
            cancellation_policy=policy, member_execution_ids=members, failed_member_execution_ids=failed
        )
    return FlowCancelled(cancellation_policy=policy, member_execution_ids=members)


async def _cancel_members(engine: Engine, flow_id: str, members: tuple[str, ...]) -> tuple[str, ...]:
    """Cancel all members that are still to be cancelled. Returns those that could not be."""
    failed: list[str] = []
    for start in range(0, len(members), MEMBERS_PER_BATCH):
        batch = members[start : start + MEMBERS_PER_BATCH]
        answers = await engine.execute_unbounded(
            [
                CancelFlowMemberArgs(member_id=f"{flow_identity(flow_id)}/{start + place}")
                for place in range(len(batch))
            ],
            actor=f"flow {flow_id}",
        )
        failed += [
            member for member, answer in zip(batch, answers, strict=True) if isinstance(answer, Exception)
        ]
    return tuple(failed)


@operation(ListFlowsArgs)
async def list_flows(engine: Engine, args: ListFlowsArgs, envelope: Envelope) -> ListFlowsPage:
    """The flows of one partition in the order of their ids."""
    prefix = key_for(Flow, f"{{fp:{args.partition}}}:")
    after = None if args.cursor is None else prefix + args.cursor
    found: list[FlowSummary] = []
    while len(found) <= args.limit:
        keys = await engine.store.list_keys(prefix, after=after, limit=args.limit + 1)
        found += await _summaries(engine, keys, envelope.namespace)
        if len(keys) <= args.limit:
            break
        after = keys[-1]
    page, more = found[: args.limit], len(found) > args.limit
    return ListFlowsPage(flows=tuple(page), next_cursor=page[-1].flow_id if more and page else None)


async def _summaries(engine: Engine, keys: list[str], namespace: str | None) -> list[FlowSummary]:
    flows = await load_records(engine, keys)
    progress_keys = [key_for(FlowProgress, key.partition("/")[2]) for key in keys]
    progresses = await load_records(engine, progress_keys)
    return [
        FlowSummary(
            flow_id=flow.flow_id,
            created_at=flow.created_at,
            status=STATUS_OF_STATE.get(flow_state(flow, progress), FlowStatus.ACTIVE),
        )
        for flow, progress in zip(flows, progresses, strict=True)
        if isinstance(flow, Flow) and isinstance(progress, FlowProgress) and flow.removing_since is None
        if namespace is None or flow.namespace == namespace
    ]

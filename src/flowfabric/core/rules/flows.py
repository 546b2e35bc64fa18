"""Flows and their members: creating, adding, labelling, cancelling, reading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.contracts.executions import SetExecutionTagsResult, TagsSet
from flowfabric.contracts.flows import (
    AckCancelMemberArgs,
    AddExecutionToFlowArgs,
    AddExecutionToFlowResult,
    CancelFlowHeader,
    CancelFlowHeaderArgs,
    CancelMemberAcknowledged,
    CreateFlowArgs,
    CreateFlowResult,
    DescribeFlowArgs,
    EdgeGroupSnapshot,
    FlowAlreadyEnded,
    FlowCancellationPolicy,
    FlowCancelStarted,
    FlowCreated,
    FlowExists,
    FlowMemberInfo,
    FlowSnapshot,
    GetFlowTagArgs,
    ListFlowMembersArgs,
    ListFlowMembersPage,
    MemberAdded,
    MemberExists,
    SetFlowTagArgs,
    SetFlowTagsArgs,
)
from flowfabric.contracts.ids import flow_partition, partition_of
from flowfabric.contracts.limits import FLOW_NODES_MAX, TAGS_MAX
from flowfabric.core.commands import CancelFlowMemberArgs, FlowMemberSettled
from flowfabric.core.events import Event, Family
from flowfabric.core.records import (
    EdgeGroup,
    Execution,
    Flow,
    FlowMember,
    FlowProgress,
    Message,
    flow_identity,
    key_for,
)
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.ending import FLOW_CASCADE, cancel
from flowfabric.core.rules.graph import (
    CANCELLED,
    COMPLETED,
    FAILED,
    cancels,
    find_flow,
    flow_state,
    flow_subject,
    members_of,
    progress_of,
    require_open,
    the_flow,
)
from flowfabric.core.rules.joins import count_member
from flowfabric.core.rules.lanes import seen_in_lanes
from flowfabric.core.state import is_terminal, public_state

if TYPE_CHECKING:
    from flowfabric.core.work import Work

MEMBERS_SHOWN_MAX: Final = 1_000
"""How many members an answer names, or shows the joins of. The count of all is beside it."""

CANCELLING = frozenset({FlowCancellationPolicy.CANCEL_ALL, FlowCancellationPolicy.CANCEL_PENDING})
"""The policies that reach members."""


@rule(CreateFlowArgs, subject=flow_subject)
def create_flow(work: Work, args: CreateFlowArgs) -> CreateFlowResult:
    """Open a flow. One that exists stays as it is.

    Raises:
        InvalidInput: the namespace is not the caller's, or the id is in use in another one.
        Contention: a flow with this id is being removed.
    """
    work.require_namespace(args.namespace)
    existing = work.read(Flow, flow_identity(args.flow_id))
    if existing is not None and existing.removing_since is not None:
        raise errors.Contention(flow_id=args.flow_id, removing_since=existing.removing_since)
    if existing is not None and existing.namespace != args.namespace:
        raise errors.InvalidInput(field="flow_id", value=args.flow_id, rule="is in use")
    if existing is not None:
        return FlowExists(flow_id=args.flow_id)
    flow = Flow(
        flow_id=args.flow_id,
        namespace=args.namespace,
        flow_kind=args.flow_kind,
        created_at=work.now,
        last_mutation_at=work.now,
    )
    work.add(flow)
    work.add(FlowProgress(flow_id=args.flow_id, namespace=args.namespace, retention_from=work.now))
    work.publish(
        Event(
            family=Family.EXECUTION,
            name="flow_created",
            namespace=flow.namespace,
            execution_id="",
            at_ms=work.now,
            flow_id=flow.flow_id,
            data={"kind": args.flow_kind},
        )
    )
    return FlowCreated(flow_id=args.flow_id)


@rule(AddExecutionToFlowArgs)
def add_execution_to_flow(work: Work, args: AddExecutionToFlowArgs) -> AddExecutionToFlowResult:
    """Make an execution a member. One that has ended already is counted at once.

    Raises:
        InvalidInput: the execution is in another partition or another namespace.
        FlowNotFound, ExecutionNotFound, AlreadyMemberOfDifferentFlow: in this order.
        FlowAlreadyTerminal, FlowSealed, FlowTooLarge: the flow takes no more members.
    """
    partition = flow_partition(args.flow_id)
    if partition_of(args.execution_id) != partition:
        raise errors.InvalidInput(
            field="execution_id",
            value=args.execution_id,
            rule=f"PartitionMismatch: must begin {{fp:{partition}}}",
        )
    flow = the_flow(work, args.flow_id)
    execution = work.execution(args.execution_id)
    if execution.flow_id == args.flow_id:
        return MemberExists(execution_id=args.execution_id, node_count=flow.node_count)
    require_open(work, flow)
    if execution.flow_id is not None:
        raise errors.AlreadyMemberOfDifferentFlow(
            execution_id=args.execution_id, current_flow_id=execution.flow_id
        )
    if execution.namespace != flow.namespace:
        raise errors.InvalidInput(
            field="execution_id", value=args.execution_id, rule=f"in namespace {flow.namespace!r}"
        )
    if flow.node_count >= FLOW_NODES_MAX:
        raise errors.FlowTooLarge(flow_id=args.flow_id, members_max=FLOW_NODES_MAX)
    return _join(work, work.edit(flow), work.edit(execution))


def _join(work: Work, flow: Flow, execution: Execution) -> MemberAdded:
    member = FlowMember(flow_id=flow.flow_id, position=flow.node_count, execution_id=execution.execution_id)
    work.add(member)
    execution.flow_id, execution.flow_position = flow.flow_id, flow.node_count
    execution.last_mutation_at = flow.last_mutation_at = work.now
    flow.node_count += 1
    flow.graph_revision += 1
    count_member(work, execution)
    return MemberAdded(execution_id=execution.execution_id, new_node_count=flow.node_count)


# Cancelling


@rule(CancelFlowHeaderArgs, subject=flow_subject)
def cancel_flow_header(work: Work, args: CancelFlowHeaderArgs) -> CancelFlowHeader:
    """Mark the flow as cancelled, and owe the cancelling of every member that its policy may cancel.

    From this commit on such members are not given out any more; they are cancelled one by one.

    Raises:
        FlowNotFound: there is no such flow.
    """
    flow = the_flow(work, args.flow_id)
    ids = tuple(member.execution_id for member in members_of(work, flow, limit=MEMBERS_SHOWN_MAX))
    state = flow_state(flow, progress_of(work, flow))
    if state in (CANCELLED, COMPLETED, FAILED):
        return FlowAlreadyEnded(
            stored_cancellation_policy=flow.cancellation_policy,
            stored_cancel_reason=flow.cancel_reason,
            member_execution_ids=ids,
        )
    flow = work.edit(flow)
    flow.cancelled_at = flow.last_mutation_at = work.now
    flow.cancel_reason = args.reason
    flow.cancellation_policy = args.cancellation_policy
    if args.cancellation_policy in CANCELLING and flow.node_count:
        work.add(Message(execution_id=flow.identity, about="cancelled", cause="cancelled", due_at=work.now))
    log_act(
        work,
        "flow_cancelled",
        flow=flow,
        old=state,
        policy=args.cancellation_policy,
        reason=args.reason,
    )
    return FlowCancelStarted(
        cancellation_policy=args.cancellation_policy, member_execution_ids=ids, member_count=flow.node_count
    )


@rule(
    CancelFlowMemberArgs,
    subject=no_subject,
    reads=lambda args: (key_for(FlowMember, args.member_id),),
)
def cancel_flow_member(work: Work, args: CancelFlowMemberArgs) -> FlowMemberSettled:
    """Cancel one member of a cancelled flow, and take it off the flow's list if it is there."""
    member = work.read(FlowMember, args.member_id)
    if member is None:
        return FlowMemberSettled(action="gone")
    flow = work.read(Flow, flow_identity(member.flow_id))
    execution = work.read(Execution, member.execution_id)
    if member.cancel_requested_at is not None:
        work.edit(member).cancel_requested_at = None
    if flow is None or flow.cancelled_at is None or execution is None or is_terminal(execution):
        return FlowMemberSettled(action="gone")
    if not cancels(flow, execution):
        return FlowMemberSettled(action="kept")
    cancel(work, work.edit(execution), flow.cancel_reason or "", FLOW_CASCADE)
    return FlowMemberSettled(action="cancelled")


@rule(AckCancelMemberArgs)
def ack_cancel_member(work: Work, args: AckCancelMemberArgs) -> CancelMemberAcknowledged:
    """Take one member off the list. One that is not on it, or not known, changes nothing."""
    flow = find_flow(work, args.flow_id)
    execution = work.read(Execution, args.execution_id)
    if flow is None or execution is None or execution.flow_id != flow.flow_id:
        return CancelMemberAcknowledged()
    member = work.read(FlowMember, f"{flow.identity}/{execution.flow_position}")
    if member is not None and member.cancel_requested_at is not None and is_terminal(execution):
        work.edit(member).cancel_requested_at = None
    return CancelMemberAcknowledged()


# Tags


@rule(SetFlowTagsArgs, subject=flow_subject, acts_anew=True)
def set_flow_tags(work: Work, args: SetFlowTagsArgs) -> SetExecutionTagsResult:
    """Add or replace tags. A flow that has ended can be tagged too.

    Raises:
        FlowNotFound: there is no such flow.
        InvalidInput: it would have too many tags.
    """
    return _merge_tags(work, args.flow_id, args.tags)


@rule(SetFlowTagArgs, subject=flow_subject, acts_anew=True)
def set_flow_tag(work: Work, args: SetFlowTagArgs) -> SetExecutionTagsResult:
    """Add or replace one tag.

    Raises:
        FlowNotFound: there is no such flow.
        InvalidInput: it would have too many tags.
    """
    return _merge_tags(work, args.flow_id, {args.key: args.value})


def _merge_tags(work: Work, flow_id: str, tags: dict[str, str]) -> TagsSet:
    flow = the_flow(work, flow_id)
    merged = {**flow.tags, **tags}
    if len(merged) > TAGS_MAX:
        raise errors.InvalidInput(field="tags", value=str(len(merged)), rule=f"at most {TAGS_MAX} in all")
    flow = work.edit(flow)
    flow.tags = merged
    flow.last_mutation_at = work.now
    return TagsSet(count=len(tags))


@rule(GetFlowTagArgs, subject=flow_subject, query=True)
def get_flow_tag(work: Work, args: GetFlowTagArgs) -> str | None:
    """One tag; None if it is not set or there is no such flow."""
    flow = find_flow(work, args.flow_id)
    return None if flow is None else flow.tags.get(args.key)


# Reads


@rule(DescribeFlowArgs, subject=flow_subject, query=True)
def describe_flow(work: Work, args: DescribeFlowArgs) -> FlowSnapshot | None:
    """One flow with the joins of its first members, in their order."""
    flow = find_flow(work, args.flow_id)
    if flow is None:
        return None
    progress = progress_of(work, flow)
    members = members_of(work, flow, limit=MEMBERS_SHOWN_MAX)
    groups = work.read_all(EdgeGroup, [member.execution_id for member in members])
    return FlowSnapshot(
        flow_id=flow.flow_id,
        flow_kind=flow.flow_kind,
        namespace=flow.namespace,
        public_flow_state=flow_state(flow, progress),
        graph_revision=flow.graph_revision,
        node_count=flow.node_count,
        edge_count=flow.edge_count,
        created_at=flow.created_at,
        last_mutation_at=flow.last_mutation_at,
        cancelled_at=flow.cancelled_at,
        cancel_reason=flow.cancel_reason,
        cancellation_policy=flow.cancellation_policy,
        tags=flow.tags,
        edge_groups=tuple(_group_snapshot(group) for group in groups if group is not None and group.total),
        sealed=flow.sealed_at is not None,
        outcomes=progress.outcomes,
    )


@rule(ListFlowMembersArgs, subject=flow_subject, query=True)
def list_flow_members(work: Work, args: ListFlowMembersArgs) -> ListFlowMembersPage | None:
    """A page of members with their joins; None if there is no such flow.

    Raises:
        StoreCorrupt: a member, or its execution, is gone.
    """
    flow = find_flow(work, args.flow_id)
    if flow is None:
        return None
    first = 0 if args.cursor is None else args.cursor + 1
    members = members_of(work, flow, first=first, limit=args.limit)
    ids = [member.execution_id for member in members]
    executions = seen_in_lanes(work, work.read_all(Execution, ids))
    groups = work.read_all(EdgeGroup, ids)
    more = first + len(members) < flow.node_count
    return ListFlowMembersPage(
        members=tuple(map(_member_info, members, executions, groups)),
        next_cursor=members[-1].position if more and members else None,
    )


def _member_info(member: FlowMember, execution: Execution | None, group: EdgeGroup | None) -> FlowMemberInfo:
    if execution is None:
        raise errors.StoreCorrupt(record=key_for(Execution, member.execution_id))
    return FlowMemberInfo(
        position=member.position,
        execution_id=member.execution_id,
        execution_kind=execution.execution_kind,
        public_state=public_state(execution),
        cancel_requested=member.cancel_requested_at is not None,
        join=None if group is None or not group.total else _group_snapshot(group),
    )


def _group_snapshot(group: EdgeGroup) -> EdgeGroupSnapshot:
    return EdgeGroupSnapshot(
        downstream_execution_id=group.execution_id,
        policy=group.policy,
        total_deps=group.total,
        satisfied_count=group.satisfied,
        failed_count=group.failed,
        skipped_count=group.skipped,
        running_count=group.total - group.satisfied - group.failed - group.skipped,
        group_state=group.state,
    )

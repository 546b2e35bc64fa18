"""What may change about an execution without changing its state: priority, progress, tags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric import errors
from flowfabric.contracts.executions import (
    ChangePriorityArgs,
    ChangePriorityResult,
    GetExecutionTagArgs,
    PriorityChanged,
    ProgressUpdated,
    SetExecutionTagArgs,
    SetExecutionTagsArgs,
    SetExecutionTagsResult,
    TagsSet,
    UpdateProgressArgs,
    UpdateProgressResult,
)
from flowfabric.contracts.ids import LeaseFence
from flowfabric.contracts.limits import TAGS_MAX
from flowfabric.contracts.states import LifecyclePhase
from flowfabric.core.registry import rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.creation import clamp_priority
from flowfabric.core.rules.fencing import check_lease
from flowfabric.core.rules.reading import find
from flowfabric.core.rules.transitions import publish_tags

if TYPE_CHECKING:
    from flowfabric.core.work import Work


@rule(ChangePriorityArgs, acts_anew=True)
def change_priority(work: Work, args: ChangePriorityArgs) -> ChangePriorityResult:
    """Give waiting work another place in the queue, also while it is delayed or blocked.

    Raises:
        ExecutionNotFound: there is no such execution.
        ExecutionNotEligible: it does not wait for a worker, or it does so in another lane.
    """
    execution = work.execution(args.execution_id)
    if execution.phase is not LifecyclePhase.RUNNABLE or args.lane_id not in (None, execution.lane_id):
        raise errors.ExecutionNotEligible(
            execution_id=args.execution_id, lifecycle_phase=execution.phase, lane_id=execution.lane_id
        )
    priority, previous = clamp_priority(args.new_priority), execution.priority
    if priority != previous:
        execution = work.edit(execution)
        execution.priority = priority
        execution.last_mutation_at = work.now
        log_act(work, "priority_changed", execution=execution, old=previous, new=priority)
    return PriorityChanged(execution_id=args.execution_id)


@rule(UpdateProgressArgs)
def update_progress(work: Work, args: UpdateProgressArgs) -> UpdateProgressResult:
    """Store how far the attempt is. What is not given keeps its value; the lease is not extended.

    Raises:
        ExecutionNotFound, ExecutionNotActive, LeaseRevoked, LeaseExpired, StaleLease: in this order.
    """
    execution = work.execution(args.execution_id)
    fence = LeaseFence(lease_id=args.lease_id, lease_epoch=args.lease_epoch, attempt_id=args.attempt_id)
    check_lease(work, execution, fence)
    if args.progress_pct is None and args.progress_message is None:
        return ProgressUpdated()
    execution = work.edit(execution)
    if args.progress_pct is not None:
        execution.progress_pct = args.progress_pct
    if args.progress_message is not None:
        execution.progress_message = args.progress_message
    execution.progress_updated_at = execution.last_mutation_at = work.now
    return ProgressUpdated()


@rule(SetExecutionTagsArgs, acts_anew=True)
def set_execution_tags(work: Work, args: SetExecutionTagsArgs) -> SetExecutionTagsResult:
    """Add or replace tags. An ended execution can be tagged too.

    Raises:
        ExecutionNotFound: there is no such execution.
        InvalidInput: it would have too many tags.
    """
    return _merge_tags(work, args.execution_id, args.tags)


@rule(SetExecutionTagArgs, acts_anew=True)
def set_execution_tag(work: Work, args: SetExecutionTagArgs) -> SetExecutionTagsResult:
    """Add or replace one tag.

    Raises:
        ExecutionNotFound: there is no such execution.
        InvalidInput: it would have too many tags.
    """
    return _merge_tags(work, args.execution_id, {args.key: args.value})


def _merge_tags(work: Work, execution_id: str, tags: dict[str, str]) -> TagsSet:
    execution = work.execution(execution_id)
    merged = {**execution.tags, **tags}
    if len(merged) > TAGS_MAX:
        raise errors.InvalidInput(field="tags", value=str(len(merged)), rule=f"at most {TAGS_MAX} in all")
    execution = work.edit(execution)
    execution.tags = merged
    execution.last_mutation_at = work.now
    publish_tags(work, execution, "attached", tags)
    return TagsSet(count=len(tags))


@rule(GetExecutionTagArgs)
def get_execution_tag(work: Work, args: GetExecutionTagArgs) -> str | None:
    """One tag; None if it is not set or there is no such execution."""
    execution = find(work, args)
    return None if execution is None else execution.tags.get(args.key)

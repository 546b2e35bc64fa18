"""Forgetting what ended long ago: when it may be removed, and how.

The rules this module keeps:

- From the first commit of its removal on, an execution or a flow is gone for everyone. What is left
  of it is removed in bounded steps, its own record last, so whatever a crash leaves is found again
  through that record.
- A member goes with its flow, because other members may read its result; a flow goes once it has
  ended and is old itself.
- Nobody's wish shortens the retention of the deployment: a policy's ``retention_ttl_ms`` and the
  window of an idempotency key only lengthen it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.core.commands import (
    RemoveExecutionArgs,
    RemoveFlowArgs,
    RetentionSettled,
)
from flowfabric.core.frames import PARTS, stream_key
from flowfabric.core.records import (
    Execution,
    Flow,
    FlowProgress,
    Key,
    StreamMeta,
    flow_identity,
    kept_until,
    key_for,
)
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.rules.graph import CANCELLED, COMPLETED, FAILED, flow_state
from flowfabric.core.rules.transitions import publish_tags
from flowfabric.core.state import is_terminal
from flowfabric.core.work import Trim

if TYPE_CHECKING:
    from flowfabric.core.work import Work

FRAMES_PER_STEP: Final = 1_000
POSTPONED_FROM_MS: Final = 300_000
"""What is due within this time is left in its place; what is due later is moved there."""

GONE, KEPT, REMOVING, REMOVED = "gone", "kept", "removing", "removed"


def _execution_reads(args: RemoveExecutionArgs) -> tuple[Key, ...]:
    return key_for(Execution, args.execution_id), *args.keys


@rule(RemoveExecutionArgs, subject=no_subject, reads=_execution_reads)
def remove_execution(work: Work, args: RemoveExecutionArgs) -> RetentionSettled:
    """Remove some records of an execution that is old enough; with the last ones, its own."""
    execution = work.read(Execution, args.execution_id)
    if execution is None or work.envelope.namespace not in (None, execution.namespace):
        return RetentionSettled(action=GONE)
    if execution.removing_since is None and not _may_go(work, execution, args.retention_ms):
        return RetentionSettled(action=KEPT)
    if _remove_records(work, args.execution_id, args.keys) and args.last:
        publish_tags(work, execution, "cleared", execution.tags)
        work.remove(execution)
        return RetentionSettled(action=REMOVED, executions=1)
    if execution.removing_since is None:
        work.edit(execution).removing_since = work.now
    return RetentionSettled(action=REMOVING)


def _may_go(work: Work, execution: Execution, retention_ms: int) -> bool:
    """Whether the execution has ended, belongs to no flow that is kept, and is old enough."""
    if not is_terminal(execution):
        return False
    flow = None if execution.flow_id is None else work.read(Flow, flow_identity(execution.flow_id))
    if flow is not None:
        return flow.removing_since is not None
    completed_at, until = execution.completed_at or 0, kept_until(execution)
    due_at = max(completed_at + retention_ms, until)
    has_own_date = execution.retention_from is not None and completed_at < until <= work.now
    if has_own_date and due_at > work.now + POSTPONED_FROM_MS and execution.retention_from != due_at:
        work.edit(execution).retention_from = due_at
    return due_at <= work.now


def _remove_records(work: Work, identity: str, keys: tuple[Key, ...]) -> bool:
    """Remove records, and frames up to a number. Returns whether nothing of them is left.

    Raises:
        InvalidInput: a record belongs to something else.
    """
    frames = FRAMES_PER_STEP
    whole = True
    for key in keys:
        if not f"{key.partition('/')[2]}/".startswith(f"{identity}/"):
            raise errors.InvalidInput(field="keys", value=key, rule=f"records of {identity}")
        record = work.peek(key)
        if isinstance(record, StreamMeta):
            frames = _remove_frames(work, record, frames)
        if frames < 0:
            whole, frames = False, 0
        elif record is not None:
            work.remove(record)
    return whole


def _remove_frames(work: Work, stream: StreamMeta, allowed: int) -> int:
    """Trim the parts of a stream. Returns how many more frames may go; less than 0 if some are left."""
    for part in PARTS:
        retained: int = getattr(stream, f"{part}_retained")
        if not retained:
            continue
        keep = max(0, retained - allowed)
        allowed -= retained - keep
        stream = work.edit(stream)
        setattr(stream, f"{part}_retained", keep)
        work.trim(Trim(stream_key(stream.execution_id, stream.attempt_index, part), keep))
        if keep:
            return -1
    return allowed


def _flow_reads(args: RemoveFlowArgs) -> tuple[Key, ...]:
    identity = args.flow_identity
    return key_for(Flow, identity), key_for(FlowProgress, identity), *args.keys


@rule(RemoveFlowArgs, subject=no_subject, reads=_flow_reads)
def remove_flow(work: Work, args: RemoveFlowArgs) -> RetentionSettled:
    """Remove some records of a flow that is old enough; with the last ones, its own."""
    flow = work.read(Flow, args.flow_identity)
    progress = work.read(FlowProgress, args.flow_identity)
    if flow is None or progress is None or work.envelope.namespace not in (None, flow.namespace):
        return RetentionSettled(action=GONE)
    if flow.removing_since is None and not _flow_may_go(work, flow, progress, args):
        return RetentionSettled(action=KEPT)
    _remove_records(work, args.flow_identity, args.keys)
    if args.last:
        work.remove(flow)
        work.remove(progress)
        return RetentionSettled(action=REMOVED, flows=1)
    if flow.removing_since is None:
        work.edit(flow).removing_since = work.now
    return RetentionSettled(action=REMOVING)


def _flow_may_go(work: Work, flow: Flow, progress: FlowProgress, args: RemoveFlowArgs) -> bool:
    """Whether the flow has ended and is old enough; else it is looked at again when it may be."""
    due_at = flow_due_at(flow, progress, args.retention_ms)
    due_at = None if due_at is None else max(due_at, args.members_kept_until)
    if due_at is not None and due_at <= work.now:
        return True
    again_at = work.now if due_at is None else max(work.now, due_at - args.retention_ms)
    if progress.retention_from is not None and again_at > progress.retention_from:
        work.edit(progress).retention_from = again_at
    return False


def flow_due_at(flow: Flow, progress: FlowProgress, retention_ms: int) -> int | None:
    """When a flow may be removed; None while it, or a member that it spared, has not ended."""
    ended = sum(progress.outcomes.values()) >= flow.node_count
    if not ended or flow_state(flow, progress) not in (CANCELLED, COMPLETED, FAILED):
        return None
    return max(flow.last_mutation_at, progress.counted_at or 0) + retention_ms

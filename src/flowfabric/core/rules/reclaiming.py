"""Taking over an execution whose lease has lapsed, with a grant for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.contracts.handles import HandleKind
from flowfabric.contracts.leases import (
    ExecutionReclaimed,
    NotReclaimable,
    ReclaimCapExceeded,
    ReclaimExecutionArgs,
    ReclaimExecutionResult,
    ReclaimGrantNotFound,
)
from flowfabric.contracts.policy import parse_policy
from flowfabric.core.policies import adopt_policy
from flowfabric.core.records import Execution
from flowfabric.core.registry import rule
from flowfabric.core.rules.claiming import (
    Claimant,
    fail_at_reclaim_cap,
    reclaim_attempt,
    reclaim_cap,
)
from flowfabric.core.rules.fencing import handle_of, has_lapsed
from flowfabric.core.rules.grants import NOT_RECLAIMABLE, PAUSED, grant_expired, has_grant
from flowfabric.core.rules.leasing import current_attempt
from flowfabric.core.vocabulary import GrantKind

if TYPE_CHECKING:
    from flowfabric.core.work import Work


@rule(ReclaimExecutionArgs)
def reclaim_execution(work: Work, args: ReclaimExecutionArgs) -> ReclaimExecutionResult:
    """Turn a reclaim grant into a lease with a new attempt.

    The grant is looked at before the cap: the cap may be the caller's number, and only a worker
    that may take the execution over may end it.

    Raises:
        ExecutionNotFound: there is no such execution; the rest are outcomes.
    """
    execution = work.execution(args.execution_id)
    detail = _obstacle(work, execution, args)
    if detail:
        return NotReclaimable(execution_id=args.execution_id, detail=detail)
    if not has_grant(execution, GrantKind.RECLAIM, args.worker_id) or grant_expired(work, execution):
        return ReclaimGrantNotFound(execution_id=args.execution_id)
    execution = work.edit(execution)
    adopt_policy(execution, parse_policy(args.attempt_policy_json))
    if execution.reclaim_count >= reclaim_cap(execution, args.max_reclaim_count):
        fail_at_reclaim_cap(work, execution)
        return ReclaimCapExceeded(execution_id=args.execution_id, reclaim_count=execution.reclaim_count)
    return _take_over(work, execution, args)


def _obstacle(work: Work, execution: Execution, args: ReclaimExecutionArgs) -> str:
    """Why the execution is not what the caller wants to take over; empty if it is."""
    lease = execution.lease
    if lease is None or not has_lapsed(work, execution):
        return NOT_RECLAIMABLE
    if execution.pause_reason is not None:
        return PAUSED
    if args.lane_id != execution.lane_id:
        return f"lane_mismatch: {execution.lane_id}"
    if args.old_worker_instance_id not in (None, lease.worker_instance_id):
        return f"worker_instance_mismatch: {lease.worker_instance_id}"
    index = current_attempt(execution).attempt_index
    return "" if args.current_attempt_index in (None, index) else f"attempt_index_mismatch: {index}"


def _take_over(work: Work, execution: Execution, args: ReclaimExecutionArgs) -> ExecutionReclaimed:
    lease = reclaim_attempt(
        work,
        execution,
        Claimant(
            worker_id=args.worker_id,
            worker_instance_id=args.worker_instance_id,
            lease_id=args.lease_id,
            attempt_id=args.attempt_id,
            lease_ttl_ms=args.lease_ttl_ms,
            policy_json=args.attempt_policy_json,
        ),
    )
    attempt = current_attempt(execution)
    return ExecutionReclaimed(
        new_attempt_index=attempt.attempt_index,
        new_attempt_id=args.attempt_id,
        new_lease_id=args.lease_id,
        new_lease_epoch=lease.epoch,
        lease_expires_at=lease.expires_at,
        handle=handle_of(work, execution, HandleKind.RECLAIMED, lease, attempt),
    )

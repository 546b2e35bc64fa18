"""Grants: short-lived tickets that keep an execution for one worker.

A grant is bound to the worker, not to its instance, so that another process of the same worker
may use it. It is used up by the claim, and worth nothing from its expiry instant on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric import errors
from flowfabric.contracts.ids import partition_of
from flowfabric.contracts.leases import (
    ClaimGrantIssued,
    IssueClaimGrantArgs,
    IssueClaimGrantResult,
    IssueReclaimGrantArgs,
    IssueReclaimGrantResult,
    NotReclaimable,
    ReclaimCapExceeded,
    ReclaimGrant,
    ReclaimGranted,
)
from flowfabric.contracts.partitions import Partition
from flowfabric.contracts.policy import missing_capabilities, require_capabilities
from flowfabric.core.records import Execution, Grant
from flowfabric.core.registry import rule
from flowfabric.core.rules.claiming import fail_at_reclaim_cap, reclaim_cap, refuse_granted
from flowfabric.core.rules.fencing import has_lapsed
from flowfabric.core.rules.lanes import refuse_claim_in_lane
from flowfabric.core.rules.transitions import lapse_lease
from flowfabric.core.state import is_eligible
from flowfabric.core.vocabulary import Continuation, GrantKind, LeaseState

if TYPE_CHECKING:
    from flowfabric.core.work import Work

NOT_RECLAIMABLE = "execution_not_reclaimable"


@rule(IssueClaimGrantArgs)
def issue_claim_grant(work: Work, args: IssueClaimGrantArgs) -> IssueClaimGrantResult:
    """Keep a waiting execution for one worker; the claim itself comes later.

    Raises:
        ExecutionNotFound, ExecutionNotEligible, GrantAlreadyExists, ExecutionNotInEligibleSet,
        CapabilityMismatch: in this order.
    """
    execution = work.execution(args.execution_id)
    if not is_eligible(execution):
        raise errors.ExecutionNotEligible(execution_id=args.execution_id)
    refuse_claim_in_lane(work, execution)
    refuse_granted(work, execution)
    if args.lane_id != execution.lane_id:
        raise errors.ExecutionNotInEligibleSet(execution_id=args.execution_id, lane_id=execution.lane_id)
    require_capabilities(execution.required_capabilities, args.worker_capabilities)
    resumed = execution.continuation is Continuation.RESUME
    work.edit(execution).grant = _grant(work, GrantKind.RESUME if resumed else GrantKind.CLAIM, args)
    return ClaimGrantIssued(execution_id=args.execution_id)


@rule(IssueReclaimGrantArgs)
def issue_reclaim_grant(work: Work, args: IssueReclaimGrantArgs) -> IssueReclaimGrantResult:
    """Keep an execution whose lease has lapsed for one worker.

    It is asked for by name, so the grace that holds automatic reclaiming back does not count. A
    lease that is past its expiry and not marked yet is marked here.

    Raises:
        ExecutionNotFound, ExecutionNotEligible (the lane is paused or disabled),
        GrantAlreadyExists: refusals, in this order; the rest are outcomes.
    """
    execution = work.execution(args.execution_id)
    detail = _obstacle(work, execution, args)
    if detail:
        return NotReclaimable(execution_id=args.execution_id, detail=detail)
    execution = work.edit(execution)
    assert execution.lease is not None
    if execution.lease.state is LeaseState.HELD:
        lapse_lease(work, execution, LeaseState.EXPIRED)
    if execution.reclaim_count >= reclaim_cap(execution):
        fail_at_reclaim_cap(work, execution)
        return ReclaimCapExceeded(execution_id=args.execution_id, reclaim_count=execution.reclaim_count)
    execution.grant = _grant(work, GrantKind.RECLAIM, args)
    grant = ReclaimGrant(
        execution_id=args.execution_id,
        partition_key=Partition(index=partition_of(args.execution_id)).key,
        grant_key=f"{execution.key}/grant",
        expires_at_ms=execution.grant.expires_at,
        lane_id=args.lane_id,
    )
    return ReclaimGranted(grant=grant)


def _obstacle(work: Work, execution: Execution, args: IssueReclaimGrantArgs) -> str:
    """Why this worker may not reclaim the execution; empty if it may."""
    if not has_lapsed(work, execution):
        return NOT_RECLAIMABLE
    refuse_claim_in_lane(work, execution)
    refuse_granted(work, execution)
    if args.lane_id != execution.lane_id:
        return f"lane_mismatch: {execution.lane_id}"
    missing = missing_capabilities(execution.required_capabilities, args.worker_capabilities)
    return f"capability_mismatch: {','.join(missing)}" if missing else ""


def _grant(work: Work, kind: GrantKind, args: IssueClaimGrantArgs | IssueReclaimGrantArgs) -> Grant:
    return Grant(
        kind=kind,
        worker_id=args.worker_id,
        worker_instance_id=args.worker_instance_id,
        created_at=work.now,
        expires_at=work.now + args.grant_ttl_ms,
        capability_hash=args.capability_hash,
        route_snapshot_json=args.route_snapshot_json,
        admission_summary=args.admission_summary,
    )


def has_grant(execution: Execution, kind: GrantKind, worker_id: str) -> bool:
    """Whether the execution is, or was until its grant expired, kept for this worker."""
    grant = execution.grant
    return grant is not None and grant.kind == kind and grant.worker_id == worker_id


def require_grant(work: Work, execution: Execution, kind: GrantKind, worker_id: str) -> None:
    """Refuse a worker for which the execution is not kept.

    Raises:
        InvalidClaimGrant, ClaimGrantExpired: in this order.
    """
    if not has_grant(execution, kind, worker_id):
        raise errors.InvalidClaimGrant(execution_id=execution.execution_id, worker_id=worker_id)
    if grant_expired(work, execution):
        raise errors.ClaimGrantExpired(execution_id=execution.execution_id)


def grant_expired(work: Work, execution: Execution) -> bool:
    """Whether the execution's grant is worth nothing any more."""
    return execution.grant is None or execution.grant.expires_at <= work.now

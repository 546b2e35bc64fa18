"""Keeping a lease, and losing it: renewal, expiry, revocation.

A lease is valid strictly before its expiry instant and never comes back to life. Until it is
reclaimed or the execution ends, a lapsed lease stays on record and in the index of claimable work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.leases import (
    LeaseAlreadyGone,
    LeaseMarkedExpired,
    LeaseMarkNotNeeded,
    LeaseRenewed,
    LeaseWasRevoked,
    MarkLeaseExpiredArgs,
    MarkLeaseExpiredResult,
    RenewLeaseArgs,
    RenewLeaseResult,
    RevokeLeaseArgs,
    RevokeLeaseResult,
)
from flowfabric.contracts.states import LifecyclePhase
from flowfabric.core.commands import EndReclaimGraceArgs, ExpireLeaseArgs, GraceEnded
from flowfabric.core.records import Execution, Lease
from flowfabric.core.registry import rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.fencing import fenced, not_active
from flowfabric.core.rules.reading import find
from flowfabric.core.rules.transitions import extend_lease, lapse_lease
from flowfabric.core.vocabulary import LeaseState

if TYPE_CHECKING:
    from flowfabric.core.work import Work

GONE = {LeaseState.EXPIRED: "already_expired", LeaseState.REVOKED: "already_revoked"}


@rule(RenewLeaseArgs)
def renew_lease(work: Work, args: RenewLeaseArgs) -> RenewLeaseResult:
    """Extend a live lease. It never gets shorter, and its epoch stays.

    Raises:
        ExecutionNotFound, FenceRequired, ExecutionNotActive, LeaseRevoked, LeaseExpired,
        StaleLease: in this order.
    """
    execution = work.execution(args.execution_id)
    fenced(work, execution, args.fence, attempt_index=args.attempt_index)
    lease = extend_lease(work, work.edit(execution), args.lease_ttl_ms)
    return LeaseRenewed(expires_at=lease.expires_at)


@rule(MarkLeaseExpiredArgs)
def mark_lease_expired(work: Work, args: MarkLeaseExpiredArgs) -> MarkLeaseExpiredResult:
    """Mark a lease that has lapsed, so that it can be reclaimed at once."""
    return _expire(work, find(work, args), reclaim_grace_ms=0)


@rule(ExpireLeaseArgs)
def expire_lease(work: Work, args: ExpireLeaseArgs) -> MarkLeaseExpiredResult:
    """Mark a lease that has lapsed; it is reclaimed automatically once its grace is over."""
    return _expire(work, find(work, args), args.reclaim_grace_ms)


def _expire(work: Work, execution: Execution | None, reclaim_grace_ms: int) -> MarkLeaseExpiredResult:
    reason = _why_not_due(work, execution)
    if reason:
        return LeaseMarkNotNeeded(reason=reason)
    assert execution is not None
    reclaimable_at = work.now + reclaim_grace_ms if reclaim_grace_ms else None
    lapse_lease(work, work.edit(execution), LeaseState.EXPIRED, reclaimable_at=reclaimable_at)
    return LeaseMarkedExpired()


def _why_not_due(work: Work, execution: Execution | None) -> str:
    if execution is None:
        return "execution_not_found"
    if execution.phase is not LifecyclePhase.ACTIVE:
        return "not_active"
    lease = _lease_of(execution)
    if lease.state is not LeaseState.HELD:
        return GONE[lease.state]
    return "" if lease.expires_at <= work.now else "not_yet_expired"


@rule(EndReclaimGraceArgs)
def end_reclaim_grace(work: Work, args: EndReclaimGraceArgs) -> GraceEnded:
    """Let an expired lease be reclaimed automatically from now on, if its grace is over."""
    execution = find(work, args)
    lease = None if execution is None else execution.lease
    if execution is None or lease is None or lease.reclaimable_at is None:
        return GraceEnded(action="gone")
    if lease.reclaimable_at > work.now:
        return GraceEnded(action="kept")
    work.edit(execution).lease = replace(lease, reclaimable_at=None)
    return GraceEnded(action="ended")


@rule(RevokeLeaseArgs, acts_anew=True)
def revoke_lease(work: Work, args: RevokeLeaseArgs) -> RevokeLeaseResult:
    """Take the lease from its holder. The execution can be reclaimed at once, without a grace.

    Raises:
        ExecutionNotFound, ExecutionNotActive: there is nothing to revoke.
        StaleLease: another lease or worker instance holds it than the caller expects.
    """
    execution = work.execution(args.execution_id)
    if execution.phase is not LifecyclePhase.ACTIVE:
        raise not_active(execution)
    lease = _lease_of(execution)
    if lease.state is not LeaseState.HELD:
        return LeaseAlreadyGone(reason=GONE[lease.state])
    _require_expected(execution, lease, args)
    execution = work.edit(execution)
    if lease.expires_at <= work.now:
        lapse_lease(work, execution, LeaseState.EXPIRED)
        return LeaseAlreadyGone(reason=GONE[LeaseState.EXPIRED])
    lapse_lease(work, execution, LeaseState.REVOKED, reason=args.reason)
    log_act(
        work,
        "lease_revoked",
        execution=execution,
        old=lease.worker_instance_id,
        reason=args.reason,
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
    )
    return LeaseWasRevoked(lease_id=lease.lease_id, lease_epoch=lease.epoch)


def _lease_of(execution: Execution) -> Lease:
    assert execution.lease is not None
    return execution.lease


def _require_expected(execution: Execution, lease: Lease, args: RevokeLeaseArgs) -> None:
    other_lease = args.expected_lease_id and args.expected_lease_id != lease.lease_id
    other_worker = args.worker_instance_id not in (None, lease.worker_instance_id)
    if other_lease or other_worker:
        raise errors.StaleLease(
            execution_id=execution.execution_id,
            expected_lease_id=args.expected_lease_id or "",
            current_lease_id=lease.lease_id,
            current_worker_instance_id=lease.worker_instance_id,
        )

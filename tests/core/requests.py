"""Commands with everything filled in that a test does not care about."""

from __future__ import annotations

from typing import Any

from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    CompleteExecutionArgs,
    DelayExecutionArgs,
    ExpireExecutionArgs,
    ExpireReason,
    FailExecutionArgs,
    MoveToWaitingChildrenArgs,
    PromoteDelayedArgs,
    ReplayExecutionArgs,
    UpdateProgressArgs,
)
from flowfabric.contracts.ids import ExecutionId, LeaseFence
from flowfabric.contracts.leases import (
    ClaimExecutionArgs,
    ClaimResumedExecutionArgs,
    IssueClaimGrantArgs,
    IssueGrantAndClaimArgs,
    IssueReclaimGrantArgs,
    MarkLeaseExpiredArgs,
    ReclaimExecutionArgs,
    RenewLeaseArgs,
    RevokeLeaseArgs,
)
from flowfabric.contracts.policy import ExecutionPolicy, FixedBackoff, RetryPolicy
from flowfabric.core.commands import ClaimCandidateArgs
from tests.core.harness import INSTANCE, LANE, TTL_MS, WORKER, new_id

GRANT_TTL_MS = 5_000
DELAY_MS = 10


def retries(most: int, **fields: Any) -> ExecutionPolicy:
    """A policy with so many retries, ten milliseconds apart."""
    retry = RetryPolicy(max_retries=most, backoff=FixedBackoff(delay_ms=DELAY_MS))
    return ExecutionPolicy(retry_policy=retry, **fields)


def _worker(**fields: Any) -> dict[str, Any]:
    return {"lane_id": LANE, "worker_id": WORKER, "worker_instance_id": INSTANCE, **fields}


def grant(execution_id: ExecutionId, **fields: Any) -> IssueClaimGrantArgs:
    return IssueClaimGrantArgs(**_worker(execution_id=execution_id, grant_ttl_ms=GRANT_TTL_MS) | fields)


def reclaim_grant(execution_id: ExecutionId, **fields: Any) -> IssueReclaimGrantArgs:
    return IssueReclaimGrantArgs(**_worker(execution_id=execution_id, grant_ttl_ms=GRANT_TTL_MS) | fields)


def candidate(execution_id: ExecutionId, **fields: Any) -> ClaimCandidateArgs:
    defaults = _worker(
        execution_id=execution_id,
        worker_capabilities=frozenset(),
        lease_id=new_id(),
        attempt_id=new_id(),
        lease_ttl_ms=TTL_MS,
    )
    return ClaimCandidateArgs(**defaults | fields)


def claim(execution_id: ExecutionId, **fields: Any) -> ClaimExecutionArgs:
    defaults = _worker(
        execution_id=execution_id,
        lease_id=new_id(),
        attempt_id=new_id(),
        lease_ttl_ms=TTL_MS,
        expected_attempt_index=0,
    )
    return ClaimExecutionArgs(**defaults | fields)


def claim_resumed(execution_id: ExecutionId, **fields: Any) -> ClaimResumedExecutionArgs:
    defaults = _worker(
        execution_id=execution_id, lease_id=new_id(), lease_ttl_ms=TTL_MS, current_attempt_index=0
    )
    return ClaimResumedExecutionArgs(**defaults | fields)


def grant_and_claim(execution_id: ExecutionId, **fields: Any) -> IssueGrantAndClaimArgs:
    defaults = _worker(execution_id=execution_id, lease_id=new_id(), attempt_id=new_id(), lease_ttl_ms=TTL_MS)
    return IssueGrantAndClaimArgs(**defaults | fields)


def reclaim(execution_id: ExecutionId, **fields: Any) -> ReclaimExecutionArgs:
    defaults = _worker(execution_id=execution_id, lease_id=new_id(), attempt_id=new_id(), lease_ttl_ms=TTL_MS)
    return ReclaimExecutionArgs(**defaults | fields)


def renew(execution_id: ExecutionId, fence: LeaseFence | None, **fields: Any) -> RenewLeaseArgs:
    defaults = {"execution_id": execution_id, "fence": fence, "attempt_index": 0, "lease_ttl_ms": TTL_MS}
    return RenewLeaseArgs(**defaults | fields)


def mark_expired(execution_id: ExecutionId) -> MarkLeaseExpiredArgs:
    return MarkLeaseExpiredArgs(execution_id=execution_id)


def revoke(execution_id: ExecutionId, **fields: Any) -> RevokeLeaseArgs:
    return RevokeLeaseArgs(**{"execution_id": execution_id, "reason": "stuck"} | fields)


def complete(execution_id: ExecutionId, fence: LeaseFence | None, **fields: Any) -> CompleteExecutionArgs:
    defaults = {"execution_id": execution_id, "fence": fence, "attempt_index": 0, "source": "lease_holder"}
    return CompleteExecutionArgs(**defaults | fields)


def fail(execution_id: ExecutionId, fence: LeaseFence | None, **fields: Any) -> FailExecutionArgs:
    defaults = {
        "execution_id": execution_id,
        "fence": fence,
        "attempt_index": 0,
        "failure_reason": "boom",
        "failure_category": "transient",
        "source": "lease_holder",
    }
    return FailExecutionArgs(**defaults | fields)


def cancel(execution_id: ExecutionId, fence: LeaseFence | None = None, **fields: Any) -> CancelExecutionArgs:
    defaults: dict[str, Any] = {"execution_id": execution_id, "reason": "not needed"}
    if fence is not None:
        defaults |= {
            "lease_id": fence.lease_id,
            "lease_epoch": fence.lease_epoch,
            "attempt_id": fence.attempt_id,
            "source": "lease_holder",
        }
    return CancelExecutionArgs(**defaults | fields)


def delay(
    execution_id: ExecutionId, fence: LeaseFence | None, until: int, **fields: Any
) -> DelayExecutionArgs:
    defaults = {
        "execution_id": execution_id,
        "fence": fence,
        "attempt_index": 0,
        "delay_until": until,
        "source": "lease_holder",
    }
    return DelayExecutionArgs(**defaults | fields)


def wait_for_children(
    execution_id: ExecutionId, fence: LeaseFence | None, **fields: Any
) -> MoveToWaitingChildrenArgs:
    defaults = {"execution_id": execution_id, "fence": fence, "attempt_index": 0, "source": "lease_holder"}
    return MoveToWaitingChildrenArgs(**defaults | fields)


def promote(execution_id: ExecutionId) -> PromoteDelayedArgs:
    return PromoteDelayedArgs(execution_id=execution_id)


def timeout(execution_id: ExecutionId) -> ExpireExecutionArgs:
    return ExpireExecutionArgs(execution_id=execution_id, expire_reason=ExpireReason.ATTEMPT_TIMEOUT)


def deadline(execution_id: ExecutionId) -> ExpireExecutionArgs:
    return ExpireExecutionArgs(execution_id=execution_id, expire_reason=ExpireReason.EXECUTION_DEADLINE)


def prioritise(execution_id: ExecutionId, priority: int, **fields: Any) -> ChangePriorityArgs:
    return ChangePriorityArgs(execution_id=execution_id, new_priority=priority, **fields)


def progress(execution_id: ExecutionId, fence: LeaseFence, **fields: Any) -> UpdateProgressArgs:
    return UpdateProgressArgs(
        execution_id=execution_id,
        lease_id=fence.lease_id,
        lease_epoch=fence.lease_epoch,
        attempt_id=fence.attempt_id,
        **fields,
    )


def replay(execution_id: ExecutionId, **fields: Any) -> ReplayExecutionArgs:
    return ReplayExecutionArgs(execution_id=execution_id, **fields)

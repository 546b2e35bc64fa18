"""Claims that name their execution: with a grant, or with grant and claim in one step.

A claim that follows an index is in ``claiming``, which also has the steps that all claims share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric import errors
from flowfabric.contracts.handles import HandleKind
from flowfabric.contracts.leases import (
    ClaimedExecution,
    ClaimedResumedExecution,
    ClaimExecutionArgs,
    ClaimExecutionResult,
    ClaimResumedExecutionArgs,
    ClaimResumedExecutionResult,
    GrantedAndClaimed,
    IssueGrantAndClaimArgs,
    IssueGrantAndClaimResult,
)
from flowfabric.contracts.policy import parse_policy
from flowfabric.contracts.states import AttemptLifecycle, LifecyclePhase
from flowfabric.core.policies import adopt_policy
from flowfabric.core.records import Attempt, Execution
from flowfabric.core.registry import rule
from flowfabric.core.rules.claiming import (
    Claimant,
    refuse_granted,
    resume_attempt,
    start_attempt,
)
from flowfabric.core.rules.fencing import handle_of
from flowfabric.core.rules.grants import require_grant
from flowfabric.core.state import is_eligible
from flowfabric.core.vocabulary import Continuation, GrantKind, LeaseState

if TYPE_CHECKING:
    from flowfabric.core.work import Work


@rule(ClaimExecutionArgs)
def claim_execution(work: Work, args: ClaimExecutionArgs) -> ClaimExecutionResult:
    """Turn a grant into a lease with a new attempt.

    Raises:
        ExecutionNotFound, ExecutionNotLeaseable, LeaseConflict, ActiveAttemptExists,
        UseClaimResumedExecution, InvalidClaimGrant, ClaimGrantExpired: in this order.
    """
    execution = work.execution(args.execution_id)
    _require_leaseable(execution, args.lane_id)
    if execution.continuation is Continuation.RESUME:
        raise errors.UseClaimResumedExecution(execution_id=args.execution_id)
    _require_index(execution, args.expected_attempt_index, execution.attempt_count)
    require_grant(work, execution, GrantKind.CLAIM, args.worker_id)
    execution = work.edit(execution)
    adopt_policy(execution, parse_policy(args.attempt_policy_json))
    if execution.deadline_at is None and args.execution_deadline_at:
        execution.deadline_at = args.execution_deadline_at
    claimant = _claimant(
        args, args.lease_id, args.attempt_id, args.attempt_policy_json, args.attempt_timeout_ms
    )
    lease = start_attempt(work, execution, claimant)
    attempt = current_attempt(execution)
    return ClaimedExecution(
        execution_id=args.execution_id,
        lease_id=args.lease_id,
        lease_epoch=lease.epoch,
        attempt_index=attempt.attempt_index,
        attempt_id=args.attempt_id,
        attempt_type=attempt.attempt_type,
        lease_expires_at=lease.expires_at,
        handle=handle_of(work, execution, HandleKind.FRESH, lease, attempt),
    )


@rule(ClaimResumedExecutionArgs)
def claim_resumed_execution(work: Work, args: ClaimResumedExecutionArgs) -> ClaimResumedExecutionResult:
    """Turn a grant into a lease on the interrupted attempt.

    Raises:
        ExecutionNotFound, ExecutionNotLeaseable (not runnable), NotAResumedExecution,
        ExecutionNotLeaseable (blocked, another lane or attempt), InvalidClaimGrant,
        ClaimGrantExpired: in this order.
    """
    execution = work.execution(args.execution_id)
    if execution.phase is not LifecyclePhase.RUNNABLE:
        raise _not_leaseable(execution)
    if execution.continuation is not Continuation.RESUME:
        raise errors.NotAResumedExecution(execution_id=args.execution_id)
    _require_leaseable(execution, args.lane_id)
    attempt = current_attempt(execution)
    _require_index(execution, args.current_attempt_index, attempt.attempt_index)
    require_grant(work, execution, GrantKind.RESUME, args.worker_id)
    execution = work.edit(execution)
    claimant = _claimant(
        args, args.lease_id, attempt.attempt_id, timeout_ms=args.remaining_attempt_timeout_ms
    )
    lease = resume_attempt(work, execution, claimant)
    return ClaimedResumedExecution(
        execution_id=args.execution_id,
        lease_id=args.lease_id,
        lease_epoch=lease.epoch,
        attempt_index=attempt.attempt_index,
        attempt_id=attempt.attempt_id,
        lease_expires_at=lease.expires_at,
        handle=handle_of(work, execution, HandleKind.RESUMED, lease, attempt),
    )


@rule(IssueGrantAndClaimArgs)
def issue_grant_and_claim(work: Work, args: IssueGrantAndClaimArgs) -> IssueGrantAndClaimResult:
    """Claim one named execution in one step, as an operator does. Capabilities are not asked for.

    What is delayed or blocked stays so: the one who wants it to run removes the blocker first.

    Raises:
        InvalidInput: the ids of lease and attempt were not minted.
        ExecutionNotFound, LeaseConflict, ExecutionNotEligible, GrantAlreadyExists,
        ExecutionNotInEligibleSet: in this order.
    """
    if args.lease_id is None or args.attempt_id is None:
        raise errors.InvalidInput(field="lease_id", value="None", rule="minted with the attempt id")
    execution = work.execution(args.execution_id)
    _require_claimable(work, execution, args.lane_id)
    resumed = execution.continuation is Continuation.RESUME
    execution = work.edit(execution)
    adopt_policy(execution, parse_policy(args.attempt_policy_json))
    claimant = _claimant(args, args.lease_id, args.attempt_id, args.attempt_policy_json)
    claim = resume_attempt if resumed else start_attempt
    lease = claim(work, execution, claimant)
    attempt = current_attempt(execution)
    kind = HandleKind.RESUMED if resumed else HandleKind.FRESH
    return GrantedAndClaimed(
        execution_id=args.execution_id,
        lease_id=args.lease_id,
        lease_epoch=lease.epoch,
        attempt_index=attempt.attempt_index,
        attempt_id=attempt.attempt_id,
        attempt_type=attempt.attempt_type,
        resumed=resumed,
        lease_expires_at=lease.expires_at,
        handle=handle_of(work, execution, kind, lease, attempt),
    )


def _claimant(
    args: ClaimExecutionArgs | ClaimResumedExecutionArgs | IssueGrantAndClaimArgs,
    lease_id: str,
    attempt_id: str,
    policy_json: str = "",
    timeout_ms: int | None = None,
) -> Claimant:
    return Claimant(
        worker_id=args.worker_id,
        worker_instance_id=args.worker_instance_id,
        lease_id=lease_id,
        attempt_id=attempt_id,
        lease_ttl_ms=args.lease_ttl_ms,
        policy_json=policy_json,
        attempt_timeout_ms=timeout_ms or None,
    )


def current_attempt(execution: Execution) -> Attempt:
    """The attempt of an execution that has one."""
    assert execution.attempt is not None
    return execution.attempt


def _require_leaseable(execution: Execution, lane_id: str) -> None:
    """Refuse whatever does not wait for a worker in this lane.

    The second and third check cannot fail on a record that these rules wrote. They keep one that
    was damaged from getting a second lease.
    """
    if execution.phase is not LifecyclePhase.RUNNABLE:
        raise _not_leaseable(execution)
    if execution.lease is not None:
        raise errors.LeaseConflict(execution_id=execution.execution_id)
    if execution.blockers or execution.lane_id != lane_id:
        raise _not_leaseable(execution, lane_id=execution.lane_id, blockers=len(execution.blockers))
    attempt = execution.attempt
    if attempt is not None and attempt.state is AttemptLifecycle.STARTED:
        raise errors.ActiveAttemptExists(execution_id=execution.execution_id)


def _require_claimable(work: Work, execution: Execution, lane_id: str) -> None:
    lease = execution.lease
    if lease is not None and lease.state is LeaseState.HELD:
        raise errors.LeaseConflict(execution_id=execution.execution_id)
    if execution.phase is not LifecyclePhase.RUNNABLE:
        raise errors.ExecutionNotEligible(
            execution_id=execution.execution_id, lifecycle_phase=execution.phase
        )
    refuse_granted(work, execution)
    if execution.lane_id != lane_id:
        raise errors.ExecutionNotInEligibleSet(execution_id=execution.execution_id, lane_id=execution.lane_id)
    if not is_eligible(execution):
        raise errors.ExecutionNotEligible(execution_id=execution.execution_id)


def _require_index(execution: Execution, expected: int, actual: int) -> None:
    """Refuse a claimant that has another attempt in mind than the one it would get."""
    if expected != actual:
        raise _not_leaseable(execution, expected_attempt_index=expected, next_attempt_index=actual)


def _not_leaseable(execution: Execution, **details: object) -> errors.ExecutionNotLeaseable:
    return errors.ExecutionNotLeaseable(
        execution_id=execution.execution_id, lifecycle_phase=execution.phase, **details
    )

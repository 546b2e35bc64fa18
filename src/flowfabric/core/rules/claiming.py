"""Giving executions to workers: a new attempt, the same attempt again, or a reclaimed one.

Which of the three it is follows from the record: ``continuation`` for a runnable execution, a
lapsed lease for an active one. The epoch grows with every lease; only a new attempt gets a new
index and id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.leases import ClaimedWork
from flowfabric.contracts.limits import RECLAIM_COUNT_MAX, SAFE_INTEGER_MAX
from flowfabric.contracts.policy import ExecutionPolicy, require_capabilities
from flowfabric.contracts.states import AttemptLifecycle, AttemptType, LifecyclePhase, TerminalOutcome
from flowfabric.core.commands import (
    CandidateClaimed,
    CandidateEnded,
    ClaimCandidateArgs,
    ClaimCandidateResult,
)
from flowfabric.core.policies import merge_policies
from flowfabric.core.records import Execution, Lease, Payload, key_for
from flowfabric.core.registry import rule
from flowfabric.core.rules.graph import refuse_cancelled_flow
from flowfabric.core.rules.journal import journal_resumption
from flowfabric.core.rules.lanes import refuse_claim_in_lane
from flowfabric.core.rules.transitions import end_attempt, end_execution, grant_lease, open_attempt
from flowfabric.core.state import is_eligible
from flowfabric.core.vocabulary import Continuation, LeaseState

if TYPE_CHECKING:
    from flowfabric.core.work import Work

ATTEMPT_TYPE_OF: Final = {
    Continuation.FIRST: AttemptType.INITIAL,
    Continuation.RETRY: AttemptType.RETRY,
    Continuation.REPLAY: AttemptType.REPLAY,
}


class Claimant(msgspec.Struct, frozen=True, kw_only=True):
    """The worker that gets a lease, and the ids that were minted for it."""

    worker_id: str
    worker_instance_id: str
    lease_id: str
    attempt_id: str
    lease_ttl_ms: int
    policy_json: str = ""
    attempt_timeout_ms: int | None = None
    """Applies where no policy limits the attempt."""


@rule(ClaimCandidateArgs, reads=lambda args: (key_for(Payload, args.execution_id),))
def claim_candidate(work: Work, args: ClaimCandidateArgs) -> ClaimCandidateResult:
    """Claim what an index offered, whichever way it has to be claimed.

    Raises:
        ExecutionNotFound, ExecutionNotEligible: it is gone, or something happened to it meanwhile.
        GrantAlreadyExists: it is reserved for a worker.
        CapabilityMismatch: this worker may not run it.
    """
    execution = work.edit(work.execution(args.execution_id))
    if execution.lane_id != args.lane_id:
        raise errors.ExecutionNotEligible(execution_id=args.execution_id, lane_id=execution.lane_id)
    require_capabilities(execution.required_capabilities, args.worker_capabilities)
    refuse_granted(work, execution)
    claimant = Claimant(
        worker_id=args.worker_id,
        worker_instance_id=args.worker_instance_id,
        lease_id=args.lease_id,
        attempt_id=args.attempt_id,
        lease_ttl_ms=args.lease_ttl_ms,
    )
    adopt_policy(execution, args.policies.get(execution.execution_kind))
    resumed = execution.continuation is Continuation.RESUME
    if execution.phase is LifecyclePhase.ACTIVE:
        require_reclaimable(work, execution)
        if execution.reclaim_count >= reclaim_cap(execution):
            fail_at_reclaim_cap(work, execution)
            return CandidateEnded(execution_id=args.execution_id, reclaim_count=execution.reclaim_count)
        lease = reclaim_attempt(work, execution, claimant)
    elif not is_eligible(execution):
        raise errors.ExecutionNotEligible(execution_id=args.execution_id)
    elif resumed:
        lease = resume_attempt(work, execution, claimant)
    else:
        lease = start_attempt(work, execution, claimant)
    return CandidateClaimed(work=_claimed_work(work, execution, lease, resumed=resumed))


def refuse_granted(work: Work, execution: Execution) -> None:
    """Refuse an execution for which a live grant exists."""
    grant = execution.grant
    if grant is not None and grant.expires_at > work.now:
        raise errors.GrantAlreadyExists(execution_id=execution.execution_id, expires_at=grant.expires_at)


def require_reclaimable(work: Work, execution: Execution) -> None:
    """Refuse an execution whose lease has not lapsed, or lapsed so recently that its grace runs."""
    lease = execution.lease
    if execution.phase is not LifecyclePhase.ACTIVE or lease is None or lease.state is LeaseState.HELD:
        raise errors.ExecutionNotReclaimable(execution_id=execution.execution_id)
    if lease.reclaimable_at is not None and lease.reclaimable_at > work.now:
        raise errors.ExecutionNotReclaimable(
            execution_id=execution.execution_id, reclaimable_at=lease.reclaimable_at
        )


def reclaim_cap(execution: Execution, default: int | None = None) -> int:
    """How often the execution may be reclaimed. A policy that says so wins over the caller's number."""
    policy = execution.policy
    if policy is not None and (policy.max_reclaim_count is not None or policy.timeout_policy is not None):
        return policy.reclaim_cap
    return RECLAIM_COUNT_MAX if default is None else default


def adopt_policy(execution: Execution, handler: ExecutionPolicy | None) -> None:
    """Store the parts of the handler's policy that the execution has none of.

    A deadline that comes with it counts from the creation, as one given at the creation does.
    """
    had_timeouts = execution.policy is not None and execution.policy.timeout_policy is not None
    execution.policy = merge_policies(execution.policy, _sparing(execution, handler))
    timeouts = None if execution.policy is None else execution.policy.timeout_policy
    if had_timeouts or timeouts is None or timeouts.execution_deadline_ms is None:
        return
    if execution.deadline_at is None:
        deadline_at = execution.created_at + timeouts.execution_deadline_ms
        execution.deadline_at = min(deadline_at, SAFE_INTEGER_MAX)


def _sparing(execution: Execution, handler: ExecutionPolicy | None) -> ExecutionPolicy | None:
    """The handler's policy without a cap below what was used before the handler came along.

    What was allowed then stays within the caps on record; nothing more is allowed by it.
    """
    if handler is None:
        return None
    retries, reclaims = handler.retry_policy, handler.max_reclaim_count
    if retries is not None and retries.max_retries < execution.retry_count:
        retries = replace(retries, max_retries=execution.retry_count)
    return replace(
        handler,
        retry_policy=retries,
        max_reclaim_count=None if reclaims is None else max(reclaims, execution.reclaim_count),
        max_replay_count=max(handler.max_replay_count, execution.replay_count),
    )


def start_attempt(work: Work, execution: Execution, claimant: Claimant) -> Lease:
    """Open the attempt that is due (first, retry or replay) and lease it."""
    _refuse_held_back(work, execution)
    open_attempt(
        work,
        execution,
        attempt_id=claimant.attempt_id,
        attempt_type=ATTEMPT_TYPE_OF[execution.continuation],
        worker_id=claimant.worker_id,
        worker_instance_id=claimant.worker_instance_id,
        policy_json=claimant.policy_json,
        timeout_ms=attempt_timeout_ms(execution.policy) or claimant.attempt_timeout_ms,
        cause=execution.retry_reason,
    )
    execution.retry_reason = ""
    return _lease_to(work, execution, claimant, "acquired")


def resume_attempt(work: Work, execution: Execution, claimant: Claimant) -> Lease:
    """Continue the interrupted attempt under a new lease. What it waited for goes to the journal."""
    _refuse_held_back(work, execution)
    journal_resumption(work, execution)
    assert execution.attempt is not None
    timeout_ms = execution.attempt.timeout_ms
    execution.attempt = replace(
        execution.attempt,
        state=AttemptLifecycle.STARTED,
        resumed_at=work.now,
        timeout_ms=claimant.attempt_timeout_ms if timeout_ms is None else timeout_ms,
        suspended_at=None,
        suspension_id="",
        worker_id=claimant.worker_id,
        worker_instance_id=claimant.worker_instance_id,
    )
    return _lease_to(work, execution, claimant, "acquired", reason="claim_resumed")


def reclaim_attempt(work: Work, execution: Execution, claimant: Claimant) -> Lease:
    """Take a lapsed lease over: the old attempt is interrupted for good, a new one begins."""
    _refuse_held_back(work, execution)
    lapsed = execution.lease
    assert lapsed is not None
    end_attempt(
        work, execution, AttemptLifecycle.INTERRUPTED_RECLAIMED, "reclaimed", failure_reason=lapsed.state
    )
    open_attempt(
        work,
        execution,
        attempt_id=claimant.attempt_id,
        attempt_type=AttemptType.RECLAIM,
        worker_id=claimant.worker_id,
        worker_instance_id=claimant.worker_instance_id,
        policy_json=claimant.policy_json,
        timeout_ms=attempt_timeout_ms(execution.policy) or claimant.attempt_timeout_ms,
        cause=f"lease_{lapsed.state}",
    )
    execution.reclaim_count += 1
    return _lease_to(
        work,
        execution,
        claimant,
        "reclaimed",
        previous_epoch=lapsed.epoch,
        previous_worker_instance_id=lapsed.worker_instance_id,
    )


def fail_at_reclaim_cap(work: Work, execution: Execution) -> None:
    """End an execution that has been reclaimed as often as it may be."""
    end_execution(
        work,
        execution,
        TerminalOutcome.FAILED,
        release_reason="failed_terminal",
        failure_reason="max_reclaims_exceeded",
        failure_category="infra_crash",
    )


def _refuse_held_back(work: Work, execution: Execution) -> None:
    """Refuse what its flow or its lane keeps from workers.

    Raises:
        ExecutionNotEligible: the flow was cancelled, or the lane is paused or disabled.
    """
    refuse_cancelled_flow(work, execution)
    refuse_claim_in_lane(work, execution)


def _lease_to(
    work: Work, execution: Execution, claimant: Claimant, event: str, **data: str | int | None
) -> Lease:
    return grant_lease(
        work,
        execution,
        lease_id=claimant.lease_id,
        lease_ttl_ms=claimant.lease_ttl_ms,
        worker_id=claimant.worker_id,
        worker_instance_id=claimant.worker_instance_id,
        event=event,
        **data,
    )


def attempt_timeout_ms(policy: ExecutionPolicy | None) -> int | None:
    """How long an attempt may be leased in all, or None without a limit."""
    timeouts = None if policy is None else policy.timeout_policy
    return None if timeouts is None else timeouts.attempt_timeout_ms


def _claimed_work(work: Work, execution: Execution, lease: Lease, *, resumed: bool) -> ClaimedWork:
    payload = work.read(Payload, execution.execution_id)
    attempt = execution.attempt
    assert payload is not None
    assert attempt is not None
    return ClaimedWork(
        execution_id=execution.execution_id,
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
        lease_expires_at=lease.expires_at,
        lease_ttl_ms=lease.ttl_ms,
        attempt_index=attempt.attempt_index,
        attempt_id=attempt.attempt_id,
        attempt_type=attempt.attempt_type,
        resumed=resumed,
        lane_id=execution.lane_id,
        execution_kind=execution.execution_kind,
        input_payload=payload.data,
        payload_encoding=execution.payload_encoding,
        tags=execution.tags,
        policy=execution.policy,
        execution_deadline_at=execution.deadline_at,
        attempt_timeout_at=attempt.timeout_at,
        generation=execution.journal_generation,
    )

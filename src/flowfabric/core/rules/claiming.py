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
from flowfabric.contracts.limits import RECLAIM_COUNT_MAX
from flowfabric.contracts.policy import ExecutionPolicy, require_capabilities
from flowfabric.contracts.states import AttemptLifecycle, AttemptType, LifecyclePhase, TerminalOutcome
from flowfabric.core.commands import (
    CandidateClaimed,
    CandidateEnded,
    CandidateHeld,
    ClaimCandidateArgs,
    ClaimCandidateResult,
)
from flowfabric.core.policies import adopt_policy
from flowfabric.core.records import Execution, Lease, Payload, key_for
from flowfabric.core.registry import rule
from flowfabric.core.rules.graph import refuse_cancelled_flow
from flowfabric.core.rules.headroom import admit
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


def held(outcome: ClaimCandidateResult) -> ClaimCandidateResult:
    """What has to be remembered of a claim: whatever changes the lease is remembered in its place."""
    return CandidateHeld(resumed=outcome.work.resumed) if isinstance(outcome, CandidateClaimed) else outcome


def claimed_again(
    work: Work, args: ClaimCandidateArgs, outcome: ClaimCandidateResult
) -> ClaimCandidateResult:
    """The answer to a claim from what is remembered of it.

    Raises:
        ExecutionNotEligible: the lease has been taken back since, as when the flow was cancelled.
    """
    if not isinstance(outcome, CandidateHeld):
        return outcome
    execution, payload = work.read(Execution, args.execution_id), work.read(Payload, args.execution_id)
    assert execution is not None
    if execution.lease is None:
        raise errors.ExecutionNotEligible(execution_id=args.execution_id)
    assert payload is not None
    return CandidateClaimed(work=claimed_work(execution, payload, resumed=outcome.resumed))


@rule(
    ClaimCandidateArgs,
    reads=lambda args: (key_for(Payload, args.execution_id),),
    shorten=held,
    restore=claimed_again,
)
def claim_candidate(work: Work, args: ClaimCandidateArgs) -> ClaimCandidateResult:
    """Claim what an index offered, whichever way it has to be claimed.

    Raises:
        ExecutionNotFound, ExecutionNotEligible: it is gone, or something happened to it meanwhile.
        GrantAlreadyExists: it is reserved for a worker.
        CapabilityMismatch: this worker may not run it.
        BudgetExceeded, AdmissionMissing and others: see ``headroom.admit``.
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
        reclaim_attempt(work, execution, claimant)
    elif not is_eligible(execution):
        raise errors.ExecutionNotEligible(execution_id=args.execution_id)
    elif resumed:
        resume_attempt(work, execution, claimant)
    else:
        start_attempt(work, execution, claimant)
    payload = work.read(Payload, args.execution_id)
    assert payload is not None
    return CandidateClaimed(work=claimed_work(execution, payload, resumed=resumed))


def refuse_granted(work: Work, execution: Execution) -> None:
    """Refuse an execution for which a live grant exists."""
    grant = execution.grant
    if grant is not None and grant.expires_at > work.now:
        raise errors.GrantAlreadyExists(execution_id=execution.execution_id, expires_at=grant.expires_at)


def require_reclaimable(work: Work, execution: Execution) -> None:
    """Refuse an execution whose lease has not lapsed, whose grace runs, or which is paused."""
    lease = execution.lease
    if execution.phase is not LifecyclePhase.ACTIVE or lease is None or lease.state is LeaseState.HELD:
        raise errors.ExecutionNotReclaimable(execution_id=execution.execution_id)
    if lease.reclaimable_at is not None and lease.reclaimable_at > work.now:
        raise errors.ExecutionNotReclaimable(
            execution_id=execution.execution_id, reclaimable_at=lease.reclaimable_at
        )
    if execution.pause_reason is not None:
        raise errors.ExecutionNotReclaimable(
            execution_id=execution.execution_id, paused=execution.pause_reason
        )


def reclaim_cap(execution: Execution, default: int | None = None) -> int:
    """How often the execution may be reclaimed. A policy that says so wins over the caller's number."""
    policy = execution.policy
    if policy is not None and (policy.max_reclaim_count is not None or policy.timeout_policy is not None):
        return policy.reclaim_cap
    return RECLAIM_COUNT_MAX if default is None else default


def start_attempt(work: Work, execution: Execution, claimant: Claimant) -> Lease:
    """Open the attempt that is due (first, retry or replay) and lease it."""
    _refuse_held_back(work, execution)
    admit(work, execution)
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
    admit(work, execution)
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
    admit(work, execution)
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


def claimed_work(execution: Execution, payload: Payload, *, resumed: bool) -> ClaimedWork:
    """What the holder of a lease is told, with everything that a handler needs."""
    lease, attempt = execution.lease, execution.attempt
    assert lease is not None
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

"""Leases: grants, claims, renewal, expiry, revocation and reclaim."""

from __future__ import annotations

from typing import Any

from flowfabric import errors
from flowfabric.contracts.executions import CreateExecutionArgs, DelayExecutionArgs
from flowfabric.contracts.leases import (
    ClaimBatchArgs,
    ClaimExecutionArgs,
    ClaimForWorkerArgs,
    ClaimResumedExecutionArgs,
    IssueClaimGrantArgs,
    IssueGrantAndClaimArgs,
    IssueReclaimGrantArgs,
    MarkLeaseExpiredArgs,
    ReclaimExecutionArgs,
    RenewLeaseArgs,
    RevokeLeaseArgs,
)
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.core.commands import ClaimCandidateArgs, EndReclaimGraceArgs, ExpireLeaseArgs
from flowfabric.core.records import Execution, Grant
from flowfabric.core.state import Situation
from flowfabric.core.vocabulary import Continuation, GrantKind
from flowfabric.testing.bed import LANE, TTL_MS
from flowfabric.testing.model.draw import CAPABILITY, Draw, generator, lease_of
from flowfabric.testing.model.steps import Pass

ALL_CAPABILITIES = frozenset({CAPABILITY})


@generator(IssueClaimGrantArgs)
def issue_claim_grant(draw: Draw) -> IssueClaimGrantArgs:
    """For one of the workers."""
    return IssueClaimGrantArgs(
        execution_id=draw.eligible().execution_id,
        lane_id=LANE,
        **draw.worker(),
        worker_capabilities=ALL_CAPABILITIES,
        grant_ttl_ms=draw.pick((1_000, TTL_MS)),
    )


@generator(IssueClaimGrantArgs, provokes=errors.CapabilityMismatch)
def issue_claim_grant_to_the_unable(draw: Draw) -> IssueClaimGrantArgs:
    """For a worker that can do nothing."""
    needy = [one for one in draw.executions(Situation.ELIGIBLE) if one.required_capabilities]
    return IssueClaimGrantArgs(
        execution_id=draw.one_of(needy, CreateExecutionArgs).execution_id,
        lane_id=LANE,
        **draw.worker(),
        grant_ttl_ms=1_000,
    )


@generator(IssueClaimGrantArgs, provokes=errors.GrantAlreadyExists)
def issue_claim_grant_twice(draw: Draw) -> IssueClaimGrantArgs:
    """For another worker than the one that has a grant."""
    granted = _granted(draw, GrantKind.CLAIM)
    return IssueClaimGrantArgs(
        execution_id=granted.execution_id,
        lane_id=LANE,
        worker_id="third",
        worker_instance_id="third-1",
        worker_capabilities=ALL_CAPABILITIES,
        grant_ttl_ms=1_000,
    )


@generator(IssueClaimGrantArgs, provokes=errors.ExecutionNotInEligibleSet)
def issue_claim_grant_in_another_lane(draw: Draw) -> IssueClaimGrantArgs:
    """For a lane in which it does not wait."""
    return IssueClaimGrantArgs(
        execution_id=draw.eligible().execution_id, lane_id="nowhere", **draw.worker(), grant_ttl_ms=1_000
    )


def _granted(draw: Draw, kind: GrantKind, *continuations: Continuation) -> Execution:
    """One that is kept for a worker, whose grant is alive."""
    found = [
        one
        for one in draw.executions()
        if one.grant is not None and one.grant.kind is kind and one.grant.expires_at > draw.now
        if not continuations or one.continuation in continuations
    ]
    issue = IssueClaimGrantArgs if kind is GrantKind.CLAIM else IssueReclaimGrantArgs
    return draw.one_of(found, issue)


def _kept_for(execution: Execution) -> dict[str, Any]:
    grant = execution.grant
    assert isinstance(grant, Grant)
    return {"worker_id": grant.worker_id, "worker_instance_id": grant.worker_instance_id}


def _claim_of(draw: Draw, execution: Execution) -> dict[str, Any]:
    return {
        "execution_id": execution.execution_id,
        "lane_id": execution.lane_id,
        "lease_ttl_ms": TTL_MS,
        "expected_attempt_index": execution.attempt_count,
        **draw.minted(),
    }


_NEW_ATTEMPT = (Continuation.FIRST, Continuation.RETRY, Continuation.REPLAY)


@generator(ClaimExecutionArgs)
def claim_execution(draw: Draw) -> ClaimExecutionArgs:
    """By the worker it is kept for."""
    execution = _granted(draw, GrantKind.CLAIM, *_NEW_ATTEMPT)
    return ClaimExecutionArgs(
        **_claim_of(draw, execution),
        **_kept_for(execution),
        attempt_policy_json=draw.pick(("", '{"max_replay_count": 3}')),
        attempt_timeout_ms=draw.pick((None, TTL_MS)),
    )


@generator(ClaimExecutionArgs, provokes=errors.InvalidClaimGrant)
def claim_execution_without_a_grant(draw: Draw) -> ClaimExecutionArgs:
    """By a worker it is not kept for."""
    execution = draw.eligible()
    return ClaimExecutionArgs(**_claim_of(draw, execution), **draw.worker())


@generator(ClaimExecutionArgs, provokes=errors.ClaimGrantExpired)
def claim_execution_with_an_old_grant(draw: Draw) -> ClaimExecutionArgs:
    """By the worker it was kept for, too late."""
    granted = [one for one in draw.executions(Situation.ELIGIBLE) if one.grant is not None]
    old = [one for one in granted if one.grant is not None and one.grant.expires_at <= draw.now]
    execution = draw.one_of(old, Pass(milliseconds=TTL_MS) if granted else IssueClaimGrantArgs)
    return ClaimExecutionArgs(**_claim_of(draw, execution), **_kept_for(execution))


@generator(IssueGrantAndClaimArgs, provokes=errors.LeaseConflict)
def claim_execution_that_runs(draw: Draw) -> IssueGrantAndClaimArgs:
    """For another worker."""
    return IssueGrantAndClaimArgs(
        execution_id=draw.running().execution_id,
        lane_id=LANE,
        **draw.worker(),
        **draw.minted(),
        lease_ttl_ms=TTL_MS,
    )


@generator(ClaimExecutionArgs, provokes=errors.ExecutionNotLeaseable)
def claim_execution_that_waits(draw: Draw) -> ClaimExecutionArgs:
    """Although it sleeps."""
    return ClaimExecutionArgs(**_claim_of(draw, draw.delayed()), **draw.worker())


@generator(ClaimExecutionArgs, provokes=errors.UseClaimResumedExecution)
def claim_execution_that_was_interrupted(draw: Draw) -> ClaimExecutionArgs:
    """With a new attempt although the old one goes on."""
    execution = _granted_after_a_pause(draw)
    return ClaimExecutionArgs(**_claim_of(draw, execution), **_kept_for(execution))


def _granted_after_a_pause(draw: Draw) -> Execution:
    """One that is kept for a worker who is to go on with its attempt."""
    paused = [one for one in draw.executions(Situation.ELIGIBLE) if one.continuation is Continuation.RESUME]
    granted = [one for one in paused if one.grant is not None and one.grant.expires_at > draw.now]
    return draw.one_of(granted, IssueClaimGrantArgs if paused else DelayExecutionArgs)


@generator(ClaimResumedExecutionArgs)
def claim_resumed_execution(draw: Draw) -> ClaimResumedExecutionArgs:
    """By the worker it is kept for."""
    execution = _granted_after_a_pause(draw)
    return _resumed_claim(draw, execution)


@generator(ClaimResumedExecutionArgs, provokes=errors.NotAResumedExecution)
def claim_resumed_execution_that_never_ran(draw: Draw) -> ClaimResumedExecutionArgs:
    """Although it needs a new attempt."""
    return _resumed_claim(draw, _granted(draw, GrantKind.CLAIM, *_NEW_ATTEMPT))


def _resumed_claim(draw: Draw, execution: Execution) -> ClaimResumedExecutionArgs:
    return ClaimResumedExecutionArgs(
        execution_id=execution.execution_id,
        **_kept_for(execution),
        lane_id=execution.lane_id,
        lease_id=draw.new_id(),
        lease_ttl_ms=TTL_MS,
        current_attempt_index=max(execution.attempt_count - 1, 0),
    )


@generator(IssueGrantAndClaimArgs)
def issue_grant_and_claim(draw: Draw) -> IssueGrantAndClaimArgs:
    """With ids of the caller's, or without."""
    return IssueGrantAndClaimArgs(
        execution_id=draw.eligible().execution_id,
        lane_id=LANE,
        **draw.worker(),
        **(draw.minted() if draw.chance(0.7) else {}),
        lease_ttl_ms=draw.pick((1_000, TTL_MS)),
    )


@generator(ClaimCandidateArgs)
def claim_candidate(draw: Draw) -> ClaimCandidateArgs:
    """New, resumed or lapsed."""
    found = [
        one
        for one in draw.executions(Situation.ELIGIBLE, Situation.LEASE_EXPIRED, Situation.LEASE_REVOKED)
        if one.grant is None
    ]
    return ClaimCandidateArgs(
        execution_id=draw.one_of(found, CreateExecutionArgs).execution_id,
        lane_id=LANE,
        **draw.worker(),
        **draw.minted(),
        worker_capabilities=draw.capabilities(),
        lease_ttl_ms=draw.pick((1_000, TTL_MS)),
        policies={"kind": ExecutionPolicy(max_replay_count=2)} if draw.chance(0.2) else {},
    )


@generator(ClaimCandidateArgs, provokes=errors.ExecutionNotReclaimable)
def claim_candidate_in_its_grace(draw: Draw) -> ClaimCandidateArgs:
    """Whose lapsed lease is held back from others for a while."""
    held_back = [
        one for one in draw.executions(Situation.LEASE_EXPIRED) if lease_of(one).reclaimable_at is not None
    ]
    return ClaimCandidateArgs(
        execution_id=draw.one_of(held_back, ExpireLeaseArgs).execution_id,
        lane_id=LANE,
        **draw.worker(),
        **draw.minted(),
        worker_capabilities=ALL_CAPABILITIES,
        lease_ttl_ms=TTL_MS,
    )


@generator(ClaimCandidateArgs, provokes=errors.ExecutionNotEligible)
def claim_candidate_that_sleeps(draw: Draw) -> ClaimCandidateArgs:
    """Which is not claimable."""
    return ClaimCandidateArgs(
        execution_id=draw.delayed().execution_id,
        lane_id=LANE,
        **draw.worker(),
        **draw.minted(),
        worker_capabilities=ALL_CAPABILITIES,
        lease_ttl_ms=TTL_MS,
    )


@generator(ClaimBatchArgs)
def claim_batch(draw: Draw) -> ClaimBatchArgs:
    """Up to three of the lane."""
    draw.eligible()
    return ClaimBatchArgs(
        lanes=(LANE,) if draw.chance(0.7) else (LANE, "second"),
        **draw.worker(),
        worker_capabilities=draw.capabilities(),
        limit=draw.pick((1, 2, 3)),
        lease_ttl_ms=TTL_MS,
    )


@generator(ClaimForWorkerArgs)
def claim_for_worker(draw: Draw) -> ClaimForWorkerArgs:
    """The most urgent of the lane."""
    return ClaimForWorkerArgs(
        lane_id=LANE, **draw.worker(), worker_capabilities=draw.capabilities(), grant_ttl_ms=TTL_MS
    )


@generator(RenewLeaseArgs)
def renew_lease(draw: Draw) -> RenewLeaseArgs:
    """For longer, or for less than is left, which changes nothing."""
    return RenewLeaseArgs(**draw.fenced(draw.running()), lease_ttl_ms=draw.pick((1, TTL_MS, 2 * TTL_MS)))


@generator(MarkLeaseExpiredArgs)
def mark_lease_expired(draw: Draw) -> MarkLeaseExpiredArgs:
    """Past its expiry."""
    return MarkLeaseExpiredArgs(execution_id=draw.overdue().execution_id)


@generator(ExpireLeaseArgs)
def expire_lease(draw: Draw) -> ExpireLeaseArgs:
    """With a grace or without."""
    return ExpireLeaseArgs(
        execution_id=draw.overdue().execution_id, reclaim_grace_ms=draw.pick((0, 1_000, TTL_MS))
    )


@generator(EndReclaimGraceArgs)
def end_reclaim_grace(draw: Draw) -> EndReclaimGraceArgs:
    """Over or not yet."""
    held_back = [
        one for one in draw.executions(Situation.LEASE_EXPIRED) if lease_of(one).reclaimable_at is not None
    ]
    return EndReclaimGraceArgs(execution_id=draw.one_of(held_back, ExpireLeaseArgs).execution_id)


@generator(RevokeLeaseArgs)
def revoke_lease(draw: Draw) -> RevokeLeaseArgs:
    """Whoever holds it, or only if it is the one that is meant."""
    execution = draw.running()
    expected = lease_of(execution).lease_id if draw.chance(0.5) else None
    return RevokeLeaseArgs(
        execution_id=execution.execution_id, expected_lease_id=expected, reason="by an operator"
    )


@generator(IssueReclaimGrantArgs)
def issue_reclaim_grant(draw: Draw) -> IssueReclaimGrantArgs:
    """For one of the workers."""
    return IssueReclaimGrantArgs(
        execution_id=draw.lapsed().execution_id,
        **draw.worker(),
        lane_id=LANE,
        worker_capabilities=ALL_CAPABILITIES,
        grant_ttl_ms=TTL_MS,
    )


@generator(ReclaimExecutionArgs)
def reclaim_execution(draw: Draw) -> ReclaimExecutionArgs:
    """By the worker it is kept for."""
    execution = _granted(draw, GrantKind.RECLAIM)
    return ReclaimExecutionArgs(
        execution_id=execution.execution_id,
        **_kept_for(execution),
        lane_id=LANE,
        **draw.minted(),
        lease_ttl_ms=TTL_MS,
        max_reclaim_count=draw.pick((None, 0, 3)),
    )

"""Executions: creating, ending, delaying, replaying and labelling them."""

from __future__ import annotations

import hashlib
from typing import Final

from flowfabric import errors
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    CompleteExecutionArgs,
    CreateExecutionArgs,
    DelayExecutionArgs,
    ExpireExecutionArgs,
    ExpireReason,
    FailExecutionArgs,
    GetExecutionTagArgs,
    MoveToWaitingChildrenArgs,
    PromoteDelayedArgs,
    ReplayExecutionArgs,
    SetExecutionTagArgs,
    SetExecutionTagsArgs,
    UpdateProgressArgs,
)
from flowfabric.contracts.leases import RevokeLeaseArgs
from flowfabric.contracts.limits import TAGS_MAX
from flowfabric.contracts.policy import (
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    RetryPolicy,
    RoutingRequirements,
    StreamPolicy,
    SuspensionPolicy,
    TimeoutBehavior,
    TimeoutPolicy,
)
from flowfabric.core.commands import ReserveIdempotencyKeyArgs, SettleReservationArgs
from flowfabric.core.records import Execution, Reservation
from flowfabric.core.state import Situation
from flowfabric.testing.bed import NAMESPACE, TTL_MS
from flowfabric.testing.model.draw import CAPABILITY, OTHER_NAMESPACE, Draw, generator
from flowfabric.testing.model.steps import Pass

POLICIES: Final = (
    None,
    ExecutionPolicy(max_reclaim_count=1, max_replay_count=1, dedup_window_ms=TTL_MS),
    ExecutionPolicy(retry_policy=RetryPolicy(max_retries=2, backoff=FixedBackoff(delay_ms=0))),
    ExecutionPolicy(
        retry_policy=RetryPolicy(max_retries=1, backoff=ExponentialBackoff(jitter=True)),
        timeout_policy=TimeoutPolicy(attempt_timeout_ms=TTL_MS // 2, execution_deadline_ms=8 * TTL_MS),
        stream_policy=StreamPolicy(retention_maxlen=2),
    ),
    ExecutionPolicy(
        suspension_policy=SuspensionPolicy(
            default_timeout_ms=TTL_MS, timeout_behavior=TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL
        ),
        routing_requirements=RoutingRequirements(required_capabilities=(CAPABILITY,)),
        max_signals_per_execution=2,
    ),
    ExecutionPolicy(max_reclaim_count=0, max_replay_count=0),
)
TAG_KEYS: Final = ("owner.name", "owner.team", "cost.centre")
FAILURES: Final = ("error", "timeout", "permanent", "")


@generator(CreateExecutionArgs)
def create_execution(draw: Draw) -> CreateExecutionArgs:
    """Plain, with a policy, delayed, or with a deadline."""
    return draw.creation(
        policy=draw.pick(POLICIES),
        delay_until=draw.later() if draw.chance(0.2) else None,
        execution_deadline_at=draw.later() if draw.chance(0.1) else None,
        tags={"owner.name": "a"} if draw.chance(0.2) else {},
        namespace=OTHER_NAMESPACE if draw.chance(0.1) else NAMESPACE,
    )


@generator(CreateExecutionArgs)
def create_execution_with_a_key(draw: Draw) -> CreateExecutionArgs:
    """With an idempotency key that others use as well."""
    return draw.creation(
        idempotency_key=draw.pick(("one", "two", "three")),
        input_payload=b"same" if draw.chance(0.8) else b"other",
        priority=0,
        policy=draw.pick(POLICIES[:2]),
    )


@generator(CreateExecutionArgs, provokes=errors.IdempotencyConflict)
def create_another_execution_under_a_key(draw: Draw) -> CreateExecutionArgs:
    """With a key that is bound to a request with other content."""
    bound = [one for one in draw.world.all(Reservation) if one.namespace == NAMESPACE]
    key = draw.one_of(bound, CreateExecutionArgs, ReserveIdempotencyKeyArgs).idempotency_key
    return draw.creation(idempotency_key=key, input_payload=b"never sent before")


@generator(CreateExecutionArgs, provokes=errors.InvalidInput)
def create_execution_in_a_foreign_namespace(draw: Draw) -> CreateExecutionArgs:
    """Under an id that another namespace uses."""
    taken = draw.execution()
    other = NAMESPACE if taken.namespace == OTHER_NAMESPACE else OTHER_NAMESPACE
    return draw.creation(execution_id=taken.execution_id, namespace=other)


@generator(CreateExecutionArgs, provokes=errors.InvalidCapabilities)
def create_execution_that_needs_the_impossible(draw: Draw) -> CreateExecutionArgs:
    """With a required capability that has a comma in it."""
    routing = RoutingRequirements(required_capabilities=("a,b",))
    return draw.creation(policy=ExecutionPolicy(routing_requirements=routing))


@generator(ReserveIdempotencyKeyArgs)
def reserve_idempotency_key(draw: Draw) -> ReserveIdempotencyKeyArgs:
    """A key for an execution that is created later, or never."""
    return ReserveIdempotencyKeyArgs(
        namespace=NAMESPACE,
        idempotency_key=draw.pick(("one", "four", draw.new_id())),
        execution_id=draw.new_execution_id(),
        digest=hashlib.sha256(b"request").digest(),
        window_ms=draw.pick((0, 1_000, TTL_MS)),
    )


@generator(SettleReservationArgs)
def settle_reservation(draw: Draw) -> SettleReservationArgs:
    """A reservation that is confirmed, freed, or neither yet."""
    found = draw.one_of(draw.world.all(Reservation), ReserveIdempotencyKeyArgs)
    return SettleReservationArgs(reservation_id=found.identity)


@generator(CompleteExecutionArgs)
def complete_execution(draw: Draw) -> CompleteExecutionArgs:
    """By the holder, or by an operator without a fence."""
    fields = draw.fenced(draw.running())
    if draw.chance(0.1):
        del fields["fence"]
    else:
        fields["source"] = "lease_holder"
    return CompleteExecutionArgs(**fields, result_payload=draw.payload() if draw.chance(0.7) else None)


@generator(CompleteExecutionArgs, provokes=errors.FenceRequired)
def complete_execution_without_a_fence(draw: Draw) -> CompleteExecutionArgs:
    """By somebody who claims to hold the lease, and does not show it."""
    execution = draw.running()
    return CompleteExecutionArgs(
        execution_id=execution.execution_id,
        attempt_index=execution.attempt_count - 1,
        source="lease_holder",
    )


@generator(CompleteExecutionArgs, provokes=errors.LeaseExpired)
def complete_execution_too_late(draw: Draw) -> CompleteExecutionArgs:
    """By a holder whose lease has lapsed."""
    return CompleteExecutionArgs(**draw.fenced(draw.overdue()), source="lease_holder")


@generator(CompleteExecutionArgs, provokes=errors.StaleLease)
def complete_execution_by_its_former_holder(draw: Draw) -> CompleteExecutionArgs:
    """With the right lease and another attempt's index."""
    fields = draw.fenced(draw.running())
    fields["attempt_index"] += 1
    return CompleteExecutionArgs(**fields, source="lease_holder")


@generator(CompleteExecutionArgs, provokes=errors.LeaseRevoked)
def complete_execution_after_a_revocation(draw: Draw) -> CompleteExecutionArgs:
    """By a holder whose lease an operator has taken away."""
    revoked = draw.one_of(draw.executions(Situation.LEASE_REVOKED), RevokeLeaseArgs)
    return CompleteExecutionArgs(**draw.fenced(revoked), source="lease_holder")


@generator(FailExecutionArgs)
def fail_execution(draw: Draw) -> FailExecutionArgs:
    """With a retry if the policy has one left."""
    return FailExecutionArgs(
        **draw.fenced(draw.running()),
        failure_reason="it broke",
        failure_category=draw.pick(FAILURES),
        retry_policy_json=draw.pick(("", "", '{"max_retries": 1}')),
        source="lease_holder",
    )


@generator(FailExecutionArgs, provokes=errors.InvalidPolicyJson)
def fail_execution_with_a_bad_policy(draw: Draw) -> FailExecutionArgs:
    """With a policy that is not JSON."""
    return FailExecutionArgs(
        **draw.fenced(draw.running()),
        failure_reason="it broke",
        failure_category="error",
        retry_policy_json="{",
        source="lease_holder",
    )


@generator(CancelExecutionArgs)
def cancel_execution(draw: Draw) -> CancelExecutionArgs:
    """By an operator, or by the holder."""
    execution = draw.execution()
    if execution.lease is not None and draw.chance(0.7):
        return CancelExecutionArgs(**draw.owned(execution), reason="given up", source="lease_holder")
    return CancelExecutionArgs(execution_id=execution.execution_id, reason="unwanted")


@generator(CancelExecutionArgs, provokes=errors.ExecutionNotActive)
def cancel_execution_that_has_ended(draw: Draw) -> CancelExecutionArgs:
    """Too late."""
    ended = draw.executions(Situation.COMPLETED, Situation.FAILED)
    found = draw.one_of(ended, CompleteExecutionArgs, FailExecutionArgs)
    return CancelExecutionArgs(execution_id=found.execution_id, reason="unwanted")


@generator(CancelExecutionArgs, provokes=errors.PartialFenceTriple)
def cancel_execution_with_half_a_fence(draw: Draw) -> CancelExecutionArgs:
    """With a lease id and nothing else."""
    return CancelExecutionArgs(
        execution_id=draw.running().execution_id, reason="given up", lease_id=draw.new_id()
    )


@generator(DelayExecutionArgs)
def delay_execution(draw: Draw) -> DelayExecutionArgs:
    """For a time, or for none."""
    return DelayExecutionArgs(**draw.fenced(draw.running()), delay_until=draw.later())


@generator(MoveToWaitingChildrenArgs)
def move_to_waiting_children(draw: Draw) -> MoveToWaitingChildrenArgs:
    """With dependencies or without."""
    return MoveToWaitingChildrenArgs(**draw.fenced(draw.running()))


@generator(PromoteDelayedArgs)
def promote_delayed(draw: Draw) -> PromoteDelayedArgs:
    """Due or not yet."""
    return PromoteDelayedArgs(execution_id=draw.delayed().execution_id)


@generator(ReplayExecutionArgs)
def replay_execution(draw: Draw) -> ReplayExecutionArgs:
    """With its journal or without."""
    found = [one for one in draw.executions() if one.completed_at is not None and not _is_spent(one)]
    execution = draw.one_of(found, CompleteExecutionArgs, FailExecutionArgs)
    return ReplayExecutionArgs(execution_id=execution.execution_id, keep_journal=draw.chance(0.3))


def _is_spent(execution: Execution) -> bool:
    policy = execution.policy
    return policy is not None and execution.replay_count >= policy.max_replay_count


@generator(ReplayExecutionArgs, provokes=errors.MaxReplaysExhausted)
def replay_execution_once_too_often(draw: Draw) -> ReplayExecutionArgs:
    """Beyond its cap."""
    spent = [one for one in draw.executions() if one.completed_at is not None and _is_spent(one)]
    hopeful = [one for one in draw.executions() if _is_spent(one)]
    if not spent and hopeful:
        return draw.one_of([], CancelExecutionArgs)
    return ReplayExecutionArgs(
        execution_id=draw.one_of(spent, CreateExecutionArgs, ReplayExecutionArgs).execution_id
    )


@generator(ReplayExecutionArgs, provokes=errors.ExecutionNotTerminal)
def replay_execution_that_has_not_ended(draw: Draw) -> ReplayExecutionArgs:
    """Too early."""
    return ReplayExecutionArgs(execution_id=draw.unclaimed().execution_id)


@generator(ExpireExecutionArgs)
def expire_execution(draw: Draw) -> ExpireExecutionArgs:
    """Due or not."""
    timed = [one for one in draw.executions() if one.deadline_at is not None and one.completed_at is None]
    chosen = timed or draw.executions()
    execution = draw.one_of(chosen, CreateExecutionArgs)
    if timed and (execution.deadline_at or 0) > draw.now and draw.chance(0.5):
        draw.one_of([], Pass(milliseconds=(execution.deadline_at or 0) - draw.now))
    return ExpireExecutionArgs(
        execution_id=execution.execution_id, expire_reason=draw.pick(tuple(ExpireReason))
    )


@generator(ChangePriorityArgs)
def change_priority(draw: Draw) -> ChangePriorityArgs:
    """Of waiting work; values out of range are clamped."""
    return ChangePriorityArgs(
        execution_id=draw.unclaimed().execution_id, new_priority=draw.pick((-1, 0, 7, 9_000, 9_001))
    )


@generator(UpdateProgressArgs)
def update_progress(draw: Draw) -> UpdateProgressArgs:
    """A number, a word, or both."""
    return UpdateProgressArgs(
        **draw.owned(draw.running()),
        progress_pct=draw.pick((None, 0, 50, 100)),
        progress_message=draw.pick((None, "", "half")),
    )


@generator(SetExecutionTagsArgs)
def set_execution_tags(draw: Draw) -> SetExecutionTagsArgs:
    """One or two of three."""
    tags = {key: draw.new_id() for key in draw.some(TAG_KEYS, 2)}
    return SetExecutionTagsArgs(execution_id=draw.execution().execution_id, tags=tags)


@generator(SetExecutionTagsArgs, provokes=errors.InvalidInput)
def set_too_many_tags(draw: Draw) -> SetExecutionTagsArgs:
    """More than an execution may have, with those that it has."""
    tagged = [one for one in draw.executions() if one.tags]
    execution = draw.one_of(tagged, SetExecutionTagArgs)
    return SetExecutionTagsArgs(
        execution_id=execution.execution_id, tags={f"many.n{number}": "" for number in range(TAGS_MAX)}
    )


@generator(SetExecutionTagArgs)
def set_execution_tag(draw: Draw) -> SetExecutionTagArgs:
    """One of three."""
    return SetExecutionTagArgs(
        execution_id=draw.execution().execution_id, key=draw.pick(TAG_KEYS), value=draw.new_id()
    )


@generator(GetExecutionTagArgs)
def get_execution_tag(draw: Draw) -> GetExecutionTagArgs:
    """Set or not."""
    return GetExecutionTagArgs(execution_id=draw.execution().execution_id, key=draw.pick(TAG_KEYS))

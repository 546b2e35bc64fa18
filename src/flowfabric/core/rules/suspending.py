"""Suspending an execution, resuming it, and everything that closes a suspension.

The rules this module keeps:

- Signals that came before the suspension count, through the same evaluator as those that come after.
- A suspension is closed exactly once, with its waitpoints, whatever ends it.
- A waitpoint outlives its suspension only where the resume policy says so; it is pending again then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric import errors
from flowfabric.contracts.conditions import ResumeCondition, Single, referenced_waitpoint_keys
from flowfabric.contracts.handles import Handle, HandleKind, HandlePayload, encode_handle
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.contracts.limits import SAFE_INTEGER_MAX, SUSPEND_DEDUP_MS_MAX, SUSPEND_DEDUP_SLACK_MS
from flowfabric.contracts.policy import TimeoutBehavior
from flowfabric.contracts.signals import SignalEffect
from flowfabric.contracts.states import BlockingReason, LifecyclePhase, WaitpointState
from flowfabric.contracts.suspensions import (
    AdditionalWaitpointBinding,
    ExecutionResumed,
    ExecutionSuspended,
    FreshWaitpoint,
    ResumeExecutionArgs,
    ResumeExecutionResult,
    ResumePolicy,
    SuspendAlreadySatisfied,
    SuspendExecutionArgs,
    SuspendExecutionResult,
    SuspendOutcomeDetails,
    SuspensionReasonCode,
    UsePendingWaitpoint,
    validate_suspend,
)
from flowfabric.core.conditions import Arrival, apply_signal, required_signal_names
from flowfabric.core.events import Family
from flowfabric.core.records import (
    KEYRING_ID,
    Attempt,
    BufferedSignal,
    Dedup,
    Execution,
    Key,
    Keyring,
    Lease,
    Suspension,
    Waitpoint,
    key_for,
)
from flowfabric.core.registry import rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.fencing import fenced, first_answer, remember_answer
from flowfabric.core.rules.journal import journal_wait
from flowfabric.core.rules.remembered import content_digest, recall, remember
from flowfabric.core.rules.transitions import (
    close_waitpoints,
    make_runnable,
    publish,
    suspend_attempt,
    time_blocker,
)
from flowfabric.core.rules.waitpoints import find_waitpoint, is_expired, keyring, open_waitpoint
from flowfabric.core.state import public_state
from flowfabric.core.tokens import find_key, sign_waitpoint, token_of, verifies

if TYPE_CHECKING:
    from flowfabric.core.work import Work

RESUMED: Final = "resumed"
"""Why a suspension is closed that signals or an operator have ended."""

BLOCKING_REASON_OF: Final = {
    SuspensionReasonCode.WAITING_FOR_SIGNAL: BlockingReason.WAITING_FOR_SIGNAL,
    SuspensionReasonCode.STEP_BOUNDARY: BlockingReason.WAITING_FOR_SIGNAL,
    SuspensionReasonCode.WAITING_FOR_APPROVAL: BlockingReason.WAITING_FOR_APPROVAL,
    SuspensionReasonCode.WAITING_FOR_CALLBACK: BlockingReason.WAITING_FOR_CALLBACK,
    SuspensionReasonCode.WAITING_FOR_TOOL_RESULT: BlockingReason.WAITING_FOR_TOOL_RESULT,
    SuspensionReasonCode.WAITING_FOR_OPERATOR_REVIEW: BlockingReason.PAUSED_BY_OPERATOR,
    SuspensionReasonCode.MANUAL_PAUSE: BlockingReason.PAUSED_BY_OPERATOR,
    SuspensionReasonCode.PAUSED_BY_POLICY: BlockingReason.PAUSED_BY_POLICY,
    SuspensionReasonCode.PAUSED_BY_BUDGET: BlockingReason.WAITING_FOR_BUDGET,
}

_encode = msgspec.msgpack.Encoder().encode
_outcome_decoder: msgspec.msgpack.Decoder[SuspendExecutionResult] = msgspec.msgpack.Decoder(
    SuspendExecutionResult
)
_condition_decoder: msgspec.msgpack.Decoder[ResumeCondition] = msgspec.msgpack.Decoder(ResumeCondition)
_policy_decoder = msgspec.msgpack.Decoder(ResumePolicy)


# Suspending


def _suspension_keys(args: SuspendExecutionArgs) -> tuple[Key, ...]:
    """What a suspension reads besides its execution, so that all of it is loaded together."""
    place = args.execution_id
    remembered = (args.idempotency_key,) if args.idempotency_key else ()
    return (
        key_for(Keyring, KEYRING_ID),
        key_for(Suspension, f"{place}/{args.suspension_id}"),
        *(key_for(Dedup, f"{_dedup_scope(args)}/{dedup_key}") for dedup_key in remembered),
        *(key_for(Waitpoint, f"{place}/{binding.waitpoint_id}") for binding in args.waitpoints),
    )


@rule(SuspendExecutionArgs, reads=_suspension_keys)
def suspend_execution(work: Work, args: SuspendExecutionArgs) -> SuspendExecutionResult:
    """Give the lease up and wait; or go on at once, if early signals meet the condition already.

    Repeating it with the same fence and suspension id, or with the same idempotency key, gives
    the first answer again and changes nothing.

    Raises:
        IdempotencyConflict: the key was used for another suspension.
        InvalidInput: the request breaks a rule of ``validate_suspend``, or its keys do not fit.
        AlreadySuspended: the execution waits already.
        FenceRequired, ExecutionNotActive, LeaseRevoked, LeaseExpired, StaleLease: see ``fenced``.
        InvalidLeaseForSuspend: the attempt index is not the current one.
        WaitpointNotFound, WaitpointNotPending, PendingWaitpointExpired, WaitpointNotTokenBound: a
        pending waitpoint cannot be used.
        WaitpointAlreadyExists, LimitExceeded, HmacSecretNotInitialized, InvalidSecret: a fresh
            one cannot be opened.
    """
    execution = work.execution(args.execution_id)
    answered = _earlier_answer(work, execution, args)
    if answered is not None:
        return answered
    validate_suspend(args, work.now)
    lease, attempt = _require_suspendable(work, execution, args)
    execution = work.edit(execution)
    suspension = _new_suspension(work, execution, args)
    bound = _bind_waitpoints(work, execution, args, suspension)
    _require_fitting_keys(args, [waitpoint for waitpoint, _ in bound])
    work.add(suspension)
    execution.suspension_id = args.suspension_id
    outcome = _wait_or_go_on(work, execution, suspension, bound)
    _remember_under_key(work, args, suspension, outcome)
    if isinstance(outcome, ExecutionSuspended):
        remember_answer(execution, lease, attempt, args, outcome)
    return outcome


def _earlier_answer(
    work: Work, execution: Execution, args: SuspendExecutionArgs
) -> SuspendExecutionResult | None:
    """What this request was answered before: told by its key, or by the fence it gave up."""
    if args.idempotency_key:
        value = recall(work, _dedup_scope(args), args.idempotency_key, _request_digest(args))
        if value is not None:
            return _outcome_decoder.decode(value)
    answer = first_answer(execution, args.fence, args)
    return answer if answer is not None and answer.details.suspension_id == args.suspension_id else None


def _remember_under_key(
    work: Work, args: SuspendExecutionArgs, suspension: Suspension, outcome: SuspendExecutionResult
) -> None:
    if not args.idempotency_key:
        return
    window_ms = dedup_window_ms(work.now, suspension.timeout_at)
    digest = _request_digest(args)
    remember(work, _dedup_scope(args), args.idempotency_key, _encode(outcome), window_ms, digest=digest)


def _dedup_scope(args: SuspendExecutionArgs) -> str:
    return f"{args.execution_id}/suspend"


def _request_digest(args: SuspendExecutionArgs) -> bytes:
    """Everything that was asked for; the caller's clock says nothing."""
    return content_digest(msgspec.structs.replace(args, now=None))


def dedup_window_ms(now: int, timeout_at: int | None) -> int:
    """How long the answer to a suspension is remembered."""
    if timeout_at is None:
        return SUSPEND_DEDUP_MS_MAX
    return min(max(timeout_at - now, 0) + SUSPEND_DEDUP_SLACK_MS, SUSPEND_DEDUP_MS_MAX)


def _require_suspendable(
    work: Work, execution: Execution, args: SuspendExecutionArgs
) -> tuple[Lease, Attempt]:
    """Refuse everyone but the holder of the attempt's lease, and a suspension that was there before."""
    if args.fence is not None and execution.phase is LifecyclePhase.SUSPENDED:
        raise errors.AlreadySuspended(execution_id=args.execution_id)
    lease, attempt = fenced(work, execution, args.fence)
    if attempt.attempt_index != args.attempt_index:
        raise errors.InvalidLeaseForSuspend(attempt_index=args.attempt_index)
    if work.read(Suspension, f"{args.execution_id}/{args.suspension_id}") is not None:
        raise errors.InvalidInput(field="suspension_id", value=args.suspension_id, rule="used before")
    return lease, attempt


def _new_suspension(work: Work, execution: Execution, args: SuspendExecutionArgs) -> Suspension:
    timeout_at, behavior = _deadline(work, execution, args)
    return Suspension(
        execution_id=args.execution_id,
        suspension_id=args.suspension_id,
        namespace=execution.namespace,
        lane_id=execution.lane_id,
        attempt_index=args.attempt_index,
        waitpoint_ids=tuple(binding.waitpoint_id for binding in args.waitpoints),
        waitpoint_keys=(),
        reason_code=args.reason_code,
        requested_by=args.requested_by,
        condition=_encode(args.resume_condition),
        policy=_encode(args.resume_policy),
        created_at=work.now,
        timeout_at=timeout_at,
        timeout_behavior=behavior,
        continuation_metadata_pointer=args.continuation_metadata_pointer,
    )


def _deadline(
    work: Work, execution: Execution, args: SuspendExecutionArgs
) -> tuple[int | None, TimeoutBehavior]:
    """The suspension's own deadline; the execution's policy has one for those without."""
    policy = None if execution.policy is None else execution.policy.suspension_policy
    if args.timeout_at is not None or policy is None or policy.default_timeout_ms is None:
        return args.timeout_at, args.timeout_behavior
    return min(work.now + policy.default_timeout_ms, SAFE_INTEGER_MAX), policy.timeout_behavior


# Binding waitpoints


Bound = tuple[Waitpoint, WaitpointToken]


def _bind_waitpoints(
    work: Work, execution: Execution, args: SuspendExecutionArgs, suspension: Suspension
) -> list[Bound]:
    """Open the fresh waitpoints and activate the pending ones, in the order of their bindings."""
    bound: list[Bound] = []
    for binding in args.waitpoints:
        if isinstance(binding, UsePendingWaitpoint):
            waitpoint, token = _use_pending(work, execution, binding)
        else:
            waitpoint, token = _open_fresh(work, execution, binding)
        waitpoint.state = WaitpointState.ACTIVE
        waitpoint.suspension_id = suspension.suspension_id
        waitpoint.activated_at = work.now
        waitpoint.expires_at = suspension.timeout_at
        waitpoint.required_signal_names = required_signal_names(
            args.resume_condition, waitpoint.waitpoint_key
        )
        bound.append((waitpoint, token))
    suspension.waitpoint_keys = tuple(waitpoint.waitpoint_key for waitpoint, _ in bound)
    return bound


def _open_fresh(work: Work, execution: Execution, binding: FreshWaitpoint) -> Bound:
    assert execution.attempt is not None
    waitpoint = Waitpoint(
        execution_id=execution.execution_id,
        waitpoint_id=binding.waitpoint_id,
        waitpoint_key=binding.waitpoint_key,
        attempt_index=execution.attempt.attempt_index,
        state=WaitpointState.ACTIVE,
        token_kid="",
        token_digest="",
        created_at=work.now,
    )
    return waitpoint, open_waitpoint(work, execution, waitpoint)


def _use_pending(work: Work, execution: Execution, binding: UsePendingWaitpoint) -> Bound:
    waitpoint = find_waitpoint(work, execution.execution_id, binding.waitpoint_id)
    if waitpoint is None:
        raise errors.WaitpointNotFound(waitpoint_id=binding.waitpoint_id)
    if waitpoint.state != WaitpointState.PENDING:
        raise errors.WaitpointNotPending(waitpoint_id=binding.waitpoint_id, state=waitpoint.state)
    if is_expired(waitpoint, work.now):
        raise errors.PendingWaitpointExpired(
            waitpoint_id=binding.waitpoint_id, expired_at=waitpoint.expires_at
        )
    if not waitpoint.token_digest:
        raise errors.WaitpointNotTokenBound(waitpoint_id=binding.waitpoint_id)
    waitpoint = work.edit(waitpoint)
    return waitpoint, _valid_token(work, execution, waitpoint)


def _valid_token(work: Work, execution: Execution, waitpoint: Waitpoint) -> WaitpointToken:
    """The waitpoint's token; a new one if the key of the old one verifies nothing any more."""
    ring = keyring(work)
    key = find_key(ring, waitpoint.token_kid)
    if key is None or not verifies(key, work.now):
        return sign_waitpoint(ring, execution.namespace, waitpoint)
    return token_of(ring, execution.namespace, waitpoint, work.now)


def _require_fitting_keys(args: SuspendExecutionArgs, waitpoints: list[Waitpoint]) -> None:
    """Refuse waitpoints that the condition cannot tell apart, and keys that nothing stands for.

    The contract's own check cannot see the key of a pending waitpoint, which only its record has.
    """
    keys = [waitpoint.waitpoint_key for waitpoint in waitpoints]
    if len(set(keys)) < len(keys):
        raise errors.AdditionalWaitpointBindingMalformed(field="waitpoints", rule="waitpoint_key_repeated")
    referenced = referenced_waitpoint_keys(args.resume_condition)
    if isinstance(args.resume_condition, Single) and referenced[0] != keys[0]:
        raise errors.InvalidInput(field="resume_condition", rule="waitpoint_key_mismatch")
    for key in referenced:
        if key not in keys:
            rule_broken = f"referenced_waitpoint_key_missing_binding: {key}"
            raise errors.InvalidInput(field="waitpoints", rule=rule_broken)


# Going to wait, or not


def _wait_or_go_on(
    work: Work, execution: Execution, suspension: Suspension, bound: list[Bound]
) -> SuspendExecutionResult:
    """Evaluate what came early, then suspend unless that was enough.

    With a resume delay the lease is given up even then: to wait is what the caller asked for.
    """
    details = _details(suspension, bound)
    handle = _suspended_handle(work, execution)
    delay_ms = resume_policy(suspension).resume_delay_ms or 0
    closer = _apply_early_signals(work, suspension, [waitpoint for waitpoint, _ in bound])
    if closer is not None and delay_ms == 0:
        end_suspension(work, execution, RESUMED, closer_signal_id=closer)
        journal_wait(work, execution, suspension)
        execution.last_mutation_at = work.now
        return SuspendAlreadySatisfied(details=details)
    reason = BLOCKING_REASON_OF[SuspensionReasonCode(suspension.reason_code)]
    suspend_attempt(work, execution, suspension.suspension_id, suspension.waitpoint_ids[0], reason)
    publish(
        work, execution, Family.EXECUTION, "suspended", suspension_id=suspension.suspension_id, reason=reason
    )
    if closer is not None:
        resume(work, execution, RESUMED, cause="signal", delay_ms=delay_ms, closer_signal_id=closer)
    return ExecutionSuspended(details=details, handle=handle)


def _details(suspension: Suspension, bound: list[Bound]) -> SuspendOutcomeDetails:
    (primary, token), *others = bound
    return SuspendOutcomeDetails(
        suspension_id=suspension.suspension_id,
        waitpoint_id=primary.waitpoint_id,
        waitpoint_key=primary.waitpoint_key,
        waitpoint_token=token,
        additional_waitpoints=tuple(
            AdditionalWaitpointBinding(
                waitpoint_id=waitpoint.waitpoint_id,
                waitpoint_key=waitpoint.waitpoint_key,
                waitpoint_token=other_token,
            )
            for waitpoint, other_token in others
        ),
    )


def _suspended_handle(work: Work, execution: Execution) -> Handle:
    """What the worker will hold instead of its lease; it names the attempt and fences nothing."""
    lease, attempt = execution.lease, execution.attempt
    assert lease is not None
    assert attempt is not None
    payload = HandlePayload(
        execution_id=execution.execution_id,
        attempt_index=attempt.attempt_index,
        attempt_id=attempt.attempt_id,
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
        lease_ttl_ms=lease.ttl_ms,
        lane_id=execution.lane_id,
        worker_instance_id=lease.worker_instance_id,
    )
    return encode_handle(work.envelope.backend, HandleKind.SUSPENDED, payload)


# Signals and conditions


def _apply_early_signals(work: Work, suspension: Suspension, waitpoints: list[Waitpoint]) -> str | None:
    """Evaluate what came early, in its order. Returns the id of the signal that met the condition."""
    condition = resume_condition(suspension)
    early = [(signal, waitpoint) for waitpoint in waitpoints for signal in waitpoint.buffered]
    early.sort(key=lambda pair: pair[0].sequence)
    if not keeps_signals(suspension):
        for waitpoint in waitpoints:
            waitpoint.buffered = ()
    for signal, waitpoint in early:
        effect = apply_to_suspension(work, suspension, waitpoint, signal, condition)
        if effect is SignalEffect.RESUME_CONDITION_SATISFIED:
            return signal.signal_id
    return None


def apply_to_suspension(
    work: Work,
    suspension: Suspension,
    waitpoint: Waitpoint,
    signal: BufferedSignal,
    condition: ResumeCondition,
) -> SignalEffect:
    """Evaluate one signal against a suspension. Both records must be copies that may be changed."""
    arrival = Arrival(
        signal_id=signal.signal_id,
        signal_name=signal.signal_name,
        source_type=signal.source_type,
        source_identity=signal.source_identity,
        waitpoint_id=waitpoint.waitpoint_id,
        waitpoint_key=waitpoint.waitpoint_key,
    )
    applied = apply_signal(condition, suspension.satisfiers, arrival)
    suspension.satisfiers = applied.satisfiers
    suspension.last_signal_at = work.now
    if applied.contributed:
        suspension.satisfier_signals = (*suspension.satisfier_signals, signal.sequence)
        waitpoint.matched_signal_count += 1
    return applied.effect


def resume_condition(suspension: Suspension) -> ResumeCondition:
    """What the suspension waits for."""
    return _condition_decoder.decode(suspension.condition)


def resume_policy(suspension: Suspension) -> ResumePolicy:
    """What happens when the suspension ends."""
    return _policy_decoder.decode(suspension.policy)


def keeps_signals(suspension: Suspension) -> bool:
    """True if signals of this suspension may count again, for a later one on the same waitpoint."""
    policy = resume_policy(suspension)
    kept = not policy.consume_matched_signals or policy.retain_signal_buffer_until_closed
    return kept and not policy.close_waitpoint_on_resume


# Ending a suspension


@rule(ResumeExecutionArgs, acts_anew=True)
def resume_execution(work: Work, args: ResumeExecutionArgs) -> ResumeExecutionResult:
    """End a suspension without a signal: at an operator's word, or the system's.

    Raises:
        ExecutionNotSuspended: there is nothing to end.
    """
    execution = work.execution(args.execution_id)
    if execution.phase is not LifecyclePhase.SUSPENDED or execution.suspension_id is None:
        raise errors.ExecutionNotSuspended(execution_id=args.execution_id)
    execution, before = work.edit(execution), public_state(execution)
    resume(work, execution, RESUMED, cause=args.trigger_type, delay_ms=args.resume_delay_ms)
    after = public_state(execution)
    log_act(work, "resumed", execution=execution, old=before, new=after, trigger_type=args.trigger_type)
    return ExecutionResumed(public_state=public_state(execution))


def resume(
    work: Work,
    execution: Execution,
    reason: str,
    *,
    cause: str,
    delay_ms: int = 0,
    closer_signal_id: str | None = None,
) -> None:
    """End the suspension and let the execution wait for a worker, who continues its attempt."""
    suspension_id = execution.suspension_id
    end_suspension(work, execution, reason, closer_signal_id=closer_signal_id)
    blocker = None
    if delay_ms > 0:
        until_ms = min(work.now + delay_ms, SAFE_INTEGER_MAX)
        blocker = time_blocker(until_ms, BlockingReason.WAITING_FOR_RESUME_DELAY)
    make_runnable(work, execution, blocker)
    publish(
        work, execution, Family.EXECUTION, "resumed", suspension_id=suspension_id, reason=reason, cause=cause
    )


def end_suspension(
    work: Work, execution: Execution, reason: str, *, closer_signal_id: str | None = None
) -> None:
    """Close the current suspension because its attempt goes on. Its resume policy is followed."""
    suspension = current_suspension(work, execution)
    assert suspension is not None
    suspension = work.edit(suspension)
    policy = resume_policy(suspension)
    if reason == RESUMED:
        suspension.satisfied_at = work.now
    kept = set()
    for waitpoint in _active_waitpoints(work, suspension):
        waitpoint.satisfied_at = suspension.satisfied_at
        if not policy.close_waitpoint_on_resume:
            _return_to_pending(waitpoint, suspension, policy)
            kept.add(waitpoint.waitpoint_id)
    close_suspension(work, execution, reason, closer_signal_id=closer_signal_id, keep=frozenset(kept))
    execution.resumed_suspension_id = suspension.suspension_id


def _active_waitpoints(work: Work, suspension: Suspension) -> list[Waitpoint]:
    identities = [f"{suspension.execution_id}/{waitpoint_id}" for waitpoint_id in suspension.waitpoint_ids]
    return [
        work.edit(waitpoint)
        for waitpoint in work.read_all(Waitpoint, identities)
        if waitpoint is not None and waitpoint.state == WaitpointState.ACTIVE
    ]


def _return_to_pending(waitpoint: Waitpoint, suspension: Suspension, policy: ResumePolicy) -> None:
    """Let a waitpoint wait for the next suspension, with those signals that may count again."""
    matched = set(suspension.satisfier_signals)
    waitpoint.state = WaitpointState.PENDING
    waitpoint.suspension_id = None
    waitpoint.activated_at = None
    waitpoint.expires_at = None
    waitpoint.required_signal_names = ()
    waitpoint.buffered = tuple(
        signal
        for signal in waitpoint.buffered
        if (
            not policy.consume_matched_signals
            if signal.sequence in matched
            else policy.retain_signal_buffer_until_closed
        )
    )


def close_suspension(
    work: Work,
    execution: Execution,
    reason: str,
    *,
    closer_signal_id: str | None = None,
    keep: frozenset[str] = frozenset(),
) -> None:
    """Close the current suspension and its waitpoints; nothing happens when there is none.

    Args:
        work: the working set.
        execution: a copy that may be changed.
        reason: why, for the records.
        closer_signal_id: the signal that met the condition.
        keep: waitpoints that outlive the suspension.
    """
    suspension = current_suspension(work, execution)
    if suspension is None:
        return
    suspension = work.edit(suspension)
    suspension.closed_at = work.now
    suspension.close_reason = reason
    suspension.closer_signal_id = closer_signal_id
    closing = tuple(found for found in suspension.waitpoint_ids if found not in keep)
    close_waitpoints(work, execution, closing, reason)
    execution.suspension_id = None
    execution.waitpoint_id = None


def current_suspension(work: Work, execution: Execution) -> Suspension | None:
    """The suspension that is open, if there is one."""
    if execution.suspension_id is None:
        return None
    suspension = work.read(Suspension, f"{execution.execution_id}/{execution.suspension_id}")
    assert suspension is not None
    return suspension

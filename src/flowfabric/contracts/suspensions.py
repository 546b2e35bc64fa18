"""Suspending and resuming executions, and the waitpoints they wait on."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.conditions import (
    ResumeCondition,
    Single,
    TimeoutOnly,
    check_matchers,
    referenced_waitpoint_keys,
    validate_composite,
)
from flowfabric.contracts.handles import Handle
from flowfabric.contracts.ids import (
    AttemptId,
    AttemptIndex,
    DurationMs,
    ExecutionId,
    IdempotencyKey,
    LeaseEpoch,
    LeaseFence,
    LeaseId,
    Name,
    OptionalName,
    PositiveMs,
    SuspensionId,
    Text,
    TimestampMs,
    WaitpointId,
)
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.contracts.limits import (
    PAGE_ROWS_MAX,
    PENDING_WAITPOINTS_PAGE,
    SUSPEND_PAST_TOLERANCE_MS,
    WAITPOINTS_PER_SUSPENSION_MAX,
)
from flowfabric.contracts.policy import TimeoutBehavior
from flowfabric.contracts.states import PublicState, WaitpointState
from flowfabric.errors import InvalidInput


class SuspensionReasonCode(StrEnum):
    """Why the execution waits."""

    WAITING_FOR_SIGNAL = "waiting_for_signal"
    WAITING_FOR_APPROVAL = "waiting_for_approval"
    WAITING_FOR_CALLBACK = "waiting_for_callback"
    WAITING_FOR_TOOL_RESULT = "waiting_for_tool_result"
    WAITING_FOR_OPERATOR_REVIEW = "waiting_for_operator_review"
    PAUSED_BY_POLICY = "paused_by_policy"
    PAUSED_BY_BUDGET = "paused_by_budget"
    STEP_BOUNDARY = "step_boundary"
    MANUAL_PAUSE = "manual_pause"


class SuspensionRequester(StrEnum):
    """Who asked for the suspension."""

    WORKER = "worker"
    OPERATOR = "operator"
    POLICY = "policy"
    SYSTEM_TIMEOUT_POLICY = "system_timeout_policy"


class ResumeTarget(StrEnum):
    """Where a resumed execution goes."""

    RUNNABLE = "Runnable"


class ResumePolicy(Value):
    """What happens when the condition is met."""

    resume_target: ResumeTarget = ResumeTarget.RUNNABLE
    consume_matched_signals: bool = True
    retain_signal_buffer_until_closed: bool = False
    resume_delay_ms: DurationMs | None = None
    close_waitpoint_on_resume: bool = True


class FreshWaitpoint(Value, tag="Fresh"):
    """A waitpoint that the suspension creates."""

    waitpoint_id: WaitpointId
    waitpoint_key: OptionalName


class UsePendingWaitpoint(Value, tag="UsePending"):
    """A waitpoint that was created before; the suspension activates it."""

    waitpoint_id: WaitpointId


WaitpointBinding: TypeAlias = FreshWaitpoint | UsePendingWaitpoint


class AdditionalWaitpointBinding(Value):
    """A waitpoint beyond the first one, with its token."""

    waitpoint_id: WaitpointId
    waitpoint_key: str
    waitpoint_token: WaitpointToken


class SuspendOutcomeDetails(Value):
    """The waitpoints of a suspension, with the tokens to signal them."""

    suspension_id: SuspensionId
    waitpoint_id: WaitpointId
    waitpoint_key: str
    waitpoint_token: WaitpointToken
    additional_waitpoints: tuple[AdditionalWaitpointBinding, ...] = ()


class ExecutionSuspended(Outcome, tag="Suspended"):
    """The execution waits and its lease is released."""

    details: SuspendOutcomeDetails
    handle: Handle


class SuspendAlreadySatisfied(Outcome, tag="AlreadySatisfied"):
    """Early signals met the condition: nothing changed and the lease still holds."""

    details: SuspendOutcomeDetails


SuspendOutcome: TypeAlias = ExecutionSuspended | SuspendAlreadySatisfied
SuspendExecutionResult: TypeAlias = SuspendOutcome


class SuspendExecutionArgs(Command[SuspendOutcome]):
    """Release the lease and wait for signals, an operator or a time.

    The first waitpoint is the primary one. This one command serves both contracts that suspend,
    the one with a fence and the one with a handle, whose name is ``SuspendArgs``.
    """

    execution_id: ExecutionId
    fence: LeaseFence | None = None
    attempt_index: AttemptIndex
    suspension_id: SuspensionId
    waitpoints: Annotated[tuple[WaitpointBinding, ...], Meta(max_length=WAITPOINTS_PER_SUSPENSION_MAX)]
    resume_condition: ResumeCondition
    resume_policy: ResumePolicy = ResumePolicy()
    reason_code: SuspensionReasonCode = SuspensionReasonCode.WAITING_FOR_SIGNAL
    requested_by: SuspensionRequester = SuspensionRequester.WORKER
    timeout_at: TimestampMs | None = None
    timeout_behavior: TimeoutBehavior = TimeoutBehavior.FAIL
    continuation_metadata_pointer: Text | None = None
    idempotency_key: IdempotencyKey | None = None
    now: TimestampMs | None = None

    @property
    def primary(self) -> WaitpointBinding:
        """The first waitpoint."""
        return self.waitpoints[0]

    def validate(self) -> None:
        """Check everything that needs no clock."""
        validate_suspend(self)


SuspendArgs: TypeAlias = SuspendExecutionArgs


def validate_suspend(args: SuspendExecutionArgs, now_ms: int | None = None) -> None:
    """Check a suspension in the contract's order; the time only when ``now_ms`` is given.

    Raises:
        InvalidInput: the rule names what is wrong, such as ``waitpoint_key_mismatch``.
    """
    _check_bindings(args)
    if isinstance(args.resume_condition, TimeoutOnly) and args.timeout_at is None:
        raise _refused("timeout_at", "timeout_only_without_deadline")
    check_matchers(args.resume_condition)
    _check_deadline(args.timeout_at, now_ms)
    validate_composite(args.resume_condition)


def _check_bindings(args: SuspendExecutionArgs) -> None:
    if not args.waitpoints:
        raise _refused("waitpoints", "waitpoints_empty")
    primary, condition = args.primary, args.resume_condition
    if isinstance(primary, FreshWaitpoint):
        if isinstance(condition, Single) and condition.waitpoint_key != primary.waitpoint_key:
            raise _refused("resume_condition", "waitpoint_key_mismatch")
        if not primary.waitpoint_key:
            raise _refused("waitpoints", "waitpoint_binding_empty_key at waitpoints[0]")
    if len(args.waitpoints) > 1:
        _check_additional(args.waitpoints)
        _cross_check(args)


def _check_additional(waitpoints: tuple[WaitpointBinding, ...]) -> None:
    for index, binding in enumerate(waitpoints[1:], 1):
        place = f"at waitpoints[{index}]"
        if not isinstance(binding, FreshWaitpoint):
            raise _refused("waitpoints", f"additional_waitpoint_binding_must_be_fresh {place}")
        if not binding.waitpoint_key:
            raise _refused("waitpoints", f"additional_waitpoint_binding_empty_key {place}")


def _cross_check(args: SuspendExecutionArgs) -> None:
    bound = [b.waitpoint_key for b in args.waitpoints if isinstance(b, FreshWaitpoint)]
    referenced = referenced_waitpoint_keys(args.resume_condition)
    for key in referenced:
        # A pending primary keeps its key in the store, so a missing key may be its own.
        if key not in bound and len(bound) == len(args.waitpoints):
            raise _refused("waitpoints", f"referenced_waitpoint_key_missing_binding: {key}")
    for key in bound:
        if key not in referenced:
            raise _refused("waitpoints", f"extra_binding_not_referenced_by_condition: {key}")


def _check_deadline(timeout_at: int | None, now_ms: int | None) -> None:
    if timeout_at is None or now_ms is None:
        return
    if timeout_at < now_ms - SUSPEND_PAST_TOLERANCE_MS:
        raise InvalidInput(field="timeout_at", value=timeout_at, rule="timeout_at_in_past")


def _refused(field: str, rule: str) -> InvalidInput:
    return InvalidInput(field=field, rule=rule)


class ResumeTrigger(StrEnum):
    """Who resumes."""

    SIGNAL = "signal"
    OPERATOR = "operator"
    AUTO_RESUME = "auto_resume"


class ExecutionResumed(Outcome, tag="Resumed"):
    """The execution waits for a worker, who continues the same attempt."""

    public_state: PublicState


ResumeExecutionResult: TypeAlias = ExecutionResumed


class ResumeExecutionArgs(Command[ResumeExecutionResult]):
    """End a suspension without a signal."""

    execution_id: ExecutionId
    trigger_type: ResumeTrigger = ResumeTrigger.SIGNAL
    resume_delay_ms: DurationMs = 0


class PendingWaitpointCreated(Outcome, tag="Created"):
    """The waitpoint takes signals, which are kept until a suspension activates it."""

    waitpoint_id: WaitpointId
    waitpoint_key: str
    waitpoint_token: WaitpointToken


CreatePendingWaitpointResult: TypeAlias = PendingWaitpointCreated


class CreatePendingWaitpointArgs(Command[CreatePendingWaitpointResult]):
    """Publish a waitpoint before suspending, so that no early signal is lost."""

    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_index: AttemptIndex
    attempt_id: AttemptId
    waitpoint_id: WaitpointId
    waitpoint_key: Name
    expires_in_ms: PositiveMs


class WaitpointWasClosed(Outcome, tag="Closed"):
    """The waitpoint takes no more signals."""


CloseWaitpointResult: TypeAlias = WaitpointWasClosed


class CloseWaitpointArgs(Command[CloseWaitpointResult]):
    """Close a waitpoint. The execution id says where it is kept."""

    execution_id: ExecutionId
    waitpoint_id: WaitpointId
    reason: Text = "proactive_close"


class SuspensionExpired(Outcome, tag="Expired"):
    """The deadline has struck and the behaviour was applied."""

    behavior_applied: str


class SuspensionNotExpired(Outcome, tag="AlreadySatisfied"):
    """Nothing was due; the reason says why."""

    reason: str


ExpireSuspensionResult: TypeAlias = SuspensionExpired | SuspensionNotExpired


class ExpireSuspensionArgs(Command[ExpireSuspensionResult]):
    """Act on a suspension's deadline, which is checked again first."""

    execution_id: ExecutionId


class PendingWaitpointInfo(Value):
    """One open waitpoint. No required names means that every signal counts."""

    waitpoint_id: WaitpointId
    waitpoint_key: str
    state: WaitpointState
    required_signal_names: tuple[str, ...] = ()
    created_at: TimestampMs
    activated_at: TimestampMs | None = None
    expires_at: TimestampMs | None = None
    execution_id: ExecutionId
    token_kid: str
    token_fingerprint: str


class ListPendingWaitpointsResult(Value):
    """A page of open waitpoints in the order of their ids."""

    entries: tuple[PendingWaitpointInfo, ...]
    next_cursor: WaitpointId | None = None


class ListPendingWaitpointsArgs(Command[ListPendingWaitpointsResult]):
    """List the pending and the active waitpoints of an execution."""

    execution_id: ExecutionId
    after: WaitpointId | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ROWS_MAX)] = PENDING_WAITPOINTS_PAGE


class ReadWaitpointTokenArgs(Command[WaitpointToken | None]):
    """Read an open waitpoint's token; ``None`` when it is closed or unknown."""

    execution_id: ExecutionId
    waitpoint_id: WaitpointId

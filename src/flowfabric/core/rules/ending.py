"""Ending an execution from outside its handler: cancellation, deadlines, attempt timeouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    CancelExecutionResult,
    ExecutionAlreadyTerminal,
    ExecutionCancelled,
    ExecutionExpired,
    ExpireExecutionArgs,
    ExpireExecutionResult,
    ExpireReason,
)
from flowfabric.contracts.ids import OPERATOR_OVERRIDE, LeaseFence
from flowfabric.contracts.states import AttemptLifecycle, LifecyclePhase, PublicState, TerminalOutcome
from flowfabric.core.policies import may_retry
from flowfabric.core.records import Execution
from flowfabric.core.registry import rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.fencing import check_lease, fence_from_parts, not_active
from flowfabric.core.rules.finishing import retry_policy_of, schedule_retry
from flowfabric.core.rules.reading import find
from flowfabric.core.rules.suspending import close_suspension
from flowfabric.core.rules.transitions import end_attempt, end_execution
from flowfabric.core.state import is_terminal

if TYPE_CHECKING:
    from flowfabric.core.work import Work

FLOW_CASCADE: Final = "flow_cascade"
SYSTEM_TIMEOUT: Final = "system_timeout"
UNFENCED: Final = frozenset({OPERATOR_OVERRIDE, FLOW_CASCADE, SYSTEM_TIMEOUT})
"""Sources that may cancel running work without holding its lease."""

TIMEOUT: Final = "timeout"
"""The failure category of an attempt that took too long."""


@rule(CancelExecutionArgs, acts_anew=True)
def cancel_execution(work: Work, args: CancelExecutionArgs) -> CancelExecutionResult:
    """Cancel an execution that has not ended. Repeating it gives the first answer.

    Raises:
        ExecutionNotFound, PartialFenceTriple, ExecutionNotActive (it ended otherwise),
        FenceRequired, ExecutionNotActive, LeaseRevoked, LeaseExpired, StaleLease: in this order.
    """
    execution = work.execution(args.execution_id)
    fence = fence_from_parts(args.lease_id, args.lease_epoch, args.attempt_id)
    if execution.outcome is TerminalOutcome.CANCELLED:
        return _cancelled(execution)
    if is_terminal(execution):
        raise not_active(execution)
    _require_right(work, execution, fence, args.source)
    execution = work.edit(execution)
    cancel(work, execution, args.reason, args.source)
    if fence is None and args.source not in (FLOW_CASCADE, SYSTEM_TIMEOUT):
        log_act(
            work,
            "cancelled",
            execution=execution,
            old=execution.cancelled_from,
            source=args.source,
            reason=args.reason,
        )
    return _cancelled(execution)


def _require_right(work: Work, execution: Execution, fence: LeaseFence | None, source: str) -> None:
    """A fence that is given has to be current; running work needs one, except from above."""
    if fence is not None:
        check_lease(work, execution, fence)
    elif execution.phase is LifecyclePhase.ACTIVE and source not in UNFENCED:
        raise errors.FenceRequired(execution_id=execution.execution_id, source=source)


def cancel(work: Work, execution: Execution, reason: str, source: str) -> None:
    """Cancel an execution that has not ended, with its suspension, attempt and lease."""
    if execution.phase is LifecyclePhase.SUSPENDED:
        close_suspension(work, execution, "cancelled")
    execution.cancellation_reason = reason
    execution.cancelled_by = source
    end_attempt(
        work,
        execution,
        AttemptLifecycle.ENDED_CANCELLED,
        "attempt_cancelled",
        failure_reason=f"cancelled: {reason}",
        failure_category="cancelled",
    )
    end_execution(work, execution, TerminalOutcome.CANCELLED, release_reason="cancelled")


def _cancelled(execution: Execution) -> ExecutionCancelled:
    return ExecutionCancelled(
        execution_id=execution.execution_id,
        public_state=PublicState.CANCELLED,
        cancelled_from=execution.cancelled_from,
    )


@rule(ExpireExecutionArgs)
def expire_execution(work: Work, args: ExpireExecutionArgs) -> ExpireExecutionResult:
    """Act on a deadline or an attempt timeout that is due; anything else changes nothing.

    An attempt that takes too long uses a retry while the policy has one left. The deadline of the
    execution ends it whatever it is doing.
    """
    execution = find(work, args)
    if execution is None or not _is_due(work, execution, args.expire_reason):
        return ExecutionAlreadyTerminal()
    execution = work.edit(execution)
    reason, release_reason = str(args.expire_reason), f"expired:{args.expire_reason}"
    policy = retry_policy_of(execution)
    timed_out = args.expire_reason is ExpireReason.ATTEMPT_TIMEOUT
    if timed_out and policy is not None and may_retry(policy, TIMEOUT, execution.retry_count):
        schedule_retry(
            work, execution, policy, reason, TIMEOUT, release_reason=release_reason, stream_reason="expired"
        )
        return ExecutionExpired(execution_id=args.execution_id)
    if execution.phase is LifecyclePhase.SUSPENDED:
        close_suspension(work, execution, release_reason)
    end_execution(
        work,
        execution,
        TerminalOutcome.EXPIRED,
        release_reason=release_reason,
        failure_reason=reason,
        failure_category=TIMEOUT,
    )
    return ExecutionExpired(execution_id=args.execution_id)


def _is_due(work: Work, execution: Execution, reason: ExpireReason) -> bool:
    """Whether the deadline that a scanner found is still set and has struck."""
    if is_terminal(execution):
        return False
    due_at = execution.deadline_at if reason is ExpireReason.EXECUTION_DEADLINE else _timeout_of(execution)
    return due_at is not None and due_at <= work.now


def _timeout_of(execution: Execution) -> int | None:
    """When the attempt times out. Only leased time counts, so a lease that ends earlier prevents it.

    After an outage both instants have passed, and nobody may have marked the lease as lapsed yet.
    """
    attempt, lease = execution.attempt, execution.lease
    if attempt is None or lease is None or attempt.timeout_at is None:
        return None
    return attempt.timeout_at if attempt.timeout_at <= lease.expires_at else None

"""What happens when a suspension's deadline strikes: one of five behaviours, chosen beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric.contracts.policy import TimeoutBehavior
from flowfabric.contracts.signals import SignalEffect
from flowfabric.contracts.states import BlockingReason, LifecyclePhase, TerminalOutcome
from flowfabric.contracts.suspensions import (
    ExpireSuspensionArgs,
    ExpireSuspensionResult,
    SuspensionExpired,
    SuspensionNotExpired,
    SuspensionReasonCode,
)
from flowfabric.core.events import Family
from flowfabric.core.records import Execution, Suspension, Waitpoint
from flowfabric.core.registry import rule
from flowfabric.core.rules.signalling import Incoming, minted_signal_id, next_sequence, record_signal
from flowfabric.core.rules.suspending import close_suspension, current_suspension, resume
from flowfabric.core.rules.transitions import end_execution, mark_transition, publish
from flowfabric.core.rules.waitpoints import find_waitpoint

if TYPE_CHECKING:
    from flowfabric.core.work import Work

TIMEOUT_SIGNAL: Final = "timeout"
TIMEOUT_SOURCE: Final = "system_timeout"

OUTCOME_OF: Final = {
    TimeoutBehavior.FAIL: TerminalOutcome.FAILED,
    TimeoutBehavior.CANCEL: TerminalOutcome.CANCELLED,
    TimeoutBehavior.EXPIRE: TerminalOutcome.EXPIRED,
}


@rule(ExpireSuspensionArgs)
def expire_suspension(work: Work, args: ExpireSuspensionArgs) -> ExpireSuspensionResult:
    """Act on a suspension's deadline, if it has really struck."""
    execution = work.read(Execution, args.execution_id)
    namespace = work.envelope.namespace
    if execution is None or (namespace is not None and execution.namespace != namespace):
        return SuspensionNotExpired(reason="not_found_cleaned")
    if execution.phase is not LifecyclePhase.SUSPENDED:
        return SuspensionNotExpired(reason="not_suspended_cleaned")
    suspension = current_suspension(work, execution)
    if suspension is None:
        return SuspensionNotExpired(reason="no_active_suspension_cleaned")
    if suspension.timeout_at is None or suspension.timeout_at > work.now:
        return SuspensionNotExpired(reason="not_yet_due")
    behavior = TimeoutBehavior(suspension.timeout_behavior)
    _apply_behavior(work, work.edit(execution), work.edit(suspension), behavior)
    return SuspensionExpired(behavior_applied=behavior)


def _apply_behavior(
    work: Work, execution: Execution, suspension: Suspension, behavior: TimeoutBehavior
) -> None:
    if behavior is TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL:
        signal_id = _inject_timeout_signal(work, execution, suspension)
        resume(work, execution, "timed_out_auto_resume", cause="timeout", closer_signal_id=signal_id)
    elif behavior is TimeoutBehavior.ESCALATE:
        _escalate(work, execution, suspension)
    else:
        close_suspension(work, execution, f"timed_out_{behavior}")
        end_execution(
            work,
            execution,
            OUTCOME_OF[behavior],
            release_reason="suspension_timeout",
            stream_reason="suspension_timeout",
            failure_reason=f"suspension_timeout:{behavior}",
            failure_category="timeout",
        )


def _inject_timeout_signal(work: Work, execution: Execution, suspension: Suspension) -> str:
    """Record the signal from which the resumed worker learns that nobody answered."""
    waitpoint = find_waitpoint(work, execution.execution_id, suspension.waitpoint_ids[0])
    assert waitpoint is not None
    incoming = Incoming(
        signal_id=minted_signal_id(execution.execution_id, f"{suspension.suspension_id}/timeout"),
        signal_name=TIMEOUT_SIGNAL,
        signal_category=TIMEOUT_SIGNAL,
        source_type=TIMEOUT_SOURCE,
        target_scope="execution",
    )
    sequence = next_sequence(execution)
    effect = SignalEffect.RESUME_CONDITION_SATISFIED
    record_signal(work, execution, waitpoint, incoming, sequence=sequence, effect=effect)
    suspension.satisfier_signals = (*suspension.satisfier_signals, sequence)
    return incoming.signal_id


def _escalate(work: Work, execution: Execution, suspension: Suspension) -> None:
    """Hand the wait over to people: it has no deadline any more, and still takes signals."""
    suspension.reason_code = SuspensionReasonCode.WAITING_FOR_OPERATOR_REVIEW
    suspension.timeout_at = None
    suspension.timeout_behavior = ""
    execution.suspended_reason = BlockingReason.PAUSED_BY_OPERATOR
    identities = [f"{suspension.execution_id}/{waitpoint_id}" for waitpoint_id in suspension.waitpoint_ids]
    for waitpoint in work.read_all(Waitpoint, identities):
        if waitpoint is not None:
            work.edit(waitpoint).expires_at = None
    mark_transition(work, execution)
    publish(work, execution, Family.EXECUTION, "suspension_escalated", suspension_id=suspension.suspension_id)

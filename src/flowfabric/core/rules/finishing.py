"""How an attempt ends: complete and fail.

Repeating one of these with the same fence gives the first answer again and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric.contracts.executions import (
    CompleteExecutionArgs,
    CompleteExecutionResult,
    ExecutionCompleted,
    FailExecutionArgs,
    FailExecutionResult,
    RetryScheduled,
    TerminalFailed,
)
from flowfabric.contracts.limits import SAFE_INTEGER_MAX
from flowfabric.contracts.policy import RetryPolicy, parse_retry_policy
from flowfabric.contracts.states import AttemptLifecycle, BlockingReason, PublicState, TerminalOutcome
from flowfabric.core.policies import may_retry, retry_delay_ms
from flowfabric.core.records import Execution, ExecutionResult
from flowfabric.core.registry import rule
from flowfabric.core.rules.fencing import fenced, first_answer, remember_answer
from flowfabric.core.rules.transitions import (
    delay_blocker,
    end_attempt,
    end_execution,
    make_runnable,
    release_lease,
)
from flowfabric.core.vocabulary import Continuation

if TYPE_CHECKING:
    from flowfabric.core.work import Work

COMPLETED: Final = "completed"
"""Why the lease of completed work was given up."""
FAILED: Final = "failed_terminal"
"""Why the lease of work was given up that has failed and gets no other attempt."""
RETRIED: Final = "failed_retry_scheduled"
"""Why the lease of work was given up that has failed and gets another attempt."""


@rule(CompleteExecutionArgs)
def complete_execution(work: Work, args: CompleteExecutionArgs) -> CompleteExecutionResult:
    """End the execution well and keep its result."""
    execution = work.execution(args.execution_id)
    answered = first_answer(execution, args.fence, args)
    if answered is not None:
        return answered
    lease, attempt = fenced(work, execution, args.fence, args.source, args.attempt_index)
    execution = work.edit(execution)
    end_execution(work, execution, TerminalOutcome.SUCCESS, release_reason=COMPLETED)
    if args.result_payload is not None:
        execution.has_result = True
        work.add(
            ExecutionResult(
                execution_id=execution.execution_id,
                generation=execution.replay_count,
                data=args.result_payload,
                encoding=args.result_encoding,
            )
        )
    outcome = ExecutionCompleted(execution_id=args.execution_id, public_state=PublicState.COMPLETED)
    remember_answer(execution, lease, attempt, args, outcome)
    return outcome


@rule(FailExecutionArgs)
def fail_execution(work: Work, args: FailExecutionArgs) -> FailExecutionResult:
    """End the attempt with a failure: another attempt if the policy has one left, else the end."""
    execution = work.execution(args.execution_id)
    answered = first_answer(execution, args.fence, args)
    if answered is not None:
        return answered
    lease, attempt = fenced(work, execution, args.fence, args.source, args.attempt_index)
    execution = work.edit(execution)
    policy = retry_policy_of(execution, args.retry_policy_json)
    outcome: FailExecutionResult
    if policy is not None and may_retry(policy, args.failure_category, execution.retry_count):
        outcome = schedule_retry(work, execution, policy, args.failure_reason, args.failure_category)
    else:
        end_execution(
            work,
            execution,
            TerminalOutcome.FAILED,
            release_reason=FAILED,
            failure_reason=args.failure_reason,
            failure_category=args.failure_category,
        )
        outcome = TerminalFailed()
    remember_answer(execution, lease, attempt, args, outcome)
    return outcome


def retry_policy_of(execution: Execution, fallback_json: str = "") -> RetryPolicy | None:
    """The stored retry policy; the caller's only where none is stored."""
    stored = None if execution.policy is None else execution.policy.retry_policy
    return stored if stored is not None else parse_retry_policy(fallback_json)


def schedule_retry(
    work: Work,
    execution: Execution,
    policy: RetryPolicy,
    reason: str,
    category: str,
    *,
    release_reason: str = RETRIED,
    stream_reason: str = "attempt_failure",
) -> RetryScheduled:
    """End the attempt, and wait before the next one is opened at its claim."""
    delay_ms = retry_delay_ms(policy.backoff, execution.retry_count, work.envelope.random)
    delay_until = min(work.now + delay_ms, SAFE_INTEGER_MAX)
    release_lease(work, execution, release_reason)
    end_attempt(
        work,
        execution,
        AttemptLifecycle.ENDED_FAILURE,
        stream_reason,
        failure_reason=reason,
        failure_category=category,
    )
    execution.retry_count += 1
    execution.retry_reason = reason
    execution.continuation = Continuation.RETRY
    make_runnable(work, execution, delay_blocker(work, delay_until, BlockingReason.WAITING_FOR_RETRY_BACKOFF))
    return RetryScheduled(delay_until=delay_until, next_attempt_index=execution.attempt_count)

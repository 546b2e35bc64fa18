"""Running an ended execution again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric import errors
from flowfabric.contracts.executions import ExecutionReplayed, ReplayExecutionArgs, ReplayExecutionResult
from flowfabric.contracts.limits import REPLAY_COUNT_MAX
from flowfabric.core.records import Execution
from flowfabric.core.registry import rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.joins import reopen_join
from flowfabric.core.rules.transitions import reopen_execution
from flowfabric.core.state import is_terminal, public_state

if TYPE_CHECKING:
    from flowfabric.core.work import Work


@rule(ReplayExecutionArgs, acts_anew=True)
def replay_execution(work: Work, args: ReplayExecutionArgs) -> ReplayExecutionResult:
    """Let an ended execution run again; the next claim opens a new attempt.

    Raises:
        ExecutionNotFound, ExecutionNotTerminal, MaxReplaysExhausted: in this order.
        FlowAlreadyTerminal, DepsNotSatisfied: its flow was cancelled, or it would be skipped again.
    """
    execution = work.execution(args.execution_id)
    if not is_terminal(execution):
        raise errors.ExecutionNotTerminal(execution_id=args.execution_id, lifecycle_phase=execution.phase)
    cap = replay_cap(execution)
    if execution.replay_count >= cap:
        raise errors.MaxReplaysExhausted(execution_id=args.execution_id, max_replay_count=cap)
    execution = work.edit(execution)
    outcome = execution.outcome
    reopen_join(work, execution)
    reopen_execution(work, execution, keep_journal=args.keep_journal)
    log_act(
        work,
        "replayed",
        execution=execution,
        old=outcome,
        replay_count=execution.replay_count,
        keeps_journal=int(args.keep_journal),
    )
    return ExecutionReplayed(public_state=public_state(execution))


def replay_cap(execution: Execution) -> int:
    """How often the execution may be replayed."""
    return REPLAY_COUNT_MAX if execution.policy is None else execution.policy.max_replay_count

"""Work that gives its lease up on its own account: for a time, or until its dependencies are met.

The same attempt continues afterwards, and its frame stream stays open. Repeating one of these
with the same fence gives the first answer again and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.contracts.executions import (
    DelayedNotPromoted,
    DelayedPromoted,
    DelayExecutionArgs,
    DelayExecutionResult,
    ExecutionDelayed,
    MovedToWaitingChildren,
    MoveToWaitingChildrenArgs,
    MoveToWaitingChildrenResult,
    PromoteDelayedArgs,
    PromoteDelayedResult,
)
from flowfabric.contracts.states import BlockingReason, LifecyclePhase
from flowfabric.core.records import Blocker, Execution
from flowfabric.core.registry import rule
from flowfabric.core.rules.fencing import fenced, first_answer, remember_answer
from flowfabric.core.rules.reading import find
from flowfabric.core.rules.transitions import (
    delay_blocker,
    interrupt_attempt,
    make_runnable,
    mark_transition,
    release_lease,
    remove_blocker,
)
from flowfabric.core.state import public_state
from flowfabric.core.vocabulary import BlockerKind

if TYPE_CHECKING:
    from flowfabric.core.work import Work

WORKER_DELAY = "worker_delay"
WAITING_CHILDREN = "waiting_children"


@rule(DelayExecutionArgs)
def delay_execution(work: Work, args: DelayExecutionArgs) -> DelayExecutionResult:
    """Put running work to sleep. An instant that has passed makes it claimable at once.

    Raises:
        ExecutionNotFound, FenceRequired, ExecutionNotActive, LeaseRevoked, LeaseExpired,
        StaleLease: in this order.
    """
    execution = work.execution(args.execution_id)
    answered = first_answer(execution, args.fence, args)
    if answered is not None:
        return answered
    lease, attempt = fenced(work, execution, args.fence, args.source, args.attempt_index)
    execution = work.edit(execution)
    blocker = delay_blocker(work, args.delay_until, BlockingReason.WAITING_FOR_DELAY)
    _put_aside(work, execution, WORKER_DELAY, blocker)
    outcome = ExecutionDelayed(execution_id=args.execution_id, public_state=public_state(execution))
    remember_answer(execution, lease, attempt, args, outcome)
    return outcome


@rule(MoveToWaitingChildrenArgs)
def move_to_waiting_children(work: Work, args: MoveToWaitingChildrenArgs) -> MoveToWaitingChildrenResult:
    """Let running work wait for its dependencies. With none unresolved it is claimable at once.

    Raises:
        ExecutionNotFound, FenceRequired, ExecutionNotActive, LeaseRevoked, LeaseExpired,
        StaleLease: in this order.
    """
    execution = work.execution(args.execution_id)
    answered = first_answer(execution, args.fence, args)
    if answered is not None:
        return answered
    lease, attempt = fenced(work, execution, args.fence, args.source, args.attempt_index)
    execution = work.edit(execution)
    _put_aside(work, execution, WAITING_CHILDREN)
    outcome = MovedToWaitingChildren(execution_id=args.execution_id, public_state=public_state(execution))
    remember_answer(execution, lease, attempt, args, outcome)
    return outcome


def _put_aside(work: Work, execution: Execution, reason: str, blocker: Blocker | None = None) -> None:
    release_lease(work, execution, reason)
    interrupt_attempt(work, execution, reason)
    make_runnable(work, execution, blocker)


@rule(PromoteDelayedArgs)
def promote_delayed(work: Work, args: PromoteDelayedArgs) -> PromoteDelayedResult:
    """Take the time blocker away once it is due. Other blockers stay."""
    execution = find(work, args)
    reason = _why_not_due(work, execution)
    if reason:
        return DelayedNotPromoted(reason=reason)
    assert execution is not None
    execution = work.edit(execution)
    remove_blocker(execution, BlockerKind.TIME)
    mark_transition(work, execution)
    return DelayedPromoted(execution_id=args.execution_id)


def _why_not_due(work: Work, execution: Execution | None) -> str:
    if execution is None:
        return "execution_not_found"
    if execution.phase is not LifecyclePhase.RUNNABLE:
        return "not_runnable"
    instants = [blocker.until_ms for blocker in execution.blockers if blocker.until_ms is not None]
    if not instants:
        return "not_delayed"
    return "" if min(instants) <= work.now else "not_yet_due"

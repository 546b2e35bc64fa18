"""Keeping executions from being claimed by hand, and letting them go again.

The rule this module keeps: each reason is a blocker of its own. Adding one never replaces a
dependency or a delay, and taking one away never takes another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.contracts.blocking import (
    BlockExecutionArgs,
    BlockExecutionResult,
    BlockRouteArgs,
    BlockRouteOutcome,
    ExecutionBlocked,
    ExecutionPaused,
    ExecutionUnblocked,
    ExecutionUnpaused,
    PauseExecutionArgs,
    PauseExecutionResult,
    RouteBlocked,
    RouteBlockRejected,
    UnblockExecutionArgs,
    UnblockExecutionResult,
    UnpauseExecutionArgs,
    UnpauseExecutionResult,
)
from flowfabric.contracts.states import BlockingReason, LifecyclePhase
from flowfabric.core.records import Blocker
from flowfabric.core.registry import rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.fencing import not_active
from flowfabric.core.rules.transitions import (
    add_blocker,
    mark_transition,
    pause_blocker,
    remove_blocker,
)
from flowfabric.core.state import BLOCKER_ORDER, is_terminal, public_state
from flowfabric.core.vocabulary import BlockerKind

if TYPE_CHECKING:
    from flowfabric.core.records import Execution
    from flowfabric.core.work import Work

KIND_OF_REASON: Final = {
    BlockingReason.WAITING_FOR_BUDGET: BlockerKind.BUDGET,
    BlockingReason.WAITING_FOR_QUOTA: BlockerKind.QUOTA,
    BlockingReason.WAITING_FOR_CAPABLE_WORKER: BlockerKind.ROUTE,
    BlockingReason.PAUSED_BY_OPERATOR: BlockerKind.OPERATOR,
    BlockingReason.PAUSED_BY_POLICY: BlockerKind.LANE,
}
"""The reasons that may be set and taken away by hand."""


@rule(BlockExecutionArgs, acts_anew=True)
def block_execution(work: Work, args: BlockExecutionArgs) -> BlockExecutionResult:
    """Block a runnable execution for one more reason.

    Raises:
        ExecutionNotFound, ExecutionNotActive (it has ended), ExecutionNotEligible (it is not
        runnable), InvalidBlockingReason: in this order.
    """
    before = public_state(work.execution(args.execution_id))
    execution = _block(work, args.execution_id, args.blocking_reason, args.blocking_detail or "")
    log_act(
        work,
        "blocked",
        execution=execution,
        old=before,
        new=public_state(execution),
        blocking_reason=args.blocking_reason,
        reason=args.blocking_detail,
    )
    return ExecutionBlocked()


@rule(BlockRouteArgs)
def block_route(work: Work, args: BlockRouteArgs) -> BlockRouteOutcome:
    """Block an execution that no worker can run. A refusal is an answer: its caller only moves on."""
    try:
        _block(work, args.execution_id, args.reason_code, args.reason_detail)
    except (errors.NotFound, errors.StateRefusal, errors.InvalidBlockingReason) as refusal:
        return RouteBlockRejected(message=refusal.code)
    return RouteBlocked(execution_id=args.execution_id)


def _block(work: Work, execution_id: str, reason: str, detail: str) -> Execution:
    execution = work.execution(execution_id)
    _require_runnable(execution)
    kind = _kind_of(reason)
    execution = work.edit(execution)
    same = [blocker for blocker in execution.blockers if blocker.kind is kind]
    waits_for = same[0].waits_for if same else ""
    add_blocker(
        execution, Blocker(kind=kind, reason=BlockingReason(reason), detail=detail, waits_for=waits_for)
    )
    execution.grant = None
    mark_transition(work, execution)
    return execution


def _require_runnable(execution: Execution) -> None:
    if is_terminal(execution):
        raise not_active(execution)
    if execution.phase is not LifecyclePhase.RUNNABLE:
        raise errors.ExecutionNotEligible(
            execution_id=execution.execution_id, lifecycle_phase=execution.phase
        )


def _kind_of(reason: str) -> BlockerKind:
    for known, kind in KIND_OF_REASON.items():
        if known == reason:
            return kind
    rule_text = f"one of {', '.join(KIND_OF_REASON)}"
    raise errors.InvalidBlockingReason(field="blocking_reason", value=repr(reason[:64]), rule=rule_text)


@rule(UnblockExecutionArgs, acts_anew=True)
def unblock_execution(work: Work, args: UnblockExecutionArgs) -> UnblockExecutionResult:
    """Take one reason away. What was held back for lack of headroom is held back again at its claim.

    Raises:
        ExecutionNotFound: there is no such execution.
        ExecutionNotEligible: it is not runnable, or this reason does not block it.
        InvalidBlockingReason: this reason cannot be taken away.
    """
    execution = work.execution(args.execution_id)
    if execution.phase is not LifecyclePhase.RUNNABLE:
        raise errors.ExecutionNotEligible(execution_id=args.execution_id, lifecycle_phase=execution.phase)
    expected = args.expected_blocking_reason
    wanted = set(KIND_OF_REASON.values()) if expected is None else {_kind_of(expected)}
    found = [blocker for blocker in execution.blockers if blocker.kind in wanted]
    if not found:
        raise errors.ExecutionNotEligible(
            execution_id=args.execution_id, blocked_by=",".join(b.reason for b in execution.blockers)
        )
    execution, before = work.edit(execution), public_state(execution)
    gone = min(found, key=lambda blocker: BLOCKER_ORDER[blocker.kind])
    remove_blocker(execution, gone.kind)
    mark_transition(work, execution)
    log_act(
        work,
        "unblocked",
        execution=execution,
        old=before,
        new=public_state(execution),
        blocking_reason=gone.reason,
    )
    return ExecutionUnblocked()


# Pausing


@rule(PauseExecutionArgs, acts_anew=True)
def pause_execution(work: Work, args: PauseExecutionArgs) -> PauseExecutionResult:
    """Keep an execution from being claimed, now or as soon as it is runnable again.

    Raises:
        ExecutionNotFound, ExecutionNotActive (it has ended): in this order.
    """
    execution = work.execution(args.execution_id)
    if is_terminal(execution):
        raise not_active(execution)
    execution, before = work.edit(execution), public_state(execution)
    if execution.phase is LifecyclePhase.RUNNABLE:
        add_blocker(execution, pause_blocker(args.reason))
        execution.grant = None
        mark_transition(work, execution)
    else:
        execution.pause_reason = args.reason
        execution.last_mutation_at = work.now
    after = public_state(execution)
    log_act(work, "paused", execution=execution, old=before, new=after, reason=args.reason)
    return ExecutionPaused(execution_id=args.execution_id, public_state=public_state(execution))


@rule(UnpauseExecutionArgs, acts_anew=True)
def unpause_execution(work: Work, args: UnpauseExecutionArgs) -> UnpauseExecutionResult:
    """End a pause. An execution that is not paused stays as it is.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    execution = work.execution(args.execution_id)
    paused = any(blocker.kind is BlockerKind.OPERATOR for blocker in execution.blockers)
    if paused or execution.pause_reason is not None:
        execution, before = work.edit(execution), public_state(execution)
        execution.pause_reason = None
        if paused:
            remove_blocker(execution, BlockerKind.OPERATOR)
            mark_transition(work, execution)
        log_act(work, "unpaused", execution=execution, old=before, new=public_state(execution))
    return ExecutionUnpaused(execution_id=args.execution_id, public_state=public_state(execution))

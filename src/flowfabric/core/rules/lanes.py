"""Lanes: what an operator has said about them, and what that means for the work in them.

The rules this module keeps:

- No execution stores the state of its lane. Changing a lane changes one record, however much waits
  in it. Claims and submissions rest on that record, and who shows an execution looks at it.
- A lane without a record is active, so nobody has to declare one.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from flowfabric import errors
from flowfabric.contracts.lanes import (
    DescribeLaneArgs,
    LaneInfo,
    LaneStateSet,
    LaneStateUnchanged,
    SetLaneStateArgs,
    SetLaneStateResult,
)
from flowfabric.contracts.states import BlockingReason, LaneState, LifecyclePhase
from flowfabric.core.records import Blocker, Execution, Key, Lane, key_for, lane_identity
from flowfabric.core.registry import rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.transitions import add_blocker
from flowfabric.core.vocabulary import BlockerKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.core.work import Work

GIVES_NO_WORK: Final = frozenset({LaneState.PAUSED, LaneState.DISABLED})
TAKES_NO_WORK: Final = frozenset({LaneState.DRAINING, LaneState.DISABLED})


def lane_subject(args: Any) -> Key:
    """The subject of every command that names one lane."""
    return key_for(Lane, lane_identity(args.namespace, args.lane_id))


@rule(SetLaneStateArgs, subject=lane_subject, acts_anew=True)
def set_lane_state(work: Work, args: SetLaneStateArgs) -> SetLaneStateResult:
    """Change what a lane lets through.

    Every claim and every submission commits only if the lane is still as it was found. Once this
    has been answered, none comes through any more that the new state does not let through.

    Raises:
        InvalidInput: the namespace is not the caller's.
    """
    work.require_namespace(args.namespace)
    lane = find_lane(work, args.namespace, args.lane_id)
    previous = LaneState.ACTIVE if lane is None else lane.state
    if args.state is previous:
        return LaneStateUnchanged(namespace=args.namespace, lane_id=args.lane_id, state=previous)
    changed = Lane(
        namespace=args.namespace,
        lane_id=args.lane_id,
        state=args.state,
        changed_at=work.now,
        changed_by=work.envelope.actor,
        reason=args.reason,
    )
    if lane is not None:  # earlier requests keep their answers
        changed.last_request, changed.earlier_requests = lane.last_request, lane.earlier_requests
    work.add(changed)
    log_act(
        work,
        "lane_state_set",
        namespace=args.namespace,
        lane_id=args.lane_id,
        old=previous,
        new=args.state,
        reason=args.reason,
    )
    return LaneStateSet(namespace=args.namespace, lane_id=args.lane_id, state=args.state, previous=previous)


@rule(DescribeLaneArgs, subject=lane_subject, query=True)
def describe_lane(work: Work, args: DescribeLaneArgs) -> LaneInfo:
    """The state of a lane, active if nobody has said anything about it.

    Raises:
        InvalidInput: the namespace is not the caller's.
    """
    work.require_namespace(args.namespace)
    return lane_info(args.namespace, args.lane_id, find_lane(work, args.namespace, args.lane_id))


def lane_info(namespace: str, lane_id: str, lane: Lane | None) -> LaneInfo:
    """What is shown of a lane."""
    if lane is None:
        return LaneInfo(namespace=namespace, lane_id=lane_id, state=LaneState.ACTIVE)
    return LaneInfo(
        namespace=namespace,
        lane_id=lane_id,
        state=lane.state,
        reason=lane.reason,
        changed_at=lane.changed_at,
        changed_by=lane.changed_by,
    )


def find_lane(work: Work, namespace: str, lane_id: str) -> Lane | None:
    """What is on record about a lane."""
    return work.read(Lane, lane_identity(namespace, lane_id))


def refuse_claim_in_lane(work: Work, execution: Execution) -> None:
    """Refuse to give out work of a lane that gives none.

    Raises:
        ExecutionNotEligible: the lane is paused or disabled.
    """
    lane = find_lane(work, execution.namespace, execution.lane_id)
    if lane is not None and lane.state in GIVES_NO_WORK:
        raise errors.ExecutionNotEligible(
            execution_id=execution.execution_id, lane_id=execution.lane_id, lane_state=lane.state
        )


def refuse_submission_in_lane(lane: Lane | None) -> None:
    """Refuse new work for a lane that takes none.

    Raises:
        LaneClosed: the lane is draining or disabled.
    """
    if lane is not None and lane.state in TAKES_NO_WORK:
        raise errors.LaneClosed(lane_id=lane.lane_id, lane_state=lane.state, reason=lane.reason)


def seen_in_lane(work: Work, execution: Execution) -> Execution:
    """The execution as it is shown: blocked by its lane, if the lane gives no work.

    Only what waits for a worker is affected, so the lane of anything else is not read.
    """
    if execution.phase is not LifecyclePhase.RUNNABLE:
        return execution
    return under_lane(execution, find_lane(work, execution.namespace, execution.lane_id))


def seen_in_lanes(work: Work, executions: Iterable[Execution | None]) -> list[Execution | None]:
    """Several executions as they are shown, in order. All lanes that matter are loaded at once."""
    found = list(executions)
    waiting = [one for one in found if one is not None and one.phase is LifecyclePhase.RUNNABLE]
    work.read_all(Lane, {lane_identity(one.namespace, one.lane_id) for one in waiting})
    return [None if one is None else seen_in_lane(work, one) for one in found]


def under_lane(execution: Execution, lane: Lane | None) -> Execution:
    """The execution with the blocker that its lane's state amounts to. It is for showing only."""
    if lane is None or lane.state not in GIVES_NO_WORK or execution.phase is not LifecyclePhase.RUNNABLE:
        return execution
    shown = copy.copy(execution)
    detail = f"lane {lane.lane_id} is {lane.state}" + (f": {lane.reason}" if lane.reason else "")
    add_blocker(
        shown,
        Blocker(kind=BlockerKind.LANE, reason=BlockingReason.PAUSED_BY_POLICY, detail=detail),
    )
    return shown

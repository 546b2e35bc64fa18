"""Lanes: queues with a name that is unique in its namespace. Nobody has to declare one."""

from __future__ import annotations

from typing import TypeAlias

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.ids import LaneId, Namespace, Text, TimestampMs
from flowfabric.contracts.states import LaneState


class LaneStateSet(Outcome, tag="Set"):
    """The lane is in the new state, and lets nothing through any more that the state does not."""

    namespace: Namespace
    lane_id: LaneId
    state: LaneState
    previous: LaneState


class LaneStateUnchanged(Outcome, tag="AlreadySatisfied"):
    """The lane was in this state already; nothing was changed."""

    namespace: Namespace
    lane_id: LaneId
    state: LaneState


SetLaneStateResult: TypeAlias = LaneStateSet | LaneStateUnchanged


class SetLaneStateArgs(Command[SetLaneStateResult]):
    """Say what a lane lets through, whether or not anything is in it yet.

    ``paused`` gives no work to workers, ``draining`` takes no new work, ``disabled`` does neither.
    Work that runs goes on in every state, and what waits stays where it is.
    """

    namespace: Namespace
    lane_id: LaneId
    state: LaneState
    reason: Text = ""


class LaneInfo(Value):
    """One lane, as an operator has set it. One that nobody has set is active since ever."""

    namespace: Namespace
    lane_id: LaneId
    state: LaneState
    reason: str = ""
    changed_at: TimestampMs | None = None
    changed_by: str = ""


class DescribeLaneArgs(Command[LaneInfo]):
    """Read the state of one lane."""

    namespace: Namespace
    lane_id: LaneId

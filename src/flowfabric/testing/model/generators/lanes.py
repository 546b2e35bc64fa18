"""Lanes: their states, and the submissions that they keep out."""

from __future__ import annotations

from typing import Final

from flowfabric import errors
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.lanes import DescribeLaneArgs, SetLaneStateArgs
from flowfabric.contracts.states import LaneState
from flowfabric.core.records import Lane
from flowfabric.core.rules.lanes import TAKES_NO_WORK
from flowfabric.testing.bed import NAMESPACE
from flowfabric.testing.model.draw import Draw, generator

ASIDE: Final = "aside"
"""The lane that is closed and opened. The lane of all other generators stays open."""


@generator(SetLaneStateArgs)
def set_lane_state(draw: Draw) -> SetLaneStateArgs:
    """To any state, also to the one that it is in."""
    return SetLaneStateArgs(namespace=NAMESPACE, lane_id=ASIDE, state=draw.pick(tuple(LaneState)))


@generator(DescribeLaneArgs)
def describe_lane(draw: Draw) -> DescribeLaneArgs:
    """One that was set, or one that nobody has heard of."""
    return DescribeLaneArgs(namespace=NAMESPACE, lane_id=draw.pick((ASIDE, "never set")))


@generator(CreateExecutionArgs, provokes=errors.LaneClosed)
def create_execution_in_a_closed_lane(draw: Draw) -> CreateExecutionArgs:
    """Where no new work is taken."""
    closed = [lane for lane in draw.world.all(Lane) if lane.state in TAKES_NO_WORK]
    return draw.creation(lane_id=draw.one_of(closed, SetLaneStateArgs).lane_id)

"""Reads: one execution, and pages of many."""

from __future__ import annotations

from flowfabric import errors
from flowfabric.contracts.leases import ScanEligibleArgs
from flowfabric.contracts.reads import (
    DescribeExecutionArgs,
    GetExecutionResultArgs,
    ListExecutionsArgs,
    ListExecutionSummariesArgs,
    ListExpiredLeasesArgs,
    ListLanesArgs,
    ListSuspendedArgs,
    ReadExecutionContextArgs,
    ReadExecutionInfoArgs,
    ReadExecutionStateArgs,
    ReadStateVectorArgs,
    ServerTimeArgs,
)
from flowfabric.contracts.runs import ReadRunArgs
from flowfabric.contracts.states import PublicState
from flowfabric.testing.bed import LANE
from flowfabric.testing.model.draw import PARTITION, Draw, generator


@generator(DescribeExecutionArgs)
def describe_execution(draw: Draw) -> DescribeExecutionArgs:
    """Any."""
    return DescribeExecutionArgs(execution_id=draw.execution().execution_id)


@generator(ReadExecutionInfoArgs)
def read_execution_info(draw: Draw) -> ReadExecutionInfoArgs:
    """Any."""
    return ReadExecutionInfoArgs(execution_id=draw.execution().execution_id)


@generator(ReadExecutionStateArgs)
def read_execution_state(draw: Draw) -> ReadExecutionStateArgs:
    """Any."""
    return ReadExecutionStateArgs(execution_id=draw.execution().execution_id)


@generator(ReadStateVectorArgs)
def read_state_vector(draw: Draw) -> ReadStateVectorArgs:
    """Any."""
    return ReadStateVectorArgs(execution_id=draw.execution().execution_id)


@generator(GetExecutionResultArgs)
def get_execution_result(draw: Draw) -> GetExecutionResultArgs:
    """There or not yet."""
    return GetExecutionResultArgs(execution_id=draw.execution().execution_id)


@generator(ReadExecutionContextArgs)
def read_execution_context(draw: Draw) -> ReadExecutionContextArgs:
    """Any."""
    return ReadExecutionContextArgs(execution_id=draw.execution().execution_id)


@generator(ReadExecutionContextArgs, provokes=errors.ExecutionNotFound)
def read_context_of_nothing(draw: Draw) -> ReadExecutionContextArgs:
    """Under an id that nothing has."""
    return ReadExecutionContextArgs(execution_id=draw.new_execution_id())


@generator(ReadRunArgs)
def read_run(draw: Draw) -> ReadRunArgs:
    """Over or not."""
    return ReadRunArgs(execution_id=draw.execution().execution_id)


@generator(ListExecutionsArgs)
def list_executions(draw: Draw) -> ListExecutionsArgs:
    """A page of one partition, or of all."""
    return ListExecutionsArgs(
        partition=draw.pick((None, PARTITION)),
        cursor=draw.pick((None, draw.execution().execution_id)),
        limit=draw.pick((0, 2, 50)),
    )


@generator(ListExecutionSummariesArgs)
def list_execution_summaries(draw: Draw) -> ListExecutionSummariesArgs:
    """Of a lane and a state, or of all."""
    return ListExecutionSummariesArgs(
        lane_id=draw.pick((None, LANE)),
        public_state=draw.pick((None, *PublicState)),
        limit=draw.pick((0, 2, 50)),
    )


@generator(ListSuspendedArgs)
def list_suspended(draw: Draw) -> ListSuspendedArgs:
    """All of them, or those of a partition."""
    return ListSuspendedArgs(partition=draw.pick((None, PARTITION)), limit=draw.pick((1, 50)))


@generator(ListLanesArgs)
def list_lanes(draw: Draw) -> ListLanesArgs:
    """All of them, or those behind one."""
    return ListLanesArgs(cursor=draw.pick((None, "a")), limit=draw.pick((1, 50)))


@generator(ScanEligibleArgs)
def scan_eligible(draw: Draw) -> ScanEligibleArgs:
    """Of the lane that all use."""
    return ScanEligibleArgs(lane_id=LANE, limit=draw.pick((1, 50)))


@generator(ListExpiredLeasesArgs)
def list_expired_leases(draw: Draw) -> ListExpiredLeasesArgs:
    """A page."""
    return ListExpiredLeasesArgs(limit=draw.pick((1, 50)))


@generator(ServerTimeArgs)
def server_time(draw: Draw) -> ServerTimeArgs:
    """What the stores' clock shows."""
    return ServerTimeArgs()

"""Reads: one execution, and pages of many."""

from __future__ import annotations

from flowfabric import errors
from flowfabric.contracts.backend import CapabilitiesArgs, PingArgs
from flowfabric.contracts.explaining import ExplainExecutionArgs
from flowfabric.contracts.history import ListAttemptsArgs, ListSignalsArgs
from flowfabric.contracts.leases import ScanEligibleArgs
from flowfabric.contracts.reads import (
    DescribeExecutionArgs,
    GetExecutionNamespaceArgs,
    GetExecutionResultArgs,
    ListExecutionsArgs,
    ListExecutionSummariesArgs,
    ListExpiredLeasesArgs,
    ListLanesArgs,
    ListSuspendedArgs,
    ReadCurrentAttemptIndexArgs,
    ReadExecCoreFieldsArgs,
    ReadExecutionContextArgs,
    ReadExecutionInfoArgs,
    ReadExecutionStateArgs,
    ReadStateVectorArgs,
    ReadTotalAttemptCountArgs,
    ResolveExecutionFlowIdArgs,
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


@generator(ReadCurrentAttemptIndexArgs)
def read_current_attempt_index(draw: Draw) -> ReadCurrentAttemptIndexArgs:
    """Any."""
    return ReadCurrentAttemptIndexArgs(execution_id=draw.execution().execution_id)


@generator(ReadTotalAttemptCountArgs)
def read_total_attempt_count(draw: Draw) -> ReadTotalAttemptCountArgs:
    """Any."""
    return ReadTotalAttemptCountArgs(execution_id=draw.execution().execution_id)


@generator(GetExecutionNamespaceArgs)
def get_execution_namespace(draw: Draw) -> GetExecutionNamespaceArgs:
    """Any."""
    return GetExecutionNamespaceArgs(execution_id=draw.execution().execution_id)


@generator(ResolveExecutionFlowIdArgs)
def resolve_execution_flow_id(draw: Draw) -> ResolveExecutionFlowIdArgs:
    """In a flow or not."""
    return ResolveExecutionFlowIdArgs(execution_id=draw.execution().execution_id)


@generator(ReadExecCoreFieldsArgs)
def read_exec_core_fields(draw: Draw) -> ReadExecCoreFieldsArgs:
    """Some, one of which there is not."""
    fields = ("public_state", "lease_expires_at", "delay_until", "no_such_field")
    return ReadExecCoreFieldsArgs(execution_id=draw.execution().execution_id, fields=fields)


@generator(ExplainExecutionArgs)
def explain_execution(draw: Draw) -> ExplainExecutionArgs:
    """Any."""
    return ExplainExecutionArgs(execution_id=draw.execution().execution_id)


@generator(ListAttemptsArgs)
def list_attempts(draw: Draw) -> ListAttemptsArgs:
    """A page."""
    return ListAttemptsArgs(
        execution_id=draw.execution().execution_id,
        cursor=draw.pick((None, 0)),
        limit=draw.pick((1, 50)),
    )


@generator(ListSignalsArgs)
def list_signals(draw: Draw) -> ListSignalsArgs:
    """A page."""
    return ListSignalsArgs(
        execution_id=draw.execution().execution_id,
        cursor=draw.pick((None, 1)),
        limit=draw.pick((1, 50)),
        with_payloads=draw.chance(0.5),
    )


@generator(PingArgs)
def ping(draw: Draw) -> PingArgs:
    """What there is to ask."""
    return PingArgs()


@generator(CapabilitiesArgs)
def capabilities(draw: Draw) -> CapabilitiesArgs:
    """What there is to ask."""
    return CapabilitiesArgs()


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

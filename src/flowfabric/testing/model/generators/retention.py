"""Removing what ended long ago. In a program nothing is that old, so nothing goes."""

from __future__ import annotations

from flowfabric import errors
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.flows import CreateFlowArgs
from flowfabric.contracts.retention import TrimRetentionArgs
from flowfabric.core.commands import RemoveExecutionArgs, RemoveFlowArgs, TrimExecutionArgs, TrimFlowArgs
from flowfabric.core.records import Execution, Flow
from flowfabric.testing.model.draw import Draw, generator


@generator(TrimRetentionArgs, provokes=errors.Unauthorized)
def trim_retention(draw: Draw) -> TrimRetentionArgs:
    """By a caller that may not."""
    return TrimRetentionArgs(limit=draw.pick((1, 100)))


@generator(TrimExecutionArgs)
def trim_execution(draw: Draw) -> TrimExecutionArgs:
    """Ended or not, but too young."""
    return TrimExecutionArgs(execution_id=_execution(draw))


@generator(RemoveExecutionArgs)
def remove_execution(draw: Draw) -> RemoveExecutionArgs:
    """Ended or not, but too young."""
    return RemoveExecutionArgs(execution_id=_execution(draw), last=draw.chance(0.5))


@generator(TrimFlowArgs)
def trim_flow(draw: Draw) -> TrimFlowArgs:
    """Ended or not, but too young."""
    return TrimFlowArgs(flow_identity=_flow(draw))


@generator(RemoveFlowArgs)
def remove_flow(draw: Draw) -> RemoveFlowArgs:
    """Ended or not, but too young."""
    return RemoveFlowArgs(flow_identity=_flow(draw), last=draw.chance(0.5))


def _execution(draw: Draw) -> str:
    return draw.one_of(draw.world.all(Execution), CreateExecutionArgs).execution_id


def _flow(draw: Draw) -> str:
    return draw.one_of(draw.world.all(Flow), CreateFlowArgs).identity

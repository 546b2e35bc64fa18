"""Removing what ended long ago: what is too young stays, and with no retention at all it goes at once."""

from __future__ import annotations

from typing import Final

from flowfabric import errors
from flowfabric.contracts.executions import CompleteExecutionArgs, CreateExecutionArgs
from flowfabric.contracts.flows import CreateFlowArgs
from flowfabric.contracts.limits import RETENTION_MS
from flowfabric.contracts.retention import TrimRetentionArgs
from flowfabric.core.commands import (
    LogActArgs,
    RemoveExecutionArgs,
    RemoveFlowArgs,
    TrimExecutionArgs,
    TrimFlowArgs,
)
from flowfabric.core.records import Execution, Flow, key_for
from flowfabric.stores.base import is_owned
from flowfabric.testing.model.draw import TERMINAL, Draw, generator

KEYS_MAX: Final = 3


@generator(TrimRetentionArgs, unbounded=True)
def trim_retention(draw: Draw) -> TrimRetentionArgs:
    """One pass over everything, as the engine makes it."""
    return TrimRetentionArgs(retention_ms=_retention_ms(draw), limit=draw.pick((1, 100)))


@generator(TrimRetentionArgs, provokes=errors.Unauthorized)
def trim_retention_of_one_namespace(draw: Draw) -> TrimRetentionArgs:
    """By a caller that may not."""
    return TrimRetentionArgs(limit=draw.pick((1, 100)))


@generator(LogActArgs, unbounded=True)
def log_act(draw: Draw) -> LogActArgs:
    """What the engine logs of a pass that it was asked for."""
    return LogActArgs(act="retention_trimmed", namespace="", told={"retention_ms": _retention_ms(draw)})


@generator(TrimExecutionArgs)
def trim_execution(draw: Draw) -> TrimExecutionArgs:
    """Ended or not, too young or not."""
    return TrimExecutionArgs(execution_id=_execution(draw).execution_id, retention_ms=_retention_ms(draw))


@generator(RemoveExecutionArgs)
def remove_execution(draw: Draw) -> RemoveExecutionArgs:
    """Only the first step, as a process leaves it that ends then."""
    execution_id = _execution(draw).execution_id
    core = key_for(Execution, execution_id)
    owned = [key for key in sorted(draw.world.records) if is_owned(key, execution_id) and key != core]
    return RemoveExecutionArgs(
        execution_id=execution_id,
        retention_ms=_retention_ms(draw),
        keys=tuple(draw.some(owned, KEYS_MAX)) if owned and draw.chance(0.5) else (),
    )


@generator(CreateExecutionArgs, provokes=errors.Contention)
def create_what_is_being_removed(draw: Draw) -> CreateExecutionArgs:
    """Under the id of an execution of which something is left."""
    leaving = [one for one in draw.world.all(Execution) if one.removing_since is not None]
    execution = draw.one_of(leaving, RemoveExecutionArgs, CompleteExecutionArgs)
    return draw.creation(execution_id=execution.execution_id, namespace=execution.namespace)


@generator(TrimFlowArgs)
def trim_flow(draw: Draw) -> TrimFlowArgs:
    """Ended or not, too young or not."""
    return TrimFlowArgs(flow_identity=_flow(draw), retention_ms=_retention_ms(draw))


@generator(RemoveFlowArgs)
def remove_flow(draw: Draw) -> RemoveFlowArgs:
    """Only the first step, as a process leaves it that ends then."""
    return RemoveFlowArgs(flow_identity=_flow(draw), retention_ms=_retention_ms(draw))


def _retention_ms(draw: Draw) -> int:
    """For what has to stay, and for what may go at once."""
    return draw.pick((0, RETENTION_MS))


def _execution(draw: Draw) -> Execution:
    """Any, but more often one that has ended."""
    ended = draw.executions(*TERMINAL)
    return draw.pick(ended) if ended and draw.chance(0.8) else draw.execution()


def _flow(draw: Draw) -> str:
    return draw.one_of(draw.world.all(Flow), CreateFlowArgs).identity

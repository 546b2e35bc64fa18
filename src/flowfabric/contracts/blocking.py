"""Keeping runnable executions from being claimed, and letting them go again."""

from __future__ import annotations

from typing import TypeAlias

from flowfabric.contracts.base import Command, Outcome
from flowfabric.contracts.ids import ExecutionId, LaneId, OptionalName, Text, TimestampMs
from flowfabric.contracts.partitions import Partition
from flowfabric.contracts.states import PublicState


class ExecutionBlocked(Outcome, tag="Blocked"):
    """The execution is not claimed until it is unblocked."""


BlockExecutionResult: TypeAlias = ExecutionBlocked


class BlockExecutionArgs(Command[BlockExecutionResult]):
    """Block a runnable execution for one more reason. Reasons that it has already stay."""

    execution_id: ExecutionId
    blocking_reason: OptionalName
    blocking_detail: Text | None = None
    now: TimestampMs | None = None


class ExecutionUnblocked(Outcome, tag="Unblocked"):
    """This reason is gone. Others may still block the execution."""


UnblockExecutionResult: TypeAlias = ExecutionUnblocked


class UnblockExecutionArgs(Command[UnblockExecutionResult]):
    """Take one reason away. Dependencies and delays cannot be taken away like this."""

    execution_id: ExecutionId
    now: TimestampMs | None = None
    expected_blocking_reason: OptionalName | None = None
    """The reason to take away; without it, the one that the execution is shown with."""


class RouteBlocked(Outcome, tag="Blocked"):
    """The execution waits for a worker that can run it."""

    execution_id: ExecutionId


class RouteBlockRejected(Outcome, tag="LuaRejected"):
    """The execution could not be blocked; look for other work."""

    message: str
    """The code of the refusal."""


BlockRouteOutcome: TypeAlias = RouteBlocked | RouteBlockRejected


class BlockRouteArgs(Command[BlockRouteOutcome]):
    """Block an execution that no connected worker can run."""

    execution_id: ExecutionId
    lane_id: LaneId
    partition: Partition
    reason_code: OptionalName
    reason_detail: Text
    now: TimestampMs | None = None


class ExecutionPaused(Outcome, tag="Paused"):
    """The execution is not claimed until it is unpaused. A run that is under way goes on."""

    execution_id: ExecutionId
    public_state: PublicState


PauseExecutionResult: TypeAlias = ExecutionPaused


class PauseExecutionArgs(Command[PauseExecutionResult]):
    """Keep one execution from being claimed. One that runs or waits is held when that is over."""

    execution_id: ExecutionId
    reason: Text = "paused by an operator"


class ExecutionUnpaused(Outcome, tag="Unpaused"):
    """The pause is over. Other reasons may still block the execution."""

    execution_id: ExecutionId
    public_state: PublicState


UnpauseExecutionResult: TypeAlias = ExecutionUnpaused


class UnpauseExecutionArgs(Command[UnpauseExecutionResult]):
    """End the pause of one execution. One that is not paused stays as it is."""

    execution_id: ExecutionId

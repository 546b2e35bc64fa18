"""Point reads. They are rules like all others and change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from flowfabric.contracts.reads import (
    AttemptSummary,
    DescribeExecutionArgs,
    ExecutionContext,
    ExecutionInfo,
    ExecutionSnapshot,
    GetExecutionResultArgs,
    LeaseSummary,
    ReadExecutionContextArgs,
    ReadExecutionInfoArgs,
    ReadExecutionStateArgs,
    ReadStateVectorArgs,
    StateSummary,
)
from flowfabric.contracts.runs import ReadRunArgs, RunView
from flowfabric.contracts.states import BlockingReason, PublicState
from flowfabric.core.records import Execution, ExecutionResult, Payload, key_for
from flowfabric.core.registry import rule
from flowfabric.core.rules.lanes import seen_in_lane
from flowfabric.core.state import blocking_detail, blocking_reason, is_terminal, public_state, state_vector
from flowfabric.core.vocabulary import LeaseState

if TYPE_CHECKING:
    from flowfabric.core.records import Key
    from flowfabric.core.work import Work


class NamesExecution(Protocol):
    """A command about one execution."""

    @property
    def execution_id(self) -> str:
        """Which one."""


def find(work: Work, args: NamesExecution) -> Execution | None:
    """The execution, or None if there is none in the caller's namespace."""
    execution = work.read(Execution, args.execution_id)
    namespace = work.envelope.namespace
    if execution is None or execution.removing_since is not None:
        return None
    return execution if namespace in (None, execution.namespace) else None


@rule(DescribeExecutionArgs, query=True)
def describe_execution(work: Work, args: DescribeExecutionArgs) -> ExecutionSnapshot | None:
    """One execution with its attempt, lease and waitpoint."""
    execution = find(work, args)
    if execution is None:
        return None
    execution = seen_in_lane(work, execution)
    reason = blocking_reason(execution)
    attempt = execution.attempt
    return ExecutionSnapshot(
        execution_id=execution.execution_id,
        flow_id=execution.flow_id,
        lane_id=execution.lane_id,
        namespace=execution.namespace,
        public_state=public_state(execution),
        blocking_reason=None if reason is BlockingReason.NONE else reason,
        blocking_detail=blocking_detail(execution) or None,
        current_attempt=None
        if attempt is None
        else AttemptSummary(attempt_id=attempt.attempt_id, attempt_index=attempt.attempt_index),
        current_lease=_lease_summary(execution),
        current_waitpoint=execution.waitpoint_id,
        created_at=execution.created_at,
        last_mutation_at=execution.last_mutation_at,
        total_attempt_count=execution.attempt_count,
        tags=execution.tags,
        required_capabilities=execution.required_capabilities,
    )


def _lease_summary(execution: Execution) -> LeaseSummary | None:
    lease, attempt = execution.lease, execution.attempt
    if lease is None or attempt is None or lease.state is not LeaseState.HELD:
        return None
    return LeaseSummary(
        lease_epoch=lease.epoch,
        worker_instance_id=lease.worker_instance_id,
        expires_at=lease.expires_at,
        lease_id=lease.lease_id,
        attempt_index=attempt.attempt_index,
        last_heartbeat_at=lease.last_renewed_at,
    )


@rule(ReadExecutionInfoArgs, query=True)
def read_execution_info(work: Work, args: ReadExecutionInfoArgs) -> ExecutionInfo | None:
    """One execution with all seven state words."""
    execution = find(work, args)
    if execution is None:
        return None
    execution = seen_in_lane(work, execution)
    return ExecutionInfo(
        execution_id=execution.execution_id,
        namespace=execution.namespace,
        lane_id=execution.lane_id,
        priority=execution.priority,
        execution_kind=execution.execution_kind,
        state_vector=state_vector(execution),
        public_state=public_state(execution),
        created_at=execution.created_at,
        started_at=execution.started_at,
        completed_at=execution.completed_at,
        current_attempt_index=current_attempt_index(execution),
        flow_id=execution.flow_id,
        blocking_detail=blocking_detail(execution),
    )


def current_attempt_index(execution: Execution) -> int:
    """The index of the current attempt; 0 before the first claim."""
    return 0 if execution.attempt is None else execution.attempt.attempt_index


@rule(ReadExecutionStateArgs, query=True)
def read_execution_state(work: Work, args: ReadExecutionStateArgs) -> PublicState | None:
    """The one word that users see."""
    execution = find(work, args)
    return None if execution is None else public_state(seen_in_lane(work, execution))


@rule(ReadStateVectorArgs, query=True)
def read_state_vector(work: Work, args: ReadStateVectorArgs) -> StateSummary | None:
    """The seven state words."""
    execution = find(work, args)
    if execution is None:
        return None
    return StateSummary(
        state_vector=state_vector(seen_in_lane(work, execution)),
        current_attempt_index=current_attempt_index(execution),
    )


def _first_result(args: NamesExecution) -> tuple[Key, ...]:
    # Few executions are replayed, so the result of the first generation is loaded along.
    return (key_for(ExecutionResult, f"{args.execution_id}/0"),)


@rule(GetExecutionResultArgs, reads=_first_result, query=True)
def get_execution_result(work: Work, args: GetExecutionResultArgs) -> bytes | None:
    """The result's bytes, once there is one."""
    execution = find(work, args)
    result = None if execution is None else _result_of(work, execution)
    return None if result is None else result.data


def _result_of(work: Work, execution: Execution) -> ExecutionResult | None:
    if not execution.has_result:
        return None
    return work.read(ExecutionResult, f"{execution.execution_id}/{execution.replay_count}")


@rule(ReadExecutionContextArgs, reads=lambda args: (key_for(Payload, args.execution_id),), query=True)
def read_execution_context(work: Work, args: ReadExecutionContextArgs) -> ExecutionContext:
    """What a handler is given."""
    execution = work.execution(args.execution_id)
    payload = work.read(Payload, args.execution_id)
    return ExecutionContext(
        input_payload=b"" if payload is None else payload.data,
        execution_kind=execution.execution_kind,
        tags=execution.tags,
    )


@rule(ReadRunArgs, reads=_first_result, query=True)
def read_run(work: Work, args: ReadRunArgs) -> RunView:
    """How an execution stands and, once it has ended, how it ended."""
    execution = work.execution(args.execution_id)
    result = _result_of(work, execution) if is_terminal(execution) else None
    return RunView(
        execution_id=execution.execution_id,
        execution_kind=execution.execution_kind,
        public_state=public_state(seen_in_lane(work, execution)),
        current_attempt_index=current_attempt_index(execution),
        total_attempt_count=execution.attempt_count,
        generation=execution.replay_count,
        result=None if result is None else result.data,
        result_encoding=None if result is None else result.encoding,
        failure_reason=execution.failure_reason,
        failure_category=execution.failure_category,
        cancellation_reason=execution.cancellation_reason,
        progress_pct=execution.progress_pct,
        progress_message=execution.progress_message,
        completed_at=execution.completed_at,
    )

"""Reading single facts of an execution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.contracts.ids import partition_of
from flowfabric.contracts.reads import (
    ExecCoreFields,
    GetExecutionNamespaceArgs,
    ReadCurrentAttemptIndexArgs,
    ReadExecCoreFieldsArgs,
    ReadTotalAttemptCountArgs,
    ResolveExecutionFlowIdArgs,
)
from flowfabric.core.registry import rule
from flowfabric.core.rules.reading import current_attempt_index, find
from flowfabric.core.state import blocking_detail, state_vector
from flowfabric.core.vocabulary import LeaseState

if TYPE_CHECKING:
    from flowfabric.core.records import Execution, Lease
    from flowfabric.core.work import Work


@rule(ReadCurrentAttemptIndexArgs, query=True)
def read_current_attempt_index(work: Work, args: ReadCurrentAttemptIndexArgs) -> int:
    """The index of the current attempt.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    return current_attempt_index(work.execution(args.execution_id))


@rule(ReadTotalAttemptCountArgs, query=True)
def read_total_attempt_count(work: Work, args: ReadTotalAttemptCountArgs) -> int:
    """How many attempts there were.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    return work.execution(args.execution_id).attempt_count


@rule(GetExecutionNamespaceArgs, query=True)
def get_execution_namespace(work: Work, args: GetExecutionNamespaceArgs) -> str | None:
    """The namespace of an execution that the caller may see."""
    execution = find(work, args)
    return None if execution is None else execution.namespace


@rule(ResolveExecutionFlowIdArgs, query=True)
def resolve_execution_flow_id(work: Work, args: ResolveExecutionFlowIdArgs) -> str | None:
    """The flow of an execution."""
    execution = find(work, args)
    return None if execution is None else execution.flow_id


@rule(ReadExecCoreFieldsArgs, query=True)
def read_exec_core_fields(work: Work, args: ReadExecCoreFieldsArgs) -> ExecCoreFields | None:
    """Fields of an execution as text."""
    execution = find(work, args)
    if execution is None:
        return None
    known = core_fields(execution)
    return ExecCoreFields(fields={name: _text(known.get(name)) for name in args.fields})


def core_fields(execution: Execution) -> dict[str, object]:
    """The fields of an execution by the names that callers know them under."""
    found: dict[str, object] = {name: getattr(execution, name) for name in OWN_FIELDS}
    found |= {name: getattr(execution, field) for name, field in RENAMED_FIELDS.items()}
    found |= {
        "partition_id": partition_of(execution.execution_id),
        "current_attempt_index": current_attempt_index(execution),
        "current_attempt_id": None if execution.attempt is None else execution.attempt.attempt_id,
        "blocking_detail": blocking_detail(execution),
        "delay_until": max((b.until_ms for b in execution.blockers if b.until_ms is not None), default=None),
    }
    found |= _lease_fields(execution.lease)
    return found | msgspec.structs.asdict(state_vector(execution))


def _lease_fields(lease: Lease | None) -> dict[str, object]:
    if lease is None:
        return {}
    return {
        "current_lease_id": lease.lease_id,
        "current_worker_id": lease.worker_id,
        "current_worker_instance_id": lease.worker_instance_id,
        "lease_acquired_at": lease.acquired_at,
        "lease_expires_at": lease.expires_at,
        "lease_last_renewed_at": lease.last_renewed_at,
        "lease_expired_at": lease.ended_at if lease.state is LeaseState.EXPIRED else None,
        "lease_revoked_at": lease.ended_at if lease.state is LeaseState.REVOKED else None,
        "lease_revoke_reason": lease.revoke_reason,
    }


def _text(value: object) -> str | None:
    return None if value is None else ",".join(value) if isinstance(value, tuple) else str(value)


OWN_FIELDS: Final = (
    "execution_id",
    "namespace",
    "lane_id",
    "execution_kind",
    "priority",
    "creator_identity",
    "created_at",
    "started_at",
    "completed_at",
    "last_transition_at",
    "last_mutation_at",
    "retry_count",
    "replay_count",
    "signal_count",
    "flow_id",
    "deadline_at",
    "required_capabilities",
    "progress_pct",
    "progress_message",
    "progress_updated_at",
    "failure_reason",
    "failure_category",
    "cancellation_reason",
    "cancelled_by",
)

RENAMED_FIELDS: Final = {
    "total_attempt_count": "attempt_count",
    "lease_reclaim_count": "reclaim_count",
    "current_lease_epoch": "lease_epoch",
    "current_lane": "lane_id",
    "current_suspension_id": "suspension_id",
    "current_waitpoint_id": "waitpoint_id",
    "pending_retry_reason": "retry_reason",
}
"""Names that callers know, and the fields that they are kept under."""

"""Reading executions: snapshots, states, results and pages of lists."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from flowfabric.contracts.base import Command, Value
from flowfabric.contracts.ids import (
    Amount,
    AttemptId,
    AttemptIndex,
    ExecutionId,
    FlowId,
    LaneId,
    LeaseEpoch,
    LeaseId,
    Name,
    Namespace,
    OptionalName,
    TimestampMs,
    WaitpointId,
    WorkerInstanceId,
)
from flowfabric.contracts.lanes import LaneInfo
from flowfabric.contracts.limits import EXEC_CORE_FIELDS_MAX, EXPIRED_LEASES_PAGE_MAX, PAGE_ROWS_MAX
from flowfabric.contracts.partitions import PartitionIndex
from flowfabric.contracts.states import BlockingReason, PublicState, StateVector

_PAGE = 50

PageLimit: TypeAlias = Annotated[int, Meta(ge=0, le=PAGE_ROWS_MAX)]


# One execution


class AttemptSummary(Value):
    """The current attempt."""

    attempt_id: AttemptId
    attempt_index: AttemptIndex


class LeaseSummary(Value):
    """The lease that is held now."""

    lease_epoch: LeaseEpoch
    worker_instance_id: WorkerInstanceId
    expires_at: TimestampMs
    lease_id: LeaseId
    attempt_index: AttemptIndex
    last_heartbeat_at: TimestampMs | None = None


class ExecutionSnapshot(Value):
    """One execution at one moment."""

    execution_id: ExecutionId
    flow_id: FlowId | None = None
    lane_id: LaneId
    namespace: Namespace
    public_state: PublicState
    blocking_reason: BlockingReason | None = None
    blocking_detail: str | None = None
    current_attempt: AttemptSummary | None = None
    current_lease: LeaseSummary | None = None
    current_waitpoint: WaitpointId | None = None
    created_at: TimestampMs
    last_mutation_at: TimestampMs
    total_attempt_count: Amount
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    required_capabilities: tuple[str, ...] = ()
    """What a worker must offer to run it."""


class DescribeExecutionArgs(Command[ExecutionSnapshot | None]):
    """Read one execution; ``None`` when it does not exist."""

    execution_id: ExecutionId


class ExecutionInfo(Value):
    """One execution with its full state; the three times are strings of digits on the wire."""

    execution_id: ExecutionId
    namespace: Namespace
    lane_id: LaneId
    priority: int
    execution_kind: str
    state_vector: StateVector
    public_state: PublicState
    created_at: TimestampMs
    started_at: TimestampMs | None = None
    completed_at: TimestampMs | None = None
    current_attempt_index: AttemptIndex
    flow_id: FlowId | None = None
    blocking_detail: str = ""


class ReadExecutionInfoArgs(Command[ExecutionInfo | None]):
    """Read one execution with its full state; ``None`` when it does not exist."""

    execution_id: ExecutionId


class ReadExecutionStateArgs(Command[PublicState | None]):
    """Read one execution's public state; ``None`` when it does not exist."""

    execution_id: ExecutionId


class StateSummary(Value):
    """An execution's state after a change."""

    state_vector: StateVector
    current_attempt_index: AttemptIndex


class ReadStateVectorArgs(Command[StateSummary | None]):
    """Read one execution's seven state words; ``None`` when it does not exist."""

    execution_id: ExecutionId


class GetExecutionResultArgs(Command[bytes | None]):
    """Read the result; ``None`` when there is none, or not yet."""

    execution_id: ExecutionId


class ExecutionContext(Value):
    """What a handler is given."""

    input_payload: bytes
    execution_kind: str
    tags: dict[str, str] = msgspec.field(default_factory=dict)


class ReadExecutionContextArgs(Command[ExecutionContext]):
    """Read what a handler is given."""

    execution_id: ExecutionId


class ReadCurrentAttemptIndexArgs(Command[int]):
    """Read the index of the current attempt; 0 before the first claim."""

    execution_id: ExecutionId


class ReadTotalAttemptCountArgs(Command[int]):
    """Read how many attempts an execution has had."""

    execution_id: ExecutionId


class GetExecutionNamespaceArgs(Command[str | None]):
    """Read the namespace of an execution; ``None`` when it does not exist."""

    execution_id: ExecutionId


class ResolveExecutionFlowIdArgs(Command[str | None]):
    """Read the flow that an execution belongs to; ``None`` when it is in none, or does not exist."""

    execution_id: ExecutionId


class ExecCoreFields(Value):
    """Fields of an execution as text; ``None`` for one that is not set, or that there is not."""

    fields: dict[str, str | None]


class ReadExecCoreFieldsArgs(Command[ExecCoreFields | None]):
    """Read fields of an execution by their names; ``None`` when it does not exist."""

    execution_id: ExecutionId
    fields: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=EXEC_CORE_FIELDS_MAX)]


# Lists


class ListExecutionsPage(Value):
    """Execution ids: of one partition in the order of their text, of all in the store's order of keys."""

    executions: tuple[ExecutionId, ...]
    next_cursor: ExecutionId | None = None


class ListExecutionsArgs(Command[ListExecutionsPage]):
    """List executions after a cursor, of one partition or of all."""

    partition: PartitionIndex | None = None
    cursor: ExecutionId | None = None
    limit: PageLimit = _PAGE


class ExecutionSummary(Value):
    """One row of a list; the time is a string of digits on the wire."""

    execution_id: ExecutionId
    namespace: Namespace
    lane_id: LaneId
    execution_kind: str
    public_state: PublicState
    priority: int
    created_at: TimestampMs


class ListExecutionsResult(Value):
    """Rows with what a list shows. The cursor is opaque."""

    executions: tuple[ExecutionSummary, ...]
    total_returned: Amount
    next_cursor: str | None = None


class ListExecutionSummariesArgs(Command[ListExecutionsResult]):
    """List executions with what a list shows, filtered by lane and state when given.

    Without a state the newest come first; with one, the order in which that state is worked off,
    and for ended executions the latest end first. One call looks at about 5,000 executions at most,
    so a page of a rare lane may be short, or empty, and have a cursor to go on with all the same.
    """

    lane_id: LaneId | None = None
    public_state: PublicState | None = None
    cursor: OptionalName | None = None
    limit: PageLimit = _PAGE


class SuspendedExecutionEntry(Value):
    """A suspended execution; ``suspended_at_ms`` is its deadline, 9999999999999 for none."""

    execution_id: ExecutionId
    suspended_at_ms: TimestampMs
    reason: str


class ListSuspendedPage(Value):
    """Suspended executions, those with the earliest deadline first."""

    entries: tuple[SuspendedExecutionEntry, ...]
    next_cursor: ExecutionId | None = None


class ListSuspendedArgs(Command[ListSuspendedPage]):
    """List suspended executions after a cursor, of one partition or of all."""

    partition: PartitionIndex | None = None
    cursor: ExecutionId | None = None
    limit: PageLimit = _PAGE


class ListLanesPage(Value):
    """Lane names in order, and what operators have said about these lanes."""

    lanes: tuple[LaneId, ...]
    next_cursor: LaneId | None = None
    details: tuple[LaneInfo, ...] = ()
    """One for each lane; for a caller without a namespace, one for each that has a lane of the name."""


class ListLanesArgs(Command[ListLanesPage]):
    """List the lanes that have executions, ended ones included, or were set by an operator."""

    cursor: LaneId | None = None
    limit: PageLimit = _PAGE


class ExpiredLeaseEntry(Value):
    """A lease that has lapsed and was not taken over yet."""

    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    worker_instance_id: WorkerInstanceId
    expires_at: TimestampMs
    attempt_index: AttemptIndex


class ListExpiredLeasesPage(Value):
    """Lapsed leases, the oldest first. The cursor is opaque."""

    entries: tuple[ExpiredLeaseEntry, ...]
    next_cursor: str | None = None


class ListExpiredLeasesArgs(Command[ListExpiredLeasesPage]):
    """List lapsed leases after a cursor."""

    cursor: OptionalName | None = None
    limit: Annotated[int, Meta(ge=1, le=EXPIRED_LEASES_PAGE_MAX)] = PAGE_ROWS_MAX


class ServerTime(Value):
    """The store's clock."""

    now_ms: TimestampMs


class ServerTimeArgs(Command[ServerTime]):
    """Read the store's clock."""

"""Leases: grants, claims, renewal, expiry, revocation and reclaim."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.handles import Handle
from flowfabric.contracts.ids import (
    Amount,
    AttemptId,
    AttemptIndex,
    Capabilities,
    DurationMs,
    ExecutionId,
    JsonText,
    LaneId,
    LeaseEpoch,
    LeaseFence,
    LeaseId,
    Name,
    OptionalName,
    Text,
    TimestampMs,
    WorkerId,
    WorkerInstanceId,
)
from flowfabric.contracts.limits import (
    CLAIM_BATCH_MAX,
    GRANT_TTL_MS_MAX,
    LEASE_HISTORY_GRACE_MS,
    LEASE_TTL_MS_MAX,
    PAGE_ROWS_MAX,
)
from flowfabric.contracts.partitions import Partition, PartitionKey, parse_partition_key
from flowfabric.contracts.policy import ExecutionPolicy, check_capabilities
from flowfabric.contracts.states import AttemptType

LeaseTtlMs: TypeAlias = Annotated[int, Meta(ge=1, le=LEASE_TTL_MS_MAX)]
GrantTtlMs: TypeAlias = Annotated[int, Meta(ge=1, le=GRANT_TTL_MS_MAX)]


# Grants


class ClaimGrant(Value):
    """A short-lived ticket to claim one execution."""

    execution_id: ExecutionId
    partition_key: PartitionKey
    grant_key: str
    expires_at_ms: TimestampMs

    def partition(self) -> Partition:
        """Parse the partition key."""
        return parse_partition_key(self.partition_key)


class ResumeGrant(ClaimGrant):
    """A short-lived ticket to continue one interrupted attempt."""

    lane_id: LaneId


class ReclaimGrant(ClaimGrant):
    """A short-lived ticket to take over one execution whose lease has lapsed."""

    lane_id: LaneId


class ClaimGrantIssued(Outcome, tag="Granted"):
    """The worker may claim the execution until the grant expires."""

    execution_id: ExecutionId


IssueClaimGrantResult: TypeAlias = ClaimGrantIssued


class IssueClaimGrantArgs(Command[IssueClaimGrantResult]):
    """Reserve one waiting execution for one worker."""

    execution_id: ExecutionId
    lane_id: LaneId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    partition: Partition | None = None
    capability_hash: OptionalName | None = None
    route_snapshot_json: JsonText | None = None
    admission_summary: Text | None = None
    worker_capabilities: Capabilities = frozenset()
    grant_ttl_ms: GrantTtlMs
    now: TimestampMs | None = None

    def validate(self) -> None:
        """Check the worker's capabilities."""
        check_capabilities(self.worker_capabilities, "worker")


class EligibleExecutions(Value):
    """Execution ids in the order in which they would be claimed."""

    executions: tuple[ExecutionId, ...]


class ScanEligibleArgs(Command[EligibleExecutions]):
    """List the executions of a lane that wait for a worker; nothing is reserved."""

    lane_id: LaneId
    partition: Partition | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ROWS_MAX)]


class NoWork(Outcome, tag="NoWork"):
    """Nothing in the lane waits for this worker."""


class WorkGranted(Outcome, tag="Granted"):
    """An execution was chosen and reserved for this worker."""

    grant: ClaimGrant


ClaimForWorkerOutcome: TypeAlias = NoWork | WorkGranted


class ClaimForWorkerArgs(Command[ClaimForWorkerOutcome]):
    """Choose one execution of a lane for a worker and reserve it."""

    lane_id: LaneId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    worker_capabilities: Capabilities = frozenset()
    grant_ttl_ms: GrantTtlMs

    def validate(self) -> None:
        """Check the worker's capabilities."""
        check_capabilities(self.worker_capabilities, "worker")


# Claims


class ClaimedExecution(Outcome, tag="Claimed"):
    """The worker owns a new attempt of the execution."""

    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_index: AttemptIndex
    attempt_id: AttemptId
    attempt_type: AttemptType
    lease_expires_at: TimestampMs
    handle: Handle


ClaimExecutionResult: TypeAlias = ClaimedExecution


class ClaimExecutionArgs(Command[ClaimExecutionResult]):
    """Turn a grant into a lease with a new attempt.

    ``attempt_policy_json`` is the handler's policy; it is stored when the execution has none.
    """

    execution_id: ExecutionId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    lane_id: LaneId
    lease_id: LeaseId
    lease_ttl_ms: LeaseTtlMs
    attempt_id: AttemptId
    expected_attempt_index: AttemptIndex
    attempt_policy_json: JsonText = ""
    attempt_timeout_ms: DurationMs | None = None
    execution_deadline_at: TimestampMs | None = None
    now: TimestampMs | None = None


class ClaimedResumedExecution(Outcome, tag="Claimed"):
    """The worker owns the interrupted attempt again, under a new epoch."""

    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_index: AttemptIndex
    attempt_id: AttemptId
    lease_expires_at: TimestampMs
    handle: Handle


ClaimResumedExecutionResult: TypeAlias = ClaimedResumedExecution


class ClaimResumedExecutionArgs(Command[ClaimResumedExecutionResult]):
    """Turn a grant into a lease on the interrupted attempt."""

    execution_id: ExecutionId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    lane_id: LaneId
    lease_id: LeaseId
    lease_ttl_ms: LeaseTtlMs
    current_attempt_index: AttemptIndex
    remaining_attempt_timeout_ms: DurationMs | None = None
    now: TimestampMs | None = None


class GrantedAndClaimed(Outcome, tag="Claimed"):
    """The worker owns the execution, whether its attempt is new or was interrupted."""

    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_index: AttemptIndex
    attempt_id: AttemptId
    attempt_type: AttemptType
    resumed: bool
    lease_expires_at: TimestampMs
    handle: Handle


IssueGrantAndClaimResult: TypeAlias = GrantedAndClaimed


class IssueGrantAndClaimArgs(Command[IssueGrantAndClaimResult]):
    """Claim one named execution in one step, without asking for capabilities."""

    execution_id: ExecutionId
    lane_id: LaneId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    lease_id: LeaseId | None = None
    attempt_id: AttemptId | None = None
    lease_ttl_ms: LeaseTtlMs
    attempt_policy_json: JsonText = ""
    now: TimestampMs | None = None


class ClaimedWork(Value):
    """One claim with everything a handler needs to start."""

    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_index: AttemptIndex
    attempt_id: AttemptId
    attempt_type: AttemptType
    lease_expires_at: TimestampMs
    lease_ttl_ms: LeaseTtlMs
    lane_id: LaneId
    execution_kind: str
    input_payload: bytes
    payload_encoding: str | None = None
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    resumed: bool = False
    policy: ExecutionPolicy | None = None
    execution_deadline_at: TimestampMs | None = None
    attempt_timeout_at: TimestampMs | None = None
    generation: Amount = 0
    """How often the execution was replayed; each generation has a journal of its own."""

    @property
    def fence(self) -> LeaseFence:
        """The triple that fences the worker's writes."""
        return LeaseFence(lease_id=self.lease_id, lease_epoch=self.lease_epoch, attempt_id=self.attempt_id)


class ClaimBatchResult(Value):
    """What the worker owns now; empty when nothing was waiting."""

    claims: tuple[ClaimedWork, ...] = ()


class ClaimBatchArgs(Command[ClaimBatchResult]):
    """Claim up to ``limit`` executions of some lanes: new, resumed and lapsed ones alike."""

    lanes: Annotated[tuple[LaneId, ...], Meta(min_length=1, max_length=PAGE_ROWS_MAX)]
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    worker_capabilities: Capabilities = frozenset()
    limit: Annotated[int, Meta(ge=1, le=CLAIM_BATCH_MAX)] = 1
    lease_ttl_ms: LeaseTtlMs
    policies: dict[Name, ExecutionPolicy] = msgspec.field(default_factory=dict)
    """The worker's own policies by execution kind, for executions that bring none."""

    def validate(self) -> None:
        """Check the worker's capabilities."""
        check_capabilities(self.worker_capabilities, "worker")


# Holding and losing a lease


class LeaseRenewed(Outcome, tag="Renewed"):
    """The lease lasts until the new instant."""

    expires_at: TimestampMs


RenewLeaseResult: TypeAlias = LeaseRenewed


class RenewLeaseArgs(Command[RenewLeaseResult]):
    """Extend a live lease; an expired one is never revived."""

    execution_id: ExecutionId
    attempt_index: AttemptIndex
    fence: LeaseFence | None = None
    lease_ttl_ms: LeaseTtlMs
    lease_history_grace_ms: DurationMs = LEASE_HISTORY_GRACE_MS


class LeaseMarkedExpired(Outcome, tag="MarkedExpired"):
    """The lease had lapsed and is marked now."""


class LeaseMarkNotNeeded(Outcome, tag="AlreadySatisfied"):
    """Nothing was due; the reason says why."""

    reason: str


MarkLeaseExpiredResult: TypeAlias = LeaseMarkedExpired | LeaseMarkNotNeeded


class MarkLeaseExpiredArgs(Command[MarkLeaseExpiredResult]):
    """Mark a lease that has lapsed."""

    execution_id: ExecutionId


class LeaseWasRevoked(Outcome, tag="Revoked"):
    """The holder has lost the lease; both values are strings on the wire."""

    lease_id: LeaseId
    lease_epoch: LeaseEpoch


class LeaseAlreadyGone(Outcome, tag="AlreadySatisfied"):
    """There was no live lease to revoke; the reason says why."""

    reason: str


RevokeLeaseResult: TypeAlias = LeaseWasRevoked | LeaseAlreadyGone


class RevokeLeaseArgs(Command[RevokeLeaseResult]):
    """Take the lease from its holder. An empty expected id matches every lease."""

    execution_id: ExecutionId
    expected_lease_id: OptionalName | None = None
    worker_instance_id: WorkerInstanceId | None = None
    reason: Text


# Reclaim


class NotReclaimable(Outcome, tag="NotReclaimable"):
    """The lease is live, or the worker may not take it; the detail says which."""

    execution_id: ExecutionId
    detail: str


class ReclaimCapExceeded(Outcome, tag="ReclaimCapExceeded"):
    """The execution was reclaimed too often and has failed."""

    execution_id: ExecutionId
    reclaim_count: Amount


class ReclaimGranted(Outcome, tag="Granted"):
    """The worker may reclaim the execution until the grant expires."""

    grant: ReclaimGrant


IssueReclaimGrantResult: TypeAlias = ReclaimGranted | NotReclaimable | ReclaimCapExceeded


class IssueReclaimGrantArgs(Command[IssueReclaimGrantResult]):
    """Reserve an execution whose lease has lapsed for one worker."""

    execution_id: ExecutionId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    lane_id: LaneId
    capability_hash: OptionalName | None = None
    grant_ttl_ms: GrantTtlMs
    route_snapshot_json: JsonText | None = None
    admission_summary: Text | None = None
    worker_capabilities: Capabilities = frozenset()
    now: TimestampMs | None = None

    def validate(self) -> None:
        """Check the worker's capabilities."""
        check_capabilities(self.worker_capabilities, "worker")


class ExecutionReclaimed(Outcome, tag="Reclaimed"):
    """The worker owns a new attempt; the old one is over."""

    new_attempt_index: AttemptIndex
    new_attempt_id: AttemptId
    new_lease_id: LeaseId
    new_lease_epoch: LeaseEpoch
    lease_expires_at: TimestampMs
    handle: Handle


class ReclaimGrantNotFound(Outcome, tag="GrantNotFound"):
    """There is no grant for this worker, or it was used or has expired."""

    execution_id: ExecutionId


ReclaimExecutionResult: TypeAlias = (
    ExecutionReclaimed | NotReclaimable | ReclaimCapExceeded | ReclaimGrantNotFound
)


class ReclaimExecutionArgs(Command[ReclaimExecutionResult]):
    """Turn a reclaim grant into a lease with a new attempt."""

    execution_id: ExecutionId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    lane_id: LaneId
    capability_hash: OptionalName | None = None
    lease_id: LeaseId
    lease_ttl_ms: LeaseTtlMs
    attempt_id: AttemptId
    attempt_policy_json: JsonText = ""
    max_reclaim_count: Amount | None = None
    old_worker_instance_id: WorkerInstanceId | None = None
    current_attempt_index: AttemptIndex | None = None

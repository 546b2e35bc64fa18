"""Creating, ending, delaying, replaying and labelling executions."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome
from flowfabric.contracts.ids import (
    OPERATOR_OVERRIDE,
    Amount,
    AttemptId,
    AttemptIndex,
    CancelSource,
    ExecutionId,
    IdempotencyKey,
    JsonText,
    LaneId,
    LeaseEpoch,
    LeaseFence,
    LeaseId,
    Name,
    Namespace,
    OptionalName,
    Priority,
    TagKey,
    Tags,
    TagValue,
    Text,
    TimestampMs,
)
from flowfabric.contracts.limits import PAYLOAD_BYTES_MAX, RESULT_BYTES_MAX
from flowfabric.contracts.partitions import PartitionIndex
from flowfabric.contracts.policy import ExecutionPolicy, check_capabilities
from flowfabric.contracts.states import LifecyclePhase, PublicState
from flowfabric.errors import InvalidInput

Payload: TypeAlias = Annotated[bytes, Meta(max_length=PAYLOAD_BYTES_MAX)]
ResultPayload: TypeAlias = Annotated[bytes, Meta(max_length=RESULT_BYTES_MAX)]
Percent: TypeAlias = Annotated[int, Meta(ge=0, le=100)]


TRACE_TAGS: Final = {"traceparent": "w3c.traceparent", "tracestate": "w3c.tracestate"}
"""The tags in which the trace of a submitter travels, by the headers whose values they have."""


class ExecutionCreated(Outcome, tag="Created"):
    """The execution exists now."""

    execution_id: ExecutionId
    public_state: PublicState


class ExecutionDuplicate(Outcome, tag="Duplicate"):
    """The execution existed before; this is its id."""

    execution_id: ExecutionId


CreateExecutionResult: TypeAlias = ExecutionCreated | ExecutionDuplicate


class CreateExecutionArgs(Command[CreateExecutionResult]):
    """Admit a unit of work. The priority is clamped to 0..9000."""

    execution_id: ExecutionId
    namespace: Namespace
    lane_id: LaneId
    execution_kind: Name
    input_payload: Payload
    payload_encoding: OptionalName | None = None
    priority: Priority
    creator_identity: OptionalName
    idempotency_key: IdempotencyKey | None = None
    tags: Tags = msgspec.field(default_factory=dict)
    policy: ExecutionPolicy | None = None
    delay_until: TimestampMs | None = None
    execution_deadline_at: TimestampMs | None = None
    partition_id: PartitionIndex | None = None
    now: TimestampMs | None = None

    def validate(self) -> None:
        """Check the required capabilities."""
        if self.policy is not None and self.policy.routing_requirements is not None:
            check_capabilities(self.policy.routing_requirements.required_capabilities)


class ExecutionCompleted(Outcome, tag="Completed"):
    """The execution ended well."""

    execution_id: ExecutionId
    public_state: PublicState


CompleteExecutionResult: TypeAlias = ExecutionCompleted


class CompleteExecutionArgs(Command[CompleteExecutionResult]):
    """End the execution well. Without a fence the source must be ``operator_override``."""

    execution_id: ExecutionId
    fence: LeaseFence | None = None
    attempt_index: AttemptIndex
    result_payload: ResultPayload | None = None
    result_encoding: OptionalName | None = None
    source: CancelSource = OPERATOR_OVERRIDE
    now: TimestampMs | None = None


class RetryScheduled(Outcome, tag="RetryScheduled"):
    """The attempt failed and another one will be made."""

    delay_until: TimestampMs
    next_attempt_index: AttemptIndex


class TerminalFailed(Outcome, tag="TerminalFailed"):
    """The attempt failed and no retry is left."""


FailExecutionResult: TypeAlias = RetryScheduled | TerminalFailed


class FailExecutionArgs(Command[FailExecutionResult]):
    """End the attempt with a failure; the stored policy decides about a retry."""

    execution_id: ExecutionId
    fence: LeaseFence | None = None
    attempt_index: AttemptIndex
    failure_reason: Text
    failure_category: OptionalName
    retry_policy_json: JsonText = ""
    next_attempt_policy_json: JsonText = ""
    source: CancelSource = OPERATOR_OVERRIDE


class ExecutionCancelled(Outcome, tag="Cancelled"):
    """The execution is cancelled. ``cancelled_from`` is the phase it was in."""

    execution_id: ExecutionId
    public_state: PublicState
    cancelled_from: LifecyclePhase | None = None


CancelExecutionResult: TypeAlias = ExecutionCancelled


class CancelExecutionArgs(Command[CancelExecutionResult]):
    """Cancel an execution that has not ended."""

    execution_id: ExecutionId
    reason: Text
    source: CancelSource = OPERATOR_OVERRIDE
    lease_id: LeaseId | None = None
    lease_epoch: LeaseEpoch | None = None
    attempt_id: AttemptId | None = None
    now: TimestampMs | None = None


class ExecutionDelayed(Outcome, tag="Delayed"):
    """The execution sleeps and its lease is released."""

    execution_id: ExecutionId
    public_state: PublicState


DelayExecutionResult: TypeAlias = ExecutionDelayed


class DelayExecutionArgs(Command[DelayExecutionResult]):
    """Put running work to sleep; the same attempt continues afterwards."""

    execution_id: ExecutionId
    fence: LeaseFence | None = None
    attempt_index: AttemptIndex
    delay_until: TimestampMs
    source: CancelSource = OPERATOR_OVERRIDE
    now: TimestampMs | None = None


class MovedToWaitingChildren(Outcome, tag="Moved"):
    """The execution waits for its dependencies and its lease is released."""

    execution_id: ExecutionId
    public_state: PublicState


MoveToWaitingChildrenResult: TypeAlias = MovedToWaitingChildren


class MoveToWaitingChildrenArgs(Command[MoveToWaitingChildrenResult]):
    """Let running work wait for its dependencies; the same attempt continues afterwards."""

    execution_id: ExecutionId
    fence: LeaseFence | None = None
    attempt_index: AttemptIndex
    source: CancelSource = OPERATOR_OVERRIDE
    now: TimestampMs | None = None


class PriorityChanged(Outcome, tag="Changed"):
    """The execution has its new place in the queue."""

    execution_id: ExecutionId


ChangePriorityResult: TypeAlias = PriorityChanged


class ChangePriorityArgs(Command[ChangePriorityResult]):
    """Change the priority of waiting work. The value is clamped to 0..9000."""

    execution_id: ExecutionId
    new_priority: Priority
    lane_id: LaneId | None = None
    now: TimestampMs | None = None


class ProgressUpdated(Outcome, tag="Updated"):
    """The progress is stored; the lease is not extended."""


UpdateProgressResult: TypeAlias = ProgressUpdated


class UpdateProgressArgs(Command[UpdateProgressResult]):
    """Report how far the attempt is. What is left unset keeps its value."""

    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_id: AttemptId
    progress_pct: Percent | None = None
    progress_message: Text | None = None
    now: TimestampMs | None = None


class ExpireReason(StrEnum):
    """Which deadline struck."""

    ATTEMPT_TIMEOUT = "attempt_timeout"
    EXECUTION_DEADLINE = "execution_deadline"


class ExecutionExpired(Outcome, tag="Expired"):
    """The deadline has struck and was acted upon."""

    execution_id: ExecutionId


class ExecutionAlreadyTerminal(Outcome, tag="AlreadyTerminal"):
    """The execution has ended, is gone, or its deadline is not due."""


ExpireExecutionResult: TypeAlias = ExecutionExpired | ExecutionAlreadyTerminal


class ExpireExecutionArgs(Command[ExpireExecutionResult]):
    """Act on a deadline, which is checked again first."""

    execution_id: ExecutionId
    expire_reason: ExpireReason


class ExecutionReplayed(Outcome, tag="Replayed"):
    """The ended execution will run again in a new attempt."""

    public_state: PublicState


ReplayExecutionResult: TypeAlias = ExecutionReplayed


class ReplayExecutionArgs(Command[ReplayExecutionResult]):
    """Run an ended execution again, with an empty journal unless ``keep_journal`` is set."""

    execution_id: ExecutionId
    keep_journal: bool = False
    now: TimestampMs | None = None


class DelayedPromoted(Outcome, tag="Promoted"):
    """The delay is over and the execution waits for a worker."""

    execution_id: ExecutionId


class DelayedNotPromoted(Outcome, tag="AlreadySatisfied"):
    """Nothing was due; the reason says why."""

    reason: str


PromoteDelayedResult: TypeAlias = DelayedPromoted | DelayedNotPromoted


class PromoteDelayedArgs(Command[PromoteDelayedResult]):
    """Make an execution claimable whose delay is over."""

    execution_id: ExecutionId
    now: TimestampMs | None = None


class TagsSet(Outcome, tag="Ok"):
    """The tags are stored; ``count`` is how many were given."""

    count: Amount


SetExecutionTagsResult: TypeAlias = TagsSet


class SetExecutionTagsArgs(Command[SetExecutionTagsResult]):
    """Add or replace tags; tags that are not named stay."""

    execution_id: ExecutionId
    tags: Tags

    def validate(self) -> None:
        """Refuse an empty list."""
        if not self.tags:
            raise InvalidInput(field="tags", value="{}", rule="at least one tag")


class SetExecutionTagArgs(Command[SetExecutionTagsResult]):
    """Add or replace one tag."""

    execution_id: ExecutionId
    key: TagKey
    value: TagValue


class GetExecutionTagArgs(Command[str | None]):
    """Read one tag; ``None`` when it is not set."""

    execution_id: ExecutionId
    key: TagKey

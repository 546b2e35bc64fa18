"""Flows: executions that belong together, and the dependencies between them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.executions import CreateExecutionArgs, SetExecutionTagsResult
from flowfabric.contracts.ids import (
    Amount,
    EdgeId,
    ExecutionId,
    FlowId,
    Name,
    Namespace,
    OptionalName,
    TagKey,
    Tags,
    TagValue,
    Text,
    TimestampMs,
)
from flowfabric.contracts.limits import (
    EDGES_PER_REQUEST_MAX,
    MEMBERS_PER_REQUEST_MAX,
    PAGE_ROWS_MAX,
    SUBMIT_BYTES_MAX,
    U32_MAX,
)
from flowfabric.contracts.partitions import PartitionIndex
from flowfabric.contracts.states import PublicState
from flowfabric.errors import InvalidInput

SUCCESS_ONLY = "success_only"
ALL_REQUIRED = "all_required"
ENGINE = "engine"

_PAGE = 50

Count32: TypeAlias = Annotated[int, Meta(ge=0, le=U32_MAX)]
NewExecutions: TypeAlias = Annotated[
    tuple[CreateExecutionArgs, ...], Meta(min_length=1, max_length=MEMBERS_PER_REQUEST_MAX)
]
QuorumSize: TypeAlias = Annotated[int, Meta(ge=1, le=U32_MAX)]


# Policies of joins


class OnSatisfied(StrEnum):
    """What becomes of the upstreams that are still at work once a join is decided."""

    CANCEL_REMAINING = "cancel_remaining"
    LET_RUN = "let_run"


class AllOfEdges(Value, tag_field="kind", tag="all_of"):
    """Every upstream has to succeed."""


class AnyOfEdges(Value, tag_field="kind", tag="any_of"):
    """One upstream has to succeed."""

    on_satisfied: OnSatisfied = OnSatisfied.CANCEL_REMAINING


class QuorumOfEdges(Value, tag_field="kind", tag="quorum"):
    """``k`` upstreams have to succeed."""

    k: QuorumSize
    on_satisfied: OnSatisfied = OnSatisfied.CANCEL_REMAINING


EdgeDependencyPolicy: TypeAlias = AllOfEdges | AnyOfEdges | QuorumOfEdges


class EdgeGroupState(StrEnum):
    """Whether a join is decided."""

    PENDING = "pending"
    SATISFIED = "satisfied"
    IMPOSSIBLE = "impossible"
    CANCELLED = "cancelled"


class EdgeGroupSnapshot(Value):
    """The join before one execution: all its incoming edges together."""

    downstream_execution_id: ExecutionId
    policy: EdgeDependencyPolicy
    total_deps: Count32
    satisfied_count: Count32
    failed_count: Count32
    skipped_count: Count32
    running_count: Count32
    group_state: EdgeGroupState


# Flows and their members


class FlowCreated(Outcome, tag="Created"):
    """The flow exists now."""

    flow_id: FlowId


class FlowExists(Outcome, tag="AlreadySatisfied"):
    """The flow existed before."""

    flow_id: FlowId


CreateFlowResult: TypeAlias = FlowCreated | FlowExists


class CreateFlowArgs(Command[CreateFlowResult]):
    """Open a flow, to which executions and edges can be added."""

    flow_id: FlowId
    flow_kind: Name
    namespace: Namespace
    now: TimestampMs | None = None


class MemberAdded(Outcome, tag="Added"):
    """The execution belongs to the flow now."""

    execution_id: ExecutionId
    new_node_count: Count32


class MemberExists(Outcome, tag="AlreadyMember"):
    """The execution belonged to the flow before."""

    execution_id: ExecutionId
    node_count: Count32


AddExecutionToFlowResult: TypeAlias = MemberAdded | MemberExists


class AddExecutionToFlowArgs(Command[AddExecutionToFlowResult]):
    """Make an execution a member of a flow. Both have to be in the same partition."""

    flow_id: FlowId
    execution_id: ExecutionId
    now: TimestampMs | None = None


# Cancelling


class FlowCancellationPolicy(StrEnum):
    """What a cancelled flow does to its members."""

    FLOW_ONLY = "flow_only"
    CANCEL_FLOW_ONLY = "cancel_flow_only"
    CANCEL_ALL = "cancel_all"
    CANCEL_PENDING = "cancel_pending"


class FlowCancelled(Outcome, tag="Cancelled"):
    """The flow is cancelled, and so are all members that its policy cancels.

    At most the first thousand members are named.
    """

    cancellation_policy: str
    member_execution_ids: tuple[str, ...]


class CancellationScheduled(Outcome, tag="CancellationScheduled"):
    """The flow is cancelled; its members are being cancelled. The first thousand are named."""

    cancellation_policy: str
    member_count: Count32
    member_execution_ids: tuple[str, ...]


class PartiallyCancelled(Outcome, tag="PartiallyCancelled"):
    """The flow is cancelled; some members could not be cancelled yet and are tried again.

    The first thousand members are named, and all that could not be cancelled.
    """

    cancellation_policy: str
    member_execution_ids: tuple[str, ...]
    failed_member_execution_ids: tuple[str, ...]


CancelFlowResult: TypeAlias = FlowCancelled | CancellationScheduled | PartiallyCancelled


class CancelFlowArgs(Command[CancelFlowResult]):
    """Cancel a flow and, as the policy says, its members; ``wait`` to know what became of them."""

    flow_id: FlowId
    reason: Text
    cancellation_policy: FlowCancellationPolicy
    wait: bool = False
    now: TimestampMs | None = None


class FlowCancelStarted(Outcome, tag="Cancelled"):
    """This call has cancelled the flow. These are its first thousand members."""

    cancellation_policy: str
    member_execution_ids: tuple[str, ...]
    member_count: Count32 = 0
    """How many members there are in all."""


class FlowAlreadyEnded(Outcome, tag="AlreadyTerminal"):
    """The flow had ended before; this is what is stored about it, and its first thousand members."""

    stored_cancellation_policy: str | None
    stored_cancel_reason: str | None
    member_execution_ids: tuple[str, ...]


CancelFlowHeader: TypeAlias = FlowCancelStarted | FlowAlreadyEnded


class CancelFlowHeaderArgs(Command[CancelFlowHeader]):
    """Only mark the flow and the members to cancel; a background duty cancels those."""

    flow_id: FlowId
    reason: Text
    cancellation_policy: FlowCancellationPolicy
    now: TimestampMs | None = None


class CancelMemberAcknowledged(Outcome, tag="Acknowledged"):
    """The member is not on the list of those to cancel any more, or never was."""


class AckCancelMemberArgs(Command[CancelMemberAcknowledged]):
    """Take one member off the list of those that a cancelled flow has still to cancel."""

    flow_id: FlowId
    execution_id: ExecutionId


# Edges


class EdgeStaged(Outcome, tag="Staged"):
    """The edge is in the graph and holds its downstream back.

    The end of its upstream counts once the edge is applied. Stage all edges of a join before the
    first is applied, so that it is not decided by some of them.
    """

    edge_id: EdgeId
    new_graph_revision: Amount


StageDependencyEdgeResult: TypeAlias = EdgeStaged


class StageDependencyEdgeArgs(Command[StageDependencyEdgeResult]):
    """Put an edge into the graph of a flow whose revision the caller knows."""

    flow_id: FlowId
    edge_id: EdgeId
    upstream_execution_id: ExecutionId
    downstream_execution_id: ExecutionId
    dependency_kind: OptionalName = SUCCESS_ONLY
    data_passing_ref: OptionalName | None = None
    expected_graph_revision: Amount
    now: TimestampMs | None = None

    def validate(self) -> None:
        """Refuse kinds of dependencies that there are not."""
        _require_known(self.dependency_kind)


class DependencyApplied(Outcome, tag="Applied"):
    """The downstream depends on the upstream now."""

    unsatisfied_count: Count32


class DependencyAlreadyApplied(Outcome, tag="AlreadyApplied"):
    """The edge was applied before."""


ApplyDependencyToChildResult: TypeAlias = DependencyApplied | DependencyAlreadyApplied


class ApplyDependencyToChildArgs(Command[ApplyDependencyToChildResult]):
    """Let the downstream of a staged edge depend on it. An upstream that has ended counts at once."""

    flow_id: FlowId
    edge_id: EdgeId
    downstream_execution_id: ExecutionId
    upstream_execution_id: ExecutionId
    graph_revision: Amount
    dependency_kind: OptionalName = SUCCESS_ONLY
    data_passing_ref: OptionalName | None = None
    now: TimestampMs | None = None

    def validate(self) -> None:
        """Refuse kinds of dependencies that there are not."""
        _require_known(self.dependency_kind)


class DependencySatisfied(Outcome, tag="Satisfied"):
    """The upstream has succeeded."""


class DependencyImpossible(Outcome, tag="Impossible"):
    """The upstream has ended without success."""


class DependencyAlreadyResolved(Outcome, tag="AlreadyResolved"):
    """The edge was resolved before."""


ResolveDependencyResult: TypeAlias = DependencySatisfied | DependencyImpossible | DependencyAlreadyResolved


class ResolveDependencyArgs(Command[ResolveDependencyResult]):
    """Resolve an edge whose upstream has ended. The outcome has to be the upstream's own."""

    flow_id: FlowId
    edge_id: EdgeId
    upstream_outcome: Name
    now: TimestampMs | None = None


class NewEdge(Value):
    """One edge to add."""

    edge_id: EdgeId
    upstream_execution_id: ExecutionId
    downstream_execution_id: ExecutionId
    data_passing_ref: OptionalName | None = None


class GroupPolicy(Value):
    """How the incoming edges of one execution are joined."""

    downstream_execution_id: ExecutionId
    policy: EdgeDependencyPolicy


class EdgesAdded(Outcome, tag="Added"):
    """All edges are in the graph and count."""

    edge_count: Count32
    new_graph_revision: Amount


AddEdgesResult: TypeAlias = EdgesAdded


class AddEdgesArgs(Command[AddEdgesResult]):
    """Add edges and the policies of their joins, all or none; ``seal`` closes the graph for good.

    Only a sealed flow ends by itself, because only then it is known that no member follows. It has
    completed if every member that no other depends on has succeeded, and else it has failed.
    """

    flow_id: FlowId
    edges: Annotated[tuple[NewEdge, ...], Meta(max_length=EDGES_PER_REQUEST_MAX)] = ()
    groups: Annotated[tuple[GroupPolicy, ...], Meta(max_length=EDGES_PER_REQUEST_MAX)] = ()
    seal: bool = False
    expected_graph_revision: Amount | None = None

    def validate(self) -> None:
        """Refuse an edge or a join that is named twice."""
        _require_distinct("edges", [edge.edge_id for edge in self.edges])
        _require_distinct("groups", [group.downstream_execution_id for group in self.groups])


class FlowSubmitted(Outcome, tag="Submitted"):
    """The flow exists with all its members, joined as asked."""

    flow_id: FlowId
    execution_ids: tuple[ExecutionId, ...]


SubmitFlowResult: TypeAlias = FlowSubmitted | FlowExists


class SubmitFlowArgs(Command[SubmitFlowResult]):
    """Create a flow with its members, edges and joins in one step, and seal it.

    No member can be claimed before its edges are there, as it can when they are added one by one.
    """

    flow_id: FlowId
    flow_kind: Name
    namespace: Namespace
    executions: NewExecutions
    edges: Annotated[tuple[NewEdge, ...], Meta(max_length=EDGES_PER_REQUEST_MAX)] = ()
    groups: Annotated[tuple[GroupPolicy, ...], Meta(max_length=EDGES_PER_REQUEST_MAX)] = ()
    seal: bool = True

    def validate(self) -> None:
        """Refuse what is named twice, what is too large, and idempotency keys.

        The flow's id is that of the request.
        """
        _require_distinct("executions", [execution.execution_id for execution in self.executions])
        _require_distinct("edges", [edge.edge_id for edge in self.edges])
        _require_distinct("groups", [group.downstream_execution_id for group in self.groups])
        payload_bytes = 0
        for execution in self.executions:
            execution.validate()
            payload_bytes += len(execution.input_payload)
            if execution.idempotency_key:
                raise InvalidInput(
                    field="executions", value=execution.execution_id, rule="without idempotency keys"
                )
        if payload_bytes > SUBMIT_BYTES_MAX:
            raise InvalidInput(
                field="executions",
                value=f"{payload_bytes} bytes of input",
                rule=f"at most {SUBMIT_BYTES_MAX} in all; build larger flows step by step",
            )


class EdgeGroupPolicySet(Outcome, tag="Set"):
    """The policy is stored."""


class EdgeGroupPolicyAlreadySet(Outcome, tag="AlreadySet"):
    """The same policy was stored before."""


SetEdgeGroupPolicyResult: TypeAlias = EdgeGroupPolicySet | EdgeGroupPolicyAlreadySet


class SetEdgeGroupPolicyArgs(Command[SetEdgeGroupPolicyResult]):
    """Say how the incoming edges of an execution are joined, before the first one is staged."""

    flow_id: FlowId
    downstream_execution_id: ExecutionId
    policy: EdgeDependencyPolicy
    now: TimestampMs | None = None


# Eligibility


class BlockedPromoted(Outcome, tag="Promoted"):
    """No dependency holds the execution back."""


PromoteBlockedToEligibleResult: TypeAlias = BlockedPromoted


class PromoteBlockedToEligibleArgs(Command[PromoteBlockedToEligibleResult]):
    """Make sure that no dependency holds an execution back whose join is satisfied."""

    execution_id: ExecutionId
    now: TimestampMs | None = None


class EligibilityStatus(Outcome, tag="Status"):
    """What the dependencies of an execution say."""

    status: str
    """``eligible``, ``blocked_by_dependencies``, ``impossible``, ``not_runnable``, ``terminal`` or
    ``not_found``."""


EvaluateFlowEligibilityResult: TypeAlias = EligibilityStatus


class EvaluateFlowEligibilityArgs(Command[EvaluateFlowEligibilityResult]):
    """Read whether the dependencies of an execution let it run."""

    execution_id: ExecutionId


class CompletionCascaded(Outcome, tag="Cascaded"):
    """So many edges were resolved; so many downstreams were skipped because of it."""

    resolved: Count32
    skipped: Count32


CascadeCompletionResult: TypeAlias = CompletionCascaded


class CascadeCompletionArgs(Command[CascadeCompletionResult]):
    """Resolve the outgoing edges of an execution that has ended; what is resolved stays as it is."""

    execution_id: ExecutionId


# Tags


class SetFlowTagsArgs(Command[SetExecutionTagsResult]):
    """Add or replace tags of a flow; tags that are not named stay."""

    flow_id: FlowId
    tags: Tags

    def validate(self) -> None:
        """Refuse an empty list."""
        if not self.tags:
            raise InvalidInput(field="tags", value="{}", rule="at least one tag")


class SetFlowTagArgs(Command[SetExecutionTagsResult]):
    """Add or replace one tag of a flow."""

    flow_id: FlowId
    key: TagKey
    value: TagValue


class GetFlowTagArgs(Command[str | None]):
    """Read one tag of a flow; ``None`` when it is not set."""

    flow_id: FlowId
    key: TagKey


# Reads


class FlowSnapshot(Value):
    """One flow at one moment."""

    flow_id: FlowId
    flow_kind: str
    namespace: Namespace
    public_flow_state: str
    graph_revision: Amount
    node_count: Count32
    edge_count: Count32
    created_at: TimestampMs
    last_mutation_at: TimestampMs
    cancelled_at: TimestampMs | None = None
    cancel_reason: str | None = None
    cancellation_policy: str | None = None
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    edge_groups: tuple[EdgeGroupSnapshot, ...] = ()
    """The joins of the first 1,000 members; ``list_flow_members`` has all of them, page by page."""
    sealed: bool = False
    outcomes: dict[str, int] = msgspec.field(default_factory=dict)
    """How many members have ended in which way."""


class DescribeFlowArgs(Command[FlowSnapshot | None]):
    """Read one flow with the joins of its first thousand members; ``None`` when it does not exist."""

    flow_id: FlowId


class FlowMemberInfo(Value):
    """One member of a flow, and the join before it."""

    position: Amount
    execution_id: ExecutionId
    execution_kind: str
    public_state: PublicState
    cancel_requested: bool = False
    """True while the cancelled flow has still to cancel this member."""
    join: EdgeGroupSnapshot | None = None
    """None for a member without incoming edges."""


class ListFlowMembersPage(Value):
    """Members in the order in which they were added."""

    members: tuple[FlowMemberInfo, ...]
    next_cursor: Amount | None = None


class ListFlowMembersArgs(Command[ListFlowMembersPage | None]):
    """List the members of a flow after a position; ``None`` when the flow does not exist."""

    flow_id: FlowId
    cursor: Amount | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ROWS_MAX)] = _PAGE


class FlowStatus(StrEnum):
    """Whether a flow is at work, and how it ended."""

    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class FlowSummary(Value):
    """What a list shows of a flow."""

    flow_id: FlowId
    created_at: TimestampMs
    status: FlowStatus
    flow_kind: str = ""
    public_flow_state: str = ""
    node_count: Amount = 0
    ended_count: Amount = 0
    """How many members have ended, in whatever way."""


class ListFlowsPage(Value):
    """A page of flows in the order of their ids."""

    flows: tuple[FlowSummary, ...]
    next_cursor: FlowId | None = None


class ListFlowsArgs(Command[ListFlowsPage]):
    """List flows after a cursor, of one partition or of all.

    Those of one partition come in the order of their ids, those of all in the store's order of
    keys. One call looks at about 5,000 flows at most, so where others have most of them a page may
    be short, or empty, and have a cursor to go on with all the same.
    """

    partition: PartitionIndex | None = None
    cursor: FlowId | None = None
    limit: Annotated[int, Meta(ge=0, le=PAGE_ROWS_MAX)] = _PAGE


class EdgeSnapshot(Value):
    """One dependency of one execution on another."""

    edge_id: EdgeId
    flow_id: FlowId
    upstream_execution_id: ExecutionId
    downstream_execution_id: ExecutionId
    dependency_kind: str
    satisfaction_condition: str
    data_passing_ref: str | None = None
    edge_state: str
    created_at: TimestampMs
    created_by: str


class DescribeEdgeArgs(Command[EdgeSnapshot | None]):
    """Read one edge; ``None`` when it does not exist."""

    flow_id: FlowId
    edge_id: EdgeId


class OutgoingEdges(Value, tag="Outgoing"):
    """The edges that leave an execution."""

    from_node: ExecutionId

    @property
    def subject(self) -> ExecutionId:
        """The execution whose edges are meant."""
        return self.from_node


class IncomingEdges(Value, tag="Incoming"):
    """The edges that lead to an execution."""

    to_node: ExecutionId

    @property
    def subject(self) -> ExecutionId:
        """The execution whose edges are meant."""
        return self.to_node


EdgeDirection: TypeAlias = OutgoingEdges | IncomingEdges


class EdgeList(Value):
    """Edges in the order in which they were staged."""

    edges: tuple[EdgeSnapshot, ...]


class ListEdgesArgs(Command[EdgeList]):
    """List the edges at one side of an execution."""

    flow_id: FlowId
    direction: EdgeDirection


class ParentResult(Value):
    """The result of one upstream that has succeeded."""

    edge_id: EdgeId
    upstream_execution_id: ExecutionId
    name: str
    """The edge's ``data_passing_ref``, which asks for the result."""
    result: bytes | None = None
    encoding: str | None = None


class ParentResults(Value):
    """What the upstreams of an execution hand down to it, in the order of the edges."""

    results: tuple[ParentResult, ...]


class ReadParentResultsArgs(Command[ParentResults]):
    """Read what the satisfied edges with a ``data_passing_ref`` hand down to an execution."""

    execution_id: ExecutionId


def _require_known(dependency_kind: str) -> None:
    if dependency_kind != SUCCESS_ONLY:
        raise InvalidInput(field="dependency_kind", value=repr(dependency_kind[:64]), rule="success_only")


def _require_distinct(field: str, ids: list[str]) -> None:
    if len(set(ids)) < len(ids):
        raise InvalidInput(field=field, value=str(len(ids)), rule="none of them named twice")

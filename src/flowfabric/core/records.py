"""What the engine remembers: one struct per kind of record.

A record's key is ``"<kind>/<id>"``. Keys that belong to an execution contain the execution id,
and with it the partition tag, so everything one command writes shares a partition.

The rule this module keeps: nested values are frozen and containers are replaced, never changed
in place. A shallow copy of a record is therefore a full copy. Fields are only ever added, with
a default, so that records written by another version can be read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from flowfabric.contracts.budgets import EnforcementMode, OnHardLimit, OnSoftLimit
from flowfabric.contracts.flows import AllOfEdges, EdgeDependencyPolicy, EdgeGroupState
from flowfabric.contracts.ids import flow_partition
from flowfabric.contracts.partitions import (
    BUDGET_PARTITIONS,
    QUOTA_PARTITIONS,
    Partition,
    partition_index,
)
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.states import (
    AttemptLifecycle,
    AttemptType,
    BlockingReason,
    LaneState,
    LifecyclePhase,
    TerminalOutcome,
)
from flowfabric.core.vocabulary import BlockerKind, Continuation, GrantKind, LeaseState

Key = str


class LastRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The latest command that changed a record, and what it was answered."""

    request_id: str
    outcome: bytes
    """May hold a waitpoint token, so it is never shown."""
    operation: str = ""
    """The command's type. The same id with another command is another request."""

    def __repr__(self) -> str:
        shown = f"request_id={self.request_id!r}, operation={self.operation!r}"
        return f"LastRequest({shown}, outcome=<{len(self.outcome)} bytes>)"


class Record(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """Base of all records."""

    KIND: ClassVar[str]
    LARGE: ClassVar[bool] = False
    """True for records that hold payloads: stores keep them apart from the small ones."""

    last_request: LastRequest | None = None
    earlier_requests: tuple[LastRequest, ...] = ()
    """Those before it whose commands would act anew if they were repeated, the latest last."""

    @property
    def key(self) -> Key:
        """The record's unique key."""
        return f"{self.KIND}/{self.identity}"

    @property
    def identity(self) -> str:
        """The part of the key after the kind."""
        raise AssertionError


class Blocker(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One reason why a runnable execution may not be claimed."""

    kind: BlockerKind
    reason: BlockingReason
    detail: str = ""
    until_ms: int | None = None
    """Set on time blockers only: the instant at which the blocker goes away."""
    waits_for: str = ""
    """The id of the budget or quota policy whose headroom takes the blocker away."""


class Lease(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The right of one worker to run an attempt, until ``expires_at``."""

    lease_id: str
    epoch: int
    worker_id: str
    worker_instance_id: str
    acquired_at: int
    expires_at: int
    ttl_ms: int
    state: LeaseState = LeaseState.HELD
    last_renewed_at: int | None = None
    ended_at: int | None = None
    """When an expired or revoked lease was found or made so."""
    reclaimable_at: int | None = None
    revoke_reason: str = ""


class ReleasedLease(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fence under which a lease was given up, and the answer its holder got."""

    lease_id: str
    epoch: int
    attempt_id: str
    operation: str
    outcome: bytes
    """May hold a waitpoint token, so it is never shown."""

    def __repr__(self) -> str:
        fence = f"{self.lease_id!r}, {self.epoch}, {self.attempt_id!r}"
        return f"ReleasedLease({fence}, operation={self.operation!r}, outcome=<{len(self.outcome)} bytes>)"


class Grant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A short-lived ticket that lets one worker claim, resume or reclaim an execution."""

    kind: GrantKind
    worker_id: str
    worker_instance_id: str
    created_at: int
    expires_at: int
    capability_hash: str | None = None
    route_snapshot_json: str | None = None
    admission_summary: str | None = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One run of an execution's handler.

    The latest attempt is nested in its execution; earlier ones are ``PastAttempt`` records.
    """

    attempt_id: str
    attempt_index: int
    attempt_type: AttemptType
    state: AttemptLifecycle
    started_at: int
    worker_id: str
    worker_instance_id: str
    ended_at: int | None = None
    resumed_at: int | None = None
    suspended_at: int | None = None
    suspension_id: str = ""
    """What the attempt was put aside for: a suspension, a delay, or waiting for children."""
    stream_closed_at: int | None = None
    stream_closed_reason: str | None = None
    failure_reason: str = ""
    failure_category: str = ""
    previous_attempt_index: int | None = None
    cause: str = ""
    """Why a retry, reclaim or replay attempt was opened."""
    policy_json: str = ""
    timeout_ms: int | None = None
    """Leased time this attempt may still use; the part already used was subtracted at release."""
    timeout_at: int | None = None
    """When the attempt times out; set only while its lease is held."""
    generation: int = 0


class PastAttempt(Record):
    """An attempt that another one has followed."""

    KIND = "attempt"

    execution_id: str
    attempt: Attempt

    @property
    def identity(self) -> str:
        return f"{self.execution_id}/{self.attempt.attempt_index}"


class Execution(Record):
    """One unit of work. Everything the contracts call its state is derived from this record."""

    KIND = "execution"

    execution_id: str
    namespace: str
    lane_id: str
    execution_kind: str
    priority: int
    creator_identity: str
    created_at: int
    last_transition_at: int
    last_mutation_at: int
    payload_encoding: str | None = None
    input_sha256: bytes = b""

    phase: LifecyclePhase = LifecyclePhase.RUNNABLE
    blockers: tuple[Blocker, ...] = ()
    lease: Lease | None = None
    attempt: Attempt | None = None
    continuation: Continuation = Continuation.FIRST
    outcome: TerminalOutcome = TerminalOutcome.NONE
    suspended_reason: BlockingReason = BlockingReason.NONE

    lease_epoch: int = 0
    attempt_count: int = 0
    retry_count: int = 0
    reclaim_count: int = 0
    replay_count: int = 0
    signal_count: int = 0

    grant: Grant | None = None
    released: ReleasedLease | None = None
    retry_reason: str = ""
    policy: ExecutionPolicy | None = None
    required_capabilities: tuple[str, ...] = ()
    tags: dict[str, str] = {}
    flow_id: str | None = None
    flow_position: int = -1
    """The place among the members of the flow."""
    deadline_at: int | None = None
    started_at: int | None = None
    completed_at: int | None = None
    suspension_id: str | None = None
    waitpoint_id: str | None = None
    open_waitpoint_ids: tuple[str, ...] = ()
    """The waitpoints that are pending or active."""
    resumed_suspension_id: str | None = None
    """The suspension whose end the next, or the running, resumed claim continues."""
    failure_reason: str = ""
    failure_category: str = ""
    cancellation_reason: str = ""
    cancelled_by: str = ""
    cancelled_from: LifecyclePhase | None = None
    """The phase in which a cancelled execution was cancelled."""
    unresolved_dependencies: int = 0
    """Required dependencies whose upstream has not ended yet."""
    progress_pct: int | None = None
    progress_message: str | None = None
    progress_updated_at: int | None = None
    has_result: bool = False
    journal_generation: int = 0
    admitted_round: int | None = None
    """The lease epoch that the quota policy has admitted, while that admission is held."""
    held_back: bool = False
    """Whether there was no headroom for it when its turn came; until its next claim."""
    pause_reason: str | None = None
    """Set while an operator wants the execution held as soon as it is runnable again."""
    keyed_until: int | None = None
    """The end of the window of its idempotency key, which has to find it until then."""
    retention_from: int | None = None
    """From when on its retention counts: its end, or later if it was looked at too early."""
    removing_since: int | None = None
    """Set once its removal has begun. From then on it does not exist for anybody."""

    @property
    def identity(self) -> str:
        return self.execution_id


def kept_until(execution: Execution) -> int:
    """Until when an ended execution is kept at least, whatever the deployment's retention is."""
    streams = None if execution.policy is None else execution.policy.stream_policy
    ttl_ms = 0 if streams is None else streams.retention_ttl_ms or 0
    return max((execution.completed_at or 0) + ttl_ms, execution.keyed_until or 0)


class Payload(Record):
    """The input of an execution. Written once."""

    KIND = "payload"
    LARGE = True

    execution_id: str
    data: bytes

    @property
    def identity(self) -> str:
        return self.execution_id


class ExecutionResult(Record):
    """What the handler of a completed execution returned, per replay generation."""

    KIND = "result"
    LARGE = True

    execution_id: str
    generation: int
    data: bytes
    encoding: str | None = None

    @property
    def identity(self) -> str:
        return f"{self.execution_id}/{self.generation}"


class Reservation(Record):
    """An idempotency key that is bound to one execution and to the digest of its request."""

    KIND = "reservation"

    partition_tag: str
    namespace: str
    idempotency_key: str
    execution_id: str
    digest: bytes
    created_at: int
    expires_at: int
    confirmed: bool = False
    closing_at: int | None = None
    """Since when it is about to be freed: nothing may be created under it unless it is bound again."""

    @property
    def identity(self) -> str:
        return reservation_identity(self.partition_tag, self.namespace, self.idempotency_key)


def reservation_identity(partition_tag: str, namespace: str, idempotency_key: str) -> str:
    """The identity of one reservation. Both names may hold any mark that separates others."""
    return f"{partition_tag}/{len(namespace)}/{namespace}/{idempotency_key}"


class Dedup(Record):
    """One remembered answer, where many callers may send the same thing."""

    KIND = "dedup"

    scope: str
    """Begins with the execution id."""
    dedup_key: str
    digest: bytes
    value: bytes
    """May hold a waitpoint token, so it is never shown."""
    expires_at: int

    @property
    def identity(self) -> str:
        return f"{self.scope}/{self.dedup_key}"

    def __repr__(self) -> str:
        size = len(self.value)
        return f"Dedup(identity={self.identity!r}, value=<{size} bytes>, expires_at={self.expires_at})"


class Suspension(Record):
    """One episode of waiting: the condition, what has satisfied it so far, and how it ended."""

    KIND = "suspension"

    execution_id: str
    suspension_id: str
    namespace: str
    lane_id: str
    attempt_index: int
    waitpoint_ids: tuple[str, ...]
    """In binding order; the first is the primary one."""
    waitpoint_keys: tuple[str, ...]
    reason_code: str
    requested_by: str
    condition: bytes
    """The resume condition, msgpack."""
    policy: bytes
    """The resume policy, msgpack."""
    created_at: int
    timeout_at: int | None = None
    timeout_behavior: str = "fail"
    continuation_metadata_pointer: str | None = None
    satisfiers: dict[str, tuple[str, ...]] = {}
    """Node path in the condition -> what has satisfied it."""
    satisfier_signals: tuple[int, ...] = ()
    """Sequence numbers of the signals that contributed."""
    last_signal_at: int | None = None
    satisfied_at: int | None = None
    closed_at: int | None = None
    close_reason: str = ""
    closer_signal_id: str | None = None

    @property
    def identity(self) -> str:
        return f"{self.execution_id}/{self.suspension_id}"

    @property
    def timed_out(self) -> bool:
        """True if the deadline ended the suspension."""
        return self.close_reason.startswith("timed_out")


class BufferedSignal(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a condition looks at in a signal that waits for a suspension."""

    sequence: int
    signal_id: str
    signal_name: str
    source_type: str
    source_identity: str


class Waitpoint(Record):
    """A place where signals for an execution arrive."""

    KIND = "waitpoint"

    execution_id: str
    waitpoint_id: str
    waitpoint_key: str
    attempt_index: int
    state: str
    """``pending``, ``active`` or ``closed``."""
    token_kid: str
    token_digest: str
    """A digest of the token's signature; the token itself is computed again from the key."""
    created_at: int
    token_fingerprint: str = ""
    suspension_id: str | None = None
    required_signal_names: tuple[str, ...] = ()
    activated_at: int | None = None
    satisfied_at: int | None = None
    closed_at: int | None = None
    expires_at: int | None = None
    close_reason: str = ""
    signal_count: int = 0
    matched_signal_count: int = 0
    last_signal_at: int | None = None
    buffered: tuple[BufferedSignal, ...] = ()
    """Signals that came while the waitpoint was pending, and those kept for its next suspension."""

    @property
    def identity(self) -> str:
        return f"{self.execution_id}/{self.waitpoint_id}"


class Signal(Record):
    """One delivered signal. Sequence numbers are gap-free per execution."""

    KIND = "signal"
    LARGE = True

    execution_id: str
    sequence: int
    signal_id: str
    waitpoint_id: str
    waitpoint_key: str
    signal_name: str
    signal_category: str
    source_type: str
    source_identity: str
    target_scope: str
    accepted_at: int
    effect: str
    payload: bytes | None = None
    payload_encoding: str | None = None
    correlation_id: str | None = None
    idempotency_key: str | None = None
    created_at: int | None = None

    @property
    def identity(self) -> str:
        return f"{self.execution_id}/{self.sequence}"


class StreamMeta(Record):
    """The state of one attempt's frame stream."""

    KIND = "stream"

    execution_id: str
    attempt_index: int
    created_at: int
    last_ms: int = 0
    last_seq: int = -1
    frame_count: int = 0
    """Frames ever appended; trimming does not lower it."""
    durable_retained: int = 0
    """Frames of each part that are still kept."""
    summary_retained: int = 0
    live_retained: int = 0
    total_bytes: int = 0
    last_frame_at: int | None = None
    trimmed_at: int | None = None
    """When frames of any part were last trimmed."""
    live_rate_hz: float | None = None
    live_last_at: int | None = None
    live_expires_at: int | None = None
    summary_version: int = 0

    @property
    def identity(self) -> str:
        return f"{self.execution_id}/{self.attempt_index}"


class StreamSummary(Record):
    """The rolling document of a stream in summary mode, as JSON."""

    KIND = "summary"
    LARGE = True

    execution_id: str
    attempt_index: int
    document: bytes
    version: int
    patch_kind: str
    first_applied_ms: int
    last_updated_ms: int

    @property
    def identity(self) -> str:
        return f"{self.execution_id}/{self.attempt_index}"


class JournalRecord(Record):
    """One recorded step, wait or sleep of an execution, per replay generation."""

    KIND = "journal"
    LARGE = True

    execution_id: str
    generation: int
    name: str
    ordinal: int
    kind: str
    recorded_at: int
    value: bytes | None = None
    wake_at: int | None = None
    timed_out: bool = False

    @property
    def identity(self) -> str:
        return journal_identity(self.execution_id, self.generation, self.name, self.ordinal)


def journal_identity(execution_id: str, generation: int, name: str, ordinal: int) -> str:
    """The identity of one journal entry."""
    return f"{execution_id}/{generation}/{ordinal}/{name}"


class Flow(Record):
    """What is asked of a flow: its graph, whether it is sealed, whether it was cancelled.

    How its members have ended is kept apart, so that a claim, which looks at this record, does not
    collide with the end of another member.
    """

    KIND = "flow"

    flow_id: str
    namespace: str
    flow_kind: str
    created_at: int
    last_mutation_at: int
    graph_revision: int = 0
    node_count: int = 0
    edge_count: int = 0
    short_joins: int = 0
    """How many joins ask for more successes than they have upstreams so far."""
    submission_sha256: bytes = b""
    """A digest of the command that made it as a whole; empty if it was built step by step."""
    sealed_at: int | None = None
    """From then on the graph takes no members and no edges."""
    tags: dict[str, str] = {}
    cancelled_at: int | None = None
    cancel_reason: str | None = None
    cancellation_policy: str | None = None
    removing_since: int | None = None
    """Set once its removal has begun. From then on it does not exist for anybody."""

    @property
    def identity(self) -> str:
        return flow_identity(self.flow_id)


@lru_cache(maxsize=4_096)
def flow_identity(flow_id: str) -> str:
    """The identity of a flow. Like that of its members it begins with the partition."""
    return f"{{fp:{flow_partition(flow_id)}}}:{flow_id}"


class FlowProgress(Record):
    """How the members of a flow have ended."""

    KIND = "flow_progress"

    flow_id: str
    namespace: str
    outcomes: dict[str, int] = {}
    """How many members have ended in which way."""
    counted_at: int | None = None
    """When a member was counted last."""
    retention_from: int | None = None
    """When its retention begins to count at the earliest; moved on when it was looked at too early."""
    lost_sinks: int = 0
    """How many members that no other depends on have ended without success."""

    @property
    def identity(self) -> str:
        return flow_identity(self.flow_id)


class FlowMember(Record):
    """One place in a flow, numbered from 0 without gaps."""

    KIND = "flow_member"

    flow_id: str
    position: int
    execution_id: str
    counted: str = ""
    """As what the member is counted in the flow's progress; empty until it has ended."""
    lost_sink: bool = False
    """Whether the member is counted as one of the lost sinks."""
    cancel_requested_at: int | None = None
    """Set while the cancelled flow has still to cancel this member."""

    @property
    def identity(self) -> str:
        return f"{flow_identity(self.flow_id)}/{self.position}"


class Link(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One end of an edge: its id, and the execution at the other end."""

    edge_id: str
    execution_id: str


class FlowNode(Record):
    """The edges at both sides of a member, in the order in which they were staged."""

    KIND = "flow_node"

    execution_id: str
    flow_id: str
    incoming: tuple[Link, ...] = ()
    outgoing: tuple[Link, ...] = ()

    @property
    def identity(self) -> str:
        return self.execution_id


class Edge(Record):
    """One dependency: the downstream waits for the success of the upstream."""

    KIND = "edge"

    flow_id: str
    namespace: str
    edge_id: str
    upstream_execution_id: str
    downstream_execution_id: str
    created_at: int
    staged_revision: int
    """The graph's revision with this edge in it."""
    data_passing_ref: str | None = None
    applied_at: int | None = None
    state: str = "pending"
    """``pending``, ``satisfied`` or ``impossible``. Only a pending edge moves its group's counts."""
    upstream_outcome: str = ""
    upstream_generation: int = 0
    """The replay generation of the upstream that resolved the edge."""

    @property
    def identity(self) -> str:
        return f"{flow_identity(self.flow_id)}/{self.edge_id}"


class EdgeGroup(Record):
    """The join before one member. The counts are those of its edges."""

    KIND = "edge_group"

    execution_id: str
    flow_id: str
    policy: EdgeDependencyPolicy = AllOfEdges()
    total: int = 0
    satisfied: int = 0
    failed: int = 0
    skipped: int = 0
    state: EdgeGroupState = EdgeGroupState.PENDING
    decided_at: int | None = None

    @property
    def identity(self) -> str:
        return self.execution_id


class Message(Record):
    """What one commit owes to other records of its partition. It is removed when it is delivered."""

    KIND = "message"

    execution_id: str
    """The member it is about; the identity of the flow if it is about a whole flow."""
    about: str
    """``changed``: it ended, or runs again. ``unneeded``: a join does not wait for it any more.
    ``cancelled``: the members of the flow are to be cancelled."""
    cause: str
    """Makes the identity unique."""
    due_at: int
    position: int = 0
    """How many of the outgoing edges, or of the flow's members, were seen to before."""

    @property
    def identity(self) -> str:
        return f"{self.execution_id}/{self.cause}/{self.position}"


class Budget(Record):
    """What a budget allows, and whether what it is attached to may be claimed.

    The counters are kept apart: a claim rests on this record, and must not collide with each
    report of usage.
    """

    KIND = "budget"

    budget_id: str
    namespace: str
    created_at: int
    last_updated_at: int
    name: str = ""
    scope_type: str = ""
    scope_id: str = ""
    enforcement_mode: EnforcementMode = EnforcementMode.STRICT
    on_hard_limit: OnHardLimit = OnHardLimit.DENY
    on_soft_limit: OnSoftLimit = OnSoftLimit.WARN
    reset_interval_ms: int = 0
    hard_limits: dict[str, int] = {}
    soft_limits: dict[str, int] = {}
    period: int = 0
    """How often the budget was reset. Usage and ledgers belong to one period."""
    last_reset_at: int | None = None
    next_reset_at: int | None = None
    oldest_period: int = 0
    """The first period of which ledgers may be left."""
    joining_at: int | None = None
    """When the ledgers of executions that are gone are next joined into one."""
    closed_at: int | None = None
    """Since when nothing that the budget is attached to is claimed."""
    closed_dimension: str = ""
    cancelling_at: int | None = None
    """Executions created up to then are still to be cancelled."""
    waking_at: int | None = None
    """Set while executions that wait for headroom are still to be let go."""
    turn: int = 0
    """Counts how often there was something to do for those that wait."""

    @property
    def identity(self) -> str:
        return budget_identity(self.budget_id)


def budget_identity(budget_id: str) -> str:
    """The identity of a budget, which that of everything about it begins with."""
    return f"{{b:{flow_partition(budget_id, BUDGET_PARTITIONS)}}}:{budget_id}"


class BudgetUsage(Record):
    """What was spent in the current period: the sum of its ledgers."""

    KIND = "budget_usage"

    budget_id: str
    namespace: str
    usage: dict[str, int] = {}
    breach_count: int = 0
    soft_breach_count: int = 0
    last_breach_at: int | None = None
    last_breach_dimension: str = ""
    revision: int = 0
    """Counts the changes of the usage."""

    @property
    def identity(self) -> str:
        return budget_identity(self.budget_id)


class BudgetLedger(Record):
    """What one spender has spent of a budget in one period."""

    KIND = "budget_ledger"

    budget_id: str
    namespace: str
    period: int
    spender: str
    """An execution id, or ``ADMIN``, or ``FORGOTTEN``."""
    spent: dict[str, int] = {}

    @property
    def identity(self) -> str:
        return ledger_identity(self.budget_id, self.period, self.spender)


ADMIN: Final = "admin"
"""The spender of what is reported outside of any execution."""

FORGOTTEN: Final = "forgotten"
"""The spender of what was spent by executions that are gone."""


def ledger_identity(budget_id: str, period: int, spender: str) -> str:
    """The identity of one spender's ledger in one period."""
    return f"{budget_identity(budget_id)}/{period}/{spender}"


class QuotaPolicy(Record):
    """How many claims there may be in a window and at once, and how many there are."""

    KIND = "quota"

    quota_policy_id: str
    namespace: str
    created_at: int
    window_ms: int
    requests_max: int
    """0 for no limit."""
    concurrent_max: int
    """0 for no limit."""
    name: str = ""
    admitted: int = 0
    """How many were ever admitted. The next one takes this place, modulo the limit, in the window."""
    active: int = 0
    """How many admissions there are on record."""
    revision: int = 0
    """Counts the changes of ``active``."""
    waiting: bool = False
    """Whether executions may be waiting. Set before the first one is held back."""
    waking_at: int | None = None
    """When executions that wait are to be looked after."""
    turn: int = 0
    """Counts how often there was something to do for those that wait."""

    @property
    def identity(self) -> str:
        return quota_identity(self.quota_policy_id)


def quota_identity(quota_policy_id: str) -> str:
    """The identity of a quota policy, which that of everything about it begins with."""
    return f"{{q:{flow_partition(quota_policy_id, QUOTA_PARTITIONS)}}}:{quota_policy_id}"


class QuotaWindow(Record):
    """A piece of the ring in which a policy keeps the instants of its latest admissions.

    The ring has as many places as the window may have admissions, so the place that the next one
    takes holds the instant that decides. An admission therefore costs the same with any limit.
    """

    KIND = "quota_window"

    quota_policy_id: str
    namespace: str
    piece: int
    instants: tuple[int, ...] = ()

    @property
    def identity(self) -> str:
        return f"{quota_identity(self.quota_policy_id)}/{self.piece}"


class Admission(Record):
    """The right of one execution to one claim, and its place among those that are active."""

    KIND = "admission"

    quota_policy_id: str
    namespace: str
    admitted_id: str
    """The execution."""
    round: int
    """The lease epoch that the claim will have."""
    admitted_at: int
    settle_at: int | None = None
    """When to see whether it was used; None once it is known to be."""

    @property
    def identity(self) -> str:
        return admission_identity(self.quota_policy_id, self.admitted_id)


def admission_identity(quota_policy_id: str, execution_id: str) -> str:
    """The identity of an execution's admission."""
    return f"{quota_identity(quota_policy_id)}/{execution_id}"


class GivenBack(Record):
    """An admission that its execution does not need any more, until the quota policy knows."""

    KIND = "given_back"

    execution_id: str
    quota_policy_id: str
    round: int
    due_at: int

    @property
    def identity(self) -> str:
        return f"{self.execution_id}/{self.round}"


class WorkerRegistration(Record):
    """A worker that has said that it is there, and what it offers."""

    KIND = "worker"

    namespace: str
    worker_id: str
    worker_instance_id: str
    lanes: tuple[str, ...]
    capabilities: tuple[str, ...]
    """Sorted."""
    ttl_ms: int
    registered_at: int
    last_heartbeat_at: int
    expires_at: int
    concurrency: int | None = None
    host: str | None = None
    pid: int | None = None
    draining: bool = False

    @property
    def identity(self) -> str:
        return worker_identity(self.namespace, self.worker_instance_id)


class WorkerDeath(Record):
    """A worker whose leases are to be revoked. It is removed when that is done."""

    KIND = "worker_death"

    namespace: str
    worker_instance_id: str
    died_at: int
    reason: str
    silent_ms: int | None = None
    """Set when the worker was only silent: a lease that was renewed within this time shows that it lives."""

    @property
    def identity(self) -> str:
        return f"{worker_identity(self.namespace, self.worker_instance_id)}/{self.died_at}"


def worker_identity(namespace: str, worker_instance_id: str) -> str:
    """The identity of one worker. Both names may hold any mark that separates others."""
    name = f"{len(namespace)}/{namespace}/{worker_instance_id}"
    return f"{{fp:{partition_index(name.encode())}}}:{name}"


class SigningKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One HMAC key. ``expires_at`` is None for the current key and fixed once it is rotated out."""

    kid: str
    secret: bytes
    installed_at: int
    expires_at: int | None = None

    def __repr__(self) -> str:
        return f"SigningKey(kid={self.kid!r}, expires_at={self.expires_at!r})"


class RetiredKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A key that was removed. Its id stays bound to its secret, of which only a digest is left."""

    kid: str
    secret_digest: bytes


class Keyring(Record):
    """All waitpoint signing keys of a store. One record."""

    KIND = "keyring"

    current_kid: str
    keys: tuple[SigningKey, ...]
    retired: tuple[RetiredKey, ...] = ()

    @property
    def identity(self) -> str:
        return KEYRING_ID


KEYRING_ID: Final = "{fp:0}:waitpoint"


class Lane(Record):
    """What an operator has said about a lane. A lane without a record is active."""

    KIND = "lane"

    namespace: str
    lane_id: str
    state: LaneState
    changed_at: int
    changed_by: str = ""
    reason: str = ""

    @property
    def identity(self) -> str:
        return lane_identity(self.namespace, self.lane_id)


@lru_cache(1_024)
def lane_identity(namespace: str, lane_id: str) -> str:
    """The identity of one lane's record. Both names may hold any mark that separates others."""
    name = f"{len(namespace)}/{namespace}/{lane_id}"
    return f"{Partition(index=partition_index(name.encode())).key}:{name}"


AnyRecord = TypeVar("AnyRecord", bound=Record)

RECORD_TYPES: Final[dict[str, type[Record]]] = {
    record_type.KIND: record_type
    for record_type in (
        Execution,
        PastAttempt,
        Payload,
        ExecutionResult,
        Reservation,
        Dedup,
        Suspension,
        Waitpoint,
        Signal,
        StreamMeta,
        StreamSummary,
        JournalRecord,
        Flow,
        FlowProgress,
        FlowMember,
        FlowNode,
        Edge,
        EdgeGroup,
        Message,
        WorkerRegistration,
        WorkerDeath,
        Keyring,
        Budget,
        BudgetUsage,
        BudgetLedger,
        QuotaPolicy,
        QuotaWindow,
        Admission,
        GivenBack,
        Lane,
    )
}

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(record_type) for kind, record_type in RECORD_TYPES.items()
}

encode_record = _encoder.encode
"""Turn a record into the bytes that stores keep."""


def kind_of(key: Key) -> str:
    """The kind part of a key."""
    return key.partition("/")[0]


def decode_record(key: Key, data: bytes) -> Record:
    """Read a record back.

    Raises:
        msgspec.DecodeError: the bytes are not a record of the key's kind.
    """
    record: Record = _decoders[kind_of(key)].decode(data)
    return record


def key_for(record_type: type[Record], identity: str) -> Key:
    """The key of the record of this type with this identity."""
    return f"{record_type.KIND}/{identity}"

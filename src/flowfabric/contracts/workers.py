"""The worker registry: which workers there are, what they offer, and when they were last heard of.

The registry informs and never permits: a claim needs no registration. What it adds is that the
work of a worker that is known to be dead need not wait for its leases to run out.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.ids import (
    NO_CONTROL_PATTERN,
    Amount,
    Capabilities,
    LaneId,
    Name,
    Namespace,
    OptionalName,
    TimestampMs,
    WorkerId,
    WorkerInstanceId,
)
from flowfabric.contracts.limits import (
    LANES_PER_WORKER_MAX,
    LEASE_TTL_MS_MAX,
    PAGE_ROWS_MAX,
    U32_MAX,
    WORKER_CURSOR_CHARS_MAX,
    WORKER_TTL_MS,
)
from flowfabric.contracts.policy import check_capabilities

WorkerTtlMs: TypeAlias = Annotated[int, Meta(ge=1, le=LEASE_TTL_MS_MAX)]
_Cursor: TypeAlias = Annotated[str, Meta(max_length=WORKER_CURSOR_CHARS_MAX, pattern=NO_CONTROL_PATTERN)]
Lanes: TypeAlias = Annotated[tuple[LaneId, ...], Meta(min_length=1, max_length=LANES_PER_WORKER_MAX)]

_PAGE = 50


class WorkerRegistered(Outcome, tag="Registered"):
    """The worker is on record, and was not before."""

    next_expiry_ms: TimestampMs


class WorkerRefreshed(Outcome, tag="Refreshed"):
    """The worker was on record and is known to be alive until this instant, if nothing is heard."""

    next_expiry_ms: TimestampMs


class WorkerNotRegistered(Outcome, tag="NotRegistered"):
    """No such worker is on record: it never was, was silent too long, or was marked as dead."""


class WorkerMarkedDead(Outcome, tag="Marked"):
    """The worker is off the record, and its leases are revoked."""

    revoked_leases: Amount = 0
    """How many were revoked before the answer; a background duty revokes what is left."""


class WorkerDeregistered(Outcome, tag="Deregistered"):
    """The worker is off the record. Leases that it may still hold are left alone."""


RegisterWorkerResult: TypeAlias = WorkerRegistered | WorkerRefreshed
HeartbeatWorkerResult: TypeAlias = WorkerRefreshed | WorkerNotRegistered
MarkWorkerDeadResult: TypeAlias = WorkerMarkedDead | WorkerNotRegistered
DeregisterWorkerResult: TypeAlias = WorkerDeregistered | WorkerNotRegistered


class RegisterWorkerArgs(Command[RegisterWorkerResult]):
    """Put a worker on record, or replace what is said of it."""

    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    namespace: Namespace
    lanes: Lanes
    capabilities: Capabilities = frozenset()
    ttl_ms: WorkerTtlMs = WORKER_TTL_MS
    """How long after its last heartbeat the worker counts as alive."""
    concurrency: Annotated[int, Meta(ge=1, le=U32_MAX)] | None = None
    """How many handlers it runs at the same time."""
    host: Name | None = None
    pid: Amount | None = None
    draining: bool = False
    """True once the worker claims nothing more."""
    now: TimestampMs | None = None

    def validate(self) -> None:
        """Check the worker's capabilities."""
        check_capabilities(self.capabilities, "worker")


class HeartbeatWorkerArgs(Command[HeartbeatWorkerResult]):
    """Say that a worker is alive. One that is not on record has to register again."""

    worker_instance_id: WorkerInstanceId
    namespace: Namespace
    now: TimestampMs | None = None


class MarkWorkerDeadArgs(Command[MarkWorkerDeadResult]):
    """Take a worker off the record and its leases away, so that others continue its work at once.

    A worker that is alive after all is refused with ``lease_revoked`` from then on and changes
    nothing; it registers again at its next heartbeat and may claim again.
    """

    worker_instance_id: WorkerInstanceId
    namespace: Namespace
    reason: OptionalName
    now: TimestampMs | None = None


class DeregisterWorkerArgs(Command[DeregisterWorkerResult]):
    """Take a worker off the record that has ended on its own account."""

    worker_instance_id: WorkerInstanceId
    namespace: Namespace


class WorkerInfo(Value):
    """One worker on record."""

    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    namespace: Namespace
    lanes: tuple[LaneId, ...]
    capabilities: tuple[str, ...]
    registered_at_ms: TimestampMs
    last_heartbeat_ms: TimestampMs
    expires_at_ms: TimestampMs
    ttl_ms: WorkerTtlMs
    alive: bool
    """False from the instant at which a heartbeat is overdue until the worker is taken off the record."""
    draining: bool
    concurrency: int | None = None
    host: str | None = None
    pid: int | None = None
    held_leases: Amount | None = None
    """How many executions it runs; None unless asked for."""


class ListWorkersPage(Value):
    """A page of workers, those that registered first come first. The cursor is opaque."""

    workers: tuple[WorkerInfo, ...]
    next_cursor: str | None = None


class ListWorkersArgs(Command[ListWorkersPage]):
    """List the workers of a namespace after a cursor, all of them or those that serve a lane."""

    namespace: Namespace | None = None
    """The caller's own when absent, and all for a caller without one."""
    lane_id: LaneId | None = None
    """Only workers that claim from this lane; one that drains claims from none."""
    cursor: _Cursor | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ROWS_MAX)] = _PAGE
    count_leases: bool = False
    """Also count what each worker runs, which is one more read for each."""

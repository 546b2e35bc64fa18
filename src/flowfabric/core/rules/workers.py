"""The worker registry: registering, heartbeats, and what the death of a worker means for its leases.

The rules this module keeps:

- An instance id belongs to one worker for as long as it is on record.
- A death never reaches further than the leases that were granted before it; whoever registers or
  claims afterwards under the same name is another matter.
- Revoking a lease is safe whether or not the worker is dead: its fence is refused from then on.
- Silence alone takes no lease that its holder has renewed in the meantime. So a worker whose
  heartbeats fail goes on working.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric import errors
from flowfabric.contracts.limits import SAFE_INTEGER_MAX
from flowfabric.contracts.policy import check_capabilities
from flowfabric.contracts.workers import (
    DeregisterWorkerArgs,
    DeregisterWorkerResult,
    HeartbeatWorkerArgs,
    HeartbeatWorkerResult,
    MarkWorkerDeadArgs,
    MarkWorkerDeadResult,
    RegisterWorkerArgs,
    RegisterWorkerResult,
    WorkerDeregistered,
    WorkerMarkedDead,
    WorkerNotRegistered,
    WorkerRefreshed,
    WorkerRegistered,
)
from flowfabric.core.commands import (
    ExpireWorkerArgs,
    ForgetWorkerDeathArgs,
    RevokeDeadWorkersLeaseArgs,
    WorkerLeaseSettled,
    WorkerSettled,
)
from flowfabric.core.records import WorkerDeath, WorkerRegistration, key_for, worker_identity
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.fencing import has_lapsed
from flowfabric.core.rules.reading import find
from flowfabric.core.rules.transitions import lapse_lease
from flowfabric.core.vocabulary import LeaseState

if TYPE_CHECKING:
    from flowfabric.core.records import Key, Lease
    from flowfabric.core.work import Work

MISSED_HEARTBEATS = "missed_heartbeats"


def worker_subject(
    command: RegisterWorkerArgs | HeartbeatWorkerArgs | MarkWorkerDeadArgs | DeregisterWorkerArgs,
) -> Key:
    """The record of the worker that a command names."""
    return key_for(WorkerRegistration, worker_identity(command.namespace, command.worker_instance_id))


@rule(RegisterWorkerArgs, subject=worker_subject)
def register_worker(work: Work, args: RegisterWorkerArgs) -> RegisterWorkerResult:
    """Put a worker on record, or replace what is said of it.

    Raises:
        InvalidInput: the namespace is not the caller's.
        InstanceIdReassigned: a worker with another id is alive under this instance id.
    """
    known = _worker(work, args.namespace, args.worker_instance_id)
    if known is not None and is_silent(work, known):
        _bury(work, known, MISSED_HEARTBEATS, silent_ms=known.ttl_ms)
        known = None
    if known is not None and known.worker_id != args.worker_id:
        raise errors.InstanceIdReassigned(
            worker_instance_id=args.worker_instance_id, registered_worker_id=known.worker_id
        )
    worker = WorkerRegistration(
        namespace=args.namespace,
        worker_id=args.worker_id,
        worker_instance_id=args.worker_instance_id,
        lanes=tuple(dict.fromkeys(args.lanes)),
        capabilities=check_capabilities(args.capabilities, "worker"),
        ttl_ms=args.ttl_ms,
        registered_at=work.now if known is None else known.registered_at,
        last_heartbeat_at=work.now,
        expires_at=min(work.now + args.ttl_ms, SAFE_INTEGER_MAX),
        concurrency=args.concurrency,
        host=args.host,
        pid=args.pid,
        draining=args.draining,
    )
    work.add(worker)
    outcome = WorkerRegistered if known is None else WorkerRefreshed
    return outcome(next_expiry_ms=worker.expires_at)


@rule(HeartbeatWorkerArgs, subject=worker_subject)
def heartbeat_worker(work: Work, args: HeartbeatWorkerArgs) -> HeartbeatWorkerResult:
    """Keep a worker on record that is still on it.

    Raises:
        InvalidInput: the namespace is not the caller's.
    """
    worker = _worker(work, args.namespace, args.worker_instance_id)
    if worker is None or is_silent(work, worker):
        return WorkerNotRegistered()
    worker = work.edit(worker)
    worker.last_heartbeat_at = work.now
    worker.expires_at = min(work.now + worker.ttl_ms, SAFE_INTEGER_MAX)
    return WorkerRefreshed(next_expiry_ms=worker.expires_at)


@rule(MarkWorkerDeadArgs, subject=worker_subject)
def mark_worker_dead(work: Work, args: MarkWorkerDeadArgs) -> MarkWorkerDeadResult:
    """Take a worker off the record, and owe the revocation of its leases.

    Raises:
        InvalidInput: the namespace is not the caller's.
    """
    worker = _worker(work, args.namespace, args.worker_instance_id)
    if worker is None:
        return WorkerNotRegistered()
    _bury(work, worker, args.reason)
    return WorkerMarkedDead()


@rule(DeregisterWorkerArgs, subject=worker_subject)
def deregister_worker(work: Work, args: DeregisterWorkerArgs) -> DeregisterWorkerResult:
    """Take a worker off the record and leave its leases alone.

    Raises:
        InvalidInput: the namespace is not the caller's.
    """
    worker = _worker(work, args.namespace, args.worker_instance_id)
    if worker is None:
        return WorkerNotRegistered()
    work.remove(worker)
    return WorkerDeregistered()


@rule(
    ExpireWorkerArgs,
    subject=no_subject,
    reads=lambda args: (key_for(WorkerRegistration, args.worker_identity),),
)
def expire_worker(work: Work, args: ExpireWorkerArgs) -> WorkerSettled:
    """Take a worker off the record whose heartbeats have failed to come."""
    worker = work.read(WorkerRegistration, args.worker_identity)
    if worker is None:
        return WorkerSettled(action="gone")
    if not is_silent(work, worker):
        return WorkerSettled(action="kept")
    _bury(work, worker, MISSED_HEARTBEATS, silent_ms=worker.ttl_ms)
    return WorkerSettled(action="expired")


def is_silent(work: Work, worker: WorkerRegistration) -> bool:
    """Whether the worker's heartbeat is overdue."""
    return worker.expires_at <= work.now


def _worker(work: Work, namespace: str, worker_instance_id: str) -> WorkerRegistration | None:
    bound = work.envelope.namespace
    if bound is not None and namespace != bound:
        raise errors.InvalidInput(field="namespace", value=namespace, rule=f"must be {bound!r}")
    return work.read(WorkerRegistration, worker_identity(namespace, worker_instance_id))


def _bury(work: Work, worker: WorkerRegistration, reason: str, silent_ms: int | None = None) -> None:
    """Take the worker off the record; the record of its death is the promise to revoke its leases."""
    work.remove(worker)
    death = WorkerDeath(
        namespace=worker.namespace,
        worker_instance_id=worker.worker_instance_id,
        died_at=work.now,
        reason=reason,
        silent_ms=silent_ms,
    )
    if work.read(WorkerDeath, death.identity) is None:
        work.add(death)
    log_act(
        work,
        "worker_dead",
        namespace=worker.namespace,
        worker_instance_id=worker.worker_instance_id,
        worker_id=worker.worker_id,
        reason=reason,
    )


# The leases of the dead


@rule(RevokeDeadWorkersLeaseArgs)
def revoke_dead_workers_lease(work: Work, args: RevokeDeadWorkersLeaseArgs) -> WorkerLeaseSettled:
    """Revoke one lease of a dead worker, so that the execution can be reclaimed at once."""
    execution = find(work, args)
    lease = None if execution is None else execution.lease
    if execution is None or lease is None:
        return WorkerLeaseSettled(action="gone")
    if lease.worker_instance_id != args.worker_instance_id or has_lapsed(work, execution):
        return WorkerLeaseSettled(action="gone")
    if _outlives(lease, args):
        return WorkerLeaseSettled(action="kept")
    lapse_lease(work, work.edit(execution), LeaseState.REVOKED, reason=f"worker dead: {args.reason}")
    return WorkerLeaseSettled(action="revoked")


def _outlives(lease: Lease, args: RevokeDeadWorkersLeaseArgs) -> bool:
    """Whether the lease was granted after the death, or shows that the worker was only silent."""
    if lease.acquired_at > args.died_at:
        return True
    heard_of_at = lease.last_renewed_at or lease.acquired_at
    return args.silent_ms is not None and heard_of_at + args.silent_ms > args.died_at


@rule(
    ForgetWorkerDeathArgs,
    subject=no_subject,
    reads=lambda args: (key_for(WorkerDeath, args.death_id),),
)
def forget_worker_death(work: Work, args: ForgetWorkerDeathArgs) -> WorkerSettled:
    """Remove the record of a death that has been acted upon."""
    death = work.read(WorkerDeath, args.death_id)
    if death is None:
        return WorkerSettled(action="gone")
    work.remove(death)
    return WorkerSettled(action="forgotten")

"""The worker registry: coming, being heard of, going, and dying."""

from __future__ import annotations

from typing import Any

from flowfabric import errors
from flowfabric.contracts.workers import (
    DeregisterWorkerArgs,
    HeartbeatWorkerArgs,
    ListWorkersArgs,
    MarkWorkerDeadArgs,
    RegisterWorkerArgs,
)
from flowfabric.core.commands import (
    ExpireWorkerArgs,
    ForgetWorkerDeathArgs,
    RevokeDeadWorkersLeaseArgs,
    SettleWorkerDeathArgs,
)
from flowfabric.core.records import WorkerDeath, WorkerRegistration, worker_identity
from flowfabric.testing.bed import LANE, NAMESPACE, TTL_MS
from flowfabric.testing.model.draw import WORKERS, Draw, generator

WORKER_TTL_MS = 2 * TTL_MS


def _registration(draw: Draw, **fields: Any) -> RegisterWorkerArgs:
    defaults: dict[str, Any] = {
        **draw.worker(),
        "namespace": NAMESPACE,
        "lanes": draw.pick(((LANE,), (LANE, "other"))),
        "capabilities": draw.capabilities(),
        "ttl_ms": draw.pick((1_000, WORKER_TTL_MS)),
        "draining": draw.chance(0.1),
    }
    return RegisterWorkerArgs(**{**defaults, **fields})


def _named(draw: Draw) -> dict[str, Any]:
    """The fields that name a worker, on record or not."""
    known = draw.world.all(WorkerRegistration)
    if known and draw.chance(0.8):
        worker = draw.pick(known)
        return {"worker_instance_id": worker.worker_instance_id, "namespace": worker.namespace}
    return {"worker_instance_id": draw.pick(WORKERS)[1], "namespace": NAMESPACE}


def _death_id(draw: Draw) -> str:
    """A death that is not settled yet, or none."""
    known = draw.world.all(WorkerDeath)
    return draw.pick(known).identity if known else f"{worker_identity(NAMESPACE, draw.pick(WORKERS)[1])}/1"


@generator(RegisterWorkerArgs)
def register_worker(draw: Draw) -> RegisterWorkerArgs:
    """New or again."""
    return _registration(draw)


@generator(RegisterWorkerArgs, provokes=errors.InstanceIdReassigned)
def register_under_another_id(draw: Draw) -> RegisterWorkerArgs:
    """With the instance id of one that is alive."""
    alive = [one for one in draw.world.all(WorkerRegistration) if one.expires_at > draw.now]
    worker = draw.one_of(alive, RegisterWorkerArgs)
    return _registration(draw, worker_id="another", worker_instance_id=worker.worker_instance_id)


@generator(HeartbeatWorkerArgs)
def heartbeat_worker(draw: Draw) -> HeartbeatWorkerArgs:
    """Of one on record, or not."""
    return HeartbeatWorkerArgs(**_named(draw))


@generator(DeregisterWorkerArgs)
def deregister_worker(draw: Draw) -> DeregisterWorkerArgs:
    """Of one on record, or not."""
    return DeregisterWorkerArgs(**_named(draw))


@generator(MarkWorkerDeadArgs)
def mark_worker_dead(draw: Draw) -> MarkWorkerDeadArgs:
    """One on record, or not."""
    return MarkWorkerDeadArgs(**_named(draw), reason=draw.pick(("", "gone")))


@generator(ListWorkersArgs)
def list_workers(draw: Draw) -> ListWorkersArgs:
    """A page, of a lane or of all."""
    return ListWorkersArgs(
        namespace=draw.pick((None, NAMESPACE)),
        lane_id=draw.pick((None, LANE)),
        limit=draw.pick((1, 50)),
        count_leases=draw.chance(0.5),
    )


@generator(ExpireWorkerArgs)
def expire_worker(draw: Draw) -> ExpireWorkerArgs:
    """Silent or not."""
    worker = draw.one_of(draw.world.all(WorkerRegistration), RegisterWorkerArgs)
    return ExpireWorkerArgs(worker_identity=worker.identity)


@generator(RevokeDeadWorkersLeaseArgs)
def revoke_dead_workers_lease(draw: Draw) -> RevokeDeadWorkersLeaseArgs:
    """Of a worker that died, or was only silent."""
    return RevokeDeadWorkersLeaseArgs(
        execution_id=draw.execution().execution_id,
        worker_instance_id=draw.pick(WORKERS)[1],
        died_at=draw.now,
        reason="gone",
        silent_ms=draw.pick((None, WORKER_TTL_MS)),
    )


@generator(SettleWorkerDeathArgs)
def settle_worker_death(draw: Draw) -> SettleWorkerDeathArgs:
    """One that is on record, or not."""
    return SettleWorkerDeathArgs(death_id=_death_id(draw))


@generator(ForgetWorkerDeathArgs)
def forget_worker_death(draw: Draw) -> ForgetWorkerDeathArgs:
    """One that is on record, or not."""
    return ForgetWorkerDeathArgs(death_id=_death_id(draw))

"""The worker registry: listing workers, and taking the leases of dead ones away.

A death is a record of its own. Its leases are in other partitions, so they are revoked one by one,
each by a command that looks again; the record goes when that is done, and a duty finishes what a
crash left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowfabric.contracts.workers import (
    ListWorkersArgs,
    ListWorkersPage,
    MarkWorkerDeadArgs,
    MarkWorkerDeadResult,
    WorkerInfo,
    WorkerMarkedDead,
    WorkerNotRegistered,
)
from flowfabric.core import indexes
from flowfabric.core.commands import (
    ForgetWorkerDeathArgs,
    RevokeDeadWorkersLeaseArgs,
    SettleWorkerDeathArgs,
    WorkerDeathSettled,
    WorkerLeaseSettled,
)
from flowfabric.core.indexes import scope_of
from flowfabric.core.records import WorkerDeath, WorkerRegistration, key_for, worker_identity
from flowfabric.engine.cursors import format_cursor, parse_cursor
from flowfabric.engine.listing import Row, fill_page, load_records, merged, scopes_in
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine

PAGE: Final = 100
PAGES_MAX: Final = 100
"""How many pages of leases are revoked at once; the duty goes on with what is left."""


@operation(MarkWorkerDeadArgs)
async def mark_worker_dead(
    engine: Engine, args: MarkWorkerDeadArgs, envelope: Envelope
) -> MarkWorkerDeadResult:
    """Take a worker off the record and revoke its leases.

    Raises:
        InvalidInput: the namespace is not the caller's.
    """
    [answer] = await engine.decide([(args, envelope)])
    if isinstance(answer, Exception):
        raise answer
    if not isinstance(answer, WorkerMarkedDead):
        return WorkerNotRegistered()
    revoked = 0
    identity = worker_identity(args.namespace, args.worker_instance_id)
    deaths = await engine.store.list_keys(f"{WorkerDeath.KIND}/{identity}/", limit=PAGE)
    for key in deaths:
        revoked += await _settle(engine, key.partition("/")[2])
    return WorkerMarkedDead(revoked_leases=revoked)


@operation(SettleWorkerDeathArgs)
async def settle_worker_death(
    engine: Engine, args: SettleWorkerDeathArgs, envelope: Envelope
) -> WorkerDeathSettled:
    """Revoke the leases of a worker that is dead."""
    return WorkerDeathSettled(revoked_leases=await _settle(engine, args.death_id))


async def _settle(engine: Engine, death_id: str) -> int:
    """Revoke the leases of a dead worker. Its death is forgotten once none is left to look at."""
    [death] = await load_records(engine.store, [key_for(WorkerDeath, death_id)])
    if not isinstance(death, WorkerDeath):
        return 0
    revoked, failed, after = 0, False, None
    scope = scope_of(death.namespace, death.worker_instance_id)
    for _ in range(PAGES_MAX):
        page = await engine.store.read_index(indexes.WORKER_LEASES, scope, after=after, limit=PAGE)
        answers = await engine.execute_unbounded([_revocation(death, member) for _, member in page])
        revoked += sum(_is_revoked(answer) for answer in answers)
        failed = failed or any(isinstance(answer, Exception) for answer in answers)
        if len(page) < PAGE:
            break
        after = page[-1]
    else:
        failed = True
    if not failed:
        await engine.execute_unbounded([ForgetWorkerDeathArgs(death_id=death_id)])
    return revoked


def _revocation(death: WorkerDeath, execution_id: str) -> RevokeDeadWorkersLeaseArgs:
    return RevokeDeadWorkersLeaseArgs(
        execution_id=execution_id,
        worker_instance_id=death.worker_instance_id,
        died_at=death.died_at,
        reason=death.reason,
        silent_ms=death.silent_ms,
    )


def _is_revoked(answer: Any) -> bool:
    return isinstance(answer, WorkerLeaseSettled) and answer.action == "revoked"


@operation(ListWorkersArgs)
async def list_workers(engine: Engine, args: ListWorkersArgs, envelope: Envelope) -> ListWorkersPage:
    """The workers on record, those that registered first come first."""
    scopes = await _scopes(engine, args, envelope.namespace)
    read = merged(engine, scopes)

    async def keep(rows: list[Row]) -> list[tuple[Row, WorkerRegistration]]:
        workers = await load_records(
            engine.store, [key_for(WorkerRegistration, member) for _, member in rows]
        )
        return [
            (row, worker)
            for row, worker in zip(rows, workers, strict=True)
            if isinstance(worker, WorkerRegistration)
        ]

    page, more = await fill_page(read, keep, parse_cursor(args.cursor), args.limit)
    now = await engine.store.now()
    counts = [await _held_leases(engine, worker) if args.count_leases else None for _, worker in page]
    return ListWorkersPage(
        workers=tuple(
            worker_info(worker, now, count) for (_, worker), count in zip(page, counts, strict=True)
        ),
        next_cursor=format_cursor(page[-1][0]) if more and page else None,
    )


async def _scopes(engine: Engine, args: ListWorkersArgs, bound: str | None) -> list[tuple[str, str]]:
    """Where the workers stand that are asked for, and that the caller may see."""
    if bound is not None and args.namespace not in (None, bound):
        return []
    namespace = args.namespace if bound is None else bound
    if args.lane_id is not None:
        scopes = await scopes_in(engine, indexes.WORKER_LANES, namespace, args.lane_id)
        return [(indexes.WORKER_LANES, scope) for scope in scopes]
    if namespace is not None:
        return [(indexes.WORKERS, namespace)]
    return [(indexes.WORKERS, scope) for scope in await scopes_in(engine, indexes.WORKERS, None)]


async def _held_leases(engine: Engine, worker: WorkerRegistration) -> int:
    scope = scope_of(worker.namespace, worker.worker_instance_id)
    return await engine.store.count_index(indexes.WORKER_LEASES, scope)


def worker_info(worker: WorkerRegistration, now: int, held_leases: int | None = None) -> WorkerInfo:
    """What is shown of a worker."""
    return WorkerInfo(
        worker_id=worker.worker_id,
        worker_instance_id=worker.worker_instance_id,
        namespace=worker.namespace,
        lanes=worker.lanes,
        capabilities=worker.capabilities,
        registered_at_ms=worker.registered_at,
        last_heartbeat_ms=worker.last_heartbeat_at,
        expires_at_ms=worker.expires_at,
        ttl_ms=worker.ttl_ms,
        alive=worker.expires_at > now,
        draining=worker.draining,
        concurrency=worker.concurrency,
        host=worker.host,
        pid=worker.pid,
        held_leases=held_leases,
    )

"""``workers``: who is there, and what to do about one that is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.cli.exits import OK, REFUSED, UsageError
from flowfabric.cli.output import print_json, print_note, print_table, shown_age
from flowfabric.cli.session import open_engine, run
from flowfabric.contracts.workers import ListWorkersArgs, MarkWorkerDeadArgs, WorkerMarkedDead

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.workers import ListWorkersPage, WorkerInfo


def manage_workers(arguments: Namespace) -> int:
    """Carry out ``workers``."""
    if arguments.action == "list":
        if arguments.instance is not None:
            raise UsageError("'workers list' takes no instance id; '--lane' narrows it")
        return run(_list(arguments))
    if arguments.instance is None:
        raise UsageError("name the instance id of the dead worker; 'workers list' shows it")
    return run(_mark_dead(arguments))


async def _list(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        page = await engine.execute(
            ListWorkersArgs(
                lane_id=arguments.lane,
                cursor=arguments.cursor,
                limit=arguments.limit,
                count_leases=True,
            )
        )
        now = await engine.store.now()
    if arguments.json:
        print_json(page)
    else:
        _print_page(page, now)
    return OK


def _print_page(page: ListWorkersPage, now: int) -> None:
    rows = [
        [
            worker.worker_instance_id,
            worker.worker_id,
            _state(worker),
            f"{worker.held_leases}/{worker.concurrency or '?'}",
            shown_age(worker.last_heartbeat_ms, now),
            ", ".join(worker.capabilities),
            ", ".join(worker.lanes),
        ]
        for worker in page.workers
    ]
    headers = ["INSTANCE", "WORKER", "STATE", "RUNS", "HEARD OF", "CAPABILITIES", "LANES"]
    print_table(headers, rows, flexible=len(headers) - 1)
    if page.next_cursor is not None:
        print_note(f"there is more: add --cursor '{page.next_cursor}'")


def _state(worker: WorkerInfo) -> str:
    if not worker.alive:
        return "silent"
    return "draining" if worker.draining else "alive"


async def _mark_dead(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        answer = await engine.execute(
            MarkWorkerDeadArgs(
                worker_instance_id=arguments.instance,
                namespace=arguments.namespace,
                reason=arguments.reason,
            )
        )
    if arguments.json:
        print_json(answer)
    elif isinstance(answer, WorkerMarkedDead):
        print(f"marked {arguments.instance} as dead; {answer.revoked_leases} leases were revoked")
    else:
        print_note(f"no worker {arguments.instance} is on record; it may have been silent for too long")
    return OK if isinstance(answer, WorkerMarkedDead) else REFUSED

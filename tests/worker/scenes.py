"""A worker in a process of its own: ``python scenes.py URL FOLDER LEASE_TTL_MS CONCURRENCY``.

What its handlers do is told in files of the folder, each line written at once, so that what
happened before a process was killed can be read afterwards.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from flowfabric import FlowFabric
from flowfabric.contracts.conditions import Single
from flowfabric.contracts.executions import (
    CompleteExecutionArgs,
    DelayExecutionArgs,
    FailExecutionArgs,
    UpdateProgressArgs,
)
from flowfabric.contracts.ids import LeaseFence
from flowfabric.contracts.journal import RecordStepArgs
from flowfabric.contracts.leases import RenewLeaseArgs
from flowfabric.contracts.streams import AppendFrameArgs
from flowfabric.contracts.suspensions import FreshWaitpoint, SuspendExecutionArgs
from flowfabric.errors import FlowFabricError
from flowfabric.minting import new_suspension_id, new_waitpoint_id
from flowfabric.task import Task

URL, FOLDER, LEASE_TTL_MS, CONCURRENCY = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

ff = FlowFabric(URL)


def tell(file: str, words: str) -> None:
    """Add one line. It is there for others even if this process is killed right after."""
    descriptor = os.open(FOLDER / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{words}\n".encode())
    os.close(descriptor)


@ff.handler
async def two_steps(task: Task) -> str:
    """Hangs in its second step until somebody else makes the second attempt."""

    async def second() -> str:
        tell("steps", f"second in attempt {task.attempt}")
        if task.attempt == 0:
            await asyncio.sleep(60)
        return "second"

    await task.step("first", tell, "steps", f"first in attempt {task.attempt}")
    return f"{await task.step('second', second)} by attempt {task.attempt}"


@ff.handler
async def zombie(task: Task, second_waits: bool = False) -> str:
    """In its first attempt it tries everything once its worker has noticed that the lease is gone."""
    tell("zombie", f"attempt {task.attempt}")
    if task.attempt == 0:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            tell("late", json.dumps(await late_answers(task)))
            raise
    while second_waits and not (FOLDER / "late").exists():
        await asyncio.sleep(0.01)
    return f"attempt {task.attempt}"


async def late_answers(task: Task) -> dict[str, str]:
    answers = {}
    for command in late_commands(task):
        try:
            answers[type(command).__name__] = repr(await ff.engine.execute(command))
        except FlowFabricError as error:
            answers[type(command).__name__] = error.code
    return answers


def late_commands(task: Task) -> list[Any]:
    lease_id, lease_epoch, attempt_id = task.fence
    parts: Any = {"lease_id": lease_id, "lease_epoch": lease_epoch, "attempt_id": attempt_id}
    named: Any = {"execution_id": task.execution_id}
    fenced: Any = {**named, "fence": LeaseFence(**parts), "attempt_index": task.attempt}
    waitpoint = FreshWaitpoint(waitpoint_id=new_waitpoint_id(), waitpoint_key="late")
    return [
        RenewLeaseArgs(**fenced, lease_ttl_ms=60_000),
        AppendFrameArgs(**named, **parts, attempt_index=0, frame_type="late", payload=b""),
        UpdateProgressArgs(**named, **parts, progress_pct=99),
        RecordStepArgs(**fenced, name="late", ordinal=0, value=b""),
        SuspendExecutionArgs(
            **fenced,
            suspension_id=new_suspension_id(),
            waitpoints=(waitpoint,),
            resume_condition=Single(waitpoint_key="late"),
        ),
        DelayExecutionArgs(**fenced, delay_until=0, source="lease_holder"),
        FailExecutionArgs(**fenced, failure_reason="late", failure_category="late", source="lease_holder"),
        CompleteExecutionArgs(**fenced, result_payload=b'"late"', source="lease_holder"),
    ]


@ff.handler
async def count(number: int) -> int:
    """Says that it ran."""
    tell("counts", str(number))
    await asyncio.sleep(0)
    return number


@ff.handler
async def slow(seconds: float) -> str:
    """Takes its time."""
    tell("slow", "begun")
    await asyncio.sleep(seconds)
    tell("slow", "ended")
    return "done"


async def main() -> None:
    """Work until a signal ends it."""
    async with ff:
        tell("workers", f"ready {os.getpid()}")
        begun = time.process_time()
        await ff.run_worker(
            handle_signals=True,
            lease_ttl_ms=LEASE_TTL_MS,
            concurrency=CONCURRENCY,
            drain_timeout_s=10.0,
        )
        tell("workers", f"cpu {time.process_time() - begun}")


if __name__ == "__main__":
    asyncio.run(main())

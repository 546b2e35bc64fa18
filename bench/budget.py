"""One budget with a hundred spenders: how many reports a second it counts, and what contention costs.

First all spenders report through one engine, which counts the reports of one moment in one commit.
Then they are spread over several engines, as they are over processes, whose commits meet at one
record. A report that meets another one is decided again; a retry storm shows as conflicts a report.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import cast

from bench.scene import CountingStore, Figure, percentile
from flowfabric import errors
from flowfabric.budgeting import Budget, budget_creation
from flowfabric.contracts.budgets import ReportUsageArgs, UsageApplied
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.ids import budget_id_of
from flowfabric.contracts.leases import ClaimedWork
from flowfabric.core.commands import CandidateClaimed, ClaimCandidateArgs
from flowfabric.engine.engine import Engine
from flowfabric.minting import new_attempt_id, new_execution_id, new_lease_id
from flowfabric.testing.clock import ClockedStore
from flowfabric.urls import store_for

SPENDERS = 100
REPORTS = 50
"""How many each spender makes, one after the other."""
ENGINES = 4
NAMESPACE, LANE, NAME = "bench", "default", "team"
LEASE_MS = 3_600_000
PAUSE_S = 0.05
"""Before a report is made again that was refused as contended, as the SDK does."""
CONFLICTS_MAX = 0.5
"""Of two reports, at most one is decided twice."""


async def measure(url: str, *, spenders: int = SPENDERS, reports: int = REPORTS) -> list[Figure]:
    """Reports through one engine, then through several."""
    figures: list[Figure] = []
    counted = 0
    for engines in (1, ENGINES):
        async with opened(url, engines) as (running, stores):
            if not counted:
                await running[0].execute(budget_creation(NAME, NAMESPACE, hard={}, soft={}))
            claims = [await claim(running[0]) for _ in range(spenders)]
            for store in stores:
                store.take_conflicts()
            seconds, tally = await spend(running, claims, reports)
            conflicts = sum(store.take_conflicts() for store in stores)
            counted += spenders * reports
            status = await Budget(running[0], NAMESPACE, NAME).status()
            assert status.usage == {"tokens": counted}, status.usage
        figures += shown(engines, spenders * reports, seconds, tally, conflicts)
    return figures


def shown(engines: int, reports: int, seconds: float, tally: Tally, conflicts: int) -> list[Figure]:
    """The figures of one run."""
    through = "one engine" if engines == 1 else f"{engines} engines"
    latencies, rate = tally.latencies, reports / seconds
    return [
        Figure(name=f"usage reports, {through}", value=rate, unit="1/s", note=f"{SPENDERS} spenders"),
        Figure(name=f"report, p50, {through}", value=percentile(latencies, 0.5), unit="ms"),
        Figure(name=f"report, p99, {through}", value=percentile(latencies, 0.99), unit="ms"),
        Figure(
            name=f"conflicts a report, {through}",
            value=conflicts / reports,
            unit="",
            ceiling=CONFLICTS_MAX,
            note=f"{tally.contended} reports were made again",
        ),
    ]


@contextlib.asynccontextmanager
async def opened(url: str, count: int) -> AsyncIterator[tuple[list[Engine], list[CountingStore]]]:
    """So many engines, each with a store object of its own over the same data."""
    stores = [CountingStore(cast("ClockedStore", store_for(url))) for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine(store, namespace=NAMESPACE)) for store in stores]
        yield engines, stores


async def claim(engine: Engine) -> ClaimedWork:
    """Create and claim an execution that may spend."""
    execution_id = new_execution_id()
    await engine.execute(
        CreateExecutionArgs(
            execution_id=execution_id,
            namespace=NAMESPACE,
            lane_id=LANE,
            execution_kind="spend",
            input_payload=b"",
            priority=0,
            creator_identity="bench",
        )
    )
    outcome = await engine.execute(
        ClaimCandidateArgs(
            execution_id=execution_id,
            lane_id=LANE,
            worker_id="worker",
            worker_instance_id="worker-1",
            worker_capabilities=frozenset(),
            lease_id=new_lease_id(),
            attempt_id=new_attempt_id(),
            lease_ttl_ms=LEASE_MS,
        )
    )
    assert isinstance(outcome, CandidateClaimed)
    return outcome.work


class Tally:
    """What the spenders have met."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        """Milliseconds of each report, from asking first to the answer."""
        self.contended = 0
        """How often a report was not decided because others were faster each time, and was made again."""


async def spend(engines: list[Engine], claims: list[ClaimedWork], reports: int) -> tuple[float, Tally]:
    """Let all spenders report at the same time. Returns the seconds in all, and what they have met."""
    tally = Tally()
    begun = time.perf_counter()
    await asyncio.gather(
        *(_spender(engines[place % len(engines)], held, reports, tally) for place, held in enumerate(claims))
    )
    return time.perf_counter() - begun, tally


async def _spender(engine: Engine, held: ClaimedWork, reports: int, tally: Tally) -> None:
    for number in range(reports):
        report = ReportUsageArgs(
            budget_id=budget_id_of(NAMESPACE, NAME),
            execution_id=held.execution_id,
            fence=held.fence,
            dimensions=("tokens",),
            deltas=(1,),
            dedup_key=f"{held.execution_id}/{number}",
        )
        begun = time.perf_counter()
        while not await _is_counted(engine, report):
            tally.contended += 1
            await asyncio.sleep(PAUSE_S)
        tally.latencies.append((time.perf_counter() - begun) * 1_000)


async def _is_counted(engine: Engine, report: ReportUsageArgs) -> bool:
    try:
        answer = await engine.execute(report)
    except errors.Contention:
        return False
    assert answer == UsageApplied(), answer
    return True

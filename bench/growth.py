"""What 100,000 suspended and 100,000 finished executions in the same lane do to the figures."""

from __future__ import annotations

from bench import latency, steps, throughput
from bench.scene import PAYLOAD, RESULT, Figure, file_bytes
from flowfabric import FlowFabric
from flowfabric.contracts.conditions import Single
from flowfabric.contracts.executions import CompleteExecutionArgs, CreateExecutionArgs
from flowfabric.contracts.leases import ClaimBatchArgs, ClaimedWork
from flowfabric.contracts.suspensions import SuspendExecutionArgs
from flowfabric.minting import fresh_waitpoint, new_execution_id, new_suspension_id

HISTORY = 100_000
BATCH = 250
GROWTH_MAX = 1.3


async def measure(url: str, *, history: int = HISTORY) -> list[Figure]:
    """The other benchmarks on an empty store, then beside the history."""
    before = await _all(url)
    await fill(url, history)
    after = await _all(url)
    figures = [_growth(old, new) for old, new in zip(before, after, strict=True) if "p99" not in old.name]
    if url.startswith("sqlite:"):
        figures.append(Figure(name="database", value=file_bytes(url) / 2**20, unit="MiB"))
    return figures


async def _all(url: str) -> list[Figure]:
    found: list[Figure] = []
    for module in (throughput, latency, steps):
        found += await module.measure(url)
    return found


def _growth(old: Figure, new: Figure) -> Figure:
    ratio = old.value / new.value if old.unit == "1/s" else new.value / old.value
    return Figure(
        name=f"growth of {old.name}",
        value=ratio,
        unit="x",
        ceiling=GROWTH_MAX,
        note=f"{old.value:,.1f} -> {new.value:,.1f} {old.unit}",
    )


async def fill(url: str, history: int) -> None:
    """Make the history with the same commands that workers use."""
    app = FlowFabric(url)
    await app.start(scanners=False)
    try:
        for _ in range(history // BATCH):
            await create(app)
            await end(app, await claim(app))
            await create(app)
            await suspend(app, await claim(app))
    finally:
        await app.stop()


async def create(app: FlowFabric, payload: bytes = PAYLOAD) -> None:
    """So many executions that wait."""
    await app.engine.execute_many(
        [
            CreateExecutionArgs(
                execution_id=new_execution_id(),
                namespace=app.namespace,
                lane_id="default",
                execution_kind="echo",
                input_payload=payload,
                payload_encoding="bytes",
                priority=0,
                creator_identity="bench",
            )
            for _ in range(BATCH)
        ]
    )


async def claim(app: FlowFabric) -> tuple[ClaimedWork, ...]:
    """Lease so many."""
    result = await app.engine.execute(
        ClaimBatchArgs(
            lanes=("default",),
            worker_id="bench",
            worker_instance_id="bench",
            limit=BATCH,
            lease_ttl_ms=60_000,
        )
    )
    assert len(result.claims) == BATCH
    return result.claims


async def end(app: FlowFabric, claims: tuple[ClaimedWork, ...]) -> None:
    """Complete them."""
    await app.engine.execute_many(
        [
            CompleteExecutionArgs(
                execution_id=claim.execution_id,
                fence=claim.fence,
                attempt_index=claim.attempt_index,
                result_payload=RESULT,
            )
            for claim in claims
        ]
    )


async def suspend(app: FlowFabric, claims: tuple[ClaimedWork, ...]) -> None:
    """Suspend them until somebody sends a signal."""
    commands = []
    for claim in claims:
        waitpoint = fresh_waitpoint()
        commands.append(
            SuspendExecutionArgs(
                execution_id=claim.execution_id,
                fence=claim.fence,
                attempt_index=claim.attempt_index,
                suspension_id=new_suspension_id(),
                waitpoints=(waitpoint,),
                resume_condition=Single(waitpoint_key=waitpoint.waitpoint_key),
            )
        )
    answers = await app.engine.execute_many(commands)
    assert not any(isinstance(answer, Exception) for answer in answers), answers[0]

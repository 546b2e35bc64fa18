"""Flows: how many chains of ten members end a second, and what a join of a thousand parents costs."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import cast

from bench.scene import PAYLOAD, CountingStore, Figure, Scene, running
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.flows import NewEdge, SubmitFlowArgs
from flowfabric.contracts.ids import ExecutionId
from flowfabric.contracts.states import PublicState
from flowfabric.minting import new_execution_id, new_flow_id, new_uuid4
from flowfabric.testing.clock import ClockedStore
from flowfabric.urls import store_for

FLOWS = 200
FLOWS_AT_ONCE = 16
CHAIN = 10
PARENTS = 1_000


async def measure(url: str, *, flows: int = FLOWS, parents: int = PARENTS) -> list[Figure]:
    """Chains side by side, then one wide join; every member runs its handler in this process."""
    store = CountingStore(cast("ClockedStore", store_for(url)))
    async with running(url, store=store) as scene:
        await run_chains(scene, flows // 10)
        rate = await run_chains(scene, flows)
        chain_conflicts = store.take_conflicts()
        seconds = await run_fan_in(scene, parents)
    return [
        Figure(name=f"flows of {CHAIN} members in a row", value=rate, unit="1/s", floor=100),
        Figure(name="conflicts a flow", value=chain_conflicts / (flows * 1.1), unit=""),
        Figure(name=f"join of {parents:,} parents", value=parents / seconds, unit="1/s", note="parents"),
        Figure(name="conflicts a parent", value=store.take_conflicts() / parents, unit="", ceiling=0.1),
    ]


async def run_chains(scene: Scene, flows: int) -> float:
    """Flows a second, from the first submit to the last member's end."""
    begun = time.perf_counter()
    room = asyncio.Semaphore(FLOWS_AT_ONCE)
    await asyncio.gather(*(_run_chain(scene, room) for _ in range(flows)))
    return flows / (time.perf_counter() - begun)


async def _run_chain(scene: Scene, room: asyncio.Semaphore) -> None:
    async with room:
        flow_id = new_flow_id()
        members = [new_execution_id(flow_id=flow_id) for _ in range(CHAIN)]
        await _submit(scene, flow_id, members, list(pairwise(members)))
        await _wait(scene, members[-1])


async def run_fan_in(scene: Scene, parents: int) -> float:
    """Seconds from submitting the parents to the end of the one child that waits for all of them."""
    begun = time.perf_counter()
    flow_id = new_flow_id()
    *above, child = (new_execution_id(flow_id=flow_id) for _ in range(parents + 1))
    await _submit(scene, flow_id, [*above, child], [(parent, child) for parent in above])
    await _wait(scene, child)
    return time.perf_counter() - begun


async def _submit(
    scene: Scene, flow_id: str, members: list[ExecutionId], edges: list[tuple[ExecutionId, ExecutionId]]
) -> None:
    await scene.app.engine.execute(
        SubmitFlowArgs(
            flow_id=flow_id,
            flow_kind="bench",
            namespace=scene.app.namespace,
            executions=tuple(_member(scene, member) for member in members),
            edges=tuple(
                NewEdge(
                    edge_id=new_uuid4(), upstream_execution_id=upstream, downstream_execution_id=downstream
                )
                for upstream, downstream in edges
            ),
        )
    )


def _member(scene: Scene, execution_id: ExecutionId) -> CreateExecutionArgs:
    return CreateExecutionArgs(
        execution_id=execution_id,
        namespace=scene.app.namespace,
        lane_id="default",
        execution_kind="echo",
        input_payload=PAYLOAD,
        payload_encoding="bytes",
        priority=0,
        creator_identity="bench",
    )


async def _wait(scene: Scene, execution_id: ExecutionId) -> None:
    run = scene.app.run(execution_id)
    await run.wait()
    assert await run.state() is PublicState.COMPLETED

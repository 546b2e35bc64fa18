"""What a handler is handed down by those it depends on."""

import uuid

from flowfabric import FlowFabric, SyncTask, Task
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.flows import AddEdgesArgs, AddExecutionToFlowArgs, CreateFlowArgs, NewEdge
from flowfabric.contracts.ids import flow_partition
from flowfabric.contracts.runs import ReadRunArgs
from flowfabric.contracts.states import PublicState
from tests.worker.stage import store_of, until, working


async def in_order(app: FlowFabric, *kinds: str) -> list[str]:
    """A flow in which the last kind depends on the others. Returns the execution ids."""
    flow_id = str(uuid.uuid4())
    ids = [f"{{fp:{flow_partition(flow_id)}}}:{uuid.uuid4()}" for _ in kinds]
    namespace = app.engine.namespace or "default"
    later = await store_of(app).now() + 600_000
    await app.engine.execute(CreateFlowArgs(flow_id=flow_id, flow_kind="dag", namespace=namespace))
    for execution_id, kind in zip(ids, kinds, strict=True):
        await app.engine.execute(
            CreateExecutionArgs(
                execution_id=execution_id,
                namespace=namespace,
                lane_id="default",
                execution_kind=kind,
                input_payload=b"",
                priority=0,
                creator_identity="tests",
                execution_deadline_at=later,
            )
        )
        await app.engine.execute(AddExecutionToFlowArgs(flow_id=flow_id, execution_id=execution_id))
    edges = tuple(
        NewEdge(
            edge_id=str(uuid.uuid4()),
            upstream_execution_id=upstream,
            downstream_execution_id=ids[-1],
            data_passing_ref=kind,
        )
        for upstream, kind in zip(ids[:-1], kinds, strict=False)
    )
    await app.engine.execute(AddEdgesArgs(flow_id=flow_id, edges=edges, seal=True))
    return ids


async def test_a_handler_reads_the_results_of_its_upstreams(app: FlowFabric) -> None:
    @app.handler
    async def one() -> int:
        return 1

    @app.handler
    async def two() -> int:
        return 2

    @app.handler
    async def total(task: Task) -> int:
        return sum((await task.inputs(int)).values())

    @app.handler
    def names(task: SyncTask) -> list[str]:
        return sorted(task.inputs())

    for last, expected in (("total", b"3"), ("names", b'["one","two"]')):
        ids = await in_order(app, "one", "two", last)
        async with working(app):

            async def result(execution_id: str = ids[-1]) -> bytes | None:
                view = await app.engine.execute(ReadRunArgs(execution_id=execution_id))
                return view.result if view.public_state is PublicState.COMPLETED else None

            assert await until(result) == expected

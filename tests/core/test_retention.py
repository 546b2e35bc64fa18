"""What may be removed, and in which steps, decided by the rules alone."""

from flowfabric.contracts.limits import DAY_MS
from flowfabric.core.commands import RemoveExecutionArgs
from flowfabric.core.records import (
    Execution,
    FlowProgress,
    decode_record,
    encode_record,
    flow_identity,
    key_for,
)
from flowfabric.errors import InvalidInput
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed
from flowfabric.testing.conformance.flows import Graph


async def test_an_execution_of_an_older_version_has_no_date_and_can_be_read():
    async with Bed(MemoryStore()) as bed:
        claim = await bed.start()
        await bed.complete(claim)
        record = await bed.execution(claim.execution_id)
        record.retention_from = None
        again = decode_record(record.key, encode_record(record))
        assert again == record


async def test_a_young_execution_is_kept_and_nothing_changes():
    async with Bed(MemoryStore()) as bed:
        claim = await bed.start()
        await bed.complete(claim)
        for execution_id in (claim.execution_id, await bed.create()):
            answer = await bed.unchanging(RemoveExecutionArgs(execution_id=execution_id, last=True))
            assert answer.action == "kept"


async def test_of_another_namespace_nothing_is_removed():
    async with Bed(MemoryStore()) as bed:
        claim = await bed.start()
        await bed.complete(claim)
        removal = RemoveExecutionArgs(execution_id=claim.execution_id, retention_ms=0, last=True)
        assert (await bed.unchanging(removal, namespace="other")).action == "gone"


async def test_a_flow_that_is_open_is_looked_at_once_in_a_retention():
    async with Bed(MemoryStore()) as bed:
        graph = await Graph(bed).open("a")
        seen = set()
        for _ in range(48):
            await bed.advance(DAY_MS // 24)
            progress = await bed.get(FlowProgress, flow_identity(graph.flow_id))
            seen.add(progress.retention_from)
        assert len(seen) == 3


async def test_a_member_that_has_ended_waits_for_its_flow():
    async with Bed(MemoryStore()) as bed:
        graph = await Graph(bed).open("a")
        await bed.complete(await bed.claim(graph.ids["a"]))
        removal = RemoveExecutionArgs(execution_id=graph.ids["a"], retention_ms=0, last=True)
        [answer] = await bed.engine.execute_unbounded([removal])
        assert answer.action == "kept"
        assert key_for(Execution, graph.ids["a"]) in (await bed.dump())["records"]


async def test_records_of_something_else_are_not_removed():
    async with Bed(MemoryStore()) as bed:
        claim = await bed.start()
        await bed.complete(claim)
        other = key_for(Execution, await bed.create())
        removal = RemoveExecutionArgs(execution_id=claim.execution_id, retention_ms=0, keys=(other,))
        assert isinstance(await bed.refused(removal), InvalidInput)

"""What flows do when records are damaged, and how far one commit reaches."""

import asyncio

import pytest

from flowfabric import errors
from flowfabric.contracts.flows import (
    AckCancelMemberArgs,
    AddExecutionToFlowArgs,
    DescribeFlowArgs,
    FlowCancelled,
    ListEdgesArgs,
    ListFlowsArgs,
    NewEdge,
    OnSatisfied,
    OutgoingEdges,
    PartiallyCancelled,
    QuorumOfEdges,
    SubmitFlowArgs,
)
from flowfabric.contracts.ids import flow_partition, quota_policy_id_of
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.states import PublicState
from flowfabric.core.records import Edge, Execution, FlowNode, Link, encode_record, flow_identity, key_for
from flowfabric.core.rules.delivering import PER_DELIVERY
from flowfabric.core.rules.flows import MEMBERS_SHOWN_MAX
from flowfabric.stores.memory import MemoryStore
from flowfabric.stores.sqlite import SqliteStore
from flowfabric.testing import Bed, ManualClock, RecordingStore
from flowfabric.testing.bed import NAMESPACE
from flowfabric.testing.conformance.admission import new_quota
from flowfabric.testing.conformance.budgets import new_budget
from flowfabric.testing.conformance.flows import graph


@pytest.fixture
async def bed():
    async with Bed(MemoryStore()) as bed:
        yield bed


@pytest.mark.scenario("FLOW-020")
async def test_a_broken_member_does_not_keep_the_others_from_being_cancelled(bed):
    flow, control = await graph(bed, "ab"), await graph(bed, "a")
    bed.store._records[key_for(Execution, flow.ids["a"])] = (999, b"\xc1junk")
    ids = (flow.ids["a"], flow.ids["b"])
    assert await bed.execute(flow.cancelling(wait=True)) == PartiallyCancelled(
        cancellation_policy="cancel_all",
        member_execution_ids=ids,
        failed_member_execution_ids=(flow.ids["a"],),
    )
    assert await bed.state(flow.ids["b"]) is PublicState.CANCELLED
    assert isinstance(await bed.execute(control.cancelling(wait=True)), FlowCancelled)


async def test_a_broken_member_does_not_stop_the_duty_that_cancels(bed):
    flow = await graph(bed, "ab")
    bed.store._records[key_for(Execution, flow.ids["a"])] = (999, b"\xc1junk")
    await bed.execute(flow.cancelling())
    assert await bed.state(flow.ids["b"]) is PublicState.CANCELLED


@pytest.mark.scenario("FLOW-026")
@pytest.mark.parametrize("damage", ["gone", "other ends", "unknown"])
async def test_a_corrupt_graph_is_never_passed_over(bed, damage):
    flow = await graph(bed, "abc")
    await flow.connect("ab")
    edge = await bed.get(Edge, f"{flow_identity(flow.flow_id)}/{flow.edges['ab']}")
    if damage == "gone":
        del bed.store._records[edge.key]
    elif damage == "other ends":
        edge.downstream_execution_id = flow.ids["c"]
        bed.store._records[edge.key] = (999, encode_record(edge))
    else:
        node = await bed.get(FlowNode, flow.ids["a"])
        node.outgoing = (*node.outgoing, Link(bed.new_id(), flow.ids["c"]))
        bed.store._records[node.key] = (999, encode_record(node))
    listing = ListEdgesArgs(flow_id=flow.flow_id, direction=OutgoingEdges(from_node=flow.ids["a"]))
    assert isinstance(await bed.refused(listing), errors.StoreCorrupt)


async def test_more_edges_than_one_commit_sees_to_are_resolved_in_pieces(bed):
    names = "".join(chr(0x4E00 + number) for number in range(PER_DELIVERY + 5))
    flow = await graph(bed, f"a{names}")
    await flow.connect(" ".join(f"a{name}" for name in names))
    await flow.run("a")
    states = list((await flow.states()).values())
    assert states.count(PublicState.WAITING) == len(names)
    await bed.check()


@pytest.mark.slow
async def test_a_flow_of_many_members_is_cancelled_in_bounded_commits(bed):
    flow = await graph(bed)
    ids = [bed.new_execution_id() for _ in range(MEMBERS_SHOWN_MAX + 50)]
    for start in range(0, len(ids), 210):
        part = ids[start : start + 210]
        await bed.engine.execute_many([bed.creation(execution_id=found) for found in part])
        adding = [AddExecutionToFlowArgs(flow_id=flow.flow_id, execution_id=found) for found in part]
        await bed.engine.execute_many(adding)
    commits = []
    commit = bed.engine.store.commit

    async def noting(change):
        commits.append(len(change.changes))
        await commit(change)

    bed.engine.store.commit = noting
    answer = await bed.execute(flow.cancelling())
    assert answer.member_count == len(ids)
    assert answer.member_execution_ids == tuple(ids[:MEMBERS_SHOWN_MAX])
    assert commits[0] == 2
    await bed.settle()
    assert {await bed.state(found) for found in ids} == {PublicState.CANCELLED}


@pytest.mark.parametrize("members", [2, 60])
async def test_a_flow_is_submitted_with_as_few_loads_however_many_members_it_has(members):
    """Each of them may name its own lane, budget and quota policy."""
    store = RecordingStore(MemoryStore())
    async with Bed(store) as bed:
        named = [await _policy_of_its_own(bed, place) for place in range(members)]
        store.loads = 0
        flow_id = bed.new_flow_id()
        ids = [bed.new_execution_id() for _ in range(members)]
        await bed.execute(
            SubmitFlowArgs(
                flow_id=flow_id,
                flow_kind="kind",
                namespace=NAMESPACE,
                executions=tuple(
                    bed.creation(execution_id=execution_id, lane_id=f"lane {place}", policy=policy)
                    for place, (execution_id, policy) in enumerate(zip(ids, named, strict=True))
                ),
                edges=tuple(
                    NewEdge(
                        edge_id=bed.new_id(), upstream_execution_id=upstream, downstream_execution_id=ids[-1]
                    )
                    for upstream in ids[:-1]
                ),
            )
        )
        assert store.loads == 2  # one for the clock, and one of the lanes
        await bed.check()


async def _policy_of_its_own(bed, place):
    name = f"policy {place}"
    await new_budget(bed, name=name)
    await new_quota(bed, name=name, quota_policy_id=quota_policy_id_of(NAMESPACE, name))
    return ExecutionPolicy(budget_ids=(name,), quota_policy_id=name)


async def test_listing_the_flows_of_a_partition_reads_those_alone(bed):
    flow = await graph(bed)
    walked: list[str] = []
    bed.engine.store.list_keys = walked.append
    page = await bed.execute(ListFlowsArgs(partition=flow_partition(flow.flow_id)))
    assert [found.flow_id for found in page.flows] == [flow.flow_id]
    assert walked == []


async def test_an_acknowledgement_takes_an_ended_member_off_the_list(bed):
    flow = await graph(bed, "a")
    await bed.execute(flow.cancelling())
    await bed.unchanging(AckCancelMemberArgs(flow_id=flow.flow_id, execution_id=flow.ids["a"]))


async def test_members_of_a_flow_are_claimed_while_others_end(bed):
    flow = await graph(bed, "abcd")
    await flow.connect("ad bd cd")
    claims = [await bed.claim(flow.ids[name]) for name in "abc"]
    for claim in claims:
        await bed.complete(claim)
    described = await bed.execute(DescribeFlowArgs(flow_id=flow.flow_id))
    assert described.outcomes == {"success": 3}


async def test_two_engines_that_end_members_at_once_decide_each_join_once(tmp_path):
    path, names = str(tmp_path / "work.db"), "abcdefgh"
    async with Bed(SqliteStore(path)) as first, Bed(SqliteStore(path), clock=ManualClock()) as second:
        flow = await graph(first, f"{names}yz")
        pairs = [f"{name}{join}" for name in names for join in "yz"]
        await flow.connect(" ".join(pairs), {"z": QuorumOfEdges(k=3, on_satisfied=OnSatisfied.LET_RUN)})
        claims = [await first.claim(flow.ids[name]) for name in names]
        await asyncio.gather(
            *((first, second)[number % 2].complete(claim) for number, claim in enumerate(claims))
        )
        await first.settle()
        snapshot = await flow.snapshot()
        assert snapshot.outcomes == {"success": len(names)}
        assert {group.satisfied_count for group in snapshot.edge_groups} == {len(names)}
        assert [await first.state(flow.ids[name]) for name in "yz"] == [PublicState.WAITING] * 2
        await first.check()

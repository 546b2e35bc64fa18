"""The rules of flows, one command at a time. What needs an engine is played through on every store."""

from itertools import pairwise

import pytest
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.flows import (
    AddEdgesArgs,
    AddExecutionToFlowArgs,
    AnyOfEdges,
    ApplyDependencyToChildArgs,
    CancelFlowArgs,
    CancelFlowHeaderArgs,
    CreateFlowArgs,
    DependencyApplied,
    DescribeEdgeArgs,
    EdgeGroupPolicySet,
    FlowCancellationPolicy,
    FlowCancelStarted,
    NewEdge,
    SetEdgeGroupPolicyArgs,
    StageDependencyEdgeArgs,
    SubmitFlowArgs,
)
from flowfabric.contracts.ids import flow_partition
from flowfabric.contracts.limits import PAYLOAD_BYTES_MAX, SUBMIT_BYTES_MAX
from flowfabric.contracts.wire import from_wire, to_wire
from flowfabric.core.records import Edge, Flow, flow_identity
from flowfabric.core.rules.graph import STEPS_LOADED_ALONE
from flowfabric.core.state import Situation
from flowfabric.core.work import WorkingSet
from tests.core.harness import NAMESPACE, new_execution_id, new_id


@pytest.fixture
def flow(book):
    """A flow with two members and no edges: its id and theirs."""
    flow_id = new_id()
    book.run(CreateFlowArgs(flow_id=flow_id, flow_kind="dag", namespace=NAMESPACE))
    members = [book.create(execution_id=new_execution_id(flow_partition(flow_id))) for _ in range(2)]
    for member in members:
        book.run(AddExecutionToFlowArgs(flow_id=flow_id, execution_id=member))
    return flow_id, *members


def staging(flow, **fields):
    flow_id, upstream, downstream = flow
    defaults = {
        "flow_id": flow_id,
        "edge_id": new_id(),
        "upstream_execution_id": upstream,
        "downstream_execution_id": downstream,
        "expected_graph_revision": 2,
    }
    return StageDependencyEdgeArgs(**{**defaults, **fields})


def test_a_staged_edge_holds_its_downstream_back_at_once(book, flow):
    args = staging(flow)
    book.run(args)
    assert book.situation(flow[2]) is Situation.BLOCKED
    assert book.run(DescribeEdgeArgs(flow_id=flow[0], edge_id=args.edge_id)).edge_state == "pending"


def test_a_kind_of_dependency_that_there_is_not_is_refused(book, flow):
    with book.refuses(errors.InvalidInput):
        book.run(staging(flow, dependency_kind="always"))


def test_applying_says_how_many_are_open(book, flow):
    args = staging(flow)
    book.run(args)
    applied = book.run(
        ApplyDependencyToChildArgs(
            flow_id=flow[0],
            edge_id=args.edge_id,
            upstream_execution_id=flow[1],
            downstream_execution_id=flow[2],
            graph_revision=3,
        )
    )
    assert applied == DependencyApplied(unsatisfied_count=1)
    assert book.get(Edge, f"{flow_identity(flow[0])}/{args.edge_id}").applied_at == book.now


def test_a_deep_graph_is_checked_for_cycles_in_few_steps(book, monkeypatch):
    flow_id = new_id()
    book.run(CreateFlowArgs(flow_id=flow_id, flow_kind="dag", namespace=NAMESPACE))
    ids = [book.create(execution_id=new_execution_id(flow_partition(flow_id))) for _ in range(60)]
    for member in ids:
        book.run(AddExecutionToFlowArgs(flow_id=flow_id, execution_id=member))
    book.run(AddEdgesArgs(flow_id=flow_id, edges=tuple(edge(*ends) for ends in pairwise(ids[2:]))))
    loads: list[object] = []
    monkeypatch.setattr(WorkingSet, "put_loaded", noting(WorkingSet.put_loaded, loads))
    book.run(AddEdgesArgs(flow_id=flow_id, edges=(edge(ids[0], ids[1]), edge(ids[1], ids[2]))))
    assert len(loads) < 2 * STEPS_LOADED_ALONE
    with book.refuses(errors.CycleDetected):
        book.run(AddEdgesArgs(flow_id=flow_id, edges=(edge(ids[59], ids[0]),)))


def edge(upstream, downstream):
    return NewEdge(edge_id=new_id(), upstream_execution_id=upstream, downstream_execution_id=downstream)


def noting(function, calls):
    def noted(*args):
        calls.append(args)
        return function(*args)

    return noted


def test_a_policy_is_kept_with_the_join(book, flow):
    args = SetEdgeGroupPolicyArgs(flow_id=flow[0], downstream_execution_id=flow[2], policy=AnyOfEdges())
    assert book.run(args) == EdgeGroupPolicySet()
    stranger = SetEdgeGroupPolicyArgs(
        flow_id=flow[0], downstream_execution_id=new_execution_id(), policy=AnyOfEdges()
    )
    with book.refuses(errors.ExecutionNotInFlow):
        book.run(stranger)


def test_the_header_names_all_members_and_cancels_none(book, flow):
    header = CancelFlowHeaderArgs(
        flow_id=flow[0], reason="unwanted", cancellation_policy=FlowCancellationPolicy.CANCEL_ALL
    )
    started = book.run(header)
    assert started == FlowCancelStarted(
        cancellation_policy="cancel_all", member_execution_ids=flow[1:], member_count=2
    )
    assert book.situation(flow[1]) is Situation.ELIGIBLE
    with book.refuses(errors.ExecutionNotEligible):
        book.claim(flow[1])


def test_an_unknown_policy_of_cancelling_is_refused(flow):
    args = CancelFlowArgs(
        flow_id=flow[0], reason="", cancellation_policy=FlowCancellationPolicy.CANCEL_PENDING
    )
    with pytest.raises(errors.InvalidInput):
        from_wire({**to_wire(args), "cancellation_policy": "cancel_some"}, CancelFlowArgs)


def test_a_flow_of_too_many_bytes_is_refused():
    flow_id = new_id()
    large = CreateExecutionArgs(
        execution_id=new_execution_id(flow_partition(flow_id)),
        namespace=NAMESPACE,
        lane_id="lane",
        execution_kind="kind",
        input_payload=bytes(PAYLOAD_BYTES_MAX),
        priority=0,
        creator_identity="",
    )
    parts = tuple(
        replace(large, execution_id=new_execution_id(flow_partition(flow_id)))
        for _ in range(SUBMIT_BYTES_MAX // PAYLOAD_BYTES_MAX + 1)
    )
    whole = SubmitFlowArgs(flow_id=flow_id, flow_kind="dag", namespace=NAMESPACE, executions=parts)
    with pytest.raises(errors.InvalidInput, match="bytes of input"):
        whole.validate()
    replace(whole, executions=parts[1:]).validate()


def test_a_whole_flow_is_one_commit(book):
    flow_id = new_id()
    ids = [new_execution_id(flow_partition(flow_id)) for _ in range(2)]
    edge = NewEdge(edge_id=new_id(), upstream_execution_id=ids[0], downstream_execution_id=ids[1])
    parts = [
        {
            "execution_id": execution_id,
            "namespace": NAMESPACE,
            "lane_id": "lane",
            "execution_kind": "kind",
            "input_payload": [],
            "priority": 0,
            "creator_identity": "",
        }
        for execution_id in ids
    ]
    whole = {"flow_id": flow_id, "flow_kind": "dag", "namespace": NAMESPACE, "executions": parts}
    book.run(from_wire({**whole, "edges": [to_wire(edge)]}, SubmitFlowArgs))
    assert [book.situation(found) for found in ids] == [Situation.ELIGIBLE, Situation.BLOCKED]
    assert book.get(Flow, flow_identity(flow_id)).sealed_at == book.now

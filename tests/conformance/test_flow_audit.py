"""The auditor finds every kind of damage to a flow."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flowfabric.audit import audit
from flowfabric.core.audit import FLOW_INVARIANTS, INVARIANTS
from flowfabric.core.records import (
    Edge,
    EdgeGroup,
    Execution,
    Flow,
    FlowMember,
    FlowNode,
    FlowProgress,
    Link,
    encode_record,
    flow_identity,
    key_for,
)
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed
from flowfabric.testing.conformance.flows import graph
from flowfabric.testing.scenarios import ROOT

DAMAGE: dict[str, Callable[[Bed, Any], Awaitable[None]]] = {}
"""Invariant -> a coroutine function that breaks it in a sound flow ``ab bc``, of which a has succeeded."""


def damage(function):
    DAMAGE[function.__name__] = function
    return function


async def change(bed, record_type, identity, **fields):
    """Store a record with other fields behind the engine's back."""
    record = await bed.get(record_type, identity)
    for name, value in fields.items():
        setattr(record, name, value)
    version = bed.store._records[record.key][0]
    bed.store._records[record.key] = (version, encode_record(record))
    bed.forget()


def remove(bed, key):
    """Take a record away behind the engine's back."""
    del bed.store._records[key]
    bed.forget()


def overwrite(bed, key, data):
    """Store other bytes under a key behind the engine's back."""
    bed.store._records[key] = (bed.store._records[key][0], data)
    bed.forget()


@damage
async def members_without_gaps(bed, flow):
    del bed.store._records[key_for(FlowMember, f"{flow_identity(flow.flow_id)}/1")]


@damage
async def graph_is_mirrored(bed, flow):
    await change(bed, FlowNode, flow.ids["c"], incoming=())


@damage
async def graph_is_acyclic(bed, flow):
    link = Link(bed.new_id(), flow.ids["a"])
    node = await bed.get(FlowNode, flow.ids["c"])
    await change(bed, FlowNode, flow.ids["c"], outgoing=(*node.outgoing, link))
    await change(bed, FlowNode, flow.ids["a"], incoming=(Link(link.edge_id, flow.ids["c"]),))


@damage
async def edges_counted_once(bed, flow):
    await change(bed, EdgeGroup, flow.ids["b"], satisfied=2)


@damage
async def ends_are_passed_on(bed, flow):
    identity = f"{flow_identity(flow.flow_id)}/{flow.edges['ab']}"
    await change(bed, Edge, identity, state="pending")


@damage
async def one_verdict(bed, flow):
    await change(bed, Execution, flow.ids["c"], unresolved_dependencies=0)


@damage
async def cancelled_with_its_members(bed, flow):
    identity = flow_identity(flow.flow_id)
    await change(bed, Flow, identity, cancelled_at=1, cancellation_policy="cancel_all")


@damage
async def members_counted_once(bed, flow):
    await change(bed, FlowProgress, flow_identity(flow.flow_id), outcomes={"success": 2})


async def a_forgotten_failure(bed, flow):
    await change(bed, FlowProgress, flow_identity(flow.flow_id), lost_sinks=1)


async def a_member_wrongly_told_to_be_a_failure(bed, flow):
    await change(bed, FlowMember, f"{flow_identity(flow.flow_id)}/0", lost_sink=True)
    await change(bed, FlowProgress, flow_identity(flow.flow_id), lost_sinks=1)


async def a_join_said_to_be_short_of_edges(bed, flow):
    await change(bed, Flow, flow_identity(flow.flow_id), short_joins=1)


async def a_member_that_nothing_holds_back(bed, flow):
    await change(bed, Execution, flow.ids["c"], blockers=())


MORE_DAMAGE = {
    a_forgotten_failure: "members_counted_once",
    a_member_wrongly_told_to_be_a_failure: "members_counted_once",
    a_join_said_to_be_short_of_edges: "edges_counted_once",
    a_member_that_nothing_holds_back: "one_verdict",
}


@damage
async def closed_graph_stays(bed, flow):
    await change(bed, Flow, flow_identity(flow.flow_id), sealed_at=bed.clock.now_ms - 1)


@damage
async def one_namespace(bed, flow):
    identity = f"{flow_identity(flow.flow_id)}/{flow.edges['ab']}"
    await change(bed, Edge, identity, namespace="other")


@pytest.fixture
async def bed():
    async with Bed(MemoryStore()) as bed:
        yield bed


@pytest.mark.parametrize("invariant", DAMAGE)
async def test_the_damage_to_a_flow_is_found(bed, invariant):
    flow = await graph(bed, "abc")
    await flow.connect("ab bc")
    await flow.run("a")
    assert (await audit(bed.engine)).violations == ()
    await DAMAGE[invariant](bed, flow)
    assert invariant in {violation.invariant for violation in (await audit(bed.engine)).violations}


@pytest.mark.parametrize("damages", MORE_DAMAGE)
async def test_a_count_or_blocker_that_is_wrong_is_found(bed, damages):
    flow = await graph(bed, "abc")
    await flow.connect("ab bc")
    await flow.run("a")
    await damages(bed, flow)
    assert MORE_DAMAGE[damages] in {found.invariant for found in (await audit(bed.engine)).violations}


def test_every_invariant_is_explained():
    page = (ROOT / "docs" / "invariants.md").read_text("utf-8")
    assert [name for name in (*INVARIANTS, *FLOW_INVARIANTS) if f"`{name}`" not in page] == []


def test_every_invariant_of_flows_is_damaged_by_some_test():
    assert DAMAGE.keys() == FLOW_INVARIANTS.keys()

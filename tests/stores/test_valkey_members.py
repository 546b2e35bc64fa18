"""What is remembered of members of flows."""

from flowfabric.core.records import Execution, FlowNode, Link
from flowfabric.stores.valkey.native.members import MEMBERS_MAX, Member, Members, member_of

FLOW = "00000000-0000-4000-8000-00000000ffff"


def execution(**fields: object) -> Execution:
    values = {
        "execution_id": "{fp:7}:a",
        "namespace": "tenant",
        "lane_id": "lane",
        "execution_kind": "kind",
        "priority": 0,
        "creator_identity": "tests",
        "created_at": 1,
        "last_transition_at": 1,
        "last_mutation_at": 1,
    }
    return Execution(**(values | fields))  # type: ignore[arg-type]


def test_the_oldest_are_forgotten_first_and_what_is_learnt_again_is_young() -> None:
    members = Members()
    for number in range(MEMBERS_MAX):
        members.learn(str(number), Member(FLOW))
    members.learn("0", Member(FLOW, position=3))
    members.learn("new", Member(FLOW))
    assert members.recall("1") is None
    assert members.recall("0") == Member(FLOW, position=3)
    assert members.recall("2") == members.recall("new") == Member(FLOW)
    members.clear()
    assert members.recall("new") is None


def test_a_member_has_its_place_and_the_edges_that_leave_it() -> None:
    assert member_of(execution(), 0, None) is None
    alone = execution(flow_id=FLOW, flow_position=2)
    assert member_of(alone, 0, None) == Member(FLOW, 2)
    node = FlowNode(execution_id="{fp:7}:a", flow_id=FLOW, outgoing=(Link("e", "{fp:7}:b"),))
    found = member_of(alone, 9, node)
    assert found == Member(FLOW, 2, 9, node.outgoing)
    [(edge, group, child)] = found.behind
    assert edge.startswith("edge/{fp:")
    assert edge.endswith(f"{FLOW}/e")
    assert (group, child) == ("edge_group/{fp:7}:b", "execution/{fp:7}:b")

"""How the counts of a join decide it."""

import msgspec
import pytest

from flowfabric.contracts.flows import (
    AllOfEdges,
    AnyOfEdges,
    EdgeDependencyPolicy,
    EdgeGroupState,
    OnSatisfied,
    QuorumOfEdges,
)
from flowfabric.contracts.wire import from_wire, to_wire
from flowfabric.core.records import EdgeGroup, decode_record, encode_record
from flowfabric.core.rules.joins import open_dependencies, verdict

PENDING, SATISFIED, IMPOSSIBLE = (
    EdgeGroupState.PENDING,
    EdgeGroupState.SATISFIED,
    EdgeGroupState.IMPOSSIBLE,
)


@pytest.mark.scenario("EG-020")
@pytest.mark.parametrize(
    ("policy", "counts", "expected"),
    [
        (AllOfEdges(), (3, 2, 0, 0), PENDING),
        (AllOfEdges(), (3, 3, 0, 0), SATISFIED),
        (AllOfEdges(), (3, 2, 1, 0), IMPOSSIBLE),
        (AllOfEdges(), (3, 0, 0, 1), IMPOSSIBLE),
        (AnyOfEdges(), (3, 0, 2, 0), PENDING),
        (AnyOfEdges(), (3, 1, 2, 0), SATISFIED),
        (AnyOfEdges(), (3, 0, 2, 1), IMPOSSIBLE),
        (QuorumOfEdges(k=2), (3, 1, 1, 0), PENDING),
        (QuorumOfEdges(k=2), (3, 2, 0, 0), SATISFIED),
        (QuorumOfEdges(k=2), (3, 1, 2, 0), IMPOSSIBLE),
        (QuorumOfEdges(k=3), (5, 2, 2, 0), PENDING),
        (QuorumOfEdges(k=3), (5, 2, 1, 2), IMPOSSIBLE),
    ],
)
def test_the_counts_decide(policy, counts, expected):
    total, satisfied, failed, skipped = counts
    assert verdict(policy, total=total, satisfied=satisfied, failed=failed, skipped=skipped) is expected


def test_a_quorum_that_is_larger_than_the_join_so_far_waits_for_more_edges():
    assert verdict(QuorumOfEdges(k=3), total=2, satisfied=0, failed=2, skipped=0) is PENDING


@pytest.mark.parametrize(
    ("policy", "still_open"), [(AllOfEdges(), 2), (AnyOfEdges(), 0), (QuorumOfEdges(k=2), 1)]
)
def test_a_join_waits_for_as_many_successes_as_it_lacks(policy, still_open):
    group = EdgeGroup(execution_id="e", flow_id="f", policy=policy, total=3, satisfied=1)
    assert open_dependencies(group) == still_open


@pytest.mark.scenario("EG-017")
@pytest.mark.parametrize(
    ("policy", "wire"),
    [
        (AllOfEdges(), {"kind": "all_of"}),
        (AnyOfEdges(), {"kind": "any_of", "on_satisfied": "cancel_remaining"}),
        (
            QuorumOfEdges(k=2, on_satisfied=OnSatisfied.LET_RUN),
            {"kind": "quorum", "k": 2, "on_satisfied": "let_run"},
        ),
    ],
)
def test_the_words_of_policies(policy, wire):
    assert to_wire(policy) == wire
    assert from_wire(wire, EdgeDependencyPolicy) == policy
    group = EdgeGroup(execution_id="e", flow_id="f", policy=policy)
    found = decode_record(group.key, encode_record(group))
    assert msgspec.structs.asdict(found) == msgspec.structs.asdict(group)


@pytest.mark.scenario("EG-017")
def test_the_words_of_states():
    assert [str(state) for state in EdgeGroupState] == ["pending", "satisfied", "impossible", "cancelled"]

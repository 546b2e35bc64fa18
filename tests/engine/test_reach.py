"""Walking over the scopes of the eligible index reaches all that a worker serves, and little else."""

from hypothesis import given
from hypothesis import strategies as st

from flowfabric.core.indexes import scope_of
from flowfabric.engine.reach import Reach

NAMESPACES = ["a", "a!", "ab", "b"]
LANES = ["x", "x ", "x!", "y", "~"]
CAPABILITIES = ["!", "cpu", "cpu+", "cpu-2", "gpu", "\u00e9"]

capabilities = st.sets(st.sampled_from(CAPABILITIES))
scopes = st.sets(
    st.tuples(st.sampled_from(NAMESPACES), st.sampled_from(LANES), capabilities.map(sorted).map(tuple))
)


def spelled(namespace, lane, required):
    return scope_of(namespace, lane, *required, "")


def walk(existing, reach, limit):
    """The scopes that are found, and how many reads that took."""
    ordered = sorted(scope for scope in existing if scope.startswith(reach.prefix))
    found, place, reads = [], reach.start, 0
    while True:
        page = [scope for scope in ordered if place is None or scope > place][:limit]
        reads += 1
        found += [scope for scope in page if reach.serves(scope)]
        place = reach.behind(page[-1]) if len(page) == limit else None
        if place is None:
            return found, reads


@given(
    existing=scopes,
    namespace=st.none() | st.sampled_from(NAMESPACES),
    lanes=st.sets(st.sampled_from(LANES), min_size=1),
    offered=capabilities,
    limit=st.integers(1, 3),
)
def test_a_walk_finds_every_scope_within_reach_once_and_in_order(existing, namespace, lanes, offered, limit):
    expected = sorted(
        spelled(*parts)
        for parts in existing
        if namespace in (None, parts[0]) and parts[1] in lanes and set(parts[2]) <= offered
    )
    found, _ = walk([spelled(*parts) for parts in existing], Reach(namespace, lanes, offered), limit)
    assert found == expected


def test_ten_thousand_scopes_that_need_something_else_cost_one_read_more():
    others = [spelled("a", "x", (f"can-{number:05}",)) for number in range(10_000)]
    own = spelled("a", "x", ("gpu",))
    found, reads = walk([*others, own], Reach("a", ["x"], ["gpu"]), 32)
    assert (found, reads) == ([own], 2)


def test_ten_thousand_scopes_that_need_more_than_is_offered_cost_one_read_more():
    others = [spelled("a", "x", ("cpu", f"can-{number:05}")) for number in range(10_000)]
    found, reads = walk(others, Reach("a", ["x"], ["cpu", "gpu"]), 32)
    assert (found, reads) == ([], 2)


def test_ten_thousand_other_lanes_cost_one_read_for_each_lane_that_is_served():
    others = [spelled("a", f"lane-{number:05}", ()) for number in range(10_000) if number != 5_000]
    own = [spelled("a", lane, ()) for lane in ("early", "lane-05000", "zero")]
    found, reads = walk([*others, *own], Reach("a", ["early", "lane-05000", "zero"], []), 32)
    assert found == own
    assert reads == 3

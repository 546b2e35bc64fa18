"""Flows whose news come late, twice, or in the middle of building them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.contracts.executions import ReplayExecutionArgs
from flowfabric.contracts.flows import AnyOfEdges, OnSatisfied, QuorumOfEdges
from flowfabric.contracts.states import PublicState
from flowfabric.core.commands import DeliverMessageArgs
from flowfabric.core.records import flow_identity
from flowfabric.core.rules.joins import STAGED_GRACE_MS
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.conformance.flows import graph

if TYPE_CHECKING:
    from flowfabric.contracts.flows import EdgeDependencyPolicy
    from flowfabric.testing.bed import Bed
    from flowfabric.testing.conformance.flows import Graph

WAITING, WAITING_CHILDREN = PublicState.WAITING, PublicState.WAITING_CHILDREN
SKIPPED = PublicState.SKIPPED


async def replay(flow: Graph, name: str) -> None:
    """Let an ended member run again."""
    await flow.bed.execute(ReplayExecutionArgs(execution_id=flow.ids[name]))


class FlowEndScenarios(StoreSuite):
    """Which failures are the failure of a flow."""

    async def test_a_failure_that_its_joins_tolerate_is_none_of_the_flow(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        await flow.connect("ac bc", {"c": AnyOfEdges(on_satisfied=OnSatisfied.LET_RUN)})
        await flow.fail("a")
        await flow.run("b", "c")
        snapshot = await flow.snapshot()
        assert snapshot.public_flow_state == "completed"
        assert snapshot.outcomes == {"failed": 1, "success": 2}
        await bed.check()

    async def test_a_failed_last_member_is_the_failure_of_the_flow(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        await flow.connect("ab")
        await flow.run("a", "b")
        await flow.fail("c")
        assert await flow.flow_state() == "failed"
        await replay(flow, "c")
        assert await flow.flow_state() == "running"
        await flow.run("c")
        assert await flow.flow_state() == "completed"

    async def test_a_failed_member_is_not_the_last_once_another_depends_on_it(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        await flow.fail("a")
        await flow.connect("ac bc", {"c": AnyOfEdges()})
        await flow.run("b", "c")
        assert await flow.flow_state() == "completed"
        await bed.check()


class StagingScenarios(StoreSuite):
    """Upstreams that end, and members that run, while their edges are being put in."""

    async def test_an_upstream_that_ends_between_two_stagings_decides_nothing_yet(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        await bed.execute(flow.adding_edges("", {"c": AnyOfEdges()}, seal=False))
        await flow.stage("ac")
        await flow.fail("a")
        await flow.stage("bc")
        await flow.apply("ac")
        await flow.apply("bc")
        assert await bed.state(flow.ids["c"]) is WAITING_CHILDREN
        await flow.run("b")
        assert await bed.state(flow.ids["c"]) is WAITING
        await bed.settle()
        await bed.check()

    async def test_what_ends_before_its_edge_is_applied_counts_in_time_all_the_same(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.stage("ab")
        await flow.fail("a")
        assert await bed.state(flow.ids["b"]) is WAITING_CHILDREN
        await bed.advance(STAGED_GRACE_MS)
        assert await bed.state(flow.ids["b"]) is SKIPPED
        await bed.check()

    async def test_a_policy_without_edges_holds_nothing_back(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.connect("", {"a": AnyOfEdges(), "b": QuorumOfEdges(k=2)})
        await flow.run("a", "b")
        assert await flow.flow_state() == "completed"
        await bed.check()

    async def test_an_edge_to_a_running_member_holds_it_from_its_next_claim_on(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        claim = await bed.claim(flow.ids["b"])
        await flow.connect("ab")
        assert await bed.state(flow.ids["b"]) is PublicState.ACTIVE
        await bed.delay(claim, 0)
        assert await bed.state(flow.ids["b"]) is WAITING_CHILDREN
        await flow.run("a")
        assert await bed.state(flow.ids["b"]) is WAITING
        await flow.run("b")
        assert await flow.flow_state() == "completed"

    async def test_a_running_member_that_ends_before_its_new_upstream_keeps_its_end(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        claim = await bed.claim(flow.ids["b"])
        await flow.connect("ab")
        await bed.complete(claim)
        await flow.fail("a")
        assert await bed.state(flow.ids["b"]) is PublicState.COMPLETED
        await bed.check()


class LateNewsScenarios(StoreSuite):
    """Replays beside joins that are open, and joins that let go of members late."""

    async def test_a_join_waits_for_a_lost_upstream_that_runs_again(self, bed: Bed) -> None:
        flow = await graph(bed, "abcd")
        await flow.connect("ad bd cd", {"d": QuorumOfEdges(k=2, on_satisfied=OnSatisfied.LET_RUN)})
        await flow.fail("a")
        await replay(flow, "a")
        await flow.fail("b")
        assert await bed.state(flow.ids["d"]) is WAITING_CHILDREN
        await flow.run("a", "c")
        assert await bed.state(flow.ids["d"]) is WAITING
        assert (await flow.group("d")).failed_count == 1
        await bed.check()

    async def test_a_lost_upstream_that_has_succeeded_before_the_news_counts(self, bed: Bed) -> None:
        flow = await graph(bed, "abcd")
        await flow.connect("ad bd cd", {"d": QuorumOfEdges(k=2, on_satisfied=OnSatisfied.LET_RUN)})
        await flow.fail("a")
        with bed.nothing_delivered():
            await replay(flow, "a")
            await flow.run("a", "b")
        await bed.settle()
        assert await bed.state(flow.ids["d"]) is WAITING
        await bed.check()

    async def test_late_news_do_not_cancel_what_was_replayed(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        await flow.connect("ac bc", {"c": AnyOfEdges()})
        claim = await bed.claim(flow.ids["b"])
        with bed.nothing_delivered():
            await flow.run("a")
            message = DeliverMessageArgs(message_id=f"{flow.ids['a']}/ended/0/0")
            await bed.engine.execute_unbounded([message], actor="tests")
            await bed.complete(claim)
            message = DeliverMessageArgs(message_id=f"{flow.ids['b']}/ended/0/0")
            await bed.engine.execute_unbounded([message], actor="tests")
            await replay(flow, "b")
        await bed.settle()
        assert await bed.state(flow.ids["b"]) is WAITING
        await bed.check()

    async def test_a_member_that_runs_again_is_cancelled_although_the_news_are_late(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.run("a")
        with bed.nothing_delivered():
            await replay(flow, "a")
            await bed.execute(flow.cancelling())
            cancelling = DeliverMessageArgs(message_id=f"{flow_identity(flow.flow_id)}/cancelled/0")
            await bed.engine.execute_unbounded([cancelling], actor="tests")
        await bed.settle()
        assert set((await flow.states()).values()) == {PublicState.CANCELLED}
        await bed.check()

    async def test_a_join_that_lets_run_spares_an_upstream_from_other_joins(self, bed: Bed) -> None:
        flow = await graph(bed, "abcd")
        policies: dict[str, EdgeDependencyPolicy] = {
            "c": AnyOfEdges(on_satisfied=OnSatisfied.LET_RUN),
            "d": AnyOfEdges(),
        }
        await flow.connect("ac bc ad bd", policies)
        await flow.run("a")
        assert await bed.state(flow.ids["b"]) is WAITING


class FlowNewsConformance(FlowEndScenarios, StagingScenarios, LateNewsScenarios):
    """All scenarios of news about flows."""

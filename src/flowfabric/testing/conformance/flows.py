"""Flows on every store: members, edges, joins, skipping, cancelling, by the scenarios' numbers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.executions import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric.contracts.flows import (
    AddEdgesArgs,
    AddExecutionToFlowArgs,
    AllOfEdges,
    AnyOfEdges,
    ApplyDependencyToChildArgs,
    CancelFlowArgs,
    CancelFlowHeaderArgs,
    CancellationScheduled,
    CascadeCompletionArgs,
    CompletionCascaded,
    CreateFlowArgs,
    DependencyAlreadyApplied,
    DependencyApplied,
    DescribeEdgeArgs,
    DescribeFlowArgs,
    EdgeDependencyPolicy,
    EdgeGroupPolicyAlreadySet,
    EdgeGroupPolicySet,
    EdgeGroupSnapshot,
    EdgeGroupState,
    EdgeSnapshot,
    EdgeStaged,
    EvaluateFlowEligibilityArgs,
    FlowAlreadyEnded,
    FlowCancellationPolicy,
    FlowCancelled,
    FlowExists,
    FlowMemberInfo,
    FlowSnapshot,
    FlowStatus,
    FlowSubmitted,
    GetFlowTagArgs,
    GroupPolicy,
    IncomingEdges,
    ListEdgesArgs,
    ListFlowMembersArgs,
    ListFlowsArgs,
    MemberExists,
    NewEdge,
    OnSatisfied,
    OutgoingEdges,
    QuorumOfEdges,
    ReadParentResultsArgs,
    ResolveDependencyArgs,
    SetEdgeGroupPolicyArgs,
    SetFlowTagArgs,
    SetFlowTagsArgs,
    StageDependencyEdgeArgs,
    SubmitFlowArgs,
)
from flowfabric.contracts.reads import ReadExecutionInfoArgs
from flowfabric.contracts.states import PublicState
from flowfabric.core.events import Family
from flowfabric.core.records import EdgeGroup, Message
from flowfabric.core.rules.joins import STAGED_GRACE_MS
from flowfabric.testing.bed import NAMESPACE, Bed
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.conformance.situations import Place, seed_key, suspension

if TYPE_CHECKING:
    from flowfabric.contracts.ids import EdgeId, ExecutionId, FlowId

COMPLETED, SKIPPED = PublicState.COMPLETED, PublicState.SKIPPED
WAITING, WAITING_CHILDREN = PublicState.WAITING, PublicState.WAITING_CHILDREN
LET_RUN = OnSatisfied.LET_RUN
MEMBERS_OWED = {"due_message", "due_member_cancel"}
"""The indexes of what a cancelled flow owes to its members."""


class Graph:
    """One flow under test, with members by name."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.flow_id: FlowId = bed.new_flow_id(7)
        self.ids: dict[str, ExecutionId] = {}
        self.edges: dict[str, EdgeId] = {}

    async def open(self, names: str) -> Graph:
        """Create the flow with members of these names, one letter each."""
        await self.bed.execute(self.creation())
        for name in names:
            self.ids[name] = await self.bed.create()
            await self.add(name)
        return self

    def creation(self) -> CreateFlowArgs:
        return CreateFlowArgs(flow_id=self.flow_id, flow_kind="dag", namespace=NAMESPACE)

    async def add(self, name: str) -> Any:
        return await self.bed.execute(self.adding(name))

    def adding(self, name: str) -> AddExecutionToFlowArgs:
        return AddExecutionToFlowArgs(flow_id=self.flow_id, execution_id=self.ids[name])

    def staging(self, pair: str, **fields: Any) -> StageDependencyEdgeArgs:
        """The arguments that stage the edge between two members, such as ``ab``."""
        defaults: dict[str, Any] = {
            "flow_id": self.flow_id,
            "edge_id": self.edges.setdefault(pair, self.bed.new_id()),
            "upstream_execution_id": self.ids[pair[0]],
            "downstream_execution_id": self.ids[pair[1]],
            "expected_graph_revision": 0,
        }
        return StageDependencyEdgeArgs(**{**defaults, **fields})

    async def stage(self, pair: str, **fields: Any) -> Any:
        revision = (await self.snapshot()).graph_revision
        return await self.bed.execute(self.staging(pair, **{"expected_graph_revision": revision, **fields}))

    async def apply(self, pair: str) -> Any:
        return await self.bed.execute(self.applying(pair))

    def applying(self, pair: str) -> ApplyDependencyToChildArgs:
        return ApplyDependencyToChildArgs(
            flow_id=self.flow_id,
            edge_id=self.edges[pair],
            upstream_execution_id=self.ids[pair[0]],
            downstream_execution_id=self.ids[pair[1]],
            graph_revision=0,
        )

    def adding_edges(
        self,
        pairs: str,
        policies: dict[str, EdgeDependencyPolicy] | None = None,
        *,
        seal: bool = True,
        passing: bool = False,
    ) -> AddEdgesArgs:
        """The arguments that add edges such as ``ab bc`` at once."""
        return AddEdgesArgs(
            flow_id=self.flow_id,
            edges=tuple(
                NewEdge(
                    edge_id=self.edges.setdefault(pair, self.bed.new_id()),
                    upstream_execution_id=self.ids[pair[0]],
                    downstream_execution_id=self.ids[pair[1]],
                    data_passing_ref=pair[0] if passing else None,
                )
                for pair in pairs.split()
            ),
            groups=tuple(
                GroupPolicy(downstream_execution_id=self.ids[name], policy=policy)
                for name, policy in (policies or {}).items()
            ),
            seal=seal,
        )

    async def connect(
        self, pairs: str, policies: dict[str, EdgeDependencyPolicy] | None = None, **options: Any
    ) -> Any:
        return await self.bed.execute(self.adding_edges(pairs, policies, **options))

    async def snapshot(self) -> FlowSnapshot:
        found = await self.bed.execute(DescribeFlowArgs(flow_id=self.flow_id))
        assert found is not None
        return found

    async def flow_state(self) -> str:
        return (await self.snapshot()).public_flow_state

    async def group(self, name: str) -> EdgeGroupSnapshot:
        groups = (await self.snapshot()).edge_groups
        return next(group for group in groups if group.downstream_execution_id == self.ids[name])

    async def states(self) -> dict[str, PublicState]:
        return {name: await self.bed.state(found) for name, found in self.ids.items()}

    async def run(self, *names: str, result: bytes | None = None) -> None:
        for name in names:
            await self.bed.complete(await self.bed.claim(self.ids[name]), result_payload=result)

    async def fail(self, *names: str) -> None:
        for name in names:
            await self.bed.fail(await self.bed.claim(self.ids[name]), failure_category="permanent")

    async def edge(self, pair: str) -> EdgeSnapshot | None:
        return await self.bed.execute(DescribeEdgeArgs(flow_id=self.flow_id, edge_id=self.edges[pair]))

    def cancelling(self, policy: str = "cancel_all", **fields: Any) -> CancelFlowArgs:
        return CancelFlowArgs(
            flow_id=self.flow_id,
            reason="unwanted",
            cancellation_policy=FlowCancellationPolicy(policy),
            **fields,
        )


async def graph(bed: Bed, names: str = "") -> Graph:
    """An open flow with members of these names, one letter each."""
    return await Graph(bed).open(names)


class MemberScenarios(StoreSuite):
    """Flows and their members."""

    @pytest.mark.scenario("FLOW-008")
    async def test_members_raise_count_and_revision(self, bed: Bed) -> None:
        flow = await graph(bed)
        assert await flow.flow_state() == "open"
        for number, name in enumerate("abc", 1):
            flow.ids[name] = await bed.create()
            assert (await flow.add(name)).new_node_count == number
            snapshot = await flow.snapshot()
            assert (snapshot.node_count, snapshot.graph_revision) == (number, number)
        assert await bed.unchanging(flow.creation()) == FlowExists(flow_id=flow.flow_id)

    @pytest.mark.scenario("FLOW-015")
    async def test_a_member_is_added_once(self, bed: Bed) -> None:
        flow = await graph(bed, "a")
        expected = MemberExists(execution_id=flow.ids["a"], node_count=1)
        assert await bed.unchanging(flow.adding("a")) == expected

    @pytest.mark.scenario("FLOW-014", "EG-011")
    async def test_a_member_of_another_partition_is_refused(self, bed: Bed) -> None:
        flow = await graph(bed)
        flow.ids["a"] = await bed.create(execution_id=bed.new_execution_id(8))
        refusal = await bed.refused(flow.adding("a"))
        assert isinstance(refusal, errors.InvalidInput)
        assert "PartitionMismatch" in str(refusal)

    async def test_a_member_of_another_flow_is_refused(self, bed: Bed) -> None:
        flow, other = await graph(bed, "a"), await graph(bed)
        other.ids["a"] = flow.ids["a"]
        assert isinstance(await bed.refused(other.adding("a")), errors.AlreadyMemberOfDifferentFlow)

    async def test_unknown_flows_and_executions_are_refused(self, bed: Bed) -> None:
        flow, unknown = await graph(bed, "a"), Graph(bed)
        unknown.ids["a"] = flow.ids["a"]
        assert isinstance(await bed.refused(unknown.adding("a")), errors.FlowNotFound)
        flow.ids["b"] = bed.new_execution_id()
        assert isinstance(await bed.refused(flow.adding("b")), errors.ExecutionNotFound)

    async def test_a_flow_of_another_namespace_is_not_there(self, bed: Bed) -> None:
        flow = await graph(bed, "a")
        read = DescribeFlowArgs(flow_id=flow.flow_id)
        assert await bed.execute(read, namespace="other") is None
        refusal = await bed.refused(flow.cancelling(), namespace="other")
        assert isinstance(refusal, errors.FlowNotFound)

    async def test_members_are_listed_in_pages_with_their_joins(self, bed: Bed) -> None:
        flow = await graph(bed, "abcde")
        await flow.connect("ae be")
        await flow.run("a")
        found: list[FlowMemberInfo] = []
        cursor = None
        for _ in range(3):
            page = await bed.execute(ListFlowMembersArgs(flow_id=flow.flow_id, cursor=cursor, limit=2))
            assert page is not None
            found += page.members
            cursor = page.next_cursor
        assert cursor is None
        assert [member.execution_id for member in found] == list(flow.ids.values())
        assert [member.position for member in found] == list(range(5))
        assert found[0].public_state is COMPLETED
        assert [member.join is None for member in found] == [True, True, True, True, False]
        assert found[4].join == await flow.group("e")

    async def test_an_unknown_flow_has_no_members_and_an_empty_one_an_empty_page(self, bed: Bed) -> None:
        assert await bed.execute(ListFlowMembersArgs(flow_id=bed.new_id())) is None
        flow = await graph(bed)
        ask = ListFlowMembersArgs(flow_id=flow.flow_id)
        page = await bed.execute(ask)
        assert page is not None
        assert (page.members, page.next_cursor) == ((), None)
        assert await bed.execute(ask, namespace="other") is None

    @pytest.mark.scenario("LIST-004")
    async def test_flows_are_listed_by_partition_in_pages(self, bed: Bed) -> None:
        flows = sorted([(await graph(bed)).flow_id for _ in range(3)])
        first = await bed.execute(ListFlowsArgs(partition=7, limit=2))
        assert [found.flow_id for found in first.flows] == flows[:2]
        assert {found.status for found in first.flows} == {FlowStatus.ACTIVE}
        rest = await bed.execute(ListFlowsArgs(partition=7, cursor=first.next_cursor, limit=2))
        assert ([found.flow_id for found in rest.flows], rest.next_cursor) == (flows[2:], None)
        assert not (await bed.execute(ListFlowsArgs(partition=8))).flows

    @pytest.mark.scenario("TAG-003")
    async def test_a_flow_has_tags(self, bed: Bed) -> None:
        flow = await graph(bed)
        before = (await flow.snapshot()).last_mutation_at
        bed.clock.advance(1_000)
        await bed.execute(SetFlowTagsArgs(flow_id=flow.flow_id, tags={"team.name": "red"}))
        await bed.execute(SetFlowTagArgs(flow_id=flow.flow_id, key="team.size", value="3"))
        snapshot = await flow.snapshot()
        assert snapshot.tags == {"team.name": "red", "team.size": "3"}
        assert snapshot.last_mutation_at == before + 1_000
        read = GetFlowTagArgs(flow_id=flow.flow_id, key="team.size")
        assert await bed.execute(read) == "3"
        assert await bed.execute(read, namespace="other") is None
        refusal = await bed.refused(SetFlowTagsArgs(flow_id=flow.flow_id, tags={"Name": "x"}))
        assert isinstance(refusal, errors.InvalidTagKey)

    @pytest.mark.scenario("LIFE-033")
    async def test_an_execution_says_to_which_flow_it_belongs(self, bed: Bed) -> None:
        flow = await graph(bed, "a")
        flow.ids["b"] = await bed.create()
        infos = [await bed.execute(ReadExecutionInfoArgs(execution_id=flow.ids[name])) for name in "ab"]
        assert [info and info.flow_id for info in infos] == [flow.flow_id, None]
        unknown = ReadExecutionInfoArgs(execution_id=bed.new_execution_id())
        assert await bed.execute(unknown) is None

    async def test_a_sealed_flow_ends_with_its_last_member(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.connect("ab")
        await flow.run("a")
        assert await flow.flow_state() == "running"
        await flow.run("b")
        snapshot = await flow.snapshot()
        assert (snapshot.public_flow_state, snapshot.outcomes) == ("completed", {"success": 2})
        flow.ids["c"] = await bed.create()
        assert isinstance(await bed.refused(flow.adding("c")), errors.FlowAlreadyTerminal)

    async def test_an_open_flow_waits_for_more_members(self, bed: Bed) -> None:
        flow = await graph(bed, "a")
        await flow.run("a")
        assert await flow.flow_state() == "running"
        await flow.connect("", seal=True)
        assert await flow.flow_state() == "completed"

    async def test_a_sealed_flow_takes_no_members_and_no_edges(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.connect("", seal=True)
        flow.ids["c"] = await bed.create()
        assert isinstance(await bed.refused(flow.adding("c")), errors.FlowSealed)
        assert isinstance(await bed.refused(flow.adding_edges("ab")), errors.FlowSealed)

    async def test_a_replayed_member_makes_its_flow_run_again(self, bed: Bed) -> None:
        flow = await graph(bed, "a")
        await flow.connect("", seal=True)
        await flow.fail("a")
        assert await flow.flow_state() == "failed"
        await bed.execute(ReplayExecutionArgs(execution_id=flow.ids["a"]))
        assert await flow.flow_state() == "running"
        await flow.run("a")
        assert await flow.flow_state() == "completed"

    async def test_work_that_ended_before_it_joined_is_counted(self, bed: Bed) -> None:
        flow = await graph(bed)
        flow.ids["a"] = await bed.create()
        await flow.run("a")
        await flow.add("a")
        assert (await flow.snapshot()).outcomes == {"success": 1}


class EdgeScenarios(StoreSuite):
    """Building a graph."""

    @pytest.mark.scenario("FLOW-016")
    async def test_edges_are_staged_at_a_known_revision_and_applied(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        stale = flow.staging("ac", expected_graph_revision=99)
        assert isinstance(await bed.refused(stale), errors.StaleGraphRevision)
        staged = await flow.stage("ac")
        assert staged == EdgeStaged(edge_id=flow.edges["ac"], new_graph_revision=4)
        assert await flow.apply("ac") == DependencyApplied(unsatisfied_count=1)
        assert await bed.unchanging(flow.applying("ac")) == DependencyAlreadyApplied()
        await flow.stage("bc")
        assert await flow.apply("bc") == DependencyApplied(unsatisfied_count=2)

    async def test_staging_the_same_edge_again_gives_the_first_answer(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        staged = await flow.stage("ab")
        assert await bed.unchanging(flow.staging("ab", expected_graph_revision=2)) == staged
        other = flow.staging("ab", data_passing_ref="other")
        assert isinstance(await bed.refused(other), errors.DependencyAlreadyExists)

    async def test_impossible_edges_are_refused(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        await flow.connect("ab bc", seal=False)
        assert isinstance(await bed.refused(flow.adding_edges("ca")), errors.CycleDetected)
        assert isinstance(await bed.refused(flow.adding_edges("aa")), errors.SelfReferencingEdge)
        flow.ids["x"] = await bed.create()
        assert isinstance(await bed.refused(flow.adding_edges("ax")), errors.ExecutionNotInFlow)
        unknown = flow.applying("ab")
        flow.edges["ab"] = bed.new_id()
        assert isinstance(await bed.refused(flow.applying("ab")), errors.InvalidDependency)
        assert await bed.execute(unknown) == DependencyAlreadyApplied()

    async def test_a_cycle_within_one_request_is_refused_with_all_its_edges(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        assert isinstance(await bed.refused(flow.adding_edges("ab bc ca")), errors.CycleDetected)

    async def test_a_long_chain_can_be_closed_to_no_cycle(self, bed: Bed) -> None:
        names = "".join(chr(0x4E00 + number) for number in range(90))
        flow = await graph(bed, names)
        chain = " ".join(names[number : number + 2] for number in range(89))
        await flow.connect(chain, seal=False)
        assert isinstance(await bed.refused(flow.adding_edges(names[-1] + names[0])), errors.CycleDetected)

    async def test_an_edge_to_ended_work_is_refused(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.run("b")
        assert isinstance(await bed.refused(flow.adding_edges("ab")), errors.InvalidDependency)

    @pytest.mark.scenario("FLOW-025")
    async def test_edges_are_described_and_listed(self, bed: Bed) -> None:
        flow = await graph(bed, "abcde")
        await flow.stage("ab", data_passing_ref="rows")
        flow.edges["xx"] = bed.new_id()
        assert await flow.edge("xx") is None
        edge = await flow.edge("ab")
        assert edge is not None
        assert (edge.dependency_kind, edge.satisfaction_condition) == ("success_only", "all_required")
        assert (edge.edge_state, edge.created_by, edge.data_passing_ref) == ("pending", "engine", "rows")
        await flow.connect("bc bd")
        assert len(await self._listed(flow, OutgoingEdges(from_node=flow.ids["b"]))) == 2
        assert await self._listed(flow, IncomingEdges(to_node=flow.ids["b"])) == (edge,)
        assert await self._listed(flow, IncomingEdges(to_node=flow.ids["e"])) == ()
        assert await self._listed(Graph(bed), OutgoingEdges(from_node=flow.ids["b"])) == ()

    async def _listed(self, flow: Graph, direction: Any) -> tuple[EdgeSnapshot, ...]:
        listed = await flow.bed.execute(ListEdgesArgs(flow_id=flow.flow_id, direction=direction))
        return listed.edges

    @pytest.mark.scenario("EG-018")
    async def test_a_policy_is_fixed_by_the_first_edge(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        first = self._policy(flow, QuorumOfEdges(k=1))
        assert await bed.execute(first) == EdgeGroupPolicySet()
        assert await bed.unchanging(first) == EdgeGroupPolicyAlreadySet()
        assert await bed.execute(self._policy(flow, QuorumOfEdges(k=2))) == EdgeGroupPolicySet()
        await flow.stage("ab")
        refusal = await bed.refused(self._policy(flow, AnyOfEdges()))
        assert "edge_group_policy_already_fixed" in str(refusal)

    def _policy(self, flow: Graph, policy: EdgeDependencyPolicy) -> SetEdgeGroupPolicyArgs:
        return SetEdgeGroupPolicyArgs(
            flow_id=flow.flow_id, downstream_execution_id=flow.ids["b"], policy=policy
        )

    @pytest.mark.scenario("EG-006")
    async def test_a_quorum_of_none_is_refused(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        refusal = await bed.refused(self._policy(flow, QuorumOfEdges(k=0)))
        assert isinstance(refusal, errors.InvalidInput)

    async def test_a_quorum_of_more_than_there_are_is_refused(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        refusal = await bed.refused(flow.adding_edges("ab", {"b": QuorumOfEdges(k=2)}))
        assert "policy.k" in str(refusal)
        await bed.execute(self._policy(flow, QuorumOfEdges(k=2)))
        await flow.stage("ab")
        assert "policy.k" in str(await bed.refused(flow.adding_edges("", seal=True)))

    async def test_a_delayed_downstream_keeps_its_delay(self, bed: Bed) -> None:
        flow = await graph(bed, "a")
        flow.ids["b"] = await bed.create(delay_until=bed.clock.now_ms + 60_000)
        await flow.add("b")
        await flow.connect("ab")
        await flow.run("a")
        assert await bed.state(flow.ids["b"]) is PublicState.DELAYED


class SubmitScenarios(StoreSuite):
    """Whole flows in one step."""

    def _submission(self, bed: Bed, flow: Graph, pairs: str, **fields: Any) -> SubmitFlowArgs:
        names = sorted(set(pairs.replace(" ", "")))
        flow.ids = {name: bed.new_execution_id() for name in names}
        edges = flow.adding_edges(pairs)
        return SubmitFlowArgs(
            flow_id=flow.flow_id,
            flow_kind="dag",
            namespace=NAMESPACE,
            executions=tuple(bed.creation(execution_id=found, **fields) for found in flow.ids.values()),
            edges=edges.edges,
        )

    async def test_no_member_can_be_claimed_before_its_edges_are_there(self, bed: Bed) -> None:
        flow = Graph(bed)
        args = self._submission(bed, flow, "ab bc")
        answer = await bed.execute(args)
        assert answer == FlowSubmitted(flow_id=flow.flow_id, execution_ids=tuple(flow.ids.values()))
        assert list((await flow.states()).values()) == [WAITING, WAITING_CHILDREN, WAITING_CHILDREN]
        assert await bed.unchanging(args) == FlowExists(flow_id=flow.flow_id)
        await flow.run("a", "b", "c")
        assert await flow.flow_state() == "completed"

    async def test_a_flow_is_submitted_with_one_content(self, bed: Bed) -> None:
        flow = Graph(bed)
        args = self._submission(bed, flow, "ab bc")
        await bed.execute(args)
        other_ids = tuple(replace(edge, edge_id=bed.new_id()) for edge in args.edges)
        assert isinstance(await bed.unchanging(replace(args, edges=other_ids)), FlowExists)
        other_kind, fewer_edges = replace(args, flow_kind="other"), replace(args, edges=args.edges[:1])
        for other in (other_kind, fewer_edges):
            assert isinstance(await bed.refused(other), errors.IdempotencyConflict)

    async def test_a_flow_that_was_built_step_by_step_is_not_submitted(self, bed: Bed) -> None:
        built, flow = await graph(bed, "a"), Graph(bed)
        args = replace(self._submission(bed, flow, "ab"), flow_id=built.flow_id)
        assert isinstance(await bed.refused(args), errors.IdempotencyConflict)

    async def test_a_flow_that_cannot_be_built_leaves_nothing_behind(self, bed: Bed) -> None:
        cyclic = self._submission(bed, Graph(bed), "ab bc ca")
        assert isinstance(await bed.refused(cyclic), errors.CycleDetected)
        keyed = self._submission(bed, Graph(bed), "ab", idempotency_key="once")
        assert isinstance(await bed.refused(keyed), errors.InvalidInput)
        taken = self._submission(bed, Graph(bed), "ab")
        await bed.execute(taken.executions[1])
        assert isinstance(await bed.refused(taken), errors.InvalidInput)


class JoinScenarios(StoreSuite):
    """What the end of a member does to those that depend on it."""

    @pytest.mark.scenario("FLOW-001")
    async def test_a_chain_runs_in_order(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        await flow.connect("ab bc")
        for name in "abc":
            states = await flow.states()
            later = [found for other, found in states.items() if other > name]
            assert (states[name], set(later) - {WAITING_CHILDREN}) == (WAITING, set())
            await flow.run(name)
        assert set((await flow.states()).values()) == {COMPLETED}
        assert (await bed.execution(flow.ids["c"])).attempt_count == 1

    @pytest.mark.scenario("FLOW-027")
    async def test_a_diamond_waits_for_both_branches(self, bed: Bed) -> None:
        flow = await graph(bed, "abcd")
        await flow.connect("ab ac bd cd")
        await flow.run("a", "b")
        assert await bed.state(flow.ids["d"]) is WAITING_CHILDREN
        await flow.run("c")
        assert await bed.state(flow.ids["d"]) is WAITING
        await flow.run("d")
        assert await flow.flow_state() == "completed"

    @pytest.mark.scenario("FLOW-028", "EG-012")
    async def test_a_failed_branch_skips_what_depends_on_it(self, bed: Bed) -> None:
        flow = await graph(bed, "abcde")
        await flow.connect("ab ac bd cd de")
        await flow.run("a", "c")
        await flow.fail("b")
        assert [await bed.state(flow.ids[name]) for name in "de"] == [SKIPPED, SKIPPED]
        assert await bed.events(flow.ids["e"], Family.COMPLETION) == ["skipped"]
        snapshot = await flow.snapshot()
        assert snapshot.public_flow_state == "failed"
        assert snapshot.outcomes == {"success": 2, "failed": 1, "skipped": 2}

    async def test_a_long_chain_is_skipped_to_its_end(self, bed: Bed) -> None:
        names = "abcdefghijklmnopqrstuvwxyz"
        flow = await graph(bed, names)
        await flow.connect(" ".join(names[number : number + 2] for number in range(25)))
        await flow.fail("a")
        await bed.settle()
        assert (await flow.snapshot()).outcomes == {"failed": 1, "skipped": 25}

    @pytest.mark.scenario("EG-001")
    async def test_all_of_is_what_a_join_is_without_a_policy(self, bed: Bed) -> None:
        flow = await graph(bed, "abcd")
        await flow.connect("ad bd cd")
        await flow.run("a", "b", "c")
        group = await flow.group("d")
        assert (group.satisfied_count, group.group_state) == (3, EdgeGroupState.SATISFIED)
        assert await bed.state(flow.ids["d"]) is WAITING

    @pytest.mark.scenario("EG-023")
    async def test_any_of_fires_once_and_cancels_the_rest(self, bed: Bed) -> None:
        flow = await graph(bed, "abcd")
        await flow.connect("ad bd cd", {"d": AnyOfEdges()})
        claim = await bed.claim(flow.ids["b"])
        await flow.run("a")
        assert [str(state) for state in (await flow.states()).values()] == [
            "completed",
            "cancelled",
            "cancelled",
            "waiting",
        ]
        assert isinstance(await self._late(bed, claim), errors.ExecutionNotActive)
        await flow.run("d")
        snapshot = await flow.snapshot()
        assert snapshot.public_flow_state == "completed"
        assert snapshot.outcomes == {"success": 2, "dropped": 2}

    async def _late(self, bed: Bed, claim: Any) -> Exception:
        try:
            await bed.complete(claim)
        except errors.FlowFabricError as refusal:
            return refusal
        raise AssertionError("a cancelled worker was let in")

    async def test_an_upstream_that_another_join_waits_for_runs_on(self, bed: Bed) -> None:
        flow = await graph(bed, "abcd")
        await flow.connect("ac bc bd", {"c": AnyOfEdges()})
        await flow.run("a")
        assert await bed.state(flow.ids["b"]) is WAITING
        await flow.run("b")
        assert await bed.state(flow.ids["d"]) is WAITING

    @pytest.mark.scenario("EG-005")
    async def test_a_quorum_that_cannot_be_reached_skips(self, bed: Bed) -> None:
        for policy, survivors in (
            (QuorumOfEdges(k=3), PublicState.CANCELLED),
            (QuorumOfEdges(k=3, on_satisfied=LET_RUN), WAITING),
        ):
            flow = await graph(bed, "abcdef")
            await flow.connect("af bf cf df ef", {"f": policy})
            await flow.fail("a", "b")
            assert await bed.state(flow.ids["f"]) is WAITING_CHILDREN
            await flow.fail("c")
            assert await bed.state(flow.ids["f"]) is SKIPPED
            assert (await flow.group("f")).group_state is EdgeGroupState.IMPOSSIBLE
            assert {await bed.state(flow.ids[name]) for name in "de"} == {survivors}

    @pytest.mark.scenario("EG-007")
    async def test_a_join_is_decided_once(self, bed: Bed) -> None:
        flow = await graph(bed, "abcd")
        await flow.connect("ad bd cd", {"d": AnyOfEdges(on_satisfied=LET_RUN)})
        await flow.run("a", "d")
        decided_at = (await bed.get(EdgeGroup, flow.ids["d"])).decided_at
        bed.clock.advance(1_000)
        await flow.run("b", "c")
        assert (await flow.group("d")).satisfied_count == 3
        assert (await bed.get(EdgeGroup, flow.ids["d"])).decided_at == decided_at
        assert await bed.state(flow.ids["d"]) is COMPLETED

    @pytest.mark.scenario("EG-016")
    async def test_one_of_fifty_cancels_forty_nine(self, bed: Bed) -> None:
        names = "".join(chr(0x4E00 + number) for number in range(50))
        flow = await graph(bed, names + "z")
        await flow.connect(" ".join(f"{name}z" for name in names), {"z": QuorumOfEdges(k=1)})
        await flow.run(names[0])
        await bed.settle()
        states = list((await flow.states()).values())
        assert states.count(PublicState.CANCELLED) == 49
        assert await bed.state(flow.ids["z"]) is WAITING

    @pytest.mark.scenario("EG-015")
    async def test_eight_joins_of_three_drain_once_each(self, bed: Bed) -> None:
        names = "".join(chr(0x4E00 + number) for number in range(24))
        flow = await graph(bed, names + "ABCDEFGH")
        pairs = " ".join(f"{name}{'ABCDEFGH'[number // 3]}" for number, name in enumerate(names))
        await flow.connect(pairs, {join: AnyOfEdges() for join in "ABCDEFGH"})
        await flow.run(*names[::3])
        states = list((await flow.states()).values())
        assert (states.count(PublicState.CANCELLED), states.count(WAITING)) == (16, 8)

    async def test_a_claim_sent_again_gets_the_lease_that_it_got_whatever_ids_it_brings(
        self, bed: Bed
    ) -> None:
        flow = await graph(bed, "ab")
        first = await bed.execute(bed.claiming(flow.ids["a"]), request_id="claim")
        assert await bed.execute(bed.claiming(flow.ids["a"]), request_id="claim") == first

    async def test_a_claim_is_not_given_again_after_its_lease_was_taken_back(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        claiming = bed.claiming(flow.ids["a"])
        await bed.execute(claiming, request_id="claim")
        await bed.execute(flow.cancelling())
        assert await bed.state(flow.ids["a"]) is PublicState.CANCELLED
        refusal = await bed.refused(claiming, request_id="claim")
        assert isinstance(refusal, errors.ExecutionNotEligible)

    async def test_running_and_suspended_downstreams_are_skipped_clean(self, bed: Bed) -> None:
        await seed_key(bed)
        flow = await graph(bed, "abc")
        claims = {name: await bed.claim(flow.ids[name]) for name in "bc"}
        place = Place(execution_id=flow.ids["c"], claim=claims["c"])
        await bed.execute(suspension(bed, place))
        await flow.connect("ab ac")
        await flow.fail("a")
        assert [await bed.state(flow.ids[name]) for name in "bc"] == [SKIPPED, SKIPPED]
        assert await bed.indexes_of(flow.ids["b"]) == {"created", "terminal"}
        assert await bed.indexes_of(flow.ids["c"]) == {"created", "terminal"}

    async def test_an_upstream_that_has_ended_counts_at_once(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        await flow.run("a")
        await flow.connect("ab", seal=False)
        assert await bed.state(flow.ids["b"]) is WAITING
        await flow.stage("ac")
        assert await bed.state(flow.ids["c"]) is WAITING_CHILDREN
        assert await flow.apply("ac") == DependencyApplied(unsatisfied_count=0)
        assert await bed.state(flow.ids["c"]) is WAITING

    async def test_a_staged_edge_that_nobody_applies_is_resolved_in_time(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.run("a")
        await flow.stage("ab")
        await bed.advance(STAGED_GRACE_MS - 1)
        assert await bed.state(flow.ids["b"]) is WAITING_CHILDREN
        await bed.advance(1)
        assert await bed.state(flow.ids["b"]) is WAITING

    async def test_news_are_delivered_once(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.connect("ab")
        await flow.run("a")
        assert await bed.unchanging(CascadeCompletionArgs(execution_id=flow.ids["a"])) == (
            CompletionCascaded(resolved=0, skipped=0)
        )
        outcome = ResolveDependencyArgs(
            flow_id=flow.flow_id, edge_id=flow.edges["ab"], upstream_outcome="success"
        )
        assert type(await bed.unchanging(outcome)).__name__ == "DependencyAlreadyResolved"

    async def test_what_a_crash_left_undelivered_a_duty_delivers(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.connect("ab")
        claim = await bed.claim(flow.ids["a"])
        bed.forget()  # a store that knows what is behind a member carries its end on by itself
        with bed.nothing_delivered():
            await bed.complete(claim)
        assert await bed.state(flow.ids["b"]) is WAITING_CHILDREN
        await bed.settle()
        assert await bed.state(flow.ids["b"]) is WAITING

    @pytest.mark.scenario("FLOW-023")
    async def test_eligibility_follows_the_dependencies(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        flow.ids["x"] = bed.new_execution_id()
        flow.ids["y"] = await bed.create()
        await flow.connect("ab bc")

        async def status(name: str) -> str:
            read = EvaluateFlowEligibilityArgs(execution_id=flow.ids[name])
            return (await bed.execute(read)).status

        assert [await status(name) for name in "aby"] == ["eligible", "blocked_by_dependencies", "eligible"]
        assert await status("x") == "not_found"
        claim = await bed.claim(flow.ids["a"])
        assert await status("a") == "not_runnable"
        await bed.fail(claim, failure_category="permanent")
        assert [await status(name) for name in "abc"] == ["terminal", "impossible", "impossible"]

    async def test_only_the_upstreams_own_outcome_resolves_an_edge(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.connect("ab")
        claimed = ResolveDependencyArgs(
            flow_id=flow.flow_id, edge_id=flow.edges["ab"], upstream_outcome="success"
        )
        assert isinstance(await bed.refused(claimed), errors.InvalidDependency)

    async def test_results_are_handed_down(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        await flow.connect("ac", passing=True, seal=False)
        await flow.connect("bc")
        await flow.run("a", "b", result=bytes(range(256)))
        handed = await bed.execute(ReadParentResultsArgs(execution_id=flow.ids["c"]))
        [only] = handed.results
        assert (only.name, only.result) == ("a", bytes(range(256)))
        assert (await bed.claim(flow.ids["c"])).input_payload == b"input"


class ReplayScenarios(StoreSuite):
    """Members that run again."""

    async def test_a_skipped_member_needs_its_upstream_replayed_first(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.connect("ab")
        await flow.fail("a")
        replay = ReplayExecutionArgs(execution_id=flow.ids["b"])
        assert isinstance(await bed.refused(replay), errors.DepsNotSatisfied)
        await bed.execute(ReplayExecutionArgs(execution_id=flow.ids["a"]))
        await bed.execute(replay)
        assert await bed.state(flow.ids["b"]) is WAITING_CHILDREN
        await flow.run("a", "b")
        assert await flow.flow_state() == "completed"

    @pytest.mark.scenario("REPLAY-004")
    async def test_a_replayed_join_keeps_its_successes(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        await flow.connect("ac bc")
        await flow.run("b")
        await flow.fail("a")
        for name in "ac":
            await bed.execute(ReplayExecutionArgs(execution_id=flow.ids[name]))
        group = await flow.group("c")
        assert (group.satisfied_count, group.failed_count, group.skipped_count) == (1, 0, 0)
        assert (group.running_count, group.group_state) == (1, EdgeGroupState.PENDING)
        assert await bed.state(flow.ids["c"]) is WAITING_CHILDREN

    async def test_a_skipped_member_takes_what_has_succeeded_meanwhile(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.connect("ab")
        await flow.fail("a")
        await bed.execute(ReplayExecutionArgs(execution_id=flow.ids["a"]))
        await flow.run("a")
        await bed.execute(ReplayExecutionArgs(execution_id=flow.ids["b"]))
        assert await bed.state(flow.ids["b"]) is WAITING

    async def test_a_cancelled_member_waits_for_its_dependencies_again(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.connect("ab")
        await bed.execute(CancelExecutionArgs(execution_id=flow.ids["b"], reason="oops"))
        await bed.execute(ReplayExecutionArgs(execution_id=flow.ids["b"]))
        assert await bed.state(flow.ids["b"]) is WAITING_CHILDREN

    async def test_a_member_of_a_cancelled_flow_is_not_replayed(self, bed: Bed) -> None:
        flow = await graph(bed, "a")
        await bed.execute(flow.cancelling())
        replay = ReplayExecutionArgs(execution_id=flow.ids["a"])
        assert isinstance(await bed.refused(replay), errors.FlowAlreadyTerminal)


class FlowCancelScenarios(StoreSuite):
    """Cancelling a flow."""

    @pytest.mark.scenario("FLOW-011")
    async def test_an_empty_flow_is_cancelled_and_takes_no_member(self, bed: Bed) -> None:
        flow = await graph(bed)
        expected = FlowCancelled(cancellation_policy="cancel_all", member_execution_ids=())
        assert await bed.execute(flow.cancelling()) == expected
        flow.ids["a"] = await bed.create()
        assert isinstance(await bed.refused(flow.adding("a")), errors.FlowAlreadyTerminal)

    @pytest.mark.scenario("FLOW-012")
    async def test_a_completed_member_stays_completed(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        await flow.run("a")
        answer = await bed.execute(flow.cancelling(wait=True))
        ids = (flow.ids["a"], flow.ids["b"])
        assert answer == FlowCancelled(cancellation_policy="cancel_all", member_execution_ids=ids)
        assert list((await flow.states()).values()) == [COMPLETED, PublicState.CANCELLED]
        snapshot = await flow.snapshot()
        assert (snapshot.public_flow_state, snapshot.outcomes) == (
            "cancelled",
            {"success": 1, "cancelled": 1},
        )

    async def test_running_members_are_cancelled_with_their_leases(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        for name in "abc":
            await bed.claim(flow.ids[name])
        scheduled = await bed.execute(flow.cancelling())
        assert isinstance(scheduled, CancellationScheduled)
        assert scheduled.member_count == 3
        await bed.settle()
        for execution_id in flow.ids.values():
            assert await bed.events(execution_id, Family.COMPLETION) == ["cancelled"]
            assert (await bed.events(execution_id, Family.LEASE))[-1] == "released"

    async def test_what_is_left_to_cancel_is_on_record(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        with bed.nothing_delivered():
            await bed.execute(flow.cancelling())
        held = await bed.dump()
        assert [row[0] for row in held["rows"] if row[0] in MEMBERS_OWED] == ["due_message"]
        refusal = await bed.refused(bed.claiming(flow.ids["a"]))
        assert isinstance(refusal, errors.ExecutionNotEligible)
        await bed.settle()
        assert set((await flow.states()).values()) == {PublicState.CANCELLED}
        held = await bed.dump()
        assert not [row for row in held["rows"] if row[0] in MEMBERS_OWED]

    async def test_cancelling_again_tells_what_is_stored(self, bed: Bed) -> None:
        flow = await graph(bed, "a")
        await bed.execute(flow.cancelling("flow_only"))
        answer = await bed.unchanging(flow.cancelling("cancel_all", wait=True))
        ids = (flow.ids["a"],)
        assert answer == FlowCancelled(cancellation_policy="flow_only", member_execution_ids=ids)
        header = CancelFlowHeaderArgs(
            flow_id=flow.flow_id,
            reason="again",
            cancellation_policy=FlowCancellationPolicy.CANCEL_ALL,
        )
        assert await bed.unchanging(header) == FlowAlreadyEnded(
            stored_cancellation_policy="flow_only",
            stored_cancel_reason="unwanted",
            member_execution_ids=ids,
        )

    async def test_flow_only_leaves_the_members_alone(self, bed: Bed) -> None:
        flow = await graph(bed, "a")
        assert isinstance(await bed.execute(flow.cancelling("flow_only")), FlowCancelled)
        await flow.run("a")
        assert await flow.flow_state() == "cancelled"

    async def test_cancel_pending_spares_what_has_started(self, bed: Bed) -> None:
        flow = await graph(bed, "ab")
        claim = await bed.claim(flow.ids["a"])
        await bed.execute(flow.cancelling("cancel_pending", wait=True))
        assert await bed.state(flow.ids["b"]) is PublicState.CANCELLED
        await bed.delay(claim, 0)
        await flow.run("a")
        assert await bed.state(flow.ids["a"]) is COMPLETED

    async def test_messages_do_not_pile_up(self, bed: Bed) -> None:
        flow = await graph(bed, "abc")
        await flow.connect("ab bc")
        await flow.run("a", "b", "c")
        held = await bed.dump()
        assert not [key for key in held["records"] if key.startswith(f"{Message.KIND}/")]


def join_of(needed: int, of: int) -> EdgeDependencyPolicy:
    """The policy of a join for which so many of its upstreams have to succeed."""
    if needed == of:
        return AllOfEdges()
    if needed == 1:
        return AnyOfEdges(on_satisfied=LET_RUN)
    return QuorumOfEdges(k=needed, on_satisfied=LET_RUN)


def ends_by_joins(
    upstreams: dict[str, list[str]], needed: dict[str, int], failing: set[str]
) -> dict[str, PublicState]:
    """How the members end, worked out from the meaning of joins alone."""
    ends: dict[str, PublicState] = {}
    for name, found in upstreams.items():
        if sum(ends[one] is COMPLETED for one in found) < needed.get(name, 0):
            ends[name] = SKIPPED
        else:
            ends[name] = PublicState.FAILED if name in failing else COMPLETED
    return ends


class GraphScenarios(StoreSuite):
    """Graphs drawn by chance end as the plain meaning of their joins says."""

    NAMES = "abcdefghijkl"

    @pytest.mark.parametrize("seed", range(8))
    async def test_every_member_ends_as_its_join_says(self, bed: Bed, seed: int) -> None:
        chance = random.Random(seed)
        upstreams = {
            name: chance.sample(self.NAMES[:place], min(place, chance.randint(0, 4)))
            for place, name in enumerate(self.NAMES)
        }
        needed = {name: chance.randint(1, len(found)) for name, found in upstreams.items() if found}
        failing = {name for name in self.NAMES if chance.random() < 0.25}
        flow = await graph(bed, self.NAMES)
        pairs = [f"{one}{name}" for name, found in upstreams.items() for one in found]
        policies = {name: join_of(count, len(upstreams[name])) for name, count in needed.items()}
        await flow.connect(" ".join(pairs), policies)
        while ready := [name for name, state in (await flow.states()).items() if state is WAITING]:
            name = chance.choice(ready)
            await (flow.fail if name in failing else flow.run)(name)
        assert await flow.states() == ends_by_joins(upstreams, needed, failing)


class FlowConformance(
    MemberScenarios,
    EdgeScenarios,
    SubmitScenarios,
    JoinScenarios,
    ReplayScenarios,
    FlowCancelScenarios,
    GraphScenarios,
):
    """All scenarios of flows."""

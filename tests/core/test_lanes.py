"""What the state of a lane lets through, and what is shown of work in it."""

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.flows import AddExecutionToFlowArgs, CreateFlowArgs, ListFlowMembersArgs
from flowfabric.contracts.ids import flow_partition
from flowfabric.contracts.lanes import DescribeLaneArgs, LaneStateSet, LaneStateUnchanged, SetLaneStateArgs
from flowfabric.contracts.reads import (
    DescribeExecutionArgs,
    ReadExecutionInfoArgs,
    ReadExecutionStateArgs,
    ReadStateVectorArgs,
)
from flowfabric.contracts.runs import ReadRunArgs
from flowfabric.contracts.states import BlockingReason, EligibilityState, LaneState, PublicState
from flowfabric.core.events import Family
from flowfabric.core.records import Lane, lane_identity
from flowfabric.core.vocabulary import Continuation
from tests.core import requests
from tests.core.harness import LANE, NAMESPACE, START_MS, TTL_MS, new_execution_id, new_id

CLOSED = [LaneState.PAUSED, LaneState.DISABLED]
OPEN = [LaneState.ACTIVE, LaneState.DRAINING]


def set_state(book, state, **fields):
    args = {"namespace": NAMESPACE, "lane_id": LANE, "reason": "maintenance", **fields}
    return book.run(SetLaneStateArgs(state=state, **args), actor="ops")


class TestSet:
    def test_a_lane_is_active_until_somebody_says_otherwise(self, book):
        found = book.run(DescribeLaneArgs(namespace=NAMESPACE, lane_id=LANE))
        assert (found.state, found.changed_at, found.changed_by) == (LaneState.ACTIVE, None, "")

    @pytest.mark.parametrize("state", [state for state in LaneState if state is not LaneState.ACTIVE])
    def test_the_new_state_is_kept_with_who_set_it_when_and_why(self, book, state):
        previous = LaneState.ACTIVE
        expected = LaneStateSet(namespace=NAMESPACE, lane_id=LANE, state=state, previous=previous)
        assert set_state(book, state) == expected
        found = book.run(DescribeLaneArgs(namespace=NAMESPACE, lane_id=LANE))
        assert (found.state, found.changed_at, found.changed_by) == (state, START_MS, "ops")
        assert found.reason == "maintenance"

    def test_the_same_state_again_changes_nothing(self, book):
        set_state(book, LaneState.PAUSED)
        with book.unchanged():
            answer = set_state(book, LaneState.PAUSED)
        assert answer == LaneStateUnchanged(namespace=NAMESPACE, lane_id=LANE, state=LaneState.PAUSED)

    def test_an_active_lane_that_nobody_has_set_stays_without_a_record(self, book):
        with book.unchanged():
            set_state(book, LaneState.ACTIVE)

    def test_it_is_told_to_operators(self, book):
        set_state(book, LaneState.PAUSED)
        [event] = [event for event in book.events if event.family is Family.OPERATOR]
        assert (event.name, event.namespace, event.execution_id) == ("lane_state_set", NAMESPACE, "")
        assert event.data == {
            "lane_id": LANE,
            "actor": "ops",
            "old": "active",
            "new": "paused",
            "reason": "maintenance",
        }

    @pytest.mark.parametrize("command", [SetLaneStateArgs, DescribeLaneArgs])
    def test_the_lanes_of_another_namespace_are_out_of_reach(self, book, command):
        fields = {"state": LaneState.PAUSED} if command is SetLaneStateArgs else {}
        with book.refuses(errors.InvalidInput):
            book.run(command(namespace="other", lane_id=LANE, **fields))

    def test_it_changes_one_record_however_much_waits(self, book):
        waiting = [book.create() for _ in range(20)]
        before = dict(book.data)
        set_state(book, LaneState.PAUSED)
        assert {key: book.data[key] for key in before} == before
        assert len(book.data) == len(before) + 1
        assert {"eligible"} == {row[0] for row in book.rows(waiting[0])} - {"created"}

    def test_lanes_of_one_name_in_two_namespaces_are_two_lanes(self, book):
        set_state(book, LaneState.PAUSED)
        args = SetLaneStateArgs(namespace="other", lane_id=LANE, state=LaneState.DRAINING)
        assert book.run(args, namespace="other").previous is LaneState.ACTIVE
        assert book.get(Lane, lane_identity(NAMESPACE, LANE)).state is LaneState.PAUSED


class TestClaims:
    @pytest.mark.parametrize("state", CLOSED)
    def test_nothing_new_is_claimed(self, book, state):
        execution_id = book.create()
        set_state(book, state)
        for command in (
            requests.candidate(execution_id),
            requests.grant(execution_id),
            requests.grant_and_claim(execution_id),
        ):
            with book.refuses(errors.ExecutionNotEligible):
                book.run(command)

    def test_a_grant_from_before_is_worth_nothing_while_the_lane_is_paused(self, book):
        execution_id = book.create()
        book.run(requests.grant(execution_id))
        set_state(book, LaneState.PAUSED)
        with book.refuses(errors.ExecutionNotEligible):
            book.run(requests.claim(execution_id))
        set_state(book, LaneState.ACTIVE)
        book.run(requests.claim(execution_id))

    @pytest.mark.parametrize("state", CLOSED)
    def test_nothing_is_resumed(self, book, state):
        execution_id, fence = book.start()
        book.run(requests.delay(execution_id, fence, book.now + 5))
        book.advance(5)
        book.run(requests.promote(execution_id))
        assert book.execution(execution_id).continuation is Continuation.RESUME
        set_state(book, state)
        with book.refuses(errors.ExecutionNotEligible):
            book.claim(execution_id)

    @pytest.mark.parametrize("state", CLOSED)
    def test_nothing_is_reclaimed(self, book, state):
        execution_id, _ = book.start()
        book.advance(TTL_MS)
        book.run(requests.mark_expired(execution_id))
        set_state(book, state)
        for command in (requests.candidate(execution_id), requests.reclaim_grant(execution_id)):
            with book.refuses(errors.ExecutionNotEligible):
                book.run(command)

    def test_a_refusal_says_which_state_the_lane_is_in(self, book):
        execution_id = book.create()
        set_state(book, LaneState.PAUSED)
        with book.refuses(errors.ExecutionNotEligible) as refusals:
            book.claim(execution_id)
        assert refusals[0].details["lane_state"] == "paused"

    @pytest.mark.parametrize("state", LaneState)
    def test_what_runs_goes_on(self, book, state):
        execution_id, fence = book.start()
        set_state(book, state)
        book.run(requests.renew(execution_id, fence))
        book.run(requests.complete(execution_id, fence))

    @pytest.mark.parametrize("state", OPEN)
    def test_an_open_lane_gives_its_work(self, book, state):
        execution_id = book.create()
        set_state(book, state)
        book.claim(execution_id)

    def test_other_lanes_and_other_namespaces_go_on(self, book):
        set_state(book, LaneState.DISABLED)
        book.start(lane_id="other")


class TestSubmissions:
    @pytest.mark.parametrize("state", [LaneState.DRAINING, LaneState.DISABLED])
    def test_new_work_is_refused_by_name(self, book, state):
        set_state(book, state)
        with book.refuses(errors.LaneClosed) as refusals:
            book.create()
        assert refusals[0].details == {"lane_id": LANE, "lane_state": str(state), "reason": "maintenance"}

    def test_work_that_is_there_already_answers_duplicate(self, book):
        execution_id = book.create()
        set_state(book, LaneState.DRAINING)
        with book.unchanged():
            book.create(execution_id=execution_id)

    @pytest.mark.parametrize("state", [LaneState.ACTIVE, LaneState.PAUSED])
    def test_a_lane_that_is_only_paused_takes_new_work(self, book, state):
        set_state(book, state)
        book.create()

    def test_what_has_ended_may_be_replayed_in_a_draining_lane(self, book):
        execution_id, fence = book.start()
        book.run(requests.complete(execution_id, fence))
        set_state(book, LaneState.DRAINING)
        book.run(requests.replay(execution_id))
        book.claim(execution_id)


class TestViews:
    @pytest.mark.parametrize("state", CLOSED)
    def test_what_waits_is_shown_as_blocked_by_its_lane(self, book, state):
        execution_id = book.create()
        set_state(book, state)
        vector = book.run(ReadStateVectorArgs(execution_id=execution_id)).state_vector
        assert vector.eligibility_state is EligibilityState.BLOCKED_BY_LANE_STATE
        assert vector.blocking_reason is BlockingReason.PAUSED_BY_POLICY
        assert vector.public_state is PublicState.WAITING
        described = book.run(DescribeExecutionArgs(execution_id=execution_id))
        assert described.blocking_reason is BlockingReason.PAUSED_BY_POLICY
        assert described.blocking_detail == f"lane {LANE} is {state}: maintenance"
        info = book.run(ReadExecutionInfoArgs(execution_id=execution_id))
        assert (info.state_vector, info.blocking_detail) == (vector, described.blocking_detail)

    def test_the_lane_comes_before_the_time(self, book):
        execution_id = book.create(delay_until=START_MS + 1_000)
        assert book.run(ReadExecutionStateArgs(execution_id=execution_id)) is PublicState.DELAYED
        set_state(book, LaneState.PAUSED)
        assert book.run(ReadExecutionStateArgs(execution_id=execution_id)) is PublicState.WAITING
        assert book.run(ReadRunArgs(execution_id=execution_id)).public_state is PublicState.WAITING

    def test_a_delayed_submission_to_a_paused_lane_says_that_it_waits(self, book):
        set_state(book, LaneState.PAUSED)
        created = book.run(
            CreateExecutionArgs(
                execution_id=new_execution_id(),
                execution_kind="kind",
                input_payload=b"input",
                priority=0,
                creator_identity="tests",
                namespace=NAMESPACE,
                lane_id=LANE,
                delay_until=START_MS + 1_000,
            )
        )
        assert created.public_state is PublicState.WAITING

    def test_what_runs_and_what_has_ended_is_shown_as_ever(self, book):
        running, _ = book.start()
        ended, fence = book.start()
        book.run(requests.complete(ended, fence))
        set_state(book, LaneState.DISABLED)
        for execution_id, state in ((running, PublicState.ACTIVE), (ended, PublicState.COMPLETED)):
            vector = book.run(ReadStateVectorArgs(execution_id=execution_id)).state_vector
            assert (vector.public_state, vector.blocking_reason) == (state, BlockingReason.NONE)

    def test_members_of_a_flow_are_shown_as_blocked_by_their_lanes(self, book):
        flow_id = new_id()
        book.run(CreateFlowArgs(flow_id=flow_id, flow_kind="dag", namespace=NAMESPACE))
        for lane_id in (LANE, "other"):
            execution_id = book.create(
                execution_id=new_execution_id(flow_partition(flow_id)),
                lane_id=lane_id,
                delay_until=START_MS + 1_000,
            )
            book.run(AddExecutionToFlowArgs(flow_id=flow_id, execution_id=execution_id))
        set_state(book, LaneState.PAUSED)
        page = book.run(ListFlowMembersArgs(flow_id=flow_id))
        assert [member.public_state for member in page.members] == [PublicState.WAITING, PublicState.DELAYED]

    def test_showing_it_stores_nothing(self, book):
        execution_id = book.create()
        set_state(book, LaneState.PAUSED)
        with book.unchanged():
            book.run(DescribeExecutionArgs(execution_id=execution_id))
        assert book.execution(execution_id).blockers == ()


def test_the_identity_of_a_lane_tells_apart_names_that_look_alike():
    names = [("a/b", "c"), ("a", "b/c"), ("a", "c"), ("a/b/c", "c")]
    assert len({lane_identity(*name) for name in names}) == len(names)

"""Work that gives up its lease for a while."""

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import (
    DelayedNotPromoted,
    DelayedPromoted,
    ExecutionDelayed,
    MovedToWaitingChildren,
)
from flowfabric.contracts.states import AttemptLifecycle, BlockingReason, PublicState
from flowfabric.core.events import Family
from flowfabric.core.records import Blocker
from flowfabric.core.state import Situation, blocking_detail
from flowfabric.core.vocabulary import BlockerKind
from tests.core import requests
from tests.core.fences import refused_fences
from tests.core.harness import START_MS, new_execution_id

UNTIL = START_MS + 60_000


class TestDelay:
    @pytest.mark.scenario("TIME-001")
    @pytest.mark.scenario("LEASE-018")
    def test_the_execution_sleeps_without_a_lease(self, book):
        execution_id, fence = book.start()
        outcome = book.run(requests.delay(execution_id, fence, UNTIL))
        assert outcome == ExecutionDelayed(execution_id=execution_id, public_state=PublicState.DELAYED)
        assert book.vector(execution_id) == (
            "runnable",
            "unowned",
            "not_eligible_until_time",
            "waiting_for_delay",
            "none",
            "attempt_interrupted",
            "delayed",
        )
        assert book.indexes(execution_id) == {"created", "delayed", "due_delay"}
        execution = book.execution(execution_id)
        assert (execution.lease, execution.attempt.state) == (None, AttemptLifecycle.SUSPENDED)
        assert (execution.attempt.suspension_id, execution.attempt.stream_closed_at) == ("worker_delay", None)
        assert book.names(Family.LEASE) == ["acquired", "released"]
        assert book.events[-1].data["reason"] == "worker_delay"

    @pytest.mark.parametrize("until", [START_MS, START_MS - 1])
    def test_an_instant_that_has_passed_makes_it_claimable_at_once(self, book, until):
        execution_id, fence = book.start()
        outcome = book.run(requests.delay(execution_id, fence, until))
        assert outcome.public_state is PublicState.WAITING
        assert book.indexes(execution_id) == {"created", "eligible"}

    @refused_fences
    def test_a_fence_that_is_not_current_is_refused(self, book, situation):
        execution_id, fence, error = situation(book)
        with book.refuses(error):
            book.run(requests.delay(execution_id, fence, UNTIL))

    def test_without_a_fence_only_an_override_passes(self, book):
        execution_id, _ = book.start()
        with book.refuses(errors.FenceRequired):
            book.run(requests.delay(execution_id, None, UNTIL))
        book.run(requests.delay(execution_id, None, UNTIL, source="operator_override"))
        assert book.situation(execution_id) is Situation.DELAYED

    def test_another_attempt_index_is_refused(self, book):
        execution_id, fence = book.start()
        with book.refuses(errors.StaleLease):
            book.run(requests.delay(execution_id, fence, UNTIL, attempt_index=1))

    def test_repeating_it_gives_the_first_answer(self, book):
        execution_id, fence = book.start()
        first = book.run(requests.delay(execution_id, fence, UNTIL))
        with book.unchanged():
            assert book.run(requests.delay(execution_id, fence, UNTIL + 1)) == first
        book.advance(60_000)
        book.run(requests.promote(execution_id))
        book.claim(execution_id)
        with book.unchanged():
            assert book.run(requests.delay(execution_id, fence, UNTIL)) == first


class TestWaitForChildren:
    def depends_on(self, book, execution_id, count):
        execution = book.execution(execution_id)
        execution.unresolved_dependencies = count
        book.put(execution)

    @pytest.mark.scenario("LEASE-018")
    def test_with_dependencies_unresolved_it_waits_for_them(self, book):
        execution_id, fence = book.start()
        self.depends_on(book, execution_id, 2)
        outcome = book.run(requests.wait_for_children(execution_id, fence))
        waiting = PublicState.WAITING_CHILDREN
        assert outcome == MovedToWaitingChildren(execution_id=execution_id, public_state=waiting)
        assert book.vector(execution_id) == (
            "runnable",
            "unowned",
            "blocked_by_dependencies",
            "waiting_for_children",
            "none",
            "attempt_interrupted",
            "waiting_children",
        )
        assert blocking_detail(book.execution(execution_id)) == "2 dependencies unresolved"
        assert book.indexes(execution_id) == {"created", "blocked"}
        attempt = book.execution(execution_id).attempt
        assert (attempt.state, attempt.suspension_id) == (AttemptLifecycle.SUSPENDED, "waiting_children")
        assert book.events[-1].data["reason"] == "waiting_children"

    def test_with_nothing_unresolved_it_is_claimable_at_once(self, book):
        execution_id, fence = book.start()
        outcome = book.run(requests.wait_for_children(execution_id, fence))
        assert outcome.public_state is PublicState.WAITING
        assert book.indexes(execution_id) == {"created", "eligible"}
        assert book.claim(execution_id).attempt_id == fence.attempt_id

    @refused_fences
    def test_a_fence_that_is_not_current_is_refused(self, book, situation):
        execution_id, fence, error = situation(book)
        with book.refuses(error):
            book.run(requests.wait_for_children(execution_id, fence))

    def test_without_a_fence_only_an_override_passes(self, book):
        execution_id, _ = book.start()
        with book.refuses(errors.FenceRequired):
            book.run(requests.wait_for_children(execution_id, None))
        book.run(requests.wait_for_children(execution_id, None, source="operator_override"))

    def test_repeating_it_gives_the_first_answer(self, book):
        execution_id, fence = book.start()
        first = book.run(requests.wait_for_children(execution_id, fence))
        with book.unchanged():
            assert book.run(requests.wait_for_children(execution_id, fence)) == first

    def test_another_command_under_the_same_fence_is_refused(self, book):
        execution_id, fence = book.start()
        book.run(requests.wait_for_children(execution_id, fence))
        with book.refuses(errors.ExecutionNotActive):
            book.run(requests.delay(execution_id, fence, UNTIL))


class TestPromote:
    def test_at_its_instant_a_delayed_execution_waits_for_a_worker(self, book):
        execution_id = book.create(delay_until=START_MS + 5)
        book.advance(5)
        assert book.run(requests.promote(execution_id)) == DelayedPromoted(execution_id=execution_id)
        assert book.vector(execution_id)[2:4] == ("eligible_now", "waiting_for_worker")
        assert book.indexes(execution_id) == {"created", "eligible"}

    def test_what_the_next_claim_does_is_kept(self, book):
        execution_id, fence = book.start()
        book.run(requests.delay(execution_id, fence, START_MS + 5))
        book.advance(5)
        book.run(requests.promote(execution_id))
        assert book.vector(execution_id)[5] == "attempt_interrupted"
        assert book.claim(execution_id).attempt_id == fence.attempt_id

    def test_other_blockers_stay(self, book):
        execution_id = book.create(delay_until=START_MS + 5)
        execution = book.execution(execution_id)
        paused = Blocker(kind=BlockerKind.OPERATOR, reason=BlockingReason.PAUSED_BY_OPERATOR)
        execution.blockers = (*execution.blockers, paused)
        book.put(execution)
        assert book.vector(execution_id)[2] == "blocked_by_operator"
        assert ("due_delay", "", START_MS + 5, execution_id) in book.rows(execution_id)
        book.advance(5)
        book.run(requests.promote(execution_id))
        assert book.execution(execution_id).blockers == (paused,)
        assert book.indexes(execution_id) == {"created", "blocked"}

    def test_what_is_not_due_changes_nothing(self, book):
        running, _ = book.start()
        for execution_id, reason in [
            (book.create(delay_until=START_MS + 1), "not_yet_due"),
            (book.create(), "not_delayed"),
            (running, "not_runnable"),
            (new_execution_id(), "execution_not_found"),
        ]:
            with book.unchanged():
                assert book.run(requests.promote(execution_id)) == DelayedNotPromoted(reason=reason)

"""Cancelling, and acting on deadlines."""

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import ExecutionAlreadyTerminal, ExecutionCancelled, ExecutionExpired
from flowfabric.contracts.policy import ExecutionPolicy, FixedBackoff, RetryPolicy, TimeoutPolicy
from flowfabric.contracts.states import AttemptLifecycle, LifecyclePhase, PublicState
from flowfabric.core.events import Family
from flowfabric.core.records import Suspension, Waitpoint
from flowfabric.core.state import Situation
from tests.core import requests
from tests.core.fences import refused_fences
from tests.core.harness import START_MS, TTL_MS, new_execution_id
from tests.core.requests import DELAY_MS

DONE = ("terminal", "unowned", "not_applicable", "none")
TIMEOUT_MS = 100
TIMEOUT = TimeoutPolicy(attempt_timeout_ms=TIMEOUT_MS)
TIMEOUT_AFTER_LEASE = TimeoutPolicy(attempt_timeout_ms=TTL_MS + 1)


def cancelled(execution_id, phase):
    return ExecutionCancelled(
        execution_id=execution_id, public_state=PublicState.CANCELLED, cancelled_from=phase
    )


def suspended(book, **fields):
    execution_id, _ = book.start(**fields)
    book.suspend(execution_id, timeout_at=START_MS + 50)
    execution = book.execution(execution_id)
    suspension = f"{execution_id}/{execution.suspension_id}"
    return execution_id, suspension, f"{execution_id}/{execution.waitpoint_id}"


class TestCancel:
    @pytest.mark.scenario("LIFE-002")
    def test_a_waiting_execution(self, book):
        execution_id = book.create()
        outcome = book.run(requests.cancel(execution_id))
        assert outcome == cancelled(execution_id, LifecyclePhase.RUNNABLE)
        assert book.vector(execution_id) == (*DONE, "cancelled", "pending_first_attempt", "cancelled")
        assert book.indexes(execution_id) == {"created", "retention", "terminal"}
        execution = book.execution(execution_id)
        assert (execution.cancellation_reason, execution.cancelled_by) == ("not needed", "operator_override")
        assert (execution.lease_epoch, execution.attempt) == (0, None)

    @pytest.mark.scenario("LIFE-004")
    def test_without_a_lease_no_lease_event_is_published(self, book):
        execution_id = book.create()
        book.run(requests.cancel(execution_id), actor="ann")
        assert book.names() == ["created", "cancelled", "cancelled"]
        completion, operator = book.events[1:]
        assert (completion.family, operator.family) == (Family.COMPLETION, Family.OPERATOR)
        assert (operator.data["actor"], operator.data["reason"]) == ("ann", "not needed")

    def test_a_delayed_execution(self, book):
        execution_id = book.create(delay_until=START_MS + 9, execution_deadline_at=START_MS + 99)
        book.run(requests.cancel(execution_id))
        assert book.indexes(execution_id) == {"created", "retention", "terminal"}

    def test_an_operator_needs_no_lease_to_cancel_running_work(self, book):
        execution_id, fence = book.start()
        outcome = book.run(requests.cancel(execution_id))
        assert outcome == cancelled(execution_id, LifecyclePhase.ACTIVE)
        assert book.vector(execution_id) == (*DONE, "cancelled", "attempt_terminal", "cancelled")
        attempt = book.execution(execution_id).attempt
        assert (attempt.state, attempt.failure_reason) == (
            AttemptLifecycle.ENDED_CANCELLED,
            "cancelled: not needed",
        )
        assert attempt.stream_closed_reason == "attempt_cancelled"
        with book.refuses(errors.ExecutionNotActive):
            book.run(requests.renew(execution_id, fence))

    def test_the_holder_cancels_with_its_fence_and_is_no_operator(self, book):
        execution_id, fence = book.start()
        book.run(requests.cancel(execution_id, fence))
        assert book.names() == ["created", "acquired", "released", "cancelled"]
        assert book.execution(execution_id).cancelled_by == "lease_holder"

    @pytest.mark.parametrize("lapse", [requests.revoke, requests.mark_expired])
    def test_an_operator_can_cancel_work_whose_lease_has_lapsed(self, book, lapse):
        execution_id, _ = book.start()
        book.advance(TTL_MS if lapse is requests.mark_expired else 0)
        book.run(lapse(execution_id))
        book.run(requests.cancel(execution_id))
        assert book.situation(execution_id) is Situation.CANCELLED
        assert book.indexes(execution_id) == {"created", "retention", "terminal"}

    def test_a_suspension_and_its_waitpoint_are_closed(self, book):
        execution_id, suspension, waitpoint = suspended(book)
        outcome = book.run(requests.cancel(execution_id))
        assert outcome == cancelled(execution_id, LifecyclePhase.SUSPENDED)
        closed = book.get(Suspension, suspension)
        assert (closed.closed_at, closed.close_reason) == (book.now, "cancelled")
        assert book.get(Waitpoint, waitpoint).state == "closed"
        assert book.indexes(execution_id) == {"created", "retention", "terminal"}
        attempt = book.execution(execution_id).attempt
        assert (attempt.state, attempt.stream_closed_reason) == ("ended_cancelled", "attempt_cancelled")

    @pytest.mark.scenario("LIFE-005")
    def test_a_second_cancel_gets_the_same_answer(self, book):
        execution_id, fence = book.start()
        first = book.run(requests.cancel(execution_id, fence))
        with book.unchanged():
            assert book.run(requests.cancel(execution_id, fence)) == first
            assert book.run(requests.cancel(execution_id, reason="again")) == first

    @pytest.mark.scenario("LIFE-006")
    def test_after_another_outcome_it_is_refused(self, book):
        execution_id, fence = book.start()
        book.run(requests.complete(execution_id, fence))
        with book.refuses(errors.ExecutionNotActive) as refusal:
            book.run(requests.cancel(execution_id))
        assert refusal[0].details["terminal_outcome"] == "success"

    @pytest.mark.scenario("LIFE-009")
    def test_an_unknown_execution(self, book):
        with book.refuses(errors.ExecutionNotFound):
            book.run(requests.cancel(new_execution_id()))

    def test_half_a_fence_is_refused(self, book):
        execution_id, fence = book.start()
        for given in ({"lease_id": fence.lease_id}, {"lease_epoch": 1, "attempt_id": fence.attempt_id}):
            with book.refuses(errors.PartialFenceTriple):
                book.run(requests.cancel(execution_id, **given))

    @pytest.mark.parametrize("source", ["lease_holder", "someone"])
    def test_running_work_is_cancelled_with_its_fence_only(self, book, source):
        execution_id, _ = book.start()
        with book.refuses(errors.FenceRequired):
            book.run(requests.cancel(execution_id, source=source))

    @pytest.mark.parametrize("source", ["flow_cascade", "system_timeout"])
    def test_the_engine_itself_needs_no_fence(self, book, source):
        execution_id, _ = book.start()
        book.run(requests.cancel(execution_id, source=source))
        assert book.execution(execution_id).cancelled_by == source
        assert book.names(Family.OPERATOR) == []

    @pytest.mark.scenario("LIFE-008")
    @refused_fences
    def test_a_fence_that_is_not_current_is_refused(self, book, situation):
        execution_id, fence, error = situation(book)
        with book.refuses(error):
            book.run(requests.cancel(execution_id, fence))

    def test_a_fence_is_compared_for_an_operator_too(self, book):
        execution_id, fence = book.start()
        book.run(requests.revoke(execution_id))
        book.claim(execution_id)
        with book.refuses(errors.StaleLease):
            book.run(requests.cancel(execution_id, fence, source="operator_override"))


class TestDeadline:
    @pytest.mark.scenario("TIME-004")
    def test_an_execution_that_never_ran(self, book):
        execution_id = book.create(execution_deadline_at=START_MS + 1)
        book.advance(1)
        assert book.run(requests.deadline(execution_id)) == ExecutionExpired(execution_id=execution_id)
        assert book.vector(execution_id) == (*DONE, "expired", "pending_first_attempt", "expired")
        assert book.indexes(execution_id) == {"created", "retention", "terminal"}
        execution = book.execution(execution_id)
        assert (execution.failure_reason, execution.failure_category) == ("execution_deadline", "timeout")
        assert book.names(Family.COMPLETION) == ["expired"]

    def test_a_running_execution(self, book):
        execution_id, _ = book.start(execution_deadline_at=START_MS + 1)
        book.advance(1)
        book.run(requests.deadline(execution_id))
        assert book.vector(execution_id) == (*DONE, "expired", "attempt_terminal", "expired")
        attempt = book.execution(execution_id).attempt
        assert (attempt.state, attempt.stream_closed_reason) == ("ended_failure", "expired")
        assert book.events[-2].data["reason"] == "expired:execution_deadline"

    def test_retries_do_not_help(self, book):
        execution_id, _ = book.start(policy=requests.retries(3), execution_deadline_at=START_MS)
        book.run(requests.deadline(execution_id))
        assert book.situation(execution_id) is Situation.EXPIRED

    def test_a_suspended_execution(self, book):
        execution_id, suspension, waitpoint = suspended(book, execution_deadline_at=START_MS + 1)
        book.advance(1)
        book.run(requests.deadline(execution_id))
        assert book.situation(execution_id) is Situation.EXPIRED
        assert book.get(Suspension, suspension).close_reason == "expired:execution_deadline"
        assert book.get(Waitpoint, waitpoint).state == "closed"
        assert book.indexes(execution_id) == {"created", "retention", "terminal"}

    def test_a_lapsed_lease_and_a_delay_do_not_help_either(self, book):
        lapsed, _ = book.start(execution_deadline_at=START_MS + TTL_MS)
        delayed = book.create(delay_until=START_MS * 2, execution_deadline_at=START_MS + TTL_MS)
        book.advance(TTL_MS)
        book.run(requests.mark_expired(lapsed))
        for execution_id in (lapsed, delayed):
            book.run(requests.deadline(execution_id))
            assert book.situation(execution_id) is Situation.EXPIRED

    def test_what_is_not_due_changes_nothing(self, book):
        early = book.create(execution_deadline_at=START_MS + 1)
        without = book.create()
        ended = book.create(execution_deadline_at=START_MS)
        book.run(requests.cancel(ended))
        for execution_id in (early, without, ended, new_execution_id()):
            with book.unchanged():
                assert book.run(requests.deadline(execution_id)) == ExecutionAlreadyTerminal()


class TestAttemptTimeout:
    def running(self, book, most=1, delay_ms=DELAY_MS):
        retry = RetryPolicy(max_retries=most, backoff=FixedBackoff(delay_ms=delay_ms))
        execution_id, fence = book.start(policy=ExecutionPolicy(retry_policy=retry, timeout_policy=TIMEOUT))
        return execution_id, fence

    @pytest.mark.scenario("TIME-006")
    def test_a_retry_is_used_while_one_is_left(self, book):
        execution_id, _ = self.running(book, delay_ms=0)
        book.advance(TIMEOUT_MS)
        assert book.run(requests.timeout(execution_id)) == ExecutionExpired(execution_id=execution_id)
        assert book.vector(execution_id) == (
            "runnable",
            "unowned",
            "eligible_now",
            "waiting_for_worker",
            "none",
            "pending_retry_attempt",
            "waiting",
        )
        execution = book.execution(execution_id)
        assert (execution.retry_count, execution.attempt.failure_category) == (1, "timeout")
        assert execution.attempt.stream_closed_reason == "expired"
        assert book.events[-1].data["reason"] == "expired:attempt_timeout"
        assert book.claim(execution_id).lease_epoch == 2
        assert book.execution(execution_id).attempt.attempt_index == 1

    def test_the_retry_waits_as_the_policy_says(self, book):
        execution_id, _ = self.running(book)
        book.advance(TIMEOUT_MS)
        book.run(requests.timeout(execution_id))
        assert book.situation(execution_id) is Situation.DELAYED
        assert ("due_delay", "", book.now + DELAY_MS, execution_id) in book.rows(execution_id)

    @pytest.mark.scenario("TIME-006")
    def test_without_a_retry_the_execution_expires(self, book):
        execution_id, _ = self.running(book, most=0)
        book.advance(TIMEOUT_MS)
        book.run(requests.timeout(execution_id))
        assert book.vector(execution_id) == (*DONE, "expired", "attempt_terminal", "expired")
        assert book.execution(execution_id).failure_reason == "attempt_timeout"
        assert book.names(Family.COMPLETION) == ["expired"]

    def test_a_policy_that_does_not_retry_timeouts(self, book):
        retry = RetryPolicy(max_retries=3, retryable_categories=("transient",))
        execution_id, _ = book.start(policy=ExecutionPolicy(retry_policy=retry, timeout_policy=TIMEOUT))
        book.advance(TIMEOUT_MS)
        book.run(requests.timeout(execution_id))
        assert book.situation(execution_id) is Situation.EXPIRED

    def test_the_late_worker_is_refused(self, book):
        execution_id, fence = self.running(book)
        book.advance(TIMEOUT_MS)
        book.run(requests.timeout(execution_id))
        with book.refuses(errors.ExecutionNotActive):
            book.run(requests.complete(execution_id, fence))

    def test_a_trigger_that_comes_too_early_changes_nothing(self, book):
        execution_id, _ = self.running(book)
        book.advance(TIMEOUT_MS - 1)
        with book.unchanged():
            assert book.run(requests.timeout(execution_id)) == ExecutionAlreadyTerminal()

    def test_a_trigger_for_an_attempt_that_is_over_changes_nothing(self, book):
        execution_id, _ = self.running(book)
        book.run(requests.revoke(execution_id))
        book.advance(TIMEOUT_MS - 1)
        book.claim(execution_id)
        book.advance(1)
        with book.unchanged():
            assert book.run(requests.timeout(execution_id)) == ExecutionAlreadyTerminal()

    def test_it_does_not_strike_after_a_lease_that_lapsed_unseen(self, book):
        """As after an outage: both instants have passed, and only leased time counts."""
        execution_id, _ = book.start(policy=ExecutionPolicy(timeout_policy=TIMEOUT_AFTER_LEASE))
        book.advance(TTL_MS * 10)
        with book.unchanged():
            assert book.run(requests.timeout(execution_id)) == ExecutionAlreadyTerminal()
        book.run(requests.mark_expired(execution_id))
        book.claim(execution_id)

    def test_it_strikes_at_the_instant_at_which_the_lease_ends(self, book):
        timeouts = TimeoutPolicy(attempt_timeout_ms=TTL_MS)
        execution_id, _ = book.start(policy=ExecutionPolicy(timeout_policy=timeouts))
        book.advance(TTL_MS)
        book.run(requests.timeout(execution_id))
        assert book.situation(execution_id) is Situation.EXPIRED

    def test_it_does_not_strike_while_nobody_holds_the_lease(self, book):
        delayed, fence = self.running(book)
        lapsed, _ = self.running(book)
        book.run(requests.delay(delayed, fence, 0))
        book.run(requests.revoke(lapsed))
        book.advance(TIMEOUT_MS * 10)
        for execution_id in (delayed, lapsed, new_execution_id()):
            with book.unchanged():
                assert book.run(requests.timeout(execution_id)) == ExecutionAlreadyTerminal()

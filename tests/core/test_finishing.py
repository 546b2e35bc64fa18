"""How an attempt ends on its worker's word."""

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import ExecutionCompleted, RetryScheduled, TerminalFailed
from flowfabric.contracts.limits import SAFE_INTEGER_MAX
from flowfabric.contracts.policy import ExecutionPolicy, FixedBackoff, RetryPolicy, TimeoutPolicy
from flowfabric.contracts.states import AttemptLifecycle, PublicState
from flowfabric.core.events import Family
from flowfabric.core.records import ExecutionResult
from flowfabric.core.state import Situation
from tests.core import requests
from tests.core.fences import refused_fences
from tests.core.harness import START_MS
from tests.core.requests import DELAY_MS

DONE = ("terminal", "unowned", "not_applicable", "none")


class TestComplete:
    @pytest.mark.scenario("LIFE-001")
    def test_the_execution_has_ended_well(self, book):
        execution_id, fence = book.start(execution_deadline_at=START_MS + 9_000)
        outcome = book.run(requests.complete(execution_id, fence))
        assert outcome == ExecutionCompleted(execution_id=execution_id, public_state=PublicState.COMPLETED)
        assert book.vector(execution_id) == (*DONE, "success", "attempt_terminal", "completed")
        assert book.indexes(execution_id) == {"created", "retention", "terminal"}
        execution = book.execution(execution_id)
        assert (execution.lease, execution.completed_at) == (None, book.now)
        assert execution.attempt.state is AttemptLifecycle.ENDED_SUCCESS
        assert execution.attempt.stream_closed_reason == "attempt_success"
        assert book.names() == ["created", "acquired", "released", "success"]

    def test_the_result_is_kept_per_generation(self, book):
        execution_id, fence = book.start()
        book.run(requests.complete(execution_id, fence, result_payload=b"one", result_encoding="json"))
        result = book.get(ExecutionResult, f"{execution_id}/0")
        assert (result.data, result.encoding) == (b"one", "json")
        assert book.execution(execution_id).has_result

    def test_without_a_result_none_is_kept(self, book):
        execution_id, fence = book.start()
        book.run(requests.complete(execution_id, fence))
        assert book.find(ExecutionResult, f"{execution_id}/0") is None
        assert not book.execution(execution_id).has_result

    @pytest.mark.scenario("LEASE-001")
    @pytest.mark.scenario("LIFE-015")
    @refused_fences
    def test_a_fence_that_is_not_current_is_refused(self, book, situation):
        execution_id, fence, error = situation(book)
        with book.refuses(error):
            book.run(requests.complete(execution_id, fence))

    @pytest.mark.scenario("LEASE-001")
    def test_without_a_fence_only_an_override_passes(self, book):
        execution_id, _ = book.start()
        with book.refuses(errors.FenceRequired):
            book.run(requests.complete(execution_id, None))
        book.run(requests.complete(execution_id, None, source="operator_override"))
        assert book.situation(execution_id) is Situation.COMPLETED

    def test_an_override_cannot_hit_a_later_attempt(self, book):
        execution_id, _ = book.start()
        book.run(requests.revoke(execution_id))
        book.claim(execution_id)
        with book.refuses(errors.StaleLease):
            book.run(requests.complete(execution_id, None, source="operator_override", attempt_index=0))

    def test_an_override_does_not_revive_a_lost_lease(self, book):
        execution_id, _ = book.start()
        book.run(requests.revoke(execution_id))
        with book.refuses(errors.LeaseRevoked):
            book.run(requests.complete(execution_id, None, source="operator_override"))

    @pytest.mark.scenario("LIFE-011")
    def test_repeating_it_gives_the_first_answer(self, book):
        execution_id, fence = book.start()
        first = book.run(requests.complete(execution_id, fence, result_payload=b"one"))
        with book.unchanged():
            assert book.run(requests.complete(execution_id, fence, result_payload=b"two")) == first

    @pytest.mark.scenario("LIFE-011")
    def test_another_ending_is_told_how_it_ended(self, book):
        execution_id, fence = book.start()
        book.run(requests.complete(execution_id, fence))
        with book.refuses(errors.ExecutionNotActive) as refusal:
            book.run(requests.fail(execution_id, fence))
        assert refusal[0].details == {
            "terminal_outcome": "success",
            "lease_epoch": "1",
            "lifecycle_phase": "terminal",
            "attempt_id": fence.attempt_id,
        }


class TestFail:
    @pytest.mark.scenario("RETRY-001")
    def test_while_a_retry_is_left_another_attempt_will_be_made(self, book):
        execution_id, fence = book.start(policy=requests.retries(3))
        outcome = book.run(requests.fail(execution_id, fence))
        assert outcome == RetryScheduled(delay_until=book.now + DELAY_MS, next_attempt_index=1)
        assert book.vector(execution_id) == (
            "runnable",
            "unowned",
            "not_eligible_until_time",
            "waiting_for_retry_backoff",
            "none",
            "pending_retry_attempt",
            "delayed",
        )
        assert book.indexes(execution_id) == {"created", "delayed", "due_delay"}
        execution = book.execution(execution_id)
        assert (execution.retry_count, execution.attempt.state) == (1, AttemptLifecycle.ENDED_FAILURE)
        assert (execution.attempt.failure_reason, execution.attempt.failure_category) == ("boom", "transient")
        assert book.events[-1].data["reason"] == "failed_retry_scheduled"
        assert book.names(Family.COMPLETION) == []

    def test_without_a_wait_the_next_attempt_can_begin_at_once(self, book):
        policy = ExecutionPolicy(retry_policy=RetryPolicy(backoff=FixedBackoff(delay_ms=0)))
        execution_id, fence = book.start(policy=policy)
        assert book.run(requests.fail(execution_id, fence)).delay_until == book.now
        assert book.vector(execution_id)[2] == "eligible_now"
        assert book.vector(execution_id)[5] == "pending_retry_attempt"

    @pytest.mark.scenario("RETRY-002")
    def test_without_a_policy_it_fails_for_good(self, book):
        execution_id, fence = book.start()
        assert book.run(requests.fail(execution_id, fence)) == TerminalFailed()
        assert book.vector(execution_id) == (*DONE, "failed", "attempt_terminal", "failed")
        execution = book.execution(execution_id)
        assert (execution.failure_reason, execution.failure_category) == ("boom", "transient")
        assert execution.attempt.state is AttemptLifecycle.ENDED_FAILURE
        assert execution.attempt.stream_closed_reason == "attempt_failure"
        assert book.indexes(execution_id) == {"created", "retention", "terminal"}
        [completion] = [event for event in book.events if event.family is Family.COMPLETION]
        assert (completion.name, completion.data["failure_reason"]) == ("failed", "boom")

    @pytest.mark.scenario("RETRY-003")
    def test_with_no_retries_allowed_it_fails_for_good(self, book):
        execution_id, fence = book.start(policy=requests.retries(0))
        assert book.run(requests.fail(execution_id, fence)) == TerminalFailed()

    def test_so_many_retries_mean_one_attempt_more(self, book):
        execution_id = book.create(policy=requests.retries(2))
        outcomes = []
        for index in range(3):
            fence = book.claim(execution_id)
            outcomes.append(type(book.run(requests.fail(execution_id, fence, attempt_index=index))))
            book.advance(DELAY_MS)
            book.run(requests.promote(execution_id))
        assert outcomes == [RetryScheduled, RetryScheduled, TerminalFailed]
        assert book.execution(execution_id).attempt_count == 3

    @pytest.mark.scenario("RETRY-005")
    @pytest.mark.parametrize("category", ["permanent", "cancelled", "fatal", "journal_mismatch"])
    def test_some_failures_are_never_retried(self, book, category):
        execution_id, fence = book.start(policy=requests.retries(3))
        assert book.run(requests.fail(execution_id, fence, failure_category=category)) == TerminalFailed()

    @pytest.mark.parametrize(("category", "outcome"), [("net", RetryScheduled), ("disk", TerminalFailed)])
    def test_a_policy_may_name_the_failures_that_are_retried(self, book, category, outcome):
        policy = ExecutionPolicy(retry_policy=RetryPolicy(retryable_categories=("net",)))
        execution_id, fence = book.start(policy=policy)
        answer = book.run(requests.fail(execution_id, fence, failure_category=category))
        assert isinstance(answer, outcome)

    def test_durations_that_lead_past_the_last_instant_are_cut(self, book):
        policy = ExecutionPolicy(
            retry_policy=RetryPolicy(max_retries=1, backoff=FixedBackoff(delay_ms=SAFE_INTEGER_MAX)),
            timeout_policy=TimeoutPolicy(
                attempt_timeout_ms=SAFE_INTEGER_MAX, execution_deadline_ms=SAFE_INTEGER_MAX
            ),
        )
        execution_id, fence = book.start(policy=policy)
        execution = book.execution(execution_id)
        assert (execution.deadline_at, execution.attempt.timeout_at) == (SAFE_INTEGER_MAX, SAFE_INTEGER_MAX)
        outcome = book.run(requests.fail(execution_id, fence))
        assert outcome.delay_until == SAFE_INTEGER_MAX
        assert book.run(requests.fail(execution_id, fence)) == outcome

    def test_the_callers_policy_counts_only_where_none_is_stored(self, book):
        caller = '{"max_retries": 5, "backoff": {"type": "fixed", "delay_ms": 1}}'
        execution_id, fence = book.start()
        answer = book.run(requests.fail(execution_id, fence, retry_policy_json=caller))
        assert answer == RetryScheduled(delay_until=book.now + 1, next_attempt_index=1)
        execution_id, fence = book.start(policy=requests.retries(0))
        assert book.run(requests.fail(execution_id, fence, retry_policy_json=caller)) == TerminalFailed()

    @pytest.mark.parametrize("text", ["{", "[]", '{"max_retries": 1, "max_delay": 5}'])
    def test_a_policy_of_the_caller_that_cannot_be_honoured_is_refused(self, book, text):
        execution_id, fence = book.start()
        with book.refuses(errors.InvalidPolicyJson):
            book.run(requests.fail(execution_id, fence, retry_policy_json=text))

    @pytest.mark.parametrize("text", ["", " ", "null", "{}"])
    def test_an_empty_policy_of_the_caller_asks_for_no_retry(self, book, text):
        execution_id, fence = book.start()
        assert book.run(requests.fail(execution_id, fence, retry_policy_json=text)) == TerminalFailed()

    @pytest.mark.scenario("LEASE-001")
    @refused_fences
    def test_a_fence_that_is_not_current_is_refused(self, book, situation):
        execution_id, fence, error = situation(book)
        with book.refuses(error):
            book.run(requests.fail(execution_id, fence))

    @pytest.mark.scenario("LEASE-001")
    def test_without_a_fence_only_an_override_passes(self, book):
        execution_id, _ = book.start()
        with book.refuses(errors.FenceRequired):
            book.run(requests.fail(execution_id, None))
        book.run(requests.fail(execution_id, None, source="operator_override"))

    @pytest.mark.scenario("LIFE-012")
    def test_repeating_one_that_scheduled_a_retry_gives_the_first_answer(self, book):
        execution_id, fence = book.start(policy=requests.retries(3))
        first = book.run(requests.fail(execution_id, fence))
        book.advance(1)
        with book.unchanged():
            assert book.run(requests.fail(execution_id, fence)) == first

    def test_repeating_the_last_one_gives_the_first_answer(self, book):
        execution_id, fence = book.start()
        first = book.run(requests.fail(execution_id, fence))
        with book.unchanged():
            assert book.run(requests.fail(execution_id, fence)) == first

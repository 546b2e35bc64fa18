"""Claiming what an index offered: new, resumed and lapsed work alike."""

import pytest

from flowfabric import errors
from flowfabric.contracts.policy import ExecutionPolicy, RoutingRequirements, TimeoutPolicy
from flowfabric.contracts.states import AttemptLifecycle, AttemptType
from flowfabric.core.commands import CandidateEnded, ExpireLeaseArgs
from flowfabric.core.events import Family
from flowfabric.core.records import PastAttempt
from flowfabric.core.state import Situation
from flowfabric.core.vocabulary import Continuation
from tests.core import requests
from tests.core.harness import INSTANCE, START_MS, TTL_MS, WORKER


def lapsed(book, **fields):
    execution_id, fence = book.start(**fields)
    book.advance(TTL_MS)
    book.run(requests.mark_expired(execution_id))
    return execution_id, fence


class TestFirstClaim:
    @pytest.mark.scenario("LIFE-001")
    def test_the_execution_is_active_under_epoch_one(self, book):
        execution_id, fence = book.start()
        assert book.vector(execution_id) == (
            "active",
            "leased",
            "not_applicable",
            "none",
            "none",
            "running_attempt",
            "active",
        )
        assert fence.lease_epoch == 1
        assert book.indexes(execution_id) == {"created", "active", "due_lease", "worker_leases"}
        attempt = book.execution(execution_id).attempt
        assert (attempt.attempt_index, attempt.attempt_type) == (0, AttemptType.INITIAL)
        assert attempt.state is AttemptLifecycle.STARTED

    def test_the_lease_event_names_lease_attempt_and_worker(self, book):
        _, fence = book.start()
        [event] = [event for event in book.events if event.family is Family.LEASE]
        assert event.name == "acquired"
        assert event.data == {
            "lease_id": fence.lease_id,
            "lease_epoch": 1,
            "attempt_id": fence.attempt_id,
            "attempt_index": 0,
            "worker_id": WORKER,
            "worker_instance_id": INSTANCE,
        }

    def test_the_worker_gets_all_that_a_handler_needs(self, book):
        policy = ExecutionPolicy(timeout_policy=TimeoutPolicy(attempt_timeout_ms=50))
        execution_id = book.create(policy=policy, tags={"a.b": "c"}, payload_encoding="json")
        work = book.run(requests.candidate(execution_id)).work
        assert (work.input_payload, work.payload_encoding, work.tags) == (b"input", "json", {"a.b": "c"})
        assert (work.policy, work.attempt_timeout_at) == (policy, START_MS + 50)
        assert (work.lease_expires_at, work.resumed, work.generation) == (START_MS + TTL_MS, False, 0)


class TestRefusals:
    def test_work_of_another_lane(self, book):
        execution_id = book.create()
        with book.refuses(errors.ExecutionNotEligible):
            book.run(requests.candidate(execution_id, lane_id="other"))

    def test_a_worker_that_lacks_a_capability(self, book):
        routing = RoutingRequirements(required_capabilities=("gpu",))
        execution_id = book.create(policy=ExecutionPolicy(routing_requirements=routing))
        with book.refuses(errors.CapabilityMismatch):
            book.run(requests.candidate(execution_id))
        book.run(requests.candidate(execution_id, worker_capabilities=frozenset({"gpu", "cpu"})))

    def test_work_that_is_delayed(self, book):
        execution_id = book.create(delay_until=START_MS + 1)
        with book.refuses(errors.ExecutionNotEligible):
            book.run(requests.candidate(execution_id))

    def test_work_that_has_ended(self, book):
        execution_id = book.create()
        book.run(requests.cancel(execution_id))
        with book.refuses(errors.ExecutionNotEligible):
            book.run(requests.candidate(execution_id))

    def test_work_whose_lease_is_live(self, book):
        execution_id, _ = book.start()
        with book.refuses(errors.ExecutionNotReclaimable):
            book.run(requests.candidate(execution_id))

    def test_a_lapsed_lease_whose_grace_runs(self, book):
        execution_id, _ = book.start()
        book.advance(TTL_MS)
        book.run(ExpireLeaseArgs(execution_id=execution_id, reclaim_grace_ms=100))
        with book.refuses(errors.ExecutionNotReclaimable):
            book.run(requests.candidate(execution_id))
        book.advance(100)
        book.run(requests.candidate(execution_id))


class TestPolicy:
    def test_the_workers_policy_is_stored_where_the_execution_has_none(self, book):
        execution_id = book.create()
        book.run(requests.candidate(execution_id, policies={"kind": requests.retries(2)}))
        assert book.execution(execution_id).policy == requests.retries(2)

    def test_the_executions_own_policy_wins(self, book):
        execution_id = book.create(policy=requests.retries(1))
        book.run(requests.candidate(execution_id, policies={"kind": requests.retries(2)}))
        assert book.execution(execution_id).policy.retry_policy.max_retries == 1

    def test_the_policy_of_another_kind_does_not_apply(self, book):
        execution_id = book.create()
        book.run(requests.candidate(execution_id, policies={"other": requests.retries(2)}))
        assert book.execution(execution_id).policy is None

    def test_a_deadline_that_comes_with_the_policy_counts_from_the_creation(self, book):
        execution_id = book.create()
        book.advance(40)
        policy = ExecutionPolicy(timeout_policy=TimeoutPolicy(execution_deadline_ms=100))
        book.run(requests.candidate(execution_id, policies={"kind": policy}))
        assert book.execution(execution_id).deadline_at == START_MS + 100
        assert "due_deadline" in book.indexes(execution_id)


class TestResume:
    def test_the_same_attempt_continues_under_the_next_epoch(self, book):
        execution_id, fence = book.start()
        book.run(requests.delay(execution_id, fence, 0))
        work = book.run(requests.candidate(execution_id)).work
        assert (work.resumed, work.attempt_id, work.attempt_index) == (True, fence.attempt_id, 0)
        assert work.lease_epoch == 2
        execution = book.execution(execution_id)
        assert (execution.attempt_count, execution.attempt.resumed_at) == (1, book.now)
        assert execution.attempt.state is AttemptLifecycle.STARTED
        assert book.events[-1].data["reason"] == "claim_resumed"


class TestReclaim:
    @pytest.mark.scenario("LEASE-014")
    def test_a_lapsed_lease_is_taken_over_in_a_new_attempt(self, book):
        execution_id, fence = lapsed(book)
        work = book.run(requests.candidate(execution_id, worker_instance_id="worker-2")).work
        assert (work.attempt_index, work.attempt_type, work.lease_epoch) == (1, AttemptType.RECLAIM, 2)
        past = book.get(PastAttempt, f"{execution_id}/0").attempt
        assert past.state is AttemptLifecycle.INTERRUPTED_RECLAIMED
        assert (past.attempt_id, past.stream_closed_reason) == (fence.attempt_id, "reclaimed")
        execution = book.execution(execution_id)
        assert (execution.reclaim_count, execution.retry_count) == (1, 0)
        assert (execution.attempt.previous_attempt_index, execution.attempt.cause) == (0, "lease_expired")

    @pytest.mark.scenario("LEASE-014")
    def test_the_lease_events_tell_the_story(self, book):
        execution_id, _ = lapsed(book)
        book.run(requests.candidate(execution_id))
        assert book.names(Family.LEASE) == ["acquired", "expired", "reclaimed"]
        assert book.events[-1].data["previous_epoch"] == 1

    @pytest.mark.scenario("RECLAIM-002")
    def test_the_lease_moves_to_the_new_workers_set(self, book):
        execution_id, _ = lapsed(book)
        book.run(requests.candidate(execution_id, worker_instance_id="worker-2"))
        scopes = [row[1] for row in book.rows(execution_id) if row[0] == "worker_leases"]
        assert [scope.endswith("worker-2") for scope in scopes] == [True]

    def test_a_revoked_lease_is_taken_over_at_once(self, book):
        execution_id, _ = book.start()
        book.run(requests.revoke(execution_id))
        work = book.run(requests.candidate(execution_id)).work
        assert (work.attempt_index, work.lease_epoch) == (1, 2)
        assert book.execution(execution_id).attempt.cause == "lease_revoked"

    @pytest.mark.scenario("RECLAIM-006")
    def test_at_the_cap_the_execution_ends_failed(self, book):
        execution_id, _ = lapsed(book, policy=ExecutionPolicy(max_reclaim_count=0))
        outcome = book.run(requests.candidate(execution_id))
        assert outcome == CandidateEnded(execution_id=execution_id, reclaim_count=0)
        assert book.situation(execution_id) is Situation.FAILED
        execution = book.execution(execution_id)
        assert execution.failure_reason == "max_reclaims_exceeded"
        assert execution.continuation is Continuation.NONE
        assert book.names(Family.COMPLETION) == ["failed"]


class TestTimeout:
    def test_only_leased_time_counts(self, book):
        policy = ExecutionPolicy(timeout_policy=TimeoutPolicy(attempt_timeout_ms=100))
        execution_id, fence = book.start(policy=policy)
        book.advance(30)
        book.run(requests.delay(execution_id, fence, 0))
        assert "due_attempt" not in book.indexes(execution_id)
        book.advance(1_000)
        book.claim(execution_id)
        assert book.execution(execution_id).attempt.timeout_at == book.now + 70
        assert ("due_attempt", "", book.now + 70, execution_id) in book.rows(execution_id)

    def test_a_new_attempt_has_the_whole_time_again(self, book):
        policy = ExecutionPolicy(timeout_policy=TimeoutPolicy(attempt_timeout_ms=100_000))
        execution_id, _ = lapsed(book, policy=policy)
        book.claim(execution_id)
        assert book.execution(execution_id).attempt.timeout_at == book.now + 100_000

"""Claims that name their execution."""

import pytest
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.handles import HandleKind, decode_handle
from flowfabric.contracts.policy import ExecutionPolicy, TimeoutPolicy
from flowfabric.contracts.states import AttemptLifecycle, AttemptType, BlockingReason
from flowfabric.core.events import Family
from flowfabric.core.records import Attempt, Blocker, Lease
from flowfabric.core.state import Situation
from flowfabric.core.vocabulary import BlockerKind
from tests.core import requests
from tests.core.harness import INSTANCE, START_MS, TTL_MS, WORKER, new_execution_id, new_id
from tests.core.requests import GRANT_TTL_MS

TIMEOUT = ExecutionPolicy(timeout_policy=TimeoutPolicy(attempt_timeout_ms=100))


def granted(book, **fields):
    execution_id = book.create(**fields)
    book.run(requests.grant(execution_id))
    return execution_id


def interrupted(book, **fields):
    """An execution whose attempt waits to be continued."""
    execution_id, fence = book.start(**fields)
    book.run(requests.delay(execution_id, fence, 0))
    return execution_id, fence


def blocked(book, execution_id):
    execution = book.execution(execution_id)
    execution.blockers = (Blocker(kind=BlockerKind.OPERATOR, reason=BlockingReason.PAUSED_BY_OPERATOR),)
    book.put(execution)


def damaged(book, **changes):
    """An execution whose record no rule could have written."""
    execution_id = granted(book)
    book.put(replace(book.execution(execution_id), **changes))
    return execution_id


def a_lease():
    return Lease(
        lease_id=new_id(),
        epoch=1,
        worker_id=WORKER,
        worker_instance_id=INSTANCE,
        acquired_at=0,
        expires_at=1,
        ttl_ms=1,
    )


def a_running_attempt():
    return Attempt(
        attempt_id=new_id(),
        attempt_index=0,
        attempt_type=AttemptType.INITIAL,
        state=AttemptLifecycle.STARTED,
        started_at=0,
        worker_id=WORKER,
        worker_instance_id=INSTANCE,
    )


class TestClaim:
    def test_a_grant_becomes_a_lease_with_a_new_attempt(self, book):
        execution_id = granted(book)
        command = requests.claim(execution_id)
        outcome = book.run(command)
        assert (outcome.lease_id, outcome.attempt_id) == (command.lease_id, command.attempt_id)
        assert (outcome.lease_epoch, outcome.attempt_index) == (1, 0)
        assert outcome.attempt_type is AttemptType.INITIAL
        assert outcome.lease_expires_at == START_MS + TTL_MS
        assert book.situation(execution_id) is Situation.RUNNING
        assert book.indexes(execution_id) == {"created", "active", "due_lease", "worker_leases"}
        assert book.names(Family.LEASE) == ["acquired"]
        assert book.execution(execution_id).grant is None

    def test_the_handle_carries_the_fence(self, book):
        execution_id = granted(book)
        outcome = book.run(requests.claim(execution_id))
        payload = decode_handle(outcome.handle)
        assert outcome.handle.kind is HandleKind.FRESH
        assert payload.execution_id == execution_id
        assert (payload.fence.lease_id, payload.fence.attempt_id) == (outcome.lease_id, outcome.attempt_id)
        assert (payload.lease_ttl_ms, payload.worker_instance_id) == (TTL_MS, INSTANCE)

    def test_another_instance_of_the_same_worker_may_use_the_grant(self, book):
        execution_id = granted(book)
        book.run(requests.claim(execution_id, worker_instance_id="worker-2"))
        assert book.execution(execution_id).lease.worker_instance_id == "worker-2"

    def test_limits_that_come_with_the_claim_apply_where_no_policy_says_so(self, book):
        execution_id = granted(book)
        book.run(requests.claim(execution_id, attempt_timeout_ms=20, execution_deadline_at=START_MS + 30))
        execution = book.execution(execution_id)
        assert (execution.attempt.timeout_at, execution.deadline_at) == (START_MS + 20, START_MS + 30)

    def test_the_executions_own_limits_win(self, book):
        execution_id = granted(book, policy=TIMEOUT, execution_deadline_at=START_MS + 500)
        book.run(requests.claim(execution_id, attempt_timeout_ms=20, execution_deadline_at=START_MS + 30))
        execution = book.execution(execution_id)
        assert (execution.attempt.timeout_at, execution.deadline_at) == (START_MS + 100, START_MS + 500)

    def test_the_handlers_policy_is_stored_and_kept_with_the_attempt(self, book):
        execution_id = granted(book)
        text = '{"max_replay_count": 3}'
        book.run(requests.claim(execution_id, attempt_policy_json=text))
        execution = book.execution(execution_id)
        assert (execution.policy.max_replay_count, execution.attempt.policy_json) == (3, text)

    def test_a_cap_that_comes_late_is_not_below_what_was_used_before(self, book):
        execution_id = book.create()
        for _ in range(2):
            book.run(requests.cancel(execution_id))
            book.run(requests.replay(execution_id))
        book.run(requests.grant(execution_id))
        book.run(requests.claim(execution_id, attempt_policy_json='{"max_replay_count": 1}'))
        assert book.execution(execution_id).policy.max_replay_count == 2
        book.run(requests.cancel(execution_id, source="flow_cascade"))
        with book.refuses(errors.MaxReplaysExhausted):
            book.run(requests.replay(execution_id))

    def test_a_policy_that_cannot_be_honoured_is_refused(self, book):
        execution_id = granted(book)
        with book.refuses(errors.InvalidPolicyJson):
            book.run(requests.claim(execution_id, attempt_policy_json='{"colour": "red"}'))

    @pytest.mark.scenario("RETRY-001")
    def test_after_a_retry_the_next_attempt_has_the_next_index(self, book):
        execution_id, fence = book.start(policy=requests.retries(1))
        book.run(requests.fail(execution_id, fence))
        book.advance(requests.DELAY_MS)
        book.run(requests.promote(execution_id))
        book.run(requests.grant(execution_id))
        outcome = book.run(requests.claim(execution_id, expected_attempt_index=1))
        assert (outcome.attempt_index, outcome.lease_epoch) == (1, 2)
        assert outcome.attempt_type is AttemptType.RETRY
        assert book.execution(execution_id).attempt.cause == "boom"


class TestClaimRefusals:
    def test_an_unknown_execution(self, book):
        with book.refuses(errors.ExecutionNotFound):
            book.run(requests.claim(new_execution_id()))

    def test_a_running_execution(self, book):
        execution_id, _ = book.start()
        with book.refuses(errors.ExecutionNotLeaseable):
            book.run(requests.claim(execution_id))

    def test_a_record_that_waits_and_has_a_lease(self, book):
        execution_id = damaged(book, lease=a_lease())
        with book.refuses(errors.LeaseConflict):
            book.run(requests.claim(execution_id))

    def test_a_blocked_execution(self, book):
        execution_id = granted(book)
        blocked(book, execution_id)
        with book.refuses(errors.ExecutionNotLeaseable):
            book.run(requests.claim(execution_id))

    def test_another_lane(self, book):
        execution_id = granted(book)
        with book.refuses(errors.ExecutionNotLeaseable):
            book.run(requests.claim(execution_id, lane_id="other"))

    def test_a_record_that_waits_and_has_a_running_attempt(self, book):
        execution_id = damaged(book, attempt=a_running_attempt())
        with book.refuses(errors.ActiveAttemptExists):
            book.run(requests.claim(execution_id))

    def test_an_interrupted_attempt_is_claimed_otherwise(self, book):
        execution_id, _ = interrupted(book)
        with book.refuses(errors.UseClaimResumedExecution):
            book.run(requests.claim(execution_id, expected_attempt_index=9))

    def test_a_stale_attempt_index_is_named(self, book):
        execution_id = book.create()
        with book.refuses(errors.ExecutionNotLeaseable) as refusal:
            book.run(requests.claim(execution_id, expected_attempt_index=1))
        assert refusal[0].details["expected_attempt_index"] == "1"
        assert refusal[0].details["next_attempt_index"] == "0"

    def test_no_grant(self, book):
        execution_id = book.create()
        with book.refuses(errors.InvalidClaimGrant):
            book.run(requests.claim(execution_id))

    def test_the_grant_of_another_worker(self, book):
        execution_id = granted(book)
        book.advance(GRANT_TTL_MS)
        with book.refuses(errors.InvalidClaimGrant):
            book.run(requests.claim(execution_id, worker_id="other"))

    def test_an_expired_grant(self, book):
        execution_id = granted(book)
        book.advance(GRANT_TTL_MS)
        with book.refuses(errors.ClaimGrantExpired):
            book.run(requests.claim(execution_id))

    def test_a_grant_that_was_used(self, book):
        execution_id = granted(book)
        fence = book.run(requests.claim(execution_id))
        assert fence.lease_epoch == 1
        with book.refuses(errors.ExecutionNotLeaseable):
            book.run(requests.claim(execution_id))


class TestClaimResumed:
    @pytest.mark.scenario("LEASE-012")
    def test_the_interrupted_attempt_continues_under_the_next_epoch(self, book):
        execution_id, fence = interrupted(book)
        book.run(requests.grant(execution_id))
        outcome = book.run(requests.claim_resumed(execution_id))
        assert (outcome.attempt_index, outcome.attempt_id) == (0, fence.attempt_id)
        assert outcome.lease_epoch == 2
        assert outcome.handle.kind is HandleKind.RESUMED
        assert book.situation(execution_id) is Situation.RUNNING
        assert book.events[-1].data["reason"] == "claim_resumed"

    def test_the_time_that_is_left_is_the_engines_own(self, book):
        execution_id, fence = book.start(policy=TIMEOUT)
        book.advance(40)
        book.run(requests.delay(execution_id, fence, 0))
        book.run(requests.grant(execution_id))
        book.run(requests.claim_resumed(execution_id, remaining_attempt_timeout_ms=5_000))
        assert book.execution(execution_id).attempt.timeout_at == book.now + 60

    def test_a_limit_that_comes_with_the_claim_applies_where_there_is_none(self, book):
        execution_id, _ = interrupted(book)
        book.run(requests.grant(execution_id))
        book.run(requests.claim_resumed(execution_id, remaining_attempt_timeout_ms=50))
        assert book.execution(execution_id).attempt.timeout_at == book.now + 50

    def test_an_unknown_execution(self, book):
        with book.refuses(errors.ExecutionNotFound):
            book.run(requests.claim_resumed(new_execution_id()))

    def test_a_running_execution(self, book):
        execution_id, _ = book.start()
        with book.refuses(errors.ExecutionNotLeaseable):
            book.run(requests.claim_resumed(execution_id))

    @pytest.mark.scenario("LEASE-012")
    def test_one_that_was_never_interrupted(self, book):
        execution_id = granted(book)
        blocked(book, execution_id)
        with book.refuses(errors.NotAResumedExecution):
            book.run(requests.claim_resumed(execution_id))

    def test_one_that_was_blocked_after_the_grant(self, book):
        execution_id, _ = interrupted(book)
        book.run(requests.grant(execution_id))
        blocked(book, execution_id)
        with book.refuses(errors.ExecutionNotLeaseable):
            book.run(requests.claim_resumed(execution_id))

    def test_another_attempt_than_the_callers(self, book):
        execution_id, _ = interrupted(book)
        with book.refuses(errors.ExecutionNotLeaseable):
            book.run(requests.claim_resumed(execution_id, current_attempt_index=1))

    def test_no_grant(self, book):
        execution_id, _ = interrupted(book)
        with book.refuses(errors.InvalidClaimGrant):
            book.run(requests.claim_resumed(execution_id))

    @pytest.mark.scenario("LEASE-012")
    def test_the_grant_of_another_worker(self, book):
        execution_id, _ = interrupted(book)
        book.run(requests.grant(execution_id))
        with book.refuses(errors.InvalidClaimGrant):
            book.run(requests.claim_resumed(execution_id, worker_id="other"))

    @pytest.mark.scenario("LEASE-012")
    def test_an_expired_grant(self, book):
        execution_id, _ = interrupted(book)
        book.run(requests.grant(execution_id, grant_ttl_ms=200))
        book.advance(600)
        with book.refuses(errors.ClaimGrantExpired):
            book.run(requests.claim_resumed(execution_id))

    @pytest.mark.scenario("LEASE-021")
    def test_a_grant_is_used_once(self, book):
        execution_id, _ = interrupted(book)
        book.run(requests.grant(execution_id))
        book.run(requests.claim_resumed(execution_id))
        with book.refuses(errors.ExecutionNotLeaseable):
            book.run(requests.claim_resumed(execution_id))


class TestGrantAndClaim:
    def test_a_waiting_execution_is_claimed_in_one_step(self, book):
        execution_id = book.create()
        outcome = book.run(requests.grant_and_claim(execution_id))
        assert (outcome.lease_epoch, outcome.attempt_index, outcome.resumed) == (1, 0, False)
        assert outcome.handle.kind is HandleKind.FRESH
        assert book.situation(execution_id) is Situation.RUNNING

    def test_an_interrupted_attempt_continues(self, book):
        execution_id, fence = interrupted(book)
        outcome = book.run(requests.grant_and_claim(execution_id))
        assert (outcome.attempt_id, outcome.lease_epoch, outcome.resumed) == (fence.attempt_id, 2, True)
        assert outcome.handle.kind is HandleKind.RESUMED

    def test_the_ids_have_to_be_minted_first(self, book):
        execution_id = book.create()
        with book.refuses(errors.InvalidInput):
            book.run(requests.grant_and_claim(execution_id, lease_id=None))

    def test_an_unknown_execution(self, book):
        with book.refuses(errors.ExecutionNotFound):
            book.run(requests.grant_and_claim(new_execution_id()))

    def test_one_that_another_worker_holds(self, book):
        execution_id, _ = book.start()
        with book.refuses(errors.LeaseConflict):
            book.run(requests.grant_and_claim(execution_id))

    def test_one_whose_lease_has_lapsed_has_to_be_reclaimed(self, book):
        execution_id, _ = book.start()
        book.run(requests.revoke(execution_id))
        with book.refuses(errors.ExecutionNotEligible):
            book.run(requests.grant_and_claim(execution_id))

    def test_one_that_has_ended(self, book):
        execution_id = book.create()
        book.run(requests.cancel(execution_id))
        with book.refuses(errors.ExecutionNotEligible):
            book.run(requests.grant_and_claim(execution_id))

    def test_one_that_is_kept_for_a_worker(self, book):
        execution_id = granted(book)
        with book.refuses(errors.GrantAlreadyExists):
            book.run(requests.grant_and_claim(execution_id))

    def test_one_of_another_lane(self, book):
        execution_id = book.create()
        with book.refuses(errors.ExecutionNotInEligibleSet):
            book.run(requests.grant_and_claim(execution_id, lane_id="other"))

    def test_a_delayed_one_stays_delayed(self, book):
        execution_id = book.create(delay_until=START_MS + 1)
        with book.refuses(errors.ExecutionNotEligible):
            book.run(requests.grant_and_claim(execution_id))

    def test_an_interrupted_one_that_sleeps_stays_asleep(self, book):
        execution_id, fence = book.start()
        book.run(requests.delay(execution_id, fence, START_MS + 60_000))
        with book.refuses(errors.ExecutionNotEligible):
            book.run(requests.grant_and_claim(execution_id))

    def test_a_blocked_one_stays_blocked(self, book):
        execution_id, _ = interrupted(book)
        blocked(book, execution_id)
        with book.refuses(errors.ExecutionNotEligible):
            book.run(requests.grant_and_claim(execution_id))

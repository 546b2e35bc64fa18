"""Reclaiming with a grant."""

import pytest

from flowfabric import errors
from flowfabric.contracts.handles import HandleKind, decode_handle
from flowfabric.contracts.leases import (
    NotReclaimable,
    ReclaimCapExceeded,
    ReclaimGranted,
    ReclaimGrantNotFound,
)
from flowfabric.contracts.policy import ExecutionPolicy, RoutingRequirements, TimeoutPolicy
from flowfabric.contracts.states import AttemptLifecycle, AttemptType
from flowfabric.core.commands import ExpireLeaseArgs
from flowfabric.core.events import Family
from flowfabric.core.records import PastAttempt
from flowfabric.core.state import Situation
from tests.core import requests
from tests.core.harness import LANE, TTL_MS, new_execution_id
from tests.core.requests import GRANT_TTL_MS

GPU = ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=("gpu",)))


def lapsed(book, **fields):
    execution_id, _ = book.start(**fields)
    book.advance(TTL_MS)
    book.run(requests.mark_expired(execution_id))
    return execution_id


def granted(book, **fields):
    execution_id = lapsed(book, **fields)
    book.run(requests.reclaim_grant(execution_id))
    return execution_id


def with_reclaims(book, execution_id, count):
    execution = book.execution(execution_id)
    execution.reclaim_count = count
    book.put(execution)


class TestGrant:
    @pytest.mark.scenario("RECLAIM-003")
    def test_a_lapsed_lease_is_kept_for_one_worker(self, book):
        execution_id = lapsed(book)
        outcome = book.run(requests.reclaim_grant(execution_id))
        assert isinstance(outcome, ReclaimGranted)
        assert (outcome.grant.execution_id, outcome.grant.lane_id) == (execution_id, LANE)
        assert outcome.grant.partition_key == "{fp:7}"
        assert outcome.grant.expires_at_ms == book.execution(execution_id).grant.expires_at
        assert outcome.grant.expires_at_ms == book.now + GRANT_TTL_MS
        assert book.situation(execution_id) is Situation.LEASE_EXPIRED

    @pytest.mark.scenario("RECLAIM-003")
    def test_a_revoked_lease_is_admitted(self, book):
        execution_id, _ = book.start()
        book.run(requests.revoke(execution_id))
        assert isinstance(book.run(requests.reclaim_grant(execution_id)), ReclaimGranted)

    def test_a_lease_past_its_expiry_is_marked_on_the_way(self, book):
        execution_id, _ = book.start()
        book.advance(TTL_MS)
        assert isinstance(book.run(requests.reclaim_grant(execution_id)), ReclaimGranted)
        assert book.situation(execution_id) is Situation.LEASE_EXPIRED
        assert book.names(Family.LEASE) == ["acquired", "expired"]

    def test_the_grace_holds_only_automatic_reclaiming_back(self, book):
        execution_id, _ = book.start()
        book.advance(TTL_MS)
        book.run(ExpireLeaseArgs(execution_id=execution_id, reclaim_grace_ms=1_000))
        book.run(requests.reclaim_grant(execution_id))
        book.run(requests.reclaim(execution_id))
        assert book.situation(execution_id) is Situation.RUNNING

    @pytest.mark.scenario("RECLAIM-003")
    def test_an_unknown_execution(self, book):
        with book.refuses(errors.ExecutionNotFound):
            book.run(requests.reclaim_grant(new_execution_id()))

    @pytest.mark.scenario("RECLAIM-003")
    def test_a_live_lease_or_none_is_not_reclaimable(self, book):
        running, _ = book.start()
        for execution_id in (running, book.create()):
            with book.unchanged():
                outcome = book.run(requests.reclaim_grant(execution_id))
            assert outcome == NotReclaimable(execution_id=execution_id, detail="execution_not_reclaimable")

    def test_a_second_grant_is_refused(self, book):
        execution_id = granted(book)
        with book.refuses(errors.GrantAlreadyExists):
            book.run(requests.reclaim_grant(execution_id, lane_id="other"))

    def test_another_lane_or_a_lacking_capability_is_named(self, book):
        execution_id = lapsed_gpu(book)
        with book.unchanged():
            lane = book.run(requests.reclaim_grant(execution_id, lane_id="other"))
            capability = book.run(requests.reclaim_grant(execution_id))
        assert lane.detail == f"lane_mismatch: {LANE}"
        assert capability.detail == "capability_mismatch: gpu"

    @pytest.mark.scenario("RECLAIM-006")
    def test_at_the_cap_the_execution_ends_failed(self, book):
        execution_id = lapsed(book)
        with_reclaims(book, execution_id, 100)
        outcome = book.run(requests.reclaim_grant(execution_id))
        assert outcome == ReclaimCapExceeded(execution_id=execution_id, reclaim_count=100)
        assert_failed_for_good(book, execution_id)


def lapsed_gpu(book):
    execution_id = book.create(policy=GPU)
    book.claim(execution_id, worker_capabilities=frozenset({"gpu"}))
    book.advance(TTL_MS)
    book.run(requests.mark_expired(execution_id))
    return execution_id


def assert_failed_for_good(book, execution_id):
    assert book.situation(execution_id) is Situation.FAILED
    execution = book.execution(execution_id)
    assert execution.failure_reason == "max_reclaims_exceeded"
    assert (execution.attempt.state, execution.grant) == (AttemptLifecycle.ENDED_FAILURE, None)
    assert execution.attempt.stream_closed_reason == "attempt_failure"
    assert book.indexes(execution_id) == {"created", "retention", "terminal"}
    assert book.names()[-2:] == ["released", "failed"]


class TestReclaim:
    @pytest.mark.scenario("RECLAIM-010")
    def test_the_caller_owns_a_new_attempt_under_its_own_ids(self, book):
        execution_id = granted(book)
        command = requests.reclaim(execution_id)
        outcome = book.run(command)
        assert (outcome.new_attempt_index, outcome.new_attempt_id) == (1, command.attempt_id)
        assert (outcome.new_lease_id, outcome.new_lease_epoch) == (command.lease_id, 2)
        payload = decode_handle(outcome.handle)
        assert outcome.handle.kind is HandleKind.RECLAIMED
        assert (payload.attempt_id, payload.lease_id) == (command.attempt_id, command.lease_id)
        assert book.situation(execution_id) is Situation.RUNNING
        assert book.execution(execution_id).grant is None

    def test_the_old_attempt_is_over_and_the_new_one_follows_it(self, book):
        execution_id = granted(book)
        book.run(requests.reclaim(execution_id))
        past = book.get(PastAttempt, f"{execution_id}/0").attempt
        assert (past.state, past.ended_at) == (AttemptLifecycle.INTERRUPTED_RECLAIMED, book.now)
        assert (past.stream_closed_reason, past.failure_reason) == ("reclaimed", "expired")
        attempt = book.execution(execution_id).attempt
        assert (attempt.attempt_type, attempt.previous_attempt_index) == (AttemptType.RECLAIM, 0)
        assert book.names(Family.LEASE) == ["acquired", "expired", "reclaimed"]

    @pytest.mark.scenario("RECLAIM-011")
    def test_the_epoch_grows_with_every_reclaim(self, book):
        execution_id = granted(book)
        epochs = []
        for _ in range(3):
            epochs.append(book.run(requests.reclaim(execution_id)).new_lease_epoch)
            book.run(requests.revoke(execution_id))
            book.run(requests.reclaim_grant(execution_id))
        assert epochs == [2, 3, 4]
        assert book.execution(execution_id).reclaim_count == 3

    @pytest.mark.scenario("RECLAIM-002")
    def test_the_lease_moves_to_the_new_workers_set(self, book):
        execution_id = granted(book)
        book.run(requests.reclaim(execution_id, worker_instance_id="worker-2"))
        scopes = [row[1] for row in book.rows(execution_id) if row[0] == "worker_leases"]
        assert [scope.endswith("worker-2") for scope in scopes] == [True]

    def test_an_unknown_execution(self, book):
        with book.refuses(errors.ExecutionNotFound):
            book.run(requests.reclaim(new_execution_id()))

    @pytest.mark.scenario("RECLAIM-009")
    def test_one_that_ended_after_the_grant(self, book):
        execution_id = granted(book)
        book.run(requests.cancel(execution_id))
        self.assert_not_reclaimable(book, execution_id, "execution_not_reclaimable")

    def test_one_that_does_not_match_what_the_caller_expects(self, book):
        execution_id = granted(book)
        self.assert_not_reclaimable(book, execution_id, "lane_mismatch: lane", lane_id="other")
        self.assert_not_reclaimable(
            book, execution_id, "worker_instance_mismatch: worker-1", old_worker_instance_id="other"
        )
        self.assert_not_reclaimable(book, execution_id, "attempt_index_mismatch: 0", current_attempt_index=1)

    def assert_not_reclaimable(self, book, execution_id, detail, **fields):
        with book.unchanged():
            outcome = book.run(requests.reclaim(execution_id, **fields))
        assert outcome == NotReclaimable(execution_id=execution_id, detail=detail)

    @pytest.mark.scenario("RECLAIM-005")
    @pytest.mark.parametrize("wrong", ["none", "other worker", "expired", "used"])
    def test_without_a_grant_that_is_valid_nothing_changes(self, book, wrong):
        execution_id = lapsed(book) if wrong == "none" else granted(book)
        if wrong == "expired":
            book.advance(GRANT_TTL_MS)
        if wrong == "used":
            book.run(requests.reclaim(execution_id))
            book.run(requests.revoke(execution_id))
        worker = "other" if wrong == "other worker" else "worker"
        with book.unchanged():
            outcome = book.run(requests.reclaim(execution_id, worker_id=worker, max_reclaim_count=0))
        assert outcome == ReclaimGrantNotFound(execution_id=execution_id)

    @pytest.mark.scenario("RECLAIM-006")
    @pytest.mark.parametrize(("stored", "most"), [(4, 4), (5, 4), (0, 0)])
    def test_at_the_cap_the_execution_ends_failed(self, book, stored, most):
        execution_id = granted(book)
        with_reclaims(book, execution_id, stored)
        outcome = book.run(requests.reclaim(execution_id, max_reclaim_count=most))
        assert outcome == ReclaimCapExceeded(execution_id=execution_id, reclaim_count=stored)
        assert_failed_for_good(book, execution_id)

    @pytest.mark.scenario("RECLAIM-006")
    def test_below_the_cap_it_is_reclaimed(self, book):
        execution_id = granted(book)
        with_reclaims(book, execution_id, 3)
        book.run(requests.reclaim(execution_id, max_reclaim_count=4))
        assert book.execution(execution_id).reclaim_count == 4

    @pytest.mark.parametrize(
        "policy",
        [
            ExecutionPolicy(max_reclaim_count=2),
            ExecutionPolicy(timeout_policy=TimeoutPolicy(max_reclaim_count=2)),
            ExecutionPolicy(max_reclaim_count=2, timeout_policy=TimeoutPolicy(max_reclaim_count=9)),
        ],
    )
    def test_the_policys_cap_wins_over_the_callers(self, book, policy):
        execution_id = granted(book, policy=policy)
        with_reclaims(book, execution_id, 1)
        book.run(requests.reclaim(execution_id, max_reclaim_count=1))
        assert book.situation(execution_id) is Situation.RUNNING

    def test_a_policy_that_says_nothing_of_reclaims_leaves_the_callers_cap(self, book):
        execution_id = granted(book, policy=requests.retries(1))
        outcome = book.run(requests.reclaim(execution_id, max_reclaim_count=0))
        assert isinstance(outcome, ReclaimCapExceeded)

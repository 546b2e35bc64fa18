"""Keeping a lease, and losing it."""

import pytest

from flowfabric import errors
from flowfabric.contracts.leases import (
    LeaseAlreadyGone,
    LeaseMarkedExpired,
    LeaseMarkNotNeeded,
    LeaseRenewed,
    LeaseWasRevoked,
)
from flowfabric.contracts.policy import ExecutionPolicy, TimeoutPolicy
from flowfabric.contracts.states import AttemptLifecycle
from flowfabric.core.commands import EndReclaimGraceArgs, ExpireLeaseArgs
from flowfabric.core.events import Family
from flowfabric.core.indexes import AGEING_MS_PER_DOUBLING
from flowfabric.core.state import blocking_detail
from tests.core import requests
from tests.core.fences import refused_fences
from tests.core.harness import INSTANCE, START_MS, TTL_MS, new_execution_id, new_id

TIMEOUT = ExecutionPolicy(timeout_policy=TimeoutPolicy(attempt_timeout_ms=100_000))
LAPSED = ("not_applicable", "waiting_for_worker", "none", "attempt_interrupted", "active")
GRACE_MS = 500


class TestRenew:
    @pytest.mark.scenario("LEASE-002")
    def test_the_expiry_moves_forward_and_the_epoch_stays(self, book):
        execution_id, fence = book.start()
        book.advance(1_000)
        outcome = book.run(requests.renew(execution_id, fence))
        assert outcome == LeaseRenewed(expires_at=START_MS + 1_000 + TTL_MS)
        lease = book.execution(execution_id).lease
        assert (lease.expires_at, lease.epoch) == (outcome.expires_at, fence.lease_epoch)
        assert lease.last_renewed_at == book.now
        assert book.names(Family.LEASE) == ["acquired", "renewed"]

    def test_the_indexes_follow(self, book):
        execution_id, fence = book.start()
        expires_at = book.run(requests.renew(execution_id, fence, lease_ttl_ms=TTL_MS * 2)).expires_at
        sorts = {row[0]: row[2] for row in book.rows(execution_id)}
        assert sorts["active"] == sorts["due_lease"] == sorts["worker_leases"] == expires_at

    def test_a_shorter_time_does_not_shorten_the_lease(self, book):
        execution_id, fence = book.start()
        outcome = book.run(requests.renew(execution_id, fence, lease_ttl_ms=1))
        assert outcome.expires_at == START_MS + TTL_MS

    def test_the_last_instant_before_the_expiry_is_early_enough(self, book):
        execution_id, fence = book.start()
        book.advance(TTL_MS - 1)
        book.run(requests.renew(execution_id, fence))

    @pytest.mark.scenario("LEASE-001")
    def test_without_a_fence_it_is_refused(self, book):
        execution_id, _ = book.start()
        with book.refuses(errors.FenceRequired):
            book.run(requests.renew(execution_id, None))

    @pytest.mark.scenario("LEASE-001")
    @refused_fences
    def test_a_fence_that_is_not_current_is_refused(self, book, situation):
        execution_id, fence, error = situation(book)
        with book.refuses(error):
            book.run(requests.renew(execution_id, fence))

    def test_another_attempt_index_is_refused(self, book):
        execution_id, fence = book.start()
        with book.refuses(errors.StaleLease):
            book.run(requests.renew(execution_id, fence, attempt_index=1))


class TestExpire:
    def test_a_lapsed_lease_is_marked(self, book):
        execution_id, _ = book.start()
        book.advance(TTL_MS)
        assert book.run(requests.mark_expired(execution_id)) == LeaseMarkedExpired()
        assert book.vector(execution_id) == ("active", "lease_expired_reclaimable", *LAPSED)
        assert blocking_detail(book.execution(execution_id)) == "lease expired, awaiting reclaim"
        assert book.execution(execution_id).lease.ended_at == book.now
        assert book.names(Family.LEASE) == ["acquired", "expired"]

    def test_it_is_claimable_before_what_was_not_begun_and_stays_active(self, book):
        execution_id, _ = book.start()
        book.advance(TTL_MS)
        [waiting] = [row for row in book.rows(book.create()) if row[0] == "eligible"]
        book.run(requests.mark_expired(execution_id))
        assert book.indexes(execution_id) == {"created", "active", "lapsed", "eligible"}
        [lapsed] = [row for row in book.rows(execution_id) if row[0] == "eligible"]
        assert lapsed[1] == waiting[1]
        assert lapsed[2] == waiting[2] - AGEING_MS_PER_DOUBLING

    def test_the_attempts_stream_is_closed_and_its_time_stops(self, book):
        execution_id, _ = book.start(policy=TIMEOUT)
        book.advance(TTL_MS)
        book.run(requests.mark_expired(execution_id))
        attempt = book.execution(execution_id).attempt
        assert (attempt.stream_closed_at, attempt.stream_closed_reason) == (book.now, "lease_expired")
        assert (attempt.state, attempt.ended_at) == (AttemptLifecycle.STARTED, None)
        assert attempt.timeout_at is None

    @pytest.mark.parametrize(
        ("prepare", "reason"),
        [
            ("unknown", "execution_not_found"),
            ("waiting", "not_active"),
            ("live", "not_yet_expired"),
            ("expired", "already_expired"),
            ("revoked", "already_revoked"),
        ],
    )
    def test_what_is_not_due_changes_nothing(self, book, prepare, reason):
        execution_id = self.prepare(book, prepare)
        with book.unchanged():
            outcome = book.run(requests.mark_expired(execution_id))
        assert outcome == LeaseMarkNotNeeded(reason=reason)

    def prepare(self, book, situation):
        if situation == "unknown":
            return new_execution_id()
        if situation == "waiting":
            return book.create()
        execution_id, _ = book.start()
        if situation == "revoked":
            book.run(requests.revoke(execution_id))
        elif situation == "live":
            book.advance(TTL_MS - 1)
        else:
            book.advance(TTL_MS)
            book.run(requests.mark_expired(execution_id))
        return execution_id


class TestGrace:
    def expired(self, book):
        execution_id, _ = book.start()
        book.advance(TTL_MS)
        book.run(ExpireLeaseArgs(execution_id=execution_id, reclaim_grace_ms=GRACE_MS))
        return execution_id

    def test_until_it_is_over_the_lease_is_not_claimable(self, book):
        execution_id = self.expired(book)
        assert book.vector(execution_id) == ("active", "lease_expired_reclaimable", *LAPSED)
        assert book.indexes(execution_id) == {"created", "active", "lapsed", "due_reclaim"}
        with book.unchanged():
            assert book.run(EndReclaimGraceArgs(execution_id=execution_id)).action == "kept"

    def test_when_it_is_over_the_lease_is_claimable(self, book):
        execution_id = self.expired(book)
        book.advance(GRACE_MS)
        assert book.run(EndReclaimGraceArgs(execution_id=execution_id)).action == "ended"
        assert book.indexes(execution_id) == {"created", "active", "lapsed", "eligible"}
        with book.unchanged():
            assert book.run(EndReclaimGraceArgs(execution_id=execution_id)).action == "gone"

    def test_nothing_happens_to_an_execution_that_is_gone(self, book):
        with book.unchanged():
            assert book.run(EndReclaimGraceArgs(execution_id=new_execution_id())).action == "gone"


class TestRevoke:
    def test_the_holder_loses_the_lease(self, book):
        execution_id, fence = book.start()
        outcome = book.run(requests.revoke(execution_id), actor="ann")
        assert outcome == LeaseWasRevoked(lease_id=fence.lease_id, lease_epoch=1)
        assert book.vector(execution_id) == ("active", "lease_revoked", *LAPSED)
        assert blocking_detail(book.execution(execution_id)) == "lease revoked: stuck"
        with book.refuses(errors.LeaseRevoked):
            book.run(requests.renew(execution_id, fence))

    def test_it_is_claimable_at_once_and_its_stream_stays_open(self, book):
        execution_id, _ = book.start()
        book.run(requests.revoke(execution_id))
        assert book.indexes(execution_id) == {"created", "active", "lapsed", "eligible"}
        assert book.execution(execution_id).attempt.stream_closed_at is None

    def test_who_did_it_is_told(self, book):
        execution_id, _ = book.start()
        book.run(requests.revoke(execution_id), actor="ann")
        assert book.names(Family.LEASE) == ["acquired", "revoked"]
        [event] = [event for event in book.events if event.family is Family.OPERATOR]
        assert (event.name, event.data["actor"], event.data["reason"]) == ("lease_revoked", "ann", "stuck")

    @pytest.mark.parametrize("expected", [None, ""])
    def test_without_an_expected_lease_every_lease_matches(self, book, expected):
        execution_id, _ = book.start()
        book.run(requests.revoke(execution_id, expected_lease_id=expected))

    def test_what_is_expected_has_to_be_so(self, book):
        execution_id, fence = book.start()
        for wrong in ({"expected_lease_id": new_id()}, {"worker_instance_id": "other"}):
            with book.refuses(errors.StaleLease):
                book.run(requests.revoke(execution_id, **wrong))
        book.run(requests.revoke(execution_id, expected_lease_id=fence.lease_id, worker_instance_id=INSTANCE))

    def test_an_unknown_execution(self, book):
        with book.refuses(errors.ExecutionNotFound):
            book.run(requests.revoke(new_execution_id()))

    def test_an_execution_that_nobody_runs(self, book):
        execution_id = book.create()
        with book.refuses(errors.ExecutionNotActive):
            book.run(requests.revoke(execution_id))

    def test_a_lease_that_is_gone_already(self, book):
        execution_id, _ = book.start()
        book.run(requests.revoke(execution_id))
        with book.unchanged():
            outcome = book.run(requests.revoke(execution_id, expected_lease_id=new_id()))
        assert outcome == LeaseAlreadyGone(reason="already_revoked")

    def test_a_lease_past_its_expiry_is_marked_expired_instead(self, book):
        execution_id, _ = book.start()
        book.advance(TTL_MS)
        assert book.run(requests.revoke(execution_id)) == LeaseAlreadyGone(reason="already_expired")
        assert book.names() == ["created", "acquired", "expired"]
        with book.unchanged():
            assert book.run(requests.revoke(execution_id)) == LeaseAlreadyGone(reason="already_expired")

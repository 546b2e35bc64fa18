"""Claim grants: who gets one, and what it is worth."""

import pytest

from flowfabric import errors
from flowfabric.contracts.leases import ClaimGrantIssued
from flowfabric.contracts.policy import ExecutionPolicy, RoutingRequirements
from flowfabric.core.vocabulary import GrantKind
from tests.core import requests
from tests.core.harness import START_MS, TTL_MS, new_execution_id
from tests.core.requests import GRANT_TTL_MS

GPU = ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=("gpu",)))


def test_a_grant_is_kept_with_the_execution_and_changes_no_state(book):
    execution_id = book.create()
    before = book.vector(execution_id), book.rows(execution_id), book.names()
    outcome = book.run(requests.grant(execution_id, capability_hash="hash", admission_summary="ok"))
    assert outcome == ClaimGrantIssued(execution_id=execution_id)
    assert (book.vector(execution_id), book.rows(execution_id), book.names()) == before
    grant = book.execution(execution_id).grant
    assert (grant.kind, grant.worker_id) == (GrantKind.CLAIM, "worker")
    assert (grant.created_at, grant.expires_at) == (START_MS, START_MS + GRANT_TTL_MS)
    assert (grant.capability_hash, grant.admission_summary) == ("hash", "ok")


def test_an_interrupted_execution_gets_a_resume_grant(book):
    execution_id, fence = book.start()
    book.run(requests.delay(execution_id, fence, 0))
    book.run(requests.grant(execution_id))
    assert book.execution(execution_id).grant.kind is GrantKind.RESUME


@pytest.mark.scenario("LIFE-014")
def test_an_unknown_execution_is_not_found(book):
    with book.refuses(errors.ExecutionNotFound):
        book.run(requests.grant(new_execution_id()))


def test_an_execution_of_another_namespace_is_not_found(book):
    execution_id = book.create()
    with book.refuses(errors.ExecutionNotFound):
        book.run(requests.grant(execution_id), namespace="other")


def test_running_delayed_and_ended_work_is_not_eligible(book):
    running, _ = book.start()
    delayed = book.create(delay_until=START_MS + 1)
    ended = book.create()
    book.run(requests.cancel(ended))
    for execution_id in (running, delayed, ended):
        with book.refuses(errors.ExecutionNotEligible):
            book.run(requests.grant(execution_id, lane_id="other"))


def test_a_second_grant_is_refused_even_for_the_same_worker(book):
    execution_id = book.create(policy=GPU)
    book.run(requests.grant(execution_id, worker_capabilities=frozenset({"gpu"})))
    with book.refuses(errors.GrantAlreadyExists):
        book.run(requests.grant(execution_id, lane_id="other"))


def test_an_expired_grant_is_replaced(book):
    execution_id = book.create()
    book.run(requests.grant(execution_id))
    book.advance(GRANT_TTL_MS)
    book.run(requests.grant(execution_id, worker_id="second"))
    assert book.execution(execution_id).grant.worker_id == "second"


def test_another_lane_is_refused_before_capabilities_are_compared(book):
    execution_id = book.create(policy=GPU)
    with book.refuses(errors.ExecutionNotInEligibleSet):
        book.run(requests.grant(execution_id, lane_id="other"))


def test_a_worker_that_lacks_a_capability_is_refused(book):
    execution_id = book.create(policy=GPU)
    with book.refuses(errors.CapabilityMismatch) as refusal:
        book.run(requests.grant(execution_id, worker_capabilities=frozenset({"cpu"})))
    assert "gpu" in str(refusal[0])


def test_a_repeated_request_gets_the_first_answer(book):
    execution_id = book.create()
    first = book.run(requests.grant(execution_id), request_id="r")
    with book.unchanged():
        assert book.run(requests.grant(execution_id), request_id="r") == first


def test_a_granted_execution_is_not_claimed_from_the_index(book):
    execution_id = book.create()
    book.run(requests.grant(execution_id))
    with book.refuses(errors.GrantAlreadyExists):
        book.claim(execution_id)
    book.advance(GRANT_TTL_MS)
    book.claim(execution_id)


def test_ending_the_execution_takes_the_grant_away(book):
    execution_id = book.create()
    book.run(requests.grant(execution_id))
    book.run(requests.cancel(execution_id))
    assert book.execution(execution_id).grant is None


def test_a_lapsed_lease_gets_no_claim_grant(book):
    execution_id, _ = book.start()
    book.advance(TTL_MS)
    book.run(requests.mark_expired(execution_id))
    with book.refuses(errors.ExecutionNotEligible):
        book.run(requests.grant(execution_id))

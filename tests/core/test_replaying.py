"""Running an ended execution again."""

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import ExecutionReplayed
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.states import AttemptLifecycle, AttemptType, PublicState
from flowfabric.core.events import Family
from flowfabric.core.records import ExecutionResult, PastAttempt
from flowfabric.core.state import Situation
from tests.core import requests
from tests.core.harness import START_MS, new_execution_id


def completed(book, **fields):
    execution_id, fence = book.start(**fields)
    book.run(requests.progress(execution_id, fence, progress_pct=5, progress_message="m"))
    book.run(requests.complete(execution_id, fence, result_payload=b"one"))
    return execution_id


def test_an_ended_execution_waits_for_a_worker_again(book):
    execution_id = completed(book)
    outcome = book.run(requests.replay(execution_id), actor="ann")
    assert outcome == ExecutionReplayed(public_state=PublicState.WAITING)
    assert book.vector(execution_id) == (
        "runnable",
        "unowned",
        "eligible_now",
        "waiting_for_worker",
        "none",
        "pending_replay_attempt",
        "waiting",
    )
    assert book.indexes(execution_id) == {"created", "eligible"}


def test_a_lease_that_was_revoked_does_not_count_against_the_next_one(book):
    execution_id, _ = book.start()
    book.run(requests.revoke(execution_id))
    book.run(requests.cancel(execution_id, source="operator_override"))
    book.run(requests.replay(execution_id))
    fence = book.claim(execution_id)
    book.advance(5)
    book.run(requests.renew(execution_id, fence, attempt_index=1))
    book.run(requests.complete(execution_id, fence, attempt_index=1))
    assert book.situation(execution_id) is Situation.COMPLETED


@pytest.mark.scenario("REPLAY-003")
def test_one_event_tells_who_did_it(book):
    execution_id = completed(book)
    book.run(requests.replay(execution_id), actor="ann")
    [event] = [event for event in book.events if event.family is Family.OPERATOR]
    assert event.name == "replayed"
    assert event.data == {"actor": "ann", "old": "success", "replay_count": 1, "keeps_journal": 0}


@pytest.mark.scenario("REPLAY-003")
def test_the_next_claim_opens_a_new_attempt_and_the_old_ones_stay(book):
    execution_id = completed(book)
    book.run(requests.replay(execution_id), actor="ann")
    book.advance(5)
    assert book.claim(execution_id).lease_epoch == 2
    attempt = book.execution(execution_id).attempt
    assert (attempt.attempt_index, attempt.attempt_type) == (1, AttemptType.REPLAY)
    assert (attempt.cause, attempt.generation) == ("replayed by ann", 1)
    past = book.get(PastAttempt, f"{execution_id}/0").attempt
    assert past.state is AttemptLifecycle.ENDED_SUCCESS


def test_how_it_ended_is_forgotten(book):
    execution_id = completed(book)
    book.run(requests.replay(execution_id))
    execution = book.execution(execution_id)
    assert (execution.completed_at, execution.has_result, execution.outcome) == (None, False, "none")
    assert (execution.progress_pct, execution.progress_message, execution.progress_updated_at) == (None,) * 3


def test_why_it_was_cancelled_or_failed_is_forgotten(book):
    cancelled, (failed, fence) = book.create(), book.start()
    book.run(requests.cancel(cancelled))
    book.run(requests.fail(failed, fence))
    for execution_id in (cancelled, failed):
        book.run(requests.replay(execution_id))
        execution = book.execution(execution_id)
        assert (execution.failure_reason, execution.failure_category) == ("", "")
        assert (execution.cancellation_reason, execution.cancelled_by) == ("", "")
        assert execution.cancelled_from is None


def test_one_that_never_ran_gets_its_first_attempt_as_a_replay(book):
    execution_id = book.create()
    book.run(requests.cancel(execution_id))
    book.run(requests.replay(execution_id))
    book.claim(execution_id)
    attempt = book.execution(execution_id).attempt
    assert (attempt.attempt_index, attempt.attempt_type) == (0, AttemptType.REPLAY)


def test_one_that_never_ran_can_be_replayed_and_cancelled_again(book):
    execution_id = book.create()
    for _ in range(2):
        book.run(requests.cancel(execution_id))
        assert book.situation(execution_id) is Situation.CANCELLED
        book.run(requests.replay(execution_id))


def test_results_of_the_generations_are_kept_apart(book):
    execution_id = completed(book)
    book.run(requests.replay(execution_id))
    fence = book.claim(execution_id)
    book.run(requests.complete(execution_id, fence, attempt_index=1, result_payload=b"two"))
    assert book.get(ExecutionResult, f"{execution_id}/0").data == b"one"
    assert book.get(ExecutionResult, f"{execution_id}/1").data == b"two"


def test_each_generation_has_one_completion_event(book):
    execution_id = completed(book)
    book.run(requests.replay(execution_id))
    book.run(requests.complete(execution_id, book.claim(execution_id), attempt_index=1))
    completions = [event for event in book.events if event.family is Family.COMPLETION]
    assert [event.data["generation"] for event in completions] == [0, 1]


def test_it_has_all_its_retries_and_reclaims_again(book):
    execution_id, fence = book.start(policy=requests.retries(1))
    book.run(requests.fail(execution_id, fence))
    book.advance(requests.DELAY_MS)
    book.run(requests.promote(execution_id))
    book.claim(execution_id)
    book.run(requests.revoke(execution_id))
    fence = book.claim(execution_id)
    book.run(requests.fail(execution_id, fence, attempt_index=2))
    assert book.situation(execution_id) is Situation.FAILED
    book.run(requests.replay(execution_id))
    execution = book.execution(execution_id)
    assert (execution.retry_count, execution.reclaim_count, execution.replay_count) == (0, 0, 1)
    book.run(requests.fail(execution_id, book.claim(execution_id), attempt_index=3))
    assert book.situation(execution_id) is Situation.DELAYED


@pytest.mark.parametrize(("keep", "generation"), [(False, 1), (True, 0)])
def test_the_journal_is_empty_unless_it_is_kept(book, keep, generation):
    execution_id = completed(book)
    book.run(requests.replay(execution_id, keep_journal=keep))
    assert book.execution(execution_id).journal_generation == generation


def test_a_deadline_that_has_passed_is_dropped_and_another_one_stays(book):
    passed = completed(book, execution_deadline_at=START_MS + 5)
    to_come = completed(book, execution_deadline_at=START_MS + 6)
    book.advance(5)
    for execution_id in (passed, to_come):
        book.run(requests.replay(execution_id))
    assert book.execution(passed).deadline_at is None
    assert book.indexes(to_come) == {"created", "eligible", "due_deadline"}


@pytest.mark.scenario("REPLAY-002")
def test_a_live_execution_is_refused(book):
    running, _ = book.start()
    for execution_id in (running, book.create()):
        with book.refuses(errors.ExecutionNotTerminal):
            book.run(requests.replay(execution_id))


def test_an_unknown_execution_is_not_found(book):
    with book.refuses(errors.ExecutionNotFound):
        book.run(requests.replay(new_execution_id()))


@pytest.mark.parametrize(("policy", "most"), [(None, 10), (ExecutionPolicy(max_replay_count=2), 2)])
def test_at_the_cap_it_is_refused(book, policy, most):
    execution_id = book.create(policy=policy)
    for _ in range(most):
        book.run(requests.cancel(execution_id))
        book.run(requests.replay(execution_id))
    book.run(requests.cancel(execution_id))
    with book.refuses(errors.MaxReplaysExhausted):
        book.run(requests.replay(execution_id))


def test_a_repeated_request_gets_the_first_answer(book):
    execution_id = completed(book)
    first = book.run(requests.replay(execution_id), request_id="r")
    with book.unchanged():
        assert book.run(requests.replay(execution_id), request_id="r") == first


def test_an_old_lease_is_stale_after_a_replay(book):
    execution_id, fence = book.start()
    book.run(requests.revoke(execution_id))
    book.run(requests.cancel(execution_id))
    book.run(requests.replay(execution_id))
    fresh = book.claim(execution_id)
    with book.refuses(errors.StaleLease):
        book.run(requests.renew(execution_id, fence, attempt_index=1))
    book.run(requests.renew(execution_id, fresh, attempt_index=1))

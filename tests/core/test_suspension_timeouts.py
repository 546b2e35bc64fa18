"""Deadlines of suspensions: each behaviour, once, and never early."""

from __future__ import annotations

import pytest

from flowfabric import errors
from flowfabric.contracts.conditions import TimeoutOnly
from flowfabric.contracts.ids import ExecutionId
from flowfabric.contracts.policy import TimeoutBehavior
from flowfabric.contracts.signals import ObserveSignalsArgs, SignalEffect
from flowfabric.contracts.suspensions import (
    ExpireSuspensionArgs,
    ResumePolicy,
    SuspensionExpired,
    SuspensionNotExpired,
)
from flowfabric.core.events import Family
from flowfabric.core.state import Situation
from tests.core.harness import Rulebook, new_execution_id
from tests.core.waits import seed, signal, suspend, suspended, suspension_of, waitpoint_of

TIMEOUT_MS = 5_000


@pytest.fixture(autouse=True)
def _seeded(book):
    seed(book)


def overdue(book: Rulebook, behavior: TimeoutBehavior, **fields):
    """An execution whose suspension is past its deadline."""
    execution_id, details = suspended(
        book, timeout_at=book.now + TIMEOUT_MS, timeout_behavior=behavior, **fields
    )
    book.advance(TIMEOUT_MS)
    return execution_id, details


def expire(book: Rulebook, execution_id: ExecutionId, **options):
    return book.run(ExpireSuspensionArgs(execution_id=execution_id), **options)


ENDINGS = [
    (TimeoutBehavior.FAIL, Situation.FAILED, "ended_failure", "failed"),
    (TimeoutBehavior.CANCEL, Situation.CANCELLED, "ended_cancelled", "cancelled"),
    (TimeoutBehavior.EXPIRE, Situation.EXPIRED, "ended_failure", "expired"),
]


@pytest.mark.scenario("SUSP-002")
@pytest.mark.scenario("SUSP-025")
@pytest.mark.scenario("TIME-009")
@pytest.mark.parametrize(("behavior", "situation", "attempt", "completion"), ENDINGS)
def test_a_deadline_ends_the_execution_as_asked(book, behavior, situation, attempt, completion):
    execution_id, details = overdue(book, behavior)
    assert expire(book, execution_id) == SuspensionExpired(behavior_applied=behavior)
    assert book.situation(execution_id) is situation
    execution = book.execution(execution_id)
    assert execution.attempt.state == attempt
    assert execution.attempt.stream_closed_reason == "suspension_timeout"
    assert execution.failure_reason == f"suspension_timeout:{behavior}"
    assert book.names(Family.COMPLETION) == [completion]
    suspension = suspension_of(book, execution_id, details)
    assert suspension.close_reason == f"timed_out_{behavior}"
    assert suspension.timed_out


@pytest.mark.scenario("SUSP-021")
@pytest.mark.parametrize("behavior", [ending[0] for ending in ENDINGS])
def test_after_a_fatal_deadline_nothing_is_left_open(book, behavior):
    execution_id, details = overdue(book, behavior)
    expire(book, execution_id)
    assert waitpoint_of(book, execution_id, details.waitpoint_id).state == "closed"
    assert not {"suspended", "due_suspension"} & book.indexes(execution_id)
    with book.refuses(errors.TargetNotSignalable):
        signal(book, execution_id, details)


@pytest.mark.scenario("SUSP-003")
@pytest.mark.scenario("SUSP-025")
def test_an_auto_resume_tells_the_worker_that_nobody_answered(book):
    execution_id, details = overdue(book, TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL)
    expire(book, execution_id)
    assert book.situation(execution_id) is Situation.ELIGIBLE
    fence = book.claim(execution_id)
    assert (fence.lease_epoch, book.execution(execution_id).attempt.attempt_index) == (2, 0)
    page = book.run(ObserveSignalsArgs(execution_id=execution_id, fence=fence, attempt_index=0))
    assert [(one.signal_name, one.source_type) for one in page.signals] == [("timeout", "system_timeout")]
    suspension = suspension_of(book, execution_id, details)
    assert suspension.timed_out
    assert suspension.close_reason == "timed_out_auto_resume"
    assert suspension.satisfied_at is None


@pytest.mark.scenario("SUSP-025")
def test_the_timeout_signal_takes_its_place_in_the_sequence_once(book):
    execution_id, _ = overdue(book, TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL)
    expire(book, execution_id)
    with book.unchanged():
        assert expire(book, execution_id) == SuspensionNotExpired(reason="not_suspended_cleaned")
    assert book.execution(execution_id).signal_count == 1
    assert book.names(Family.SIGNAL) == ["delivered"]


def test_only_the_timeout_signal_ends_a_wait_for_a_time(book):
    execution_id, details = suspended(
        book,
        timeout_at=book.now + TIMEOUT_MS,
        timeout_behavior=TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL,
        resume_condition=TimeoutOnly(),
    )
    assert signal(book, execution_id, details) is SignalEffect.NO_OP
    book.advance(TIMEOUT_MS)
    expire(book, execution_id)
    assert suspension_of(book, execution_id, details).satisfier_signals == (2,)


def test_an_auto_resume_does_not_wait_for_the_resume_delay(book):
    execution_id, _ = overdue(
        book,
        TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL,
        resume_policy=ResumePolicy(resume_delay_ms=900),
    )
    expire(book, execution_id)
    assert book.situation(execution_id) is Situation.ELIGIBLE


def test_an_escalated_wait_goes_on_without_a_deadline(book):
    execution_id, details = overdue(book, TimeoutBehavior.ESCALATE)
    assert expire(book, execution_id) == SuspensionExpired(behavior_applied="escalate")
    assert book.vector(execution_id)[3] == "paused_by_operator"
    suspension = suspension_of(book, execution_id, details)
    assert (suspension.reason_code, suspension.timeout_at) == ("waiting_for_operator_review", None)
    assert "due_suspension" not in book.indexes(execution_id)
    assert "suspended" in book.indexes(execution_id)
    with book.unchanged():
        assert expire(book, execution_id) == SuspensionNotExpired(reason="not_yet_due")
    assert signal(book, execution_id, details) is SignalEffect.RESUME_CONDITION_SATISFIED


def test_nothing_happens_before_the_deadline(book):
    execution_id, _ = suspended(book, timeout_at=book.now + TIMEOUT_MS)
    book.advance(TIMEOUT_MS - 1)
    with book.unchanged():
        assert expire(book, execution_id) == SuspensionNotExpired(reason="not_yet_due")


def test_a_wait_without_a_deadline_is_never_due(book):
    execution_id, _ = suspended(book)
    book.advance(10**9)
    with book.unchanged():
        assert expire(book, execution_id) == SuspensionNotExpired(reason="not_yet_due")


def test_the_deadline_of_a_wait_that_is_over_does_not_strike_the_next_one(book):
    execution_id, details = suspended(book, timeout_at=book.now + TIMEOUT_MS)
    signal(book, execution_id, details)
    fence = book.claim(execution_id)
    suspend(book, execution_id, fence)
    book.advance(TIMEOUT_MS)
    with book.unchanged():
        assert expire(book, execution_id) == SuspensionNotExpired(reason="not_yet_due")


def test_unknown_and_foreign_executions_are_left_alone(book):
    execution_id, _ = overdue(book, TimeoutBehavior.FAIL)
    with book.unchanged():
        assert expire(book, new_execution_id()) == SuspensionNotExpired(reason="not_found_cleaned")
        outcome = expire(book, execution_id, namespace="other")
    assert outcome == SuspensionNotExpired(reason="not_found_cleaned")


def test_the_scanner_without_a_namespace_reaches_every_execution(book):
    execution_id, _ = overdue(book, TimeoutBehavior.FAIL)
    assert expire(book, execution_id, namespace=None) == SuspensionExpired(behavior_applied="fail")

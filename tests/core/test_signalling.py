"""Signals: who may send them, what they do, and that none is lost or counted twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.conditions import (
    AllOf,
    Composite,
    Count,
    CountKind,
    OperatorOnly,
    TimeoutOnly,
    all_of_waitpoints,
)
from flowfabric.contracts.executions import CancelExecutionArgs, CompleteExecutionArgs
from flowfabric.contracts.ids import ExecutionId, WaitpointId
from flowfabric.contracts.keyring import RotateWaitpointHmacSecretArgs, WaitpointToken
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.signals import (
    DeliverApprovalSignalArgs,
    ObserveSignalsArgs,
    SignalAccepted,
    SignalBuffered,
    SignalDuplicate,
    SignalEffect,
)
from flowfabric.contracts.suspensions import ResumePolicy, UsePendingWaitpoint
from flowfabric.core.events import Family
from flowfabric.core.records import Signal
from flowfabric.core.state import Situation
from tests.core.harness import LANE, NAMESPACE, Rulebook, new_execution_id, new_id
from tests.core.waits import (
    OTHER_SECRET_HEX,
    buffer_args,
    fresh,
    named,
    pending,
    seed,
    signal,
    signal_args,
    suspend,
    suspend_args,
    suspended,
    suspension_of,
    waitpoint_of,
)

SATISFIED = SignalEffect.RESUME_CONDITION_SATISFIED
APPENDED = SignalEffect.APPENDED_TO_WAITPOINT

TWO_NAMES = Composite(body=AllOf(members=(named("alpha"), named("beta"))))


@pytest.fixture(autouse=True)
def _seeded(book):
    seed(book)


def approve(book: Rulebook, execution_id: ExecutionId, waitpoint_id: WaitpointId, **fields):
    defaults = {
        "execution_id": execution_id,
        "lane_id": LANE,
        "waitpoint_id": waitpoint_id,
        "signal_name": "approved",
        "idempotency_suffix": "ana",
    }
    return book.run(DeliverApprovalSignalArgs(**{**defaults, **fields}))


def signals_of(book: Rulebook, execution_id: ExecutionId) -> list[Signal]:
    count = book.execution(execution_id).signal_count
    return [book.get(Signal, f"{execution_id}/{sequence}") for sequence in range(1, count + 1)]


# The token


@pytest.mark.scenario("HMAC-001")
@pytest.mark.scenario("SUSP-001")
def test_the_right_token_resumes(book):
    execution_id, details = suspended(book)
    assert signal(book, execution_id, details) is SATISFIED
    assert book.situation(execution_id) is Situation.ELIGIBLE


@pytest.mark.scenario("HMAC-002")
@pytest.mark.scenario("SUSP-031")
def test_a_signal_without_a_token_is_refused(book):
    execution_id, details = suspended(book)
    with book.refuses(errors.MissingToken):
        book.run(signal_args(execution_id, details.waitpoint_id, ""))


@pytest.mark.scenario("HMAC-003")
def test_a_signal_with_a_forged_token_is_refused(book):
    execution_id, details = suspended(book)
    mac = details.waitpoint_token.mac
    forged = f"k1:{mac[:-1]}{int(mac[-1], 16) ^ 1:x}"
    with book.refuses(errors.InvalidToken):
        book.run(signal_args(execution_id, details.waitpoint_id, forged))


@pytest.mark.scenario("HMAC-004")
def test_a_signal_under_an_unknown_key_is_refused(book):
    execution_id, details = suspended(book)
    with book.refuses(errors.InvalidToken):
        book.run(signal_args(execution_id, details.waitpoint_id, f"k9:{details.waitpoint_token.mac}"))


@pytest.mark.scenario("HMAC-005")
@pytest.mark.scenario("HMAC-006")
@pytest.mark.parametrize("inside", [True, False])
def test_an_old_key_opens_until_its_grace_is_over(book, inside):
    execution_id, details = suspended(book)
    book.run(RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex=OTHER_SECRET_HEX, grace_ms=600_000))
    if inside:
        book.advance(599_999)
        assert signal(book, execution_id, details) is SATISFIED
    else:
        book.advance(600_000)
        with book.refuses(errors.TokenExpired):
            signal(book, execution_id, details)


@pytest.mark.scenario("HMAC-009")
def test_the_token_of_one_waitpoint_opens_no_other_of_the_same_execution(book):
    bindings = (fresh("a"), fresh("b"))
    execution_id, details = suspended(
        book, waitpoints=bindings, resume_condition=all_of_waitpoints(["a", "b"])
    )
    (other,) = details.additional_waitpoints
    with book.refuses(errors.InvalidToken):
        book.run(signal_args(execution_id, other.waitpoint_id, details.waitpoint_token))


@pytest.mark.scenario("HMAC-009")
def test_the_token_of_one_execution_opens_no_other_even_with_the_same_ids(book):
    binding = fresh()
    first, details = suspended(book, waitpoints=(binding,))
    second, _ = suspended(book, waitpoints=(binding,))
    with book.refuses(errors.InvalidToken):
        signal(book, second, details)
    assert signal(book, first, details) is SATISFIED


def test_the_token_of_one_namespace_opens_nothing_in_another(book):
    """The same ids, the same instant and the same key; only the namespace differs."""
    binding, execution_id = fresh(), new_execution_id()
    other_book = Rulebook()
    seed(other_book)
    _, fence = other_book.start(execution_id=execution_id)
    token = suspend(other_book, execution_id, fence, waitpoints=(binding,)).details.waitpoint_token
    _, fence = book.start(execution_id=execution_id)
    record = book.execution(execution_id)
    record.namespace = "other"
    book.put(record)
    book.run(suspend_args(execution_id, fence, waitpoints=(binding,)), namespace="other")
    with book.refuses(errors.InvalidToken):
        book.run(signal_args(execution_id, binding.waitpoint_id, token), namespace="other")


@pytest.mark.scenario("HMAC-010")
def test_unknown_foreign_closed_and_open_waitpoints_are_refused_alike_without_their_token(book):
    execution_id, details = suspended(book)
    closed_id, closed = suspended(book)
    signal(book, closed_id, closed)
    bogus = WaitpointToken(f"k1:{'0' * 64}")
    targets = [
        (execution_id, details.waitpoint_id),
        (execution_id, new_id()),
        (execution_id, closed.waitpoint_id),
        (closed_id, closed.waitpoint_id),
    ]
    answers = set()
    for target, waitpoint_id in targets:
        for args in (
            signal_args(target, waitpoint_id, bogus),
            buffer_args(target, replace(details, waitpoint_id=waitpoint_id, waitpoint_token=bogus)),
        ):
            with book.refuses(errors.InvalidToken) as caught:
                book.run(args)
            answers.add((caught[0].code, str(caught[0]), tuple(caught[0].details)))
    assert len(answers) == 1


def test_an_execution_of_another_namespace_is_as_unknown_as_none(book):
    execution_id, details = suspended(book)
    answers = set()
    for target, namespace in ((execution_id, "other"), (new_execution_id(), NAMESPACE)):
        with book.refuses(errors.ExecutionNotFound) as caught:
            book.run(signal_args(target, details.waitpoint_id, details.waitpoint_token), namespace=namespace)
        answers.add(str(caught[0]).replace(target, ""))
    assert len(answers) == 1


def test_a_refusal_shows_no_token(book):
    execution_id, details = suspended(book)
    forged = f"k1:{'7' * 64}"
    with book.refuses(errors.InvalidToken) as caught:
        book.run(signal_args(execution_id, details.waitpoint_id, forged))
    assert "7777" not in f"{caught[0]} {caught[0].details}"


# Effects


@pytest.mark.scenario("SUSP-016")
def test_all_of_needs_every_name_and_says_what_each_signal_did(book):
    execution_id, details = suspended(book, resume_condition=TWO_NAMES)
    assert signal(book, execution_id, details, "alpha") is APPENDED
    assert signal(book, execution_id, details, "alpha") is SignalEffect.APPENDED_TO_WAITPOINT_DUPLICATE
    assert signal(book, execution_id, details, "gamma") is SignalEffect.SIGNAL_IGNORED_MATCHER_FAILED
    assert book.situation(execution_id) is Situation.SUSPENDED
    assert signal(book, execution_id, details, "beta") is SATISFIED


def test_every_waitpoint_of_a_suspension_leads_to_it(book):
    bindings = (fresh("a"), fresh("b"))
    execution_id, details = suspended(
        book, waitpoints=bindings, resume_condition=all_of_waitpoints(["a", "b"])
    )
    assert signal(book, execution_id, details) is APPENDED
    assert signal(book, execution_id, details.additional_waitpoints[0]) is SATISFIED
    for binding in bindings:
        assert waitpoint_of(book, execution_id, binding.waitpoint_id).close_reason == "resumed"


@pytest.mark.scenario("SUSP-017")
@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        (CountKind.DISTINCT_SIGNALS, {}, {}),
        (CountKind.DISTINCT_SOURCES, {"source_identity": "alice"}, {"source_identity": "bob"}),
    ],
)
def test_a_count_of_two_resumes_at_the_second(book, kind, first, second):
    body = Count(n=2, count_kind=kind, waitpoints=("review",))
    execution_id, details = suspended(book, resume_condition=Composite(body=body))
    assert signal(book, execution_id, details, **first) is APPENDED
    assert signal(book, execution_id, details, **second) is SATISFIED


@pytest.mark.scenario("SUSP-017")
def test_a_duplicate_by_key_does_not_count(book):
    body = Count(n=2, count_kind=CountKind.DISTINCT_SIGNALS, waitpoints=("review",))
    execution_id, details = suspended(book, resume_condition=Composite(body=body))
    signal(book, execution_id, details, idempotency_key="once")
    with book.unchanged():
        assert isinstance(signal(book, execution_id, details, idempotency_key="once"), SignalDuplicate)


@pytest.mark.parametrize("condition", [OperatorOnly(), TimeoutOnly()], ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("name", ["__operator_only__", "__timeout_only__", "timeout"])
def test_no_signal_ends_a_wait_for_an_operator_or_a_time(book, condition, name):
    execution_id, details = suspended(book, resume_condition=condition, timeout_at=book.now + 1)
    assert signal(book, execution_id, details, name) is SignalEffect.NO_OP
    assert book.situation(execution_id) is Situation.SUSPENDED


def test_a_signal_that_does_nothing_is_on_record_all_the_same(book):
    execution_id, details = suspended(book, resume_condition=named("approve"))
    assert signal(book, execution_id, details, "other", payload=b"\x00\xff") is SignalEffect.NO_OP
    (record,) = signals_of(book, execution_id)
    assert (record.effect, record.payload) == ("no_op", b"\x00\xff")


@pytest.mark.scenario("SUSP-022")
def test_all_signals_that_helped_are_recorded_and_shown_to_the_resumed_worker(book):
    execution_id, details = suspended(book, resume_condition=TWO_NAMES)
    signal(book, execution_id, details, "gamma")
    signal(book, execution_id, details, "beta", payload=b"two", correlation_id="c-2")
    signal(book, execution_id, details, "alpha", payload=b"three")
    fence = book.claim(execution_id)
    page = book.run(ObserveSignalsArgs(execution_id=execution_id, fence=fence, attempt_index=0))
    assert [(one.signal_name, one.payload) for one in page.signals] == [("beta", b"two"), ("alpha", b"three")]
    assert page.signals[0].correlation_id == "c-2"
    assert suspension_of(book, execution_id, details).satisfier_signals == (2, 3)


def test_nobody_else_observes_the_signals(book):
    execution_id, details = suspended(book)
    signal(book, execution_id, details)
    fence = book.claim(execution_id)
    with book.refuses(errors.StaleLease):
        stale = replace(fence, lease_epoch=1)
        book.run(ObserveSignalsArgs(execution_id=execution_id, fence=stale, attempt_index=0))
    other = book.run(ObserveSignalsArgs(execution_id=execution_id, fence=fence, attempt_index=1))
    assert other.signals == ()


def test_before_any_suspension_there_is_nothing_to_observe(book):
    execution_id, fence = book.start()
    page = book.run(ObserveSignalsArgs(execution_id=execution_id, fence=fence, attempt_index=0))
    assert page.signals == ()


def test_each_signal_is_told_with_its_effect(book):
    execution_id, details = suspended(book, resume_condition=TWO_NAMES)
    signal(book, execution_id, details, "alpha")
    signal(book, execution_id, details, "beta")
    told = [event.data for event in book.events if event.family is Family.SIGNAL]
    assert [(data["effect"], data["sequence"]) for data in told] == [(str(APPENDED), 1), (str(SATISFIED), 2)]
    assert told[0]["waitpoint_id"] == details.waitpoint_id
    assert told[0]["source_identity"] == "ana"


def test_counters_are_kept_at_the_waitpoint(book):
    execution_id, details = suspended(book, resume_condition=TWO_NAMES)
    signal(book, execution_id, details, "alpha")
    book.advance(5)
    signal(book, execution_id, details, "other")
    waitpoint = waitpoint_of(book, execution_id, details.waitpoint_id)
    assert (waitpoint.signal_count, waitpoint.matched_signal_count) == (2, 1)
    assert waitpoint.last_signal_at == book.now


# Duplicates and caps


@pytest.mark.scenario("SUSP-005")
def test_the_same_key_gets_the_first_signals_id(book):
    execution_id, details = suspended(book, resume_condition=TWO_NAMES)
    args = signal_args(
        execution_id, details.waitpoint_id, details.waitpoint_token, "alpha", idempotency_key="once"
    )
    assert book.run(args) == SignalAccepted(signal_id=args.signal_id, effect=APPENDED)
    with book.unchanged():
        again = book.run(replace(args, signal_id=new_id()))
    assert again == SignalDuplicate(existing_signal_id=args.signal_id)
    assert book.situation(execution_id) is Situation.SUSPENDED


@pytest.mark.parametrize("change", [{"payload": b"no"}, {"signal_name": "beta"}, {"source_identity": "bob"}])
def test_the_same_key_with_other_content_is_a_conflict(book, change):
    execution_id, details = suspended(book, resume_condition=TWO_NAMES)
    args = signal_args(
        execution_id, details.waitpoint_id, details.waitpoint_token, "alpha", idempotency_key="once"
    )
    book.run(args)
    with book.refuses(errors.IdempotencyConflict):
        book.run(replace(args, signal_id=new_id(), **change))


def test_a_key_counts_for_one_waitpoint_only(book):
    bindings = (fresh("a"), fresh("b"))
    execution_id, details = suspended(
        book, waitpoints=bindings, resume_condition=all_of_waitpoints(["a", "b"])
    )
    assert signal(book, execution_id, details, idempotency_key="once") is APPENDED
    assert signal(book, execution_id, details.additional_waitpoints[0], idempotency_key="once") is SATISFIED


@pytest.mark.parametrize(("ttl_ms", "window_ms"), [(None, 86_400_000), (1_000, 1_000)])
def test_a_key_is_free_again_after_its_window(book, ttl_ms, window_ms):
    execution_id, details = suspended(book, resume_condition=TWO_NAMES)
    signal(book, execution_id, details, "alpha", idempotency_key="once", dedup_ttl_ms=ttl_ms)
    book.advance(window_ms - 1)
    again = signal(book, execution_id, details, "alpha", idempotency_key="once", dedup_ttl_ms=ttl_ms)
    assert isinstance(again, SignalDuplicate)
    book.advance(1)
    assert signal(book, execution_id, details, "beta", idempotency_key="once") is SATISFIED


def test_the_same_signal_id_is_received_once_for_ever(book):
    execution_id, details = suspended(book, resume_condition=TWO_NAMES)
    args = signal_args(execution_id, details.waitpoint_id, details.waitpoint_token, "alpha")
    book.run(args)
    book.advance(10 * 86_400_000)
    with book.unchanged():
        assert book.run(args) == SignalDuplicate(existing_signal_id=args.signal_id)


def test_a_repeat_after_the_resume_is_a_duplicate_and_resumes_nothing(book):
    execution_id, details = suspended(book)
    args = signal_args(execution_id, details.waitpoint_id, details.waitpoint_token, idempotency_key="once")
    book.run(args)
    fence = book.claim(execution_id)
    suspend(book, execution_id, fence)
    with book.unchanged():
        assert book.run(args) == SignalDuplicate(existing_signal_id=args.signal_id)
        assert isinstance(book.run(replace(args, signal_id=new_id())), SignalDuplicate)


@pytest.mark.parametrize(
    ("own", "asked", "accepted"),
    [(None, 2, 2), (2, None, 2), (2, 9, 2), (9, 2, 2), (0, 2, 2), (2, 0, 2), (0, 0, 5), (0, None, 5)],
)
def test_the_smaller_cap_on_signals_counts(book, own, asked, accepted):
    policy = None if own is None else ExecutionPolicy(max_signals_per_execution=own)
    execution_id, fence = book.start(policy=policy)
    details = suspend(book, execution_id, fence, resume_condition=OperatorOnly()).details
    for _ in range(accepted):
        signal(book, execution_id, details, max_signals_per_execution=asked)
    if accepted < 5:
        with book.refuses(errors.SignalLimitExceeded):
            signal(book, execution_id, details, max_signals_per_execution=asked)


def test_duplicates_do_not_count_against_the_cap(book):
    execution_id, details = suspended(book, resume_condition=TWO_NAMES)
    for _ in range(3):
        signal(book, execution_id, details, "alpha", idempotency_key="once", max_signals_per_execution=2)
    assert signal(book, execution_id, details, "beta", max_signals_per_execution=2) is SATISFIED


# State


def test_a_signal_after_the_resume_is_refused(book):
    execution_id, details = suspended(book)
    signal(book, execution_id, details)
    with book.refuses(errors.WaitpointClosed):
        signal(book, execution_id, details)


def test_a_signal_to_an_ended_execution_is_refused(book):
    execution_id, details = suspended(book)
    signal(book, execution_id, details)
    fence = book.claim(execution_id)
    book.run(CompleteExecutionArgs(execution_id=execution_id, fence=fence, attempt_index=0))
    with book.refuses(errors.TargetNotSignalable):
        signal(book, execution_id, details)


@pytest.mark.scenario("SUSP-007")
@pytest.mark.scenario("SUSP-020")
def test_cancelling_closes_every_waitpoint_and_keeps_the_records(book):
    bindings = (fresh("a"), fresh("b"))
    execution_id, details = suspended(
        book, waitpoints=bindings, resume_condition=all_of_waitpoints(["a", "b"])
    )
    signal(book, execution_id, details)
    book.run(CancelExecutionArgs(execution_id=execution_id, reason="enough", source="operator_override"))
    assert suspension_of(book, execution_id, details).close_reason == "cancelled"
    for binding in bindings:
        waitpoint = waitpoint_of(book, execution_id, binding.waitpoint_id)
        assert (waitpoint.state, waitpoint.close_reason) == ("closed", "cancelled")
    assert book.execution(execution_id).open_waitpoint_ids == ()
    assert book.situation(execution_id) is Situation.CANCELLED
    assert not {"suspended", "due_suspension"} & book.indexes(execution_id)


@pytest.mark.parametrize("number", [2, 100])
def test_parallel_uses_of_one_token_have_one_effect(book, number):
    execution_id, details = suspended(book)
    effects = []
    for _ in range(number):
        try:
            effects.append(signal(book, execution_id, details))
        except errors.WaitpointClosed:
            effects.append(None)
    assert effects == [SATISFIED, *[None] * (number - 1)]
    assert book.names(Family.EXECUTION).count("resumed") == 1


# Early signals


def test_a_signal_to_a_pending_waitpoint_is_kept_whichever_way_it_comes(book):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    assert signal(book, execution_id, ahead) is SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT
    args = buffer_args(execution_id, ahead)
    assert book.run(args) == SignalBuffered(signal_id=args.signal_id)
    waitpoint = waitpoint_of(book, execution_id, ahead.waitpoint_id)
    assert [kept.sequence for kept in waitpoint.buffered] == [1, 2]
    assert book.situation(execution_id) is Situation.RUNNING


def test_a_buffered_signal_that_meets_an_active_waitpoint_is_not_lost(book):
    execution_id, details = suspended(book)
    book.run(buffer_args(execution_id, details))
    assert book.situation(execution_id) is Situation.ELIGIBLE


@pytest.mark.scenario("HMAC-011")
def test_buffering_after_the_waitpoint_closed_is_refused(book):
    execution_id, details = suspended(book)
    signal(book, execution_id, details)
    with book.refuses(errors.WaitpointClosed):
        book.run(buffer_args(execution_id, details))


def test_a_buffered_duplicate_is_kept_once(book):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    first = buffer_args(execution_id, ahead, idempotency_key="once")
    book.run(first)
    with book.unchanged():
        outcome = book.run(buffer_args(execution_id, ahead, idempotency_key="once"))
    assert outcome == SignalDuplicate(existing_signal_id=first.signal_id)


def test_what_a_pending_waitpoint_keeps_is_bounded_and_nothing_accepted_is_dropped(book):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    for _ in range(3):
        signal(book, execution_id, ahead, signal_maxlen=3)
    with book.refuses(errors.SignalLimitExceeded):
        signal(book, execution_id, ahead, signal_maxlen=3)


def test_what_a_waitpoint_keeps_for_its_next_suspension_is_bounded_too(book):
    policy = ResumePolicy(close_waitpoint_on_resume=False, retain_signal_buffer_until_closed=True)
    execution_id, details = suspended(book, resume_policy=policy, resume_condition=named("go"))
    signal(book, execution_id, details, "other", signal_maxlen=1)
    with book.refuses(errors.SignalLimitExceeded):
        signal(book, execution_id, details, "other", signal_maxlen=1)


# Approvals


@pytest.mark.scenario("SUSP-024")
def test_an_operator_approves_without_a_token(book):
    execution_id, details = suspended(book, resume_condition=named("approved"))
    outcome = approve(book, execution_id, details.waitpoint_id, source_identity="ana")
    assert outcome.effect is SATISFIED
    (record,) = signals_of(book, execution_id)
    assert (record.signal_category, record.source_type, record.source_identity) == (
        "approval",
        "operator",
        "ana",
    )
    assert (record.target_scope, record.idempotency_key) == ("execution", "approval:approved:ana")
    assert record.signal_id == outcome.signal_id


@pytest.mark.scenario("SUSP-024")
def test_a_rejection_resumes_only_what_takes_every_name(book):
    execution_id, details = suspended(book, resume_condition=named("approved"))
    outcome = approve(book, execution_id, details.waitpoint_id, signal_name="rejected")
    assert outcome.effect is SignalEffect.NO_OP
    assert book.situation(execution_id) is Situation.SUSPENDED
    execution_id, details = suspended(book)
    assert approve(book, execution_id, details.waitpoint_id, signal_name="rejected").effect is SATISFIED


@pytest.mark.scenario("SUSP-024")
def test_the_same_suffix_is_a_duplicate_with_the_first_id(book):
    execution_id, details = suspended(book, resume_condition=TWO_NAMES)
    first = approve(book, execution_id, details.waitpoint_id)
    with book.unchanged():
        again = approve(book, execution_id, details.waitpoint_id)
    assert again == SignalDuplicate(existing_signal_id=first.signal_id)


@pytest.mark.scenario("SUSP-024")
def test_an_approval_in_the_wrong_lane_is_refused(book):
    execution_id, details = suspended(book)
    with book.refuses(errors.InvalidInput) as caught:
        approve(book, execution_id, details.waitpoint_id, lane_id="other")
    assert caught[0].rule == "lane_mismatch"


@pytest.mark.scenario("SUSP-024")
def test_an_approval_of_an_unknown_waitpoint_is_refused(book):
    execution_id, _ = suspended(book)
    with book.refuses(errors.WaitpointNotFound):
        approve(book, execution_id, new_id())


def test_an_approval_under_a_key_past_its_grace_is_refused(book):
    execution_id, details = suspended(book)
    book.run(RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex=OTHER_SECRET_HEX, grace_ms=0))
    with book.refuses(errors.TokenExpired):
        approve(book, execution_id, details.waitpoint_id)


def test_an_approval_after_the_resume_is_refused(book):
    execution_id, details = suspended(book)
    approve(book, execution_id, details.waitpoint_id)
    with book.refuses(errors.WaitpointClosed):
        approve(book, execution_id, details.waitpoint_id, idempotency_suffix="bob")


class Deliveries(RuleBasedStateMachine):
    """Suspensions, signals, resumes and claims in any order: nothing accepted is lost or repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Rulebook()
        seed(self.book)
        self.execution_id, self.fence = self.book.start()
        self.waitpoints: list[Any] = []
        self.accepted: list[str] = []
        self.resumes = 0
        self.suspensions = 0

    @property
    def situation(self) -> Situation | None:
        return self.book.situation(self.execution_id)

    @precondition(lambda self: self.situation is Situation.RUNNING and len(self.waitpoints) < 12)
    @rule()
    def open_ahead(self) -> None:
        self.waitpoints.append(pending(self.book, self.execution_id, self.fence, expires_in_ms=10**9))

    @precondition(lambda self: self.situation is Situation.RUNNING)
    @rule(
        ahead=st.booleans(),
        n=st.integers(1, 3),
        policy=st.builds(
            ResumePolicy,
            close_waitpoint_on_resume=st.booleans(),
            consume_matched_signals=st.booleans(),
            retain_signal_buffer_until_closed=st.booleans(),
            resume_delay_ms=st.none() | st.just(5),
        ),
    )
    def suspend(self, ahead: bool, n: int, policy: ResumePolicy) -> None:
        usable = [
            one
            for one in self.waitpoints
            if waitpoint_of(self.book, self.execution_id, one.waitpoint_id).state == "pending"
        ]
        binding = UsePendingWaitpoint(waitpoint_id=usable[0].waitpoint_id) if ahead and usable else fresh()
        body = Count(n=n, count_kind=CountKind.DISTINCT_SIGNALS, waitpoints=("review",))
        outcome = suspend(
            self.book,
            self.execution_id,
            self.fence,
            waitpoints=(binding,),
            resume_condition=Composite(body=body),
            resume_policy=policy,
        )
        self.suspensions += 1
        if binding not in [UsePendingWaitpoint(waitpoint_id=one.waitpoint_id) for one in self.waitpoints]:
            self.waitpoints.append(outcome.details)

    @precondition(lambda self: self.waitpoints)
    @rule(data=st.data(), twice=st.booleans())
    def send(self, data: st.DataObject, twice: bool) -> None:
        waitpoint = data.draw(st.sampled_from(self.waitpoints))
        args = signal_args(self.execution_id, waitpoint.waitpoint_id, waitpoint.waitpoint_token)
        try:
            outcome = self.book.run(args)
        except errors.WaitpointClosed:
            assert waitpoint_of(self.book, self.execution_id, waitpoint.waitpoint_id).state == "closed"
            return
        assert isinstance(outcome, SignalAccepted)
        self.accepted.append(args.signal_id)
        if twice:
            with self.book.unchanged():
                assert isinstance(self.book.run(args), SignalDuplicate)

    @precondition(lambda self: self.situation in (Situation.ELIGIBLE, Situation.DELAYED))
    @rule()
    def claim(self) -> None:
        if self.situation is Situation.DELAYED:
            execution = self.book.execution(self.execution_id)
            execution.blockers = ()
            self.book.put(execution)
        self.fence = self.book.claim(self.execution_id)

    @invariant()
    def every_accepted_signal_is_on_record_once_in_a_gap_free_sequence(self) -> None:
        recorded = signals_of(self.book, self.execution_id)
        assert [one.signal_id for one in recorded] == self.accepted

    @invariant()
    def a_wait_ends_when_and_only_when_its_condition_is_met(self) -> None:
        execution = self.book.execution(self.execution_id)
        assert (execution.suspension_id is not None) == (self.situation is Situation.SUSPENDED)

    @invariant()
    def open_waitpoints_are_those_that_are_not_closed(self) -> None:
        states = {
            one.waitpoint_id: waitpoint_of(self.book, self.execution_id, one.waitpoint_id).state
            for one in self.waitpoints
        }
        still_open = {waitpoint_id for waitpoint_id, state in states.items() if state != "closed"}
        assert set(self.book.execution(self.execution_id).open_waitpoint_ids) == still_open


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)

"""Suspending and resuming: what is given up, what is kept, and what is refused."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.conditions import (
    Composite,
    Count,
    CountKind,
    TimeoutOnly,
    all_of_waitpoints,
)
from flowfabric.contracts.executions import CompleteExecutionArgs
from flowfabric.contracts.handles import HandleKind, decode_handle
from flowfabric.contracts.ids import ExecutionId
from flowfabric.contracts.keyring import RotateWaitpointHmacSecretArgs
from flowfabric.contracts.policy import ExecutionPolicy, SuspensionPolicy, TimeoutBehavior, TimeoutPolicy
from flowfabric.contracts.signals import ObserveSignalsArgs, SignalEffect
from flowfabric.contracts.states import WaitpointState
from flowfabric.contracts.suspensions import (
    ExecutionSuspended,
    ResumeExecutionArgs,
    ResumePolicy,
    ResumeTrigger,
    SuspendAlreadySatisfied,
    SuspensionReasonCode,
    UsePendingWaitpoint,
)
from flowfabric.core.records import KEYRING_ID, Dedup, Keyring, Suspension, Waitpoint
from flowfabric.core.rules.suspending import BLOCKING_REASON_OF, dedup_window_ms
from flowfabric.core.state import Situation
from flowfabric.minting import fresh_waitpoint
from tests.core.harness import TTL_MS, Rulebook, new_id
from tests.core.waits import (
    OTHER_SECRET_HEX,
    anything,
    buffer_args,
    fresh,
    named,
    pending,
    seed,
    signal,
    suspend,
    suspend_args,
    suspended,
    suspension_of,
    waitpoint_of,
)

KEEP = ResumePolicy(close_waitpoint_on_resume=False)


@pytest.fixture(autouse=True)
def _seeded(book):
    seed(book)


def use(waitpoint) -> tuple[UsePendingWaitpoint, ...]:
    return (UsePendingWaitpoint(waitpoint_id=waitpoint.waitpoint_id),)


def observed(book: Rulebook, execution_id: ExecutionId, **fields) -> list[str]:
    page = book.run(ObserveSignalsArgs(execution_id=execution_id, attempt_index=0, **fields))
    return [one.signal_name for one in page.signals]


# Suspending


@pytest.mark.scenario("SUSP-001")
@pytest.mark.scenario("SUSP-014")
def test_a_suspended_execution_has_no_lease_and_says_what_it_waits_for(book):
    execution_id, fence = book.start()
    outcome = suspend(book, execution_id, fence, reason_code=SuspensionReasonCode.WAITING_FOR_APPROVAL)
    assert isinstance(outcome, ExecutionSuspended)
    assert book.vector(execution_id) == (
        "suspended",
        "unowned",
        "not_applicable",
        "waiting_for_approval",
        "none",
        "attempt_interrupted",
        "suspended",
    )
    execution = book.execution(execution_id)
    assert execution.lease is None
    assert execution.suspension_id == outcome.details.suspension_id
    assert execution.waitpoint_id == outcome.details.waitpoint_id
    assert "suspended" in book.indexes(execution_id)


def test_the_waitpoint_is_active_until_the_deadline(book):
    execution_id, details = suspended(book, timeout_at=book.now + 5_000)
    waitpoint = waitpoint_of(book, execution_id, details.waitpoint_id)
    assert waitpoint.state == WaitpointState.ACTIVE
    assert waitpoint.suspension_id == details.suspension_id
    assert waitpoint.expires_at == book.now + 5_000


def test_suspending_tells_of_the_lease_and_of_the_wait(book):
    suspended(book)
    assert book.names()[-2:] == ["released", "suspended"]
    assert book.events[-2].data["reason"] == "suspend"


def test_the_handle_of_a_suspended_execution_names_its_attempt(book):
    execution_id, fence = book.start()
    outcome = suspend(book, execution_id, fence)
    assert isinstance(outcome, ExecutionSuspended)
    assert outcome.handle.kind is HandleKind.SUSPENDED
    payload = decode_handle(outcome.handle)
    assert (payload.execution_id, payload.attempt_id) == (execution_id, fence.attempt_id)


@pytest.mark.scenario("SUSP-013")
def test_a_fresh_binding_is_named_after_its_waitpoint():
    binding = fresh_waitpoint()
    assert binding.waitpoint_key == f"wpk:{binding.waitpoint_id}"


@pytest.mark.scenario("SUSP-013")
def test_the_default_resume_policy_closes_and_consumes_without_a_delay():
    policy = ResumePolicy()
    assert policy.close_waitpoint_on_resume
    assert policy.consume_matched_signals
    assert not policy.retain_signal_buffer_until_closed
    assert policy.resume_delay_ms is None


@pytest.mark.parametrize("code", list(SuspensionReasonCode))
def test_every_reason_code_gives_its_blocking_reason(book, code):
    execution_id, _ = suspended(book, reason_code=code)
    assert book.vector(execution_id)[3] == BLOCKING_REASON_OF[code]


def test_several_waitpoints_are_handed_out_in_their_order(book):
    bindings = (fresh("a"), fresh("b"), fresh("c"))
    execution_id, details = suspended(
        book, waitpoints=bindings, resume_condition=all_of_waitpoints(["a", "b", "c"])
    )
    assert details.waitpoint_key == "a"
    assert [extra.waitpoint_key for extra in details.additional_waitpoints] == ["b", "c"]
    assert book.execution(execution_id).open_waitpoint_ids == tuple(one.waitpoint_id for one in bindings)


def test_the_timeout_clock_of_the_attempt_stops_while_it_waits(book):
    policy = ExecutionPolicy(timeout_policy=TimeoutPolicy(attempt_timeout_ms=9_000))
    execution_id, fence = book.start(policy=policy)
    book.advance(4_000)
    details = suspend(book, execution_id, fence).details
    attempt = book.execution(execution_id).attempt
    assert (attempt.timeout_at, attempt.timeout_ms) == (None, 5_000)
    book.advance(50_000)
    signal(book, execution_id, details)
    book.claim(execution_id)
    assert book.execution(execution_id).attempt.timeout_at == book.now + 5_000


def test_the_policy_gives_a_deadline_to_those_without(book):
    policy = ExecutionPolicy(
        suspension_policy=SuspensionPolicy(default_timeout_ms=700, timeout_behavior=TimeoutBehavior.ESCALATE)
    )
    execution_id, fence = book.start(policy=policy)
    details = suspend(book, execution_id, fence).details
    suspension = suspension_of(book, execution_id, details)
    assert suspension.timeout_at == book.now + 700
    assert suspension.timeout_behavior == TimeoutBehavior.ESCALATE


def test_a_deadline_of_its_own_wins_over_the_policy(book):
    policy = ExecutionPolicy(suspension_policy=SuspensionPolicy(default_timeout_ms=700))
    execution_id, fence = book.start(policy=policy)
    details = suspend(
        book, execution_id, fence, timeout_at=book.now + 5, timeout_behavior=TimeoutBehavior.CANCEL
    ).details
    suspension = suspension_of(book, execution_id, details)
    assert (suspension.timeout_at, suspension.timeout_behavior) == (book.now + 5, TimeoutBehavior.CANCEL)


# Refusals


def test_without_a_fence_nobody_suspends(book):
    execution_id, _ = book.start()
    with book.refuses(errors.FenceRequired):
        suspend(book, execution_id, None)


@pytest.mark.scenario("SUSP-014")
@pytest.mark.parametrize(
    "change",
    [{"lease_epoch": 1_000}, {"lease_id": new_id()}, {"attempt_id": new_id()}],
    ids=["epoch", "lease", "attempt"],
)
def test_a_stale_fence_suspends_nothing(book, change):
    execution_id, fence = book.start()
    with book.refuses(errors.StaleLease):
        suspend(book, execution_id, replace(fence, **change))


def test_an_expired_lease_suspends_nothing(book):
    execution_id, fence = book.start()
    book.advance(TTL_MS)
    with book.refuses(errors.LeaseExpired):
        suspend(book, execution_id, fence)


def test_another_attempt_index_suspends_nothing(book):
    execution_id, fence = book.start()
    with book.refuses(errors.InvalidLeaseForSuspend):
        suspend(book, execution_id, fence, attempt_index=1)


@pytest.mark.scenario("SUSP-010")
def test_a_second_suspension_without_a_key_is_refused(book):
    execution_id, fence = book.start()
    suspend(book, execution_id, fence)
    with book.refuses(errors.AlreadySuspended):
        suspend(book, execution_id, fence)


def test_a_finished_execution_is_not_suspended(book):
    execution_id, fence = book.start()
    book.run(CompleteExecutionArgs(execution_id=execution_id, fence=fence, attempt_index=0))
    with book.refuses(errors.ExecutionNotActive):
        suspend(book, execution_id, fence)


@pytest.mark.scenario("SUSP-014")
def test_the_fence_from_before_the_suspension_is_stale_after_the_resume(book):
    execution_id, fence = book.start()
    details = suspend(book, execution_id, fence).details
    signal(book, execution_id, details)
    book.claim(execution_id)
    with book.refuses(errors.StaleLease):
        suspend(book, execution_id, fence)


def test_a_suspension_id_is_used_once(book):
    execution_id, fence = book.start()
    details = suspend(book, execution_id, fence).details
    signal(book, execution_id, details)
    fence = book.claim(execution_id)
    with book.refuses(errors.InvalidInput):
        suspend(book, execution_id, fence, suspension_id=details.suspension_id)


@pytest.mark.scenario("SUSP-012")
@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"waitpoints": ()}, "waitpoints_empty"),
        ({"resume_condition": anything("other")}, "waitpoint_key_mismatch"),
        ({"resume_condition": TimeoutOnly()}, "timeout_only_without_deadline"),
        ({"timeout_at": 1_000_000_000 - 3_600_000}, "timeout_at_in_past"),
        ({"resume_condition": named("")}, "signal_name_empty"),
        (
            {"waitpoints": (fresh("a"), fresh("b")), "resume_condition": all_of_waitpoints(["a"])},
            "extra_binding_not_referenced_by_condition: b",
        ),
        (
            {"waitpoints": (fresh("a"), fresh("b")), "resume_condition": all_of_waitpoints(["a", "b", "c"])},
            "referenced_waitpoint_key_missing_binding: c",
        ),
        (
            {"resume_condition": all_of_waitpoints(["review", "nowhere"])},
            "referenced_waitpoint_key_missing_binding: nowhere",
        ),
        ({"resume_condition": all_of_waitpoints([])}, "allof_empty_members at path <root>"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_a_suspension_that_could_not_end_as_asked_is_refused(fields, rule):
    book = Rulebook(now=1_000_000_000)
    seed(book)
    execution_id, fence = book.start()
    with book.refuses(errors.InvalidInput) as caught:
        suspend(book, execution_id, fence, **fields)
    assert caught[0].rule == rule


@pytest.mark.scenario("SUSP-012")
def test_a_deadline_ten_minutes_ago_is_within_the_tolerance():
    book = Rulebook(now=1_000_000_000)
    seed(book)
    suspended(book, timeout_at=book.now - 600_000)


def test_two_waitpoints_of_one_key_are_refused(book):
    execution_id, fence = book.start()
    with book.refuses(errors.AdditionalWaitpointBindingMalformed):
        suspend(
            book,
            execution_id,
            fence,
            waitpoints=(fresh("a"), fresh("a")),
            resume_condition=all_of_waitpoints(["a"]),
        )


def test_one_waitpoint_bound_twice_is_refused(book):
    execution_id, fence = book.start()
    one = fresh("a")
    with book.refuses(errors.WaitpointAlreadyExists):
        suspend(
            book,
            execution_id,
            fence,
            waitpoints=(one, replace(one, waitpoint_key="b")),
            resume_condition=all_of_waitpoints(["a", "b"]),
        )


def test_without_a_key_nothing_is_suspended():
    book = Rulebook()
    execution_id, fence = book.start()
    with book.refuses(errors.HmacSecretNotInitialized):
        suspend(book, execution_id, fence)


@pytest.mark.scenario("HMAC-012")
def test_an_unusable_secret_suspends_nothing(book):
    ring = book.get(Keyring, KEYRING_ID)
    ring.keys = (replace(ring.keys[0], secret=b""),)
    book.put(ring)
    execution_id, fence = book.start()
    with book.refuses(errors.InvalidSecret):
        suspend(book, execution_id, fence)


# The idempotency key


def test_a_repeated_suspension_gets_the_first_outcome_verbatim(book):
    execution_id, fence = book.start()
    args = suspend_args(execution_id, fence, idempotency_key="wait-1")
    first = book.run(args)
    with book.unchanged():
        assert book.run(args) == first
    with book.unchanged():
        assert book.run(replace(args, now=77)) == first


def test_the_first_outcome_is_given_even_after_the_resume(book):
    execution_id, fence = book.start()
    args = suspend_args(execution_id, fence, idempotency_key="wait-1")
    first = book.run(args)
    signal(book, execution_id, first.details)
    book.claim(execution_id)
    with book.unchanged():
        assert book.run(args) == first


@pytest.mark.parametrize(
    "change",
    [{"suspension_id": new_id()}, {"timeout_at": 5_000_000}, {"attempt_index": 1}],
    ids=["suspension", "deadline", "attempt"],
)
def test_the_key_of_another_suspension_is_a_conflict(book, change):
    execution_id, fence = book.start()
    args = suspend_args(execution_id, fence, idempotency_key="wait-1")
    book.run(args)
    with book.refuses(errors.IdempotencyConflict):
        book.run(replace(args, **change))


def test_a_key_means_nothing_in_another_execution(book):
    outcomes = []
    for _ in range(2):
        execution_id, fence = book.start()
        outcomes.append(suspend(book, execution_id, fence, idempotency_key="wait-1"))
    assert outcomes[0].details.suspension_id != outcomes[1].details.suspension_id


def test_an_empty_key_is_no_key(book):
    execution_id, fence = book.start()
    suspend(book, execution_id, fence, idempotency_key="")
    with book.refuses(errors.AlreadySuspended):
        suspend(book, execution_id, fence, idempotency_key="")


def test_repeating_a_suspension_with_its_fence_gives_the_first_answer(book):
    execution_id, fence = book.start()
    args = suspend_args(execution_id, fence)
    first = book.run(args)
    with book.unchanged():
        assert book.run(args) == first


def test_a_repeated_suspension_gets_its_answer_even_after_the_resume(book):
    execution_id, fence = book.start()
    args = suspend_args(execution_id, fence)
    first = book.run(args)
    signal(book, execution_id, first.details)
    book.claim(execution_id)
    with book.unchanged():
        assert book.run(args) == first


def test_a_suspension_that_was_satisfied_at_once_keeps_its_lease_and_may_be_followed_by_another(book):
    execution_id, fence = book.start()
    details = pending(book, execution_id, fence)
    book.run(buffer_args(execution_id, details))
    use = UsePendingWaitpoint(waitpoint_id=details.waitpoint_id)
    outcome = suspend(
        book, execution_id, fence, waitpoints=(use,), resume_condition=anything(details.waitpoint_key)
    )
    assert isinstance(outcome, SuspendAlreadySatisfied)
    assert isinstance(suspend(book, execution_id, fence), ExecutionSuspended)


def test_the_kept_answer_of_a_suspension_is_not_shown(book):
    execution_id, fence = book.start()
    token = suspend(book, execution_id, fence).details.waitpoint_token
    assert token.mac not in repr(book.execution(execution_id))


def test_another_namespace_is_not_told_a_remembered_outcome(book):
    execution_id, fence = book.start()
    args = suspend_args(execution_id, fence, idempotency_key="wait-1")
    book.run(args)
    with book.refuses(errors.ExecutionNotFound):
        book.run(args, namespace="other")


@pytest.mark.parametrize(
    ("timeout_at", "window_ms"),
    [(None, 604_800_000), (1_000, 60_000), (500, 60_000), (6_000, 65_000), (10**12, 604_800_000)],
)
def test_how_long_an_outcome_is_remembered(timeout_at, window_ms):
    assert dedup_window_ms(1_000, timeout_at) == window_ms


def test_no_token_shows_where_outcomes_are_kept(book):
    execution_id, fence = book.start()
    outcome = suspend(book, execution_id, fence, idempotency_key="wait-1")
    mac = outcome.details.waitpoint_token.mac
    kept = (
        book.execution(execution_id),
        book.get(Dedup, f"{execution_id}/suspend/wait-1"),
        suspension_of(book, execution_id, outcome.details),
        waitpoint_of(book, execution_id, outcome.details.waitpoint_id),
        outcome,
    )
    assert mac not in repr(kept)


# Waitpoints that were opened ahead


def test_a_pending_waitpoint_is_activated_with_its_token(book):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    book.advance(10)
    details = suspend(book, execution_id, fence, waitpoints=use(ahead)).details
    assert details.waitpoint_token == ahead.waitpoint_token
    waitpoint = waitpoint_of(book, execution_id, ahead.waitpoint_id)
    assert (waitpoint.state, waitpoint.activated_at) == (WaitpointState.ACTIVE, book.now)
    assert waitpoint.expires_at is None
    assert signal(book, execution_id, ahead) is SignalEffect.RESUME_CONDITION_SATISFIED


@pytest.mark.scenario("SUSP-004")
def test_a_signal_that_came_early_is_enough(book):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    book.run(buffer_args(execution_id, ahead))
    lease = book.execution(execution_id).lease
    outcome = suspend(book, execution_id, fence, waitpoints=use(ahead))
    assert isinstance(outcome, SuspendAlreadySatisfied)
    assert book.situation(execution_id) is Situation.RUNNING
    execution = book.execution(execution_id)
    assert execution.lease == lease
    assert execution.suspension_id is None
    assert waitpoint_of(book, execution_id, ahead.waitpoint_id).close_reason == "resumed"
    assert observed(book, execution_id, fence=fence) == ["approve"]
    book.run(CompleteExecutionArgs(execution_id=execution_id, fence=fence, attempt_index=0))


def test_a_satisfied_suspension_is_on_record(book):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    args = buffer_args(execution_id, ahead)
    book.run(args)
    details = suspend(book, execution_id, fence, waitpoints=use(ahead)).details
    suspension = suspension_of(book, execution_id, details)
    assert suspension.closer_signal_id == args.signal_id
    assert suspension.satisfier_signals == (1,)
    assert suspension.satisfied_at == suspension.closed_at == book.now


def test_an_early_signal_of_another_name_is_not_enough(book):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    book.run(buffer_args(execution_id, ahead, "ping"))
    outcome = suspend(book, execution_id, fence, waitpoints=use(ahead), resume_condition=named("approve"))
    assert isinstance(outcome, ExecutionSuspended)
    assert signal(book, execution_id, ahead, "approve") is SignalEffect.RESUME_CONDITION_SATISFIED


@pytest.mark.parametrize("early", [1, 2, 3])
def test_early_signals_count_for_composites_too(book, early):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    for _ in range(early):
        book.run(buffer_args(execution_id, ahead))
    count = Count(n=2, count_kind=CountKind.DISTINCT_SIGNALS, waitpoints=("review",))
    outcome = suspend(
        book, execution_id, fence, waitpoints=use(ahead), resume_condition=Composite(body=count)
    )
    if early >= 2:
        assert isinstance(outcome, SuspendAlreadySatisfied)
        assert suspension_of(book, execution_id, outcome.details).satisfier_signals == (1, 2)
    else:
        assert signal(book, execution_id, ahead) is SignalEffect.RESUME_CONDITION_SATISFIED


@pytest.mark.parametrize("enough", [False, True])
def test_a_pending_waitpoint_and_fresh_ones_go_together(book, enough):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    book.run(buffer_args(execution_id, ahead))
    extra = fresh("second")
    kind, n = CountKind.DISTINCT_WAITPOINTS, 1 if enough else 2
    condition = Composite(body=Count(n=n, count_kind=kind, waitpoints=("review", "second")))
    outcome = suspend(book, execution_id, fence, waitpoints=(*use(ahead), extra), resume_condition=condition)
    if enough:
        assert isinstance(outcome, SuspendAlreadySatisfied)
        assert waitpoint_of(book, execution_id, extra.waitpoint_id).state == WaitpointState.CLOSED
    else:
        (second,) = outcome.details.additional_waitpoints
        assert signal(book, execution_id, second) is SignalEffect.RESUME_CONDITION_SATISFIED


def test_a_condition_that_does_not_name_the_pending_waitpoint_is_refused(book):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    with book.refuses(errors.InvalidInput) as caught:
        suspend(book, execution_id, fence, waitpoints=use(ahead), resume_condition=anything("other"))
    assert caught[0].rule == "waitpoint_key_mismatch"


def test_an_unknown_waitpoint_cannot_be_used(book):
    execution_id, fence = book.start()
    unknown = UsePendingWaitpoint(waitpoint_id=new_id())
    with book.refuses(errors.WaitpointNotFound):
        suspend(book, execution_id, fence, waitpoints=(unknown,))


def test_a_waitpoint_of_another_execution_cannot_be_used(book):
    other_id, other_fence = book.start()
    ahead = pending(book, other_id, other_fence)
    execution_id, fence = book.start()
    with book.refuses(errors.WaitpointNotFound):
        suspend(book, execution_id, fence, waitpoints=use(ahead))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"state": "closed"}, errors.WaitpointNotPending),
        ({"state": "active"}, errors.WaitpointNotPending),
        ({"expires_at": 1_000_000}, errors.PendingWaitpointExpired),
        ({"token_digest": ""}, errors.WaitpointNotTokenBound),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_waitpoint_that_is_not_usable_suspends_nothing(book, change, error):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    waitpoint = waitpoint_of(book, execution_id, ahead.waitpoint_id)
    for name, value in change.items():
        setattr(waitpoint, name, value)
    book.put(waitpoint)
    with book.refuses(error):
        suspend(book, execution_id, fence, waitpoints=use(ahead))


def test_a_refused_extra_leaves_the_pending_waitpoint_pending(book):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    taken = pending(book, execution_id, fence, waitpoint_key="second")
    extra = replace(fresh("second"), waitpoint_id=taken.waitpoint_id)
    with book.refuses(errors.WaitpointAlreadyExists):
        suspend(
            book,
            execution_id,
            fence,
            waitpoints=(*use(ahead), extra),
            resume_condition=all_of_waitpoints(["review", "second"]),
        )


def test_a_pending_waitpoint_whose_key_is_past_its_grace_gets_a_valid_token(book):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    book.run(RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex=OTHER_SECRET_HEX, grace_ms=0))
    details = suspend(book, execution_id, fence, waitpoints=use(ahead)).details
    assert details.waitpoint_token.kid == "k2"
    assert signal(book, execution_id, details) is SignalEffect.RESUME_CONDITION_SATISFIED


@pytest.mark.scenario("HMAC-020")
def test_rotating_between_suspend_and_signal_harms_nothing_inside_the_grace(book):
    execution_id, fence = book.start()
    details = suspend(book, execution_id, fence).details
    book.run(RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex=OTHER_SECRET_HEX, grace_ms=1_000))
    book.advance(999)
    assert signal(book, execution_id, details) is SignalEffect.RESUME_CONDITION_SATISFIED
    fence = book.claim(execution_id)
    assert suspend(book, execution_id, fence).details.waitpoint_token.kid == "k2"


# Resuming


@pytest.mark.scenario("TIME-007")
def test_an_operator_resumes_at_once(book):
    execution_id, details = suspended(book)
    outcome = book.run(ResumeExecutionArgs(execution_id=execution_id, trigger_type=ResumeTrigger.OPERATOR))
    assert outcome.public_state == "waiting"
    assert book.vector(execution_id)[5] == "attempt_interrupted"
    suspension = suspension_of(book, execution_id, details)
    assert (suspension.close_reason, suspension.closed_at) == ("resumed", book.now)
    told = {event.name: event.data for event in book.events}
    assert told["resumed"]["old"] == "suspended"
    assert "operator" in [event.data.get("cause") for event in book.events]


@pytest.mark.scenario("TIME-007")
def test_an_operator_resumes_after_a_delay(book):
    execution_id, _ = suspended(book)
    outcome = book.run(ResumeExecutionArgs(execution_id=execution_id, resume_delay_ms=5_000))
    assert outcome.public_state == "delayed"
    assert book.vector(execution_id)[3] == "waiting_for_resume_delay"
    (blocker,) = book.execution(execution_id).blockers
    assert blocker.until_ms == book.now + 5_000


@pytest.mark.scenario("TIME-007")
def test_what_is_not_suspended_is_not_resumed(book):
    execution_id, _ = book.start()
    with book.refuses(errors.ExecutionNotSuspended):
        book.run(ResumeExecutionArgs(execution_id=execution_id))


def test_after_an_operators_resume_the_old_token_resumes_nothing(book):
    execution_id, details = suspended(book)
    book.run(ResumeExecutionArgs(execution_id=execution_id))
    fence = book.claim(execution_id)
    suspend(book, execution_id, fence)
    with book.refuses(errors.WaitpointClosed):
        signal(book, execution_id, details)
    assert book.situation(execution_id) is Situation.SUSPENDED


@pytest.mark.scenario("SUSP-001")
def test_the_claim_after_a_resume_continues_the_attempt_under_a_new_epoch(book):
    execution_id, details = suspended(book)
    assert signal(book, execution_id, details) is SignalEffect.RESUME_CONDITION_SATISFIED
    assert book.vector(execution_id) == (
        "runnable",
        "unowned",
        "eligible_now",
        "waiting_for_worker",
        "none",
        "attempt_interrupted",
        "waiting",
    )
    fence = book.claim(execution_id)
    execution = book.execution(execution_id)
    assert (execution.attempt.attempt_index, fence.lease_epoch) == (0, 2)


def test_a_resumed_execution_knows_which_suspension_ended(book):
    execution_id, details = suspended(book)
    signal(book, execution_id, details)
    execution = book.execution(execution_id)
    assert execution.resumed_suspension_id == details.suspension_id
    assert (execution.suspension_id, execution.waitpoint_id) == (None, None)
    assert not suspension_of(book, execution_id, details).timed_out


def test_each_suspension_keeps_its_own_record(book):
    execution_id, first = suspended(book)
    signal(book, execution_id, first)
    fence = book.claim(execution_id)
    second = suspend(book, execution_id, fence).details
    assert suspension_of(book, execution_id, first).closed_at is not None
    assert suspension_of(book, execution_id, second).closed_at is None
    assert sum(key.startswith(f"{Suspension.KIND}/") for key in book.data) == 2


# The resume policy


def test_the_policys_delay_is_kept_after_the_last_signal(book):
    execution_id, details = suspended(book, resume_policy=ResumePolicy(resume_delay_ms=900))
    signal(book, execution_id, details)
    assert book.vector(execution_id)[3] == "waiting_for_resume_delay"
    assert book.execution(execution_id).blockers[0].until_ms == book.now + 900


@pytest.mark.parametrize("delay_ms", [0, 50])
def test_the_delay_that_a_signal_brings_wins(book, delay_ms):
    execution_id, details = suspended(book, resume_policy=ResumePolicy(resume_delay_ms=900))
    signal(book, execution_id, details, resume_delay_ms=delay_ms)
    blockers = book.execution(execution_id).blockers
    assert [blocker.until_ms for blocker in blockers] == ([book.now + delay_ms] if delay_ms else [])


def test_the_policys_delay_is_kept_when_early_signals_were_enough(book):
    execution_id, fence = book.start()
    ahead = pending(book, execution_id, fence)
    book.run(buffer_args(execution_id, ahead))
    policy = ResumePolicy(resume_delay_ms=900)
    outcome = suspend(book, execution_id, fence, waitpoints=use(ahead), resume_policy=policy)
    assert isinstance(outcome, ExecutionSuspended)
    assert book.situation(execution_id) is Situation.DELAYED
    assert suspension_of(book, execution_id, outcome.details).close_reason == "resumed"


def test_a_waitpoint_that_stays_open_serves_the_next_suspension(book):
    execution_id, details = suspended(book, resume_policy=KEEP)
    signal(book, execution_id, details)
    waitpoint = waitpoint_of(book, execution_id, details.waitpoint_id)
    assert (waitpoint.state, waitpoint.suspension_id, waitpoint.buffered) == ("pending", None, ())
    fence = book.claim(execution_id)
    outcome = suspend(book, execution_id, fence, waitpoints=use(details))
    assert isinstance(outcome, ExecutionSuspended)
    assert outcome.details.waitpoint_token == details.waitpoint_token
    assert signal(book, execution_id, details) is SignalEffect.RESUME_CONDITION_SATISFIED


def test_matched_signals_that_are_not_consumed_meet_the_next_suspension(book):
    policy = replace(KEEP, consume_matched_signals=False)
    execution_id, details = suspended(book, resume_policy=policy)
    signal(book, execution_id, details)
    fence = book.claim(execution_id)
    assert isinstance(suspend(book, execution_id, fence, waitpoints=use(details)), SuspendAlreadySatisfied)


@pytest.mark.parametrize("retain", [False, True])
def test_other_signals_are_kept_for_the_next_suspension_only_if_asked(book, retain):
    policy = replace(KEEP, retain_signal_buffer_until_closed=retain)
    execution_id, details = suspended(book, resume_policy=policy, resume_condition=named("first"))
    signal(book, execution_id, details, "second")
    signal(book, execution_id, details, "first")
    fence = book.claim(execution_id)
    outcome = suspend(book, execution_id, fence, waitpoints=use(details), resume_condition=named("second"))
    assert isinstance(outcome, SuspendAlreadySatisfied if retain else ExecutionSuspended)


def test_a_waitpoint_that_stayed_open_is_closed_with_its_execution(book):
    execution_id, details = suspended(book, resume_policy=KEEP)
    signal(book, execution_id, details)
    fence = book.claim(execution_id)
    book.run(CompleteExecutionArgs(execution_id=execution_id, fence=fence, attempt_index=0))
    assert waitpoint_of(book, execution_id, details.waitpoint_id).state == WaitpointState.CLOSED


def test_no_waitpoint_of_an_ended_execution_is_open(book):
    execution_id, details = suspended(book, resume_policy=KEEP)
    signal(book, execution_id, details)
    fence = book.claim(execution_id)
    pending(book, execution_id, fence)
    book.run(CompleteExecutionArgs(execution_id=execution_id, fence=fence, attempt_index=0))
    found = [book.find(Waitpoint, key.partition("/")[2]) for key in book.data if key.startswith("waitpoint/")]
    assert len(found) == 2
    assert {waitpoint.state for waitpoint in found} == {"closed"}

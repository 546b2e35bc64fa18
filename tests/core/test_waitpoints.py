"""Waitpoints: opened ahead, listed, read, closed and expired."""

from __future__ import annotations

import pytest

from flowfabric import errors
from flowfabric.contracts.conditions import OperatorOnly, TimeoutOnly, all_of_waitpoints
from flowfabric.contracts.executions import CompleteExecutionArgs, FailExecutionArgs
from flowfabric.contracts.ids import ExecutionId, WaitpointId
from flowfabric.contracts.keyring import RotateWaitpointHmacSecretArgs
from flowfabric.contracts.states import WaitpointState
from flowfabric.contracts.suspensions import (
    CloseWaitpointArgs,
    ListPendingWaitpointsArgs,
    ReadWaitpointTokenArgs,
    SuspendAlreadySatisfied,
    UsePendingWaitpoint,
    WaitpointWasClosed,
)
from flowfabric.core.commands import ExpireWaitpointArgs, WaitpointSettled
from flowfabric.core.records import Keyring
from flowfabric.core.rules.waitpoints import OPEN_WAITPOINTS_MAX
from tests.core.harness import TTL_MS, Rulebook, new_execution_id, new_id
from tests.core.waits import (
    OTHER_SECRET_HEX,
    SECRET_HEX,
    fresh,
    named,
    pending,
    pending_args,
    seed,
    signal,
    suspend,
    suspended,
    waitpoint_of,
)


@pytest.fixture(autouse=True)
def _seeded(book):
    seed(book)


def listed(book: Rulebook, execution_id: ExecutionId, **fields):
    return book.run(ListPendingWaitpointsArgs(execution_id=execution_id, **fields))


def read_token(book: Rulebook, execution_id: ExecutionId, waitpoint_id: WaitpointId):
    return book.run(ReadWaitpointTokenArgs(execution_id=execution_id, waitpoint_id=waitpoint_id))


def close(book: Rulebook, execution_id: ExecutionId, waitpoint_id: WaitpointId, **fields):
    return book.run(CloseWaitpointArgs(execution_id=execution_id, waitpoint_id=waitpoint_id, **fields))


# Opening ahead


@pytest.mark.scenario("SUSP-026")
def test_a_pending_waitpoint_is_open_until_its_expiry_and_signed_by_the_current_key(book):
    execution_id, fence = book.start()
    created = pending(book, execution_id, fence, expires_in_ms=5_000)
    waitpoint = waitpoint_of(book, execution_id, created.waitpoint_id)
    assert created.waitpoint_token.kid == "k1"
    assert waitpoint.state == WaitpointState.PENDING
    assert waitpoint.expires_at == book.now + 5_000
    assert book.execution(execution_id).open_waitpoint_ids == (created.waitpoint_id,)


@pytest.mark.scenario("SUSP-026")
def test_two_pending_waitpoints_have_different_ids_and_tokens(book):
    execution_id, fence = book.start()
    one, other = (pending(book, execution_id, fence) for _ in range(2))
    assert one.waitpoint_id != other.waitpoint_id
    assert one.waitpoint_token != other.waitpoint_token


@pytest.mark.scenario("SUSP-026")
def test_an_expiry_beyond_all_time_is_clamped(book):
    execution_id, fence = book.start()
    created = pending(book, execution_id, fence, expires_in_ms=2**53 - 1)
    assert waitpoint_of(book, execution_id, created.waitpoint_id).expires_at == 2**53 - 1


@pytest.mark.scenario("SUSP-026")
def test_without_a_key_no_waitpoint_is_opened():
    book = Rulebook()
    execution_id, fence = book.start()
    with book.refuses(errors.HmacSecretNotInitialized):
        pending(book, execution_id, fence)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"lease_id": "00000000-0000-4000-9000-000000000001"}, errors.StaleLease),
        ({"lease_epoch": 999}, errors.StaleLease),
        ({"attempt_id": "00000000-0000-4000-9000-000000000001"}, errors.StaleLease),
        ({"attempt_index": 1}, errors.StaleLease),
    ],
    ids=["lease", "epoch", "attempt", "index"],
)
def test_only_the_holder_of_the_lease_opens_a_waitpoint(book, change, error):
    execution_id, fence = book.start()
    with book.refuses(error):
        pending(book, execution_id, fence, **change)


def test_an_expired_lease_opens_no_waitpoint(book):
    execution_id, fence = book.start()
    book.advance(TTL_MS)
    with book.refuses(errors.LeaseExpired):
        pending(book, execution_id, fence)


def test_a_finished_execution_opens_no_waitpoint(book):
    execution_id, fence = book.start()
    book.run(CompleteExecutionArgs(execution_id=execution_id, fence=fence, attempt_index=0))
    with book.refuses(errors.ExecutionNotActive):
        pending(book, execution_id, fence)


def test_an_unknown_execution_opens_no_waitpoint(book):
    _, fence = book.start()
    with book.refuses(errors.ExecutionNotFound):
        pending(book, new_execution_id(), fence)


@pytest.mark.parametrize("closed", [False, True])
def test_a_waitpoint_id_is_used_once(book, closed):
    execution_id, fence = book.start()
    created = pending(book, execution_id, fence)
    if closed:
        close(book, execution_id, created.waitpoint_id)
    with book.refuses(errors.WaitpointAlreadyExists):
        pending(book, execution_id, fence, waitpoint_id=created.waitpoint_id)


def test_the_number_of_open_waitpoints_is_bounded(book):
    execution_id, fence = book.start()
    execution = book.execution(execution_id)
    execution.open_waitpoint_ids = tuple(new_id() for _ in range(OPEN_WAITPOINTS_MAX))
    book.put(execution)
    with book.refuses(errors.LimitExceeded):
        pending(book, execution_id, fence)


def test_a_repeated_request_opens_one_waitpoint(book):
    execution_id, fence = book.start()
    args = pending_args(execution_id, fence)
    first = book.run(args, request_id="once")
    with book.unchanged():
        assert book.run(args, request_id="once") == first


# Closing


def test_a_closed_waitpoint_stays_on_record_with_its_reason(book):
    execution_id, fence = book.start()
    created = pending(book, execution_id, fence)
    assert close(book, execution_id, created.waitpoint_id) == WaitpointWasClosed()
    waitpoint = waitpoint_of(book, execution_id, created.waitpoint_id)
    assert (waitpoint.state, waitpoint.close_reason, waitpoint.closed_at) == (
        WaitpointState.CLOSED,
        "proactive_close",
        book.now,
    )
    assert book.execution(execution_id).open_waitpoint_ids == ()


def test_closing_twice_changes_nothing(book):
    execution_id, fence = book.start()
    created = pending(book, execution_id, fence)
    close(book, execution_id, created.waitpoint_id)
    with book.unchanged():
        assert close(book, execution_id, created.waitpoint_id, reason="other") == WaitpointWasClosed()


def test_closing_an_unknown_waitpoint_is_refused(book):
    execution_id, _ = book.start()
    with book.refuses(errors.WaitpointNotFound):
        close(book, execution_id, new_id())


def test_a_closed_active_waitpoint_takes_no_signal(book):
    execution_id, details = suspended(book)
    close(book, execution_id, details.waitpoint_id)
    with book.refuses(errors.WaitpointClosed):
        signal(book, execution_id, details)


def test_a_waitpoint_does_not_outlive_its_execution(book):
    execution_id, fence = book.start()
    created = pending(book, execution_id, fence)
    book.run(CompleteExecutionArgs(execution_id=execution_id, fence=fence, attempt_index=0))
    assert waitpoint_of(book, execution_id, created.waitpoint_id).state == WaitpointState.CLOSED
    assert book.execution(execution_id).open_waitpoint_ids == ()


def test_a_pending_waitpoint_and_its_early_signal_survive_a_retry(book):
    execution_id, fence = book.start()
    created = pending(book, execution_id, fence)
    signal(book, execution_id, created)
    book.run(
        FailExecutionArgs(
            execution_id=execution_id,
            fence=fence,
            attempt_index=0,
            failure_reason="broken",
            failure_category="bug",
            retry_policy_json='{"max_retries": 1, "backoff": {"type": "fixed", "delay_ms": 0}}',
        )
    )
    waitpoints = (UsePendingWaitpoint(waitpoint_id=created.waitpoint_id),)
    outcome = suspend(book, execution_id, book.claim(execution_id), waitpoints=waitpoints, attempt_index=1)
    assert isinstance(outcome, SuspendAlreadySatisfied)


# Expiring


def test_a_pending_waitpoint_is_closed_when_its_time_is_over(book):
    execution_id, fence = book.start()
    created = pending(book, execution_id, fence, expires_in_ms=5_000)
    identity = f"{execution_id}/{created.waitpoint_id}"
    with book.unchanged():
        assert book.run(ExpireWaitpointArgs(waitpoint_identity=identity)) == WaitpointSettled(action="kept")
    book.advance(5_000)
    assert book.run(ExpireWaitpointArgs(waitpoint_identity=identity)) == WaitpointSettled(action="expired")
    assert waitpoint_of(book, execution_id, created.waitpoint_id).close_reason == "never_committed"
    with book.unchanged():
        assert book.run(ExpireWaitpointArgs(waitpoint_identity=identity)) == WaitpointSettled(action="gone")


def test_an_active_waitpoint_is_not_expired_by_itself(book):
    execution_id, details = suspended(book, timeout_at=2_000_000)
    book.now = 3_000_000
    identity = f"{execution_id}/{details.waitpoint_id}"
    with book.unchanged():
        assert book.run(ExpireWaitpointArgs(waitpoint_identity=identity)) == WaitpointSettled(action="gone")


def test_a_pending_waitpoint_past_its_time_takes_no_signal_and_is_not_shown(book):
    execution_id, fence = book.start()
    created = pending(book, execution_id, fence, expires_in_ms=5_000)
    book.advance(5_000)
    with book.refuses(errors.WaitpointClosed):
        signal(book, execution_id, created)
    assert listed(book, execution_id).entries == ()
    assert read_token(book, execution_id, created.waitpoint_id) is None


# Listing


@pytest.mark.scenario("SUSP-027")
def test_an_active_waitpoint_is_listed_with_its_fingerprint_and_without_its_token(book):
    execution_id, details = suspended(book, resume_condition=named("approve"), timeout_at=book.now + 9_000)
    (entry,) = listed(book, execution_id).entries
    assert entry.state is WaitpointState.ACTIVE
    assert entry.activated_at == book.now
    assert entry.expires_at == book.now + 9_000
    assert entry.required_signal_names == ("approve",)
    assert entry.token_kid == "k1"
    assert entry.token_fingerprint == details.waitpoint_token.mac[:16]
    assert details.waitpoint_token.mac not in repr(entry)


@pytest.mark.scenario("SUSP-027")
@pytest.mark.parametrize(
    ("condition", "names"),
    [(OperatorOnly(), ("__operator_only__",)), (TimeoutOnly(), ("__timeout_only__",))],
    ids=["operator", "timeout"],
)
def test_conditions_without_signals_are_shown_as_such(book, condition, names):
    execution_id, _ = suspended(book, resume_condition=condition, timeout_at=book.now + 1)
    assert listed(book, execution_id).entries[0].required_signal_names == names


@pytest.mark.scenario("SUSP-027")
def test_pending_waitpoints_are_listed_and_closed_ones_are_not(book):
    execution_id, fence = book.start()
    kept, closed = (pending(book, execution_id, fence) for _ in range(2))
    close(book, execution_id, closed.waitpoint_id)
    assert [entry.waitpoint_id for entry in listed(book, execution_id).entries] == [kept.waitpoint_id]


@pytest.mark.scenario("SUSP-027")
def test_five_waitpoints_at_two_a_page_are_two_two_and_one(book):
    bindings = tuple(fresh(f"w{index}") for index in range(5))
    condition = all_of_waitpoints([binding.waitpoint_key for binding in bindings])
    execution_id, _ = suspended(book, waitpoints=bindings[::-1], resume_condition=condition)
    pages, cursor = [], None
    while True:
        page = listed(book, execution_id, after=cursor, limit=2)
        pages.append([entry.waitpoint_id for entry in page.entries])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [found for page in pages for found in page] == sorted(one.waitpoint_id for one in bindings)


@pytest.mark.scenario("SUSP-027")
def test_an_unknown_execution_has_no_listing(book):
    with book.refuses(errors.ExecutionNotFound):
        listed(book, new_execution_id())


def test_another_namespace_sees_no_waitpoints(book):
    execution_id, details = suspended(book)
    for args in (
        ListPendingWaitpointsArgs(execution_id=execution_id),
        ReadWaitpointTokenArgs(execution_id=execution_id, waitpoint_id=details.waitpoint_id),
        CloseWaitpointArgs(execution_id=execution_id, waitpoint_id=details.waitpoint_id),
    ):
        with book.refuses(errors.ExecutionNotFound):
            book.run(args, namespace="other")


# Reading the token


def test_the_token_that_is_read_is_the_one_that_was_handed_out(book):
    execution_id, details = suspended(book)
    assert read_token(book, execution_id, details.waitpoint_id) == details.waitpoint_token


def test_closed_and_unknown_waitpoints_have_no_token(book):
    execution_id, details = suspended(book)
    close(book, execution_id, details.waitpoint_id)
    assert read_token(book, execution_id, details.waitpoint_id) is None
    assert read_token(book, execution_id, new_id()) is None


def rotate(book: Rulebook, kid: str, grace_ms: int) -> None:
    book.run(RotateWaitpointHmacSecretArgs(new_kid=kid, new_secret_hex=OTHER_SECRET_HEX, grace_ms=grace_ms))


@pytest.mark.parametrize("removed", [False, True])
def test_a_token_whose_key_is_past_its_grace_cannot_be_read(book, removed):
    execution_id, details = suspended(book)
    rotate(book, "k2", grace_ms=0)
    if removed:
        rotate(book, "k3", grace_ms=0)
    with book.refuses(errors.TokenExpired) as caught:
        read_token(book, execution_id, details.waitpoint_id)
    assert caught[0].details == {"kid": "k1"}


def test_no_record_but_the_key_ring_holds_the_secret(book):
    suspended(book)
    holders = [key for key, data in book.data.items() if bytes.fromhex(SECRET_HEX) in data]
    assert all(key.startswith(f"{Keyring.KIND}/") for key in holders)

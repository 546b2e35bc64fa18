"""What has happened to one execution, page by page."""

import pytest

from flowfabric import errors
from flowfabric.contracts.history import ListAttemptsArgs, ListSignalsArgs
from flowfabric.contracts.states import AttemptLifecycle, AttemptType
from flowfabric.core.records import Signal
from tests.core import requests
from tests.core.harness import new_execution_id, new_id


def reclaimed(book, times):
    """An execution whose lease was revoked and reclaimed so often."""
    execution_id, _ = book.start()
    for number in range(times):
        book.run(requests.revoke(execution_id))
        book.claim(execution_id, worker_instance_id=f"worker-{number}")
    return execution_id


def attempts(book, execution_id, limit):
    """The pages of attempts."""
    pages, cursor = [], None
    while True:
        page = book.run(ListAttemptsArgs(execution_id=execution_id, cursor=cursor, limit=limit))
        pages.append(page.attempts)
        cursor = page.next_cursor
        if cursor is None:
            return pages


def test_attempts_come_in_their_order_with_where_they_come_from(book):
    execution_id = reclaimed(book, 1)
    [[first, second]] = attempts(book, execution_id, 10)
    assert (first.attempt_index, first.attempt_type) == (0, AttemptType.INITIAL)
    assert first.attempt_state is AttemptLifecycle.INTERRUPTED_RECLAIMED
    assert (second.attempt_index, second.previous_attempt_index) == (1, 0)
    assert (second.attempt_type, second.cause) == (AttemptType.RECLAIM, "lease_revoked")
    assert (second.attempt_state, second.worker_instance_id) == (AttemptLifecycle.STARTED, "worker-0")


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (10, [3])])
def test_pages_of_attempts_follow_each_other_without_a_gap(book, limit, sizes):
    pages = attempts(book, reclaimed(book, 2), limit)
    assert [len(page) for page in pages] == sizes
    assert [one.attempt_index for page in pages for one in page] == [0, 1, 2]


def test_a_cursor_behind_the_last_attempt_gives_none(book):
    execution_id, _ = book.start()
    page = book.run(ListAttemptsArgs(execution_id=execution_id, cursor=7))
    assert (page.attempts, page.next_cursor) == ((), None)


@pytest.mark.parametrize("command", [ListAttemptsArgs, ListSignalsArgs])
def test_what_does_not_exist_or_is_of_another_namespace_is_refused(book, command):
    foreign, _ = book.start()
    with book.refuses(errors.ExecutionNotFound):
        book.run(command(execution_id=new_execution_id()))
    with book.refuses(errors.ExecutionNotFound):
        book.run(command(execution_id=foreign), namespace="other")


def test_what_has_no_history_gives_empty_pages(book):
    execution_id = book.create()
    assert book.run(ListAttemptsArgs(execution_id=execution_id)).attempts == ()
    assert book.run(ListSignalsArgs(execution_id=execution_id)).signals == ()


def signalled(book, count):
    """An execution with so many signals on record."""
    execution_id = book.create()
    execution = book.execution(execution_id)
    execution.signal_count = count
    book.put(execution)
    for sequence in range(1, count + 1):
        book.put(
            Signal(
                execution_id=execution_id,
                sequence=sequence,
                signal_id=new_id(),
                waitpoint_id=new_id(),
                waitpoint_key="key",
                signal_name=f"name-{sequence}",
                signal_category="",
                source_type="",
                source_identity="someone",
                target_scope="waitpoint",
                accepted_at=book.now,
                effect="no_op",
                payload=b"secret",
            )
        )
    return execution_id


def test_pages_of_signals_follow_each_other_without_a_gap(book):
    execution_id = signalled(book, 5)
    found, cursor = [], None
    for _ in range(3):
        page = book.run(ListSignalsArgs(execution_id=execution_id, cursor=cursor, limit=2))
        found += [signal.sequence for signal in page.signals]
        cursor = page.next_cursor
    assert (found, cursor) == ([1, 2, 3, 4, 5], None)


@pytest.mark.parametrize(("asked", "payload"), [(False, None), (True, b"secret")])
def test_payloads_of_signals_are_shown_when_asked_for(book, asked, payload):
    execution_id = signalled(book, 1)
    [signal] = book.run(ListSignalsArgs(execution_id=execution_id, with_payloads=asked)).signals
    assert (signal.signal_name, signal.payload) == ("name-1", payload)

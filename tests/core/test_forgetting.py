"""What was remembered is removed once its window is over, and not before."""

import pytest

from flowfabric.core.commands import DedupForgotten, ForgetDedupArgs
from flowfabric.core.records import Dedup
from tests.core.harness import START_MS, new_execution_id


@pytest.fixture
def dedup(book):
    """A remembered answer whose window is over in ten milliseconds."""
    scope = f"{new_execution_id()}/signal"
    found = Dedup(scope=scope, dedup_key="once", digest=b"d", value=b"v", expires_at=START_MS + 10)
    book.put(found)
    return found


def test_it_is_kept_while_its_window_is_open(book, dedup):
    book.advance(9)
    with book.unchanged():
        assert book.run(ForgetDedupArgs(dedup_id=dedup.identity)) == DedupForgotten(action="kept")


def test_it_is_removed_when_its_window_is_over(book, dedup):
    book.advance(10)
    assert book.run(ForgetDedupArgs(dedup_id=dedup.identity)) == DedupForgotten(action="forgotten")
    assert book.find(Dedup, dedup.identity) is None


def test_one_that_is_gone_is_nobodys_fault(book, dedup):
    book.advance(10)
    book.run(ForgetDedupArgs(dedup_id=dedup.identity))
    with book.unchanged():
        assert book.run(ForgetDedupArgs(dedup_id=dedup.identity)) == DedupForgotten(action="gone")

"""Index rows follow from records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from flowfabric.contracts.limits import PRIORITY_MAX, SAFE_INTEGER_MAX
from flowfabric.contracts.states import BlockingReason
from flowfabric.core.indexes import (
    AGEING_MS_PER_DOUBLING,
    FOREVER,
    HEAD_START_MS_MAX,
    claim_order,
    index_rows,
    scope_of,
)
from flowfabric.core.records import Blocker, Dedup, JournalRecord, Payload, Reservation, StreamMeta
from flowfabric.core.vocabulary import BlockerKind
from tests.core import requests
from tests.core.harness import INSTANCE, LANE, NAMESPACE, START_MS, TTL_MS, Rulebook

LANE_SCOPE = scope_of(NAMESPACE, LANE)
priorities = st.integers(0, PRIORITY_MAX)
instants = st.integers(0, 2**41)


@given(since=instants, one=priorities, other=priorities)
def test_of_what_waits_equally_long_the_higher_priority_goes_first(since, one, other):
    assert (one > other) == (claim_order(one, since) < claim_order(other, since))


@given(priority=priorities, one=instants, other=instants)
def test_of_equal_priorities_what_waits_longer_goes_first(priority, one, other):
    assert (one < other) == (claim_order(priority, one) < claim_order(priority, other))


@given(low=priorities, high=priorities, since=instants, returns=st.booleans())
def test_nothing_waits_longer_than_the_greatest_head_start_for_what_came_later(low, high, since, returns):
    later = since + HEAD_START_MS_MAX + 1
    assert claim_order(low, since) < claim_order(high, later, returns=returns)


@pytest.mark.parametrize("priority", [0, 1, 3, 7, 1023])
def test_a_doubling_of_priority_is_worth_the_documented_waiting(priority):
    earlier, later = 0, AGEING_MS_PER_DOUBLING
    assert claim_order(2 * priority + 1, later) == claim_order(priority, earlier)


@given(priority=priorities, since=instants, returns=st.booleans())
def test_the_place_in_the_queue_is_a_number_that_every_store_keeps_exactly(priority, since, returns):
    assert 0 <= claim_order(priority, since, returns=returns) <= SAFE_INTEGER_MAX


def test_work_that_resumes_goes_before_fresh_work_of_its_priority(book):
    resumed, fence = book.start()
    book.run(requests.delay(resumed, fence, book.now + 5))
    fresh = book.create()
    book.advance(5)
    book.run(requests.promote(resumed))
    [first, second] = sorted(row for row in book.rows() if row[0] == "eligible")
    assert (first[3], second[3]) == (resumed, fresh)


class TestExecution:
    def test_one_that_waits(self, book):
        execution_id = book.create(priority=3)
        assert book.rows(execution_id) == {
            ("created", NAMESPACE, START_MS, execution_id),
            ("eligible", scope_of(NAMESPACE, LANE, ""), claim_order(3, START_MS), execution_id),
        }

    def test_one_that_is_delayed(self, book):
        execution_id = book.create(delay_until=START_MS + 5)
        rows = book.rows(execution_id)
        assert ("delayed", LANE_SCOPE, START_MS + 5, execution_id) in rows
        assert ("due_delay", "", START_MS + 5, execution_id) in rows

    @pytest.mark.parametrize("kind", [kind for kind in BlockerKind if kind is not BlockerKind.TIME])
    def test_one_that_is_blocked_stands_under_its_first_blocker(self, book, kind):
        execution_id = book.create()
        execution = book.execution(execution_id)
        execution.blockers = (Blocker(kind=kind, reason=BlockingReason.PAUSED_BY_POLICY),)
        book.put(execution)
        assert ("blocked", scope_of(LANE_SCOPE, kind), START_MS, execution_id) in book.rows(execution_id)

    def test_one_that_runs(self, book):
        execution_id, _ = book.start()
        expires_at = START_MS + TTL_MS
        assert book.rows(execution_id) == {
            ("created", NAMESPACE, START_MS, execution_id),
            ("active", LANE_SCOPE, expires_at, execution_id),
            ("due_lease", "", expires_at, execution_id),
            ("worker_leases", scope_of(NAMESPACE, INSTANCE), expires_at, execution_id),
        }

    def test_one_that_has_ended(self, book):
        execution_id = book.create(execution_deadline_at=START_MS + 5)
        book.advance(3)
        book.run(requests.cancel(execution_id))
        assert book.rows(execution_id) == {
            ("created", NAMESPACE, START_MS, execution_id),
            ("terminal", scope_of(LANE_SCOPE, "cancelled"), START_MS + 3, execution_id),
            ("retention", "", START_MS + 3, execution_id),
        }

    def test_one_that_is_suspended_stands_where_its_suspension_says(self, book):
        execution_id, _ = book.start()
        book.suspend(execution_id, timeout_at=START_MS + 5)
        rows = book.rows(execution_id)
        assert ("suspended", LANE_SCOPE, START_MS + 5, execution_id) in rows
        assert ("due_suspension", "", START_MS + 5, execution_id) in rows

    def test_a_suspension_without_a_timeout_sorts_behind_all_others(self, book):
        execution_id, _ = book.start()
        book.suspend(execution_id)
        assert ("suspended", LANE_SCOPE, FOREVER, execution_id) in book.rows(execution_id)
        assert "due_suspension" not in book.indexes(execution_id)


class TestOthers:
    def test_a_reservation_is_due_by_its_window_or_while_open_by_its_age(self):
        reservation = Reservation(
            partition_tag="{fp:1}",
            namespace="n",
            idempotency_key="k",
            execution_id="e",
            digest=b"",
            created_at=1,
            expires_at=9,
        )
        identity = reservation.identity
        assert index_rows(reservation) == {("due_reservation", "open", 1, identity)}
        confirmed = replace(reservation, confirmed=True)
        assert index_rows(confirmed) == {("due_reservation", "confirmed", 9, identity)}

    def test_a_remembered_answer_is_due_at_the_end_of_its_window(self):
        dedup = Dedup(scope="e/signal", dedup_key="k", digest=b"", value=b"", expires_at=7)
        assert index_rows(dedup) == {("due_dedup", "", 7, "e/signal/k")}

    def test_journals_of_the_generations_are_listed_apart(self):
        entry = JournalRecord(execution_id="e", generation=2, name="n", ordinal=1, kind="step", recorded_at=3)
        assert index_rows(entry) == {("journal", scope_of("e", "2"), 3, entry.identity)}

    def test_a_stream_is_due_only_with_live_frames(self):
        stream = StreamMeta(execution_id="e", attempt_index=0, created_at=1)
        assert index_rows(stream) == set()
        live = replace(stream, live_expires_at=4)
        assert index_rows(live) == {("due_live_frames", "", 4, "e/0")}

    def test_a_payload_is_in_no_index(self):
        assert index_rows(Payload(execution_id="e", data=b"")) == set()


def test_rows_of_another_lane_or_namespace_never_share_a_scope():
    book = Rulebook()
    one, other = book.create(lane_id="a"), book.create(lane_id="b")
    scopes = [{row[1] for row in book.rows(each) if row[0] == "eligible"} for each in (one, other)]
    assert scopes[0].isdisjoint(scopes[1])

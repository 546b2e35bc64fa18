"""Priority, progress and tags."""

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import (
    GetExecutionTagArgs,
    PriorityChanged,
    SetExecutionTagArgs,
    SetExecutionTagsArgs,
    TagsSet,
)
from flowfabric.contracts.states import BlockingReason
from flowfabric.core.events import Family
from flowfabric.core.records import Blocker
from flowfabric.core.vocabulary import BlockerKind
from tests.core import requests
from tests.core.fences import refused_fences
from tests.core.harness import START_MS, new_execution_id


def place(book, execution_id):
    [sort] = [row[2] for row in book.rows(execution_id) if row[0] == "eligible"]
    return sort


class TestPriority:
    @pytest.mark.scenario("PRIO-001")
    def test_a_higher_priority_comes_first(self, book):
        execution_id, other = book.create(), book.create()
        assert book.run(requests.prioritise(execution_id, 10)) == PriorityChanged(execution_id=execution_id)
        assert book.execution(execution_id).priority == 10
        assert place(book, execution_id) < place(book, other)

    @pytest.mark.scenario("PRIO-001")
    def test_one_event_tells_who_did_it(self, book):
        execution_id = book.create()
        book.run(requests.prioritise(execution_id, 500), actor="ann")
        [event] = [event for event in book.events if event.family is Family.OPERATOR]
        assert event.name == "priority_changed"
        assert event.data == {"actor": "ann", "old": 0, "new": 500}

    @pytest.mark.scenario("PRIO-002")
    @pytest.mark.parametrize(("asked", "stored"), [(10_000, 9_000), (-5, 0), (50, 50)])
    def test_it_is_clamped(self, book, asked, stored):
        execution_id = book.create(priority=1)
        book.run(requests.prioritise(execution_id, asked))
        assert book.execution(execution_id).priority == stored

    @pytest.mark.scenario("PRIO-002")
    def test_the_order_follows(self, book):
        by_priority = {priority: book.create(priority=priority) for priority in (0, 50, 9_000)}
        places = [place(book, by_priority[priority]) for priority in (9_000, 50, 0)]
        assert places == sorted(places)

    def test_within_a_priority_the_older_one_comes_first(self, book):
        older = book.create()
        book.advance(1)
        assert place(book, older) < place(book, book.create())

    def test_the_same_priority_changes_nothing(self, book):
        execution_id = book.create(priority=9_000)
        with book.unchanged():
            book.run(requests.prioritise(execution_id, 10_000))

    def test_delayed_and_blocked_work_can_be_moved_too(self, book):
        delayed, blocked = book.create(delay_until=START_MS + 1), book.create()
        execution = book.execution(blocked)
        execution.blockers = (Blocker(kind=BlockerKind.QUOTA, reason=BlockingReason.WAITING_FOR_QUOTA),)
        book.put(execution)
        for execution_id in (delayed, blocked):
            book.run(requests.prioritise(execution_id, 5))
            assert book.execution(execution_id).priority == 5

    @pytest.mark.scenario("PRIO-003")
    def test_what_does_not_wait_cannot_be_moved(self, book):
        running, _ = book.start()
        suspended, _ = book.start()
        book.suspend(suspended)
        ended = book.create()
        book.run(requests.cancel(ended))
        for execution_id in (running, suspended, ended):
            with book.refuses(errors.ExecutionNotEligible):
                book.run(requests.prioritise(execution_id, 5))

    def test_another_lane_is_refused(self, book):
        execution_id = book.create()
        with book.refuses(errors.ExecutionNotEligible):
            book.run(requests.prioritise(execution_id, 5, lane_id="other"))

    def test_an_unknown_execution(self, book):
        with book.refuses(errors.ExecutionNotFound):
            book.run(requests.prioritise(new_execution_id(), 5))


class TestProgress:
    def progress(self, book, execution_id):
        execution = book.execution(execution_id)
        return execution.progress_pct, execution.progress_message

    @pytest.mark.scenario("LIFE-021")
    def test_what_is_not_given_keeps_its_value(self, book):
        execution_id, fence = book.start()
        assert self.progress(book, execution_id) == (None, None)
        book.run(requests.progress(execution_id, fence, progress_pct=10, progress_message="starting"))
        book.run(requests.progress(execution_id, fence, progress_pct=75))
        assert self.progress(book, execution_id) == (75, "starting")
        book.run(requests.progress(execution_id, fence, progress_message="winding down"))
        assert self.progress(book, execution_id) == (75, "winding down")

    @pytest.mark.scenario("LIFE-021")
    def test_nothing_given_changes_nothing(self, book):
        execution_id, fence = book.start()
        with book.unchanged():
            book.run(requests.progress(execution_id, fence))

    def test_it_is_no_heartbeat(self, book):
        execution_id, fence = book.start()
        rows = book.rows(execution_id)
        book.advance(1)
        book.run(requests.progress(execution_id, fence, progress_pct=1))
        assert book.rows(execution_id) == rows
        assert book.execution(execution_id).progress_updated_at == book.now

    @refused_fences
    def test_a_fence_that_is_not_current_is_refused(self, book, situation):
        execution_id, fence, error = situation(book)
        with book.refuses(error):
            book.run(requests.progress(execution_id, fence))


class TestTags:
    @pytest.mark.scenario("TAG-001")
    def test_tags_are_added_and_replaced_and_the_others_stay(self, book):
        execution_id = book.create(tags={"a.a": "1", "a.b": "1"})
        book.advance(1)
        outcome = book.run(SetExecutionTagsArgs(execution_id=execution_id, tags={"a.b": "2", "a.c": "2"}))
        assert outcome == TagsSet(count=2)
        execution = book.execution(execution_id)
        assert execution.tags == {"a.a": "1", "a.b": "2", "a.c": "2"}
        assert (execution.last_mutation_at, execution.last_transition_at) == (book.now, START_MS)

    @pytest.mark.scenario("TAG-005")
    def test_one_tag_is_set_and_read(self, book):
        execution_id = book.create()
        outcome = book.run(SetExecutionTagArgs(execution_id=execution_id, key="a.b", value="c"))
        assert outcome == TagsSet(count=1)
        with book.unchanged():
            assert book.run(GetExecutionTagArgs(execution_id=execution_id, key="a.b")) == "c"
            assert book.run(GetExecutionTagArgs(execution_id=execution_id, key="a.c")) is None

    @pytest.mark.scenario("TAG-005")
    def test_an_unknown_execution_has_no_tags_and_gets_none(self, book):
        execution_id = new_execution_id()
        assert book.run(GetExecutionTagArgs(execution_id=execution_id, key="a.b")) is None
        with book.refuses(errors.ExecutionNotFound):
            book.run(SetExecutionTagArgs(execution_id=execution_id, key="a.b", value="c"))

    def test_tags_of_another_namespace_are_not_shown(self, book):
        execution_id = book.create(tags={"a.b": "c"})
        command = GetExecutionTagArgs(execution_id=execution_id, key="a.b")
        assert book.run(command, namespace="other") is None

    @pytest.mark.scenario("TAG-002")
    @pytest.mark.parametrize(
        "key",
        [
            "no_dot_here",
            "Cairn.x",
            "1a.x",
            "ca-irn.x",
            "cairn.",
            "cairn..x",
            "",
            "a.b c",
            'a."b',
            "a.B",
            "a.b-c",
        ],
    )
    def test_a_bad_key_stores_nothing_of_the_others(self, book, key):
        execution_id = book.create()
        with book.refuses(errors.InvalidTagKey):
            book.run(SetExecutionTagsArgs(execution_id=execution_id, tags={"a.b": "c", key: "c"}))
        with book.refuses(errors.InvalidTagKey):
            book.run(SetExecutionTagArgs(execution_id=execution_id, key=key, value="c"))

    @pytest.mark.scenario("TAG-002")
    def test_an_empty_list_is_refused(self, book):
        execution_id = book.create()
        with book.refuses(errors.InvalidInput):
            book.run(SetExecutionTagsArgs(execution_id=execution_id, tags={}))

    def test_the_limit_counts_what_is_there_already(self, book):
        execution_id = book.create(tags={f"a.t{number}": "" for number in range(64)})
        book.run(SetExecutionTagArgs(execution_id=execution_id, key="a.t0", value="new"))
        with book.refuses(errors.InvalidInput):
            book.run(SetExecutionTagArgs(execution_id=execution_id, key="a.t64", value="new"))

    def test_an_ended_execution_can_be_tagged(self, book):
        execution_id = book.create()
        book.run(requests.cancel(execution_id))
        book.run(SetExecutionTagArgs(execution_id=execution_id, key="a.b", value="c"))

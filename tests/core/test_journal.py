"""The journal: what was done is found again, and never recorded twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric.contracts.executions import CompleteExecutionArgs
from flowfabric.contracts.journal import JournalKind, RecordSleepArgs, RecordStepArgs
from flowfabric.contracts.limits import U32_MAX
from flowfabric.contracts.states import LifecyclePhase
from flowfabric.core.indexes import JOURNAL
from flowfabric.core.journal_pointer import journal_pointer, parse_journal_pointer
from flowfabric.core.records import JournalRecord, Signal, Suspension, journal_identity
from flowfabric.core.rules.journal import journal_entry
from flowfabric.core.rules.transitions import interrupt_attempt, make_runnable, release_lease
from flowfabric.core.work import Envelope, Work, WorkingSet
from flowfabric.errors import ExecutionNotActive, ExecutionNotFound, JournalMismatch, LeaseExpired, StaleLease
from tests.core.harness import TTL_MS, new_execution_id, new_id

OTHER_ID = "00000000-0000-4000-8000-ffffffffffff"


def step(execution_id, fence, value=b"1", **fields):
    defaults = {
        "execution_id": execution_id,
        "fence": fence,
        "attempt_index": 0,
        "name": "fetch",
        "ordinal": 0,
    }
    return RecordStepArgs(**{**defaults, "value": value, **fields})


def sleep(execution_id, fence, wake_at, **fields):
    defaults = {"execution_id": execution_id, "fence": fence, "attempt_index": 0, "name": "nap", "ordinal": 0}
    return RecordSleepArgs(**{**defaults, "wake_at": wake_at, **fields})


def recorded(book, execution_id, name, ordinal=0, generation=0):
    return book.find(JournalRecord, journal_identity(execution_id, generation, name, ordinal))


class TestSteps:
    def test_a_step_is_recorded_with_its_value(self, book):
        execution_id, fence = book.start()
        entry = book.run(step(execution_id, fence, b"\x00\xff")).entry
        assert (entry.name, entry.ordinal, entry.kind) == ("fetch", 0, JournalKind.STEP)
        assert (entry.value, entry.recorded_at) == (b"\x00\xff", book.now)

    def test_the_same_step_again_gets_the_first_answer(self, book):
        execution_id, fence = book.start()
        first = book.run(step(execution_id, fence, b"first"))
        book.advance(10)
        with book.unchanged():
            assert book.run(step(execution_id, fence, b"second")) == first

    def test_ordinals_and_names_tell_steps_apart(self, book):
        execution_id, fence = book.start()
        places = [("a", 0), ("a", 1), ("b", 0), ("a/1", 0)]
        for name, ordinal in places:
            book.run(step(execution_id, fence, f"{name}{ordinal}".encode(), name=name, ordinal=ordinal))
        values = [recorded(book, execution_id, name, ordinal).value for name, ordinal in places]
        assert values == [b"a0", b"a1", b"b0", b"a/10"]

    def test_a_retry_finds_what_the_first_attempt_recorded(self, book):
        execution_id, fence = book.start()
        first = book.run(step(execution_id, fence, b"first"))
        execution = book.execution(execution_id)
        execution.attempt = type(execution.attempt)(
            **{n: getattr(execution.attempt, n) for n in execution.attempt.__struct_fields__}
            | {"attempt_index": 1}
        )
        book.put(execution)
        assert book.run(step(execution_id, fence, b"second", attempt_index=1)) == first

    def test_another_generation_has_a_journal_of_its_own(self, book):
        execution_id, fence = book.start()
        book.run(step(execution_id, fence, b"first"))
        execution = book.execution(execution_id)
        execution.journal_generation = 1
        book.put(execution)
        assert book.run(step(execution_id, fence, b"second")).entry.value == b"second"
        assert recorded(book, execution_id, "fetch").value == b"first"

    def test_entries_are_indexed_by_execution_and_generation(self, book):
        execution_id, fence = book.start()
        book.run(step(execution_id, fence))
        identity = journal_identity(execution_id, 0, "fetch", 0)
        assert (JOURNAL, f"{execution_id}\x1f0", book.now, identity) in book.rows(execution_id)

    def test_the_execution_is_not_written(self, book):
        execution_id, fence = book.start()
        before = book.data[f"execution/{execution_id}"]
        book.run(step(execution_id, fence))
        assert book.data[f"execution/{execution_id}"] == before


class TestSleeps:
    def test_the_first_instant_is_kept(self, book):
        execution_id, fence = book.start()
        first = book.run(sleep(execution_id, fence, 5_000))
        with book.unchanged():
            assert book.run(sleep(execution_id, fence, 9_000)) == first
        assert first.entry.wake_at == 5_000
        assert first.entry.kind is JournalKind.SLEEP


class TestRefusals:
    def test_another_kind_at_the_same_place_is_named(self, book):
        execution_id, fence = book.start()
        book.run(step(execution_id, fence, name="pay", ordinal=2))
        with book.refuses(JournalMismatch) as caught:
            book.run(sleep(execution_id, fence, 5_000, name="pay", ordinal=2))
        assert caught[0].details == {
            "name": "pay",
            "ordinal": "2",
            "recorded_kind": "step",
            "requested_kind": "sleep",
        }

    @pytest.mark.parametrize("part", ["lease_id", "lease_epoch", "attempt_id"])
    def test_one_wrong_part_of_the_fence_is_refused(self, book, part):
        execution_id, fence = book.start()
        wrong = {name: getattr(fence, name) for name in fence.__struct_fields__}
        wrong[part] = 9 if part == "lease_epoch" else OTHER_ID
        with book.refuses(StaleLease):
            book.run(step(execution_id, type(fence)(**wrong)))

    def test_another_attempt_index_is_refused(self, book):
        execution_id, fence = book.start()
        with book.refuses(StaleLease):
            book.run(step(execution_id, fence, attempt_index=1))

    def test_an_expired_lease_records_nothing(self, book):
        execution_id, fence = book.start()
        book.advance(TTL_MS)
        with book.refuses(LeaseExpired):
            book.run(step(execution_id, fence))

    def test_an_ended_execution_records_nothing(self, book):
        execution_id, fence = book.start()
        book.run(CompleteExecutionArgs(execution_id=execution_id, fence=fence, attempt_index=0))
        with book.refuses(ExecutionNotActive):
            book.run(sleep(execution_id, fence, 5_000))

    def test_an_unknown_execution_is_not_found(self, book):
        _, fence = book.start()
        with book.refuses(ExecutionNotFound):
            book.run(step(new_execution_id(), fence))

    def test_another_namespace_sees_no_execution(self, book):
        execution_id, fence = book.start()
        with book.refuses(ExecutionNotFound):
            book.run(step(execution_id, fence), namespace="other")


def suspend_and_end(book, execution_id, pointer, *, signals=(), close_reason="resumed", **fields):
    """Put an execution where it is when a suspension has ended: it waits for its resumed claim."""
    execution = book.execution(execution_id)
    suspension_id = new_id()
    book.put(
        Suspension(
            execution_id=execution_id,
            suspension_id=suspension_id,
            namespace=execution.namespace,
            lane_id=execution.lane_id,
            attempt_index=fields.get("attempt_index", execution.attempt.attempt_index),
            waitpoint_ids=(),
            waitpoint_keys=(),
            reason_code="waiting_for_signal",
            requested_by="worker",
            condition=b"",
            policy=b"",
            created_at=book.now,
            closed_at=book.now,
            close_reason=close_reason,
            continuation_metadata_pointer=pointer,
            satisfier_signals=tuple(signals),
        )
    )
    work = working_on(book)
    release_lease(work, execution, "suspend")
    interrupt_attempt(work, execution, suspension_id)
    make_runnable(work, execution)
    execution.resumed_suspension_id = suspension_id
    assert execution.phase is LifecyclePhase.RUNNABLE
    book.put(execution)


def working_on(book):
    working_set = WorkingSet()
    working_set.put_loaded(book.now, ())
    return Work(working_set, Envelope(request_id="test"))


def put_signal(book, execution_id, sequence, payload=None, waitpoint_id=OTHER_ID):
    book.put(
        Signal(
            execution_id=execution_id,
            sequence=sequence,
            signal_id=new_id(),
            waitpoint_id=waitpoint_id,
            waitpoint_key="key",
            signal_name=f"signal-{sequence}",
            signal_category="approval",
            source_type="user",
            source_identity="alice",
            target_scope="waitpoint",
            accepted_at=book.now,
            effect="resume_condition_satisfied",
            payload=payload,
            payload_encoding="json",
            correlation_id="c-1",
        )
    )


class TestResumption:
    def test_the_signals_of_the_wait_are_recorded_by_the_resumed_claim(self, book):
        execution_id, _ = book.start()
        put_signal(book, execution_id, 2, b"second")
        put_signal(book, execution_id, 1, b"\xff\x00")
        suspend_and_end(book, execution_id, "journal:wait:1:approval", signals=(2, 1))
        book.claim(execution_id)
        entry = journal_entry(recorded(book, execution_id, "approval", 1))
        assert (entry.kind, entry.recorded_at, entry.timed_out) == (JournalKind.WAIT, book.now, False)
        assert [signal.signal_name for signal in entry.signals] == ["signal-1", "signal-2"]
        first = entry.signals[0]
        assert (first.payload, first.payload_encoding, first.correlation_id) == (b"\xff\x00", "json", "c-1")
        assert (first.signal_category, first.source_type, first.source_identity) == (
            "approval",
            "user",
            "alice",
        )

    @pytest.mark.parametrize(
        ("close_reason", "timed_out"),
        [("timed_out_auto_resume", True), ("resumed", False), ("operator", False)],
    )
    def test_a_wait_without_signals_says_whether_its_time_was_over(self, book, close_reason, timed_out):
        execution_id, _ = book.start()
        suspend_and_end(book, execution_id, "journal:wait:0:approval", close_reason=close_reason)
        book.claim(execution_id)
        entry = journal_entry(recorded(book, execution_id, "approval"))
        assert (entry.signals, entry.timed_out) == ((), timed_out)

    def test_a_sleep_that_has_its_instant_already_is_left_as_it_is(self, book):
        execution_id, fence = book.start()
        book.run(sleep(execution_id, fence, 5_000))
        before = recorded(book, execution_id, "nap")
        suspend_and_end(book, execution_id, "journal:sleep:0:nap", close_reason="timed_out_auto_resume")
        book.claim(execution_id)
        assert recorded(book, execution_id, "nap") == before

    def test_a_wait_is_recorded_once(self, book):
        execution_id, _ = book.start()
        suspend_and_end(book, execution_id, "journal:wait:0:approval")
        book.claim(execution_id)
        before = recorded(book, execution_id, "approval")
        book.advance(10)
        suspend_and_end(book, execution_id, "journal:wait:0:approval", close_reason="timed_out_auto_resume")
        book.claim(execution_id)
        assert recorded(book, execution_id, "approval") == before

    @pytest.mark.parametrize("pointer", [None, "", "checkpoint", "journal:step:0:a", "journal:wait:x:a"])
    def test_a_suspension_that_asked_for_none_gets_no_entry(self, book, pointer):
        execution_id, _ = book.start()
        suspend_and_end(book, execution_id, pointer)
        book.claim(execution_id)
        assert not [key for key in book.data if key.startswith("journal/")]

    def test_a_wait_of_an_earlier_attempt_is_not_recorded_again(self, book):
        execution_id, _ = book.start()
        suspend_and_end(book, execution_id, "journal:wait:0:approval", attempt_index=5)
        book.claim(execution_id)
        assert recorded(book, execution_id, "approval") is None

    def test_a_signal_that_was_removed_is_left_out(self, book):
        execution_id, _ = book.start()
        put_signal(book, execution_id, 1)
        suspend_and_end(book, execution_id, "journal:wait:0:approval", signals=(1, 2))
        book.claim(execution_id)
        entry = journal_entry(recorded(book, execution_id, "approval"))
        assert [signal.signal_name for signal in entry.signals] == ["signal-1"]

    def test_the_ended_suspension_stays_known(self, book):
        execution_id, _ = book.start()
        suspend_and_end(book, execution_id, "journal:wait:0:approval")
        before = book.execution(execution_id).resumed_suspension_id
        book.claim(execution_id)
        assert book.execution(execution_id).resumed_suspension_id == before

    def test_a_step_at_the_place_of_a_wait_is_a_mismatch(self, book):
        execution_id, _ = book.start()
        suspend_and_end(book, execution_id, "journal:wait:0:approval")
        fence = book.claim(execution_id)
        with book.refuses(JournalMismatch):
            book.run(step(execution_id, fence, name="approval"))


class TestPointer:
    @given(
        st.sampled_from([JournalKind.WAIT, JournalKind.SLEEP]),
        st.integers(0, U32_MAX),
        st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1, max_size=256),
    )
    def test_it_is_read_back_as_it_was_written(self, kind, ordinal, name):
        assert parse_journal_pointer(journal_pointer(kind, ordinal, name)) == (kind, ordinal, name)

    @pytest.mark.parametrize(
        "text",
        [
            "journal",
            "journal:wait",
            "journal:wait:0",
            "journal:wait:0:",
            "journal:wait::a",
            "journal:wait:-1:a",
            "journal:wait:\u0663:a",
            "journal:wait:4294967296:a",
            f"journal:wait:{'9' * 5_000}:a",
            f"journal:wait:0:{'a' * 257}",
            "Journal:wait:0:a",
            " journal:wait:0:a",
        ],
    )
    def test_other_text_is_not_a_pointer(self, text):
        assert parse_journal_pointer(text) is None

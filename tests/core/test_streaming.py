"""Appending frames: who may, what is kept, and what the summary becomes."""

import json

import pytest

from flowfabric.contracts.executions import CompleteExecutionArgs, FailExecutionArgs
from flowfabric.contracts.policy import ExecutionPolicy, RetryPolicy, StreamPolicy
from flowfabric.contracts.streams import (
    AppendFrameArgs,
    BestEffortMode,
    DurableMode,
    ReadSummaryArgs,
    SummaryMode,
)
from flowfabric.core.commands import ExpireLiveFramesArgs
from flowfabric.core.frames import decode_frame
from flowfabric.core.records import StreamMeta, StreamSummary
from flowfabric.core.rules.streaming import SUMMARY_WINDOW
from flowfabric.core.vocabulary import LeaseState
from flowfabric.errors import (
    Corruption,
    ExecutionNotFound,
    InvalidInput,
    RetentionLimitExceeded,
    StaleOwnerCannotAppend,
    StreamClosed,
)
from tests.core.harness import TTL_MS, new_execution_id, new_id

LIVE = BestEffortMode(ttl_ms=1_000)
OTHER_ID = "00000000-0000-4000-8000-ffffffffffff"


def frame(execution_id, fence, payload=b"text", **fields):
    defaults = {
        "execution_id": execution_id,
        "attempt_index": 0,
        "lease_id": fence.lease_id,
        "lease_epoch": fence.lease_epoch,
        "attempt_id": fence.attempt_id,
        "frame_type": "token",
        "payload": payload,
    }
    return AppendFrameArgs(**{**defaults, **fields})


def patch(execution_id, fence, document, **fields):
    return frame(execution_id, fence, json.dumps(document).encode(), mode=SummaryMode(), **fields)


def stream(book, execution_id, attempt_index=0):
    return book.get(StreamMeta, f"{execution_id}/{attempt_index}")


def document(book, execution_id):
    summary = book.run(ReadSummaryArgs(execution_id=execution_id, attempt_index=0))
    return json.loads(summary.document), summary.version


class TestOwner:
    def test_a_payload_above_the_cap_is_refused(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence, b"x" * 65_536))
        with book.refuses(RetentionLimitExceeded):
            book.run(frame(execution_id, fence, b"x" * 65_537))

    def test_the_caller_may_set_another_cap(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence, b"x" * 65_537, max_payload_bytes=70_000))
        with book.refuses(RetentionLimitExceeded):
            book.run(frame(execution_id, fence, b"xxx", max_payload_bytes=2))

    def test_the_payload_is_checked_before_the_owner(self, book):
        _, fence = book.start()
        with book.refuses(RetentionLimitExceeded):
            book.run(frame(new_execution_id(), fence, b"x" * 65_537))

    def test_an_unknown_execution_is_not_found(self, book):
        _, fence = book.start()
        with book.refuses(ExecutionNotFound):
            book.run(frame(new_execution_id(), fence))

    def test_an_execution_of_another_namespace_is_not_found(self, book):
        execution_id, fence = book.start()
        with book.refuses(ExecutionNotFound):
            book.run(frame(execution_id, fence), namespace="other")

    @pytest.mark.scenario("STREAM-002")
    def test_the_stream_of_a_completed_execution_is_closed(self, book):
        execution_id, fence = book.start()
        book.run(CompleteExecutionArgs(execution_id=execution_id, fence=fence, attempt_index=0))
        with book.refuses(StreamClosed):
            book.run(frame(execution_id, fence))

    def test_the_stream_is_closed_while_a_retry_waits(self, book):
        execution_id, fence = book.start(policy=ExecutionPolicy(retry_policy=RetryPolicy()))
        book.run(
            FailExecutionArgs(
                execution_id=execution_id,
                fence=fence,
                attempt_index=0,
                failure_reason="x",
                failure_category="x",
            )
        )
        with book.refuses(StreamClosed):
            book.run(frame(execution_id, fence))

    def test_nobody_writes_before_the_first_claim(self, book):
        _, fence = book.start()
        waiting = book.create()
        with book.refuses(StreamClosed):
            book.run(frame(waiting, fence))

    @pytest.mark.scenario("STREAM-032")
    @pytest.mark.parametrize(
        "stale",
        [{"lease_id": OTHER_ID}, {"lease_epoch": 2}, {"attempt_id": OTHER_ID}, {"attempt_index": 1}],
    )
    @pytest.mark.parametrize("mode", [DurableMode(), SummaryMode(), LIVE])
    def test_one_wrong_part_of_the_fence_is_refused(self, book, stale, mode):
        execution_id, fence = book.start()
        with book.refuses(StaleOwnerCannotAppend):
            book.run(frame(execution_id, fence, b"{}", mode=mode, **stale))

    def test_a_lapsed_lease_is_refused_from_the_instant_of_expiry(self, book):
        execution_id, fence = book.start()
        book.advance(TTL_MS - 1)
        book.run(frame(execution_id, fence))
        book.advance(1)
        with book.refuses(StaleOwnerCannotAppend):
            book.run(frame(execution_id, fence))

    @pytest.mark.parametrize("state", [LeaseState.EXPIRED, LeaseState.REVOKED])
    def test_a_lease_that_was_taken_away_is_refused(self, book, state):
        execution_id, fence = book.start()
        execution = book.execution(execution_id)
        lease = execution.lease
        execution.lease = type(lease)(
            **{name: getattr(lease, name) for name in lease.__struct_fields__} | {"state": state}
        )
        book.put(execution)
        with book.refuses(StaleOwnerCannotAppend):
            book.run(frame(execution_id, fence))


class TestAppending:
    @pytest.mark.scenario("STREAM-001")
    def test_entries_are_numbered_and_counted(self, book):
        execution_id, fence = book.start()
        first, second = (book.run(frame(execution_id, fence)) for _ in range(2))
        assert (first.entry_id, first.frame_count) == (f"{book.now}-0", 1)
        assert (second.entry_id, second.frame_count) == (f"{book.now}-1", 2)

    def test_ids_grow_even_when_the_clock_steps_back(self, book):
        execution_id, fence = book.start()
        before = book.now
        book.run(frame(execution_id, fence))
        book.advance(-500)
        assert book.run(frame(execution_id, fence)).entry_id == f"{before}-1"
        book.advance(600)
        assert book.run(frame(execution_id, fence, mode=LIVE)).entry_id == f"{before + 100}-0"

    @pytest.mark.scenario("STREAM-005")
    def test_a_frame_says_what_it_is(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence, timestamp=5))
        read = decode_frame(book.frames[0])
        assert read.fields == {
            "encoding": "utf8",
            "frame_type": "token",
            "mode": "durable",
            "source": "worker",
            "ts": "5",
        }
        assert list(read.fields) == sorted(read.fields)

    def test_the_optional_fields_are_there_when_they_were_given(self, book):
        execution_id, fence = book.start()
        given = {"encoding": "json", "source": "tool", "correlation_id": "c", "metadata_json": '{"step":1}'}
        book.run(frame(execution_id, fence, mode=LIVE, **given))
        fields = decode_frame(book.frames[0]).fields
        assert fields == {
            **given,
            "frame_type": "token",
            "mode": "best_effort",
            "ts": str(book.now),
            "ttl_ms": "1000",
        }

    def test_a_payload_may_be_any_bytes(self, book):
        execution_id, fence = book.start()
        payload = bytes(range(256))
        book.run(frame(execution_id, fence, payload))
        assert decode_frame(book.frames[0]).payload == payload

    def test_the_execution_is_not_written(self, book):
        execution_id, fence = book.start()
        before = book.data[f"execution/{execution_id}"]
        book.run(frame(execution_id, fence))
        assert book.data[f"execution/{execution_id}"] == before

    def test_a_request_that_is_sent_again_appends_nothing(self, book):
        execution_id, fence = book.start()
        first = book.run(frame(execution_id, fence), request_id="same")
        with book.unchanged():
            assert book.run(frame(execution_id, fence), request_id="same") == first

    def test_the_stream_knows_its_size(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence, b"123"))
        book.advance(10)
        book.run(frame(execution_id, fence, b"45", mode=LIVE))
        meta = stream(book, execution_id)
        assert (meta.frame_count, meta.total_bytes, meta.last_frame_at) == (2, 5, book.now)


class TestSummary:
    @pytest.mark.scenario("STREAM-017")
    def test_patches_build_a_document_with_versions(self, book):
        execution_id, fence = book.start()
        deltas = [{"a": 1, "b": {"c": 1}}, {"b": {"d": 2}}, {"a": None}]
        versions = [book.run(patch(execution_id, fence, delta)).summary_version for delta in deltas]
        assert versions == [1, 2, 3]
        assert document(book, execution_id) == ({"b": {"c": 1, "d": 2}}, 3)

    @pytest.mark.scenario("STREAM-019")
    def test_modes_may_be_mixed(self, book):
        execution_id, fence = book.start()
        answers = [
            book.run(frame(execution_id, fence)),
            book.run(patch(execution_id, fence, {"a": 1})),
            book.run(patch(execution_id, fence, {"a": 2})),
            book.run(frame(execution_id, fence)),
        ]
        assert [answer.summary_version for answer in answers] == [None, 1, 2, None]
        assert [answer.frame_count for answer in answers] == [1, 2, 3, 4]
        assert "summary_version" not in decode_frame(book.frames[0]).fields
        assert decode_frame(book.frames[2]).fields["summary_version"] == "2"

    def test_it_tells_when_it_was_first_and_last_patched(self, book):
        execution_id, fence = book.start()
        first = book.now
        book.run(patch(execution_id, fence, {"a": 1}))
        last = book.advance(50)
        book.run(patch(execution_id, fence, {"a": 2}))
        summary = book.run(ReadSummaryArgs(execution_id=execution_id, attempt_index=0))
        assert (summary.first_applied_ms, summary.last_updated_ms) == (first, last)
        assert summary.patch_kind == "json-merge-patch"

    def test_there_is_none_before_the_first_patch(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence))
        assert book.run(ReadSummaryArgs(execution_id=execution_id, attempt_index=0)) is None

    def test_attempts_do_not_share_one(self, book):
        execution_id, fence = book.start()
        book.run(patch(execution_id, fence, {"a": 1}))
        assert book.run(ReadSummaryArgs(execution_id=execution_id, attempt_index=1)) is None

    @pytest.mark.parametrize("namespace", ["other", "tenant"])
    def test_an_execution_one_may_not_see_has_none_to_read(self, book, namespace):
        execution_id = new_execution_id() if namespace == "tenant" else book.start()[0]
        with book.refuses(ExecutionNotFound):
            book.run(ReadSummaryArgs(execution_id=execution_id, attempt_index=0), namespace=namespace)

    @pytest.mark.parametrize("payload", [b"not json", b"[1]", b'{"a":' * 18 + b"1" + b"}" * 18])
    def test_a_payload_that_is_no_patch_is_refused(self, book, payload):
        execution_id, fence = book.start()
        book.run(patch(execution_id, fence, {"a": 1}))
        with book.refuses(InvalidInput):
            book.run(frame(execution_id, fence, payload, mode=SummaryMode()))

    def test_another_kind_of_patch_is_refused(self, book):
        execution_id, fence = book.start()
        with book.refuses(InvalidInput) as caught:
            book.run(frame(execution_id, fence, b"{}", mode=SummaryMode(patch_kind="json-patch")))
        assert caught[0].field == "mode.patch_kind"

    def test_a_stored_document_that_cannot_be_read_is_reported(self, book):
        execution_id, fence = book.start()
        book.run(patch(execution_id, fence, {"a": 1}))
        broken = book.get(StreamSummary, f"{execution_id}/0")
        broken.document = b"{"
        book.put(broken)
        with book.refuses(Corruption):
            book.run(patch(execution_id, fence, {"a": 1}))


class TestRetention:
    def test_an_explicit_window_is_exact(self, book):
        execution_id, fence = book.start()
        for _ in range(8):
            book.run(frame(execution_id, fence, retention_maxlen=3))
        meta = stream(book, execution_id)
        assert (meta.durable_retained, meta.frame_count) == (3, 8)

    def test_zero_keeps_everything(self, book):
        policy = ExecutionPolicy(stream_policy=StreamPolicy(retention_maxlen=2))
        execution_id, fence = book.start(policy=policy)
        for _ in range(5):
            book.run(frame(execution_id, fence, retention_maxlen=0))
        assert stream(book, execution_id).durable_retained == 5

    def test_the_policy_says_how_many_are_kept(self, book):
        policy = ExecutionPolicy(stream_policy=StreamPolicy(retention_maxlen=4))
        execution_id, fence = book.start(policy=policy)
        for _ in range(9):
            book.run(frame(execution_id, fence))
        assert stream(book, execution_id).durable_retained == 4

    def test_without_a_policy_the_default_window_is_trimmed_with_slack(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence))
        meta = stream(book, execution_id)
        meta.durable_retained = 10_099
        book.put(meta)
        book.run(frame(execution_id, fence))
        assert stream(book, execution_id).durable_retained == 10_100
        book.run(frame(execution_id, fence))
        assert stream(book, execution_id).durable_retained == 10_000

    def test_summary_frames_have_a_window_of_their_own(self, book):
        execution_id, fence = book.start()
        for _ in range(3):
            book.run(frame(execution_id, fence))
        for number in range(SUMMARY_WINDOW + 10):
            book.run(patch(execution_id, fence, {"n": number}))
        meta = stream(book, execution_id)
        assert (meta.durable_retained, meta.summary_retained) == (3, SUMMARY_WINDOW)
        assert document(book, execution_id) == ({"n": SUMMARY_WINDOW + 9}, SUMMARY_WINDOW + 10)

    def test_live_frames_never_push_out_others(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence))
        for _ in range(30):
            book.advance(100)
            book.run(frame(execution_id, fence, mode=BestEffortMode(ttl_ms=500, maxlen_floor=4)))
        meta = stream(book, execution_id)
        assert (meta.durable_retained, meta.live_retained) == (1, 10)


class TestLive:
    def test_the_first_rate_is_what_fills_the_floor(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence, mode=LIVE))
        assert stream(book, execution_id).live_rate_hz == 64 / 2

    def test_later_rates_are_a_moving_average(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence, mode=LIVE))
        book.advance(10)
        book.run(frame(execution_id, fence, mode=LIVE))
        assert stream(book, execution_id).live_rate_hz == pytest.approx(0.2 * 100 + 0.8 * 32)

    def test_frames_of_other_kinds_do_not_count_for_the_rate(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence, mode=LIVE))
        book.advance(10)
        book.run(frame(execution_id, fence))
        book.advance(10)
        book.run(frame(execution_id, fence, mode=LIVE))
        assert stream(book, execution_id).live_rate_hz == pytest.approx(0.2 * 50 + 0.8 * 32)

    def test_a_burst_is_kept_up_to_the_ceiling(self, book):
        execution_id, fence = book.start()
        mode = BestEffortMode(ttl_ms=60_000, maxlen_floor=2, maxlen_ceiling=20)
        for _ in range(50):
            book.run(frame(execution_id, fence, mode=mode))
        assert stream(book, execution_id).live_retained == 20

    def test_a_floor_above_the_ceiling_is_refused(self, book):
        execution_id, fence = book.start()
        mode = BestEffortMode(ttl_ms=1_000, maxlen_floor=5, maxlen_ceiling=4)
        with book.refuses(InvalidInput):
            book.run(frame(execution_id, fence, mode=mode))

    def test_the_longest_time_to_live_is_computed(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence, mode=BestEffortMode(ttl_ms=2**53 - 1)))
        assert stream(book, execution_id).live_retained == 1

    def test_live_frames_are_due_after_twice_their_time(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence, mode=LIVE))
        rows = [row for row in book.rows(execution_id) if row[0] == "due_live_frames"]
        assert rows == [("due_live_frames", "", book.now + 2_000, f"{execution_id}/0")]

    def test_a_short_lived_frame_does_not_shorten_the_time_of_others(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence, mode=LIVE))
        book.run(frame(execution_id, fence, mode=BestEffortMode(ttl_ms=1)))
        assert stream(book, execution_id).live_expires_at == book.now + 2_000

    def test_a_frame_after_the_expiry_begins_anew(self, book):
        execution_id, fence = book.start()
        for _ in range(3):
            book.run(frame(execution_id, fence, mode=LIVE))
        book.advance(2_000)
        book.run(frame(execution_id, fence, mode=LIVE))
        meta = stream(book, execution_id)
        assert (meta.live_retained, meta.live_rate_hz) == (1, 32)
        assert meta.live_expires_at == book.now + 2_000


class TestExpiry:
    def expire(self, book, execution_id):
        return book.run(ExpireLiveFramesArgs(stream_id=f"{execution_id}/0")).action

    def test_frames_that_are_not_due_are_kept(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence, mode=LIVE))
        book.advance(1_999)
        with book.unchanged():
            assert self.expire(book, execution_id) == "kept"

    def test_due_frames_are_removed_and_nothing_stays_due(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence))
        book.run(frame(execution_id, fence, mode=LIVE))
        book.advance(2_000)
        assert self.expire(book, execution_id) == "expired"
        meta = stream(book, execution_id)
        assert (meta.durable_retained, meta.live_retained, meta.frame_count) == (1, 0, 2)
        assert "due_live_frames" not in {row[0] for row in book.rows(execution_id)}

    def test_a_stream_without_live_frames_is_left_alone(self, book):
        execution_id, fence = book.start()
        book.run(frame(execution_id, fence))
        with book.unchanged():
            assert self.expire(book, execution_id) == "gone"

    def test_a_stream_that_is_gone_is_no_problem(self, book):
        with book.unchanged():
            assert self.expire(book, new_id()) == "gone"

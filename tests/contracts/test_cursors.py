"""Positions in a frame stream."""

from __future__ import annotations

import pytest

from flowfabric import minting
from flowfabric.contracts import streams
from flowfabric.contracts.check import check
from flowfabric.contracts.cursors import BEGINNING, END, START, StreamCursor, StreamCursorError
from flowfabric.contracts.wire import from_json, to_json
from flowfabric.errors import InvalidInput


@pytest.mark.parametrize("text", ["start", "end", "0-0", "123", "123-4", "1713100800150-0"])
def test_a_cursor_is_the_bare_string_on_the_wire(text):
    cursor = StreamCursor(text)
    assert str(cursor) == text
    assert to_json(cursor) == f'"{text}"'.encode()
    assert from_json(f'"{text}"', StreamCursor) == cursor


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "Empty"),
        ("-", "BareMarkerRejected"),
        ("+", "BareMarkerRejected"),
        *(
            (text, "Malformed")
            for text in (
                "abc", "-1", "1-", "-1-2", "1-2-3", "1.2", "1 2", "Start", "END", "1\u20132", "1\n", "٣"
            )
        ),
    ],
)  # fmt: skip
def test_a_malformed_cursor_is_refused_with_its_rule(text, rule):
    with pytest.raises(StreamCursorError) as caught:
        StreamCursor(text)
    assert caught.value.rule == rule


@pytest.mark.parametrize("text", ["-", "+", "", "x"])
def test_a_malformed_cursor_is_refused_on_the_wire(text):
    with pytest.raises(InvalidInput):
        from_json(f'"{text}"', StreamCursor)


def test_only_an_entry_is_concrete():
    assert not START.is_concrete
    assert not END.is_concrete
    assert BEGINNING.is_concrete


def test_a_position_has_milliseconds_and_a_sequence():
    assert StreamCursor("17-3").position == (17, 3)
    assert StreamCursor("17").position == (17, 0)


@pytest.mark.parametrize("marker", [START, END])
def test_a_tail_takes_a_concrete_cursor_only(marker):
    args = streams.TailFramesArgs(execution_id=minting.new_execution_id(), attempt_index=0, after=marker)
    with pytest.raises(InvalidInput) as caught:
        check(args)
    assert caught.value.field == "after"


@pytest.mark.parametrize("kind", [streams.ReadFramesArgs, streams.TailFramesArgs])
@pytest.mark.parametrize(
    ("limit", "rule"),
    [(0, "count_limit must be >= 1"), (10_001, "count_limit_exceeds_hard_cap")],
)
def test_a_count_limit_outside_its_range_is_refused(kind, limit, rule):
    args = kind(execution_id=minting.new_execution_id(), attempt_index=0, count_limit=limit)
    with pytest.raises(InvalidInput) as caught:
        check(args)
    assert caught.value.rule == rule


@pytest.mark.parametrize("limit", [1, 10_000])
def test_a_count_limit_at_the_edge_is_accepted(limit):
    check(streams.ReadFramesArgs(execution_id=minting.new_execution_id(), attempt_index=0, count_limit=limit))

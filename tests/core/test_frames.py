"""Frames as bytes, and the positions in a stream as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric.core.frames import (
    POSITION_MAX,
    decode_frame,
    encode_frame,
    entry_id,
    parse_position,
    stream_key,
    stream_keys,
)
from flowfabric.core.work import Frame
from flowfabric.errors import StoreCorrupt

PARTS = st.integers(0, POSITION_MAX)


@given(st.dictionaries(st.text(), st.text(), max_size=4), st.binary(max_size=40))
def test_a_frame_comes_back_with_sorted_fields_and_the_same_bytes(fields, payload):
    frame = decode_frame(encode_frame("stream", (5, 2), fields, payload))
    assert (frame.id, list(frame.fields.items()), frame.payload) == ("5-2", sorted(fields.items()), payload)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03"])
def test_other_bytes_are_reported_as_corrupt_and_named(data):
    with pytest.raises(StoreCorrupt) as caught:
        decode_frame(Frame("stream", 5, 2, data))
    assert caught.value.details == {"stream": "stream", "entry_id": "5-2"}


@given(PARTS, PARTS)
def test_an_entry_id_is_read_back_as_its_position(ms, seq):
    assert parse_position(entry_id((ms, seq)), missing_seq=0) == (ms, seq)


def test_the_caller_says_what_a_missing_sequence_means():
    assert parse_position("12", missing_seq=0) == (12, 0)
    assert parse_position("12", missing_seq=POSITION_MAX) == (12, POSITION_MAX)


@pytest.mark.parametrize("digits", ["9" * 19, "1" + "0" * 5_000, str(POSITION_MAX + 1)])
def test_numbers_beyond_every_entry_are_cut_to_the_maximum(digits):
    assert parse_position(f"{digits}-{digits}", missing_seq=0) == (POSITION_MAX, POSITION_MAX)


def test_leading_zeros_do_not_matter():
    assert parse_position("0" * 6_000 + "7-007", missing_seq=0) == (7, 7)


def test_every_part_of_a_stream_begins_with_the_execution():
    keys = stream_keys("{fp:7}:execution", 3)
    assert keys == tuple(f"{{fp:7}}:execution/3/{part}" for part in ("durable", "summary", "live"))
    assert keys[0] == stream_key("{fp:7}:execution", 3, "durable")

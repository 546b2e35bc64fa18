"""Frames as stores keep them: the streams they are in, their order, and their bytes.

An attempt has one frame stream for its readers. Stores keep it as three, one for each way of
keeping frames, so that trimming or expiring the frames of one kind never touches the others.
Entry ids increase strictly over all three, so merging them by id gives the one stream back.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flowfabric import errors
from flowfabric.contracts.streams import StreamFrame
from flowfabric.core.work import Frame

Position = tuple[int, int]
"""Milliseconds and sequence of an entry."""

DURABLE: Final = "durable"
SUMMARY: Final = "summary"
LIVE: Final = "live"
PARTS: Final = (DURABLE, SUMMARY, LIVE)

BEFORE_ALL: Final = (0, 0)
POSITION_MAX: Final = 2**63 - 1
"""Above every part of an entry id, and still an integer that each store can hold."""


class _Stored(msgspec.Struct, frozen=True):
    fields: dict[str, str]
    payload: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Stored).decode


def stream_key(execution_id: str, attempt_index: int, part: str) -> str:
    """The key under which a store keeps one part of an attempt's stream."""
    return f"{execution_id}/{attempt_index}/{part}"


def stream_keys(execution_id: str, attempt_index: int) -> tuple[str, ...]:
    """The keys of all parts of an attempt's stream."""
    return tuple(stream_key(execution_id, attempt_index, part) for part in PARTS)


def entry_id(position: Position) -> str:
    """The id of an entry, as readers see it.

    >>> entry_id((1760000003000, 2))
    '1760000003000-2'
    """
    return f"{position[0]}-{position[1]}"


def parse_position(text: str, *, missing_seq: int) -> Position:
    """The position that a concrete cursor names; numbers above every entry are cut to the maximum.

    >>> parse_position("5", missing_seq=0), parse_position("5-7", missing_seq=0)
    ((5, 0), (5, 7))
    """
    ms, _, seq = text.partition("-")
    return _number(ms), _number(seq) if seq else missing_seq


def _number(digits: str) -> int:
    significant = digits.lstrip("0")
    if len(significant) > len(str(POSITION_MAX)):
        return POSITION_MAX
    return min(int(significant or "0"), POSITION_MAX)


def encode_frame(stream: str, position: Position, fields: dict[str, str], payload: bytes) -> Frame:
    """A frame to append to one part of a stream."""
    ms, seq = position
    return Frame(stream, ms, seq, _encode(_Stored(dict(sorted(fields.items())), payload)))


def decode_frame(frame: Frame) -> StreamFrame:
    """Read a frame back, its fields in the order of their names.

    Raises:
        StoreCorrupt: the bytes are not a frame.
    """
    position = entry_id((frame.ms, frame.seq))
    try:
        stored = _decode(frame.data)
    except msgspec.DecodeError as error:
        raise errors.StoreCorrupt(stream=frame.stream, entry_id=position) from error
    return StreamFrame(id=position, fields=stored.fields, payload=stored.payload)

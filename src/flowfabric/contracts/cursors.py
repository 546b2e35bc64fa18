"""Positions in a frame stream: the words ``start`` and ``end``, or an entry's id."""

from __future__ import annotations

import re

import msgspec

from flowfabric.errors import InvalidInput

_ENTRY = re.compile(r"([0-9]+)(?:-([0-9]+))?")


class StreamCursorError(InvalidInput):
    """The stream cursor is malformed. Use start, end, <ms> or <ms>-<seq>."""


class StreamCursor(msgspec.Struct, frozen=True):
    """A position in a frame stream; a bare string on the wire.

    Raises:
        StreamCursorError: the rule is ``Empty``, ``BareMarkerRejected`` or ``Malformed``.

    >>> str(StreamCursor("123-4")), StreamCursor("123-4").is_concrete
    ('123-4', True)
    """

    value: str

    def __post_init__(self) -> None:
        if self.value not in ("start", "end") and not _ENTRY.fullmatch(self.value):
            raise StreamCursorError(
                field="cursor", value=repr(self.value[:64]), rule=_broken_rule(self.value)
            )

    def __str__(self) -> str:
        return self.value

    @property
    def is_concrete(self) -> bool:
        """Whether this names an entry, which is all that a tail accepts."""
        return self.value not in ("start", "end")

    @property
    def position(self) -> tuple[int, int]:
        """Milliseconds and sequence of a concrete cursor; a missing sequence is 0."""
        entry = _ENTRY.fullmatch(self.value)
        assert entry is not None, "only a concrete cursor has a position"
        return int(entry[1]), int(entry[2] or 0)


START = StreamCursor("start")
END = StreamCursor("end")
BEGINNING = StreamCursor("0-0")
"""Where a tail starts to see every entry."""


def _broken_rule(text: str) -> str:
    if not text:
        return "Empty"
    return "BareMarkerRejected" if text in ("-", "+") else "Malformed"

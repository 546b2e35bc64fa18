"""Instants and lengths of time in words for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_STEPS: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"))
_CALENDAR_END_MS: Final = 253_402_300_799_999
"""The last millisecond of the year 9999."""


def shown_time(at_ms: int | None) -> str:
    """An instant in UTC; one beyond the calendar as a number.

    >>> shown_time(1_760_000_000_123)
    '2025-10-09 08:53:20.123Z'
    """
    if at_ms is None:
        return ""
    if at_ms > _CALENDAR_END_MS:
        return f"{at_ms} ms"
    return datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S.") + f"{at_ms % 1_000:03d}Z"


def shown_duration(length_ms: int) -> str:
    """A length of time in its two largest units.

    >>> shown_duration(3_725_000), shown_duration(4_200), shown_duration(90)
    ('1h 2m', '4s', '90ms')
    """
    rest, words = length_ms, []
    for size, unit in _STEPS:
        if rest >= size:
            words.append(f"{rest // size}{unit}")
            rest %= size
    return " ".join(words[:2]) or f"{length_ms}ms"

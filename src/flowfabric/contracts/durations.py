"""Lengths of time as people write them."""

from __future__ import annotations

import re
from typing import Final

UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration_ms(text: str) -> int:
    """Read a length of time in milliseconds.

    Raises:
        ValueError: this is not one; the message says how they are written.

    >>> parse_duration_ms("1h30m"), parse_duration_ms("250ms"), parse_duration_ms("0.5s")
    (5400000, 250, 500)
    """
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write 500ms, 30s, 5m, 2h, 1d or 1h30m")
    return round(sum(float(number) * UNITS_MS[unit] for number, unit in parts))

"""What the fuzzer loads before it begins: nothing it sends makes the server wait for long."""

from __future__ import annotations

from typing import Any

import schemathesis

WAITS = {"wait_ms", "block_ms"}
LONGEST_MS = 30_000
"""Beyond it the server refuses to wait, which is left to be found out."""


def impatient(value: Any) -> Any:
    """The value with every wait that would be honoured cut to a millisecond."""
    if isinstance(value, dict):
        return {name: _cut(part) if name in WAITS else impatient(part) for name, part in value.items()}
    return [impatient(part) for part in value] if isinstance(value, list) else value


def _cut(wait: Any) -> Any:
    digits = str(wait)
    is_honoured = digits.isascii() and digits.isdigit() and 1 < int(digits[:9]) <= LONGEST_MS
    return 1 if is_honoured and not isinstance(wait, bool) else wait


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Cut the waits of a request that is about to be sent."""
    case.query = impatient(case.query)
    case.body = impatient(case.body)

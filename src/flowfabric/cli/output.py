"""Writing results: JSON for programs, aligned text for people.

What comes from the store is shown with its control characters escaped, so that a payload cannot
move the cursor or colour the terminal of whoever looks at it.
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric.contracts.wire import to_wire
from flowfabric.core.instants import shown_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GAP: Final = "  "
COLUMN_WIDTH_MIN: Final = 8


def print_json(value: Any) -> None:
    """Print one JSON document in one line, and let a reader have it at once."""
    sys.stdout.write(msgspec.json.encode(to_wire(value)).decode() + "\n")
    sys.stdout.flush()


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, flexible: int) -> None:
    """Print aligned columns; the flexible one is cut where the terminal is too narrow."""
    for line in table_lines(headers, rows, flexible=flexible, width=_terminal_width()):
        print(line)


def table_lines(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, flexible: int, width: int | None
) -> list[str]:
    """Aligned columns as lines.

    >>> table_lines(["ID", "KIND"], [["1", "a long kind name"]], flexible=1, width=13)
    ['ID  KIND', '1   a long k…']
    """
    cells = [list(headers), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    if width is not None:
        excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
        widths[flexible] -= max(0, min(excess, widths[flexible] - COLUMN_WIDTH_MIN))
    return [_line(row, widths) for row in cells]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(shorten(cell, size).ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line, with the values aligned."""
    pairs = [(name, printable(value)) for name, value in fields]
    size = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print(f"{name.ljust(size)}{GAP}{value}".rstrip())


def print_note(text: str) -> None:
    """Say something beside the result, on standard error."""
    print(text, file=sys.stderr, flush=True)


def print_progress(text: str) -> None:
    """Replace the last line on standard error, if it is a terminal; else say nothing."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def end_progress() -> None:
    """Leave the line that ``print_progress`` wrote."""
    if sys.stderr.isatty():
        print(file=sys.stderr, flush=True)


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def shorten(text: str, size: int) -> str:
    """Cut a text to so many characters.

    >>> shorten("a long text", 6)
    'a lon…'
    """
    return text if len(text) <= size else text[: size - 1] + "…"


def printable(text: str) -> str:
    r"""A text with every control character escaped.

    >>> printable("red \x1b[31m\n")
    'red \\x1b[31m\\n'
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def shown_payload(data: bytes | None, size: int | None = None) -> str:
    """Bytes as people read them: text if it is text, else how many there are."""
    if data is None:
        return ""
    try:
        text = printable(data.decode())
    except UnicodeDecodeError:
        return f"<{len(data)} bytes>"
    return text if size is None else shorten(text, size)


def shown_age(at_ms: int, now_ms: int) -> str:
    """How far an instant lies in the past or in the future."""
    if at_ms <= now_ms:
        return f"{shown_duration(now_ms - at_ms)} ago"
    return f"in {shown_duration(at_ms - now_ms)}"

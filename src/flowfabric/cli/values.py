"""Reading the values of options: durations, tags, ids, lists and JSON."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import msgspec

from flowfabric.cli.exits import UsageError


def duration_ms(text: str) -> int:
    """Read a duration in milliseconds.

    >>> duration_ms("1h30m"), duration_ms("250ms"), duration_ms("0.5s")
    (5400000, 250, 500)
    """
    from flowfabric.contracts.durations import parse_duration_ms

    try:
        return parse_duration_ms(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def choice(text: str) -> tuple[str, Any]:
    """Read a choice: a label, and the JSON value that it sends.

    >>> choice('Yes={"approved": true}')
    ('Yes', {'approved': True})
    """
    label, equals, value = text.partition("=")
    try:
        return label, msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        if not equals:
            raise ArgumentTypeError(f"{text!r} is no choice; write Yes=true") from error
        raise ArgumentTypeError(f"what {label!r} sends is no JSON: {error}") from error


def names(text: str) -> tuple[str, ...]:
    """Read names with commas between them.

    >>> names("mail, reports")
    ('mail', 'reports')
    """
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise ArgumentTypeError(f"{text!r} names nothing; write names with commas between them")
    return found


def positive(text: str) -> int:
    """Read a whole number from 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def whole(text: str) -> int:
    """Read a whole number from 0."""
    if not (text.isascii() and text.isdigit()):
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def tag(text: str) -> tuple[str, str]:
    """Read a tag.

    >>> tag("team.name=media")
    ('team.name', 'media')
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise ArgumentTypeError(f"{text!r} is not a tag; write key=value, such as team.name=media")
    return key, value


def amount(text: str) -> tuple[str, int]:
    """Read an amount of one dimension.

    >>> amount("tokens=1200")
    ('tokens', 1200)
    """
    name, _, number = text.partition("=")
    if not (name and number.isascii() and number.isdigit()):
        raise ArgumentTypeError(f"{text!r} is not an amount; write name=number, such as tokens=1200")
    return name, int(number)


def execution_id(text: str) -> str:
    """Read a full execution id."""
    from flowfabric.contracts.ids import parse_execution_id
    from flowfabric.errors import InvalidInput

    try:
        return parse_execution_id(text)
    except InvalidInput as error:
        raise ArgumentTypeError(
            f"{text!r} is not an execution id ({error.rule}); write it whole, as in '{{fp:7}}:<uuid>'"
        ) from error


def uuid(text: str) -> str:
    """Read a waitpoint id."""
    from flowfabric.contracts.ids import parse_uuid
    from flowfabric.errors import InvalidInput

    try:
        return parse_uuid(text)
    except InvalidInput as error:
        raise ArgumentTypeError(f"{text!r} is not a uuid") from error


def json_payload(text: str, what: str) -> bytes:
    """Read JSON that stands in the text itself, in ``@file``, or on standard input (``-``).

    Raises:
        UsageError: the file cannot be read, or this is not JSON.
    """
    import msgspec

    data = _source_bytes(text)
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UsageError(
            f"{what} is not JSON: {error}. Write text in double quotes, as in '\"text\"'."
        ) from error
    return data


def json_lines(path: str) -> list[bytes]:
    """Read a file, or standard input (``-``), with one JSON value in each line that is not blank.

    Raises:
        UsageError: the file cannot be read, or a line is not JSON.
    """
    lines = _file_bytes(path).splitlines()
    return [_checked_line(line, number) for number, line in enumerate(lines, 1) if line.strip()]


def _checked_line(line: bytes, number: int) -> bytes:
    import msgspec

    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UsageError(f"line {number} is not JSON: {error}. Nothing was submitted.") from error
    return line.strip()


def _source_bytes(text: str) -> bytes:
    if text == "-" or text.startswith("@"):
        return _file_bytes(text.removeprefix("@"))
    return text.encode("utf-8", "surrogateescape")


def _file_bytes(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from error


def decoded_json(data: bytes | None, encoding: str | None) -> Any:
    """The value in a JSON payload; None for no payload and for bytes that are not JSON."""
    import msgspec

    if data is None or encoding == "bytes":
        return None
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError):
        return None

"""Logs for people and for machines, with what a line belongs to beside it.

Inside a handler every line knows its execution, attempt, lane and worker; inside a request, its
request id. ``FieldsFilter`` brings that to a logging configuration of your own.

The rule this module keeps: a secret that strays into a line is struck out before it is written.
"""

from __future__ import annotations

import logging
import re
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")

_NONE: Final[Mapping[str, str | int]] = MappingProxyType({})
_FIELDS: Final[ContextVar[Mapping[str, str | int]]] = ContextVar("flowfabric_log_fields", default=_NONE)

_SECRETS: Final = re.compile(
    r"(?P<before>://[^\s/:@]*:)[^\s/@]+(?=@)"  # the password of a URL
    r"|(?P<bearer>\b[Bb]earer\s+)[\w.~+/=-]+"
    r"|(?P<kid>\b[\w.-]{1,64}:)[0-9a-f]{64}\b"  # a waitpoint token
    r"|\bff_[A-Za-z0-9_-]{40,}"  # a token of a server
)
STRUCK_OUT: Final = "<redacted>"


@contextmanager
def bound(**fields: str | int) -> Iterator[None]:
    """Give these fields to every line that is logged inside, in tasks and handlers' threads too."""
    before = _FIELDS.set({**_FIELDS.get(), **fields})
    try:
        yield
    finally:
        _FIELDS.reset(before)


def bind(**fields: str | int) -> None:
    """Give these fields to every line that this asyncio task, and what it starts, logs from now on."""
    _FIELDS.set({**_FIELDS.get(), **fields})


def bound_fields() -> Mapping[str, str | int]:
    """What lines logged here belong to."""
    return _FIELDS.get()


def without_secrets(text: str) -> str:
    """The text with everything struck out that looks like a token or a password.

    >>> without_secrets("cannot reach postgresql://ana:hunter2@db/work")
    'cannot reach postgresql://ana:<redacted>@db/work'
    """
    return _SECRETS.sub(_strike_out, text)


def _strike_out(found: re.Match[str]) -> str:
    kept = found["before"] or found["bearer"] or found["kid"] or ""
    return kept + STRUCK_OUT


class FieldsFilter(logging.Filter):
    """Adds ``record.fields``, for handlers of your own."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; let everything through."""
        record.fields = dict(_FIELDS.get())
        return True


class TextLines(logging.Formatter):
    """One line for people: time, level, logger, message, and the fields in brackets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """The message with its fields."""
        line = super().formatMessage(record)
        fields = " ".join(f"{name}={value}" for name, value in fields_of(record).items())
        return f"{line} [{fields}]" if fields else line

    def format(self, record: logging.LogRecord) -> str:
        """The whole entry."""
        return without_secrets(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object in each line."""

    def format(self, record: logging.LogRecord) -> str:
        """The whole entry."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
            **fields_of(record),
        }
        if record.exc_info:
            entry["exception"] = without_secrets(self.formatException(record.exc_info))
        return msgspec.json.encode(entry).decode()


def fields_of(record: logging.LogRecord) -> dict[str, str | int]:
    """What a line belongs to. A handler in another thread has it from the filter."""
    fields: dict[str, str | int] = getattr(record, "fields", None) or dict(_FIELDS.get())
    return fields


def configure_logging(form: str = "text", level: str = "info", stream: IO[str] | None = None) -> None:
    """Write what this process logs to standard error, unless logging is configured already.

    Args:
        form: ``text`` or ``json``.
        level: the least severe lines that are written.
        stream: where to write instead.
    """
    if logging.root.handlers:
        return
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    handler.addFilter(FieldsFilter())
    logging.root.addHandler(handler)
    logging.root.setLevel(level.upper())

"""What an exception of a handler means for its attempt: a category for the policy, words for people."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.codec import Undecodable, Unencodable
from flowfabric.contracts.limits import NAME_CHARS_MAX, TEXT_CHARS_MAX
from flowfabric.outcomes import Fatal, Retry

if TYPE_CHECKING:
    from collections.abc import Iterator

CAUSES_MAX: Final = 10
"""How many exceptions of a chain or a group are described."""


class UnknownKind(Exception):
    """The worker has no handler for what it has claimed."""


FINAL: Final[dict[type[BaseException], str]] = {
    Fatal: "fatal",
    UnknownKind: "runtime_no_handler",
    errors.JournalMismatch: "journal_mismatch",
    Undecodable: "extractor_payload_decode",
    Unencodable: "permanent",
}
"""Exceptions for which another attempt cannot help, with their categories."""


def category_of(error: BaseException) -> str:
    """The failure category of an exception; in a group, one that is final decides."""
    leaves = list(_leaves(error))
    for kind, category in FINAL.items():
        if any(isinstance(leaf, kind) for leaf in leaves):
            return category
    if any(isinstance(leaf, errors.BudgetExceeded) for leaf in leaves):
        return errors.BudgetExceeded.code
    for leaf in leaves:
        if isinstance(leaf, Retry):
            return "".join(filter(str.isprintable, str(leaf.category)))[:NAME_CHARS_MAX]
    if isinstance(error, (Exception, asyncio.CancelledError)):
        return "handler_error"
    return "handler_panic"


def describe(error: BaseException) -> str:
    """An exception with its causes, outermost first, and the members of groups."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(parts) < CAUSES_MAX:
        parts.append(_in_words(cause))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return _printable(": ".join(parts))[:TEXT_CHARS_MAX]


def _in_words(error: BaseException) -> str:
    try:
        words = "".join(traceback.format_exception_only(error)).strip()
    except Exception:  # noqa: BLE001 - an exception that cannot be shown still has a name
        words = type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        words += ": " + "; ".join(describe(member) for member in error.exceptions[:CAUSES_MAX])
    return words


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def _printable(text: str) -> str:
    """The text without what cannot be stored: lone surrogates become escapes, NUL goes."""
    return text.encode(errors="backslashreplace").decode().replace("\x00", "")

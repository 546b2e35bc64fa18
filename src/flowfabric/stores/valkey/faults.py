"""What a fault of the connection or the server means, as one of our own errors.

An error names the server's error code and not its words, which may quote what was sent.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

from hiredis import ReplyError

from flowfabric import errors

FUNCTION_MISSING: Final = "ERR Function not found"
LIBRARY_EXISTS: Final = "already exists"
NOT_ALLOWED: Final = "NOPERM"

_TRY_AGAIN: Final = "Nothing was changed. Check that it runs and accepts writes, then try again."
_MEANINGS: Final[dict[str, tuple[type[errors.StoreError], str]]] = {
    "OOM": (errors.StoreFull, "Its memory is full. Raise maxmemory or remove what has ended."),
    "MISCONF": (errors.StoreFull, "It cannot write to its disk. Free space there, then try again."),
    "READONLY": (errors.StoreUnreachable, _TRY_AGAIN),
    "LOADING": (errors.StoreUnreachable, _TRY_AGAIN),
    "MASTERDOWN": (errors.StoreUnreachable, _TRY_AGAIN),
    "NOREPLICAS": (errors.StoreUnreachable, _TRY_AGAIN),
    "MOVED": (errors.StoreUnreachable, _TRY_AGAIN),
    "ASK": (errors.StoreUnreachable, _TRY_AGAIN),
    "TRYAGAIN": (errors.StoreUnreachable, _TRY_AGAIN),
    "CLUSTERDOWN": (errors.StoreUnreachable, _TRY_AGAIN),
    "BUSY": (errors.StoreUnreachable, _TRY_AGAIN),
    "REDIRECT": (errors.StoreUnreachable, "It is a replica. Connect to the primary, then try again."),
    "UNBLOCKED": (errors.StoreUnreachable, "It is a replica now. Repeat with the same request id."),
    "DENIED": (errors.StoreUnusable, "It takes no others than its own host: give it a password."),
    "NOAUTH": (errors.StoreUnusable, "Put user and password into the URL."),
    "WRONGPASS": (errors.StoreUnusable, "Check user and password."),
    "NOPERM": (errors.StoreUnusable, "Give the user the commands and keys that the store needs."),
    "NOPROTO": (errors.StoreUnusable, "Valkey 8 or newer is needed."),
    "WRONGTYPE": (errors.StoreCorrupt, "Something else has written to its keys. Restore a backup."),
    "FFORDER": (
        errors.StoreCorrupt,
        "A stream holds frames that its record does not know. Restore a backup.",
    ),
}
_PHRASES: Final[tuple[tuple[str, type[errors.StoreError], str], ...]] = (
    (
        "max number of clients",
        errors.StoreUnreachable,
        "It takes no more connections: raise maxclients, or run fewer processes.",
    ),
    ("called without any password", errors.StoreUnusable, "It has no password. Leave it out of the URL."),
    ("DB index is out of range", errors.StoreUnusable, "It has fewer databases. Name one that it has."),
    (
        "SELECT is not allowed in cluster",
        errors.StoreUnusable,
        "A cluster has database 0 only. Leave the number out of the URL.",
    ),
    (
        "unknown command",
        errors.StoreUnusable,
        "Something is switched off that is needed: FUNCTION, or CONFIG.",
    ),
)
"""What the answers mean that all have the same code."""


def server_error(fault: ReplyError, place: str) -> errors.StoreError:
    """The error that callers see in place of what the server answered.

    Args:
        fault: the answer.
        place: the server, as errors may name it.
    """
    code = str(fault).partition(" ")[0]
    error, advice = _MEANINGS.get(code) or _meaning_of(str(fault))
    return error(f"{place} answered {code}. {advice}")


def _meaning_of(words: str) -> tuple[type[errors.StoreError], str]:
    """What an answer means whose code says nothing."""
    for phrase, error, advice in _PHRASES:
        if phrase in words:
            return error, advice
    return errors.StoreError, "Look at the server's log."


def connection_error(fault: BaseException, place: str) -> errors.StoreError:
    """The error that callers see when the connection broke or the answer did not come."""
    if isinstance(fault, TimeoutError):
        return errors.StoreTimeout(
            f"{place} did not answer in time. It may have acted: repeat with the same request id."
        )
    if isinstance(fault, ssl.SSLCertVerificationError):
        return errors.StoreUnusable(
            f"{place} has a certificate that is not trusted, or for another name ({fault.verify_message}). "
            "Name the authority that has signed it with ?ca_file=, and the host as the certificate does."
        )
    if isinstance(fault, ssl.SSLError):
        return errors.StoreUnusable(
            f"{place} does not agree on TLS ({fault.reason}). Check that this port speaks TLS, and whether "
            "the server asks for a certificate of ours: ?cert_file= and ?key_file=."
        )
    return errors.StoreUnreachable(
        f"{place} cannot be reached ({type(fault).__name__}). Check the address, and that the server runs "
        "and takes more connections. It may have acted: repeat with the same request id."
    )


def denies_writes(reply: Any) -> bool:
    """Whether a server says that it has become a replica."""
    return isinstance(reply, ReplyError) and str(reply).startswith(("READONLY ", "REDIRECT ", "UNBLOCKED "))


def checked(replies: list[Any], place: str) -> list[Any]:
    """The answers, if the server refused nothing.

    Raises:
        StoreError: it refused something.
    """
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise server_error(reply, place) from reply
    return replies

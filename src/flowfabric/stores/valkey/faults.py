"""What a fault of the connection or the server means, as one of our own errors.

An error names the server's error code and not its words, which may quote what was sent.
"""

from __future__ import annotations

from typing import Final

from hiredis import ReplyError

from flowfabric import errors

FUNCTION_MISSING: Final = "ERR Function not found"
LIBRARY_EXISTS: Final = "already exists"

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
    "MAXCLIENTS": (errors.StoreUnreachable, _TRY_AGAIN),
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


def server_error(fault: ReplyError, place: str) -> errors.StoreError:
    """The error that callers see in place of what the server answered.

    Args:
        fault: the answer.
        place: the server, as errors may name it.
    """
    code = str(fault).partition(" ")[0]
    meaning = _MEANINGS.get(code)
    if meaning is None:
        return errors.StoreError(f"{place} answered {code}. Look at the server's log.")
    error, advice = meaning
    return error(f"{place} answered {code}. {advice}")


def connection_error(fault: BaseException, place: str) -> errors.StoreError:
    """The error that callers see when the connection broke or the answer did not come."""
    if isinstance(fault, TimeoutError):
        return errors.StoreTimeout(
            f"{place} did not answer in time. It may have acted: repeat with the same request id."
        )
    return errors.StoreUnreachable(
        f"{place} cannot be reached ({type(fault).__name__}). Check the address and that the server runs. "
        "It may have acted: repeat with the same request id."
    )

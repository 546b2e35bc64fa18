"""What a fault of the driver or the server means, as one of our own errors.

The server's own words may quote values, and the driver's may quote the address with its password,
so neither is repeated: an error names the condition and its SQLSTATE, the server's log has the rest.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from flowfabric import errors

UNFINISHED: Final = ("40001", "40P01")
"""Serialization failure and deadlock: the server undid the statement, which may be sent again."""

FAULTS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What talking to the server may raise. ``TimeoutError`` is an ``OSError``."""

_UNREACHABLE: Final = ("08", "57P01", "57P02", "57P03", "57P05", "53300", "53400", "25006")
_TIMEOUT: Final = ("57014", "55P03", "25P03", "25P04", *UNFINISHED)
_FULL: Final = ("53100", "53200", "54000")
_CORRUPT: Final = ("XX001", "XX002", "23", "58P01")
_UNUSABLE: Final = ("28", "3D", "3F", "42501", "42704", "42883", "42P01", "0A", "22023")
_MEANINGS: Final[tuple[tuple[tuple[str, ...], type[errors.StoreError], str], ...]] = (
    (_UNREACHABLE, errors.StoreUnreachable, "Check that the server runs and accepts writes, then try again."),
    (_TIMEOUT, errors.StoreTimeout, "It may have acted: repeat with the same request id."),
    (_FULL, errors.StoreFull, "Free space on the server, then try again."),
    (_CORRUPT, errors.StoreCorrupt, "The tables do not hold what they must. Restore a backup."),
    (_UNUSABLE, errors.StoreUnusable, "Check the role's rights, the database and the schema."),
)


def is_unfinished(fault: BaseException) -> bool:
    """True if the server undid the statement because of others, so that it may be sent again."""
    return getattr(fault, "sqlstate", None) in UNFINISHED


def store_error(fault: BaseException, place: str) -> errors.StoreError:
    """The error that callers see in place of the fault.

    Args:
        fault: one of ``FAULTS``.
        place: the database, as errors may name it.
    """
    if isinstance(fault, TimeoutError):
        return errors.StoreTimeout(
            f"{place} did not answer in time. It may have acted: repeat with the same request id."
        )
    if isinstance(fault, asyncpg.TargetServerAttributeNotMatched):
        return errors.StoreUnreachable(f"{place} accepts no writes: it is a standby. Connect to the primary.")
    if type(fault) is asyncpg.DataError:
        # The driver's own; what the server says about a value has a class of its own.
        return errors.StoreError(f"{place}: a value cannot be written as it is ({type(fault).__name__}).")
    if isinstance(fault, asyncpg.PostgresError):
        return server_error(fault, place)
    # The driver's own errors come from connections that broke, at one point or another.
    return errors.StoreUnreachable(
        f"{place} cannot be reached ({type(fault).__name__}). Check the address and that the server runs."
    )


def server_error(fault: BaseException, place: str) -> errors.StoreError:
    """The error for what the server has answered, through whichever driver."""
    state = getattr(fault, "sqlstate", None) or ""
    condition = f"{type(fault).__name__}, SQLSTATE {state or 'unknown'}"
    for states, error, advice in _MEANINGS:
        if state.startswith(states):
            return error(f"{place}: {condition}. {advice}")
    if isinstance(fault, asyncpg.PostgresConnectionError):
        return errors.StoreUnreachable(f"{place}: {condition}. Check that the server runs, then try again.")
    return errors.StoreError(f"{place}: {condition}. Look at the server's log.")

"""One seam over two SQLite drivers: apsw, and the standard library's sqlite3.

Both are used in autocommit mode, so transactions begin and end where the SQL says so. What a
driver raises becomes a ``StoreError`` here, except ``Busy``: another connection holds a lock, and
only the caller knows how long it may wait.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final, Protocol

from flowfabric import errors

try:
    import apsw
except ImportError:  # pragma: no cover - apsw is a dependency, yet the engine works without it
    apsw = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MEMORY: Final = ":memory:"

SAFE_VERSION: Final = (3, 51, 3)
"""Older versions can corrupt a file when two connections write or checkpoint at the same moment."""

_STATEMENTS_CACHED: Final = 128

_BUSY: Final = 5
_LOCKED: Final = 6
_READONLY: Final = 8
_IOERR: Final = 10
_CORRUPT: Final = 11
_FULL: Final = 13
_CANTOPEN: Final = 14
_CONSTRAINT: Final = 19
_NOTADB: Final = 26


_BUSY_SNAPSHOT: Final = _BUSY | 2 << 8
"""The extended code of a transaction that reads what others have changed since, and wants to write."""


class Busy(Exception):
    """Another connection holds the lock. Nothing has happened; wait a little and try again."""


class Outdated(Busy):
    """Others wrote since this transaction began to read, so it can never write."""


class Connection(Protocol):
    """What the store needs of a driver. Not to be used by two threads at the same time."""

    def run(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Execute one statement."""

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Execute one statement and return all its rows."""

    def many(self, sql: str, sequence: Iterable[Sequence[Any]]) -> int:
        """Execute one statement for each element; returns how many rows changed."""

    def roll_back(self) -> None:
        """End the open transaction without a trace. Harmless if there is none."""

    def pages_written(self) -> int | None:
        """Pages this connection has written to disk, None if the driver cannot tell."""

    def close(self) -> None:
        """Close the connection."""


class ApswConnection:
    """A connection through apsw, which carries a SQLite of its own."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        flags = (
            apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        )
        try:
            self._connection = apsw.Connection(path, flags=flags, statementcachesize=_STATEMENTS_CACHED)
        except apsw.Error as error:
            raise _fault_of(error, apsw_code(error), path) from error
        self._cursor = self._connection.cursor()
        self._path = path

    def run(self, sql: str, values: Sequence[Any] = ()) -> None:
        self.rows(sql, values)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._cursor.execute(sql, values).fetchall()
        except apsw.Error as error:
            raise _fault_of(error, apsw_code(error), self._path) from error

    def many(self, sql: str, sequence: Iterable[Sequence[Any]]) -> int:
        before = self._connection.total_changes()
        try:
            self._cursor.executemany(sql, sequence)
        except apsw.Error as error:
            raise _fault_of(error, apsw_code(error), self._path) from error
        return self._connection.total_changes() - before

    def roll_back(self) -> None:
        if self._connection.in_transaction:
            self.run("ROLLBACK")

    def pages_written(self) -> int | None:
        return self._connection.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)[0]

    def close(self) -> None:
        self._connection.close()


class StandardConnection:
    """A connection through the standard library's sqlite3."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        self._path = path
        location = path if path == MEMORY else _uri(path, read_only=read_only)
        try:
            self._connection = sqlite3.connect(
                location,
                uri=path != MEMORY,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=_STATEMENTS_CACHED,
            )
        except sqlite3.Error as error:
            raise _fault_of(error, standard_code(error), path) from error

    def run(self, sql: str, values: Sequence[Any] = ()) -> None:
        self.rows(sql, values)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _fault_of(error, standard_code(error), self._path) from error

    def many(self, sql: str, sequence: Iterable[Sequence[Any]]) -> int:
        before = self._connection.total_changes
        try:
            self._connection.executemany(sql, sequence)
        except sqlite3.Error as error:
            raise _fault_of(error, standard_code(error), self._path) from error
        return self._connection.total_changes - before

    def roll_back(self) -> None:
        if self._connection.in_transaction:
            self.run("ROLLBACK")

    def pages_written(self) -> int | None:
        return None

    def close(self) -> None:
        self._connection.close()


class BorrowedApswConnection(ApswConnection):
    """A connection of somebody else's through apsw, whose tracers do not touch our rows."""

    def __init__(self, connection: apsw.Connection, path: str) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        self._cursor.row_trace = lambda _cursor, row: row
        self._cursor.exec_trace = lambda _cursor, _sql, _values: True
        self._path = path


class BorrowedStandardConnection(StandardConnection):
    """A connection of somebody else's through sqlite3, whose factories do not touch our rows."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._connection = connection
        self._path = path

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        connection = self._connection
        text_factory, connection.text_factory = connection.text_factory, str
        try:
            cursor = sqlite3.Cursor(connection)
            cursor.row_factory = None
            return cursor.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _fault_of(error, standard_code(error), self._path) from error
        finally:
            connection.text_factory = text_factory


class Driver(Protocol):
    """How to connect, and which SQLite one gets."""

    name: str
    version: tuple[int, int, int]

    def connect(self, path: str, *, read_only: bool = False) -> Connection:
        """Open a connection. Raises a ``StoreError`` if that is impossible."""


class ApswDriver:
    """The default driver."""

    name = "apsw"

    def __init__(self) -> None:
        self.version = _version(apsw.sqlite_lib_version())

    def connect(self, path: str, *, read_only: bool = False) -> Connection:
        return ApswConnection(path, read_only=read_only)


class StandardDriver:
    """The driver of last resort, for installations without apsw."""

    name = "sqlite3"

    def __init__(self) -> None:
        self.version = _version(sqlite3.sqlite_version)

    def connect(self, path: str, *, read_only: bool = False) -> Connection:
        return StandardConnection(path, read_only=read_only)


def default_driver() -> Driver:
    """The one through apsw where that is installed, else the standard library's."""
    return StandardDriver() if apsw is None else ApswDriver()


def is_safe_to_share(version: tuple[int, int, int]) -> bool:
    """True if several processes may have one file open with this SQLite."""
    return version >= SAFE_VERSION


def apsw_code(error: Exception) -> int:
    """The primary SQLite result code of an apsw error, 0 if it has none."""
    return getattr(error, "result", 0) & 0xFF


def standard_code(error: Exception) -> int:
    """The primary SQLite result code of a sqlite3 error, 0 if it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _extended_code(error: Exception) -> int:
    code: int = getattr(error, "extendedresult", 0) or getattr(error, "sqlite_errorcode", 0)
    return code


def _fault_of(error: Exception, code: int, path: str) -> Exception:
    """The error to raise for a driver's error. A fault never looks like «not found»."""
    if _extended_code(error) == _BUSY_SNAPSHOT:
        return Outdated(str(error))
    if code in {_BUSY, _LOCKED}:
        return Busy(str(error))
    known = _FAULTS.get(code)
    if known is None:
        return errors.StoreError(f"{path}: SQLite refused a statement: {error}. Report it.")
    fault, words = known
    return fault(f"{path}: {words} ({error})")


_FAULTS: Final[dict[int, tuple[type[errors.StoreError], str]]] = {
    _READONLY: (errors.StoreUnusable, "cannot be written. Check the permissions of file and directory."),
    _IOERR: (
        errors.StoreUnreachable,
        "reading or writing failed. Check the disk, then send the same request again.",
    ),
    _CORRUPT: (errors.StoreCorrupt, "the file is damaged. Stop all processes and restore a backup."),
    _FULL: (errors.StoreFull, "the disk is full. Free space, then try again."),
    _CANTOPEN: (errors.StoreUnreachable, "cannot be opened. Check the path and its permissions."),
    _CONSTRAINT: (errors.StoreCorrupt, "a row exists already: an index does not match its records."),
    _NOTADB: (errors.StoreCorrupt, "this is not a SQLite database. Choose another path or restore a backup."),
}


def _version(text: str) -> tuple[int, int, int]:
    major, minor, patch = (int(part) for part in text.split(".")[:3])
    return major, minor, patch


def _uri(path: str, *, read_only: bool) -> str:
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file:{quoted}?mode={'ro' if read_only else 'rwc'}"

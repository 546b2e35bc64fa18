"""The store inside a transaction of somebody else's connection to the file.

The rules this module keeps:

- The connection's file is the store's, and no other copy of SQLite has it open in this process.
  The lock beside the file is held until the connection is closed, as for every other user of it.
- The write lock is taken before anything is read, so what is read is still true when it is written.
- Nothing is begun or ended but a savepoint, except where the driver itself would begin.
"""

from __future__ import annotations

import sqlite3
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.stores.sqlite import records
from flowfabric.stores.sqlite.driver import (
    MEMORY,
    ApswDriver,
    BorrowedApswConnection,
    BorrowedStandardConnection,
    Busy,
    Outdated,
    StandardDriver,
)
from flowfabric.stores.sqlite.opening import FileLock
from flowfabric.stores.sqlite.schema import MIGRATIONS, check_ownership, pending_migrations

if TYPE_CHECKING:
    from collections.abc import Iterable

    import apsw

    from flowfabric.core.records import Key
    from flowfabric.stores.base import Commit, Loaded
    from flowfabric.stores.clock import StoreClock
    from flowfabric.stores.sqlite.driver import Connection

SAVEPOINT: Final = "flowfabric"

HOLD: Final = "flowfabric_hold"
"""The name of the SQL function that lives as long as the connection."""

_LEGACY: Final = -1
"""``sqlite3.LEGACY_TRANSACTION_CONTROL``, which Python 3.11 does not name."""


def borrowed_file(connection: object, path: str, clock: StoreClock) -> BorrowedFile | None:
    """The store inside a transaction of this connection; None if it is not one of sqlite3 or apsw."""
    if isinstance(connection, sqlite3.Connection):
        return BorrowedFile(connection, BorrowedStandardConnection(connection, path), path, clock)
    apsw = sys.modules.get("apsw")  # whoever hands over one of its connections has imported it
    if apsw is not None and isinstance(connection, apsw.Connection):
        return BorrowedFile(connection, BorrowedApswConnection(connection, path), path, clock)
    return None


class BorrowedFile:
    """``stores.base.Borrowed`` over a connection to the store's file.

    Args:
        theirs: the connection, with settings of its own.
        connection: the same one, as the store uses it.
        path: the store's file.
        clock: the store's clock.
    """

    is_awaited = False

    def __init__(
        self,
        theirs: sqlite3.Connection | apsw.Connection,
        connection: Connection,
        path: str,
        clock: StoreClock,
    ) -> None:
        self._theirs = theirs
        self._connection = connection
        self._path = path
        self._clock = clock

    async def begin(self) -> None:
        connection = self._connection
        try:
            self._require_file()
            self._hold_file()
            check_ownership(connection, self._path)
            self._require_current_schema()
            self._require_transaction()
            connection.run(f"SAVEPOINT {SAVEPOINT}")
            try:
                connection.run("UPDATE main.state SET last_commit = last_commit")
            except BaseException:
                await self.undo()
                raise
        except Outdated as outdated:
            raise errors.TransactionOutdated(
                f"others wrote to {self._path} after this transaction began to read, so it cannot write any "
                "more. Roll it back and run all of it again; BEGIN IMMEDIATE avoids this."
            ) from outdated
        except Busy as busy:
            raise errors.StoreTimeout(
                f"{self._path} stayed locked by others for the connection's busy timeout. Nothing was "
                "written: roll back and try again, with a longer timeout or BEGIN IMMEDIATE."
            ) from busy

    async def keep(self) -> None:
        self._connection.run(f"RELEASE {SAVEPOINT}")

    async def undo(self) -> None:
        if self._theirs.in_transaction:  # some faults, a full disk among them, have ended it already
            self._connection.run(f"ROLLBACK TO {SAVEPOINT}")
            self._connection.run(f"RELEASE {SAVEPOINT}")

    async def now(self) -> int:
        state = records.read_state(self._connection)
        return self._clock.read(state.mark_ms, state.clock_offset_ms)

    async def load(self, keys: Iterable[Key]) -> Loaded:
        return records.load_records(self._connection, keys, self._clock)

    async def commit(self, commit: Commit) -> int:
        return records.apply_commit(self._connection, commit, self._clock)

    # What must be true of the connection

    def _require_file(self) -> None:
        """Refuse a connection to another file, or one that hides the store's tables."""
        files = {name: file for _, name, file in self._connection.rows("PRAGMA database_list")}
        main = files.get("main")
        if not main or self._path == MEMORY or not _is_same_file(main, self._path):
            raise errors.UnusableConnection(
                f"the connection's main database is {main or MEMORY!r}, but the store is {self._path!r}. "
                "Connect to the store's file; an attached one would not commit together with it."
            )
        hidden = self._connection.rows(
            "SELECT t.name FROM temp.sqlite_master AS t JOIN main.sqlite_master AS m ON m.name = t.name"
        )
        if hidden:
            raise errors.UnusableConnection(
                f"the connection's temporary table {hidden[0][0]!r} hides the one of {self._path}. Rename it."
            )

    def _require_transaction(self) -> None:
        """Refuse autocommit, where each statement would end by itself what others have to undo."""
        if self._theirs.in_transaction:
            return
        if isinstance(self._theirs, sqlite3.Connection) and _begins_by_itself(self._theirs):
            # The driver does the same before an INSERT: PEP 249 wants no explicit beginning.
            self._connection.run("BEGIN IMMEDIATE")
            return
        raise errors.TransactionRequired(
            "the connection is in autocommit mode and has no open transaction. Execute BEGIN IMMEDIATE "
            "first, and COMMIT after this."
        )

    def _hold_file(self) -> None:
        """Hold the lock beside the file until the connection is closed."""
        if id(self._theirs) in _holds:
            return
        if isinstance(self._theirs, sqlite3.Connection):
            hold = _Hold(FileLock(self._path, StandardDriver()))
            self._theirs.create_function(HOLD, 0, hold)
        else:
            hold = _Hold(FileLock(self._path, ApswDriver()))
            self._theirs.create_scalar_function(HOLD, hold, 0)
        _holds[id(self._theirs)] = hold

    def _require_current_schema(self) -> None:
        if pending_migrations(self._connection, self._path, MIGRATIONS):
            raise errors.StoreUnusable(
                f"{self._path} has not been brought up to date for this version. Run `flowfabric migrate`, "
                "or start FlowFabric once."
            )


class _Hold:
    """Holds the lock of a file for as long as this object lives.

    It is registered with a connection as an SQL function. SQLite lets go of its functions when the
    connection is closed, and nothing else tells when that happens.
    """

    def __init__(self, lock: FileLock) -> None:
        weakref.finalize(self, lock.release)

    def __call__(self, *_: object) -> str:
        return SAVEPOINT


_holds: weakref.WeakValueDictionary[int, _Hold] = weakref.WeakValueDictionary()
"""By the identity of the connection, which cannot be another one's while the hold lives."""


def _begins_by_itself(connection: sqlite3.Connection) -> bool:
    """Whether the driver opens a transaction before the first change."""
    legacy = getattr(connection, "autocommit", _LEGACY) == _LEGACY
    return legacy and connection.isolation_level is not None


def _is_same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except FileNotFoundError:
        return False

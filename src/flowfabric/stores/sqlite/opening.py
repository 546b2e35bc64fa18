"""Opening the file: who may, with which settings, and what an acknowledged commit then survives.

Beside the file lies ``<file>-lock``. Every process that opens the file locks it: shared where its
SQLite is safe to share (``driver.SAFE_VERSION``), exclusively otherwise. It is a file of its own
because closing any handle of the database itself would drop SQLite's locks.

For the same reason all connections of a process to one file go through one copy of SQLite: the
locks belong to the process, and a copy does not know of those that another one holds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric import errors
from flowfabric.stores.base import Durability
from flowfabric.stores.sqlite.driver import MEMORY, Busy, Driver, default_driver, is_safe_to_share
from flowfabric.stores.sqlite.records import read_state
from flowfabric.stores.sqlite.schema import (
    MIGRATIONS,
    Migration,
    check_ownership,
    migrate_connection,
    pending_migrations,
    rows_patiently,
)

if TYPE_CHECKING:
    from flowfabric.stores.sqlite.driver import Connection

LEVELS: Final = ("D0", "D1", "D2", "D3")
LEVEL_OF_SYNCHRONOUS: Final = {0: "D0", 1: "D1", 2: "D2", 3: "D2"}
"""What ``PRAGMA synchronous`` promises together with a write-ahead log."""

CACHE_KIB: Final = 64 * 1024
READER_PAGES: Final = 64
"""A reader's cache is worthless after every commit of the writer; a small one is soon forgotten."""
WAL_BYTES_KEPT: Final = 64 * 1024 * 1024
"""A write-ahead log that had to grow beyond this is cut back once it was checkpointed."""

_logger = logging.getLogger("flowfabric.stores")


def migrate(path: str, driver: Driver | None = None) -> list[Migration]:
    """Bring the file at ``path`` up to date, creating it if needed, and close it again.

    Returns:
        The migrations that were applied now, oldest first.

    Raises:
        StoreError: as ``SqliteStore.open`` does.
    """
    chosen = driver or default_driver()
    lock = FileLock(path, chosen)
    try:
        connection = chosen.connect(path)
        try:
            return migrate_connection(connection, path)
        finally:
            connection.close()
    finally:
        lock.release()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a file is to be opened."""

    path: str
    driver: Driver
    synchronous: str
    required_level: str
    wal_pages_max: int
    busy_timeout_ms: int
    allow_clock_offset: bool


def pending(path: str, driver: Driver | None = None) -> list[Migration]:
    """The migrations that the file at ``path`` still lacks. Nothing is changed.

    Raises:
        StoreError: the file cannot be read, belongs to another program, or is newer than this one.
    """
    connection = (driver or default_driver()).connect(path, read_only=True)
    try:
        check_ownership(connection, path)
        return pending_migrations(connection, path, MIGRATIONS)
    finally:
        connection.close()


class OpenFile:
    """What a store holds while its file is open. Made and closed in a thread, as both may block.

    Attributes:
        writer: the one connection that writes, and checkpoints.
        reader: reads while the writer commits. None in memory, where only the writer exists.
        walker: for reads that walk over many rows, in a thread of their own. None in memory.
    """

    reader: Connection | None = None
    walker: Connection | None = None

    def __init__(self, settings: Settings) -> None:
        path, in_file = settings.path, settings.path != MEMORY
        self._lock = FileLock(path, settings.driver) if in_file else None
        try:
            self.writer = _open_writer(settings)
        except BaseException:
            self._release_lock()
            raise
        try:
            self.durability = _attest(self.writer, settings)
            if not settings.allow_clock_offset:
                _require_no_clock_offset(self.writer, path)
            if in_file:
                self.reader = _open_reader(settings, busy_timeout_ms=0)
                self.walker = _open_reader(settings, busy_timeout_ms=settings.busy_timeout_ms)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close everything, the writer last: the last connection moves the log into the file."""
        try:
            for connection in (self.reader, self.walker):
                if connection is not None:
                    connection.close()
            _close_writer(self.writer)
        finally:
            self._release_lock()

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _open_writer(settings: Settings) -> Connection:
    path = settings.path
    connection = settings.driver.connect(path)
    try:
        migrate_connection(connection, path)
        for pragma in (
            f"synchronous = {settings.synchronous}",
            f"cache_size = -{CACHE_KIB}",
            f"wal_autocheckpoint = {settings.wal_pages_max}",
            f"journal_size_limit = {WAL_BYTES_KEPT}",
            "temp_store = MEMORY",
            "mmap_size = 0",
        ):
            rows_patiently(connection, f"PRAGMA {pragma}", path)
    except BaseException:
        connection.close()
        raise
    return connection


def _open_reader(settings: Settings, *, busy_timeout_ms: int) -> Connection:
    """A connection that only reads, and never checkpoints."""
    connection = settings.driver.connect(settings.path, read_only=True)
    try:
        for pragma in (
            f"busy_timeout = {busy_timeout_ms}",
            "query_only = 1",
            f"cache_size = {READER_PAGES}",
            "wal_autocheckpoint = 0",
            "temp_store = MEMORY",
            "mmap_size = 0",
        ):
            rows_patiently(connection, f"PRAGMA {pragma}", settings.path)
    except BaseException:
        connection.close()
        raise
    return connection


def _close_writer(writer: Connection) -> None:
    try:
        # Empties the log even when other processes keep the file open; if they are using it, it
        # stays, and this does not wait.
        writer.run("PRAGMA wal_checkpoint(TRUNCATE)")
    except Busy:
        pass
    finally:
        writer.close()


def _attest(connection: Connection, settings: Settings) -> Durability:
    """Read back the settings and say what an acknowledged commit survives.

    Raises:
        StoreUnusable: that is less than was required.
    """
    path, driver = settings.path, settings.driver
    ((journal_mode,),) = rows_patiently(connection, "PRAGMA journal_mode", path)
    ((synchronous,),) = rows_patiently(connection, "PRAGMA synchronous", path)
    level = LEVEL_OF_SYNCHRONOUS[synchronous] if journal_mode == "wal" else "D0"
    if LEVELS.index(level) < LEVELS.index(settings.required_level):
        raise errors.StoreUnusable(
            f"{path} gives durability level {level}, but {settings.required_level} is required "
            f"(journal_mode={journal_mode}, synchronous={synchronous}). Use synchronous FULL on a local "
            "disk, or require less."
        )
    safe = is_safe_to_share(driver.version)
    version = ".".join(str(part) for part in driver.version)
    if not safe and path != MEMORY:
        _logger.warning(
            "SQLite %s has a defect that can damage a shared file, so %s is locked for this process alone. "
            "Install apsw to share it.",
            version,
            path,
        )
    return Durability(
        level=level,
        store="sqlite",
        settings={
            "path": path,
            "driver": driver.name,
            "sqlite_version": version,
            "journal_mode": str(journal_mode),
            "synchronous": str(synchronous),
            "processes": "many" if safe and path != MEMORY else "one",
        },
    )


def _require_no_clock_offset(connection: Connection, path: str) -> None:
    offset_ms = read_state(connection).clock_offset_ms
    if offset_ms != 0:
        raise errors.StoreUnusable(
            f"the clock of {path} was set {offset_ms} ms off by a test. Use a file that no test has touched."
        )


class FileLock:
    """The lock that a process holds while it has the file open.

    Raises:
        StoreUnusable: the directory is missing; or the file is open elsewhere, and one of the two
            has a SQLite that is not safe to share; or this process has it open through another
            copy of SQLite.
    """

    def __init__(self, path: str, driver: Driver) -> None:
        self._driver = driver.name
        self._descriptor = _open_lock_file(path)
        self._file = os.fstat(self._descriptor).st_ino, os.fstat(self._descriptor).st_dev
        try:
            self._lock(path, shared=is_safe_to_share(driver.version))
            self._join(path)
        except errors.StoreUnusable:
            self._close()
            raise

    def _lock(self, path: str, *, shared: bool) -> None:
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            raise errors.StoreUnusable(
                f"{path} is open in another process or over another connection of this one, and one of the "
                "two has a SQLite that is too old to share a file. Close the other one, or install apsw and "
                "use it for both."
            ) from error

    def _join(self, path: str) -> None:
        with _users_lock:
            others = _users[self._file].keys() - {self._driver}
            if others:
                raise errors.StoreUnusable(
                    f"{path} is open in this process through {min(others)}, so it cannot be used through "
                    f"{self._driver} as well: each has a SQLite of its own, and the two drop each other's "
                    f"locks. Use {min(others)} for both, or another process for one of them."
                )
            _users[self._file][self._driver] += 1

    def release(self) -> None:
        """Let go of the lock. Doing so twice is harmless."""
        with _users_lock:
            if self._descriptor < 0:
                return
            _users[self._file] -= Counter([self._driver])
            if not _users[self._file]:
                del _users[self._file]
            self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


_users: defaultdict[tuple[int, int], Counter[str]] = defaultdict(Counter)
"""For each lock file, how often this process has the database open through which driver."""

_users_lock = threading.RLock()
"""Not a plain lock: a connection that is collected lets go of its file at any moment."""


def _open_lock_file(path: str) -> int:
    """Open the lock file; it is made if needed."""
    directory = Path(path).absolute().parent
    if not directory.is_dir():
        raise errors.StoreUnusable(
            f"the directory {directory} does not exist. Create it, or choose another path."
        )
    if Path(path).is_dir():
        raise errors.StoreUnusable(f"{path} is a directory. Name a file in it.")
    try:
        return os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise errors.StoreUnusable(
            f"{path}-lock cannot be opened: {error.strerror}. Check the permissions."
        ) from error

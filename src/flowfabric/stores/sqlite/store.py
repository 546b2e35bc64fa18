"""The store in one SQLite file.

Everything runs inline on the event loop's thread, because statements take microseconds and a
second thread would only fight for the interpreter. The exception is ``COMMIT``: it writes the log
and waits for the disk, so it runs in a thread of its own. While it does, the writing connection
belongs to that thread, and others read through a second connection.

The rules this module keeps:

- One commit at a time: ``_lock`` is held from ``BEGIN IMMEDIATE`` until ``COMMIT`` has ended.
- No transaction outlives its commit. A caller that is cancelled while the thread commits leaves;
  the lock is released when the thread is done.
- Another process that holds the file's write lock is waited for without blocking the loop, and
  never longer than ``busy_timeout_ms``.
"""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import msgspec

from flowfabric import errors
from flowfabric.stores.base import Conflict
from flowfabric.stores.clock import StoreClock
from flowfabric.stores.sqlite import records
from flowfabric.stores.sqlite.borrowed import BorrowedFile, borrowed_file
from flowfabric.stores.sqlite.driver import MEMORY, Busy, default_driver
from flowfabric.stores.sqlite.opening import OpenFile, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from flowfabric.core.events import Family, StoredEvent
    from flowfabric.core.records import Key
    from flowfabric.core.work import Frame
    from flowfabric.stores.base import Commit, Durability, Loaded
    from flowfabric.stores.sqlite.driver import Connection, Driver

R = TypeVar("R")

WAL_PAGES_MAX: Final = 4_000
"""The log is checkpointed when it has grown beyond this: 16 MiB."""

BUSY_TIMEOUT_MS: Final = 5_000
CHANGE_CHECK_MS: Final = 10
"""How often ``wait_for_change`` looks. A look takes a few microseconds."""

_LEVEL_ASKED: Final = {"FULL": "D2", "NORMAL": "D1"}


class Statistics(msgspec.Struct):
    """Counters since the store was opened."""

    commits: int = 0
    conflicts: int = 0
    busy_waits: int = 0
    """How often another process had to be waited for."""
    pages_written: int | None = None
    """Pages written to log and file; None if the driver cannot tell."""


class SqliteStore:
    """A ``Store`` in one file, or in memory.

    Args:
        path: the file; it is created if it does not exist. ``:memory:`` keeps nothing.
        synchronous: ``FULL`` survives power loss; ``NORMAL`` only the end of the process.
        required_level: refuse to open below this durability level. The level that
            ``synchronous`` gives, unless set.
        wal_pages_max: checkpoint when the write-ahead log has more pages.
        busy_timeout_ms: how long to wait for another process that writes.
        allow_clock_offset: accept a file whose clock a test has moved.
        clock: the clock to live by; give one to be told when the host's clock is set back.
        driver: another driver than the default one.
    """

    def __init__(
        self,
        path: str,
        *,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        required_level: str | None = None,
        wal_pages_max: int = WAL_PAGES_MAX,
        busy_timeout_ms: int = BUSY_TIMEOUT_MS,
        allow_clock_offset: bool = False,
        clock: StoreClock | None = None,
        driver: Driver | None = None,
    ) -> None:
        self.path = path
        self.clock = clock or StoreClock()
        self._settings = Settings(
            path=path,
            driver=driver or default_driver(),
            synchronous=synchronous,
            required_level=required_level or ("D0" if path == MEMORY else _LEVEL_ASKED[synchronous]),
            wal_pages_max=wal_pages_max,
            busy_timeout_ms=busy_timeout_ms,
            allow_clock_offset=allow_clock_offset,
        )
        self._statistics = Statistics()
        self._lock = asyncio.Lock()
        self._file: OpenFile | None = None
        self._commit_thread: ThreadPoolExecutor | None = None
        self._walk_thread: ThreadPoolExecutor | None = None
        self._committing = False
        self._data_version = 0

    # Opening and closing

    async def open(self) -> Durability:
        async with self._lock:
            if self._file is not None:
                raise errors.StoreUnusable(
                    f"{self.path} is open already. Close this store before reopening it."
                )
            self._file = await self._open_in_thread()
            self._data_version = _data_version(self._file.writer)
            self._statistics = Statistics()
            return self._file.durability

    async def attest(self) -> Durability:
        # What counts are settings of our own connection, which nobody else can change.
        return self._open_file().durability

    async def _open_in_thread(self) -> OpenFile:
        if self.path == MEMORY:
            return OpenFile(self._settings)
        thread = ThreadPoolExecutor(1, thread_name_prefix="flowfabric-commit")
        opening = thread.submit(OpenFile, self._settings)
        try:
            file = await asyncio.wrap_future(opening)
        except BaseException:
            # If the caller was cancelled, the thread may have opened the file all the same.
            opening.add_done_callback(_close_if_opened)
            thread.shutdown(wait=False)
            raise
        self._commit_thread = thread
        self._walk_thread = ThreadPoolExecutor(1, thread_name_prefix="flowfabric-walk")
        return file

    async def close(self) -> None:
        async with self._lock:
            file, self._file = self._file, None
            if file is None:
                return
            commit_thread, walk_thread = self._commit_thread, self._walk_thread
            self._commit_thread = self._walk_thread = None
            # A lock belongs to the event loop it was last waited for in; the next one may be another.
            self._lock = asyncio.Lock()
            if commit_thread is None or walk_thread is None:
                file.close()
                return
            closing = commit_thread.submit(_close, file, walk_thread)
            commit_thread.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closing))

    @property
    def statistics(self) -> Statistics:
        """Counters since the store was opened."""
        if self._file is not None and not self._committing:
            self._statistics.pages_written = self._file.writer.pages_written()
        return self._statistics

    # Reading

    async def now(self) -> int:
        def read(connection: Connection) -> int:
            state = records.read_state(connection)
            return self.clock.read(state.mark_ms, state.clock_offset_ms)

        return await self._read(read)

    async def load(self, keys: Iterable[Key]) -> Loaded:
        wanted = list(keys)
        return await self._read(lambda connection: records.load_records(connection, wanted, self.clock))

    async def read_index(
        self,
        index: str,
        scope: str,
        *,
        after: tuple[int, str] | None = None,
        upto: int | None = None,
        limit: int = 100,
        descending: bool = False,
    ) -> list[tuple[int, str]]:
        return await self._read(
            lambda connection: records.read_index(
                connection, index, scope, after=after, upto=upto, limit=limit, descending=descending
            )
        )

    async def count_index(self, index: str, scope: str, *, limit: int | None = None) -> int:
        return await self._walk(lambda connection: records.count_index(connection, index, scope, limit))

    async def index_scopes(
        self, index: str, prefix: str, *, after: str | None = None, limit: int = 1_000
    ) -> list[str]:
        return await self._read(
            lambda connection: records.index_scopes(connection, index, prefix, after, limit)
        )

    async def list_keys(self, prefix: Key, *, after: Key | None = None, limit: int = 100) -> list[Key]:
        return await self._walk(lambda connection: records.list_keys(connection, prefix, after, limit))

    async def list_owned(self, identity: str, *, limit: int = 100) -> list[Key]:
        return await self._read(lambda connection: records.list_owned(connection, identity, limit))

    async def read_frames(
        self,
        stream: str,
        *,
        first: tuple[int, int] = (0, 0),
        last: tuple[int, int] | None = None,
        limit: int = 100,
    ) -> list[Frame]:
        return await self._read(
            lambda connection: records.read_frames(connection, stream, first, last, limit)
        )

    async def read_events(
        self,
        after: int,
        *,
        families: frozenset[Family] | None = None,
        namespace: str | None = None,
        execution_id: str | None = None,
        limit: int = 100,
    ) -> list[StoredEvent]:
        return await self._read(
            lambda connection: records.read_events(
                connection,
                after,
                families=families,
                namespace=namespace,
                execution_id=execution_id,
                limit=limit,
            )
        )

    async def last_event(self) -> int:
        return await self._read(records.last_event)

    async def trimmed_events(self) -> int:
        return await self._read(records.trimmed_events)

    async def wait_for_change(self, timeout_ms: int) -> bool:
        deadline = time.monotonic() + timeout_ms / 1_000
        while (remaining_ms := (deadline - time.monotonic()) * 1_000) > 0:
            await asyncio.sleep(min(remaining_ms, CHANGE_CHECK_MS) / 1_000)
            if await self._changed_elsewhere():
                return True
        return False

    async def _changed_elsewhere(self) -> bool:
        """True if another process has committed since the last time this was asked.

        The writing connection is asked, because its own commits do not count as a change to it.
        """
        async with self._lock:
            version = await self._patiently(lambda: _data_version(self._open_file().writer))
        changed = version != self._data_version
        self._data_version = version
        return changed

    async def _read(self, read: Callable[[Connection], R]) -> R:
        """Read inline, through the writing connection while it is free: its cache is warm."""
        return await self._patiently(lambda: read(self._idle_connection()))

    async def _walk(self, read: Callable[[Connection], R]) -> R:
        """Read in a thread: what may walk over many rows must not hold up the event loop."""
        walker = self._open_file().walker
        if walker is None:
            return await self._read(read)
        walking = asyncio.get_running_loop().run_in_executor(self._walk_thread, read, walker)
        try:
            return await walking
        except Busy as busy:
            raise self._locked_too_long() from busy

    def _idle_connection(self) -> Connection:
        file = self._open_file()
        return file.reader if self._committing and file.reader is not None else file.writer

    def _open_file(self) -> OpenFile:
        if self._file is None:
            raise errors.StoreUnreachable(f"the store {self.path} is not open. Open it before using it.")
        return self._file

    # Writing

    @property
    def batches_at_once(self) -> int:
        return 1

    def place_of(self, key: Key) -> int:
        return 0

    async def commit(self, commit: Commit) -> int:
        def write(connection: Connection) -> int:
            return records.apply_commit(connection, commit, self.clock)

        try:
            number = await self._transact(write)
        except Conflict:
            self._statistics.conflicts += 1
            raise
        self._statistics.commits += 1
        return number

    async def trim_events(self, upto: int, *, sparing: frozenset[Family] = frozenset()) -> None:
        await self._transact(lambda connection: records.trim_events(connection, upto, sparing))

    async def forget_events(self, family: Family, upto: int) -> None:
        await self._transact(lambda connection: records.forget_events(connection, family, upto))

    def borrow(self, connection: object) -> BorrowedFile | None:
        """This store inside a transaction of the connection; None if its kind cannot be borrowed."""
        return borrowed_file(connection, self.path, self.clock)

    async def set_clock_offset(self, offset_ms: int) -> None:
        """Shift the store's clock, in the file itself. Only tests do that; see ``flowfabric.testing``."""
        await self._transact(lambda connection: records.set_clock_offset(connection, offset_ms))

    async def _transact(self, write: Callable[[Connection], R]) -> R:
        """Run one writing transaction. Returns what ``write`` does."""
        connection = await self._begin()
        try:
            written = write(connection)
        except BaseException:
            try:
                connection.roll_back()
            finally:
                self._lock.release()
            raise
        await self._end(connection)
        return written

    async def _begin(self) -> Connection:
        """Take the lock and the file's write lock. Being cancelled here leaves nothing behind."""
        lock = self._lock
        await lock.acquire()
        try:
            connection = self._open_file().writer
            await self._patiently(lambda: connection.run("BEGIN IMMEDIATE"))
        except BaseException:
            lock.release()  # not self._lock: the store may have been closed meanwhile
            raise
        return connection

    async def _end(self, connection: Connection) -> None:
        """Make the transaction durable, and release the lock whether or not anyone still waits."""
        if self._commit_thread is None:
            try:
                _finish(connection)
            finally:
                self._lock.release()
            return
        self._committing = True
        ended = asyncio.get_running_loop().run_in_executor(self._commit_thread, _finish, connection)
        ended.add_done_callback(self._release)
        await asyncio.shield(ended)

    def _release(self, _: asyncio.Future[None]) -> None:
        self._committing = False
        self._lock.release()

    async def _patiently(self, act: Callable[[], R]) -> R:
        """Do something inline; while another process holds the lock, wait and try again."""
        deadline = 0.0
        while True:
            try:
                return act()
            except Busy as busy:
                now = time.monotonic()
                deadline = deadline or now + self._settings.busy_timeout_ms / 1_000
                if now >= deadline:
                    raise self._locked_too_long() from busy
            self._statistics.busy_waits += 1
            await asyncio.sleep(random.uniform(0.000_2, 0.003))  # noqa: S311 - spreads the tries

    def _locked_too_long(self) -> errors.StoreTimeout:
        return errors.StoreTimeout(
            f"{self.path} stayed locked by another process for {self._settings.busy_timeout_ms} ms. "
            "Find the process that holds it, then send the same request again."
        )


def _finish(connection: Connection) -> None:
    """``COMMIT``, or leave no transaction open."""
    try:
        connection.run("COMMIT")
    except Busy as busy:
        connection.roll_back()
        raise errors.StoreTimeout("the commit was blocked by another process; nothing was written.") from busy
    except BaseException:
        connection.roll_back()
        raise


def _close(file: OpenFile, walk_thread: ThreadPoolExecutor) -> None:
    walk_thread.shutdown(wait=True)
    file.close()


def _close_if_opened(opening: Future[OpenFile]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _data_version(connection: Connection) -> int:
    ((version,),) = connection.rows("PRAGMA data_version")
    return int(version)

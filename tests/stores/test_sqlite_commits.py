"""The SQLite store's commits: cancelled, blocked, failing, and what they cost."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flowfabric import errors
from flowfabric.core.events import Family
from flowfabric.core.work import Frame, Trim
from flowfabric.stores.base import Change, Conflict
from flowfabric.stores.sqlite import records
from flowfabric.stores.sqlite import store as store_module
from flowfabric.stores.sqlite.driver import ApswDriver, Connection, Driver
from tests.stores.builders import (
    commit,
    counter,
    creation,
    event,
    execution_id,
    increment,
    payload,
    record_of,
    version_of,
)


class Gate:
    """Holds the commit thread until a test lets it through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = asyncio.Event()
        self._open = threading.Event()
        self._finish = store_module._finish
        self._loop = asyncio.get_running_loop()
        monkeypatch.setattr(store_module, "_finish", self.finish)

    def finish(self, connection: Connection) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self._open.wait(10)
        self._finish(connection)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
async def gate(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open()


@pytest.fixture
async def file_store(open_store: Any, driver: Driver) -> Any:
    return await open_store(driver=driver)


class TestWhileACommitIsInFlight:
    async def test_readers_see_the_state_before_it(self, file_store: Any, gate: Gate) -> None:
        committing = asyncio.ensure_future(file_store.commit(creation(counter(), payload())))
        await gate.reached.wait()
        assert await version_of(file_store, counter().key) == 0
        assert await file_store.count_index("due", "") == 0
        gate.open()
        await committing
        assert await version_of(file_store, counter().key) > 0

    async def test_a_caller_that_is_cancelled_does_not_stop_it(self, file_store: Any, gate: Gate) -> None:
        committing = asyncio.ensure_future(file_store.commit(creation(counter(count=1))))
        await gate.reached.wait()
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
        following = asyncio.ensure_future(file_store.commit(creation(counter(2))))
        await asyncio.sleep(0)
        gate.open()
        await following
        assert (await record_of(file_store, counter().key)).frame_count == 1

    async def test_one_that_still_waits_can_be_cancelled_without_a_trace(
        self, file_store: Any, gate: Gate
    ) -> None:
        committing = asyncio.ensure_future(file_store.commit(creation(counter(1))))
        await gate.reached.wait()
        waiting = asyncio.ensure_future(file_store.commit(creation(counter(2))))
        await asyncio.sleep(0)
        waiting.cancel()
        gate.open()
        await committing
        assert await version_of(file_store, counter(2).key) == 0
        await file_store.commit(creation(counter(3)))

    async def test_closing_waits_for_it(
        self, open_store: Any, file_store: Any, gate: Gate, driver: Driver
    ) -> None:
        committing = asyncio.ensure_future(file_store.commit(creation(counter(count=1))))
        await gate.reached.wait()
        closing = asyncio.ensure_future(file_store.close())
        await asyncio.sleep(0)
        assert not closing.done()
        gate.open()
        await asyncio.gather(committing, closing)
        reopened = await open_store(driver=driver)
        assert (await record_of(reopened, counter().key)).frame_count == 1

    async def test_what_comes_after_the_closing_is_refused(self, file_store: Any, gate: Gate) -> None:
        committing = asyncio.ensure_future(file_store.commit(creation(counter(1))))
        await gate.reached.wait()
        calls = [file_store.close(), file_store.commit(creation(counter(2))), file_store.wait_for_change(1)]
        late = asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0)
        gate.open()
        await committing
        _, refused, also_refused = await late
        assert isinstance(refused, errors.StoreUnreachable)
        assert isinstance(also_refused, errors.StoreUnreachable)


class TestFaults:
    async def test_a_full_disk_changes_nothing_and_passes(self, file_store: Any) -> None:
        writer = file_store._file.writer
        ((pages,),) = writer.rows("PRAGMA page_count")
        writer.run(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(errors.StoreFull, match="Free space"):
            await file_store.commit(creation(counter(), payload(data=b"x" * 100_000)))
        assert await version_of(file_store, counter().key) == 0
        writer.run("PRAGMA max_page_count = 1000000")
        await file_store.commit(creation(counter()))

    async def test_a_commit_that_fails_in_the_thread_is_rolled_back(self, file_store: Any) -> None:
        class FailingConnection:
            """Passes everything on, except COMMIT."""

            def __init__(self, inner: Connection) -> None:
                self.inner = inner

            def __getattr__(self, name: str) -> Any:
                return getattr(self.inner, name)

            def run(self, sql: str, values: Any = ()) -> None:
                if sql == "COMMIT":
                    raise errors.StoreUnreachable("the disk is gone")
                self.inner.run(sql, values)

        writer = file_store._file.writer
        file_store._file.writer = FailingConnection(writer)
        with pytest.raises(errors.StoreUnreachable, match="the disk is gone"):
            await file_store.commit(creation(counter()))
        file_store._file.writer = writer
        assert await version_of(file_store, counter().key) == 0
        await file_store.commit(creation(counter()))

    async def test_an_index_row_that_is_not_there_is_a_fault(self, file_store: Any) -> None:
        with pytest.raises(errors.StoreCorrupt, match="1 of 1 rows were not there"):
            await file_store.commit(
                commit(changes=creation(counter()).changes, rows_removed=[("due", "", 1, "x")])
            )
        assert await version_of(file_store, counter().key) == 0

    async def test_an_index_row_that_is_there_already_is_a_fault(self, file_store: Any) -> None:
        await file_store.commit(commit(rows_added=[("due", "", 1, "x")]))
        with pytest.raises(errors.StoreCorrupt, match="a row exists already"):
            await file_store.commit(
                commit(changes=creation(counter()).changes, rows_added=[("due", "", 1, "x")])
            )
        assert await version_of(file_store, counter().key) == 0

    async def test_a_record_that_cannot_be_decoded_is_a_fault(self, file_store: Any) -> None:
        await file_store.commit(creation(counter()))
        file_store._file.writer.run("UPDATE record SET data = x'c1'")
        with pytest.raises(errors.StoreCorrupt, match=r"record='stream/"):
            await file_store.load([counter().key])


class TestWaitingForAnotherProcess:
    async def test_a_file_that_stays_locked_is_given_up(self, open_store: Any, path: str) -> None:
        store = await open_store(busy_timeout_ms=20)
        other = ApswDriver().connect(path)
        other.run("BEGIN IMMEDIATE")
        with pytest.raises(errors.StoreTimeout, match="stayed locked by another process for 20 ms"):
            await store.commit(creation(counter()))
        other.close()
        await store.commit(creation(counter()))

    async def test_the_loop_goes_on_and_the_commit_follows(self, open_store: Any, path: str) -> None:
        store = await open_store()
        other = ApswDriver().connect(path)
        other.run("BEGIN IMMEDIATE")
        committing = asyncio.ensure_future(store.commit(creation(counter())))
        await asyncio.sleep(0)
        assert store.statistics.busy_waits == 1
        other.close()
        await committing
        assert await version_of(store, counter().key) > 0

    async def test_another_commit_ends_the_waiting_and_an_own_one_does_not(self, open_store: Any) -> None:
        ours, theirs = await open_store(), await open_store()
        await ours.commit(creation(counter(1)))
        assert await ours.wait_for_change(1) is False
        await theirs.commit(creation(counter(2)))
        assert await ours.wait_for_change(60_000) is True
        assert await ours.wait_for_change(1) is False

    async def test_the_waiting_can_be_cancelled(self, open_store: Any) -> None:
        store = await open_store()
        waiting = asyncio.ensure_future(store.wait_for_change(60_000))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await store.commit(creation(counter()))

    async def test_increments_of_two_stores_all_count(self, open_store: Any) -> None:
        stores = [await open_store(), await open_store()]
        await stores[0].commit(creation(counter()))
        await asyncio.gather(*(increment(store, counter().key) for store in stores * 10))
        assert (await record_of(stores[0], counter().key)).frame_count == 20


class TestCost:
    async def test_the_log_is_emptied_when_it_has_grown(self, open_store: Any, path: str) -> None:
        store = await open_store(wal_pages_max=20)
        for number in range(30):
            await store.commit(creation(payload(number, b"x" * 8_000)))
        assert log_size(path) < 50 * 4_096

    async def test_it_counts_what_it_does(self, open_store: Any) -> None:
        store = await open_store()
        await store.commit(creation(counter()))
        with pytest.raises(Conflict):
            await store.commit(creation(counter()))
        assert (store.statistics.commits, store.statistics.conflicts) == (1, 1)
        assert store.statistics.pages_written > 0

    async def test_nothing_scans_a_table_or_sorts(self, driver: Driver, open_store: Any) -> None:
        store = await open_store(driver=driver)
        connection = SqlRecorder(store._file.writer)
        stream, both = f"{execution_id()}/0", frozenset({Family.OPERATOR, Family.SIGNAL})
        with connection:
            records.apply_commit(
                connection,
                commit(
                    changes=creation(counter(), payload()).changes,
                    rows_added=[("due", "", 1, "x")],
                    events=[event()],
                    appends=[Frame(stream, 1, seq, b"") for seq in range(3)],
                    trims=[Trim(stream, 1)],
                ),
                store.clock,
            )
        records.load_records(connection, [counter().key, payload().key], store.clock)
        records.read_index(connection, "due", "", after=(1, "a"), upto=5, limit=9, descending=False)
        records.read_index(connection, "due", "", after=(1, "a"), upto=5, limit=9, descending=True)
        records.index_scopes(connection, "due", "a", None, 9)
        records.read_frames(connection, stream, (0, 0), (9, 9), 9)
        for families in (None, both):
            for namespace in (None, "tenant"):
                for one in (None, execution_id()):
                    records.read_events(
                        connection, 0, families=families, namespace=namespace, execution_id=one, limit=9
                    )
        records.trimmed_events(connection)
        with connection:
            records.trim_events(connection, 1)
        records.list_owned(connection, execution_id(), 9)
        records.list_keys(connection, "stream/{fp:7}:0190", None, 9)
        assert len(connection.statements) > 15
        slow = [
            (statement, detail)
            for statement in connection.statements
            for *_, detail in store._file.writer.rows(
                f"EXPLAIN QUERY PLAN {statement}", connection.values[statement]
            )
            if ("SCAN" in detail or "TEMP B-TREE" in detail) and not detail.startswith(HARMLESS)
        ]
        assert slow == []


def file_size(path: str) -> int:
    return Path(path).stat().st_size


def log_size(path: str) -> int:
    return Path(f"{path}-wal").stat().st_size


HARMLESS = (
    "SCAN scopes",
    "SCAN wanted",
    "SCAN state",
    "SCAN (subquery",
    "SCAN CONSTANT ROW",
    "SCAN 2 CONSTANT",
)
"""The wanted keys, the one row of state, and intermediate results that have a limit."""


class SqlRecorder:
    """A connection that remembers each statement with the values it was last given."""

    def __init__(self, inner: Connection) -> None:
        self.inner = inner
        self.values: dict[str, Any] = {}

    @property
    def statements(self) -> list[str]:
        return list(self.values)

    def __enter__(self) -> None:
        self.inner.run("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self.inner.run("COMMIT")

    def run(self, sql: str, values: Any = ()) -> None:
        self.rows(sql, values)

    def rows(self, sql: str, values: Any = ()) -> Any:
        self.values[sql] = values
        return self.inner.rows(sql, values)

    def many(self, sql: str, sequence: Any) -> int:
        self.values[sql] = sequence[0]
        return self.inner.many(sql, sequence)

    def roll_back(self) -> None:
        self.inner.roll_back()

    def pages_written(self) -> int | None:
        return self.inner.pages_written()

    def close(self) -> None:
        self.inner.close()


async def test_a_file_that_is_filled_and_trimmed_again_and_again_does_not_grow(
    open_store: Any, path: str
) -> None:
    store = await open_store(wal_pages_max=20)
    sizes = []
    for _ in range(6):
        for number in range(20):
            await store.commit(creation(payload(number, b"x" * 8_000)))
        await store.commit(commit(events=[event(number) for number in range(200)]))
        for number in range(20):
            [(key, version, _)] = (await store.load([payload(number).key])).rows
            await store.commit(commit(changes=[Change(key, version, None)]))
        await store.trim_events(await store.last_event())
        sizes.append(file_size(path))
    assert max(sizes[1:]) <= sizes[1]

"""What is particular to connections of sqlite3 and apsw."""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from flowfabric import FlowFabric, errors
from flowfabric.stores.sqlite import SqliteStore, migrate
from flowfabric.stores.sqlite.driver import ApswDriver, StandardDriver
from flowfabric.stores.sqlite.opening import FileLock

PATIENCE_S = 20.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file with the store's tables."""
    made = str(tmp_path / "work.db")
    migrate(made)
    return made


@pytest.fixture
def app(path: str) -> FlowFabric:
    """An app that is not started."""
    return FlowFabric(f"sqlite:///{path}")


@pytest.fixture
def connection(path: str) -> Iterator[sqlite3.Connection]:
    """A connection of the standard library."""
    with closing(sqlite3.connect(path, timeout=PATIENCE_S)) as made:
        yield made


@pytest.fixture
def through_apsw(path: str) -> Iterator[apsw.Connection]:
    """A connection of apsw."""
    with closing(apsw.Connection(path)) as made:
        made.set_busy_timeout(int(PATIENCE_S * 1_000))
        yield made


@pytest.fixture
async def started(app: FlowFabric) -> AsyncIterator[FlowFabric]:
    """The same app, started."""
    await app.start(scanners=False)
    yield app
    await app.stop()


def executions(path: str) -> int:
    """How many executions there are."""
    with closing(apsw.Connection(path)) as found:
        ((count,),) = found.execute("SELECT count(*) FROM index_row WHERE name = 'eligible'")
        return int(count)


class TestSettings:
    """The connection's own settings do not matter."""

    def submit_and_count(self, app: FlowFabric, connection: sqlite3.Connection, path: str) -> int:
        for _ in range(2):
            app.within(connection).submit("double", {"text": "é"}, idempotency_key="order-7")
        connection.commit()
        connection.close()
        return executions(path)

    def test_row_and_text_factories(self, app, connection, path) -> None:
        connection.row_factory = sqlite3.Row
        connection.text_factory = bytes
        assert self.submit_and_count(app, connection, path) == 1
        assert connection.text_factory is bytes

    def test_converters_for_declared_types(self, app, path, monkeypatch) -> None:
        for declared in ("TEXT", "INTEGER", "BLOB"):
            monkeypatch.setitem(sqlite3.converters, declared, lambda value: [value])
        with closing(sqlite3.connect(path, detect_types=sqlite3.PARSE_DECLTYPES)) as connection:
            assert self.submit_and_count(app, connection, path) == 1

    def test_an_explicit_transaction_in_autocommit_mode(self, app, connection, path) -> None:
        connection.isolation_level = None
        connection.execute("BEGIN IMMEDIATE")
        assert self.submit_and_count(app, connection, path) == 1

    def test_tracers_of_apsw(self, app, through_apsw, path) -> None:
        through_apsw.row_trace = lambda cursor, row: {"row": row}
        through_apsw.exec_trace = lambda cursor, sql, values: "execution" not in sql
        with through_apsw:
            for _ in range(2):
                app.within(through_apsw).submit("double", 7, idempotency_key="order-7")
        assert executions(path) == 1


class TestTransactions:
    def test_autocommit_is_refused(self, app, connection, through_apsw, path) -> None:
        with pytest.raises(errors.TransactionRequired, match="BEGIN IMMEDIATE"):
            app.within(through_apsw).submit("double", 7)
        through_apsw.close()
        connection.isolation_level = None
        with pytest.raises(errors.TransactionRequired, match="BEGIN IMMEDIATE"):
            app.within(connection).submit("double", 7)
        connection.close()
        assert executions(path) == 0

    def test_a_transaction_that_reads_an_older_state_cannot_write(self, app, through_apsw, path) -> None:
        through_apsw.execute("BEGIN")
        through_apsw.execute("SELECT * FROM state").fetchall()
        with closing(apsw.Connection(path)) as other:
            other.execute("CREATE TABLE others (number)")
        with pytest.raises(errors.TransactionOutdated, match="BEGIN IMMEDIATE"):
            app.within(through_apsw).submit("double", 7)
        through_apsw.execute("ROLLBACK; BEGIN IMMEDIATE")
        app.within(through_apsw).submit("double", 7)
        through_apsw.execute("COMMIT")
        assert executions(path) == 1

    def test_another_writer_is_waited_for_no_longer_than_the_connection_wants(
        self, app, through_apsw, path
    ) -> None:
        through_apsw.set_busy_timeout(10)
        through_apsw.execute("BEGIN")
        with closing(apsw.Connection(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(errors.StoreTimeout, match="busy timeout"):
                app.within(through_apsw).submit("double", 7)
        app.within(through_apsw).submit("double", 7)
        through_apsw.execute("COMMIT")
        assert executions(path) == 1

    async def test_the_engine_waits_for_the_users_commit(self, started, through_apsw) -> None:
        through_apsw.execute("BEGIN IMMEDIATE")
        run = started.within(through_apsw).submit("double", 7)
        through_apsw.execute("COMMIT")
        again = await started.submit("double", 7, execution_id=run.execution_id)
        assert again.duplicate


class TestConnections:
    @pytest.mark.parametrize("elsewhere", [":memory:", "other.db"])
    def test_one_to_another_database_is_refused(self, app, tmp_path, elsewhere) -> None:
        place = elsewhere if elsewhere == ":memory:" else str(tmp_path / elsewhere)
        with closing(sqlite3.connect(place)) as connection:
            connection.execute("CREATE TABLE orders (number)")
            with pytest.raises(errors.UnusableConnection, match="main database"):
                app.within(connection).submit("double", 7)

    def test_an_attached_store_is_refused(self, app, tmp_path, path) -> None:
        with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
            connection.execute("ATTACH ? AS store", (path,))
            with pytest.raises(errors.UnusableConnection, match="attached"):
                app.within(connection).submit("double", 7)

    def test_a_temporary_table_that_hides_the_stores_is_refused(self, app, connection) -> None:
        connection.execute("CREATE TEMP TABLE event (number)")
        with pytest.raises(errors.UnusableConnection, match="'event' hides"):
            app.within(connection).submit("double", 7)

    def test_a_file_without_the_stores_tables_is_refused(self, tmp_path) -> None:
        new = str(tmp_path / "new.db")
        with closing(sqlite3.connect(new)) as connection:
            connection.execute("BEGIN")
            connection.execute("PRAGMA user_version").fetchall()
            with pytest.raises(errors.StoreUnusable, match="flowfabric migrate"):
                FlowFabric(f"sqlite:///{new}").within(connection).submit("double", 7)

    def test_one_of_another_kind_of_database_is_refused(self, connection) -> None:
        with pytest.raises(errors.UnusableConnection, match=r"MemoryStore.*sqlite3\.Connection"):
            FlowFabric("memory://").within(connection)
        app: Any = FlowFabric("sqlite:///work.db")
        with pytest.raises(errors.UnusableConnection, match=r"SqliteStore.*builtins\.object"):
            app.within(object())


class TestCopiesOfSqlite:
    """Two copies of SQLite on one file in one process drop each other's locks."""

    async def test_the_standard_library_is_refused_while_the_engine_uses_apsw(
        self, started, connection, new_sqlite3
    ) -> None:
        with pytest.raises(errors.StoreUnusable, match="open in this process through apsw"):
            started.within(connection).submit("double", 7)

    async def test_the_engine_is_refused_until_the_users_connection_is_closed(
        self, app, connection, new_sqlite3
    ) -> None:
        app.within(connection).submit("double", 7)
        connection.commit()
        with pytest.raises(errors.StoreUnusable, match="open in this process through sqlite3"):
            await app.start()
        connection.close()
        async with app:
            assert await app.engine.store.now() > 0

    def test_an_old_sqlite_is_refused_while_others_have_the_file_open(self, app, connection, path) -> None:
        other = FileLock(path, StandardDriver())
        with pytest.raises(errors.StoreUnusable, match=r"too old to share.*apsw"):
            app.within(connection).submit("double", 7)
        other.release()

    async def test_an_old_sqlite_keeps_others_out_until_its_connection_is_closed(
        self, app, connection, path
    ) -> None:
        run = app.within(connection).submit("double", 7)
        with pytest.raises(errors.StoreUnusable, match="too old to share"):
            FileLock(path, ApswDriver())
        connection.commit()
        connection.close()
        async with app:
            assert await app.run(run.execution_id).state()

    def test_a_store_over_the_standard_library_shares_with_its_connections(
        self, connection, path, new_sqlite3
    ) -> None:
        app = FlowFabric(store=SqliteStore(path, driver=StandardDriver()))
        for number in range(2):
            app.within(connection).submit("double", number)
            connection.commit()
        connection.close()
        assert executions(path) == 2

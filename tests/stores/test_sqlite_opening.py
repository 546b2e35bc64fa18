"""Opening a file: what is promised, and what is refused."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowfabric import errors
from flowfabric.stores.sqlite import SqliteStore, migrate
from flowfabric.stores.sqlite.driver import ApswDriver, Driver, StandardDriver, default_driver
from flowfabric.stores.sqlite.schema import APPLICATION_ID, MIGRATIONS, Migration, migrate_connection
from tests.stores.builders import counter, creation, record_of


async def refused(path: str, kind: type[errors.StoreError], words: str, **options: Any) -> None:
    with pytest.raises(kind, match=words):
        await SqliteStore(path, **options).open()


def content_of(path: str) -> bytes:
    return Path(path).read_bytes()


def write(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def log_exists(path: str) -> bool:
    return Path(f"{path}-wal").exists()


class TestDurability:
    async def test_memory_survives_nothing(self) -> None:
        store = SqliteStore(":memory:")
        assert (await store.open()).level == "D0"
        await store.close()

    @pytest.mark.parametrize(("synchronous", "level"), [("FULL", "D2"), ("NORMAL", "D1")])
    async def test_the_level_is_read_back_from_the_settings(
        self, path: str, driver: Driver, synchronous: Any, level: str
    ) -> None:
        store = SqliteStore(path, synchronous=synchronous, driver=driver)
        durability = await store.open()
        await store.close()
        assert durability.level == level
        assert durability.store == "sqlite"
        assert durability.settings["journal_mode"] == "wal"
        assert durability.settings["driver"] == driver.name

    async def test_less_than_required_is_refused(self, path: str) -> None:
        await refused(
            path, errors.StoreUnusable, "D1, but D2 is required", synchronous="NORMAL", required_level="D2"
        )
        await refused(":memory:", errors.StoreUnusable, "D0, but D1 is required", required_level="D1")

    async def test_a_refused_file_is_not_left_locked(self, path: str) -> None:
        await refused(
            path, errors.StoreUnusable, "D3 is required", driver=StandardDriver(), required_level="D3"
        )
        store = SqliteStore(path, driver=StandardDriver())
        await store.open()
        await store.close()


class TestLifecycle:
    async def test_what_was_committed_is_there_after_reopening(self, path: str, driver: Driver) -> None:
        store = SqliteStore(path, driver=driver)
        await store.open()
        await store.commit(creation(counter(count=7)))
        await store.close()
        assert not log_exists(path)
        await store.open()
        assert (await record_of(store, counter().key)).frame_count == 7
        await store.close()

    async def test_closing_twice_is_harmless(self, open_store: Any) -> None:
        store = await open_store()
        await store.close()
        await store.close()

    async def test_a_store_that_is_not_open_says_so(self, path: str) -> None:
        store = SqliteStore(path)
        for call in (
            store.now(),
            store.load(["a/b"]),
            store.commit(creation(counter())),
            store.count_index("a", ""),
        ):
            with pytest.raises(errors.StoreUnreachable, match="is not open"):
                await call

    async def test_opening_an_open_store_is_refused(self, open_store: Any) -> None:
        store = await open_store()
        with pytest.raises(errors.StoreUnusable, match="is open already"):
            await store.open()
        assert await store.now() > 0

    async def test_an_opening_that_is_cancelled_leaves_nothing_open(self, path: str) -> None:
        opening = asyncio.ensure_future(SqliteStore(path, driver=StandardDriver()).open())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        store = SqliteStore(path, driver=StandardDriver())
        async with asyncio.timeout(60):
            while True:
                try:
                    await store.open()
                    break
                except errors.StoreUnusable:
                    await asyncio.sleep(0.001)
        await store.close()


class TestRefusals:
    async def test_a_missing_directory(self, tmp_path: Path) -> None:
        await refused(
            str(tmp_path / "no" / "work.db"),
            errors.StoreUnusable,
            "directory .*/no does not exist. Create it",
        )

    async def test_a_directory(self, tmp_path: Path) -> None:
        await refused(str(tmp_path), errors.StoreUnusable, "is a directory")

    async def test_a_file_that_is_no_database(self, path: str, driver: Driver) -> None:
        write(path, b"not a database, but long enough to look at" * 100)
        await refused(path, errors.StoreCorrupt, "not a SQLite database", driver=driver)

    @pytest.mark.parametrize("statement", ["CREATE TABLE theirs (a)", "PRAGMA application_id = 7"])
    async def test_the_database_of_another_program_is_left_as_it_was(
        self, path: str, driver: Driver, statement: str
    ) -> None:
        connection = driver.connect(path)
        connection.run("PRAGMA journal_mode = DELETE")
        connection.run(statement)
        connection.close()
        before = content_of(path)
        await refused(path, errors.StoreUnusable, "another program", driver=driver)
        assert content_of(path) == before

    async def test_a_damaged_file(self, path: str, driver: Driver) -> None:
        migrate(path, driver)
        content = content_of(path)
        write(path, content[:4096] + b"\xa5" * (len(content) - 4096))
        await refused(path, errors.StoreCorrupt, "damaged.*restore a backup", driver=driver)

    async def test_a_clock_that_a_test_has_moved(self, open_store: Any, path: str) -> None:
        store = await open_store()
        await store.set_clock_offset(5_000)
        await store.close()
        await refused(path, errors.StoreUnusable, "set 5000 ms off by a test")
        await open_store(allow_clock_offset=True)


class TestSharing:
    async def test_a_sqlite_that_is_too_old_to_share_keeps_others_out(
        self, open_store: Any, path: str
    ) -> None:
        old = await open_store(driver=StandardDriver())
        for driver in (StandardDriver(), ApswDriver()):
            await refused(path, errors.StoreUnusable, "open in another process.*install apsw", driver=driver)
        await old.close()
        await open_store()
        await refused(path, errors.StoreUnusable, "open in another process", driver=StandardDriver())

    async def test_the_standard_library_may_share_when_its_sqlite_is_new_enough(
        self, open_store: Any
    ) -> None:
        class NewStandardDriver(StandardDriver):
            def __init__(self) -> None:
                super().__init__()
                self.version = (3, 51, 3)

        for _ in range(2):
            store = await open_store(driver=NewStandardDriver())
        assert await store.now() > 0

    async def test_many_may_open_a_new_file_at_once(self, path: str) -> None:
        stores = [SqliteStore(path) for _ in range(6)]
        await asyncio.gather(*(store.open() for store in stores))
        await stores[0].commit(creation(counter(count=1)))
        assert [(await record_of(store, counter().key)).frame_count for store in stores] == [1] * 6
        await asyncio.gather(*(store.close() for store in stores))

    def test_apsw_is_the_default(self) -> None:
        assert isinstance(default_driver(), ApswDriver)


class TestMigrations:
    NEXT = Migration(
        len(MIGRATIONS) + 1, "one more table", "CREATE TABLE more (a);\nCREATE TABLE most (a);\n"
    )

    def test_migrating_says_what_it_applied(self, path: str, driver: Driver) -> None:
        assert migrate(path, driver) == list(MIGRATIONS)
        assert migrate(path, driver) == []

    def test_a_file_is_brought_forward(self, path: str, driver: Driver) -> None:
        migrate(path, driver)
        connection = driver.connect(path)
        assert migrate_connection(connection, path, (*MIGRATIONS, self.NEXT)) == [self.NEXT]
        assert connection.rows("SELECT number, checksum FROM migration ORDER BY number")[-1] == (
            self.NEXT.number,
            self.NEXT.checksum,
        )
        assert connection.rows("SELECT * FROM most") == []
        connection.close()

    async def test_a_file_of_a_newer_version_is_refused(self, path: str, driver: Driver) -> None:
        connection = driver.connect(path)
        migrate_connection(connection, path, (*MIGRATIONS, self.NEXT))
        connection.close()
        await refused(path, errors.StoreUnusable, "newer version.*Upgrade FlowFabric", driver=driver)

    async def test_an_altered_migration_is_refused(self, path: str, driver: Driver) -> None:
        altered = msgspec.structs.replace(MIGRATIONS[0], script=MIGRATIONS[0].script + " ")
        connection = driver.connect(path)
        migrate_connection(connection, path, (altered, *MIGRATIONS[1:]))
        connection.close()
        await refused(path, errors.StoreUnusable, "schema step 1 differs", driver=driver)

    def test_a_migration_that_fails_leaves_no_trace(self, path: str, driver: Driver) -> None:
        broken = Migration(self.NEXT.number, "broken", "CREATE TABLE more (a);\nCREATE TABLE record (a);\n")
        connection = driver.connect(path)
        with pytest.raises(errors.StoreError):
            migrate_connection(connection, path, (*MIGRATIONS, broken))
        assert connection.rows("SELECT name FROM sqlite_master") == []
        assert connection.rows("PRAGMA application_id") == [(0,)]
        connection.close()

    def test_the_file_carries_our_mark(self, path: str, driver: Driver) -> None:
        migrate(path, driver)
        connection = driver.connect(path)
        assert connection.rows("PRAGMA application_id") == [(APPLICATION_ID,)]
        connection.close()

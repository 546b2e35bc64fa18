"""Which databases are opened, which are refused, and what is told about them."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from flowfabric import errors
from flowfabric.stores.clock import StoreClock
from flowfabric.stores.postgres import PostgresStore, migrate, pending
from flowfabric.stores.postgres.faults import store_error
from flowfabric.stores.postgres.opening import attest
from flowfabric.stores.postgres.schema import MIGRATIONS, Migration
from tests.postgres import Server, schema_of, server
from tests.stores.builders import counter, creation, record_of, version_of


async def run(sql: str, database: str = "postgres") -> None:
    """Do something to the server behind the store's back."""
    connection = await asyncpg.connect(server().url(database))
    await connection.execute(sql)
    await connection.close()


async def refused(store: PostgresStore, error: type[Exception], words: str) -> None:
    """Opening fails, says why, and leaves no connection open."""
    with pytest.raises(error, match=words):
        await store.open()
    with pytest.raises(errors.StoreUnreachable, match="is not open"):
        await store.now()
    assert store._connections._idle == []


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[str]:
    """The name of a database that is removed again."""
    name = f"db_{schema_of(tmp_path)}"
    await run(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY wal_log")
    yield name
    await run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def durable() -> Iterator[Server]:
    """A server as it comes: it waits for the disk."""
    made = Server({})
    yield made
    made.remove()


class TestDurability:
    async def test_a_server_that_does_not_wait_for_the_disk_gives_d1(self, tmp_path: Path) -> None:
        store = server().store(tmp_path)
        durability = await store.open()
        await store.close()
        assert (durability.level, durability.store) == ("D1", "postgres")
        assert durability.settings["fsync"] == "off"

    async def test_more_than_it_gives_is_refused_by_default(self, tmp_path: Path) -> None:
        store = PostgresStore(server().url(), schema=schema_of(tmp_path))
        await refused(store, errors.StoreUnusable, "level D1, but D2 is required.*fsync=off")

    async def test_asynchronous_commits_give_d0(self, database: str) -> None:
        await run(f"ALTER DATABASE {database} SET synchronous_commit = off")
        store = PostgresStore(server().url(database), required_level="D1")
        await refused(store, errors.StoreUnusable, "level D0.*synchronous_commit=off")

    @pytest.mark.slow
    async def test_a_server_as_it_comes_gives_d2(self, durable: Server) -> None:
        store = PostgresStore(durable.url())
        assert (await store.open()).level == "D2"
        await store.close()


class TestRefusals:
    @pytest.mark.parametrize(
        ("setting", "error", "words"),
        [
            ("default_transaction_isolation = 'serializable'", errors.StoreUnusable, "read committed"),
            ("default_transaction_read_only = on", errors.StoreUnreachable, "read only by default"),
        ],
    )
    async def test_a_database_with_other_defaults(
        self, database: str, setting: str, error: type[Exception], words: str
    ) -> None:
        await run(f"ALTER DATABASE {database} SET {setting}")
        await refused(PostgresStore(server().url(database), required_level="D1"), error, words)

    async def test_another_encoding(self, tmp_path: Path) -> None:
        name = f"ascii_{schema_of(tmp_path)}"
        await run(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' STRATEGY wal_log")
        store = PostgresStore(server().url(name), required_level="D1")
        await refused(store, errors.StoreUnusable, "server_encoding 'SQL_ASCII'")
        await run(f"DROP DATABASE {name}")

    async def test_an_old_server(self, tmp_path: Path) -> None:
        class OldServer:
            settings = server().store(tmp_path).settings

            async def fetch(self, sql: str) -> list[dict[str, Any]]:
                return [{"number": 140_011, "server_version": "14.11"}]

        with pytest.raises(errors.StoreUnusable, match=r"14\.11; 15 or newer"):
            await attest(OldServer(), "D0")  # type: ignore[arg-type]

    async def test_a_database_that_does_not_exist(self) -> None:
        await refused(PostgresStore(server().url("nowhere")), errors.StoreUnusable, "3D000.*the database")

    async def test_a_server_that_is_not_there(self, tmp_path: Path) -> None:
        store = PostgresStore(f"postgresql://me:secret@/work?host={tmp_path}")
        await refused(store, errors.StoreUnreachable, "cannot be reached")

    async def test_errors_and_settings_keep_the_password_to_themselves(self, tmp_path: Path) -> None:
        store = PostgresStore(f"postgresql://me:s3cret@/work?host={tmp_path}&password=s3cret")
        with pytest.raises(errors.StoreUnreachable) as raised:
            await store.open()
        assert "s3cret" not in f"{raised.value}{raised.value!r}{store.settings!r}"

    async def test_a_schema_with_tables_of_another_program(self, tmp_path: Path) -> None:
        schema = schema_of(tmp_path)
        await run(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.theirs (a integer)")
        store = server().store(tmp_path)
        await refused(store, errors.StoreUnusable, "another program .theirs.*Choose another schema")

    async def test_a_clock_that_a_test_has_moved(self, tmp_path: Path) -> None:
        store = server().store(tmp_path)
        await store.open()
        await store.set_clock_offset(5_000)
        await store.close()
        await refused(store, errors.StoreUnusable, "5000 ms off by a test")
        allowed = server().store(tmp_path, allow_clock_offset=True)
        await allowed.open()
        await allowed.close()


class TestLifecycle:
    async def test_a_store_that_is_not_open_says_so(self, tmp_path: Path) -> None:
        store = server().store(tmp_path)
        for call in (store.now(), store.load(["a/b"]), store.commit(creation(counter()))):
            with pytest.raises(errors.StoreUnreachable, match="is not open"):
                await call
        await store.close()

    async def test_opening_an_open_store_is_refused_and_harmless(self, tmp_path: Path) -> None:
        store = server().store(tmp_path)
        await store.open()
        with pytest.raises(errors.StoreUnusable, match="is open already"):
            await store.open()
        assert await store.now() > 0
        await store.close()
        await store.close()

    async def test_the_time_is_the_servers(self, tmp_path: Path) -> None:
        store = server().store(tmp_path)
        await store.open()
        ((server_ms,),) = await store._connections.fetch(
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
        )
        assert 0 <= await store.now() - server_ms + 1 < 60_000
        store.clock = StoreClock(lambda: 5)
        assert await store.now() == 5
        await store.close()

    @pytest.mark.slow
    async def test_a_killed_server_is_unreachable_and_then_has_everything_it_acknowledged(
        self, durable: Server, tmp_path: Path
    ) -> None:
        store = durable.store(tmp_path, required_level="D2")
        await store.open()
        acknowledged = 0
        while acknowledged < 20:
            await store.commit(creation(counter(acknowledged)))
            acknowledged += 1
        durable.stop(signal.SIGKILL)
        async with asyncio.timeout(60):  # its children need a moment to notice
            while not all(connection.is_closed() for _, connection in store._connections._idle):
                await asyncio.sleep(0.001)
        for call in (store.now(), store.commit(creation(counter(99))), store.last_event()):
            with pytest.raises(errors.StoreUnreachable):
                await call
        durable.start()
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await record_of(store, counter(acknowledged - 1).key) == counter(acknowledged - 1)
                    break
                except errors.StoreUnreachable:
                    await asyncio.sleep(0.01)
        assert all([await version_of(store, counter(number).key) for number in range(acknowledged)])
        await store.commit(creation(counter(99)))
        assert await store.wait_for_change(10) in (True, False)
        await store.close()


class TestMigrations:
    NEXT = Migration(len(MIGRATIONS) + 1, "one more table", "CREATE TABLE {schema}.more (a integer);")

    async def test_migrating_says_what_it_applied_and_what_is_pending(self, tmp_path: Path) -> None:
        settings = server().store(tmp_path).settings
        assert await pending(settings) == list(MIGRATIONS)
        assert await migrate(settings) == list(MIGRATIONS)
        assert await migrate(settings) == await pending(settings) == []

    async def test_a_schema_is_brought_forward(self, tmp_path: Path) -> None:
        settings = server().store(tmp_path).settings
        await migrate(settings)
        assert await migrate(settings, (*MIGRATIONS, self.NEXT)) == [self.NEXT]

    async def test_a_schema_of_a_newer_version_is_refused(self, tmp_path: Path) -> None:
        store = server().store(tmp_path)
        await migrate(store.settings, (*MIGRATIONS, self.NEXT))
        await refused(store, errors.StoreUnusable, "newer version.*Upgrade FlowFabric")

    async def test_an_altered_migration_is_refused(self, tmp_path: Path) -> None:
        store = server().store(tmp_path)
        altered = msgspec.structs.replace(MIGRATIONS[0], script=MIGRATIONS[0].script + " ")
        await migrate(store.settings, (altered, *MIGRATIONS[1:]))
        await refused(store, errors.StoreUnusable, "schema step 1 differs")

    async def test_a_migration_that_fails_leaves_no_trace(self, tmp_path: Path) -> None:
        settings = server().store(tmp_path).settings
        broken = Migration(self.NEXT.number, "broken", "CREATE TABLE {schema}.record (a integer);")
        with pytest.raises(errors.StoreError):
            await migrate(settings, (*MIGRATIONS, broken))
        assert await pending(settings) == list(MIGRATIONS)

    async def test_many_may_open_a_new_schema_at_once(self, tmp_path: Path) -> None:
        stores = [server().store(tmp_path) for _ in range(6)]
        await asyncio.gather(*(store.open() for store in stores))
        await stores[0].commit(creation(counter(count=1)))
        assert [(await record_of(store, counter().key)).frame_count for store in stores] == [1] * 6
        await asyncio.gather(*(store.close() for store in stores))

    async def test_a_role_without_the_right_to_make_schemas_may_use_one(self, tmp_path: Path) -> None:
        schema = schema_of(tmp_path)
        await run(f"CREATE ROLE user_{schema} LOGIN; CREATE SCHEMA {schema} AUTHORIZATION user_{schema}")
        url = server().url().replace("postgres@", f"user_{schema}@")
        store = PostgresStore(url, schema=schema, required_level="D1")
        await store.open()
        await store.commit(creation(counter()))
        await store.close()


class TestWhatFaultsMean:
    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (asyncpg.DiskFullError("full"), errors.StoreFull),
            (asyncpg.DataCorruptedError("bad page"), errors.StoreCorrupt),
            (asyncpg.IndexCorruptedError("bad page"), errors.StoreCorrupt),
            (asyncpg.UniqueViolationError("twice"), errors.StoreCorrupt),
            (asyncpg.AdminShutdownError("bye"), errors.StoreUnreachable),
            (asyncpg.CannotConnectNowError("starting"), errors.StoreUnreachable),
            (asyncpg.TooManyConnectionsError("full"), errors.StoreUnreachable),
            (asyncpg.ReadOnlySQLTransactionError("standby"), errors.StoreUnreachable),
            (asyncpg.TargetServerAttributeNotMatched("none"), errors.StoreUnreachable),
            (asyncpg.ConnectionDoesNotExistError("gone"), errors.StoreUnreachable),
            (asyncpg.InterfaceError("closed"), errors.StoreUnreachable),
            (ConnectionResetError("gone"), errors.StoreUnreachable),
            (TimeoutError(), errors.StoreTimeout),
            (asyncpg.QueryCanceledError("late"), errors.StoreTimeout),
            (asyncpg.InsufficientPrivilegeError("no"), errors.StoreUnusable),
            (asyncpg.InvalidPasswordError("no"), errors.StoreUnusable),
            (asyncpg.PostgresSyntaxError("our mistake"), errors.StoreError),
            (asyncpg.InternalClientError("the driver's mistake"), errors.StoreUnreachable),
            (asyncpg.DataError("our mistake"), errors.StoreError),
        ],
        ids=lambda value: getattr(value, "__name__", type(value).__name__),
    )
    def test_a_fault_has_one_meaning_and_is_not_quoted(self, fault: Exception, error: type) -> None:
        found = store_error(fault, "postgresql://host/work")
        assert type(found) is error
        assert str(found).startswith("postgresql://host/work")
        assert not str(fault) or str(fault) not in str(found)

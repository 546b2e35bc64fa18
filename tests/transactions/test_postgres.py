"""What is particular to connections of asyncpg and psycopg."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.string import TextBinaryLoader

from flowfabric import FlowFabric, errors
from tests.postgres import server
from tests.transactions.parties import SCHEMA, Party, Place, place_for, rows

DRIVERS = ("asyncpg", "psycopg", "psycopg async")


@pytest.fixture(params=DRIVERS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """A database that is ready."""
    async with place_for(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def through_asyncpg(tmp_path: Path) -> AsyncIterator[Place]:
    """A database that is ready, for what does not depend on the driver."""
    async with place_for("asyncpg", tmp_path) as made:
        yield made


class TestSettings:
    """The connection's own settings do not matter."""

    async def test_factories_loaders_and_codecs(self, place: Place, app: FlowFabric) -> None:
        party = await place.party(app)
        await disguise(party.connection)
        await party.begin()
        runs = [await party.submit("double", {"a": "é"}, idempotency_key="order-7") for _ in range(2)]
        await party.commit()
        assert runs[1].duplicate
        assert await app.run(runs[0].execution_id).state()

    async def test_the_old_form_of_bytes(self, through_asyncpg: Place) -> None:
        async with through_asyncpg.app() as app:
            party = await through_asyncpg.party(app)
            await party.begin()
            await party.execute("SET LOCAL bytea_output = 'escape'")
            await party.submit("double", 7, idempotency_key="order-7")
            assert (await party.submit("double", 7, idempotency_key="order-7")).duplicate

    async def test_the_transactions_own_lock_timeout_is_kept(self, place: Place, app: FlowFabric) -> None:
        party = await place.party(app)
        await party.begin()
        await party.execute("SET LOCAL lock_timeout = '7s'")
        await party.submit("double", 7)
        [shown] = await rows(party.connection, "SHOW lock_timeout")
        assert shown[0] == "7s"


async def disguise(connection: Any) -> None:
    """Make every type come and go in another form than it usually does."""
    if isinstance(connection, asyncpg.Connection):
        for name in ("bytea", "json", "jsonb", "int8", "bool"):
            await connection.set_type_codec(
                name, schema="pg_catalog", encoder=repr, decoder=lambda text: [text]
            )
        return
    connection.row_factory = dict_row
    connection.prepare_threshold = 0
    for name in ("text", "int8", "bytea", "jsonb"):
        connection.adapters.register_loader(name, Shouting)
        connection.adapters.register_loader(name, ShoutingInBinary)
    asynchronous = isinstance(connection, psycopg.AsyncConnection)
    connection.cursor_factory = psycopg.AsyncClientCursor if asynchronous else psycopg.ClientCursor


class Shouting(psycopg.adapt.Loader):
    """Loads anything as something else."""

    def load(self, data: Any) -> Any:
        return [bytes(data).upper()]


class ShoutingInBinary(TextBinaryLoader):
    """The same for the binary form."""

    def load(self, data: Any) -> Any:
        return [bytes(data).upper()]


class TestTransactions:
    async def test_autocommit_is_refused(self, place: Place, app: FlowFabric) -> None:
        party = await place.party(app)
        if place.driver == "psycopg":
            party.connection.autocommit = True
        elif place.driver == "psycopg async":
            await party.connection.set_autocommit(True)
        with pytest.raises(errors.TransactionRequired, match="autocommit"):
            await party.submit("double", 7)
        await party.execute("BEGIN")
        run = await party.submit("double", 7)
        await party.execute("COMMIT")
        assert await run.state()

    async def test_a_failed_one_is_refused(self, place: Place, app: FlowFabric) -> None:
        party = await place.party(app)
        await party.begin()
        with pytest.raises((asyncpg.PostgresError, psycopg.Error)):
            await party.execute("SELECT 1 / 0")
        with pytest.raises(errors.TransactionRequired, match="25P02"):
            await party.submit("double", 7)

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    async def test_one_with_a_snapshot_submits_if_nothing_was_committed_since(
        self, place: Place, app: FlowFabric, level: str
    ) -> None:
        party = await snapshot(await place.party(app), level)
        runs = [await party.submit("double", 7, idempotency_key="order-7") for _ in range(2)]
        await party.commit()
        assert await runs[1].state()

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    async def test_one_with_a_snapshot_is_outdated_by_a_commit_of_the_store(
        self, place: Place, app: FlowFabric, level: str
    ) -> None:
        party = await snapshot(await place.party(app), level)
        await app.submit("double", 1)
        with pytest.raises(errors.TransactionOutdated, match="40001"):
            await party.submit("double", 7)
        await party.roll_back()
        await snapshot(party, level)
        run = await party.submit("double", 7)
        await party.commit()
        assert await run.state()

    async def test_a_refused_act_gives_the_stores_lock_back(self, place: Place, app: FlowFabric) -> None:
        party = await place.party(app)
        run = await app.submit("approval")
        await party.begin()
        with pytest.raises(errors.WaitpointNotFound):
            await party.signal(run, "review")
        await app.submit("double", 7)  # would wait for the lock otherwise
        await party.commit()

    async def test_two_submit_one_after_the_other(self, through_asyncpg: Place) -> None:
        async with through_asyncpg.app() as app:
            first, second = [await through_asyncpg.party(app) for _ in range(2)]
            await first.begin()
            await second.begin()
            earlier = await first.submit("double", 7, idempotency_key="order-7")
            waiting = asyncio.create_task(second.submit("double", 7, idempotency_key="order-7"))
            await until_waiting_for_a_lock()
            assert not waiting.done()
            await first.commit()
            later = await waiting
            await second.commit()
            assert (later.execution_id, later.duplicate) == (earlier.execution_id, True)

    async def test_the_store_is_not_waited_for_longer_than_the_transaction_wants(
        self, through_asyncpg: Place
    ) -> None:
        async with through_asyncpg.app() as app:
            first, second = [await through_asyncpg.party(app) for _ in range(2)]
            await first.begin()
            await first.submit("double", 7)
            await second.begin()
            await second.execute("SET LOCAL lock_timeout = '10ms'")
            with pytest.raises(errors.StoreTimeout, match="lock"):
                await second.submit("double", 7)
            await first.commit()
            run = await second.submit("double", 7)
            await second.commit()
            assert await run.state()

    async def test_a_deadlock_is_an_outdated_transaction(self, through_asyncpg: Place) -> None:
        async with through_asyncpg.app() as app:
            first, second = [await through_asyncpg.party(app) for _ in range(2)]
            await first.order(1)
            for party in (first, second):
                await party.begin()
                await party.execute("SET LOCAL deadlock_timeout = '1ms'")
            await second.execute("UPDATE orders SET number = 2")
            await first.submit("double", 7)
            blocked = asyncio.create_task(first.execute("UPDATE orders SET number = 3"))
            await until_waiting_for_a_lock()
            with pytest.raises((errors.TransactionOutdated, asyncpg.DeadlockDetectedError)):
                await asyncio.gather(second.submit("double", 7), blocked)
            await second.roll_back()
            await asyncio.gather(blocked, return_exceptions=True)


async def snapshot(party: Party, level: str) -> Party:
    """Begin a transaction of this level that has read already."""
    await party.begin()
    await party.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
    await party.orders()
    return party


async def until_waiting_for_a_lock() -> None:
    """Return as soon as some connection waits for a lock."""
    admin = await asyncpg.connect(server().url())
    async with asyncio.timeout(60):
        while not await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.002)
    await admin.close()


class TestConnections:
    async def test_one_to_another_database_is_refused(self, through_asyncpg: Place) -> None:
        app = through_asyncpg.app()
        connection = await asyncpg.connect(server().url("template1"))
        async with connection.transaction():
            with pytest.raises(errors.UnusableConnection, match=r"'template1'.*schema"):
                await app.within(connection).submit("double", 7)
            assert await connection.fetchval("SELECT 1") == 1
        await connection.close()

    async def test_a_schema_without_the_stores_tables_is_refused(self, through_asyncpg: Place) -> None:
        app = FlowFabric(store=server().store("nowhere", schema="never_made"))
        party = await through_asyncpg.party(app)
        await party.begin()
        await party.order(7)
        with pytest.raises(errors.UnusableConnection, match="flowfabric migrate"):
            await party.submit("double", 7)
        await party.commit()
        assert await party.orders() == [7]

    async def test_a_schema_of_another_version_is_refused(self, through_asyncpg: Place) -> None:
        party = await through_asyncpg.party(through_asyncpg.app())
        await party.begin()
        await party.execute(f"UPDATE {SCHEMA}.migration SET checksum = 'other' WHERE number = 1")  # noqa: S608 - a name of ours
        with pytest.raises(errors.UnusableConnection, match="of this version"):
            await party.submit("double", 7)
        await party.roll_back()

    async def test_one_that_is_lost_says_so(self, through_asyncpg: Place) -> None:
        party = await through_asyncpg.party(through_asyncpg.app())
        await party.begin()
        party.connection.terminate()
        with pytest.raises(errors.StoreUnreachable, match=r"InterfaceError|ConnectionDoesNotExist"):
            await party.submit("double", 7)

    async def test_text_in_another_form_is_refused(self, through_asyncpg: Place) -> None:
        party = await through_asyncpg.party(through_asyncpg.app())
        await party.connection.set_type_codec(
            "text", schema="pg_catalog", encoder=str, decoder=lambda text: [text]
        )
        await party.begin()
        with pytest.raises(errors.UnusableConnection, match="type text"):
            await party.submit("double", 7)

"""What the owner of a server, or its network, may do to a store that is open."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from flowfabric import errors
from flowfabric.stores.postgres import PostgresStore
from flowfabric.stores.postgres import changes as hearing
from tests.postgres import Server, schema_of, server
from tests.stores.builders import commit, counter, creation, increment, record_of


async def run(sql: str, database: str = "postgres") -> None:
    """Do something to the server behind the store's back."""
    connection = await asyncpg.connect(server().url(database))
    await connection.execute(sql)
    await connection.close()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[str]:
    """The name of a database that is removed again."""
    name = f"db_{schema_of(tmp_path)}"
    await run(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY wal_log")
    yield name
    await run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    """An open store in a database of its own, with one connection."""
    made = PostgresStore(server().url(database), required_level="D1", connections_max=1, listen=False)
    await made.open()
    yield made
    await made.close()


async def reconnected(store: PostgresStore) -> None:
    """Make the store connect anew, so that it meets new defaults of its database."""
    ((_, connection),) = store._connections._idle
    await connection.close()


class TestSettings:
    async def test_the_durability_is_read_back_again(self, store: PostgresStore, database: str) -> None:
        assert (await store.attest()).level == "D1"
        await run(f"ALTER DATABASE {database} SET synchronous_commit = off")
        await reconnected(store)
        assert (await store.attest()).level == "D0"

    async def test_another_isolation_level_loses_no_commit(self, store: PostgresStore, database: str) -> None:
        other = PostgresStore(server().url(database), required_level="D1", connections_max=1, listen=False)
        await other.open()
        await run(f"ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read'")
        await reconnected(store)
        await reconnected(other)
        await store.commit(creation(counter()))
        for _ in range(10):
            await asyncio.gather(increment(store, counter().key), increment(other, counter().key))
        assert await record_of(store, counter().key) == counter(count=20)
        await other.close()

    async def test_statements_that_take_longer_than_the_owner_allows_may_be_sent_again(
        self, store: PostgresStore, database: str
    ) -> None:
        await run(f"ALTER DATABASE {database} SET statement_timeout = '100ms'")
        await reconnected(store)
        intruder = await asyncpg.connect(server().url(database))
        transaction = intruder.transaction()
        await transaction.start()
        await intruder.execute("LOCK TABLE flowfabric.state")
        with pytest.raises(errors.StoreTimeout, match=r"57014.*same request id"):
            await store.commit(creation(counter()))
        await transaction.rollback()
        await intruder.close()
        await run(f"ALTER DATABASE {database} RESET statement_timeout")
        await reconnected(store)
        await store.commit(creation(counter()))
        assert await record_of(store, counter().key) == counter()

    async def test_where_no_more_connections_are_allowed_those_that_are_there_are_shared(
        self, database: str
    ) -> None:
        role = f"role_{database[-20:]}"
        await run(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 2")
        await run(f"GRANT CREATE ON DATABASE {database} TO {role}", database)
        url = server().url(database).replace("postgres@", f"{role}@")
        store = PostgresStore(url, required_level="D1", listen=False)
        await store.open()
        assert all(await asyncio.gather(*(store.now() for _ in range(30))))
        await store.close()
        await run(f"DROP OWNED BY {role}", database)
        await run(f"DROP ROLE {role}")


class TestOldRows:
    async def test_a_long_transaction_elsewhere_does_not_slow_the_clock_down(
        self, store: PostgresStore, database: str
    ) -> None:
        dump = await asyncpg.connect(server().url(database))
        transaction = dump.transaction(isolation="repeatable_read")
        await transaction.start()
        await dump.fetch("SELECT * FROM flowfabric.state")
        for number in range(500):
            await store.commit(creation(counter(number)))
        assert await pages_read(store) < 12
        await transaction.rollback()
        await dump.close()


async def pages_read(store: PostgresStore) -> int:
    """How many pages are looked at for the store's clock."""
    explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
    ((found,),) = await store._connections.fetch(explain + store._statements.read_state)
    plan = json.loads(found)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


class TestFailover:
    @pytest.mark.slow
    async def test_a_primary_that_has_become_a_standby_is_not_read_from(self, tmp_path: Path) -> None:
        made = Server()
        store = made.store(tmp_path)
        await store.open()
        await store.commit(creation(counter()))
        made.stop()
        (made.data / "standby.signal").touch()
        made.start()
        async with asyncio.timeout(60):
            while not all(connection.is_closed() for _, connection in store._connections._idle):
                await asyncio.sleep(0.001)
        for call in (store.now(), store.load([counter().key]), made.store(tmp_path).open()):
            with pytest.raises(errors.StoreUnreachable, match="standby"):
                await call
        await store.close()
        made.remove()


class DeafListener:
    """A connection that the network has swallowed: it looks open, and never answers."""

    def __init__(self) -> None:
        self.ended = False

    def is_closed(self) -> bool:
        return self.ended

    async def execute(self, sql: str, timeout: float) -> None:
        raise TimeoutError

    def terminate(self) -> None:
        self.ended = True


class TestListening:
    async def test_a_deaf_listener_is_replaced_once_the_counter_tells_more(self, tmp_path: Path) -> None:
        waiting, other = server().store(tmp_path), server().store(tmp_path)
        await waiting.open()
        await other.open()
        changes: Any = waiting._changes
        await changes._listener.close()
        await asyncio.sleep(0)  # the end of the old one is told of in the next turn
        changes._heard.clear()
        deaf = changes._listener = DeafListener()
        await other.commit(creation(counter()))
        assert await waiting.wait_for_change(20)
        async with asyncio.timeout(60):
            while changes._mending is not None:
                await asyncio.sleep(0.001)
        assert deaf.ended
        assert not changes._listener.is_closed()
        await waiting.close()
        await other.close()

    async def test_who_cannot_listen_any_more_looks_instead(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        waiting, other = server().store(tmp_path), server().store(tmp_path)
        await waiting.open()
        await other.open()

        async def unreachable(*_: Any) -> None:
            raise errors.StoreUnreachable("no way")

        monkeypatch.setattr(hearing, "connect_listener", unreachable)
        changes: Any = waiting._changes
        await changes._listener.close()
        with caplog.at_level(logging.WARNING, "flowfabric.stores"):
            await waiting.wait_for_change(60)
            await other.commit(commit(changes=creation(counter()).changes))
            async with asyncio.timeout(60):
                assert await waiting.wait_for_change(90_000)
        assert "looking for them: no way" in caplog.text
        await waiting.close()
        await other.close()

"""Many processes on one database: what they commit at once, and how they hear of each other."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from flowfabric import errors
from flowfabric.core.work import Frame
from flowfabric.stores.base import Change, Commit, Conflict
from flowfabric.stores.postgres import PostgresStore
from flowfabric.stores.postgres.faults import store_error
from tests.postgres import server
from tests.stores.builders import (
    commit,
    counter,
    creation,
    event,
    execution_id,
    increment,
    record_of,
    version_of,
)

ROUNDS = 25
OpenStore = Callable[..., Awaitable[PostgresStore]]


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens stores on one schema, each with connections of its own, as processes have."""
    async with AsyncExitStack() as stack:

        async def open_one(**options: Any) -> PostgresStore:
            made = server().store(tmp_path, **options)
            await made.open()
            stack.push_async_callback(made.close)
            return made

        yield open_one


async def outcomes(*commits: Awaitable[int]) -> list[Conflict | None]:
    """What became of commits that were sent at once: nothing, or a conflict."""
    found = await asyncio.gather(*commits, return_exceptions=True)
    assert all(isinstance(one, (int, Conflict)) for one in found), found
    return [one if isinstance(one, Conflict) else None for one in found]


class TestAtOnce:
    async def test_increments_of_several_stores_all_count(self, open_store: OpenStore) -> None:
        stores = [await open_store() for _ in range(4)]
        await stores[0].commit(creation(counter()))

        async def work(store: PostgresStore) -> None:
            for _ in range(10):
                await increment(store, counter().key)

        await asyncio.gather(*map(work, stores))
        assert (await record_of(stores[0], counter().key)).frame_count == 40

    async def test_of_two_that_rely_on_what_the_other_changes_one_fails(self, open_store: OpenStore) -> None:
        one, two = await open_store(), await open_store()
        await one.commit(creation(counter(1), counter(2)))
        for _ in range(ROUNDS):
            first, second = [await version_of(one, counter(number).key) for number in (1, 2)]
            found = await outcomes(
                one.commit(
                    commit(
                        changes=[Change(counter(1).key, first, counter(1))],
                        relied_on=[(counter(2).key, second)],
                    )
                ),
                two.commit(
                    commit(
                        changes=[Change(counter(2).key, second, counter(2))],
                        relied_on=[(counter(1).key, first)],
                    )
                ),
            )
            assert found.count(None) == 1

    async def test_of_two_that_rely_on_the_absence_of_what_the_other_creates_one_fails(
        self, open_store: OpenStore
    ) -> None:
        one, two = await open_store(), await open_store()
        for number in range(1, 2 * ROUNDS, 2):
            mine, other = counter(number), counter(number + 1)
            found = await outcomes(
                one.commit(commit(changes=[Change(mine.key, 0, mine)], relied_on=[(other.key, 0)])),
                two.commit(commit(changes=[Change(other.key, 0, other)], relied_on=[(mine.key, 0)])),
            )
            assert found.count(None) == 1

    async def test_of_many_that_create_the_same_record_one_succeeds_and_the_others_name_it(
        self, open_store: OpenStore
    ) -> None:
        stores = [await open_store() for _ in range(4)]
        for number in range(ROUNDS):
            found = await outcomes(*(store.commit(creation(counter(number))) for store in stores))
            assert found.count(None) == 1
            lost = [one.keys for one in found if isinstance(one, Conflict)]
            assert lost == [frozenset({counter(number).key})] * 3

    async def test_commits_that_name_records_in_opposite_order_do_not_deadlock(
        self, open_store: OpenStore
    ) -> None:
        one, two = await open_store(), await open_store()
        records = [counter(number) for number in range(20)]
        await one.commit(creation(*records))
        for _ in range(ROUNDS):
            changes = [Change(found.key, await version_of(one, found.key), found) for found in records]
            found = await outcomes(
                one.commit(commit(changes=changes)), two.commit(commit(changes=changes[::-1]))
            )
            assert found.count(None) == 1
        assert one.statistics.resends == two.statistics.resends == 0

    async def test_a_reader_of_the_log_never_passes_an_event_that_comes_later(
        self, open_store: OpenStore
    ) -> None:
        stores = [await open_store() for _ in range(4)]
        reader = await open_store()
        seen: list[int] = []

        async def write(store: PostgresStore, base: int) -> None:
            for number in range(30):
                await store.commit(commit(events=[event(base + number)] * (1 + number % 3)))

        writing = asyncio.gather(*(write(store, 100 * place) for place, store in enumerate(stores)))
        while not writing.done() or seen[-1:] != [await reader.last_event()]:
            page = await reader.read_events(seen[-1] if seen else 0, limit=7)
            seen += [found.sequence for found in page]
        await writing
        assert seen == list(range(1, 4 * 60 + 1))


class TestFaults:
    @pytest.mark.slow
    async def test_whoever_keeps_the_lock_too_long_makes_others_time_out_and_nothing_is_committed(
        self, open_store: OpenStore
    ) -> None:
        store = await open_store(timeout_ms=1_500)
        intruder = await asyncpg.connect(server().url())
        transaction = intruder.transaction()
        await transaction.start()
        await intruder.execute(f"LOCK TABLE {store.settings.schema}.state")
        with pytest.raises(errors.StoreTimeout, match=r"55P03.*same request id"):
            await store.commit(creation(counter()))
        await transaction.rollback()
        await intruder.close()
        await store.commit(creation(counter(2)))
        assert await record_of(store, counter().key) is None

    @pytest.mark.parametrize(
        "broken",
        [
            commit(changes=creation(counter(2)).changes, rows_removed=[("due", "a", 9, "x")]),
            commit(changes=creation(counter(2)).changes, rows_added=[("due", "a", 1, "x")]),
            commit(changes=creation(counter(2)).changes, appends=[Frame(execution_id(1), 1, 0, b"")]),
        ],
        ids=["a row that is not there", "a row that is there", "a frame that is there"],
    )
    async def test_what_cannot_be_is_corruption_and_nothing_is_committed(
        self, open_store: OpenStore, broken: Commit
    ) -> None:
        store = await open_store()
        await store.commit(
            commit(rows_added=[("due", "a", 1, "x")], appends=[Frame(execution_id(1), 1, 0, b"")])
        )
        with pytest.raises(errors.StoreCorrupt):
            await store.commit(broken)
        assert await record_of(store, counter(2).key) is None

    async def test_bytes_that_are_no_record_are_corruption_not_absence(self, open_store: OpenStore) -> None:
        store = await open_store()
        await store.commit(creation(counter()))
        intruder = await asyncpg.connect(server().url())
        await intruder.execute(f"SET search_path = {store.settings.schema}")
        await intruder.execute("UPDATE record SET data = '\\xc1'")
        await intruder.close()
        with pytest.raises(errors.StoreCorrupt, match="stream/"):
            await store.load([counter().key])

    async def test_a_commit_that_the_server_undid_because_of_others_is_sent_again(
        self, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_store()
        send, undone = store._fetch, [asyncpg.DeadlockDetectedError(), asyncpg.SerializationError()]

        async def undo_twice(sql: str, values: list[Any]) -> list[Any]:
            if undone:
                raise store_error(undone[-1], "here") from undone.pop()
            return await send(sql, values)

        monkeypatch.setattr(store, "_fetch", undo_twice)
        await store.commit(creation(counter()))
        assert store.statistics.resends == 2
        assert await version_of(store, counter().key) > 0

    async def test_a_commit_that_is_undone_again_and_again_ends_as_a_fault(
        self, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_store()

        async def undo(sql: str, values: list[Any]) -> list[Any]:
            fault = asyncpg.SerializationError()
            raise store_error(fault, "here") from fault

        monkeypatch.setattr(store, "_fetch", undo)
        with pytest.raises(errors.StoreTimeout):
            await store.commit(creation(counter()))
        assert store.statistics.resends == 3


class TestConnections:
    async def test_there_are_never_more_than_allowed(self, open_store: OpenStore) -> None:
        store = await open_store(connections_max=2, listen=False)
        await asyncio.gather(*(store.now() for _ in range(20)))
        assert len(store._connections._idle) == 2

    async def test_waiting_for_a_connection_ends(self, open_store: OpenStore) -> None:
        store = await open_store(connections_max=1, listen=False, timeout_ms=500)
        async with store._connections.use():
            with pytest.raises(errors.StoreTimeout):
                await store.now()
        assert await store.now() > 0

    async def test_one_whose_statement_was_cancelled_is_not_used_again(self, open_store: OpenStore) -> None:
        store = await open_store(connections_max=1, listen=False)
        ((_, before),) = store._connections._idle
        sleeping = asyncio.ensure_future(store._connections.fetch("SELECT pg_sleep(60)"))
        while not store._connections._room.locked():  # type: ignore[union-attr]
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        assert await store.now() > 0
        ((_, after),) = store._connections._idle
        assert after is not before

    async def test_one_that_was_cut_off_is_replaced(self, open_store: OpenStore) -> None:
        store, other = await open_store(connections_max=1, listen=False), await open_store()
        ((_, before),) = store._connections._idle
        await other._connections.fetch("SELECT pg_terminate_backend($1)", before.get_server_pid())
        async with asyncio.timeout(60):
            while not before.is_closed():
                await asyncio.sleep(0.001)
        assert await store.now() > 0

    async def test_one_that_was_idle_for_long_is_replaced(self, open_store: OpenStore) -> None:
        store = await open_store(connections_max=1, listen=False)
        ((since, before),) = store._connections._idle
        store._connections._idle[:] = [(since - 301, before)]
        assert await store.now() > 0
        ((_, after),) = store._connections._idle
        assert after is not before


class TestHearing:
    @pytest.mark.parametrize("options", [{}, {"listen": False}, {"pooler": True}], ids=str)
    async def test_a_commit_of_another_store_wakes_who_waits(
        self, open_store: OpenStore, options: dict[str, bool]
    ) -> None:
        waiting, other = await open_store(**options), await open_store(**options)
        woken = asyncio.ensure_future(waiting.wait_for_change(90_000))
        await asyncio.sleep(0)
        await other.commit(creation(counter()))
        async with asyncio.timeout(60):
            assert await woken

    @pytest.mark.parametrize("listen", [True, False])
    async def test_a_commit_of_ones_own_wakes_nobody(self, open_store: OpenStore, listen: bool) -> None:
        store = await open_store(listen=listen)
        await store.commit(creation(counter()))
        assert await store.wait_for_change(30) is False

    async def test_what_was_committed_before_waiting_is_noticed_too(self, open_store: OpenStore) -> None:
        waiting, other = await open_store(listen=False), await open_store()
        await other.commit(creation(counter()))
        assert await waiting.wait_for_change(5_000) is True
        assert await waiting.wait_for_change(30) is False

    async def test_a_listener_that_was_cut_off_listens_again(self, open_store: OpenStore) -> None:
        waiting, other = await open_store(), await open_store()
        assert waiting._changes is not None
        cut_off = waiting._changes._listener
        await other._connections.fetch("SELECT pg_terminate_backend($1)", cut_off.get_server_pid())
        async with asyncio.timeout(60):
            while waiting._changes._listener is cut_off:
                await waiting.wait_for_change(20)
        woken = asyncio.ensure_future(waiting.wait_for_change(90_000))
        await other.commit(creation(counter()))
        async with asyncio.timeout(60):
            assert await woken

    async def test_many_commits_tell_others_only_now_and_then(self, open_store: OpenStore) -> None:
        waiting, other = await open_store(), await open_store()
        heard = []
        assert waiting._changes is not None
        listener = waiting._changes._listener
        await listener.add_listener(f"{waiting.settings.schema}_changed", lambda *what: heard.append(what))
        await asyncio.gather(*(other.commit(creation(counter(number))) for number in range(40)))
        assert await waiting.wait_for_change(5_000)
        assert len(heard) < 40

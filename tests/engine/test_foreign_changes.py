"""What another process commits wakes those who wait in this one, and not the background duties."""

import asyncio

from flowfabric import errors
from flowfabric.engine.engine import Engine
from flowfabric.engine.notifier import Notifier, claimable_topic, due_topic, execution_topic
from flowfabric.stores.base import Durability
from flowfabric.stores.memory import MemoryStore


class SharedStore(MemoryStore):
    """A store in which the test says when another process has committed."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Event()

    async def wait_for_change(self, timeout_ms: int) -> bool:
        await self.changed.wait()
        self.changed.clear()
        return True


async def test_a_change_by_another_process_wakes_who_waits() -> None:
    store = SharedStore()
    async with Engine(store) as engine:
        with engine.notifier.subscribe(execution_topic("x")) as changes:
            assert not changes.event.is_set()
            store.changed.set()
            assert await changes.wait(5_000)


async def test_the_watch_goes_on_after_an_unexpected_fault(monkeypatch) -> None:
    monkeypatch.setattr("flowfabric.engine.watches.WATCH_MS", 1)
    store = SharedStore()
    looks = 0

    async def wait_for_change(timeout_ms: int) -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ZeroDivisionError
        return await SharedStore.wait_for_change(store, timeout_ms)

    monkeypatch.setattr(store, "wait_for_change", wait_for_change)
    async with Engine(store) as engine:
        with engine.notifier.subscribe(execution_topic("x")) as changes:
            store.changed.set()
            assert await changes.wait(5_000)


async def test_what_commits_survive_is_asked_for_again(monkeypatch, caplog) -> None:
    monkeypatch.setattr("flowfabric.engine.watches.ATTEST_S", 0.001)
    store = WeakenedStore()
    async with Engine(store) as engine:
        assert engine.durability == STRONG
        async with asyncio.timeout(60):
            while engine.durability == STRONG:
                await asyncio.sleep(0.001)
        assert engine.durability == WEAK
    assert "survive level D0 now, and D2 before" in caplog.text


STRONG = Durability(level="D2", store="memory", settings={})
WEAK = Durability(level="D0", store="memory", settings={"synchronous_commit": "off"})


class WeakenedStore(MemoryStore):
    """A store whose owner lets commits survive less once it is open, and that is hard to reach."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Durability | Exception] = [errors.StoreUnreachable("away"), ZeroDivisionError()]

    async def open(self) -> Durability:
        return STRONG

    async def attest(self) -> Durability:
        answer = self.answers.pop(0) if self.answers else WEAK
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_change_by_another_process_leaves_the_duties_alone() -> None:
    notifier = Notifier()
    with (
        notifier.subscribe(claimable_topic("n", "lane")) as worker,
        notifier.subscribe(due_topic("due_lease")) as duty,
    ):
        notifier.publish_foreign_change()
        assert worker.event.is_set()
        assert not duty.event.is_set()

"""How users call the public API. It is never run; mypy reads it as it reads their code."""

import sqlite3
from typing import Any, assert_type

import apsw
import psycopg

from flowfabric import (
    ExponentialBackoff,
    FlowFabric,
    Member,
    PublishedWaitpoint,
    ReceivedSignal,
    Run,
    SyncTask,
    Task,
    any_of,
    quorum,
    sync,
)

ff = FlowFabric("memory://")
blocking = sync.FlowFabric("memory://")


class Document:
    """What users make themselves."""


async def fetch(url: str, *, tries: int = 1) -> bytes:
    """An async step."""
    return url.encode() * tries


def measure(data: bytes) -> int:
    """A plain step."""
    return len(data)


@ff.handler
async def bare(task: Task, document: Document) -> str:
    """Decorated without options."""
    assert_type(await task.step("fetch", fetch, "url", tries=2), bytes)
    assert_type(await task.step("measure", measure, b""), int)
    assert_type(await task.step("lambda", lambda: [1.5]), list[float])
    assert_type(await task.create_waitpoint("w"), PublishedWaitpoint)
    assert_type(await task.wait_for_signal("go", timeout=5), ReceivedSignal)
    assert_type(task.attempt, int)
    await task.step("wrong argument", fetch, 5)  # type: ignore[call-overload]
    await task.step("unknown keyword", fetch, "url", attempts=5)  # type: ignore[call-arg]
    task.no_such_thing()  # type: ignore[attr-defined]
    return "done"


@ff.handler(name="configured", retries=3, backoff=ExponentialBackoff(), timeout=5, capabilities={"gpu"})
async def configured(task: Task) -> list[int]:
    """Decorated with options."""
    return [task.attempt]


@ff.handler
def plain(task: SyncTask, number: int) -> bytes:
    """A plain function."""
    assert_type(task.step("measure", measure, b""), int)
    assert_type(task.step("fetch", fetch, "url"), bytes)
    assert_type(task.wait_for_signal("go"), ReceivedSignal)
    assert_type(task.attempt, int)
    task.no_such_thing()  # type: ignore[attr-defined]
    return b""


@ff.handler(lane="plain")
def configured_plain(number: int) -> None:
    """A plain function with options."""


async def submits() -> None:
    """Submitting gives runs of what the handlers result in."""
    assert_type(await ff.submit(bare, Document()), Run[str])
    assert_type(await ff.submit(configured, priority=5, tags={"team.name": "a"}), Run[list[int]])
    assert_type(await ff.submit(plain, 5), Run[bytes])
    assert_type(await ff.submit(configured_plain, 5), Run[None])
    assert_type(await ff.submit("by name", 5), Run[Any])
    assert_type(await ff.submit_many(bare, [Document()]), list[Run[str]])
    assert_type(await (await ff.submit(bare, Document())).result(timeout=5), str)
    await ff.submit(bare, lanes="x")  # type: ignore[call-overload]
    await ff.submit(bare, priority="high")  # type: ignore[call-overload]
    ff.handler(retry=3)  # type: ignore[call-overload]


async def within(
    awaited: psycopg.AsyncConnection, blocking: psycopg.Connection, file: sqlite3.Connection
) -> None:
    """Methods are awaited where the connection is."""
    assert_type(await ff.within(awaited).submit(bare, Document()), Run[str])
    assert_type(await ff.within(awaited).submit_many("by name", [5]), list[Run[Any]])
    assert_type(ff.within(blocking).submit(configured), Run[list[int]])
    assert_type(ff.within(file).submit(plain, 5), Run[bytes])
    assert_type(ff.within(apsw.Connection(":memory:")).submit_many(plain, [5]), list[Run[bytes]])
    ff.within(awaited).submit(bare, lanes="x")  # type: ignore[call-overload]


async def flows() -> None:
    """Members and their runs result in what the handlers do."""
    flow = ff.flow("kind")
    first = flow.add(bare, Document())
    second = flow.add(plain, 5, after=[first], priority=5)
    assert_type(second, Member[bytes])
    assert_type(flow.add("by name", after=any_of(first, second, cancel_remaining=False)), Member[Any])
    flow.add(configured, after=quorum(2, [first, second]), name="third")
    run = await ff.submit_flow(flow, idempotency_key="today")
    assert_type(await run.member(first).result(), str)
    assert_type(run.member("third"), Run[Any])
    flow.add(bare, lanes="x")  # type: ignore[call-overload]


async def calls() -> None:
    """A handler that is called directly takes what its function takes."""
    await configured(5)  # type: ignore[arg-type]
    plain(number="five")  # type: ignore[call-arg, arg-type]


@blocking.handler
def counted(task: SyncTask, document: Document) -> int:
    """A handler of the app that blocks."""
    return task.attempt


def use_blocking_app() -> None:
    """Nothing of it is awaited."""
    with blocking as app:
        run = app.submit(counted, Document(), priority=5)
        assert_type(run, sync.Run[int])
        assert_type(run.result(timeout=5), int)
        assert_type(app.submit("kind").result(), Any)
        assert_type(app.submit_many(counted, [1]), list[sync.Run[int]])
        app.submit(counted, colour="red")  # type: ignore[call-overload]
        run.no_such_thing()  # type: ignore[attr-defined]

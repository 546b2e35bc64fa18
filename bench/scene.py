"""What every benchmark shares: an app with its handlers, a store in a fresh folder, and figures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec

from flowfabric import FlowFabric, Task
from flowfabric.engine.native import native_of
from flowfabric.stores.base import Commit, Conflict, Native, Store
from flowfabric.testing.clock import ClockedStore
from flowfabric.testing.stores import StoreAround
from tests import postgres, valkey

PAYLOAD = bytes(range(256)) * 16
"""4 KiB of input."""
RESULT = b"r" * 64
CONCURRENCY = 16


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured number, with the floor or ceiling it is held against."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    ceiling: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the number is on the right side of its bound."""
        if self.floor is not None and self.value < self.floor:
            return False
        return self.ceiling is None or self.value <= self.ceiling


class Scene:
    """A started app with a running worker."""

    def __init__(self, app: FlowFabric) -> None:
        self.app = app
        self.started: dict[str, float] = {}
        """Execution id -> when its handler last began, by this process's clock."""
        self.room = asyncio.Semaphore()
        """One place is freed whenever a handler of ``echo`` returns."""


class CountingStore(StoreAround):
    """Counts the commits that had to be made again because a record had changed meanwhile."""

    def __init__(self, inner: ClockedStore) -> None:
        super().__init__(inner)
        self._conflicts = 0

    @property
    def native(self) -> Native | None:
        """What the store decides by itself, without any commit that could have to be made again."""
        return native_of(self.inner)

    async def commit(self, commit: Commit) -> int | None:
        try:
            return await self.inner.commit(commit)
        except Conflict:
            self._conflicts += 1
            raise

    def take_conflicts(self) -> int:
        """How many there were since the last call."""
        taken, self._conflicts = self._conflicts, 0
        return taken


def make_app(url: str, store: Store | None = None) -> tuple[FlowFabric, Scene]:
    """The app that all benchmarks drive."""
    app = FlowFabric(url, store=store)
    scene = Scene(app)

    @app.handler
    async def echo(task: Task, data: bytes) -> bytes:
        scene.started[task.execution_id] = time.perf_counter()
        scene.room.release()
        return RESULT

    @app.handler
    async def wait_once(task: Task, data: bytes) -> bytes:
        await task.wait_for_signal("go")
        scene.started[task.execution_id] = time.perf_counter()
        return RESULT

    @app.handler
    async def many_steps(task: Task, count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            await task.step("step", _step, task)
        return time.perf_counter() - begun

    return app, scene


def _step(task: Task) -> str:
    return "recorded"


@contextlib.asynccontextmanager
async def running(
    url: str, *, concurrency: int = CONCURRENCY, store: Store | None = None
) -> AsyncIterator[Scene]:
    """A started app with one worker."""
    app, scene = make_app(url, store)
    async with app:
        worker = app.worker(concurrency=concurrency)
        working = asyncio.create_task(worker.run())
        try:
            yield scene
        finally:
            worker.stop()
            await working


@contextlib.contextmanager
def fresh_sqlite() -> Iterator[str]:
    """The URL of a new SQLite file in a folder of its own."""
    folder = tempfile.mkdtemp(prefix="flowfabric-bench-", dir=os.environ.get("FF_BENCH_DIR"))
    try:
        yield f"sqlite:///{folder}/bench.db"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def fresh_place(url: str) -> Iterator[str]:
    """The URL of a new schema in a PostgreSQL database, or of a new prefix on a Valkey server.

    What is measured there is left to be looked at.
    """
    option = "prefix" if url.startswith("valkey") else "schema"
    mark = "&" if "?" in url else "?"
    yield f"{url}{mark}{option}=bench_{secrets.token_hex(8)}"


@contextlib.contextmanager
def fresh_postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server that was started for this and waits for the disk."""
    server = postgres.Server({"max_connections": "100"})
    try:
        yield server.url()
    finally:
        server.remove()


@contextlib.contextmanager
def fresh_valkey(appendfsync: str) -> Iterator[str]:
    """The URL of a Valkey server that was started for this and waits for the disk so often."""
    server = valkey.Server(appendfsync=appendfsync)
    try:
        yield server.url()
    finally:
        server.remove()


def fsync_us(folder: str | None = None, rounds: int = 200) -> float:
    """The median time of one small write with fdatasync, in microseconds."""
    with tempfile.NamedTemporaryFile(dir=folder or os.environ.get("FF_BENCH_DIR")) as file:
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            os.write(file.fileno(), b"x" * 4096)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def task_us(tasks: int = 20_000) -> float:
    """What one gathered asyncio task costs, in microseconds: how fast this machine is right now."""

    async def nothing() -> None:
        pass

    async def gather() -> None:
        await asyncio.gather(*(nothing() for _ in range(tasks)))

    begun = time.process_time()
    asyncio.run(gather())
    return (time.process_time() - begun) / tasks * 1e6


def processor_s(pid: int) -> float:
    """The processor time of a process and of its children that have ended, as the kernel counts it.

    0 where the process has ended or no such count can be read.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have started in turn."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        new = children.get(waiting.pop(), [])
        found.update(new)
        waiting += new
    return found


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def file_bytes(url: str) -> int:
    """How large the database behind a URL is, its log included."""
    path = Path(url.removeprefix("sqlite:///"))
    return sum(part.stat().st_size for part in path.parent.glob(path.name + "*"))

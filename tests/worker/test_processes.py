"""Workers in processes of their own on one store: killed, stopped, woken and drained."""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import flowfabric
from flowfabric import FlowFabric, Run
from flowfabric.contracts.executions import ReplayExecutionArgs
from flowfabric.contracts.journal import ReadJournalArgs
from flowfabric.contracts.states import PublicState
from flowfabric.testing import dump
from tests import valkey
from tests.worker.stage import ended, store_of, until

pytestmark = pytest.mark.realtime

SCENES = Path(__file__).with_name("scenes.py")
TTL_MS = 2_000
URLS: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/work.db?synchronous=NORMAL",
    "valkey": lambda folder: valkey.server().url(prefix=valkey.prefix_of(folder)),
    "valkey cluster": lambda folder: valkey.cluster().url(prefix=valkey.prefix_of(folder)),
}


class Processes:
    """Worker processes on one store, and an app of the test's own on the same one."""

    def __init__(self, folder: Path, app: FlowFabric) -> None:
        self.folder = folder
        self.app = app
        self.started: list[asyncio.subprocess.Process] = []

    async def start(self, *, lease_ttl_ms: int = TTL_MS, concurrency: int = 8) -> asyncio.subprocess.Process:
        """Start a worker and wait until it is about to claim."""
        sources = str(Path(str(flowfabric.__file__)).parents[1])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SCENES),
            self.app.url,
            str(self.folder),
            str(lease_ttl_ms),
            str(concurrency),
            env={**os.environ, "PYTHONPATH": sources},
        )
        self.started.append(process)
        await until(lambda: f"ready {process.pid}" in self.lines("workers"))
        return process

    def lines(self, file: str) -> list[str]:
        """What the handlers told in a file."""
        path = self.folder / file
        return path.read_text().splitlines() if path.exists() else []

    async def kill_all(self) -> None:
        """Leave no process behind."""
        for process in self.started:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture(params=list(URLS))
async def processes(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Processes]:
    app = FlowFabric(URLS[request.param](tmp_path))
    await app.start(scanners=False)
    started = Processes(tmp_path, app)
    yield started
    await started.kill_all()
    await app.stop()


async def test_another_worker_takes_over_from_a_killed_one_and_runs_only_what_was_not_recorded(
    processes: Processes,
) -> None:
    first = await processes.start()
    run = await processes.app.submit("two_steps")
    await until(lambda: "second in attempt 0" in processes.lines("steps"))
    first.send_signal(signal.SIGKILL)
    await processes.start()
    assert await run.result(timeout=60) == "second by attempt 1"
    assert processes.lines("steps") == ["first in attempt 0", "second in attempt 0", "second in attempt 1"]


async def test_whatever_a_worker_sends_that_was_stopped_past_its_lease_is_refused_and_changes_nothing(
    processes: Processes,
) -> None:
    first = await processes.start()
    run = await processes.app.submit("zombie")
    await until(lambda: "attempt 0" in processes.lines("zombie"))
    first.send_signal(signal.SIGSTOP)
    second = await processes.start()
    assert await run.result(timeout=60) == "attempt 1"
    second.send_signal(signal.SIGTERM)
    await second.wait()
    before = await dump(store_of(processes.app))
    first.send_signal(signal.SIGCONT)
    [late] = await until(lambda: processes.lines("late"))
    answers = json.loads(late)
    assert len(answers) == 8
    assert set(answers.values()) <= {"execution_not_active", "stale_lease", "lease_expired", "stream_closed"}
    assert await dump(store_of(processes.app)) == before


async def test_a_stopped_worker_cannot_touch_what_another_one_is_running_now(processes: Processes) -> None:
    first = await processes.start()
    run = await processes.app.submit("zombie", True)
    await until(lambda: "attempt 0" in processes.lines("zombie"))
    first.send_signal(signal.SIGSTOP)
    await processes.start()
    await until(lambda: "attempt 1" in processes.lines("zombie"))
    first.send_signal(signal.SIGCONT)
    assert await run.result(timeout=60) == "attempt 1"
    answers = json.loads(processes.lines("late")[0])
    assert set(answers.values()) == {"stale_lease", "stale_owner_cannot_append"}
    journal = await processes.app.engine.execute(ReadJournalArgs(execution_id=run.execution_id))
    assert (journal.entries, (await run.view()).progress_pct) == ((), None)
    assert [frame async for frame in run.stream()] == []


async def test_a_worker_that_was_stopped_past_its_lease_works_on_afterwards(processes: Processes) -> None:
    worker = await processes.start()
    run = await processes.app.submit("zombie")
    await until(lambda: "attempt 0" in processes.lines("zombie"))
    worker.send_signal(signal.SIGSTOP)
    await asyncio.sleep(1.5 * TTL_MS / 1_000)
    worker.send_signal(signal.SIGCONT)
    assert await run.result(timeout=60) == "attempt 1"
    assert worker.returncode is None


async def test_a_terminated_worker_lets_its_handlers_finish_and_claims_nothing_more(
    processes: Processes,
) -> None:
    worker = await processes.start(concurrency=1)
    run = await processes.app.submit("slow", 0.5)
    await until(lambda: processes.lines("slow"))
    worker.send_signal(signal.SIGTERM)
    waiting = await processes.app.submit("slow", 0.0)
    assert await asyncio.wait_for(worker.wait(), 60) == 0
    assert await run.result(timeout=60) == "done"
    assert await waiting.state() is PublicState.WAITING
    await processes.start()
    assert await waiting.result(timeout=60) == "done"


async def test_a_second_signal_ends_the_worker_at_once_and_its_work_goes_on_elsewhere(
    processes: Processes,
) -> None:
    worker = await processes.start()
    run = await processes.app.submit("slow", 60.0)
    await until(lambda: processes.lines("slow"))
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(worker.wait(), 60) == 0
    assert await run.state() is PublicState.WAITING
    assert (await run.view()).total_attempt_count == 1


async def test_two_workers_run_everything_exactly_once(processes: Processes) -> None:
    await asyncio.gather(processes.start(lease_ttl_ms=10_000), processes.start(lease_ttl_ms=10_000))
    runs: list[Run[Any]] = await processes.app.submit_many("count", range(200))
    views = [await ended(run) for run in runs]
    assert {view.total_attempt_count for view in views} == {1}
    assert Counter(processes.lines("counts")) == Counter(str(number) for number in range(200))


async def test_an_idle_worker_is_woken_by_another_process_and_does_not_spin(processes: Processes) -> None:
    worker = await processes.start()
    await ended(await processes.app.submit("count", 0))
    times = []
    for number in range(10):
        begun = time.monotonic()
        await ended(await processes.app.submit("count", number))
        times.append(time.monotonic() - begun)
        await asyncio.sleep(0.1)
    worker.send_signal(signal.SIGTERM)
    await worker.wait()
    # Well below the safety poll of a second; the bound leaves room for a busy machine.
    assert sorted(times)[5] < 0.3
    [cpu] = [line for line in processes.lines("workers") if line.startswith("cpu")]
    assert float(cpu.split()[1]) < 0.6


async def test_a_replay_in_one_process_is_run_by_a_worker_in_another(processes: Processes) -> None:
    await processes.start()
    run = await processes.app.submit("count", 7)
    await ended(run)
    await processes.app.engine.execute(ReplayExecutionArgs(execution_id=run.execution_id))
    assert await run.result(timeout=60) == 7
    assert processes.lines("counts") == ["7", "7"]

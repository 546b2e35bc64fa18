"""The worker processes of the example, and the accident that one of them has."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec

from examples.document_review.witness import Testimony, read_witness

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
LEASE_TTL: Final = "2s"
LOOK_S: Final = 0.005


class Accident(msgspec.Struct, frozen=True):
    """A step that was running when its worker was killed."""

    pid: int
    during: Testimony


class WorkerProcesses:
    """Two or more ``flowfabric worker`` processes. Use it as a context manager."""

    def __init__(self, folder: Path, url: str, count: int) -> None:
        self._folder = folder
        self._url = url
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for number in range(1, self._count + 1):
            self._processes.append(self._start(number))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    @property
    def pids(self) -> list[int]:
        """The process ids, in the order in which they were started."""
        return [process.pid for process in self._processes]

    def number(self, pid: int) -> int:
        """The number of the worker with this process id."""
        return self.pids.index(pid) + 1

    def logs(self) -> Iterator[tuple[int, str]]:
        """What each worker has logged."""
        for number in range(1, self._count + 1):
            yield number, self._log(number).read_text(encoding="utf-8")

    def require_alive(self, *, but: int | None = None) -> None:
        """Stop the example if a worker has died that nobody killed.

        Raises:
            RuntimeError: one has died.
        """
        for process in self._processes:
            if process.pid != but and process.poll() is not None:
                raise RuntimeError(f"worker {self.number(process.pid)} left with code {process.returncode}")

    async def kill_one_in_step(self, step: str, after: asyncio.Event) -> Accident:
        """Wait until a worker is inside this step, and kill it there.

        The worker is frozen first: whether the step is still running is looked up while it cannot
        go on, so that the kill surely hits it.
        """
        await after.wait()
        tried: set[Testimony] = set()
        while True:
            await asyncio.sleep(LOOK_S)
            for begun in self._running(step):
                if begun in tried:
                    continue
                tried.add(begun)
                os.kill(begun.pid, signal.SIGSTOP)
                if begun in self._running(step):
                    os.kill(begun.pid, signal.SIGKILL)
                    return Accident(begun.pid, begun)
                os.kill(begun.pid, signal.SIGCONT)

    async def stop(self) -> list[int]:
        """Ask all workers to drain, and wait for them. Returns their exit codes."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        return await asyncio.gather(*(asyncio.to_thread(process.wait) for process in self._processes))

    def _running(self, step: str) -> list[Testimony]:
        """Steps of this name that have begun and not ended, by the witness."""
        lines = [line for line in read_witness(self._folder / "witness") if line.step == step]
        ended = {(line.execution_id, line.attempt) for line in lines if line.event == "end"}
        return [
            line for line in lines if line.event == "begin" and (line.execution_id, line.attempt) not in ended
        ]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "flowfabric", "worker", "examples.document_review.app:ff"]
        command += ["--url", self._url, "--concurrency", "4", "--lease-ttl", LEASE_TTL]
        environment = {**os.environ, "REVIEW_FOLDER": str(self._folder), "PYTHONUNBUFFERED": "1"}
        with self._log(number).open("wb") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def _log(self, number: int) -> Path:
        return self._folder / f"worker-{number}.log"

"""What the tests of the command line share: a store in a temporary file, and a worker process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowfabric.cli import main

ROOT = Path(__file__).resolve().parents[2]

APP = """
import asyncio
import time
from flowfabric import FlowFabric, Task

ff = FlowFabric()

@ff.handler
async def greet(task: Task, name: str) -> str:
    await task.emit("word", "hello")
    await task.emit("word", "\\x1b[31m")
    return f"hello {name}"

@ff.handler
async def fail(task: Task) -> None:
    raise ValueError("no such luck")

@ff.handler
async def ask(task: Task, name: str) -> dict:
    waitpoint = await task.create_waitpoint("approval")
    signal = await task.wait_for_signal("approval", waitpoint=waitpoint)
    return {"name": name, "answer": signal.payload, "who": signal.source_identity}

@ff.handler(lane="slow")
async def last(task: Task, seconds: float) -> str:
    await task.emit("word", "begun")
    await asyncio.sleep(seconds)
    return "lasted"

@ff.handler(lane="slow")
def hang(task, seconds: float) -> None:
    time.sleep(seconds)

@ff.handler(lane="slow")
async def hang_in_step(task: Task, seconds: float) -> None:
    await asyncio.to_thread(time.sleep, seconds)

not_an_app = 7
"""


class Shell:
    """Runs command lines in this process, against one store."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder / 'work.db'}"
        self._capture = capture
        self.err = ""

    def run(self, *words: str, url: str | None = None) -> tuple[int, str]:
        """The exit code and what was printed; ``err`` has the last standard error."""
        self._capture.readouterr()
        code = main(["--url", url or self.url, *words])
        printed = self._capture.readouterr()
        self.err = printed.err
        return code, printed.out

    def out(self, *words: str) -> str:
        """What a command that must succeed printed."""
        code, printed = self.run(*words)
        assert code == 0, self.err
        return printed.strip()

    def json(self, *words: str) -> Any:
        """The one JSON document that a command printed, whatever its exit code was."""
        _, printed = self.run(*words, "--json")
        [line] = printed.splitlines()
        return json.loads(line)

    def submit(self, kind: str, value: Any = None, *words: str) -> str:
        """The id of a new execution."""
        return self.out("submit", kind, json.dumps(value), *words)

    def state(self, execution_id: str) -> str:
        """The public state of an execution."""
        found: str = self.json("show", execution_id)["execution"]["public_state"]
        return found


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Command lines on a store of their own."""
    for name in ("FF_URL", "FF_NAMESPACE", "FF_DEBUG", "FF_WAITPOINT_HMAC_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_app.py").write_text(APP)
    return Shell(tmp_path, capsys)


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until a condition holds; its value is returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
    return found


class WorkerProcess:
    """A ``flowfabric worker`` in a process of its own."""

    def __init__(self, shell: Shell, *options: str) -> None:
        self.log = shell.folder / "worker.log"
        self.output = shell.folder / "worker.out"
        with self.log.open("wb") as log, self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flowfabric", "worker", "cli_app:ff", "--url", shell.url, *options],
                cwd=shell.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
                stdout=output,
                stderr=log,
            )
        try:
            until(lambda: " on sqlite " in self.log_text() or self.process.poll() is not None)
        except BaseException:
            self.close()
            raise

    def log_text(self) -> str:
        """What the worker has logged so far."""
        return self.log.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def close(self) -> None:
        """Leave no process behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def start_worker(shell: Shell) -> Iterator[Callable[..., WorkerProcess]]:
    """Start workers that end with the test."""
    started: list[WorkerProcess] = []

    def start(*options: str) -> WorkerProcess:
        started.append(WorkerProcess(shell, *options))
        return started[-1]

    yield start
    for worker in started:
        worker.close()

"""The witness: a file in which every step writes when it begins and when it ends.

It is written outside the engine, by the process that runs the step, so it also tells of a step
that died half-way. Each line is one append, which the operating system keeps whole.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flowfabric import Task


class Testimony(msgspec.Struct, frozen=True):
    """One line."""

    event: str
    """``begin`` or ``end``."""
    step: str
    execution_id: str
    attempt: int
    pid: int
    at_ms: int


@contextmanager
def witnessed(path: Path, task: Task, step: str) -> Iterator[None]:
    """Write down that a step begins, and that it ends if it does."""
    _write(path, "begin", task, step)
    yield
    _write(path, "end", task, step)


def _write(path: Path, event: str, task: Task, step: str) -> None:
    line = Testimony(event, step, task.execution_id, task.attempt, os.getpid(), time.time_ns() // 1_000_000)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, msgspec.json.encode(line) + b"\n")
    finally:
        os.close(descriptor)


def read_witness(path: Path) -> list[Testimony]:
    """Everything that was written so far."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Testimony) for line in path.read_bytes().splitlines()]

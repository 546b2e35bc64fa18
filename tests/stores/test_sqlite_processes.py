"""Several real processes on one file."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import flowfabric
from flowfabric.stores.sqlite.driver import ApswDriver
from tests.stores.builders import commit, counter, creation, record_of

SCRIPT = Path(__file__).with_name("incrementer.py")
KEY = counter().key


async def start(path: str, times: int) -> asyncio.subprocess.Process:
    """Start a process that increments the counter."""
    sources = str(Path(str(flowfabric.__file__)).parents[1])
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        path,
        KEY,
        str(times),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": sources},
    )


async def acknowledged(process: asyncio.subprocess.Process) -> int:
    """How many increments the process reported before it ended."""
    output, _ = await process.communicate()
    return len(output)


async def prepare(open_store: Any) -> None:
    store = await open_store()
    await store.commit(commit(changes=creation(counter()).changes, rows_added=[("count", "", 0, KEY)]))
    await store.close()


def check_integrity(path: str) -> None:
    connection = ApswDriver().connect(path)
    assert connection.rows("PRAGMA integrity_check") == [("ok",)]
    connection.close()


@pytest.mark.slow
async def test_increments_of_several_processes_all_count(open_store: Any, path: str) -> None:
    await prepare(open_store)
    processes = [await start(path, 40) for _ in range(3)]
    assert await asyncio.gather(*map(acknowledged, processes)) == [40] * 3
    check_integrity(path)
    store = await open_store()
    assert (await record_of(store, KEY)).frame_count == 120
    assert await store.read_index("count", "") == [(120, KEY)]


@pytest.mark.slow
async def test_a_killed_process_loses_nothing_that_it_was_told_and_leaves_no_half(
    open_store: Any, path: str
) -> None:
    await prepare(open_store)
    killed, other = await start(path, 100_000), await start(path, 60)
    assert killed.stdout is not None
    reported = len(await killed.stdout.readexactly(25))
    killed.kill()
    reported += await acknowledged(killed)
    assert await acknowledged(other) == 60
    check_integrity(path)
    store = await open_store()
    count = (await record_of(store, KEY)).frame_count
    # The last increment may have been committed and not yet reported.
    assert count - 60 in (reported, reported + 1)
    assert await store.read_index("count", "") == [(count, KEY)]

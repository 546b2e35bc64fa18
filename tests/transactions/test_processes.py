"""Other processes: a worker that runs what was submitted, and a submitter that is killed."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import flowfabric
from flowfabric import FlowFabric, errors
from tests.postgres import server
from tests.project.tree import ROOT
from tests.transactions.parties import Party, Place, place_for

pytestmark = [pytest.mark.realtime, pytest.mark.slow]

Start = Callable[[str], Any]


@pytest.fixture(params=["apsw", "asyncpg", "psycopg"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """A database that is ready."""
    async with place_for(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def start(place: Place) -> AsyncIterator[Start]:
    """Starts a process for one part and waits for its first line."""
    started = []

    async def start_one(part: str) -> tuple[asyncio.subprocess.Process, str]:
        sources = str(Path(str(flowfabric.__file__)).parents[1])
        url = "" if place.is_file else server().url()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.transactions.clerk"),
            *(part, place.driver, str(Path(place.path).parent), url),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": sources},
        )
        started.append(process)
        assert process.stdout is not None
        return process, (await process.stdout.readline()).decode().strip()

    yield start_one
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_worker_elsewhere_runs_it_soon_after_the_commit(
    app: FlowFabric, party: Party, start: Start
) -> None:
    await start("work")
    await party.begin()
    run = await party.submit("double", 7)
    await party.commit()
    assert await run.result(timeout=60) == 14


async def test_a_submitter_that_is_killed_before_its_commit_leaves_nothing(
    app: FlowFabric, party: Party, start: Start
) -> None:
    process, execution_id = await start("submit")
    process.kill()
    await process.wait()
    with pytest.raises(errors.ExecutionNotFound):
        await app.run(execution_id).state()
    assert await party.orders() == []
    await party.begin()
    run = await party.submit("double", 8, idempotency_key="order-7")
    await party.commit()
    assert not run.duplicate

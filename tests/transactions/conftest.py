"""A database for each driver whose connections may be used, and one user connected to it."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flowfabric import FlowFabric, Task
from tests.transactions.parties import DRIVERS, Party, Place, place_for


@pytest.fixture
def new_sqlite3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the standard library's SQLite for one that is safe to share."""
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.51.3")


@pytest.fixture(params=DRIVERS)
async def place(request: pytest.FixtureRequest, tmp_path: Path, new_sqlite3: None) -> AsyncIterator[Place]:
    """A database that is ready."""
    async with place_for(request.param, tmp_path) as made:
        yield made


def with_handlers(app: FlowFabric) -> FlowFabric:
    """The app, with something to submit."""

    @app.handler
    async def double(number: int) -> int:
        return 2 * number

    @app.handler
    async def approval(task: Task) -> Any:
        return (await task.wait_for_signal("review")).payload

    return app


@pytest.fixture
async def app(place: Place) -> AsyncIterator[FlowFabric]:
    """A started app, as another process would have it: its store has connections of its own."""
    async with with_handlers(place.app()) as started:
        yield started


@pytest.fixture
async def party(place: Place, app: FlowFabric) -> Party:
    """A user with a connection."""
    return await place.party(app)

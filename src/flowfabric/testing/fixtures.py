"""The fixtures that the pytest plugin offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import pytest_asyncio

from flowfabric.engine.engine import Engine
from flowfabric.testing.clock import ClockedStore, ManualClock
from flowfabric.urls import store_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def ff_store_url() -> str:
    """The store under test. Override it to run the same tests on another one."""
    return "memory://"


@pytest.fixture
def ff_clock() -> ManualClock:
    """A clock that stands still until the test advances it."""
    return ManualClock()


@pytest_asyncio.fixture
async def ff_engine(ff_store_url: str, ff_clock: ManualClock) -> AsyncIterator[Engine]:
    """A running engine over the store under test, living by ``ff_clock``."""
    store = cast("ClockedStore", store_for(ff_store_url))
    ff_clock.attach(store)
    async with Engine(store, namespace="default") as engine:
        yield engine

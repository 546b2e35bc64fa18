"""An app over the store in memory."""

from collections.abc import AsyncIterator

import pytest

from flowfabric import FlowFabric


@pytest.fixture
async def app() -> AsyncIterator[FlowFabric]:
    """A started app; it has no handlers yet and no worker runs."""
    async with FlowFabric("memory://") as started:
        yield started

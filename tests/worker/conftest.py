"""An app over each store that runs inside the test's process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flowfabric import FlowFabric


@pytest.fixture(params=["memory", "sqlite"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FlowFabric]:
    """A started app; it has no handlers yet and no worker runs."""
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/work.db?synchronous=NORMAL"
    async with FlowFabric(url) as started:
        yield started

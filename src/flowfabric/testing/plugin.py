"""The pytest plugin: fixtures for tests of programs that use FlowFabric.

``ff_store_url`` names the store, one in memory unless a test module overrides the fixture.
``ff_clock`` is a clock that stands still until the test advances it. ``ff_engine`` is a running
engine over that store, by that clock.

The fixtures need pytest-asyncio; without it only the marker of the conformance suite is there.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Know the suite's marker, and bring the fixtures along if they can work."""
    config.addinivalue_line("markers", "scenario(id): covers one entry of the acceptance list")
    if find_spec("pytest_asyncio") is not None and not config.pluginmanager.has_plugin("flowfabric.fixtures"):
        from flowfabric.testing import fixtures  # noqa: PLC0415 - only where it can be imported

        config.pluginmanager.register(fixtures, "flowfabric.fixtures")

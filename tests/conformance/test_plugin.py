"""The pytest plugin, as users see it."""

from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest
from flowfabric.contracts.reads import ServerTimeArgs

@pytest.mark.asyncio
async def test_the_engine_lives_by_the_clock(ff_engine, ff_clock):
    before = await ff_engine.execute(ServerTimeArgs())
    ff_clock.advance(1_000)
    assert (await ff_engine.execute(ServerTimeArgs())).now_ms == before.now_ms + 1_000

class TestOnAnotherStore:
    @pytest.fixture
    def ff_store_url(self, tmp_path):
        return f"sqlite:///{tmp_path}/work.db"

    @pytest.mark.asyncio
    async def test_the_store_can_be_chosen(self, ff_engine):
        assert ff_engine.durability.store != "memory"
"""


@pytest.mark.slow
def test_the_fixtures_give_a_running_engine_and_its_clock(pytester):
    installed = {found.name for found in entry_points(group="pytest11")}
    pytester.makepyfile(TESTS)
    options = [] if "flowfabric" in installed else ["-p", "flowfabric.testing.plugin"]
    result = pytester.runpytest_subprocess(*options, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)

"""What the tests of the rules share."""

import pytest

from tests.core.harness import Rulebook


@pytest.fixture
def book() -> Rulebook:
    """Rules over an empty dictionary of records."""
    return Rulebook()

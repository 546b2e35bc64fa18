"""What tests of engines share."""

import pytest

from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, ManualClock, RecordingStore


@pytest.fixture
async def beds():
    """Two engines over one store: what the one remembers, the other may change."""
    store, clock = RecordingStore(MemoryStore()), ManualClock()
    async with Bed(store, clock=clock) as one, Bed(store, clock=clock) as other:
        other._ids = one._ids
        yield one, other
        await one.check()

"""What the engine says about itself."""

import pytest

from flowfabric import errors
from flowfabric.contracts.backend import CapabilitiesArgs, PingArgs
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, FaultyStore


async def test_a_ping_is_answered_with_the_clock():
    async with Bed(MemoryStore()) as bed:
        assert (await bed.unchanging(PingArgs())).now_ms == bed.clock.now_ms


async def test_a_store_that_fails_is_not_said_to_answer():
    store = FaultyStore(MemoryStore())
    async with Bed(store) as bed:
        store.lost_loads = 1
        with pytest.raises(errors.StoreError):
            await bed.execute(PingArgs())


async def test_capabilities_name_the_store_its_durability_and_every_operation():
    async with Bed(MemoryStore()) as bed:
        found = await bed.unchanging(CapabilitiesArgs())
    assert (found.backend_label, found.durability_level) == ("memory", "D0")
    assert {"create_execution", "list_workers", "capabilities"} <= set(found.operations)
    assert "claim_candidate" not in found.operations
    assert all(found.supports[name] for name in (*found.operations, "prepare", "cancel_flow_wait_timeout"))

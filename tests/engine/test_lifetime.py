"""Starting an engine again, and copies of one engine as a fork makes them."""

import copy

from flowfabric.engine.engine import Engine
from flowfabric.engine.notifier import EVENTS
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed
from flowfabric.testing.bed import NAMESPACE


async def test_who_waits_on_an_engine_that_was_started_again_is_not_woken_for_nothing():
    bed = Bed(MemoryStore())
    async with bed:
        pass
    async with bed:
        assert not bed.engine.notifier.closed
        with bed.engine.notifier.subscribe(EVENTS) as changes:
            assert not changes.event.is_set()


async def test_engines_that_were_made_before_a_fork_mint_different_request_ids():
    engine = Engine(MemoryStore(), namespace=NAMESPACE)
    child = copy.copy(engine)
    async with engine, child:
        envelopes = [one.envelope(None, None, "") for one in (engine, child)]
    assert envelopes[0].request_id != envelopes[1].request_id

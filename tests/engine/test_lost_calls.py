"""Every call of a scenario fails once, before or after it took effect; asking again makes it right."""

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import (
    CompleteExecutionArgs,
    FailExecutionArgs,
    PromoteDelayedArgs,
    ReplayExecutionArgs,
)
from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs
from flowfabric.stores.memory import MemoryStore
from flowfabric.stores.sqlite import SqliteStore
from flowfabric.testing import Bed, FaultyStore, differences
from flowfabric.testing.conformance.scenarios import frame
from flowfabric.testing.conformance.situations import (
    KID,
    POLICY,
    RETRY_DELAY_MS,
    SECRET_HEX,
    Place,
    signal,
    suspension,
)

COMMITS = 13
"""How many commits the scenario makes."""


class Client:
    """Asks again, with the same request id, until it has an answer."""

    def __init__(self, bed):
        self.bed = bed
        self.number = 0

    async def ask(self, command):
        self.number += 1
        for _ in range(3):
            try:
                return await self.bed.execute(command, request_id=f"ask-{self.number}")
            except errors.StoreUnreachable:
                continue
        raise AssertionError("the store came back, and the answer did not")


async def live(bed):
    """A life with most of what a life can have. Returns what the store holds afterwards."""
    client = Client(bed)
    await client.ask(SeedWaitpointHmacSecretArgs(kid=KID, secret_hex=SECRET_HEX))
    creation = bed.creation(idempotency_key="once", policy=POLICY)
    await client.ask(creation)
    execution_id = creation.execution_id
    claim = (await client.ask(bed.claiming(execution_id))).work
    await client.ask(frame(claim))
    place = Place(execution_id=execution_id, claim=claim)
    details = (await client.ask(suspension(bed, place))).details
    place.waitpoint_id, place.token = details.waitpoint_id, details.waitpoint_token
    await client.ask(signal(bed, place))
    claim = (await client.ask(bed.claiming(execution_id))).work
    fields = {"execution_id": execution_id, "attempt_index": claim.attempt_index}
    await client.ask(
        FailExecutionArgs(**fields, fence=claim.fence, failure_reason="it broke", failure_category="error")
    )
    bed.clock.advance(RETRY_DELAY_MS)
    await client.ask(PromoteDelayedArgs(execution_id=execution_id))
    claim = (await client.ask(bed.claiming(execution_id))).work
    await client.ask(CompleteExecutionArgs(execution_id=execution_id, attempt_index=1, fence=claim.fence))
    await client.ask(ReplayExecutionArgs(execution_id=execution_id))
    await bed.check()
    return await bed.dump()


class CountingStore(FaultyStore):
    """Loses the commit with a given number, or its reply."""

    def __init__(self, inner, number, way):
        super().__init__(inner)
        self.number = number
        self.way = way
        self.commits = 0

    async def commit(self, commit):
        self.commits += 1
        if self.commits == self.number:
            setattr(self, self.way, 1)
        await super().commit(commit)


@pytest.mark.parametrize("way", ["lost_commits", "lost_replies"])
@pytest.mark.parametrize("number", range(1, COMMITS + 1))
@pytest.mark.parametrize(
    "make_store", [MemoryStore, lambda: SqliteStore(":memory:")], ids=["memory", "sqlite"]
)
async def test_a_lost_call_leaves_what_no_lost_call_leaves(make_store, number, way):
    async with Bed(MemoryStore()) as bed:
        expected = await live(bed)
    store = CountingStore(make_store(), number, way)
    async with Bed(store) as bed:
        assert not differences(await live(bed), expected)
    assert store.commits == COMMITS + (way == "lost_commits")


async def test_the_scenario_makes_as_many_commits_as_are_lost_in_turn():
    store = CountingStore(MemoryStore(), 0, "")
    async with Bed(store) as bed:
        await live(bed)
    assert store.commits == COMMITS

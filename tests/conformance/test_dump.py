"""The dump, which everything else is compared by."""

from flowfabric.stores.memory import MemoryStore
from flowfabric.stores.sqlite import SqliteStore
from flowfabric.testing import Bed, differences
from flowfabric.testing.conformance.scenarios import frame


async def drive(bed):
    claim = await bed.start(idempotency_key="once")
    await bed.execute(frame(claim))
    await bed.advance(100_000)
    again = await bed.claim(claim.execution_id)
    await bed.complete(again, result_payload=b"\x00\xff")
    return await bed.dump()


async def test_two_stores_driven_alike_hold_the_same():
    async with Bed(MemoryStore()) as left, Bed(SqliteStore(":memory:")) as right:
        assert not differences(await drive(left), await drive(right))


async def test_a_dump_holds_records_rows_events_and_frames():
    async with Bed(MemoryStore()) as bed:
        held = await drive(bed)
    kinds = {key.partition("/")[0] for key in held["records"]}
    assert kinds == {"attempt", "execution", "payload", "reservation", "result", "stream"}
    assert {row[0] for row in held["rows"]} == {"created", "due_reservation", "retention", "terminal"}
    assert [event["event"]["name"] for event in held["events"]][:2] == ["created", "acquired"]
    assert [len(frames) for frames in held["frames"].values()] == [1, 0, 0]


async def test_every_difference_is_shown():
    async with Bed(MemoryStore()) as left, Bed(MemoryStore()) as right:
        ours = await drive(left)
        theirs = await drive(right)
    theirs["rows"].pop()
    theirs["events"][0]["sequence"] = 7
    shown = differences(ours, theirs)
    assert {line.partition(":")[0] for line in shown} == {"rows", "events"}


async def test_time_only_passes_when_it_is_told_to():
    async with Bed(MemoryStore()) as bed:
        before = await bed.store.now()
        await bed.start()
        assert await bed.store.now() == before
        await bed.advance(5)
        assert await bed.store.now() == before + 5


async def test_advancing_stops_at_every_instant_at_which_something_is_due():
    """The second expiry counts from the first one's claim, not from where the clock ends."""
    async with Bed(MemoryStore()) as bed:
        claim = await bed.start()
        await bed.advance(1_000_000)
        record = await bed.execution(claim.execution_id)
        assert record.lease is not None
        assert record.lease.ended_at == claim.lease_expires_at

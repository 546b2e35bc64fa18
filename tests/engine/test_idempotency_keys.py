"""Creating with an idempotency key: two commits, and what a crash between them leaves behind."""

import asyncio

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import ExecutionCreated, ExecutionDuplicate
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.states import PublicState
from flowfabric.core.commands import ReserveIdempotencyKeyArgs
from flowfabric.core.records import Reservation
from flowfabric.core.rules.creation import (
    RESERVATION_GRACE_MS,
    idempotency_window_ms,
    request_digest,
    reservation_identity,
)
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, FaultyStore
from flowfabric.testing.bed import NAMESPACE


@pytest.fixture
async def bed():
    async with Bed(FaultyStore(MemoryStore())) as bed:
        yield bed
        await bed.check()


async def reserved(bed):
    """What a crash leaves behind: a key that is bound to an execution that there is not."""
    args = bed.creation(idempotency_key="once")
    await bed.execute(
        ReserveIdempotencyKeyArgs(
            namespace=NAMESPACE,
            idempotency_key="once",
            execution_id=args.execution_id,
            digest=request_digest(args),
            window_ms=idempotency_window_ms(None),
        )
    )
    return args


async def reservation(bed):
    return await bed.find(Reservation, reservation_identity(NAMESPACE, "once"))


async def test_the_same_request_again_is_a_duplicate_of_the_first(bed):
    first = await bed.create(idempotency_key="once")
    again = await bed.unchanging(bed.creation(idempotency_key="once"))
    assert again == ExecutionDuplicate(execution_id=first)


async def test_other_content_under_the_same_key_is_a_conflict(bed):
    await bed.create(idempotency_key="once")
    refusal = await bed.refused(bed.creation(idempotency_key="once", input_payload=b"other"))
    assert isinstance(refusal, errors.IdempotencyConflict)


async def test_of_many_at_once_one_creates(bed):
    answers = await asyncio.gather(*(bed.execute(bed.creation(idempotency_key="once")) for _ in range(10)))
    assert [type(answer) for answer in answers].count(ExecutionCreated) == 1
    assert len({answer.execution_id for answer in answers}) == 1


async def test_repeating_the_request_finishes_what_a_crash_interrupted(bed):
    """Under the id that the key was bound to."""
    args = await reserved(bed)
    answer = await bed.execute(bed.creation(idempotency_key="once"))
    assert answer == ExecutionCreated(execution_id=args.execution_id, public_state=PublicState.WAITING)


async def test_a_lost_reply_of_the_reservation_is_harmless(bed):
    args = bed.creation(idempotency_key="once")
    bed.store.lost_replies = 1
    with pytest.raises(errors.StoreUnreachable):
        await bed.execute(args)
    assert type(await bed.execute(args)) is ExecutionCreated


async def test_a_reservation_whose_execution_exists_is_confirmed(bed):
    await bed.create(idempotency_key="once")
    assert not (await reservation(bed)).confirmed
    await bed.advance(RESERVATION_GRACE_MS)
    assert (await reservation(bed)).confirmed


async def test_a_reservation_left_alone_is_freed_after_its_grace(bed):
    await reserved(bed)
    await bed.advance(2 * RESERVATION_GRACE_MS - 1)
    assert await reservation(bed) is not None
    await bed.advance(1)
    assert await reservation(bed) is None


async def test_after_its_window_a_key_is_free_again(bed):
    first = await bed.create(idempotency_key="once")
    await bed.advance(idempotency_window_ms(None))
    assert await reservation(bed) is None
    assert await bed.create(idempotency_key="once") != first


async def test_the_policy_says_how_long_a_key_stays_bound(bed):
    policy = ExecutionPolicy(dedup_window_ms=RESERVATION_GRACE_MS + 1)
    await bed.create(idempotency_key="once", policy=policy)
    await bed.advance(RESERVATION_GRACE_MS)
    assert await reservation(bed) is not None
    await bed.advance(1)
    assert await reservation(bed) is None


async def test_settling_twice_changes_nothing_more(bed):
    await bed.create(idempotency_key="once")
    await bed.advance(RESERVATION_GRACE_MS)
    before = await bed.dump()
    await bed.settle()
    assert await bed.dump() == before

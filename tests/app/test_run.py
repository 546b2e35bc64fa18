"""How a run tells its submitter that it ended otherwise, and where it sends a signal."""

import pytest

from flowfabric import errors
from flowfabric.contracts.states import WaitpointState
from flowfabric.contracts.suspensions import PendingWaitpointInfo, ReadWaitpointTokenArgs
from flowfabric.minting import new_waitpoint_id
from flowfabric.run import Run, _waitpoint_for
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed
from flowfabric.testing.bed import NAMESPACE
from flowfabric.testing.conformance.situations import bring, seed_key

EXECUTION = "{fp:7}:00000000-0000-4000-8000-000000000001"


@pytest.fixture
async def bed():
    async with Bed(MemoryStore()) as bed:
        await seed_key(bed)
        yield bed


async def run_in(bed, situation):
    [place] = await bring(bed, situation, 1)
    return Run(lambda: bed.engine, place.execution_id, NAMESPACE)


@pytest.mark.parametrize(
    ("situation", "error"),
    [
        ("failed", errors.RunFailed),
        ("cancelled_unclaimed", errors.RunCancelled),
        ("expired", errors.RunExpired),
        ("skipped", errors.RunSkipped),
    ],
)
async def test_each_end_without_a_result_has_its_own_error(bed, situation, error):
    run = await run_in(bed, situation)
    with pytest.raises(error) as caught:
        await run.result(timeout=60)
    assert caught.value.details["execution_id"] == run.execution_id


async def test_a_waitpoint_that_closes_while_a_signal_is_sent_is_not_found(bed, monkeypatch):
    """Between looking for the waitpoint and reading its token the execution goes on."""
    run = await run_in(bed, "suspended")
    execute = bed.engine.execute

    async def execute_when_closed(command, **options):
        if isinstance(command, ReadWaitpointTokenArgs):
            monkeypatch.setattr(bed.engine, "execute", execute)
            await run.cancel()
        return await execute(command, **options)

    monkeypatch.setattr(bed.engine, "execute", execute_when_closed)
    with pytest.raises(errors.FlowFabricError) as caught:
        await run.signal("go")
    assert isinstance(caught.value, errors.WaitpointNotFound)


def waitpoint(key, state="active", names=()):
    return PendingWaitpointInfo(
        waitpoint_id=new_waitpoint_id(),
        waitpoint_key=key,
        state=WaitpointState(state),
        required_signal_names=names,
        created_at=1,
        execution_id=EXECUTION,
        token_kid="k1",
        token_fingerprint="f",
    )


NAMED, ANY = waitpoint("a", names=("go",)), waitpoint("b")
OTHER, PUBLISHED, GO = waitpoint("c", names=("stop",)), waitpoint("d", "pending"), waitpoint("go", "pending")


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((ANY, NAMED, GO), NAMED),
        ((ANY, GO), GO),
        ((PUBLISHED, ANY), ANY),
        ((ANY, PUBLISHED), ANY),
        ((OTHER, PUBLISHED), PUBLISHED),
        ((OTHER,), None),
        ((), None),
    ],
)
def test_a_signal_goes_to_who_asks_for_it_then_by_key_then_to_what_is_waited_for(entries, expected):
    assert _waitpoint_for("go", entries) is expected


@pytest.mark.parametrize("entries", [(ANY, waitpoint("e")), (NAMED, waitpoint("e", names=("go",)))])
def test_a_signal_that_could_be_meant_for_several_is_refused_with_their_keys(entries):
    with pytest.raises(errors.InvalidInput) as caught:
        _waitpoint_for("go", entries)
    assert f"one waitpoint's key of: {entries[0].waitpoint_key}, e" in str(caught.value)

"""Reading a journal through the engine."""

import pytest

from flowfabric.contracts.journal import (
    JournalKind,
    JournalPage,
    ReadJournalArgs,
    RecordSleepArgs,
    RecordStepArgs,
)
from flowfabric.engine.journal import PAGE_ENTRIES
from flowfabric.errors import ExecutionNotFound
from tests.core.harness import new_execution_id
from tests.engine.stage import Stage


@pytest.fixture
async def stage():
    stage = Stage()
    async with stage.engine:
        yield stage


def step(execution_id, fence, ordinal, value=b""):
    return RecordStepArgs(
        execution_id=execution_id, fence=fence, attempt_index=0, name="step", ordinal=ordinal, value=value
    )


async def test_a_new_execution_has_an_empty_journal(stage):
    execution_id, _ = await stage.start_execution()
    assert await stage.engine.execute(ReadJournalArgs(execution_id=execution_id)) == JournalPage()


async def test_entries_come_in_the_order_of_their_recording(stage):
    execution_id, fence = await stage.start_execution()
    await stage.engine.execute(step(execution_id, fence, 1, b"one"))
    stage.store.now_ms += 1
    await stage.engine.execute(
        RecordSleepArgs(
            execution_id=execution_id, fence=fence, attempt_index=0, name="a", ordinal=0, wake_at=9
        )
    )
    stage.store.now_ms += 1
    await stage.engine.execute(step(execution_id, fence, 0, b"zero"))
    page = await stage.engine.execute(ReadJournalArgs(execution_id=execution_id))
    found = [(entry.kind, entry.name, entry.ordinal, entry.value, entry.wake_at) for entry in page.entries]
    assert found == [
        (JournalKind.STEP, "step", 1, b"one", None),
        (JournalKind.SLEEP, "a", 0, None, 9),
        (JournalKind.STEP, "step", 0, b"zero", None),
    ]


@pytest.mark.parametrize("count", [PAGE_ENTRIES, PAGE_ENTRIES + 1])
async def test_a_journal_of_many_pages_is_complete(stage, count):
    execution_id, fence = await stage.start_execution()
    await stage.engine.execute_many([step(execution_id, fence, ordinal) for ordinal in range(count)])
    page = await stage.engine.execute(ReadJournalArgs(execution_id=execution_id))
    assert sorted(entry.ordinal for entry in page.entries) == list(range(count))


@pytest.mark.parametrize("namespace", [None, "other"])
async def test_an_execution_one_may_not_see_is_not_found(stage, namespace):
    execution_id = new_execution_id() if namespace is None else (await stage.start_execution())[0]
    with pytest.raises(ExecutionNotFound):
        await stage.engine.execute(ReadJournalArgs(execution_id=execution_id), namespace=namespace)

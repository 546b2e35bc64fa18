"""What an engine remembers of what it has written: never an answer, only the way to one."""

from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.executions import CancelExecutionArgs, CompleteExecutionArgs, ExecutionDuplicate
from flowfabric.contracts.journal import ReadJournalArgs, RecordStepArgs
from flowfabric.contracts.reads import ReadExecutionInfoArgs
from flowfabric.contracts.signals import SignalDuplicate
from flowfabric.core.records import Execution, JournalRecord, Payload, journal_identity, key_for
from flowfabric.engine import recent as recent_module
from flowfabric.engine.recent import DATA_BYTES_MAX, RecentRecords
from flowfabric.stores.base import Change, Commit, Conflict
from flowfabric.testing.bed import NAMESPACE
from flowfabric.testing.conformance.budgets import new_budget, reporting, status
from flowfabric.testing.conformance.situations import bring, seed_key, signal
from tests.core.harness import new_execution_id


async def test_what_an_engine_has_just_written_it_does_not_load(beds):
    bed, _ = beds
    await bed.create()
    bed.store.loaded.clear()
    await bed.complete(await bed.claim(await bed.create()))
    assert not bed.store.loaded


async def test_recording_a_step_loads_nothing(beds):
    bed, _ = beds
    claim = await bed.start()
    bed.store.loaded.clear()
    await bed.execute(step_of(claim))
    assert not bed.store.loaded


def step_of(claim, ordinal=0, value=b"1"):
    return RecordStepArgs(
        execution_id=claim.execution_id,
        fence=claim.fence,
        attempt_index=0,
        name="step",
        ordinal=ordinal,
        value=value,
    )


async def test_a_payload_that_is_large_is_loaded(beds):
    bed, _ = beds
    large = bytes(DATA_BYTES_MAX + 1)
    execution_id = await bed.create(input_payload=large)
    bed.store.loaded.clear()
    assert (await bed.claim(execution_id)).input_payload == large
    assert bed.store.loaded == {key_for(Payload, execution_id)}


@pytest.mark.parametrize("size", [DATA_BYTES_MAX, DATA_BYTES_MAX + 1])
async def test_a_step_is_remembered_unless_its_value_is_large(beds, size):
    bed, _ = beds
    claim = await bed.start()
    await bed.execute(step_of(claim, value=b'"' + b"x" * (size - 2) + b'"'))
    key = key_for(JournalRecord, journal_identity(claim.execution_id, 0, "step", 0))
    assert (bed.engine.recent.recall(key) is not None) == (size <= DATA_BYTES_MAX)


async def test_what_another_engine_has_made_possible_is_not_refused(beds):
    bed, other = beds
    claim = await bed.start()
    await other.delay(claim, 0)
    assert (await bed.claim(claim.execution_id)).lease_epoch == claim.lease_epoch + 1


async def test_what_another_engine_has_made_impossible_is_refused(beds):
    bed, other = beds
    claim = await bed.start()
    await other.execute(CancelExecutionArgs(execution_id=claim.execution_id, reason="changed my mind"))
    completion = CompleteExecutionArgs(
        execution_id=claim.execution_id, fence=claim.fence, attempt_index=0, source="lease_holder"
    )
    assert isinstance(await bed.refused(completion), errors.ExecutionNotActive)


async def test_an_execution_that_another_engine_has_made_is_no_new_one(beds):
    bed, other = beds
    creation = bed.creation()
    await other.execute(creation)
    before = len(bed.store.commits)
    again = await bed.execute(creation, request_id="another")
    assert again == ExecutionDuplicate(execution_id=creation.execution_id)
    assert len(bed.store.commits) == before


async def test_a_step_that_another_engine_has_recorded_is_not_recorded_again(beds):
    bed, other = beds
    claim = await bed.start()
    step = step_of(claim)
    await other.execute(step)
    before = len(bed.store.commits)
    again = await bed.execute(replace(step, value=b"2"), request_id="another")
    assert again.entry.value == b"1"
    assert len(bed.store.commits) == before


async def test_a_fact_that_no_commit_compares_is_looked_up(beds):
    """A report checks the lease and does not rest on it, so it must not check what is remembered."""
    bed, other = beds
    budget_id = await new_budget(bed)
    claim = await bed.start()
    await other.complete(claim)
    with pytest.raises(errors.ExecutionNotActive):
        await bed.execute(reporting(budget_id, claim, 5))
    assert (await status(bed, budget_id)).usage.get("tokens", 0) == 0


async def test_whoever_changes_what_was_handed_out_changes_nothing_here(beds):
    bed, _ = beds
    given = {"team.name": "media"}
    execution_id = await bed.create(tags=given)
    given["team.name"] = "theirs"
    claim = await bed.claim(execution_id)
    claim.tags["team.name"] = "mine"
    await bed.complete(claim)
    assert (await bed.get(Execution, execution_id)).tags == {"team.name": "media"}


async def test_what_others_change_too_is_loaded_each_time_for_a_while(beds, monkeypatch):
    bed, other = beds
    claim = await bed.start()
    await other.renew(claim)
    await bed.renew(claim)  # a conflict, by which the engine learns that somebody else is there
    bed.store.loaded.clear()
    await bed.renew(claim)
    assert bed.store.loaded == {key_for(Execution, claim.execution_id)}
    monkeypatch.setattr(recent_module, "SHARED_S", 0.0)
    bed.forget()
    await bed.renew(claim)
    bed.store.loaded.clear()
    await bed.renew(claim)
    assert not bed.store.loaded


async def test_a_query_that_finds_a_newer_record_tells_it(beds):
    bed, other = beds
    claim = await bed.start()
    await other.renew(claim)
    await bed.execute(ReadExecutionInfoArgs(execution_id=claim.execution_id))
    assert bed.engine.recent.recall(key_for(Execution, claim.execution_id)) is None


async def test_a_signal_for_what_was_suspended_here_loads_nothing_unless_it_comes_again(beds):
    bed, _ = beds
    await seed_key(bed)
    [place] = await bring(bed, "suspended", 1)
    sent = signal(bed, place)
    bed.store.loaded.clear()
    await bed.execute(sent)
    assert not bed.store.loaded
    bed.forget()
    before = len(bed.store.commits)
    again = await bed.execute(sent, request_id="another")
    assert again == SignalDuplicate(existing_signal_id=sent.signal_id)
    assert len(bed.store.commits) == before


async def test_a_wait_that_another_engine_has_ended_is_no_conflict(beds):
    """Its suspension is not what it was either, and is loaded before anything rests on it."""
    bed, other = beds
    await seed_key(bed)
    [place] = await bring(bed, "suspended", 1)
    await other.execute(signal(other, place))
    before = len(bed.store.commits)
    with counted_conflicts(bed.store) as conflicts:
        assert (await bed.claim(place.execution_id)).resumed
    assert len(bed.store.commits) == before + 1
    assert not conflicts


async def test_what_was_recorded_here_is_not_loaded_again_and_the_rest_is(beds):
    bed, other = beds
    claim = await bed.start()
    own, foreign = step_of(claim), step_of(claim, ordinal=1, value=b"2")
    await bed.execute(own)
    await other.execute(foreign)
    bed.store.loaded.clear()
    page = await bed.execute(ReadJournalArgs(execution_id=claim.execution_id))
    assert [entry.value for entry in page.entries] == [b"1", b"2"]
    journal = {key for key in bed.store.loaded if key.startswith("journal/")}
    assert journal == {key_for(JournalRecord, journal_identity(claim.execution_id, 0, "step", 1))}


async def test_an_entry_that_is_not_what_was_recorded_here_is_loaded(beds):
    """As after an execution was removed elsewhere and made anew under the same id."""
    bed, other = beds
    claim = await bed.start()
    await other.execute(step_of(claim, value=b"stored"))
    key = key_for(JournalRecord, journal_identity(claim.execution_id, 0, "step", 0))
    [(_, version, stored)] = (await bed.store.load([key])).rows
    outdated = replace(stored, recorded_at=stored.recorded_at - 1, value=b"outdated")
    bed.engine.recent.keep(commit_of(outdated), version - 1)
    page = await bed.execute(ReadJournalArgs(execution_id=claim.execution_id))
    assert [entry.value for entry in page.entries] == [b"stored"]


@contextmanager
def counted_conflicts(store):
    """The keys of all conflicts in the block."""
    found: list[str] = []
    commit = store.commit

    async def counting(asked):
        try:
            return await commit(asked)
        except Conflict as conflict:
            found.extend(conflict.keys)
            raise

    store.commit = counting
    yield found
    del store.commit


def commit_of(*records):
    return Commit(
        now=1,
        changes=[Change(record.key, 0, record) for record in records],
        relied_on=[],
        rows_removed=[],
        rows_added=[],
        events=[],
        appends=[],
        trims=[],
    )


def execution():
    return Execution(
        execution_id=new_execution_id(),
        namespace=NAMESPACE,
        lane_id="lane",
        execution_kind="kind",
        priority=0,
        creator_identity="tests",
        created_at=1,
        last_transition_at=1,
        last_mutation_at=1,
        input_sha256=b"",
    )


def test_the_oldest_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(recent_module, "RECORDS_MAX", 2)
    recent, first, second, third = RecentRecords(), execution(), execution(), execution()
    recent.keep(commit_of(first, second), 1)
    recent.keep(commit_of(first), 2)
    recent.keep(commit_of(third), 3)
    assert [recent.recall(one.key) for one in (first, second, third)] == [(2, first), None, (3, third)]


def test_what_a_store_does_not_number_is_not_remembered():
    recent, one = RecentRecords(), execution()
    recent.keep(commit_of(one), 1)
    recent.keep(commit_of(one), None)
    assert recent.recall(one.key) is None

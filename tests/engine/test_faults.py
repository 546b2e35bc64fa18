"""The store fails: conflicts, lost replies, and no store at all."""

import asyncio

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import (
    ChangePriorityArgs,
    ReplayExecutionArgs,
    SetExecutionTagArgs,
)
from flowfabric.contracts.journal import RecordStepArgs
from flowfabric.core.records import Execution, StreamMeta, key_for
from flowfabric.core.registry import EARLIER_REQUESTS_MAX, RULES
from flowfabric.engine.cycle import CONFLICTS_MAX
from flowfabric.stores.base import Conflict
from flowfabric.stores.memory import MemoryStore
from flowfabric.stores.sqlite import SqliteStore
from flowfabric.testing import Bed, FaultyStore
from flowfabric.testing.conformance.scenarios import frame


@pytest.fixture
async def bed():
    async with Bed(FaultyStore(MemoryStore())) as bed:
        yield bed
        await bed.check()


def prioritise(execution_id, priority=5):
    return ChangePriorityArgs(execution_id=execution_id, new_priority=priority)


@pytest.fixture
def decided(monkeypatch):
    """Counts how often the rule runs for each execution."""
    counts: dict[str, int] = {}
    decide = RULES[ChangePriorityArgs].decide

    def counting(work, args):
        answer = decide(work, args)
        counts[args.execution_id] = counts.get(args.execution_id, 0) + 1
        return answer

    monkeypatch.setattr(RULES[ChangePriorityArgs], "decide", counting)
    return counts


async def test_a_conflict_is_tried_again(bed):
    execution_id = await bed.create()
    bed.store.conflicts = CONFLICTS_MAX - 1
    await bed.execute(prioritise(execution_id))
    assert (await bed.execution(execution_id)).priority == 5


@pytest.mark.scenario("FAULT-003")
@pytest.mark.scenario("SUSP-030")
async def test_a_conflict_that_stays_ends_in_contention_and_nothing_changed(bed):
    execution_id = await bed.create()
    bed.store.conflicts = CONFLICTS_MAX
    refusal = await bed.refused(prioritise(execution_id))
    assert isinstance(refusal, errors.Contention)
    assert refusal.retryable
    assert bed.store.conflicts == 0


async def test_a_conflict_runs_again_only_what_touched_the_changed_record(bed, decided):
    contended, calm = await bed.create(), await bed.create()
    bed.store.conflicts, bed.store.conflicting_keys = 3, frozenset({key_for(Execution, contended)})
    await bed.engine.execute_many([prioritise(contended), prioritise(calm)])
    assert decided == {contended: 4, calm: 1}


async def test_what_built_on_a_command_in_conflict_runs_again_with_it(bed, decided):
    """Another record's change was decided in the same batch, upon the record that conflicts."""
    contended = await bed.create()
    bed.store.conflicts, bed.store.conflicting_keys = 1, frozenset({key_for(Execution, contended)})
    tag = SetExecutionTagArgs(execution_id=contended, key="owner.name", value="x")
    answers = await bed.engine.execute_many([prioritise(contended), tag])
    assert [type(answer).__name__ for answer in answers] == ["PriorityChanged", "TagsSet"]
    assert decided == {contended: 2}
    record = await bed.execution(contended)
    assert (record.priority, record.tags) == (5, {"owner.name": "x"})


async def test_contention_of_one_does_not_fail_those_beside_it(bed):
    contended, calm = await bed.create(), await bed.create()
    bed.store.conflicts = CONFLICTS_MAX
    bed.store.conflicting_keys = frozenset({key_for(Execution, contended)})
    first, second = await bed.engine.execute_many([prioritise(contended), prioritise(calm)])
    assert isinstance(first, errors.Contention)
    assert type(second).__name__ == "PriorityChanged"
    assert (await bed.execution(contended)).priority == 0


async def test_a_lost_commit_beside_contention_is_never_answered_as_done(bed, monkeypatch):
    """Both are in conflict until the last try, when only the first is, and the rest's commit is lost."""
    contended, lost = await bed.create(), await bed.create()
    commits = 0

    async def commit(change):
        nonlocal commits
        commits += 1
        if commits == CONFLICTS_MAX + 1:
            raise errors.StoreUnreachable
        keys = {contended} if commits == CONFLICTS_MAX else {contended, lost}
        raise Conflict(frozenset(key_for(Execution, execution_id) for execution_id in keys))

    monkeypatch.setattr(bed.store.inner, "commit", commit)
    first, second = await bed.engine.execute_many([prioritise(contended), prioritise(lost)])
    monkeypatch.undo()
    assert isinstance(first, errors.Contention)
    assert isinstance(second, errors.StoreUnreachable)
    assert (await bed.execution(lost)).priority == 0


async def test_two_engines_over_one_store_both_make_their_change():
    store = MemoryStore()
    async with Bed(store) as ours, Bed(store, clock=None) as theirs:
        execution_id = await ours.create()
        await asyncio.gather(
            *(
                bed.execute(
                    SetExecutionTagArgs(execution_id=execution_id, key=f"{name}.n{number}", value="x"),
                    request_id=f"{name}-{number}",
                )
                for number in range(5)
                for name, bed in (("ours", ours), ("theirs", theirs))
            )
        )
        assert len((await ours.execution(execution_id)).tags) == 10


async def test_asking_again_after_a_lost_reply_gets_the_first_answer(bed):
    claim = await bed.start()
    bed.store.lost_replies = 1
    with pytest.raises(errors.StoreUnreachable):
        await bed.execute(prioritise_args := frame(claim), request_id="lost")
    answer = await bed.unchanging(prioritise_args, request_id="lost")
    assert answer.frame_count == 1


@pytest.mark.parametrize("lost", ["lost_replies", "lost_commits"])
async def test_a_command_takes_effect_once_whether_its_commit_or_its_reply_was_lost(bed, lost):
    claim = await bed.start()
    setattr(bed.store, lost, 1)
    with pytest.raises(errors.StoreUnreachable):
        await bed.execute(frame(claim), request_id="lost")
    answer = await bed.execute(frame(claim), request_id="lost")
    assert answer.frame_count == 1


async def test_a_step_is_recorded_once_although_its_reply_was_lost(bed):
    claim = await bed.start()
    step = RecordStepArgs(
        execution_id=claim.execution_id,
        fence=claim.fence,
        attempt_index=0,
        name="step",
        ordinal=0,
        value=b"1",
    )
    bed.store.lost_replies = 1
    with pytest.raises(errors.StoreUnreachable):
        await bed.execute(step)
    again = await bed.unchanging(step)
    assert again.entry.value == b"1"


async def test_a_store_fault_fails_every_command_of_its_batch_with_that_fault(bed):
    bed.store.lost_loads = 1
    answers = await bed.engine.execute_many([bed.creation() for _ in range(3)])
    assert [type(answer) for answer in answers] == [errors.StoreUnreachable] * 3
    assert await bed.create()


async def test_a_store_fault_is_never_an_empty_answer(bed):
    """Neither «not found» nor «nothing to do»."""
    execution_id = await bed.create()
    bed.store.lost_loads = 1
    with pytest.raises(errors.StoreUnreachable):
        await bed.execute(prioritise(execution_id))


@pytest.mark.scenario("FAULT-001")
async def test_a_store_that_cannot_be_opened_says_so_at_once(tmp_path):
    with pytest.raises(errors.StoreError):
        await SqliteStore(str(tmp_path / "nowhere" / "work.db")).open()


@pytest.mark.scenario("FAULT-008")
async def test_a_record_that_cannot_be_read_does_not_block_those_beside_it(bed):
    broken, sound = await bed.create(), await bed.create()
    version, _ = bed.store.inner._records[key_for(Execution, broken)]
    held = bed.store.inner._records[key_for(Execution, broken)]
    bed.store.inner._records[key_for(Execution, broken)] = (version, b"\xc1")
    bed.forget()
    first, second = await bed.engine.execute_many([prioritise(broken), prioritise(sound)])
    bed.store.inner._records[key_for(Execution, broken)] = held
    assert isinstance(first, errors.StoreCorrupt)
    assert type(second).__name__ == "PriorityChanged"


async def test_what_cannot_be_encoded_fails_only_its_own_command(bed, monkeypatch):
    broken, sound = await bed.create(), await bed.create()
    commit = bed.store.inner.commit

    async def refusing(changes):
        if any(change.key == key_for(Execution, broken) for change in changes.changes):
            raise UnicodeEncodeError("utf-8", "", 0, 1, "as a store's encoder would")
        await commit(changes)

    monkeypatch.setattr(bed.store.inner, "commit", refusing)
    first, second = await bed.engine.execute_many([prioritise(broken), prioritise(sound)])
    assert isinstance(first, UnicodeEncodeError)
    assert type(second).__name__ == "PriorityChanged"


@pytest.mark.scenario("FAULT-006")
def test_which_errors_may_be_sent_again_is_fixed():
    known = {code: errors.error_for_code(code) for code in errors.all_codes()}
    retryable = {code for code, error in known.items() if error is not None and error.retryable}
    assert {"contention", "store_unreachable", "store_timeout", "rate_limit_exceeded"} <= retryable
    assert retryable.isdisjoint({"invalid_input", "not_found", "conflict", "stale_lease", "store_corrupt"})
    assert all(code == code.lower() and " " not in code for code in errors.all_codes())


async def test_a_request_is_remembered_although_others_came_after_it(bed):
    claim = await bed.start()
    first = await bed.execute(frame(claim), request_id="first")
    for number in range(EARLIER_REQUESTS_MAX):
        await bed.execute(frame(claim), request_id=f"other-{number}")
    assert await bed.unchanging(frame(claim), request_id="first") == first


async def test_a_record_remembers_a_bounded_number_of_requests(bed):
    claim = await bed.start()
    for number in range(3 * EARLIER_REQUESTS_MAX):
        await bed.execute(frame(claim), request_id=f"frame-{number}")
    stream = await bed.get(StreamMeta, f"{claim.execution_id}/0")
    assert len(stream.earlier_requests) == EARLIER_REQUESTS_MAX


async def test_the_answers_of_claims_and_completions_are_not_kept_beside_later_ones(bed):
    """The work that a claim hands out is large."""
    claim = await bed.start()
    await bed.renew(claim)
    await bed.complete(claim)
    assert (await bed.execution(claim.execution_id)).earlier_requests == ()


async def test_a_replay_that_is_asked_for_again_after_the_run_has_ended_is_made_once(bed):
    claim = await bed.start()
    await bed.complete(claim)
    replay = ReplayExecutionArgs(execution_id=claim.execution_id)
    await bed.execute(replay, request_id="replay")
    await bed.complete(await bed.claim(claim.execution_id))
    await bed.unchanging(replay, request_id="replay")

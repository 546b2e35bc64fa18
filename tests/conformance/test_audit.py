"""The auditor finds every kind of damage, and nothing wrong in what is sound."""

from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from flowfabric.audit import VIOLATIONS_MAX, audit
from flowfabric.contracts.executions import ReplayExecutionArgs
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.states import AttemptLifecycle, LifecyclePhase, TerminalOutcome, WaitpointState
from flowfabric.contracts.suspensions import ResumeExecutionArgs, ResumeTrigger
from flowfabric.core import indexes
from flowfabric.core.audit import INVARIANTS, Violation, in_namespace, owner_key
from flowfabric.core.commands import TrimExecutionArgs
from flowfabric.core.events import Event, Family
from flowfabric.core.records import (
    KEYRING_ID,
    Dedup,
    Execution,
    ExecutionResult,
    JournalRecord,
    Keyring,
    PastAttempt,
    Payload,
    Reservation,
    Signal,
    StreamMeta,
    Suspension,
    Waitpoint,
    WorkerRegistration,
    encode_record,
    key_for,
    worker_identity,
)
from flowfabric.core.vocabulary import GrantKind
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed
from flowfabric.testing.conformance.scenarios import frame
from flowfabric.testing.conformance.situations import (
    SITUATION_STEPS,
    Place,
    bring,
    seed_key,
    signal,
    suspension,
)
from flowfabric.testing.conformance.workers import registering

DAMAGE: dict[str, tuple[str, Callable[[Bed], Awaitable[None]]]] = {}
"""Invariant and a word -> a coroutine function that breaks it in a sound store."""


def damage(invariant, word=""):
    def register(function):
        DAMAGE[f"{invariant} {word or function.__name__}"] = (invariant, function)
        return function

    return register


def put(bed, record):
    """Store a record behind the engine's back, without its index rows."""
    version = bed.store._records.get(record.key, (998, b""))[0]
    bed.store._records[record.key] = (version + 1, encode_record(record))


def drop(bed, record_type, identity):
    del bed.store._records[key_for(record_type, identity)]


async def change(bed, record_type, identity, **fields):
    record = await bed.get(record_type, identity)
    for name, value in fields.items():
        setattr(record, name, value)
    put(bed, record)


async def place_in(bed, situation):
    [place] = await bring(bed, situation, 1)
    return place


async def of(bed, situation):
    return (await place_in(bed, situation)).execution_id


@damage("readable")
async def bytes_that_are_no_record(bed):
    bed.store._records[key_for(Execution, await of(bed, "eligible"))] = (1, b"\xc1junk")


@damage("legal_situation")
async def ended_without_an_outcome(bed):
    await change(bed, Execution, await of(bed, "completed"), outcome=TerminalOutcome.NONE)


@damage("legal_situation")
async def blocked_while_running(bed):
    blocked = await bed.execution(await of(bed, "blocked"))
    await change(bed, Execution, await of(bed, "running"), blockers=blocked.blockers)


@damage("legal_situation")
async def blocked_twice_for_one_reason(bed):
    execution_id = await of(bed, "blocked")
    await change(bed, Execution, execution_id, blockers=(await bed.execution(execution_id)).blockers * 2)


@damage("legal_situation")
async def delayed_without_an_instant(bed):
    execution_id = await of(bed, "delayed")
    blocker = (await bed.execution(execution_id)).blockers[0]
    await change(bed, Execution, execution_id, blockers=(replace(blocker, until_ms=None),))


@damage("legal_situation")
async def waiting_with_an_open_suspension(bed):
    await change(bed, Execution, await of(bed, "eligible"), suspension_id=bed.new_id())


@damage("terminal_is_clean")
async def ended_and_still_leased(bed):
    lease = (await bed.execution(await of(bed, "running"))).lease
    await change(bed, Execution, await of(bed, "completed"), lease=lease)


@damage("terminal_is_clean")
async def ended_and_still_granted(bed):
    grant = (await bed.execution(await of(bed, "eligible_granted"))).grant
    await change(bed, Execution, await of(bed, "failed"), grant=grant)


@damage("terminal_is_clean")
async def ended_and_its_attempt_runs_on(bed):
    execution_id = await of(bed, "cancelled")
    attempt = (await bed.execution(execution_id)).attempt
    await change(bed, Execution, execution_id, attempt=replace(attempt, ended_at=None))


@damage("terminal_is_clean")
async def ended_at_no_time(bed):
    await change(bed, Execution, await of(bed, "completed"), completed_at=None)


@damage("terminal_is_clean")
async def waiting_with_an_end(bed):
    await change(bed, Execution, await of(bed, "eligible"), completed_at=5)


@damage("input_is_immutable")
async def another_input(bed):
    await change(bed, Payload, await of(bed, "eligible"), data=b"other")


@damage("input_is_immutable")
async def no_input(bed):
    drop(bed, Payload, await of(bed, "running"))


@damage("result_is_kept")
async def no_result(bed):
    drop(bed, ExecutionResult, f"{await of(bed, 'completed')}/0")


@damage("active_means_running")
async def active_without_a_running_attempt(bed):
    execution_id = await of(bed, "running")
    attempt = (await bed.execution(execution_id)).attempt
    await change(bed, Execution, execution_id, attempt=replace(attempt, state=AttemptLifecycle.SUSPENDED))


@damage("active_means_running")
async def an_epoch_from_nowhere(bed):
    await change(bed, Execution, await of(bed, "running"), lease_epoch=7)


@damage("active_means_running")
async def time_that_runs_without_a_holder(bed):
    execution_id = await of(bed, "lease_revoked")
    attempt = (await bed.execution(execution_id)).attempt
    await change(bed, Execution, execution_id, attempt=replace(attempt, timeout_at=5))


@damage("grant_fits")
async def a_reclaim_grant_for_waiting_work(bed):
    execution_id = await of(bed, "eligible_granted")
    grant = (await bed.execution(execution_id)).grant
    await change(bed, Execution, execution_id, grant=replace(grant, kind=GrantKind.RECLAIM))


def lease_event(bed, execution_id, name, epoch, **data):
    bed.store._events.append(
        Event(
            family=Family.LEASE,
            name=name,
            namespace="tenant",
            execution_id=execution_id,
            at_ms=bed.clock.now_ms,
            data={"lease_epoch": epoch, **data},
        )
    )


@damage("one_lease")
async def a_lease_granted_over_another(bed):
    lease_event(bed, await of(bed, "running"), "acquired", 3)


@damage("one_lease")
async def an_epoch_that_came_back(bed):
    execution_id = await of(bed, "eligible_retry")
    lease_event(bed, execution_id, "acquired", 2)
    lease_event(bed, execution_id, "released", 2)


@damage("one_lease")
async def a_lease_that_the_log_does_not_know(bed):
    lease_event(bed, await of(bed, "running"), "released", 2)


@damage("no_early_reclaim")
async def a_lease_marked_before_its_expiry(bed):
    execution_id = await of(bed, "lease_expired")
    lease_event(bed, execution_id, "acquired", 9)
    lease_event(bed, execution_id, "renewed", 9, expires_at=bed.clock.now_ms + 1)
    lease_event(bed, execution_id, "expired", 9)


@damage("attempts_without_gaps")
async def a_missing_attempt(bed):
    drop(bed, PastAttempt, f"{await of(bed, 'running')}/0")


@damage("attempts_without_gaps")
async def an_attempt_too_many(bed):
    execution_id = await of(bed, "running")
    past = await bed.get(PastAttempt, f"{execution_id}/0")
    put(bed, PastAttempt(execution_id=execution_id, attempt=replace(past.attempt, attempt_index=5)))


@damage("attempts_without_gaps")
async def a_wrong_count(bed):
    await change(bed, Execution, await of(bed, "running"), attempt_count=1)


@damage("attempts_without_gaps")
async def a_later_attempt_before_the_earlier_ended(bed):
    identity = f"{await of(bed, 'running')}/0"
    past = await bed.get(PastAttempt, identity)
    await change(bed, PastAttempt, identity, attempt=replace(past.attempt, ended_at=None))


@damage("attempts_without_gaps")
async def a_first_attempt_that_continues_something(bed):
    claim = await bed.start()
    attempt = (await bed.execution(claim.execution_id)).attempt
    await change(bed, Execution, claim.execution_id, attempt=replace(attempt, attempt_type="retry"))


@damage("limits_hold")
async def retried_too_often(bed):
    await change(bed, Execution, await of(bed, "eligible"), retry_count=4)


@damage("limits_hold")
async def replayed_too_often(bed):
    await change(bed, Execution, await of(bed, "eligible"), replay_count=10_000)


@damage("limits_hold")
async def reclaimed_less_than_never(bed):
    await change(bed, Execution, await of(bed, "running"), reclaim_count=-1)


@damage("limits_hold")
async def reclaimed_too_often(bed):
    policy = ExecutionPolicy(max_reclaim_count=1)
    await change(bed, Execution, await of(bed, "running"), policy=policy, reclaim_count=2)


@damage("one_completion")
async def an_end_that_nobody_was_told(bed):
    await of(bed, "completed")
    bed.store._events = [event for event in bed.store._events if event.family is not Family.COMPLETION]


@damage("one_completion")
async def an_end_told_twice(bed):
    await of(bed, "completed")
    bed.store._events += [event for event in bed.store._events if event.family is Family.COMPLETION]


@damage("one_completion")
async def an_end_told_wrong(bed):
    await change(bed, Execution, await of(bed, "completed"), outcome=TerminalOutcome.FAILED)


@damage("suspension_matches")
async def a_suspension_that_is_gone(bed):
    execution_id = await of(bed, "suspended")
    drop(bed, Suspension, f"{execution_id}/{(await bed.execution(execution_id)).suspension_id}")


@damage("suspension_matches")
async def a_suspension_that_is_closed(bed):
    execution_id = await of(bed, "suspended")
    identity = f"{execution_id}/{(await bed.execution(execution_id)).suspension_id}"
    await change(bed, Suspension, identity, closed_at=5, attempt_index=9)


@damage("suspension_matches")
async def a_waitpoint_that_does_not_wait(bed):
    place = await place_in(bed, "suspended")
    identity = f"{place.execution_id}/{place.waitpoint_id}"
    await change(bed, Waitpoint, identity, state=WaitpointState.PENDING, expires_at=None)


@damage("waitpoints_match")
async def a_waitpoint_that_nobody_knows(bed):
    await change(bed, Execution, await of(bed, "suspended"), open_waitpoint_ids=())


@damage("waitpoints_match")
async def a_closed_waitpoint_without_its_instant(bed):
    place = await place_in(bed, "eligible_signalled")
    await change(bed, Waitpoint, f"{place.execution_id}/{place.waitpoint_id}", closed_at=None)


@damage("waitpoints_match")
async def a_waitpoint_that_is_active_for_nothing(bed):
    place = await place_in(bed, "suspended")
    await change(bed, Waitpoint, f"{place.execution_id}/{place.waitpoint_id}", suspension_id=bed.new_id())


@damage("resume_has_a_cause")
async def resumed_from_a_suspension_that_is_gone(bed):
    execution_id = await of(bed, "eligible_signalled")
    drop(bed, Suspension, f"{execution_id}/{(await bed.execution(execution_id)).resumed_suspension_id}")


@damage("resume_has_a_cause")
async def a_satisfying_signal_that_is_gone(bed):
    drop(bed, Signal, f"{await of(bed, 'eligible_signalled')}/1")


@damage("resume_has_a_cause")
async def resumed_from_what_is_still_open(bed):
    execution_id = await of(bed, "eligible_signalled")
    identity = f"{execution_id}/{(await bed.execution(execution_id)).resumed_suspension_id}"
    await change(bed, Suspension, identity, closed_at=None)


@damage("resume_has_a_cause")
async def resumed_twice_from_one_suspension(bed):
    await of(bed, "eligible_signalled")
    bed.store._events += [event for event in bed.store._events if event.name == "resumed"]


@damage("signals_without_gaps")
async def a_signal_that_is_gone(bed):
    await change(bed, Execution, await of(bed, "eligible_signalled"), signal_count=2)


@damage("namespaces_agree")
async def a_suspension_of_another_namespace(bed):
    execution_id = await of(bed, "suspended")
    identity = f"{execution_id}/{(await bed.execution(execution_id)).suspension_id}"
    await change(bed, Suspension, identity, namespace="other")


@damage("namespaces_agree")
async def a_key_of_another_namespace(bed):
    execution_id = await bed.create(idempotency_key="once")
    await change(bed, Execution, execution_id, namespace="other")


@damage("create_once")
async def a_confirmed_key_without_its_execution(bed):
    execution_id = await bed.create(idempotency_key="once")
    await bed.advance(60_000)
    drop(bed, Execution, execution_id)


@damage("create_once")
async def a_key_in_the_wrong_place(bed):
    await bed.create(idempotency_key="once")
    [key] = [key for key in bed.store._records if key.startswith("reservation/")]
    reservation = await bed.get(Reservation, key.partition("/")[2])
    put(bed, replace(reservation, partition_tag="{fp:9999}"))


@damage("kid_ring")
async def a_current_key_with_an_expiry(bed):
    ring = await bed.get(Keyring, KEYRING_ID)
    await change(bed, Keyring, KEYRING_ID, keys=(replace(ring.keys[0], expires_at=5),))


@damage("kid_ring")
async def a_current_key_that_is_gone(bed):
    await change(bed, Keyring, KEYRING_ID, current_kid="k9")


@damage("no_orphans")
async def a_row_without_a_record(bed):
    bed.store._add_row((indexes.ELIGIBLE, "tenant\x1flane\x1f", 1, bed.new_execution_id()))


@damage("no_orphans")
async def a_row_in_a_second_place(bed):
    bed.store._add_row((indexes.ACTIVE, "tenant\x1flane", 1, await of(bed, "eligible")))


@damage("no_orphans")
async def a_timer_that_was_forgotten(bed):
    bed.store._add_row((indexes.DUE_SUSPENSION, "", 5, await of(bed, "suspended")))


@damage("no_orphans")
async def a_payload_without_its_execution(bed):
    put(bed, Payload(execution_id=bed.new_execution_id(), data=b""))


@damage("no_orphans")
async def a_remembered_answer_without_its_execution(bed):
    put(
        bed,
        Dedup(scope=f"{bed.new_execution_id()}/signal", dedup_key="a", digest=b"", value=b"", expires_at=9),
    )


def drop_rows(bed, index):
    for name, scope in [key for key in bed.store._indexes if key[0] == index]:
        del bed.store._indexes[name, scope]


@damage("one_primary_index")
async def work_that_no_worker_can_find(bed):
    await of(bed, "eligible")
    drop_rows(bed, indexes.ELIGIBLE)


@damage("one_primary_index")
async def suspended_work_in_no_list(bed):
    await of(bed, "suspended")
    drop_rows(bed, indexes.SUSPENDED)


@damage("timers_match")
async def a_lease_that_never_expires(bed):
    await of(bed, "running")
    drop_rows(bed, indexes.DUE_LEASE)


@damage("timers_match")
async def a_timer_at_another_instant(bed):
    execution_id = await of(bed, "delayed")
    blockers = (await bed.execution(execution_id)).blockers
    await change(bed, Execution, execution_id, blockers=(replace(blockers[0], until_ms=7),))


@damage("worker_leases")
async def a_lease_that_its_worker_does_not_have(bed):
    await of(bed, "running")
    drop_rows(bed, indexes.WORKER_LEASES)


async def a_worker(bed):
    command = registering(capabilities=frozenset({"big", "gpu"}))
    await bed.execute(command)
    return worker_identity(command.namespace, command.worker_instance_id)


@damage("worker_is_sound")
async def a_worker_that_is_alive_for_another_time(bed):
    await change(bed, WorkerRegistration, await a_worker(bed), ttl_ms=7)


@damage("worker_is_sound")
async def a_worker_that_was_heard_of_before_it_registered(bed):
    await change(bed, WorkerRegistration, await a_worker(bed), registered_at=bed.clock.now_ms + 1)


@damage("worker_is_sound")
async def a_worker_with_unordered_capabilities(bed):
    await change(bed, WorkerRegistration, await a_worker(bed), capabilities=("gpu", "big"))


@damage("rows_match")
async def a_worker_in_no_list(bed):
    await a_worker(bed)
    drop_rows(bed, indexes.WORKERS)


@damage("timers_match")
async def a_worker_that_is_never_missed(bed):
    await a_worker(bed)
    drop_rows(bed, indexes.DUE_WORKER)


@damage("rows_match")
async def work_in_no_list_of_all(bed):
    await of(bed, "failed")
    drop_rows(bed, indexes.CREATED)


async def written(bed):
    claim = await bed.start()
    for _ in range(3):
        await bed.execute(frame(claim))
    return claim.execution_id


@damage("frames_match")
async def a_frame_that_is_gone(bed):
    execution_id = await written(bed)
    bed.store._frames[f"{execution_id}/0/durable"].pop(1)


@damage("frames_match")
async def frames_in_another_order(bed):
    execution_id = await written(bed)
    frames = bed.store._frames[f"{execution_id}/0/durable"]
    frames[-1] = replace(frames[-1], seq=99)


@damage("frames_match")
async def a_stream_of_an_attempt_that_there_is_not(bed):
    put(bed, StreamMeta(execution_id=await of(bed, "running"), attempt_index=9, created_at=1))


@pytest.fixture
async def bed():
    async with Bed(MemoryStore()) as bed:
        await seed_key(bed)
        yield bed


@pytest.mark.parametrize("name", DAMAGE)
async def test_the_damage_is_found(bed, name):
    invariant, do_damage = DAMAGE[name]
    await do_damage(bed)
    report = await audit(bed.engine)
    assert invariant in {violation.invariant for violation in report.violations}


def test_every_invariant_is_damaged_by_some_test():
    others = {"readable", "create_once", "kid_ring", "no_orphans", "one_primary_index", "timers_match"}
    others |= {"worker_leases", "rows_match", "frames_match", "worker_is_sound"}
    assert {invariant for invariant, _ in DAMAGE.values()} == INVARIANTS.keys() | others


@pytest.mark.parametrize("situation", SITUATION_STEPS)
async def test_nothing_is_wrong_in_what_the_commands_leave_behind(bed, situation):
    place = await place_in(bed, situation)
    if place.token is not None and (await bed.execution(place.execution_id)).suspension_id:
        await bed.execute(signal(bed, place))
    if (await bed.execution(place.execution_id)).phase is LifecyclePhase.TERMINAL:
        await bed.execute(ReplayExecutionArgs(execution_id=place.execution_id))
    await bed.advance(100_000)
    report = await audit(bed.engine)
    assert report.violations == ()
    assert report.checked["execution"] >= 1
    assert report.complete


@pytest.mark.parametrize(
    "ended", ["completed", "failed", "cancelled", "cancelled_unclaimed", "expired", "skipped"]
)
async def test_nothing_is_wrong_in_what_runs_again_after_its_end(bed, ended):
    """What ended before its first claim has a replay as its first attempt."""
    execution_id = await of(bed, ended)
    await bed.execute(ReplayExecutionArgs(execution_id=execution_id))
    claim = await bed.claim(execution_id)
    assert (await audit(bed.engine)).violations == ()
    await bed.fail(claim, failure_category="permanent")
    assert (await audit(bed.engine)).violations == ()


async def test_an_operator_may_resume_one_suspension_after_another(bed):
    """Each time the log has what happened and who did it, under the same name."""
    execution_id = await of(bed, "suspended")
    for turn in range(2):
        await bed.execute(ResumeExecutionArgs(execution_id=execution_id, trigger_type=ResumeTrigger.OPERATOR))
        claim = await bed.claim(execution_id)
        assert (await audit(bed.engine)).violations == (), turn
        await bed.execute(suspension(bed, Place(execution_id=execution_id, claim=claim)))


@pytest.mark.scenario("RECLAIM-013")
async def test_a_negative_counter_is_reported_and_never_wraps_around(bed):
    execution_id = await of(bed, "lease_expired")
    await change(bed, Execution, execution_id, reclaim_count=-1)
    assert [found.invariant for found in (await audit(bed.engine)).violations] == ["limits_hold"]
    await bed.claim(execution_id)
    assert (await bed.execution(execution_id)).reclaim_count == 0


async def test_the_log_of_one_that_was_removed_says_nothing_about_another_of_its_id(bed):
    claim = await bed.start()
    await bed.complete(claim)
    await bed.execute(TrimExecutionArgs(execution_id=claim.execution_id, retention_ms=0))
    again = await bed.start(execution_id=claim.execution_id)
    assert (await audit(bed.engine)).violations == ()
    await bed.complete(again)
    assert (await audit(bed.engine)).violations == ()


async def test_an_audit_changes_nothing(bed):
    await of(bed, "suspended")
    before = await bed.dump()
    await audit(bed.engine)
    assert await bed.dump() == before


async def test_an_audit_of_one_namespace_says_nothing_about_another(bed):
    await bed.create()
    await change(bed, Execution, await bed.create(namespace="other"), attempt_count=3)
    bed.store._add_row((indexes.ELIGIBLE, "other\x1flane\x1f", 1, bed.new_execution_id()))
    assert len((await audit(bed.engine)).violations) >= 2
    assert (await audit(bed.engine, namespace="tenant")).violations == ()
    assert (await audit(bed.engine, namespace="tenant")).checked["execution"] == 1
    assert (await audit(bed.engine, namespace="other")).violations != ()


async def test_a_report_does_not_grow_without_bound(bed):
    for number in range(VIOLATIONS_MAX + 5):
        put(bed, Payload(execution_id=f"{{fp:1}}:00000000-0000-4000-8000-{number:012x}", data=b""))
    report = await audit(bed.engine)
    assert (len(report.violations), report.complete) == (VIOLATIONS_MAX, False)


async def test_what_changes_while_it_is_looked_at_is_looked_at_again(bed):
    """The first look sees a row that the second one does not."""
    claim = await bed.start()
    reads = bed.store.read_index

    async def read_index(index, scope, **options):
        found = await reads(index, scope, **options)
        if index == indexes.DUE_LEASE:
            bed.store.read_index = reads
            await bed.complete(claim)
            return []
        return found

    bed.store.read_index = read_index
    assert (await audit(bed.engine)).violations == ()


def test_every_index_knows_what_its_rows_are_derived_from():
    for index in indexes.NAMES:
        member = "budget/member" if index == indexes.DUE_HEADROOM else "member"
        assert owner_key((index, "scope", 1, member)).count("/") >= 1
    assert owner_key((indexes.JOURNAL, "scope", 1, "m")) == key_for(JournalRecord, "m")


def test_a_row_says_to_which_namespace_it_belongs():
    assert in_namespace((indexes.CREATED, "tenant", 1, "m"), "tenant")
    assert in_namespace((indexes.ELIGIBLE, "tenant\x1flane\x1f", 1, "m"), "tenant")
    assert not in_namespace((indexes.ELIGIBLE, "tenant2\x1flane\x1f", 1, "m"), "tenant")


def test_a_violation_reads_as_one_line():
    violation = Violation(invariant="one_lease", subject="execution/x", detail="two of them")
    assert str(violation) == "one_lease: execution/x: two of them"

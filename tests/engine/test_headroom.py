"""Budgets and quota policies when something goes wrong: damage, faults, and crashes in between."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.budgets import (
    OnHardLimit,
    ReconcileBudgetCountersArgs,
    RecordSpendArgs,
    ResetBudgetArgs,
)
from flowfabric.contracts.ids import quota_policy_id_of
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.quotas import (
    AdmissionGranted,
    AdmissionRateExceeded,
    CheckAdmissionArgs,
    ReconcileQuotaCountersArgs,
)
from flowfabric.contracts.retention import TrimRetentionArgs
from flowfabric.core.commands import TrimExecutionArgs
from flowfabric.core.indexes import WAITING
from flowfabric.core.records import (
    Admission,
    Budget,
    BudgetUsage,
    Execution,
    GivenBack,
    QuotaPolicy,
    budget_identity,
    key_for,
    kind_of,
    quota_identity,
)
from flowfabric.core.rules.headroom import LOOK_AGAIN_MS
from flowfabric.core.rules.quotas import ADMISSION_GRACE_MS
from flowfabric.core.state import Situation
from flowfabric.engine import headroom
from flowfabric.stores.base import Conflict
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, FaultyStore
from flowfabric.testing.bed import NAMESPACE
from flowfabric.testing.conformance.admission import (
    POLICY_NAME,
    WINDOW_MS,
    active,
    ask,
    asking_for_work,
    limited,
    new_quota,
)
from flowfabric.testing.conformance.budgets import (
    attached,
    claim_some,
    claim_work,
    new_budget,
    reporting,
    spend,
    status,
    sweep_duty,
    tokens_used,
)
from flowfabric.testing.stores import RecordingStore, StoreAround
from tests.conformance.test_flow_audit import change, overwrite


@pytest.fixture
async def bed():
    async with Bed(FaultyStore(MemoryStore())) as bed:
        yield bed
        await bed.check()


@pytest.fixture
async def damaged():
    """An execution whose budget cannot be read."""
    async with Bed(MemoryStore()) as bed:
        budget_id = await new_budget(bed)
        execution_id = await attached(bed, budget_id)
        key = key_for(Budget, budget_identity(budget_id))
        overwrite(bed, key, b"\x81\xa6limits\xa3ten")
        yield bed, execution_id


class FailingStore(StoreAround):
    """Fails one load, and works before and after it."""

    loads_left = 0

    async def load(self, keys):
        self.loads_left -= 1
        if self.loads_left == 0:
            raise errors.StoreUnreachable
        return await self.inner.load(keys)


class KeepingStore(StoreAround):
    """Cannot write some records, as if their part of the store were away."""

    kept: frozenset[str] = frozenset()
    refused = 0

    async def commit(self, commit):
        if any(change.key in self.kept for change in commit.changes):
            self.refused += 1
            raise errors.StoreUnreachable
        return await self.inner.commit(commit)


class OvertakenStore(StoreAround):
    """Lets something happen before the first commit of an admission."""

    overtaking: Sequence[Callable[[], Awaitable[None]]] = ()

    async def commit(self, commit):
        if any(change.key.startswith("admission/") for change in commit.changes):
            overtaking, self.overtaking = self.overtaking, ()
            for happen in overtaking:
                await happen()
        await self.inner.commit(commit)


async def trim(bed):
    """Remove what has ended."""
    bed.clock.advance(1)
    [answer] = await bed.engine.execute_unbounded([TrimRetentionArgs(retention_ms=0)])
    return answer


# Damage


@pytest.mark.scenario("BUDGET-015")
async def test_a_damaged_budget_admits_nothing(damaged):
    bed, execution_id = damaged
    with pytest.raises(errors.StoreCorrupt):
        await claim_work(bed)
    with pytest.raises(errors.StoreCorrupt):
        await bed.execute(asking_for_work())
    assert await bed.situation(execution_id) is Situation.ELIGIBLE


async def test_a_damaged_budget_keeps_no_other_work_back(damaged):
    bed, _ = damaged
    other = await bed.create()
    assert await claim_some(bed, limit=1) == [other]


@pytest.mark.scenario("BUDGET-019")
async def test_a_counter_that_is_no_number_is_never_taken_for_zero():
    async with Bed(MemoryStore()) as bed:
        budget_id = await new_budget(bed)
        key = key_for(BudgetUsage, budget_identity(budget_id))
        overwrite(bed, key, b"\x81\xa5usage\x81\xa6tokens\xa3ten")
        with pytest.raises(errors.StoreCorrupt):
            await spend(bed, budget_id, 1)
        with pytest.raises(errors.StoreCorrupt):
            await status(bed, budget_id)


# Faults


@pytest.mark.scenario("BUDGET-017")
async def test_a_store_that_cannot_be_reached_is_not_an_empty_budget(bed):
    budget_id = await new_budget(bed, hard=1)
    bed.store.lost_loads = 1
    with pytest.raises(errors.StoreUnreachable):
        await spend(bed, budget_id, 1)
    bed.store.lost_loads = 1
    with pytest.raises(errors.StoreUnreachable):
        await status(bed, budget_id)
    assert await tokens_used(bed, budget_id) == 0


@pytest.mark.parametrize("failing_load", range(1, 8))
async def test_no_work_is_given_out_when_a_load_fails(failing_load):
    """Whichever load on the way to an admitted claim it is."""
    store = FailingStore(MemoryStore())
    async with Bed(store) as bed:
        budget_id = await new_budget(bed, hard=1)
        await new_quota(bed, cap=1)
        execution_id = await limited(bed)
        blocked = await attached(bed, budget_id)
        await spend(bed, budget_id, 1)
        store.loads_left = failing_load
        try:
            claimed = await claim_some(bed)
        except errors.StoreUnreachable:
            claimed = []
        assert blocked not in claimed
        assert set(claimed) <= {execution_id}
        store.loads_left = 0
        await bed.check()


async def test_a_report_that_races_the_end_of_its_lease_counts(bed):
    """The commit of a report does not rest on the lease that was seen."""
    budget_id = await new_budget(bed)
    claim = await bed.start()
    bed.store.conflicts, bed.store.conflicting_keys = 1, frozenset({f"execution/{claim.execution_id}"})
    await bed.execute(reporting(budget_id, claim, 7))
    assert bed.store.conflicts == 1
    assert await tokens_used(bed, budget_id) == 7


# Crashes


async def test_an_admission_without_its_claim_is_taken_back(bed):
    quota_policy_id = await new_quota(bed, cap=1)
    crashed, other = await limited(bed, priority=9), await limited(bed)
    asking = CheckAdmissionArgs(quota_policy_id=quota_policy_id, execution_id=crashed)
    await bed.execute(asking)
    assert await claim_some(bed, limit=1) == [crashed]
    assert await claim_some(bed) == []
    assert await bed.situation(other) is Situation.BLOCKED


async def test_a_place_that_a_crash_left_taken_goes_to_another(bed):
    quota_policy_id = await new_quota(bed, cap=1)
    crashed = await limited(bed, lane_id="nobody's")
    waiting = await limited(bed)
    await bed.execute(CheckAdmissionArgs(quota_policy_id=quota_policy_id, execution_id=crashed))
    assert await claim_some(bed) == []
    await bed.advance(ADMISSION_GRACE_MS)
    assert await claim_some(bed) == [waiting]


async def test_an_end_that_the_policy_was_not_told_of_is_told_by_a_duty(bed):
    await new_quota(bed, cap=1)
    await limited(bed)
    waiting = await limited(bed)
    [claim] = await claim_work(bed)
    await bed.settle()
    with bed.nothing_delivered():
        await bed.complete(claim)
    assert await active(bed) == 1
    assert await bed.find(GivenBack, f"{claim.execution_id}/1") is not None
    await bed.settle()
    assert await active(bed) == 0
    assert await claim_some(bed) == [waiting]


async def test_headroom_that_nobody_was_told_of_is_told_by_a_duty(bed):
    budget_id = await new_budget(bed, hard=1)
    waiting = await attached(bed, budget_id)
    await spend(bed, budget_id, 1)
    await claim_some(bed)
    with bed.nothing_delivered():
        await bed.execute(ResetBudgetArgs(budget_id=budget_id))
    assert await bed.situation(waiting) is Situation.BLOCKED
    await bed.settle()
    assert await claim_some(bed) == [waiting]


async def test_a_question_that_is_overtaken_by_the_whole_run_takes_no_place():
    """The commit of an admission rests on the execution, so it finds out."""
    store = OvertakenStore(MemoryStore())
    async with Bed(store) as bed, Bed(store.inner, clock=bed.clock) as other:
        await new_quota(bed, cap=1)
        await limited(bed)

        async def run():
            for claim in await claim_work(other):
                await other.complete(claim)

        store.overtaking = [run]
        assert await claim_some(bed) == []
        assert not store.overtaking
        assert await active(bed) == 0


async def test_giving_back_twice_takes_no_other_place(bed):
    """The message of an earlier claim comes again after the execution was claimed once more."""
    await new_quota(bed, cap=2)
    execution_id = await limited(bed)
    [claim] = await claim_work(bed)
    with bed.nothing_delivered():
        await bed.delay(claim, 0)
        assert await claim_some(bed) == [execution_id]
    await bed.settle()
    assert await active(bed) == 1


async def test_an_execution_is_not_removed_before_its_policy_knows_that_it_has_ended(bed):
    """With the execution the news would go, and the policy would count it as active for ever."""
    await new_quota(bed, cap=1)
    await limited(bed)
    [claim] = await claim_work(bed)
    await bed.renew(claim, 2 * ADMISSION_GRACE_MS)
    await bed.advance(ADMISSION_GRACE_MS)
    with bed.nothing_delivered():
        await bed.complete(claim)
    assert (await trim(bed)).executions == 1
    assert await active(bed) == 0


async def test_an_execution_is_kept_while_its_policy_cannot_be_told(bed):
    await new_quota(bed, cap=1)
    await limited(bed)
    [claim] = await claim_work(bed)
    with bed.nothing_delivered():
        await bed.complete(claim)
    bed.clock.advance(1)
    bed.store.lost_commits = 1
    trimming = [TrimExecutionArgs(execution_id=claim.execution_id, retention_ms=0)]
    [lost] = await bed.engine.execute_unbounded(trimming)
    assert isinstance(lost, errors.StoreError)
    assert await bed.find(GivenBack, f"{claim.execution_id}/1") is not None
    assert (await trim(bed)).executions == 1
    assert await active(bed) == 0


async def blocked_by_budget(bed):
    """Work that waits for a budget, and what makes headroom for it."""
    budget_id = await new_budget(bed, hard=1)
    waiting = [await attached(bed, budget_id) for _ in range(2)]
    await spend(bed, budget_id, 1)
    assert await claim_some(bed) == []
    return waiting, bed.execute(ResetBudgetArgs(budget_id=budget_id))


async def blocked_by_quota(bed):
    """Work that waits for a quota policy, and what makes room for it."""
    await new_quota(bed, cap=1)
    _, *waiting = [await limited(bed) for _ in range(3)]
    [claim] = await claim_work(bed)
    return waiting, bed.complete(claim)


@pytest.mark.parametrize("block", [blocked_by_budget, blocked_by_quota])
async def test_work_that_could_not_be_let_go_is_let_go_later(block):
    store = KeepingStore(MemoryStore())
    async with Bed(store) as bed:
        waiting, make_room = await block(bed)
        store.kept = frozenset(key_for(Execution, execution_id) for execution_id in waiting)
        await make_room
        await bed.settle()
        assert await claim_some(bed) == []
        store.kept = frozenset()
        await bed.advance(LOOK_AGAIN_MS)
        assert waiting[0] in await claim_some(bed)
        await bed.check()


@pytest.mark.parametrize("block", [blocked_by_budget, blocked_by_quota])
async def test_damaged_work_that_waits_keeps_no_other_waiting(block):
    async with Bed(MemoryStore()) as bed:
        waiting, make_room = await block(bed)
        overwrite(bed, key_for(Execution, waiting[0]), b"\x81\xa5phase\xa3ten")
        await make_room
        assert await claim_some(bed) == [waiting[1]]


async def test_work_that_cannot_be_cancelled_is_tried_once_in_each_look():
    store = KeepingStore(MemoryStore())
    async with Bed(store) as bed:
        budget_id = await new_budget(bed, hard=1, on_hard_limit=OnHardLimit.CANCEL)
        execution_id = await attached(bed, budget_id)
        store.kept = frozenset({key_for(Execution, execution_id)})
        await spend(bed, budget_id, 2)
        store.refused = 0
        await sweep_duty(bed, "unblock")
        assert store.refused == 1
        store.kept = frozenset()
        await bed.settle()
        assert await bed.situation(execution_id) is Situation.CANCELLED
        await bed.check()


async def test_ledgers_of_many_spenders_are_removed_in_one_sweep(bed, monkeypatch):
    monkeypatch.setattr(headroom, "PAGE", 3)
    budget_id = await new_budget(bed)
    for _ in range(3):
        for _ in range(7):
            spender = await bed.create()
            await bed.execute(
                RecordSpendArgs(budget_id=budget_id, execution_id=spender, deltas={"tokens": 1})
            )
        await bed.execute(ResetBudgetArgs(budget_id=budget_id))
    await sweep_duty(bed, "ledger_pruner")
    assert await bed.store.list_keys("budget_ledger/") == []


# Stores of several places


class GappyStore(StoreAround):
    """Compares records of other places before a commit, which leaves a gap, as a cluster does."""

    def __init__(self, inner):
        super().__init__(inner)
        self.in_the_gap: list[Awaitable[Any]] = []
        """What happens next between the comparison and the commit of something that is held back."""

    def place_of(self, key):
        return int(kind_of(key) in {Budget.KIND, BudgetUsage.KIND, QuotaPolicy.KIND, Admission.KIND})

    async def commit(self, commit):
        place = self.place_of(commit.changes[0].key)
        here = [(key, version) for key, version in commit.relied_on if self.place_of(key) == place]
        elsewhere = {key: version for key, version in commit.relied_on if self.place_of(key) != place}
        changed = {key for key, version, _ in (await self.load(elsewhere)).rows if version != elsewhere[key]}
        if changed:
            raise Conflict(frozenset(changed))
        if any(row[0] == WAITING for row in commit.rows_added):
            while self.in_the_gap:
                await self.in_the_gap.pop(0)
        await self.inner.commit(replace(commit, relied_on=here))


@pytest.mark.parametrize("asking", [claim_some, lambda bed: bed.execute(asking_for_work())])
async def test_a_budget_that_opens_in_the_gap_keeps_nobody_waiting(asking):
    store = GappyStore(MemoryStore())
    async with Bed(store) as bed, Bed(store.inner, clock=bed.clock) as other:
        budget_id = await new_budget(bed, hard=1)
        execution_id = await attached(bed, budget_id)
        await spend(bed, budget_id, 1)
        store.in_the_gap += [other.execute(ResetBudgetArgs(budget_id=budget_id)), other.settle()]
        await asking(bed)
        assert not store.in_the_gap
        await bed.settle()
        assert await claim_some(bed) == [execution_id]


async def test_a_place_that_is_given_back_in_the_gap_keeps_nobody_waiting():
    store = GappyStore(MemoryStore())
    async with Bed(store) as bed, Bed(store.inner, clock=bed.clock) as other:
        await new_quota(bed, cap=1)
        await limited(bed)
        [claim] = await claim_work(bed)
        waiting = await limited(bed)
        store.in_the_gap += [other.complete(claim), other.settle()]
        assert await claim_some(bed) == []
        assert not store.in_the_gap
        await bed.settle()
        assert await claim_some(bed) == [waiting]


# Clocks


async def test_a_clock_that_is_set_back_by_far_does_not_close_the_window():
    async with Bed(MemoryStore()) as bed:
        quota_policy_id = await new_quota(bed, rate=1)
        bed.clock.now_ms += 3_600_000
        await ask(bed, quota_policy_id)
        bed.clock.now_ms -= 3_600_000
        assert await ask(bed, quota_policy_id) == AdmissionGranted()
        assert await ask(bed, quota_policy_id) == AdmissionRateExceeded(retry_after_ms=WINDOW_MS)


# Costs


@pytest.mark.parametrize("kind", ["quota", "budget"])
async def test_work_without_headroom_is_held_back_in_few_commits(kind):
    """A worker that has claimed something does not wait until all the others are found out."""
    store = RecordingStore(MemoryStore())
    async with Bed(store) as bed:
        await new_quota(bed, cap=1)
        budget_id = await new_budget(bed, hard=1)
        first = await limited(bed, priority=9)
        policies = {
            "quota": ExecutionPolicy(quota_policy_id=POLICY_NAME),
            "budget": ExecutionPolicy(budget_ids=(budget_id,)),
        }
        await bed.engine.execute_many([bed.creation(policy=policies[kind]) for _ in range(200)])
        await spend(bed, budget_id, 1)
        commits = len(store.commits)
        assert await claim_some(bed, limit=2) == [first]
        assert len(store.commits) - commits <= 12
        assert (
            await bed.store.count_index(
                WAITING, quota_policy_id_of(NAMESPACE, POLICY_NAME) if kind == "quota" else budget_id
            )
            == 200
        )
        await bed.check()


async def test_work_without_budgets_reads_and_commits_nothing_more():
    store = RecordingStore(MemoryStore())
    async with Bed(store) as bed:
        await bed.create()
        loads, commits = store.loads, len(store.commits)
        [claim] = await claim_work(bed)
        await bed.complete(claim)
        assert (store.loads - loads, len(store.commits) - commits) == (2, 2)


async def test_counters_that_are_off_are_corrected():
    async with Bed(MemoryStore()) as bed:
        budget_id = await new_budget(bed, hard=10)
        await spend(bed, budget_id, 4)
        await change(bed, BudgetUsage, budget_identity(budget_id), usage={"tokens": 9})
        found = await bed.execute(ReconcileBudgetCountersArgs(budget_id=budget_id))
        assert (found.action, found.usage) == ("corrected", {"tokens": 4})
        assert await tokens_used(bed, budget_id) == 4
        await bed.check()


async def test_a_counter_of_admissions_that_is_off_is_corrected():
    async with Bed(MemoryStore()) as bed:
        quota_policy_id = await new_quota(bed, cap=1)
        await change(bed, QuotaPolicy, quota_identity(quota_policy_id), active=1)
        found = await bed.execute(ReconcileQuotaCountersArgs(quota_policy_id=quota_policy_id))
        assert (found.action, found.active) == ("corrected", 0)
        await bed.check()

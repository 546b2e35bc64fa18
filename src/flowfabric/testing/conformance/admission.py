"""Quota policies, blocking and pausing on every store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from flowfabric import errors
from flowfabric.contracts.blocking import (
    BlockExecutionArgs,
    BlockRouteArgs,
    ExecutionBlocked,
    ExecutionUnblocked,
    ExecutionUnpaused,
    PauseExecutionArgs,
    RouteBlocked,
    RouteBlockRejected,
    UnblockExecutionArgs,
    UnpauseExecutionArgs,
)
from flowfabric.contracts.executions import CancelExecutionArgs
from flowfabric.contracts.ids import ExecutionId, QuotaPolicyId, partition_of, quota_policy_id_of
from flowfabric.contracts.leases import (
    ClaimExecutionArgs,
    ClaimForWorkerArgs,
    IssueGrantAndClaimArgs,
    NoWork,
    WorkGranted,
)
from flowfabric.contracts.partitions import Partition
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.quotas import (
    AdmissionConcurrencyExceeded,
    AdmissionGranted,
    AdmissionRateExceeded,
    AlreadyAdmitted,
    CheckAdmissionArgs,
    CreateQuotaPolicyArgs,
    QuotaPolicyCreated,
    QuotaPolicyExists,
    QuotaPolicyLimits,
    ReadQuotaPolicyLimitsArgs,
    ReconcileQuotaCountersArgs,
    ReleaseAdmissionArgs,
)
from flowfabric.contracts.states import BlockingReason, PublicState
from flowfabric.core.records import Admission, QuotaWindow, admission_identity, quota_identity
from flowfabric.core.rules.quotas import ADMISSION_GRACE_MS, INSTANTS_PER_PIECE
from flowfabric.core.state import Situation, blocking_detail, blocking_reason
from flowfabric.core.vocabulary import BlockerKind
from flowfabric.testing.bed import INSTANCE, LANE, NAMESPACE, TTL_MS, WORKER, Bed
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.conformance.budgets import claim_some, claim_work
from flowfabric.testing.conformance.situations import bring
from flowfabric.testing.stores import RecordingStore

if TYPE_CHECKING:
    from pathlib import Path

POLICY_NAME: Final = "llm"
WINDOW_S: Final = 60
WINDOW_MS: Final = 60_000


def quota_creation(*, rate: int = 0, cap: int = 0, **fields: Any) -> CreateQuotaPolicyArgs:
    """The arguments that create a quota policy; any of them can be given."""
    defaults: dict[str, Any] = {
        "quota_policy_id": quota_policy_id_of(NAMESPACE, POLICY_NAME),
        "name": POLICY_NAME,
        "window_seconds": WINDOW_S,
        "max_requests_per_window": rate,
        "max_concurrent": cap,
    }
    return CreateQuotaPolicyArgs(**{**defaults, **fields})


async def new_quota(bed: Bed, **fields: Any) -> QuotaPolicyId:
    """Create a quota policy and return its id."""
    created = await bed.execute(quota_creation(**fields))
    assert isinstance(created, QuotaPolicyCreated)
    return created.quota_policy_id


async def limited(bed: Bed, **fields: Any) -> ExecutionId:
    """Create an execution under the quota policy."""
    return await bed.create(policy=ExecutionPolicy(quota_policy_id=POLICY_NAME), **fields)


async def ask(bed: Bed, quota_policy_id: QuotaPolicyId, execution_id: ExecutionId | None = None) -> Any:
    """Ask for an admission, without an id for an execution that nobody else asks for."""
    asking = execution_id or await bed.create()
    return await bed.execute(CheckAdmissionArgs(quota_policy_id=quota_policy_id, execution_id=asking))


async def active(bed: Bed) -> int:
    """How many the quota policy counts as active."""
    found = await bed.execute(
        ReadQuotaPolicyLimitsArgs(quota_policy_id=quota_policy_id_of(NAMESPACE, POLICY_NAME))
    )
    assert found is not None
    return found.active


def asking_for_work() -> ClaimForWorkerArgs:
    """What a worker sends that wants a grant."""
    return ClaimForWorkerArgs(
        lane_id=LANE,
        worker_id=WORKER,
        worker_instance_id=INSTANCE,
        worker_capabilities=frozenset(),
        grant_ttl_ms=TTL_MS,
    )


class AdmissionConformance(StoreSuite):
    """Quota policies, and work that is held back."""

    # Quota policies

    @pytest.mark.scenario("QUOTA-004")
    async def test_the_same_policy_is_created_once(self, bed: Bed) -> None:
        quota_policy_id = await new_quota(bed, cap=5)
        assert await bed.unchanging(quota_creation(cap=5)) == QuotaPolicyExists(
            quota_policy_id=quota_policy_id
        )
        assert await active(bed) == 0

    @pytest.mark.scenario("QUOTA-004")
    async def test_a_policy_with_other_limits_is_a_conflict(self, bed: Bed) -> None:
        await new_quota(bed, cap=5)
        assert isinstance(await bed.refused(quota_creation(cap=6)), errors.QuotaPolicyConflict)

    @pytest.mark.scenario("QUOTA-008")
    async def test_the_limits_of_a_policy(self, bed: Bed) -> None:
        quota_policy_id = await new_quota(bed, rate=3, cap=5)
        found = await bed.execute(ReadQuotaPolicyLimitsArgs(quota_policy_id=quota_policy_id))
        assert found == QuotaPolicyLimits(
            quota_policy_id=quota_policy_id,
            name=POLICY_NAME,
            window_seconds=WINDOW_S,
            max_requests_per_window=3,
            max_concurrent=5,
            active=0,
            created_at=bed.clock.now_ms,
        )
        assert not found.unlimited

    @pytest.mark.scenario("QUOTA-008")
    async def test_an_unknown_policy_has_no_limits(self, bed: Bed) -> None:
        assert await bed.execute(ReadQuotaPolicyLimitsArgs(quota_policy_id=bed.new_id())) is None

    @pytest.mark.scenario("QUOTA-009")
    async def test_a_window_of_no_length_is_refused(self, bed: Bed) -> None:
        refusal = await bed.refused(quota_creation(window_seconds=0))
        assert isinstance(refusal, errors.InvalidQuotaSpec)
        assert refusal.field == "window_seconds"

    async def test_an_unknown_policy_admits_nobody(self, bed: Bed) -> None:
        asking = CheckAdmissionArgs(quota_policy_id=bed.new_id(), execution_id=await bed.create())
        assert isinstance(await bed.refused(asking), errors.QuotaPolicyNotFound)

    async def test_whoever_asks_with_other_limits_is_refused(self, bed: Bed) -> None:
        quota_policy_id = await new_quota(bed, cap=2)
        asking = CheckAdmissionArgs(
            quota_policy_id=quota_policy_id, execution_id=await bed.create(), concurrency_cap=9
        )
        assert isinstance(await bed.refused(asking), errors.InvalidQuotaSpec)

    # Admissions

    @pytest.mark.scenario("QUOTA-002")
    async def test_no_more_are_admitted_at_once_than_may_be(self, bed: Bed) -> None:
        quota_policy_id = await new_quota(bed, cap=2)
        first = await bed.create()
        assert await ask(bed, quota_policy_id, first) == AdmissionGranted()
        assert await ask(bed, quota_policy_id) == AdmissionGranted()
        assert await ask(bed, quota_policy_id) == AdmissionConcurrencyExceeded()
        releasing = ReleaseAdmissionArgs(quota_policy_id=quota_policy_id, execution_id=first)
        await bed.execute(releasing)
        await bed.unchanging(releasing)
        assert await active(bed) == 1
        assert await ask(bed, quota_policy_id) == AdmissionGranted()

    @pytest.mark.scenario("QUOTA-006")
    async def test_no_more_are_admitted_in_a_window_than_may_be(self, bed: Bed) -> None:
        quota_policy_id = await new_quota(bed, rate=3)
        for _ in range(3):
            assert await ask(bed, quota_policy_id) == AdmissionGranted()
            await bed.advance(1_000)
        assert await ask(bed, quota_policy_id) == AdmissionRateExceeded(retry_after_ms=WINDOW_MS - 3_000)
        bed.clock.now_ms += WINDOW_MS - 3_001
        assert await ask(bed, quota_policy_id) == AdmissionRateExceeded(retry_after_ms=1)
        bed.clock.now_ms += 1
        assert await ask(bed, quota_policy_id) == AdmissionGranted()
        assert await ask(bed, quota_policy_id) == AdmissionRateExceeded(retry_after_ms=1_000)

    async def test_the_window_slides_over_a_ring_of_several_pieces(self, bed: Bed) -> None:
        rate = INSTANTS_PER_PIECE + 2
        quota_policy_id = await new_quota(bed, rate=rate)

        for _ in range(2):
            creations = [bed.creation() for _ in range(rate + 1)]
            await bed.engine.execute_many(creations)
            asking = [
                CheckAdmissionArgs(quota_policy_id=quota_policy_id, execution_id=creation.execution_id)
                for creation in creations
            ]
            answers = await bed.engine.execute_many(asking)
            assert answers == [AdmissionGranted()] * rate + [AdmissionRateExceeded(retry_after_ms=WINDOW_MS)]
            bed.clock.now_ms += WINDOW_MS
        sizes = [
            len((await bed.get(QuotaWindow, f"{quota_identity(quota_policy_id)}/{piece}")).instants)
            for piece in (0, 1)
        ]
        assert sizes == [INSTANTS_PER_PIECE, 2]

    async def test_asking_twice_for_one_claim_counts_once(self, bed: Bed) -> None:
        quota_policy_id = await new_quota(bed, rate=1)
        execution_id = await limited(bed)
        assert await ask(bed, quota_policy_id, execution_id) == AdmissionGranted()
        assert await ask(bed, quota_policy_id, execution_id) == AlreadyAdmitted()

    async def test_whoever_asks_too_late_takes_no_place(self, bed: Bed) -> None:
        """Two workers find the same execution; the one that loses asks when the other has done it."""
        quota_policy_id = await new_quota(bed, cap=1)
        execution_id = await limited(bed)
        asking = CheckAdmissionArgs(quota_policy_id=quota_policy_id, execution_id=execution_id)
        [claim] = await claim_work(bed)
        assert await bed.unchanging(asking) == AlreadyAdmitted()
        await bed.delay(claim, 1_000)
        assert isinstance(await bed.refused(asking), errors.ExecutionNotEligible)
        await bed.advance(1_000)
        [claim] = await claim_work(bed)
        await bed.complete(claim)
        assert isinstance(await bed.refused(asking), errors.ExecutionNotEligible)
        assert await active(bed) == 0

    async def test_an_admission_that_no_claim_uses_is_taken_back(self, bed: Bed) -> None:
        quota_policy_id = await new_quota(bed, cap=1)
        await ask(bed, quota_policy_id, await limited(bed))
        await bed.advance(ADMISSION_GRACE_MS)
        assert await active(bed) == 0

    async def test_an_admission_that_is_used_stays(self, bed: Bed) -> None:
        quota_policy_id = await new_quota(bed, cap=1)
        execution_id = await limited(bed)
        [claim] = await claim_work(bed)
        await bed.renew(claim, 4 * ADMISSION_GRACE_MS)
        await bed.advance(2 * ADMISSION_GRACE_MS)
        assert await active(bed) == 1
        admission = await bed.get(Admission, admission_identity(quota_policy_id, execution_id))
        assert admission.settle_at is None

    async def test_an_admission_of_another_policy_is_taken_back(self, bed: Bed) -> None:
        """The end of a lease is told to the policy of the execution only."""
        await new_quota(bed)
        other = await bed.execute(quota_creation(quota_policy_id=bed.new_id(), name="", cap=1))
        await limited(bed)
        [claim] = await claim_work(bed)
        await ask(bed, other.quota_policy_id, claim.execution_id)
        await bed.renew(claim, 4 * ADMISSION_GRACE_MS)
        await bed.advance(2 * ADMISSION_GRACE_MS)
        found = await bed.execute(ReadQuotaPolicyLimitsArgs(quota_policy_id=other.quota_policy_id))
        assert found is not None
        assert found.active == 0

    async def test_counters_of_a_policy_that_are_right_are_left_alone(self, bed: Bed) -> None:
        quota_policy_id = await new_quota(bed)
        await ask(bed, quota_policy_id)
        found = await bed.unchanging(ReconcileQuotaCountersArgs(quota_policy_id=quota_policy_id))
        assert (found.action, found.active) == ("consistent", 1)

    # Claims

    async def test_an_unknown_policy_is_refused_when_work_is_created(self, bed: Bed) -> None:
        creation = bed.creation(policy=ExecutionPolicy(quota_policy_id="nobody"))
        assert isinstance(await bed.refused(creation), errors.QuotaPolicyNotFound)

    async def test_a_worker_gets_as_many_as_may_run_at_once(self, bed: Bed) -> None:
        await new_quota(bed, cap=2)
        ids = [await limited(bed) for _ in range(5)]
        assert await claim_some(bed) == ids[:2]
        for execution_id in ids[2:]:
            execution = await bed.execution(execution_id)
            assert blocking_reason(execution) == "waiting_for_quota"
            assert POLICY_NAME in blocking_detail(execution)

    async def test_each_end_lets_one_other_go(self, bed: Bed) -> None:
        await new_quota(bed, cap=1)
        ids = [await limited(bed) for _ in range(4)]
        for execution_id in ids:
            [claim] = await claim_work(bed)
            assert claim.execution_id == execution_id
            await bed.complete(claim)
        assert await active(bed) == 0

    @pytest.mark.parametrize("end", ["complete", "fail", "delay", "cancel"])
    async def test_an_admission_is_given_back_when_the_lease_is(self, bed: Bed, end: str) -> None:
        await new_quota(bed, cap=1)
        execution_id = await limited(bed)
        [claim] = await claim_work(bed)
        if end == "cancel":
            await bed.execute(
                CancelExecutionArgs(execution_id=execution_id, reason="", source="operator_override")
            )
        elif end == "delay":
            await bed.delay(claim, 1_000)
        else:
            await getattr(bed, end)(claim)
        assert await active(bed) == 0
        assert await bed.store.list_keys("given_back/") == []

    async def test_a_reclaimed_attempt_keeps_the_admission(self, bed: Bed) -> None:
        await new_quota(bed, cap=1)
        execution_id = await limited(bed)
        await claim_some(bed)
        await bed.advance(TTL_MS)
        [claim] = await claim_work(bed)
        assert claim.execution_id == execution_id
        assert await active(bed) == 1
        await bed.complete(claim)
        assert await active(bed) == 0

    async def test_the_window_that_moves_lets_work_go(self, bed: Bed) -> None:
        await new_quota(bed, rate=1)
        await limited(bed)
        second = await limited(bed)
        [claim] = await claim_work(bed)
        assert await claim_some(bed) == []
        await bed.complete(claim)
        await bed.advance(WINDOW_MS - 1)
        assert await bed.situation(second) is Situation.BLOCKED
        await bed.advance(1)
        assert await claim_some(bed) == [second]

    async def test_room_does_not_let_all_go_at_once(self, bed: Bed) -> None:
        await new_quota(bed, cap=1)
        ids = [await limited(bed) for _ in range(6)]
        [claim] = await claim_work(bed)
        await bed.complete(claim)
        situations = [await bed.situation(execution_id) for execution_id in ids[1:]]
        assert situations == [Situation.ELIGIBLE] + [Situation.BLOCKED] * 4

    async def test_room_that_one_does_not_take_goes_to_another(self, bed: Bed) -> None:
        await new_quota(bed, cap=1)
        await limited(bed)
        second, third = await limited(bed), await limited(bed)
        [claim] = await claim_work(bed)
        await bed.complete(claim)
        await bed.execute(CancelExecutionArgs(execution_id=second, reason="", source="operator_override"))
        await bed.advance(5_000)
        assert await claim_some(bed) == [third]

    async def test_the_most_urgent_that_waits_is_let_go_first(self, bed: Bed) -> None:
        await new_quota(bed, cap=1)
        await limited(bed, priority=9)
        await limited(bed)
        urgent = await limited(bed, priority=5)
        [claim] = await claim_work(bed)
        await bed.complete(claim)
        assert await claim_some(bed) == [urgent]

    async def test_a_grant_takes_an_admission_that_the_claim_uses(self, bed: Bed) -> None:
        await new_quota(bed, cap=1)
        execution_id, other = await limited(bed), await limited(bed)
        assert isinstance(await bed.execute(asking_for_work()), WorkGranted)
        assert await active(bed) == 1
        assert isinstance(await bed.execute(asking_for_work()), NoWork)
        assert await bed.situation(other) is Situation.BLOCKED
        await bed.execute(
            ClaimExecutionArgs(
                execution_id=execution_id,
                lane_id=LANE,
                worker_id=WORKER,
                worker_instance_id=INSTANCE,
                lease_id=bed.new_id(),
                attempt_id=bed.new_id(),
                lease_ttl_ms=TTL_MS,
                expected_attempt_index=0,
            )
        )
        assert await active(bed) == 1

    async def test_an_operator_who_claims_needs_room_as_well(self, bed: Bed) -> None:
        await new_quota(bed, cap=1)
        ids = [await limited(bed) for _ in range(2)]

        def claiming(execution_id: ExecutionId) -> IssueGrantAndClaimArgs:
            return IssueGrantAndClaimArgs(
                execution_id=execution_id,
                lane_id=LANE,
                worker_id=WORKER,
                worker_instance_id=INSTANCE,
                lease_ttl_ms=TTL_MS,
            )

        await bed.execute(claiming(ids[0]))
        with pytest.raises(errors.ConcurrencyLimitExceeded):
            await bed.execute(claiming(ids[1]))

    async def test_work_without_a_policy_costs_no_more_than_before(self, tmp_path: Path) -> None:
        recording = RecordingStore(self.make_store(tmp_path))
        async with Bed(recording) as bed:
            await new_quota(bed, cap=1)
            await bed.create()
            commits = len(recording.commits)
            assert len(await claim_some(bed)) == 1
            [commit] = recording.commits[commits:]
            assert not commit.relied_on or all("quota" not in key for key, _ in commit.relied_on)

    async def test_the_policy_of_the_handler_counts_too(self, bed: Bed) -> None:
        await new_quota(bed, cap=1)
        ids = [await bed.create() for _ in range(2)]
        policies = {"kind": ExecutionPolicy(quota_policy_id=POLICY_NAME)}
        assert await claim_some(bed, policies=policies) == ids[:1]
        assert await bed.situation(ids[1]) is Situation.BLOCKED

    # Blocking by hand

    @pytest.mark.scenario("BUDGET-014")
    async def test_work_is_blocked_for_a_budget_and_let_go_again(self, bed: Bed) -> None:
        execution_id = await bed.create()
        blocked = await bed.execute(blocking(execution_id, "waiting_for_budget"))
        assert blocked == ExecutionBlocked()
        vector = await bed.vector(execution_id)
        assert vector.eligibility_state == "blocked_by_budget"
        assert vector.blocking_reason == "waiting_for_budget"
        assert vector.public_state is PublicState.RATE_LIMITED
        assert "eligible" not in await bed.indexes_of(execution_id)
        assert await bed.execute(UnblockExecutionArgs(execution_id=execution_id)) == ExecutionUnblocked()
        assert await bed.situation(execution_id) is Situation.ELIGIBLE

    @pytest.mark.scenario("BUDGET-014")
    async def test_another_reason_than_the_one_that_blocks_cannot_be_taken_away(self, bed: Bed) -> None:
        execution_id = await bed.create()
        await bed.execute(blocking(execution_id, "waiting_for_quota"))
        unblocking = UnblockExecutionArgs(
            execution_id=execution_id, expected_blocking_reason="waiting_for_budget"
        )
        assert isinstance(await bed.refused(unblocking), errors.ExecutionNotEligible)
        assert await bed.situation(execution_id) is Situation.BLOCKED

    @pytest.mark.parametrize(
        "reason",
        [
            BlockingReason.WAITING_FOR_BUDGET,
            BlockingReason.WAITING_FOR_QUOTA,
            BlockingReason.WAITING_FOR_CAPABLE_WORKER,
            BlockingReason.PAUSED_BY_OPERATOR,
            BlockingReason.PAUSED_BY_POLICY,
        ],
    )
    async def test_each_reason_that_may_be_set_may_be_taken_away(
        self, bed: Bed, reason: BlockingReason
    ) -> None:
        execution_id = await bed.create()
        await bed.execute(blocking(execution_id, str(reason)))
        assert await claim_some(bed) == []
        await bed.execute(
            UnblockExecutionArgs(execution_id=execution_id, expected_blocking_reason=str(reason))
        )
        assert await claim_some(bed) == [execution_id]

    async def test_a_reason_that_is_none_is_refused(self, bed: Bed) -> None:
        execution_id = await bed.create()
        for reason in ("waiting_for_signal", "none", "whatever"):
            refusal = await bed.refused(blocking(execution_id, reason))
            assert isinstance(refusal, errors.InvalidBlockingReason)

    async def test_blocking_and_letting_go_leave_dependencies_as_they_are(self, bed: Bed) -> None:
        [place] = await bring(bed, "blocked_dependencies", 1)
        await bed.execute(blocking(place.execution_id, "waiting_for_budget"))
        await bed.execute(UnblockExecutionArgs(execution_id=place.execution_id))
        kinds = [blocker.kind for blocker in (await bed.execution(place.execution_id)).blockers]
        assert kinds == [BlockerKind.DEPENDENCIES]
        refusal = await bed.refused(UnblockExecutionArgs(execution_id=place.execution_id))
        assert isinstance(refusal, errors.ExecutionNotEligible)

    async def test_a_route_that_is_missing_blocks(self, bed: Bed) -> None:
        execution_id = await bed.create()
        answer = await bed.execute(route_blocking(execution_id))
        assert answer == RouteBlocked(execution_id=execution_id)
        assert (await bed.vector(execution_id)).eligibility_state == "blocked_by_route"

    async def test_a_route_block_that_comes_too_late_is_an_answer(self, bed: Bed) -> None:
        claim = await bed.start()
        answer = await bed.unchanging(route_blocking(claim.execution_id))
        assert answer == RouteBlockRejected(message="execution_not_eligible")

    # Pausing

    async def test_a_paused_execution_is_not_claimed(self, bed: Bed) -> None:
        execution_id = await bed.create()
        await bed.execute(PauseExecutionArgs(execution_id=execution_id, reason="looking into it"))
        assert await claim_some(bed) == []
        execution = await bed.execution(execution_id)
        assert blocking_reason(execution) == "paused_by_operator"
        assert blocking_detail(execution) == "looking into it"
        await bed.execute(UnpauseExecutionArgs(execution_id=execution_id))
        assert await claim_some(bed) == [execution_id]

    async def test_what_runs_is_held_when_its_lease_is_over(self, bed: Bed) -> None:
        claim = await bed.start()
        await bed.execute(PauseExecutionArgs(execution_id=claim.execution_id))
        assert await bed.situation(claim.execution_id) is Situation.RUNNING
        await bed.delay(claim, 0)
        assert await claim_some(bed) == []
        await bed.execute(UnpauseExecutionArgs(execution_id=claim.execution_id))
        assert await claim_some(bed) == [claim.execution_id]

    async def test_a_paused_execution_whose_lease_lapses_is_not_reclaimed(self, bed: Bed) -> None:
        claim = await bed.start()
        await bed.execute(PauseExecutionArgs(execution_id=claim.execution_id))
        await bed.advance(TTL_MS)
        assert await claim_some(bed) == []
        await bed.execute(UnpauseExecutionArgs(execution_id=claim.execution_id))
        assert await claim_some(bed) == [claim.execution_id]

    async def test_a_pause_and_another_reason_go_each_by_itself(self, bed: Bed) -> None:
        execution_id = await bed.create()
        await bed.execute(blocking(execution_id, "waiting_for_budget"))
        await bed.execute(PauseExecutionArgs(execution_id=execution_id))
        await bed.execute(UnpauseExecutionArgs(execution_id=execution_id))
        assert (await bed.vector(execution_id)).blocking_reason == "waiting_for_budget"

    async def test_what_is_not_paused_needs_no_unpausing(self, bed: Bed) -> None:
        execution_id = await bed.create()
        answer = await bed.unchanging(UnpauseExecutionArgs(execution_id=execution_id))
        assert answer == ExecutionUnpaused(execution_id=execution_id, public_state=PublicState.WAITING)


def blocking(execution_id: ExecutionId, reason: str) -> BlockExecutionArgs:
    """The arguments that block an execution."""
    return BlockExecutionArgs(execution_id=execution_id, blocking_reason=reason, blocking_detail="by hand")


def route_blocking(execution_id: ExecutionId) -> BlockRouteArgs:
    """The arguments that block an execution for lack of a worker."""
    return BlockRouteArgs(
        execution_id=execution_id,
        lane_id=LANE,
        partition=Partition(index=partition_of(execution_id)),
        reason_code="waiting_for_capable_worker",
        reason_detail="nobody has a gpu",
    )

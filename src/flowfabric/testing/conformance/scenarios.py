"""Acceptance scenarios that every store has to play through, by their numbers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from flowfabric import errors
from flowfabric.contracts.conditions import AllOf, ByName, Composite, Single
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    ExecutionDuplicate,
    ReplayExecutionArgs,
    SetExecutionTagArgs,
    UpdateProgressArgs,
)
from flowfabric.contracts.ids import ExecutionId
from flowfabric.contracts.journal import ReadJournalArgs, RecordStepArgs
from flowfabric.contracts.keyring import RotateWaitpointHmacSecretArgs
from flowfabric.contracts.leases import ClaimBatchArgs, IssueClaimGrantArgs, RevokeLeaseArgs
from flowfabric.contracts.policy import ExecutionPolicy, RoutingRequirements, TimeoutBehavior, TimeoutPolicy
from flowfabric.contracts.reads import (
    DescribeExecutionArgs,
    GetExecutionResultArgs,
    ListExecutionsArgs,
    ListExecutionSummariesArgs,
    ListSuspendedArgs,
    ReadExecutionContextArgs,
    ReadExecutionInfoArgs,
    ReadExecutionStateArgs,
)
from flowfabric.contracts.runs import ReadRunArgs
from flowfabric.contracts.signals import ObserveSignalsArgs, SignalAccepted
from flowfabric.contracts.states import AttemptState, LifecyclePhase, OwnershipState, PublicState
from flowfabric.contracts.streams import AppendFrameArgs, ReadFramesArgs
from flowfabric.core.events import Family
from flowfabric.core.records import Execution, Payload
from flowfabric.engine.notifier import EVENTS
from flowfabric.testing.bed import INSTANCE, LANE, NAMESPACE, TTL_MS, WORKER, Bed
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.conformance.callers import (
    ANYONE,
    OPERATOR,
    STRANGER,
    WORKER_CALLER,
    build,
    command_types,
)
from flowfabric.testing.conformance.situations import KEY, POLICY, Place, bring, seed_key, signal, suspension
from flowfabric.testing.stores import RecordingStore

if TYPE_CHECKING:
    from pathlib import Path

    from flowfabric.contracts.leases import ClaimedWork
    from flowfabric.testing.clock import ManualClock

FOREVER = 9_999_999_999_999

_TOLD = ("message", "reason", "action", "status")
"""The fields in which an outcome says that there was nothing to do."""
_DONE_ALREADY = ("ExecutionAlreadyTerminal", "CancelMemberAcknowledged", "NothingToRelease")
"""Outcomes that say so by their names."""


def batch(**fields: Any) -> ClaimBatchArgs:
    """A worker that asks for work."""
    defaults: dict[str, Any] = {
        "lanes": (LANE,),
        "worker_id": WORKER,
        "worker_instance_id": INSTANCE,
        "lease_ttl_ms": TTL_MS,
        "limit": 10,
    }
    return ClaimBatchArgs(**{**defaults, **fields})


def frame(claim: ClaimedWork, payload: bytes = b"frame") -> AppendFrameArgs:
    """One frame of the attempt's stream."""
    return AppendFrameArgs(
        execution_id=claim.execution_id,
        attempt_index=claim.attempt_index,
        lease_id=claim.lease_id,
        lease_epoch=claim.lease_epoch,
        attempt_id=claim.attempt_id,
        frame_type="text",
        payload=payload,
    )


class LifecycleScenarios(StoreSuite):
    """From creation to the end."""

    @pytest.mark.scenario("LIFE-001")
    async def test_the_whole_way_word_by_word(self, bed: Bed) -> None:
        execution_id = await bed.create()
        vector = await bed.vector(execution_id)
        assert (vector.lifecycle_phase, vector.ownership_state, vector.attempt_state) == (
            LifecyclePhase.RUNNABLE,
            OwnershipState.UNOWNED,
            AttemptState.PENDING_FIRST_ATTEMPT,
        )
        assert await bed.indexes_of(execution_id) == {"created", "eligible"}
        claim = await bed.claim(execution_id)
        assert (claim.lease_epoch, claim.attempt_index, claim.attempt_type) == (1, 0, "initial")
        assert "eligible" not in await bed.indexes_of(execution_id)
        bed.clock.advance(1_000)
        assert (await bed.renew(claim)).expires_at == bed.clock.now_ms + TTL_MS
        await bed.complete(claim, result_payload=bytes(range(256)))
        assert await bed.state(execution_id) is PublicState.COMPLETED
        assert await bed.indexes_of(execution_id) == {"created", "retention", "terminal"}
        assert await bed.execute(GetExecutionResultArgs(execution_id=execution_id)) == bytes(range(256))
        assert await bed.events(execution_id, Family.COMPLETION) == ["success"]

    @pytest.mark.scenario("LIFE-013")
    async def test_creating_twice_changes_nothing(self, bed: Bed) -> None:
        args = bed.creation(idempotency_key="once")
        await bed.execute(args)
        again = await bed.unchanging(args)
        assert again == ExecutionDuplicate(execution_id=args.execution_id)
        other_id = bed.creation(idempotency_key="once")
        assert await bed.unchanging(other_id) == ExecutionDuplicate(execution_id=args.execution_id)

    @pytest.mark.scenario("LIFE-018")
    async def test_the_info_of_fresh_work(self, bed: Bed) -> None:
        info = await bed.execute(ReadExecutionInfoArgs(execution_id=await bed.create(priority=42)))
        assert info is not None
        assert (info.namespace, info.lane_id, info.priority, info.execution_kind) == (
            NAMESPACE,
            LANE,
            42,
            "kind",
        )
        assert (info.current_attempt_index, info.flow_id, info.started_at) == (0, None, None)

    @pytest.mark.scenario("LIFE-019")
    async def test_no_command_makes_something_of_an_unknown_id(
        self, tmp_path: Path, clock: ManualClock
    ) -> None:
        store = RecordingStore(self.make_store(tmp_path))
        async with self.make_bed(store, clock=clock) as bed:
            await seed_key(bed)
            [known] = await bring(bed, "running", 1)
            for name, (command_type, fixed) in command_types().items():
                if name == "create_execution":
                    continue
                fields = command_type.__struct_fields__
                fenced = "fence" in fields or "lease_epoch" in fields
                caller = STRANGER if fenced else WORKER_CALLER if "worker_id" in fields else ANYONE
                command = await build(bed, command_type, known, caller, fixed)
                commits = len(store.commits)
                await self.ask_about_nothing(bed, command)
                assert len(store.commits) == commits

    async def ask_about_nothing(self, bed: Bed, command: Any) -> None:
        unknown = type(command)(
            **{
                name: bed.new_execution_id() if name == "execution_id" else getattr(command, name)
                for name in command.__struct_fields__
            }
        )
        try:
            answer = await bed.execute(unknown)
        except errors.NotFound:
            pass
        else:
            told = str(next((getattr(answer, name, "") for name in _TOLD if hasattr(answer, name)), ""))
            nothing = answer is None or "not_found" in told or told == "gone"
            passed = type(answer).__name__ in _DONE_ALREADY
            assert nothing or passed, f"{command}: {answer}"

    @pytest.mark.scenario("LIFE-020")
    async def test_three_endings(self, bed: Bed) -> None:
        first, second, third = await bed.start(), await bed.start(), await bed.start()
        progress = UpdateProgressArgs(
            execution_id=first.execution_id,
            lease_id=first.lease_id,
            lease_epoch=first.lease_epoch,
            attempt_id=first.attempt_id,
            progress_pct=75,
        )
        await bed.execute(progress)
        await bed.execute(frame(first))
        await bed.complete(first)
        await bed.fail(second)
        await bed.execute(CancelExecutionArgs(execution_id=third.execution_id, reason="unwanted"))
        states = [await bed.state(claim.execution_id) for claim in (first, second, third)]
        assert states == [PublicState.COMPLETED, PublicState.FAILED, PublicState.CANCELLED]
        assert (await bed.execute(ReadRunArgs(execution_id=first.execution_id))).progress_pct == 75

    @pytest.mark.scenario("LIFE-023")
    async def test_reads_of_what_is_not_there_find_nothing(self, bed: Bed) -> None:
        unknown = bed.new_execution_id()
        assert await bed.execute(ReadExecutionStateArgs(execution_id=unknown)) is None
        assert await bed.execute(ReadExecutionInfoArgs(execution_id=unknown)) is None
        assert await bed.execute(GetExecutionResultArgs(execution_id=unknown)) is None
        assert await bed.execute(DescribeExecutionArgs(execution_id=unknown)) is None

    @pytest.mark.scenario("LIFE-028")
    async def test_claimed_work_shows_its_attempt_and_its_lease(self, bed: Bed) -> None:
        claim = await bed.start()
        bed.clock.advance(1_000)
        await bed.renew(claim)
        seen = await bed.execute(DescribeExecutionArgs(execution_id=claim.execution_id))
        assert seen is not None
        assert seen.current_attempt is not None
        assert seen.current_lease is not None
        assert (seen.current_attempt.attempt_id, seen.current_attempt.attempt_index) == (claim.attempt_id, 0)
        lease = seen.current_lease
        assert (lease.lease_id, lease.lease_epoch, lease.worker_instance_id) == (claim.lease_id, 1, INSTANCE)
        assert (lease.expires_at, lease.last_heartbeat_at) == (bed.clock.now_ms + TTL_MS, bed.clock.now_ms)

    @pytest.mark.scenario("LIFE-032")
    async def test_the_context_of_an_unknown_id_is_refused(self, bed: Bed) -> None:
        refusal = await bed.refused(ReadExecutionContextArgs(execution_id=bed.new_execution_id()))
        assert isinstance(refusal, errors.ExecutionNotFound)

    @pytest.mark.scenario("LIFE-035")
    async def test_an_engine_that_follows_another_starts_afresh(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            async with self.make_bed(self.make_store(tmp_path / name)) as bed:
                assert (await bed.execute(ListExecutionsArgs())).executions == ()
                claim = await bed.start()
                await bed.complete(claim)
                assert await bed.state(claim.execution_id) is PublicState.COMPLETED

    async def test_every_field_of_a_policy_survives(self, bed: Bed) -> None:
        policy = ExecutionPolicy(
            retry_policy=POLICY.retry_policy,
            timeout_policy=TimeoutPolicy(attempt_timeout_ms=5, execution_deadline_ms=6, max_reclaim_count=7),
            routing_requirements=RoutingRequirements(required_capabilities=("b", "a")),
        )
        record = await bed.execution(await bed.create(policy=policy, tags={"owner.name": "Zoë"}))
        assert (record.policy, record.tags) == (policy, {"owner.name": "Zoë"})


class LeaseScenarios(StoreSuite):
    """Losing and regaining work."""

    @pytest.mark.scenario("RECLAIM-015")
    async def test_work_of_a_worker_that_is_gone_is_claimed_by_another(self, bed: Bed) -> None:
        lost = await bed.start()
        await bed.advance(TTL_MS)
        found = await bed.execute(batch(worker_instance_id="worker-2"))
        [claim] = found.claims
        assert (claim.execution_id, claim.attempt_index, claim.lease_epoch) == (lost.execution_id, 1, 2)
        assert (claim.attempt_type, claim.resumed) == ("reclaim", False)
        await bed.complete(claim)

    @pytest.mark.scenario("RECLAIM-002")
    async def test_the_leases_of_a_worker_follow_a_reclaim(self, bed: Bed) -> None:
        lost = await bed.start()
        await bed.advance(TTL_MS)
        await bed.claim(lost.execution_id, worker_instance_id="worker-2")
        held = (await bed.dump())["rows"]
        owners = {scope.rpartition("\x1f")[2] for index, scope, _, _ in held if index == "worker_leases"}
        assert owners == {"worker-2"}

    @pytest.mark.scenario("RECLAIM-011")
    async def test_the_epoch_grows_with_every_reclaim(self, bed: Bed) -> None:
        claim = await bed.start()
        epochs = [claim.lease_epoch]
        for _ in range(3):
            await bed.advance(TTL_MS)
            claim = await bed.claim(claim.execution_id)
            epochs.append(claim.lease_epoch)
        assert epochs == [1, 2, 3, 4]

    @pytest.mark.scenario("SUB-006")
    async def test_the_log_tells_of_every_lease_with_its_epoch_and_its_worker(self, bed: Bed) -> None:
        claim = await bed.start()
        await bed.renew(claim)
        await bed.execute(RevokeLeaseArgs(execution_id=claim.execution_id, reason="moved"))
        await bed.claim(claim.execution_id, worker_instance_id="worker-2")
        told = await bed.store.read_events(0, families=frozenset({Family.LEASE}))
        assert [
            (one.event.name, one.event.data["lease_epoch"], one.event.data["worker_instance_id"])
            for one in told
        ] == [
            ("acquired", 1, "worker-1"),
            ("renewed", 1, "worker-1"),
            ("revoked", 1, "worker-1"),
            ("reclaimed", 2, "worker-2"),
        ]

    @pytest.mark.scenario("SCHED-001")
    async def test_the_most_urgent_work_comes_first_then_the_oldest(self, bed: Bed) -> None:
        wanted = {}
        for priority in (10, 1_000, 100, 1_000):
            wanted[await bed.create(priority=priority)] = priority
            bed.clock.advance(1)
        found = []
        while claims := (await bed.execute(batch(limit=1))).claims:
            found.append(claims[0].execution_id)
        assert [wanted[execution_id] for execution_id in found] == [1_000, 1_000, 100, 10]
        assert found[:2] == [execution_id for execution_id, priority in wanted.items() if priority == 1_000]

    @pytest.mark.scenario("SCHED-002")
    async def test_a_grant_is_turned_into_a_claim(self, bed: Bed) -> None:
        [place] = await bring(bed, "eligible_granted", 1)
        assert (await bed.execute(batch())).claims == ()
        command_type, fixed = command_types()["claim_execution"]
        claimed = await bed.execute(await build(bed, command_type, place, WORKER_CALLER, fixed))
        assert claimed.lease_epoch == 1

    @pytest.mark.scenario("SCHED-003")
    async def test_two_who_ask_at_once_get_different_work(self, bed: Bed) -> None:
        created = {await bed.create(), await bed.create()}
        answers = await asyncio.gather(
            bed.execute(batch(limit=1)), bed.execute(batch(limit=2, worker_instance_id="worker-2"))
        )
        claimed = [claim.execution_id for answer in answers for claim in answer.claims]
        rest = [claim.execution_id for claim in (await bed.execute(batch())).claims]
        assert sorted(claimed + rest) == sorted(created)

    @pytest.mark.scenario("SCHED-005")
    async def test_nothing_to_do_is_no_error(self, bed: Bed) -> None:
        assert (await bed.execute(batch())).claims == ()
        await bed.create(lane_id="other")
        assert (await bed.execute(batch())).claims == ()

    @pytest.mark.scenario("CAP-001")
    async def test_a_worker_gets_what_it_can_run(self, bed: Bed) -> None:
        policy = ExecutionPolicy(
            routing_requirements=RoutingRequirements(required_capabilities=("gpu", "big"))
        )
        demanding, plain = await bed.create(policy=policy), await bed.create()
        for offered in ({"gpu"}, {"GPU", "big"}, {"other"}):
            refusal = await bed.refused(self.grant(demanding, offered))
            assert isinstance(refusal, errors.CapabilityMismatch)
        assert [c.execution_id for c in (await bed.execute(batch())).claims] == [plain]
        capable = frozenset({"gpu", "big", "more"})
        [claim] = (await bed.execute(batch(worker_capabilities=capable))).claims
        assert claim.execution_id == demanding

    def grant(self, execution_id: ExecutionId, offered: set[str]) -> IssueClaimGrantArgs:
        return IssueClaimGrantArgs(
            execution_id=execution_id,
            lane_id=LANE,
            worker_id=WORKER,
            worker_instance_id=INSTANCE,
            worker_capabilities=frozenset(offered),
            grant_ttl_ms=1_000,
        )

    @pytest.mark.scenario("CAP-002")
    @pytest.mark.parametrize("token", ["a,b", "", " ", "a b", "a\x00", "a\x7f", "x" * 5_000])
    async def test_a_hostile_requirement_is_refused_before_anything_is_written(
        self, bed: Bed, token: str
    ) -> None:
        routing = RoutingRequirements(required_capabilities=(token,))
        args = bed.creation(policy=ExecutionPolicy(routing_requirements=routing))
        refusal = await bed.refused(args)
        assert isinstance(refusal, errors.InvalidCapabilities)


class WaitingScenarios(StoreSuite):
    """Delays, suspensions and signals."""

    @pytest.mark.scenario("RETRY-001")
    async def test_a_failure_is_retried_after_its_delay(self, bed: Bed) -> None:
        claim = await bed.start(policy=POLICY)
        await bed.fail(claim)
        assert await bed.state(claim.execution_id) is PublicState.DELAYED
        await bed.advance(999)
        assert (await bed.execute(batch())).claims == ()
        await bed.advance(1)
        [again] = (await bed.execute(batch())).claims
        assert (again.attempt_index, again.lease_epoch, again.attempt_type) == (1, 2, "retry")

    @pytest.mark.scenario("TIME-001")
    async def test_sleeping_work_goes_on_in_the_same_attempt(self, bed: Bed) -> None:
        claim = await bed.start()
        await bed.delay(claim, 60_000)
        assert await bed.indexes_of(claim.execution_id) == {"created", "delayed", "due_delay"}
        await bed.advance(60_000)
        [again] = (await bed.execute(batch())).claims
        assert (again.attempt_index, again.attempt_id, again.resumed) == (0, claim.attempt_id, True)
        assert again.lease_epoch == 2

    @pytest.mark.scenario("TIME-004")
    async def test_a_deadline_ends_work_that_nobody_claimed(self, bed: Bed) -> None:
        execution_id = await bed.create(execution_deadline_at=bed.clock.now_ms + 1_000)
        assert "due_deadline" in await bed.indexes_of(execution_id)
        await bed.advance(1_000)
        vector = await bed.vector(execution_id)
        assert (vector.public_state, vector.attempt_state) == ("expired", "pending_first_attempt")
        assert await bed.indexes_of(execution_id) == {"created", "retention", "terminal"}

    @pytest.mark.scenario("TIME-008")
    async def test_expiry_is_told_once_in_the_commit_that_made_it_so(self, bed: Bed) -> None:
        execution_id = await bed.create(execution_deadline_at=bed.clock.now_ms + 1_000)
        await bed.advance(10_000)
        assert await bed.events(execution_id, Family.COMPLETION) == ["expired"]

    @pytest.mark.scenario("TIME-006")
    async def test_an_attempt_that_takes_too_long_uses_a_retry(self, bed: Bed) -> None:
        [place] = await bring(bed, "running_timed_out", 1)
        await bed.settle()
        assert await bed.state(place.execution_id) is PublicState.DELAYED
        assert (await bed.execution(place.execution_id)).retry_count == 1

    async def suspended(self, bed: Bed, **fields: Any) -> Place:
        await seed_key(bed)
        claim = await bed.start()
        place = Place(execution_id=claim.execution_id, claim=claim)
        outcome = await bed.execute(suspension(bed, place, **fields))
        place.waitpoint_id, place.token = outcome.details.waitpoint_id, outcome.details.waitpoint_token
        return place

    @pytest.mark.scenario("SUSP-001")
    async def test_a_signal_resumes_the_same_attempt(self, bed: Bed) -> None:
        place = await self.suspended(bed)
        assert await bed.state(place.execution_id) is PublicState.SUSPENDED
        await bed.execute(signal(bed, place, payload=b"\x00\xff"))
        [again] = (await bed.execute(batch())).claims
        assert (again.attempt_index, again.attempt_id, again.lease_epoch) == (0, place.held.attempt_id, 2)
        observed = await bed.execute(
            ObserveSignalsArgs(execution_id=place.execution_id, fence=again.fence, attempt_index=0)
        )
        assert [one.payload for one in observed.signals] == [b"\x00\xff"]

    @pytest.mark.scenario("SUSP-002")
    async def test_a_wait_without_an_answer_fails(self, bed: Bed) -> None:
        place = await self.suspended(bed, timeout_at=bed.clock.now_ms + 1_000)
        await bed.advance(1_000)
        assert await bed.state(place.execution_id) is PublicState.FAILED

    @pytest.mark.scenario("SUSP-003")
    async def test_a_wait_without_an_answer_may_go_on(self, bed: Bed) -> None:
        behavior = TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL
        place = await self.suspended(bed, timeout_at=bed.clock.now_ms + 1_000, timeout_behavior=behavior)
        await bed.advance(1_000)
        assert await bed.state(place.execution_id) is PublicState.WAITING

    @pytest.mark.scenario("SUSP-016")
    async def test_a_condition_of_two_needs_both(self, bed: Bed) -> None:
        names = ("alpha", "beta")
        members = tuple(Single(waitpoint_key=KEY, matcher=ByName(name=name)) for name in names)
        place = await self.suspended(bed, resume_condition=Composite(body=AllOf(members=members)))
        effects = []
        for name in ("alpha", "alpha", "beta"):
            answer = await bed.execute(signal(bed, place, signal_name=name))
            assert isinstance(answer, SignalAccepted)
            effects.append(str(answer.effect))
        assert effects == [
            "appended_to_waitpoint",
            "appended_to_waitpoint_duplicate",
            "resume_condition_satisfied",
        ]

    @pytest.mark.scenario("HMAC-020")
    async def test_a_token_outlives_the_rotation_of_its_key_for_the_grace(self, bed: Bed) -> None:
        place = await self.suspended(bed)
        rotation = RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex="cd" * 32, grace_ms=1_000)
        await bed.execute(rotation)
        bed.clock.advance(999)
        assert isinstance(await bed.execute(signal(bed, place)), SignalAccepted)
        again = await bed.claim(place.execution_id)
        later = Place(execution_id=place.execution_id, claim=again)
        outcome = await bed.execute(suspension(bed, later))
        assert outcome.details.waitpoint_token.kid == "k2"

    @pytest.mark.scenario("HMAC-006")
    async def test_past_the_grace_a_token_is_worthless(self, bed: Bed) -> None:
        place = await self.suspended(bed)
        rotation = RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex="cd" * 32, grace_ms=1_000)
        await bed.execute(rotation)
        bed.clock.advance(1_000)
        assert isinstance(await bed.refused(signal(bed, place)), errors.TokenExpired)

    @pytest.mark.scenario("LIST-005")
    async def test_suspended_work_is_listed_by_its_deadline(self, bed: Bed) -> None:
        timeouts = (3_000, None, 1_000)
        for timeout in timeouts:
            timeout_at = None if timeout is None else bed.clock.now_ms + timeout
            await self.suspended(bed, timeout_at=timeout_at)
        first = await bed.execute(ListSuspendedArgs(limit=2))
        second = await bed.execute(ListSuspendedArgs(limit=2, cursor=first.next_cursor))
        deadlines = [entry.suspended_at_ms for page in (first, second) for entry in page.entries]
        assert deadlines == [bed.clock.now_ms + 1_000, bed.clock.now_ms + 3_000, FOREVER]
        assert second.next_cursor is None
        assert {entry.reason for entry in first.entries} == {"waiting_for_signal"}


class RecordScenarios(StoreSuite):
    """Streams, journals, tags, replays, lists and events."""

    @pytest.mark.scenario("STREAM-001")
    async def test_frames_can_be_read_while_the_work_runs_and_afterwards(self, bed: Bed) -> None:
        claim = await bed.start()
        first, second = await bed.execute(frame(claim)), await bed.execute(frame(claim, bytes(range(256))))
        assert first.entry_id != second.entry_id
        assert (first.frame_count, second.frame_count) == (1, 2)
        await bed.complete(claim)
        page = await bed.execute(ReadFramesArgs(execution_id=claim.execution_id, attempt_index=0))
        assert [one.payload for one in page.frames] == [b"frame", bytes(range(256))]
        assert page.closed_reason == "attempt_success"

    async def test_a_replay_runs_in_a_new_attempt_with_an_empty_journal(self, bed: Bed) -> None:
        claim = await bed.start()
        step = RecordStepArgs(
            execution_id=claim.execution_id,
            fence=claim.fence,
            attempt_index=0,
            name="step",
            ordinal=0,
            value=b"\x00",
        )
        await bed.execute(step)
        await bed.complete(claim)
        assert len((await bed.execute(ReadJournalArgs(execution_id=claim.execution_id))).entries) == 1
        await bed.execute(ReplayExecutionArgs(execution_id=claim.execution_id))
        assert (await bed.execute(ReadJournalArgs(execution_id=claim.execution_id))).entries == ()
        again = await bed.claim(claim.execution_id)
        assert (again.attempt_index, again.attempt_type, again.generation) == (1, "replay", 1)

    @pytest.mark.scenario("TAG-005")
    async def test_a_tag_with_dots_stays_one_tag(self, bed: Bed) -> None:
        execution_id = await bed.create()
        await bed.execute(SetExecutionTagArgs(execution_id=execution_id, key="a.b.c", value="1"))
        await bed.execute(SetExecutionTagArgs(execution_id=execution_id, key="a.b.c", value="2"))
        assert (await bed.execution(execution_id)).tags == {"a.b.c": "2"}

    @pytest.mark.scenario("LIST-002")
    async def test_a_malformed_cursor_is_refused(self, bed: Bed) -> None:
        refusal = await bed.refused(ListExecutionSummariesArgs(cursor="not a cursor"))
        assert isinstance(refusal, errors.InvalidInput)
        assert refusal.field == "cursor"

    async def test_lists_come_in_pages_that_follow_each_other(self, bed: Bed) -> None:
        created = []
        for _ in range(7):
            created.append(await bed.create())
            bed.clock.advance(1)
        found, cursor = [], None
        while True:
            page = await bed.execute(ListExecutionSummariesArgs(limit=3, cursor=cursor))
            found += [one.execution_id for one in page.executions]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert found == created[::-1]

    @pytest.mark.scenario("SUB-009")
    async def test_the_log_and_the_wake_up_agree(self, bed: Bed) -> None:
        claim = await bed.start()
        before = await bed.store.last_event()
        with bed.engine.notifier.subscribe(EVENTS) as changes:
            await bed.complete(claim)
            assert await changes.wait(0)
        completions = await bed.store.read_events(before, families=frozenset({Family.COMPLETION}))
        assert [(one.event.execution_id, one.event.name) for one in completions] == [
            (claim.execution_id, "success")
        ]

    async def test_a_megabyte_of_input_comes_to_the_worker_as_it_was(self, bed: Bed) -> None:
        data = bytes(range(256)) * 4_000
        claim = await bed.start(input_payload=data)
        assert claim.input_payload == data
        assert (await bed.get(Payload, claim.execution_id)).data == data


class IsolationScenarios(StoreSuite):
    """Namespaces."""

    async def test_to_another_namespace_nothing_exists(self, tmp_path: Path, clock: ManualClock) -> None:
        """Every command, pairwise: the same answer as for an id that was never made."""
        store = RecordingStore(self.make_store(tmp_path))
        async with self.make_bed(store, clock=clock) as bed:
            await seed_key(bed)
            [place] = await bring(bed, "suspended", 1)
            for name, (command_type, fixed) in command_types().items():
                if name == "create_execution":
                    continue
                fields = command_type.__struct_fields__
                fenced = "source" in fields and "frame_type" not in fields
                caller = OPERATOR if fenced else ANYONE
                if "fence" in fields or "lease_epoch" in fields:
                    caller = STRANGER
                elif "worker_id" in fields:
                    caller = WORKER_CALLER
                command = await build(bed, command_type, place, caller, fixed)
                await self.compare_with_nothing(bed, store, command)

    async def compare_with_nothing(self, bed: Bed, store: RecordingStore, command: Any) -> None:
        values = {name: getattr(command, name) for name in command.__struct_fields__}
        nothing = type(command)(**{**values, "execution_id": bed.new_execution_id()})
        commits = len(store.commits)
        answers = [await self.answer(bed, asked, asked.execution_id) for asked in (command, nothing)]
        assert answers[0] == answers[1], type(command).__name__
        assert len(store.commits) == commits

    async def answer(self, bed: Bed, command: Any, execution_id: str) -> str:
        """The answer from the other namespace, without the id that it was about."""
        try:
            answer: Any = await bed.execute(command, namespace="other")
        except errors.FlowFabricError as refusal:
            answer = (refusal.code, refusal.message)
        return repr(answer).replace(execution_id, "ID")

    @pytest.mark.scenario("SCHED-007")
    async def test_lists_and_claims_see_their_own_namespace_only(self, bed: Bed) -> None:
        mine, theirs = await bed.create(), await bed.create(namespace="other")
        for namespace, own in ((NAMESPACE, mine), ("other", theirs)):
            listed = await bed.execute(ListExecutionsArgs(), namespace=namespace)
            assert listed.executions == (own,)
            shown = await bed.execute(ListExecutionSummariesArgs(), namespace=namespace)
            assert [one.execution_id for one in shown.executions] == [own]
            claimed = await bed.execute(batch(), namespace=namespace)
            assert [one.execution_id for one in claimed.claims] == [own]

    async def test_one_idempotency_key_is_free_in_every_namespace(self, bed: Bed) -> None:
        first = await bed.create(idempotency_key="once")
        second = await bed.create(idempotency_key="once", namespace="other")
        assert first != second
        assert await bed.find(Execution, second) is not None


class ScenarioConformance(
    LifecycleScenarios, LeaseScenarios, WaitingScenarios, RecordScenarios, IsolationScenarios
):
    """All acceptance scenarios that a store could differ in."""

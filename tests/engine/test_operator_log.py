"""The operator log: every act of an operator leaves one entry, in the commit of the act.

The acts are not listed here by hand: whatever the table of permissions gives to operators has to be
an act with an entry, or to be named below as none, with the reason.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from flowfabric.contracts.base import Command
from flowfabric.contracts.blocking import (
    BlockExecutionArgs,
    PauseExecutionArgs,
    UnblockExecutionArgs,
    UnpauseExecutionArgs,
)
from flowfabric.contracts.budgets import (
    ChangeBudgetLimitsArgs,
    CreateBudgetArgs,
    EnforcementMode,
    OnHardLimit,
    OnSoftLimit,
    ResetBudgetArgs,
)
from flowfabric.contracts.conditions import Single
from flowfabric.contracts.events import FROM_START, Family, HistoryEvent, TailEventsArgs
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    CompleteExecutionArgs,
    CreateExecutionArgs,
    ReplayExecutionArgs,
)
from flowfabric.contracts.flows import (
    CancelFlowArgs,
    CancelFlowHeaderArgs,
    CreateFlowArgs,
    FlowCancellationPolicy,
)
from flowfabric.contracts.keyring import (
    RotateWaitpointHmacSecretAllArgs,
    RotateWaitpointHmacSecretArgs,
    SeedWaitpointHmacSecretArgs,
)
from flowfabric.contracts.lanes import SetLaneStateArgs
from flowfabric.contracts.leases import ClaimBatchArgs, ClaimedWork, RevokeLeaseArgs
from flowfabric.contracts.limits import DAY_MS, OPERATOR_LOG_RETENTION_MS
from flowfabric.contracts.quotas import CreateQuotaPolicyArgs
from flowfabric.contracts.retention import TrimRetentionArgs
from flowfabric.contracts.signals import DeliverApprovalSignalArgs
from flowfabric.contracts.states import LaneState
from flowfabric.contracts.suspensions import CloseWaitpointArgs, ResumeExecutionArgs, SuspendExecutionArgs
from flowfabric.contracts.workers import MarkWorkerDeadArgs, RegisterWorkerArgs
from flowfabric.engine.engine import Engine
from flowfabric.engine.layers import operation_name
from flowfabric.engine.retention import trim_log
from flowfabric.errors import EventsTrimmed, ExecutionNotActive
from flowfabric.minting import (
    fresh_waitpoint,
    new_execution_id,
    new_flow_id,
    new_suspension_id,
    new_uuid4,
)
from flowfabric.server.access import Role
from flowfabric.server.permissions import NEEDED
from tests.engine.lost_calls import STORES
from tests.engine.stage import Stage

NAMESPACE, LANE, ACTOR = "default", "default", "ann"
FLOW = new_flow_id()

Scene = Callable[[Engine], Awaitable[Command[Any]]]

BY_THE_ENGINE: Final = "the duties do it too; it only carries out what was said before"
SPENDING: Final = "it is spending, which ledgers and the family of budgets tell of"
NO_ACTS: Final = {
    "ack_cancel_member": BY_THE_ENGINE,
    "block_route": BY_THE_ENGINE,
    "cascade_completion": BY_THE_ENGINE,
    "check_admission": BY_THE_ENGINE,
    "expire_execution": BY_THE_ENGINE,
    "expire_suspension": BY_THE_ENGINE,
    "mark_lease_expired": BY_THE_ENGINE,
    "promote_blocked_to_eligible": BY_THE_ENGINE,
    "promote_delayed": BY_THE_ENGINE,
    "reconcile_budget_counters": BY_THE_ENGINE,
    "reconcile_quota_counters": BY_THE_ENGINE,
    "release_admission": BY_THE_ENGINE,
    "resolve_dependency": BY_THE_ENGINE,
    "read_waitpoint_token": "it only reads, and reading commits nothing",
    "record_spend": SPENDING,
    "release_budget": SPENDING,
    "report_usage_admin": SPENDING,
    "seed_waitpoint_hmac_secret": "every start does it, and it changes nothing once there is a key",
}


async def created(engine: Engine) -> str:
    execution_id = new_execution_id(flow_id=FLOW)
    await engine.execute(
        CreateExecutionArgs(
            execution_id=execution_id,
            namespace=NAMESPACE,
            lane_id=LANE,
            execution_kind="kind",
            input_payload=b"",
            priority=5,
            creator_identity="tests",
        )
    )
    return execution_id


async def claimed(engine: Engine) -> ClaimedWork:
    await created(engine)
    args = ClaimBatchArgs(lanes=(LANE,), worker_id="w", worker_instance_id="w-1", lease_ttl_ms=30_000)
    [work] = (await engine.execute(args)).claims
    return work


async def suspended(engine: Engine) -> tuple[str, str]:
    work, waitpoint = await claimed(engine), fresh_waitpoint()
    await engine.execute(
        SuspendExecutionArgs(
            execution_id=work.execution_id,
            fence=work.fence,
            attempt_index=0,
            suspension_id=new_suspension_id(),
            waitpoints=(waitpoint,),
            resume_condition=Single(waitpoint_key=waitpoint.waitpoint_key),
        )
    )
    return work.execution_id, waitpoint.waitpoint_id


async def ended(engine: Engine) -> str:
    work = await claimed(engine)
    await engine.execute(
        CompleteExecutionArgs(
            execution_id=work.execution_id, fence=work.fence, attempt_index=0, source="lease_holder"
        )
    )
    return work.execution_id


def budget_creation(budget_id: str) -> CreateBudgetArgs:
    return CreateBudgetArgs(
        budget_id=budget_id,
        namespace=NAMESPACE,
        scope_type="team",
        scope_id="a",
        enforcement_mode=EnforcementMode.STRICT,
        on_hard_limit=OnHardLimit.DENY,
        on_soft_limit=OnSoftLimit.WARN,
        reset_interval_ms=0,
        dimensions=("tokens",),
        hard_limits=(10,),
        soft_limits=(0,),
    )


async def budgeted(engine: Engine) -> str:
    budget_id = new_uuid4()
    await engine.execute(budget_creation(budget_id))
    return budget_id


async def cancelling(engine: Engine) -> Command[Any]:
    return CancelExecutionArgs(execution_id=await created(engine), reason="why")


async def prioritising(engine: Engine) -> Command[Any]:
    return ChangePriorityArgs(execution_id=await created(engine), new_priority=9)


async def pausing(engine: Engine) -> Command[Any]:
    return PauseExecutionArgs(execution_id=await created(engine), reason="why")


async def unpausing(engine: Engine) -> Command[Any]:
    execution_id = await created(engine)
    await engine.execute(PauseExecutionArgs(execution_id=execution_id))
    return UnpauseExecutionArgs(execution_id=execution_id)


async def blocking(engine: Engine) -> Command[Any]:
    return BlockExecutionArgs(execution_id=await created(engine), blocking_reason="paused_by_operator")


async def unblocking(engine: Engine) -> Command[Any]:
    blocked = await blocking(engine)
    await engine.execute(blocked)
    return UnblockExecutionArgs(execution_id=blocked.execution_id)  # type: ignore[attr-defined]


async def replaying(engine: Engine) -> Command[Any]:
    return ReplayExecutionArgs(execution_id=await ended(engine))


async def revoking(engine: Engine) -> Command[Any]:
    return RevokeLeaseArgs(execution_id=(await claimed(engine)).execution_id, reason="why")


async def resuming(engine: Engine) -> Command[Any]:
    return ResumeExecutionArgs(execution_id=(await suspended(engine))[0])


async def closing(engine: Engine) -> Command[Any]:
    execution_id, waitpoint_id = await suspended(engine)
    return CloseWaitpointArgs(execution_id=execution_id, waitpoint_id=waitpoint_id, reason="why")


async def deciding(engine: Engine) -> Command[Any]:
    execution_id, waitpoint_id = await suspended(engine)
    return DeliverApprovalSignalArgs(
        execution_id=execution_id,
        lane_id=LANE,
        waitpoint_id=waitpoint_id,
        signal_name="approve",
        idempotency_suffix="1",
    )


async def changing_a_lane(engine: Engine) -> Command[Any]:
    return SetLaneStateArgs(namespace=NAMESPACE, lane_id=LANE, state=LaneState.PAUSED, reason="why")


async def declaring_dead(engine: Engine) -> Command[Any]:
    there = RegisterWorkerArgs(worker_id="w", worker_instance_id="w-1", namespace=NAMESPACE, lanes=(LANE,))
    await engine.execute(there)
    return MarkWorkerDeadArgs(worker_instance_id="w-1", namespace=NAMESPACE, reason="why")


async def cancelling_a_flow(engine: Engine) -> Command[Any]:
    await engine.execute(CreateFlowArgs(flow_id=FLOW, flow_kind="kind", namespace=NAMESPACE))
    policy = FlowCancellationPolicy.CANCEL_ALL
    return CancelFlowArgs(flow_id=FLOW, reason="why", cancellation_policy=policy)


async def cancelling_a_header(engine: Engine) -> Command[Any]:
    await engine.execute(CreateFlowArgs(flow_id=FLOW, flow_kind="kind", namespace=NAMESPACE))
    policy = FlowCancellationPolicy.CANCEL_ALL
    return CancelFlowHeaderArgs(flow_id=FLOW, reason="why", cancellation_policy=policy)


async def creating_a_budget(engine: Engine) -> Command[Any]:
    return budget_creation(new_uuid4())


async def changing_limits(engine: Engine) -> Command[Any]:
    return ChangeBudgetLimitsArgs(
        budget_id=await budgeted(engine), dimensions=("tokens",), hard_limits=(20,), soft_limits=(0,)
    )


async def resetting(engine: Engine) -> Command[Any]:
    return ResetBudgetArgs(budget_id=await budgeted(engine))


async def creating_a_quota(engine: Engine) -> Command[Any]:
    return CreateQuotaPolicyArgs(
        quota_policy_id=new_uuid4(),
        namespace=NAMESPACE,
        window_seconds=60,
        max_requests_per_window=1,
        max_concurrent=1,
    )


async def rotating(engine: Engine) -> Command[Any]:
    return RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex="ab" * 32, grace_ms=1)


async def rotating_everywhere(engine: Engine) -> Command[Any]:
    return RotateWaitpointHmacSecretAllArgs(new_kid="k2", new_secret_hex="ab" * 32, grace_ms=1)


async def trimming(engine: Engine) -> Command[Any]:
    return TrimRetentionArgs(retention_ms=86_400_000)


ACTS: Final[dict[str, tuple[Scene, str, dict[str, object]]]] = {
    "block_execution": (blocking, "blocked", {"old": "waiting", "new": "waiting"}),
    "cancel_execution": (cancelling, "cancelled", {"old": "runnable", "reason": "why"}),
    "cancel_flow": (cancelling_a_flow, "flow_cancelled", {"old": "open", "reason": "why"}),
    "cancel_flow_header": (cancelling_a_header, "flow_cancelled", {"old": "open", "reason": "why"}),
    "change_budget_limits": (
        changing_limits,
        "budget_limits_changed",
        {"old": "tokens=10", "new": "tokens=20"},
    ),
    "change_priority": (prioritising, "priority_changed", {"old": 5, "new": 9}),
    "close_waitpoint": (closing, "waitpoint_closed", {"old": "active", "reason": "why"}),
    "create_budget": (creating_a_budget, "budget_created", {"new": "tokens=10"}),
    "create_quota_policy": (creating_a_quota, "quota_policy_created", {"window_ms": 60_000}),
    "deliver_approval_signal": (deciding, "decided", {"new": "approve"}),
    "mark_worker_dead": (declaring_dead, "worker_dead", {"worker_instance_id": "w-1", "reason": "why"}),
    "pause_execution": (pausing, "paused", {"old": "waiting", "reason": "why"}),
    "replay_execution": (replaying, "replayed", {"old": "success", "replay_count": 1}),
    "reset_budget": (resetting, "budget_reset", {"period": 1}),
    "resume_execution": (resuming, "resumed", {"old": "suspended"}),
    "revoke_lease": (revoking, "lease_revoked", {"old": "w-1", "reason": "why"}),
    "rotate_waitpoint_hmac_secret": (rotating, "key_rotated", {"old": "k1", "new": "k2"}),
    "rotate_waitpoint_hmac_secret_all": (rotating_everywhere, "key_rotated", {"old": "k1", "new": "k2"}),
    "set_lane_state": (changing_a_lane, "lane_state_set", {"old": "active", "new": "paused"}),
    "trim_retention": (trimming, "retention_trimmed", {"retention_ms": 86_400_000}),
    "unblock_execution": (unblocking, "unblocked", {"blocking_reason": "paused_by_operator"}),
    "unpause_execution": (unpausing, "unpaused", {"old": "waiting"}),
}


@pytest.fixture(params=list(STORES))
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    async with Engine(STORES[request.param](tmp_path)) as started:
        await started.execute(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex="5a" * 32))
        yield started


async def entries(engine: Engine) -> list[HistoryEvent]:
    asked = TailEventsArgs(families=frozenset({Family.OPERATOR}), after=FROM_START)
    page = await engine.execute(asked)
    return [event for event in page.events if isinstance(event, HistoryEvent)]


def test_whatever_operators_may_do_is_an_act_or_is_known_to_be_none() -> None:
    theirs = {name for name, roles in NEEDED.items() if roles & {Role.OPERATOR, Role.ADMIN}}
    assert theirs <= ACTS.keys() | NO_ACTS.keys()
    assert not ACTS.keys() & NO_ACTS.keys()


@pytest.mark.parametrize("operation", ACTS)
async def test_an_act_leaves_one_entry_and_its_repetition_none(engine: Engine, operation: str) -> None:
    scene, name, told = ACTS[operation]
    command = await scene(engine)
    assert operation_name(type(command)) == operation
    before = len(await entries(engine))
    await engine.execute(command, request_id="once", actor=ACTOR)
    [entry] = (await entries(engine))[before:]
    assert (entry.name, entry.data["actor"]) == (name, ACTOR)
    assert {key: entry.data[key] for key in told} == told
    assert entry.at_ms > 0
    if operation != "trim_retention":  # a pass over what is due by now: every one is another
        await engine.execute(command, request_id="once", actor=ACTOR)
        assert len(await entries(engine)) == before + 1


async def test_a_refused_act_leaves_none(engine: Engine) -> None:
    execution_id = await ended(engine)
    before = await entries(engine)
    with pytest.raises(ExecutionNotActive):
        await engine.execute(CancelExecutionArgs(execution_id=execution_id, reason="why"), actor=ACTOR)
    assert await entries(engine) == before


async def test_a_secret_is_never_in_it(engine: Engine) -> None:
    await engine.execute(await rotating(engine), actor=ACTOR)
    assert "abab" not in repr(await entries(engine))
    assert "5a5a" not in repr(await entries(engine))


async def test_one_namespace_does_not_see_the_acts_in_another(engine: Engine) -> None:
    await engine.execute(await cancelling(engine), actor=ACTOR)
    asked = TailEventsArgs(families=frozenset({Family.OPERATOR}), after=FROM_START)
    assert (await engine.execute(asked, namespace="other")).events == ()


class TestRetention:
    """The log of acts outlives the rest of the log, and says so when some of it is removed."""

    async def acted(self, stage: Stage) -> None:
        execution_id, _ = await stage.start_execution()
        command = CancelExecutionArgs(execution_id=execution_id, reason="why")
        await stage.engine.execute(command, actor=ACTOR)

    async def test_it_outlives_what_it_is_about(self, stage: Stage) -> None:
        await self.acted(stage)
        stage.store.now_ms += 10 * DAY_MS
        await trim_log(stage.engine, DAY_MS)
        assert [entry.name for entry in await entries(stage.engine)] == ["cancelled"]
        everything = TailEventsArgs(families=frozenset(Family), after=FROM_START)
        assert (await stage.engine.execute(everything)).events == ()

    async def test_a_reader_of_nothing_else_is_not_overtaken_by_the_trimming(self, stage: Stage) -> None:
        await self.acted(stage)
        [first] = await entries(stage.engine)
        everything = TailEventsArgs(families=frozenset(Family), after=FROM_START)
        oldest = (await stage.engine.execute(everything)).events[0]
        stage.store.now_ms += 10 * DAY_MS
        await trim_log(stage.engine, DAY_MS)
        await self.acted(stage)
        asked = TailEventsArgs(families=frozenset({Family.OPERATOR}), after=first.cursor)
        [second] = (await stage.engine.execute(asked)).events
        assert second.at_ms == stage.store.now_ms
        with pytest.raises(EventsTrimmed):
            await stage.engine.execute(replace(everything, after=oldest.cursor))

    async def test_what_its_own_retention_removes_is_told_by_an_entry(self, stage: Stage) -> None:
        await self.acted(stage)
        stage.store.now_ms += OPERATOR_LOG_RETENTION_MS + 2 * DAY_MS
        await trim_log(stage.engine, DAY_MS)
        [entry] = await engine_wide(stage.engine)
        assert (entry.name, entry.data["entries"]) == ("log_trimmed", 1)
        await trim_log(stage.engine, DAY_MS)
        assert await engine_wide(stage.engine) == [entry]

    async def test_entries_go_together_once_in_a_while(self, stage: Stage) -> None:
        await self.acted(stage)
        stage.store.now_ms += OPERATOR_LOG_RETENTION_MS + DAY_MS // 2
        await trim_log(stage.engine, DAY_MS)
        assert [entry.name for entry in await engine_wide(stage.engine)] == ["cancelled"]


async def engine_wide(engine: Engine) -> list[HistoryEvent]:
    """The entries of all namespaces."""
    stored = await engine.store.read_events(0, families=frozenset({Family.OPERATOR}))
    return [
        HistoryEvent(
            cursor=str(one.sequence),
            at_ms=one.event.at_ms,
            namespace=one.event.namespace,
            execution_id=one.event.execution_id,
            family=one.event.family,
            name=one.event.name,
            data=one.event.data,
        )
        for one in stored
    ]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    async with made.engine:
        yield made

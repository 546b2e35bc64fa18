"""Lost calls while lanes are set, workers come, go and die, and what ended long ago is removed."""

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import SetExecutionTagsArgs
from flowfabric.contracts.lanes import SetLaneStateArgs
from flowfabric.contracts.limits import DAY_MS
from flowfabric.contracts.policy import ExecutionPolicy, StreamPolicy
from flowfabric.contracts.states import LaneState
from flowfabric.contracts.streams import BestEffortMode
from flowfabric.contracts.workers import DeregisterWorkerArgs
from flowfabric.testing.bed import INSTANCE, LANE, NAMESPACE, TTL_MS
from flowfabric.testing.conformance.situations import signal
from flowfabric.testing.conformance.workers import heartbeat, marking_dead, registering
from tests.engine.lost_calls import (
    STORES,
    claimed,
    completed,
    created,
    failed,
    lost,
    started,
    submitted,
    suspended,
    with_key,
    written,
)

# Lanes


def setting(state):
    return SetLaneStateArgs(namespace=NAMESPACE, lane_id=LANE, state=state, reason="upgrade")


async def a_lane_that_is_paused(caller):
    execution_id = await created(caller)
    await caller.ask(setting(LaneState.PAUSED))
    with pytest.raises(errors.StateRefusal):
        await claimed(caller, execution_id)
    await caller.ask(setting(LaneState.ACTIVE))
    await completed(caller, await claimed(caller, execution_id))


async def a_lane_that_is_drained_and_disabled(caller):
    execution_id = await created(caller)
    await caller.ask(setting(LaneState.DRAINING))
    with pytest.raises(errors.LaneClosed):
        await created(caller)
    await completed(caller, await claimed(caller, execution_id))
    await caller.ask(setting(LaneState.DISABLED))
    await caller.ask(setting(LaneState.ACTIVE))
    await created(caller)


# Workers


async def a_worker_that_comes_and_goes(caller):
    await caller.ask(registering(capabilities=frozenset({"gpu"})))
    await caller.pass_time(TTL_MS // 2)
    await caller.ask(heartbeat())
    await caller.ask(registering(lanes=("other",)))
    await caller.ask(DeregisterWorkerArgs(worker_instance_id=INSTANCE, namespace=NAMESPACE))


async def a_worker_that_falls_silent(caller):
    await caller.ask(registering())
    claim = await started(caller)
    await caller.pass_time(2 * TTL_MS)
    await completed(caller, await claimed(caller, claim.execution_id))


async def a_worker_that_is_marked_dead(caller):
    await caller.ask(registering())
    claims = [await started(caller) for _ in range(3)]
    await caller.ask(marking_dead())
    await caller.pass_time(0)
    for claim in claims:
        await completed(caller, await claimed(caller, claim.execution_id))


# Retention


async def forgetting_an_execution_with_a_past(caller):
    await with_key(caller)
    claim = await started(caller)
    await caller.ask(SetExecutionTagsArgs(execution_id=claim.execution_id, tags={"owner.name": "a"}))
    await caller.ask_at_once([written(claim, b"%d" % number) for number in range(3)])
    await caller.ask(written(claim, b"live", mode=BestEffortMode(ttl_ms=1_000)))
    await caller.ask(signal(caller.bed, await suspended(caller, claim)))
    await completed(caller, await claimed(caller, claim.execution_id))
    await caller.pass_time(DAY_MS)


async def forgetting_what_had_a_date_of_its_own(caller):
    kept = ExecutionPolicy(stream_policy=StreamPolicy(retention_ttl_ms=2 * DAY_MS))
    for policy in (None, kept):
        await failed(caller, await started(caller, policy=policy), "permanent")
    await caller.pass_time(2 * DAY_MS)


async def forgetting_a_flow(caller):
    _, ids = await submitted(caller, 3, [(0, 1), (1, 2)])
    for execution_id in ids:
        await completed(caller, await claimed(caller, execution_id))
    await caller.pass_time(DAY_MS)


SCENARIOS = [
    a_lane_that_is_paused,
    a_lane_that_is_drained_and_disabled,
    a_worker_that_comes_and_goes,
    a_worker_that_falls_silent,
    a_worker_that_is_marked_dead,
    forgetting_an_execution_with_a_past,
    forgetting_what_had_a_date_of_its_own,
    forgetting_a_flow,
]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("store", STORES)
async def test_a_lost_call_around_operators_leaves_what_no_lost_call_leaves(tmp_path, store, scenario):
    assert not await lost(store, tmp_path, scenario)

"""Every call of every scenario fails once, before or after it took effect.

A read that fails never reaches the store, so reads are failed on the memory store only.
"""

import pytest

from flowfabric.contracts.conditions import Single
from flowfabric.contracts.cursors import StreamCursor
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    DelayExecutionArgs,
    MoveToWaitingChildrenArgs,
    ReplayExecutionArgs,
    SetExecutionTagArgs,
    SetExecutionTagsArgs,
    UpdateProgressArgs,
)
from flowfabric.contracts.flows import (
    AddEdgesArgs,
    AddExecutionToFlowArgs,
    AnyOfEdges,
    ApplyDependencyToChildArgs,
    CancelFlowArgs,
    CreateFlowArgs,
    FlowCancellationPolicy,
    SetEdgeGroupPolicyArgs,
    SetFlowTagArgs,
    StageDependencyEdgeArgs,
)
from flowfabric.contracts.journal import ReadJournalArgs, RecordSleepArgs, RecordStepArgs
from flowfabric.contracts.keyring import RotateWaitpointHmacSecretArgs
from flowfabric.contracts.leases import (
    ClaimExecutionArgs,
    ClaimResumedExecutionArgs,
    IssueClaimGrantArgs,
    IssueGrantAndClaimArgs,
    IssueReclaimGrantArgs,
    ReclaimExecutionArgs,
    RenewLeaseArgs,
    RevokeLeaseArgs,
)
from flowfabric.contracts.policy import ExecutionPolicy, TimeoutBehavior, TimeoutPolicy
from flowfabric.contracts.signals import DeliverApprovalSignalArgs
from flowfabric.contracts.streams import BestEffortMode, SummaryMode, TailFramesArgs
from flowfabric.contracts.suspensions import (
    CloseWaitpointArgs,
    CreatePendingWaitpointArgs,
    ResumeExecutionArgs,
    ResumeTrigger,
    UsePendingWaitpoint,
)
from flowfabric.testing.bed import LANE, NAMESPACE, TTL_MS
from flowfabric.testing.conformance.situations import (
    KEY,
    POLICY,
    RETRY_DELAY_MS,
    Place,
    signal,
    suspension,
)
from tests.engine.lost_calls import (
    DELAY_MS,
    STORES,
    claimed,
    completed,
    created,
    edge,
    failed,
    held,
    kept_for_worker,
    lost,
    owned,
    started,
    submitted,
    suspended,
    with_key,
    written,
)


async def creating_with_a_key_and_completing(caller):
    await completed(caller, await started(caller, idempotency_key="once"))


async def failing_and_retrying(caller):
    claim = await started(caller, policy=POLICY)
    await failed(caller, claim)
    await caller.pass_time(RETRY_DELAY_MS)
    await completed(caller, await claimed(caller, claim.execution_id))


async def failing_for_good(caller):
    await failed(caller, await started(caller, policy=POLICY), "permanent")


async def waiting_for_a_signal(caller):
    await with_key(caller)
    claim = await started(caller)
    place = await suspended(caller, claim)
    await caller.ask(signal(caller.bed, place, idempotency_key="sent once"))
    await completed(caller, await claimed(caller, claim.execution_id))


async def waiting_in_vain(caller):
    await with_key(caller)
    claim = await started(caller)
    timeout = TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL
    until = caller.bed.clock.now_ms + DELAY_MS
    await suspended(caller, claim, timeout_at=until, timeout_behavior=timeout)
    await caller.pass_time(DELAY_MS)
    await completed(caller, await claimed(caller, claim.execution_id))


async def a_signal_that_comes_early(caller):
    await with_key(caller)
    claim = await started(caller)
    place = Place(execution_id=claim.execution_id, claim=claim)
    pending = await caller.ask(
        CreatePendingWaitpointArgs(
            **owned(claim),
            attempt_index=0,
            waitpoint_id=caller.bed.new_id(),
            waitpoint_key=KEY,
            expires_in_ms=DELAY_MS,
        )
    )
    place.waitpoint_id, place.token = pending.waitpoint_id, pending.waitpoint_token
    await caller.ask(signal(caller.bed, place))
    await caller.ask(
        suspension(
            caller.bed,
            place,
            waitpoints=(UsePendingWaitpoint(waitpoint_id=place.waitpoint_id),),
            resume_condition=Single(waitpoint_key=KEY),
        )
    )
    await completed(caller, claim)


async def waitpoints_that_nobody_uses(caller):
    await with_key(caller)
    claim = await started(caller)
    for close in (True, False):
        waitpoint_id = caller.bed.new_id()
        await caller.ask(
            CreatePendingWaitpointArgs(
                **owned(claim),
                attempt_index=0,
                waitpoint_id=waitpoint_id,
                waitpoint_key=KEY,
                expires_in_ms=DELAY_MS,
            )
        )
        if close:
            await caller.ask(CloseWaitpointArgs(execution_id=claim.execution_id, waitpoint_id=waitpoint_id))
    await caller.pass_time(DELAY_MS)


async def an_approval_after_a_rotation(caller):
    await with_key(caller)
    claim = await started(caller)
    place = await suspended(caller, claim)
    await caller.ask(RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex="cd" * 32, grace_ms=DELAY_MS))
    await caller.ask(
        DeliverApprovalSignalArgs(
            execution_id=claim.execution_id,
            lane_id=LANE,
            waitpoint_id=place.waitpoint_id,
            signal_name="approved",
            idempotency_suffix="1",
        )
    )


async def an_operator_resumes_and_cancels(caller):
    await with_key(caller)
    claim = await started(caller)
    await suspended(caller, claim)
    await caller.ask(
        ResumeExecutionArgs(execution_id=claim.execution_id, trigger_type=ResumeTrigger.OPERATOR)
    )
    await suspended(caller, await claimed(caller, claim.execution_id))
    await caller.ask(CancelExecutionArgs(execution_id=claim.execution_id, reason="unwanted"))


async def sleeping(caller):
    claim = await started(caller, delay_until=caller.bed.clock.now_ms)
    until = caller.bed.clock.now_ms + DELAY_MS
    await caller.ask(DelayExecutionArgs(**held(claim), delay_until=until))
    await caller.pass_time(DELAY_MS)
    await completed(caller, await claimed(caller, claim.execution_id))


async def a_flow_of_three_in_a_row(caller):
    _, ids = await submitted(caller, 3, [(0, 1), (1, 2)])
    for execution_id in ids:
        await completed(caller, await claimed(caller, execution_id))


async def a_flow_in_which_one_is_enough(caller):
    _, ids = await submitted(caller, 3, [(0, 2), (1, 2)], [(2, AnyOfEdges())])
    await completed(caller, await claimed(caller, ids[1]))
    await completed(caller, await claimed(caller, ids[2]))


async def a_flow_whose_first_member_fails(caller):
    _, ids = await submitted(caller, 3, [(0, 1), (1, 2)])
    await failed(caller, await claimed(caller, ids[0]), "permanent")


async def a_flow_built_piece_by_piece(caller):
    bed = caller.bed
    flow_id = bed.new_flow_id()
    await caller.ask(CreateFlowArgs(flow_id=flow_id, flow_kind="dag", namespace=NAMESPACE))
    upstream, downstream = [await created(caller) for _ in range(2)]
    for member in (upstream, downstream):
        await caller.ask(AddExecutionToFlowArgs(flow_id=flow_id, execution_id=member))
    await caller.ask(
        SetEdgeGroupPolicyArgs(flow_id=flow_id, downstream_execution_id=downstream, policy=AnyOfEdges())
    )
    ends = {
        "flow_id": flow_id,
        "edge_id": bed.new_id(),
        "upstream_execution_id": upstream,
        "downstream_execution_id": downstream,
    }
    staged = await caller.ask(StageDependencyEdgeArgs(**ends, expected_graph_revision=2))
    await caller.ask(ApplyDependencyToChildArgs(**ends, graph_revision=staged.new_graph_revision))
    await caller.ask(SetFlowTagArgs(flow_id=flow_id, key="owner.name", value="a"))
    await caller.ask(AddEdgesArgs(flow_id=flow_id, seal=True))
    await completed(caller, await claimed(caller, upstream))


async def a_flow_that_is_cancelled(caller):
    flow_id, ids = await submitted(caller, 3, [(0, 1)])
    await claimed(caller, ids[0])
    await caller.ask(
        CancelFlowArgs(
            flow_id=flow_id,
            reason="unwanted",
            cancellation_policy=FlowCancellationPolicy.CANCEL_ALL,
            wait=True,
        )
    )


async def a_flow_that_is_cancelled_in_the_background(caller):
    flow_id, ids = await submitted(caller, 3, [(0, 1)])
    await claimed(caller, ids[0])
    await caller.ask(
        CancelFlowArgs(
            flow_id=flow_id,
            reason="unwanted",
            cancellation_policy=FlowCancellationPolicy.CANCEL_PENDING,
        )
    )


async def a_flow_that_is_replayed(caller):
    _, ids = await submitted(caller, 2, [(0, 1)])
    await failed(caller, await claimed(caller, ids[0]), "permanent")
    for execution_id in ids:
        await caller.ask(ReplayExecutionArgs(execution_id=execution_id))
    await completed(caller, await claimed(caller, ids[0]))
    await completed(caller, await claimed(caller, ids[1]))


async def waiting_for_children(caller):
    bed = caller.bed
    flow_id = bed.new_flow_id()
    await caller.ask(CreateFlowArgs(flow_id=flow_id, flow_kind="dag", namespace=NAMESPACE))
    parent = await started(caller)
    child = await created(caller)
    for member in (parent.execution_id, child):
        await caller.ask(AddExecutionToFlowArgs(flow_id=flow_id, execution_id=member))
    await caller.ask(AddEdgesArgs(flow_id=flow_id, edges=(edge(caller, child, parent.execution_id),)))
    await caller.ask(MoveToWaitingChildrenArgs(**held(parent)))
    await completed(caller, await claimed(caller, child))
    await completed(caller, await claimed(caller, parent.execution_id))


async def replaying(caller):
    claim = await started(caller)
    await completed(caller, claim)
    await caller.ask(ReplayExecutionArgs(execution_id=claim.execution_id))
    await completed(caller, await claimed(caller, claim.execution_id))


async def losing_a_lease(caller):
    claim = await started(caller)
    await caller.ask(RenewLeaseArgs(**held(claim), lease_ttl_ms=2 * TTL_MS))
    await caller.pass_time(2 * TTL_MS)
    await completed(caller, await claimed(caller, claim.execution_id))


async def revoking_and_reclaiming(caller):
    claim = await started(caller)
    await caller.ask(RevokeLeaseArgs(execution_id=claim.execution_id, reason="moved"))
    place = kept_for_worker(claim.execution_id)
    await caller.ask(IssueReclaimGrantArgs(**place, grant_ttl_ms=TTL_MS))
    await caller.ask(
        ReclaimExecutionArgs(
            **place, lease_id=caller.bed.new_id(), attempt_id=caller.bed.new_id(), lease_ttl_ms=TTL_MS
        )
    )


async def claiming_with_grants(caller):
    execution_id = await created(caller)
    place = kept_for_worker(execution_id)
    await caller.ask(IssueClaimGrantArgs(**place, grant_ttl_ms=TTL_MS))
    await caller.ask(
        ClaimExecutionArgs(
            **place,
            lease_id=caller.bed.new_id(),
            attempt_id=caller.bed.new_id(),
            lease_ttl_ms=TTL_MS,
            expected_attempt_index=0,
        )
    )


async def claiming_at_once(caller):
    execution_id = await created(caller)
    await caller.ask(
        IssueGrantAndClaimArgs(
            **kept_for_worker(execution_id),
            lease_id=caller.bed.new_id(),
            attempt_id=caller.bed.new_id(),
            lease_ttl_ms=TTL_MS,
        )
    )


async def claiming_again_with_a_grant(caller):
    claim = await started(caller)
    await caller.ask(DelayExecutionArgs(**held(claim), delay_until=caller.bed.clock.now_ms))
    place = kept_for_worker(claim.execution_id)
    await caller.ask(IssueClaimGrantArgs(**place, grant_ttl_ms=TTL_MS))
    await caller.ask(
        ClaimResumedExecutionArgs(
            **place, lease_id=caller.bed.new_id(), lease_ttl_ms=TTL_MS, current_attempt_index=0
        )
    )


async def running_out_of_time(caller):
    policy = ExecutionPolicy(
        timeout_policy=TimeoutPolicy(attempt_timeout_ms=DELAY_MS, execution_deadline_ms=2 * DELAY_MS)
    )
    await started(caller, policy=policy)
    await created(caller, policy=policy)
    await caller.pass_time(3 * DELAY_MS)


async def writing_frames(caller):
    claim = await started(caller)
    await caller.ask(written(claim, b"first"))
    await caller.ask(written(claim, b"last", retention_maxlen=1))
    await caller.ask(written(claim, b'{"a":1}', mode=SummaryMode()))
    await caller.ask(written(claim, b"live", mode=BestEffortMode(ttl_ms=1_000)))
    await caller.pass_time(DELAY_MS)
    await caller.ask(
        TailFramesArgs(execution_id=claim.execution_id, attempt_index=0, after=StreamCursor("0-0"))
    )
    await completed(caller, claim)


async def writing_frames_side_by_side(caller):
    claim = await started(caller)
    await caller.ask_at_once([written(claim, b"%d" % number) for number in range(5)])
    await caller.ask_at_once([written(claim, b'{"a":%d}' % n, mode=SummaryMode()) for n in range(3)])


async def recording_steps(caller):
    claim = await started(caller, policy=POLICY)
    for ordinal in range(2):
        await caller.ask(RecordStepArgs(**held(claim), name="step", ordinal=ordinal, value=b"1"))
    wake_at = caller.bed.clock.now_ms + DELAY_MS
    await caller.ask(RecordSleepArgs(**held(claim), name="sleep", ordinal=0, wake_at=wake_at))
    await caller.ask(ReadJournalArgs(execution_id=claim.execution_id))
    await failed(caller, claim)


async def labelling_side_by_side(caller):
    claim = await started(caller)
    execution_id = claim.execution_id
    waiting = await created(caller)
    await caller.ask_at_once(
        [
            SetExecutionTagArgs(execution_id=execution_id, key="owner.name", value="first"),
            SetExecutionTagsArgs(execution_id=execution_id, tags={"owner.name": "second"}),
            ChangePriorityArgs(execution_id=waiting, new_priority=1),
            ChangePriorityArgs(execution_id=waiting, new_priority=2),
        ]
    )
    await caller.ask(UpdateProgressArgs(**owned(claim), progress_pct=50, progress_message="half"))


SCENARIOS = [
    creating_with_a_key_and_completing,
    failing_and_retrying,
    failing_for_good,
    waiting_for_a_signal,
    waiting_in_vain,
    a_signal_that_comes_early,
    waitpoints_that_nobody_uses,
    an_approval_after_a_rotation,
    an_operator_resumes_and_cancels,
    sleeping,
    a_flow_of_three_in_a_row,
    a_flow_in_which_one_is_enough,
    a_flow_whose_first_member_fails,
    a_flow_built_piece_by_piece,
    a_flow_that_is_cancelled,
    a_flow_that_is_cancelled_in_the_background,
    a_flow_that_is_replayed,
    waiting_for_children,
    replaying,
    losing_a_lease,
    revoking_and_reclaiming,
    claiming_with_grants,
    claiming_at_once,
    claiming_again_with_a_grant,
    running_out_of_time,
    writing_frames,
    writing_frames_side_by_side,
    recording_steps,
    labelling_side_by_side,
]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("store", STORES)
async def test_a_lost_call_leaves_what_no_lost_call_leaves(tmp_path, store, scenario):
    assert not await lost(store, tmp_path, scenario)

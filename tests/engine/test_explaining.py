"""The one reason why an execution does not run, and what would change it."""

import pytest

from flowfabric.contracts.blocking import BlockExecutionArgs, PauseExecutionArgs
from flowfabric.contracts.conditions import Composite, Count, CountKind, OperatorOnly, Single, TimeoutOnly
from flowfabric.contracts.executions import CancelExecutionArgs
from flowfabric.contracts.explaining import ExplainExecutionArgs, WaitingReason
from flowfabric.contracts.flows import FlowCancellationPolicy
from flowfabric.contracts.lanes import SetLaneStateArgs
from flowfabric.contracts.leases import ClaimBatchArgs, IssueClaimGrantArgs, RevokeLeaseArgs
from flowfabric.contracts.policy import ExecutionPolicy, RoutingRequirements
from flowfabric.contracts.states import BlockingReason, LaneState
from flowfabric.contracts.suspensions import FreshWaitpoint
from flowfabric.core.commands import ExpireLeaseArgs
from flowfabric.core.explaining import UNBLOCK_IT, Facts, explain
from flowfabric.core.records import Blocker, Flow, flow_identity
from flowfabric.core.rules.blocking import KIND_OF_REASON
from flowfabric.core.rules.transitions import add_blocker
from flowfabric.core.vocabulary import BlockerKind
from flowfabric.engine import explaining
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed
from flowfabric.testing.bed import INSTANCE, LANE, NAMESPACE, TTL_MS, WORKER
from flowfabric.testing.conformance.flows import graph
from flowfabric.testing.conformance.situations import SITUATION_STEPS, bring, seed_key, suspension
from flowfabric.testing.conformance.workers import registering

GPU = ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=("big", "gpu")))


@pytest.fixture
async def bed():
    async with Bed(MemoryStore()) as bed:
        await seed_key(bed)
        yield bed
        await bed.check()


async def why(bed, execution_id):
    return await bed.unchanging(ExplainExecutionArgs(execution_id=execution_id))


async def test_what_does_not_exist_or_is_of_another_namespace_has_no_explanation(bed):
    assert await why(bed, bed.new_execution_id()) is None
    ask = ExplainExecutionArgs(execution_id=await bed.create())
    assert await bed.execute(ask, namespace="other") is None


@pytest.mark.parametrize("situation", SITUATION_STEPS)
async def test_every_situation_is_explained(bed, situation):
    [place] = await bring(bed, situation, 1)
    found = await why(bed, place.execution_id)
    assert found.execution_id == place.execution_id
    assert found.sentence.endswith(".")
    assert bool(found.would_change_it) is (found.code is not WaitingReason.RUNNING)


async def test_without_a_worker_on_record_it_names_the_lane(bed):
    found = await why(bed, await bed.create())
    assert found.code is WaitingReason.NO_CAPABLE_WORKER
    assert repr(LANE) in found.sentence
    assert found.details["live_workers"] == 0


async def test_the_capabilities_are_named_that_no_live_worker_has(bed):
    execution_id = await bed.create(policy=GPU)
    await bed.execute(registering("a", capabilities=frozenset({"big", "fast"})))
    await bed.execute(registering("b"))
    found = await why(bed, execution_id)
    assert found.code is WaitingReason.NO_CAPABLE_WORKER
    assert found.details["missing_capabilities"] == ("gpu",)
    assert found.details["offered_capabilities"] == ("big", "fast")
    assert (found.details["live_workers"], found.details["capable_workers"]) == (2, 0)
    assert "big, gpu" in found.would_change_it


async def test_capabilities_of_two_workers_do_not_add_up(bed):
    """Each of them has one, so neither can run what needs both, and it is not taken for runnable."""
    execution_id = await bed.create(policy=GPU)
    for capability in ("big", "gpu"):
        await bed.execute(registering(capability, capabilities=frozenset({capability})))
        claiming = ClaimBatchArgs(
            lanes=(LANE,),
            worker_id=capability,
            worker_instance_id=capability,
            worker_capabilities=frozenset({capability}),
            lease_ttl_ms=TTL_MS,
            limit=1,
        )
        assert (await bed.execute(claiming)).claims == ()
    assert (await why(bed, execution_id)).code is WaitingReason.NO_CAPABLE_WORKER


@pytest.mark.parametrize("worker", [{"lanes": ("else",)}, {"draining": True}, {"ttl_ms": 1}])
async def test_a_worker_of_another_lane_one_that_drains_and_a_silent_one_do_not_count(bed, worker):
    await bed.execute(registering(**worker))
    execution_id = await bed.create()
    bed.clock.advance(2)
    assert (await why(bed, execution_id)).details["live_workers"] == 0


async def test_the_next_in_line_waits_for_a_free_worker(bed):
    await bed.execute(registering())
    found = await why(bed, await bed.create())
    assert found.code is WaitingReason.CLAIMABLE


async def test_what_is_more_urgent_or_older_comes_first(bed):
    await bed.execute(registering(capabilities=frozenset({"big", "gpu"})))
    await bed.create(priority=5)
    await bed.create(policy=GPU)
    bed.clock.advance(1)
    execution_id = await bed.create()
    bed.clock.advance(1)
    await bed.create()
    found = await why(bed, execution_id)
    assert found.code is WaitingReason.WAITING_ITS_TURN
    assert (found.details["ahead"], found.details["ahead_is_all"]) == (2, True)


async def test_the_queue_is_counted_up_to_a_bound(bed, monkeypatch):
    monkeypatch.setattr(explaining, "AHEAD_MAX", 2)
    await bed.execute(registering())
    ids = []
    for _ in range(4):
        ids.append(await bed.create())
        bed.clock.advance(1)
    found = await why(bed, ids[-1])
    assert (found.details["ahead"], found.details["ahead_is_all"]) == (2, False)
    assert "2 or more" in found.sentence


async def test_a_grant_names_who_has_it(bed):
    execution_id = await bed.create()
    grant = IssueClaimGrantArgs(
        execution_id=execution_id,
        lane_id=LANE,
        worker_id=WORKER,
        worker_instance_id=INSTANCE,
        grant_ttl_ms=1_000,
    )
    await bed.execute(grant)
    found = await why(bed, execution_id)
    assert found.code is WaitingReason.GRANTED
    assert found.details["worker_instance_id"] == INSTANCE
    bed.clock.advance(1_000)
    assert (await why(bed, execution_id)).code is WaitingReason.NO_CAPABLE_WORKER


async def test_a_delay_tells_until_when(bed):
    until = bed.clock.now_ms + 5_000
    found = await why(bed, await bed.create(delay_until=until))
    assert found.code is WaitingReason.NOT_DUE
    assert found.details["until_ms"] == until


async def test_open_upstreams_are_counted_and_named(bed):
    flow = await graph(bed, "abc")
    await flow.connect("ac bc")
    await flow.run("a")
    found = await why(bed, flow.ids["c"])
    assert found.code is WaitingReason.UPSTREAMS_OPEN
    assert (found.details["needed"], found.details["upstreams"]) == (1, (flow.ids["b"],))


async def test_a_member_of_a_cancelled_flow_is_not_given_out(bed):
    """For the moment between the cancelling of the flow and that of the member."""
    flow = await graph(bed, "a")
    execution = await bed.execution(flow.ids["a"])
    record = await bed.get(Flow, flow_identity(flow.flow_id))
    record.cancelled_at, record.cancellation_policy = bed.clock.now_ms, FlowCancellationPolicy.CANCEL_ALL
    found = explain(Facts(execution=execution, now=bed.clock.now_ms, flow=record))
    assert found.code is WaitingReason.FLOW_CANCELLED


async def test_a_lapsed_lease_waits_for_a_worker_that_reclaims(bed):
    claim = await bed.start()
    await bed.execute(RevokeLeaseArgs(execution_id=claim.execution_id, reason="stuck"))
    found = await why(bed, claim.execution_id)
    assert found.code is WaitingReason.LEASE_LAPSED
    assert "stuck" in found.sentence
    assert found.would_change_it.startswith("Start a worker")
    await bed.execute(registering("worker-2"))
    assert (await why(bed, claim.execution_id)).would_change_it == "The next free worker reclaims it."


async def test_a_lapsed_lease_of_paused_work_waits_for_the_operator(bed):
    claim = await bed.start()
    await bed.execute(registering("worker-2"))
    await bed.execute(PauseExecutionArgs(execution_id=claim.execution_id))
    await bed.advance(TTL_MS)
    assert "An operator ends the pause" in (await why(bed, claim.execution_id)).would_change_it


async def test_a_lapsed_lease_in_a_paused_lane_waits_for_the_lane(bed):
    claim = await bed.start()
    await bed.execute(registering("worker-2"))
    await bed.execute(SetLaneStateArgs(namespace=NAMESPACE, lane_id=LANE, state=LaneState.PAUSED))
    await bed.advance(TTL_MS)
    assert "is opened again" in (await why(bed, claim.execution_id)).would_change_it


async def test_an_unmarked_lease_that_has_run_out_counts_as_lapsed(bed):
    claim = await bed.start()
    bed.clock.advance(TTL_MS)
    assert (await why(bed, claim.execution_id)).code is WaitingReason.LEASE_LAPSED


async def test_a_grace_tells_when_it_ends(bed):
    claim = await bed.start()
    bed.clock.advance(TTL_MS)
    await bed.execute(ExpireLeaseArgs(execution_id=claim.execution_id, reclaim_grace_ms=500))
    found = await why(bed, claim.execution_id)
    assert found.details["reclaimable_at"] == bed.clock.now_ms + 500
    assert found.would_change_it.startswith("Its grace ends")


async def test_how_it_ended_and_by_whom(bed):
    execution_id = await bed.create()
    await bed.execute(CancelExecutionArgs(execution_id=execution_id, reason="not needed"))
    found = await why(bed, execution_id)
    assert (found.code, found.details["outcome"]) == (WaitingReason.ENDED, "cancelled")
    assert "not needed" in found.sentence


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (Single(waitpoint_key="wpk:a"), "a signal at 'wpk:a'"),
        (OperatorOnly(), "an operator"),
        (TimeoutOnly(), "its deadline"),
        (
            Composite(body=Count(n=2, count_kind=CountKind.DISTINCT_SOURCES, waitpoints=("wpk:a",))),
            "2 more of 2",
        ),
    ],
)
async def test_a_suspension_tells_what_is_missing(bed, condition, words):
    [place] = await bring(bed, "running", 1)
    deadline = bed.clock.now_ms + 1_000
    waitpoint = FreshWaitpoint(waitpoint_id=bed.new_id(), waitpoint_key="wpk:a")
    await bed.execute(
        suspension(bed, place, resume_condition=condition, waitpoints=(waitpoint,), timeout_at=deadline)
    )
    found = await why(bed, place.execution_id)
    assert found.code is WaitingReason.SUSPENDED
    assert words in found.sentence
    assert found.details["timeout_at"] == deadline


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (BlockerKind.OPERATOR, WaitingReason.PAUSED_BY_OPERATOR),
        (BlockerKind.LANE, WaitingReason.LANE_NOT_OPEN),
        (BlockerKind.DEPENDENCIES, WaitingReason.UPSTREAMS_OPEN),
        (BlockerKind.BUDGET, WaitingReason.BUDGET_EXHAUSTED),
        (BlockerKind.QUOTA, WaitingReason.QUOTA_EXHAUSTED),
        (BlockerKind.ROUTE, WaitingReason.NO_CAPABLE_WORKER),
    ],
)
async def test_every_blocker_has_its_words(bed, kind, code):
    execution = await bed.execution(await bed.create())
    add_blocker(execution, Blocker(kind=kind, reason=BlockingReason.PAUSED_BY_POLICY, detail="as it is"))
    found = explain(Facts(execution=execution, now=bed.clock.now_ms))
    assert found.code is code
    assert found.would_change_it


async def test_what_was_put_aside_for_want_of_a_worker_tells_when_one_is_there(bed):
    await bed.execute(registering())
    execution_id = await bed.create()
    execution = await bed.execution(execution_id)
    add_blocker(execution, Blocker(kind=BlockerKind.ROUTE, reason=BlockingReason.WAITING_FOR_CAPABLE_WORKER))
    workers = await explaining.live_workers(bed.engine, execution, bed.clock.now_ms)
    found = explain(Facts(execution=execution, now=bed.clock.now_ms, workers=workers))
    assert "one can by now" in found.sentence
    assert found.would_change_it == UNBLOCK_IT


@pytest.mark.parametrize(
    "reason", [reason for reason in KIND_OF_REASON if reason is not BlockingReason.PAUSED_BY_OPERATOR]
)
async def test_what_was_blocked_by_hand_is_unblocked_by_hand(bed, reason):
    """No headroom that returns, no lane that opens and no worker that comes takes it away."""
    execution_id = await bed.create()
    await bed.execute(BlockExecutionArgs(execution_id=execution_id, blocking_reason=str(reason)))
    assert (await why(bed, execution_id)).would_change_it.endswith(UNBLOCK_IT.removeprefix("An"))

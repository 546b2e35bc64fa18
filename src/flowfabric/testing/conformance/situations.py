"""Executions in every situation there is, each brought there by the commands that lead to it.

A few situations have variants that matter to some command: due but not acted upon yet, kept for a
worker, waiting for the same attempt or for another one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from flowfabric.contracts.conditions import Single
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    CompleteExecutionArgs,
    DelayExecutionArgs,
    ExpireExecutionArgs,
    ExpireReason,
    FailExecutionArgs,
    PromoteDelayedArgs,
)
from flowfabric.contracts.flows import AddEdgesArgs, AddExecutionToFlowArgs, CreateFlowArgs, NewEdge
from flowfabric.contracts.ids import ExecutionId, WaitpointId, partition_of
from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs, WaitpointToken
from flowfabric.contracts.leases import (
    ClaimedWork,
    IssueClaimGrantArgs,
    IssueReclaimGrantArgs,
    MarkLeaseExpiredArgs,
    RevokeLeaseArgs,
)
from flowfabric.contracts.policy import ExecutionPolicy, FixedBackoff, RetryPolicy, TimeoutPolicy
from flowfabric.contracts.signals import DeliverSignalArgs
from flowfabric.contracts.states import BlockingReason, TerminalOutcome
from flowfabric.contracts.suspensions import FreshWaitpoint, SuspendExecutionArgs
from flowfabric.core.commands import ExpireLeaseArgs
from flowfabric.core.records import Blocker, Execution
from flowfabric.core.rules.transitions import add_blocker, end_execution
from flowfabric.core.state import Situation
from flowfabric.core.vocabulary import BlockerKind
from flowfabric.core.work import Envelope, Work, WorkingSet
from flowfabric.engine.commits import build_commit
from flowfabric.testing.bed import INSTANCE, LANE, NAMESPACE, TTL_MS, WORKER

if TYPE_CHECKING:
    from flowfabric.testing.bed import Bed

KID: Final = "k1"
SECRET_HEX: Final = "ab" * 32
KEY: Final = "wpk:1"
RETRY_DELAY_MS: Final = 1_000
DELAY_MS: Final = 5_000
DEADLINE_MS: Final = 10_000
POLICY: Final = ExecutionPolicy(
    retry_policy=RetryPolicy(max_retries=3, backoff=FixedBackoff(delay_ms=RETRY_DELAY_MS))
)
ATTEMPT_TIMEOUT_MS: Final = 10_000
TIMED_POLICY: Final = msgspec.structs.replace(
    POLICY, timeout_policy=TimeoutPolicy(attempt_timeout_ms=ATTEMPT_TIMEOUT_MS)
)
GRACE_MS: Final = 5_000


class Place(msgspec.Struct):
    """One execution, and what those who had to do with it remember."""

    execution_id: ExecutionId
    claim: ClaimedWork | None = None
    """The latest claim."""
    earlier: ClaimedWork | None = None
    """The claim before it, whose holder still believes in it."""
    waitpoint_id: WaitpointId | None = None
    token: WaitpointToken | None = None

    @property
    def held(self) -> ClaimedWork:
        """The latest claim, of a place that has one."""
        assert self.claim is not None
        return self.claim


Step: TypeAlias = Callable[["Bed", list[Place]], Awaitable[None]]


async def seed_key(bed: Bed) -> None:
    """Install the key that signs waitpoint tokens."""
    await bed.execute(SeedWaitpointHmacSecretArgs(kid=KID, secret_hex=SECRET_HEX))


async def bring(bed: Bed, name: str, count: int) -> list[Place]:
    """So many executions in the situation of this name."""
    places = [Place(execution_id=bed.new_execution_id()) for _ in range(count)]
    for step in SITUATION_STEPS[name]:
        await step(bed, places)
    return places


async def _all(bed: Bed, commands: list[Any]) -> list[Any]:
    answers = await bed.execute_many(commands)
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert not refused, refused[0]
    return answers


def _created(policy: ExecutionPolicy = POLICY, **fields: Any) -> Step:
    async def create(bed: Bed, places: list[Place]) -> None:
        for_all = {"policy": policy, **{name: found(bed) for name, found in fields.items()}}
        await _all(bed, [bed.creation(execution_id=place.execution_id, **for_all) for place in places])

    return create


async def _claimed(bed: Bed, places: list[Place]) -> None:
    answers = await _all(bed, [bed.claiming(place.execution_id) for place in places])
    for place, answer in zip(places, answers, strict=True):
        place.earlier, place.claim = place.claim, answer.work


def _after(milliseconds: int) -> Step:
    async def wait(bed: Bed, places: list[Place]) -> None:
        bed.clock.advance(milliseconds)

    return wait


def _each(make: Callable[[Place], Any]) -> Step:
    async def run(bed: Bed, places: list[Place]) -> None:
        await _all(bed, [make(place) for place in places])

    return run


def _each_at(make: Callable[[Bed, Place], Any]) -> Step:
    async def run(bed: Bed, places: list[Place]) -> None:
        await _all(bed, [make(bed, place) for place in places])

    return run


_lapse = _each(lambda place: MarkLeaseExpiredArgs(execution_id=place.execution_id))
_lapse_with_grace = _each(
    lambda place: ExpireLeaseArgs(execution_id=place.execution_id, reclaim_grace_ms=GRACE_MS)
)
_promote = _each(lambda place: PromoteDelayedArgs(execution_id=place.execution_id))
_revoke = _each(lambda place: RevokeLeaseArgs(execution_id=place.execution_id, reason="moved"))
_complete = _each(
    lambda place: CompleteExecutionArgs(
        execution_id=place.execution_id,
        fence=place.held.fence,
        attempt_index=place.held.attempt_index,
        result_payload=b"result",
    )
)
_cancel = _each(lambda place: CancelExecutionArgs(execution_id=place.execution_id, reason="unwanted"))
_expire = _each(
    lambda place: ExpireExecutionArgs(
        execution_id=place.execution_id, expire_reason=ExpireReason.EXECUTION_DEADLINE
    )
)


def signal(bed: Bed, place: Place, **fields: Any) -> DeliverSignalArgs:
    """The arguments that send a signal to the place's waitpoint."""
    assert place.waitpoint_id is not None
    assert place.token is not None
    defaults: dict[str, Any] = {
        "execution_id": place.execution_id,
        "waitpoint_id": place.waitpoint_id,
        "waitpoint_token": place.token,
        "signal_id": bed.new_id(),
        "signal_name": "go",
        "signal_category": "",
        "source_type": "tests",
        "source_identity": "someone",
    }
    return DeliverSignalArgs(**{**defaults, **fields})


_signal = _each_at(signal)


def _fail(category: str) -> Step:
    return _each(
        lambda place: FailExecutionArgs(
            execution_id=place.execution_id,
            fence=place.held.fence,
            attempt_index=place.held.attempt_index,
            failure_reason="it broke",
            failure_category=category,
        )
    )


def _delay(milliseconds: int) -> Step:
    return _each_at(
        lambda bed, place: DelayExecutionArgs(
            execution_id=place.execution_id,
            fence=place.held.fence,
            attempt_index=place.held.attempt_index,
            delay_until=bed.clock.now_ms + milliseconds,
        )
    )


async def _grant(bed: Bed, places: list[Place]) -> None:
    await _all(
        bed,
        [
            IssueClaimGrantArgs(
                execution_id=place.execution_id,
                lane_id=LANE,
                worker_id=WORKER,
                worker_instance_id=INSTANCE,
                grant_ttl_ms=TTL_MS,
            )
            for place in places
        ],
    )


async def _grant_reclaim(bed: Bed, places: list[Place]) -> None:
    await _all(
        bed,
        [
            IssueReclaimGrantArgs(
                execution_id=place.execution_id,
                lane_id=LANE,
                worker_id=WORKER,
                worker_instance_id=INSTANCE,
                grant_ttl_ms=TTL_MS,
            )
            for place in places
        ],
    )


def _suspend(timeout_ms: int | None = None) -> Step:
    async def suspend(bed: Bed, places: list[Place]) -> None:
        timeout_at = None if timeout_ms is None else bed.clock.now_ms + timeout_ms
        commands = [suspension(bed, place, timeout_at=timeout_at) for place in places]
        for place, answer in zip(places, await _all(bed, commands), strict=True):
            place.waitpoint_id, place.token = answer.details.waitpoint_id, answer.details.waitpoint_token

    return suspend


def suspension(bed: Bed, place: Place, **fields: Any) -> SuspendExecutionArgs:
    """The arguments that suspend a claimed execution on one waitpoint."""
    waitpoint = FreshWaitpoint(waitpoint_id=bed.new_id(), waitpoint_key=KEY)
    defaults: dict[str, Any] = {
        "execution_id": place.execution_id,
        "fence": place.held.fence,
        "attempt_index": place.held.attempt_index,
        "suspension_id": bed.new_id(),
        "waitpoints": (waitpoint,),
        "resume_condition": Single(waitpoint_key=KEY),
    }
    return SuspendExecutionArgs(**{**defaults, **fields})


async def plant(bed: Bed, execution_id: str, change: Callable[[Work, Execution], None]) -> None:
    """Change an execution past all commands, for what no command leads to."""
    loaded = await bed.store.load([f"{Execution.KIND}/{execution_id}"])
    working_set = WorkingSet()
    working_set.put_loaded(loaded.now, loaded.rows)
    work = Work(working_set, Envelope(request_id="planted"))
    change(work, work.edit(work.execution(execution_id)))
    commit = build_commit([work], working_set)
    assert commit is not None
    await bed.store.commit(commit)


def _planted(change: Callable[[Work, Execution], None]) -> Step:
    async def run(bed: Bed, places: list[Place]) -> None:
        for place in places:
            await plant(bed, place.execution_id, change)

    return run


def block(work: Work, execution: Execution) -> None:
    """Let an operator hold the execution back."""
    blocker = Blocker(kind=BlockerKind.OPERATOR, reason=BlockingReason.PAUSED_BY_OPERATOR, detail="paused")
    add_blocker(execution, blocker)


def skip(work: Work, execution: Execution) -> None:
    """Let the execution end because what it depends on cannot succeed."""
    end_execution(work, execution, TerminalOutcome.SKIPPED, release_reason="skipped")


async def _depend(bed: Bed, places: list[Place]) -> None:
    """Let each execution wait for another one of its flow."""
    for place in places:
        partition = partition_of(place.execution_id)
        flow_id = bed.new_flow_id(partition)
        upstream = bed.creation(execution_id=bed.new_execution_id(partition))
        await _all(bed, [CreateFlowArgs(flow_id=flow_id, flow_kind="dag", namespace=NAMESPACE), upstream])
        members = (upstream.execution_id, place.execution_id)
        await _all(bed, [AddExecutionToFlowArgs(flow_id=flow_id, execution_id=member) for member in members])
        edge = NewEdge(
            edge_id=bed.new_id(), upstream_execution_id=members[0], downstream_execution_id=members[1]
        )
        await _all(bed, [AddEdgesArgs(flow_id=flow_id, edges=(edge,), seal=True)])


_twice_claimed: Final = (_created(), _claimed, _after(TTL_MS), _lapse, _claimed)
"""A worker has lost the execution to another one, and does not know it."""

SITUATION_STEPS: Final[dict[str, tuple[Step, ...]]] = {
    "eligible": (_created(),),
    "eligible_overdue": (
        _created(execution_deadline_at=lambda bed: bed.clock.now_ms + DEADLINE_MS),
        _after(DEADLINE_MS),
    ),
    "eligible_granted": (_created(), _grant),
    "eligible_retry": (*_twice_claimed, _fail("error"), _after(RETRY_DELAY_MS), _promote),
    "eligible_resumed": (*_twice_claimed, _delay(0)),
    "eligible_resumed_granted": (*_twice_claimed, _delay(0), _grant),
    "eligible_signalled": (*_twice_claimed, _suspend(), _signal),
    "delayed": (_created(delay_until=lambda bed: bed.clock.now_ms + DELAY_MS),),
    "delayed_due": (_created(delay_until=lambda bed: bed.clock.now_ms + DELAY_MS), _after(DELAY_MS)),
    "delayed_retry": (*_twice_claimed, _fail("error")),
    "blocked": (_created(), _planted(block)),
    "blocked_dependencies": (_created(), _depend),
    "running": _twice_claimed,
    "running_timed_out": (_created(TIMED_POLICY), *_twice_claimed[1:], _after(ATTEMPT_TIMEOUT_MS)),
    "running_overdue": (*_twice_claimed, _after(TTL_MS)),
    "lease_expired": (*_twice_claimed, _after(TTL_MS), _lapse),
    "lease_expired_granted": (*_twice_claimed, _after(TTL_MS), _lapse, _grant_reclaim),
    "lease_expired_in_grace": (*_twice_claimed, _after(TTL_MS), _lapse_with_grace),
    "lease_expired_after_grace": (*_twice_claimed, _after(TTL_MS), _lapse_with_grace, _after(GRACE_MS)),
    "lease_revoked": (*_twice_claimed, _revoke),
    "suspended": (*_twice_claimed, _suspend()),
    "suspended_due": (*_twice_claimed, _suspend(DELAY_MS), _after(DELAY_MS)),
    "completed": (*_twice_claimed, _complete),
    "failed": (*_twice_claimed, _fail("permanent")),
    "cancelled": (*_twice_claimed, _cancel),
    "cancelled_unclaimed": (_created(), _cancel),
    "expired": (
        _created(execution_deadline_at=lambda bed: bed.clock.now_ms + TTL_MS + DEADLINE_MS),
        *_twice_claimed[1:],
        _after(DEADLINE_MS),
        _expire,
    ),
    "skipped": (_created(), _planted(skip)),
}
"""How to get to each situation, and to the variants whose names begin with it."""


def situation_named(name: str) -> Situation:
    """The situation of which a name is a variant."""
    matching = [situation for situation in Situation if name == situation or name.startswith(f"{situation}_")]
    return max(matching, key=len)

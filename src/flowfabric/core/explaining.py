"""Why an execution does not run, told from what is on record about it.

The rule this module keeps: there is one reason, the one that comes first, and with it what would
change it. Everything here is a pure function of facts; who gathers them is no matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.contracts.conditions import OperatorOnly, TimeoutOnly
from flowfabric.contracts.explaining import Detail, Explanation, WaitingReason
from flowfabric.contracts.policy import missing_capabilities
from flowfabric.contracts.states import LifecyclePhase
from flowfabric.core.conditions import unmet_nodes
from flowfabric.core.instants import shown_time
from flowfabric.core.records import (
    Blocker,
    Edge,
    EdgeGroup,
    Execution,
    Flow,
    Lane,
    Suspension,
    WorkerRegistration,
)
from flowfabric.core.rules.graph import cancels
from flowfabric.core.rules.joins import open_dependencies
from flowfabric.core.rules.lanes import GIVES_NO_WORK
from flowfabric.core.rules.replaying import replay_cap
from flowfabric.core.rules.suspending import resume_condition
from flowfabric.core.state import first_blocker, public_state
from flowfabric.core.vocabulary import BlockerKind, LeaseState

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowfabric.core.conditions import Unmet

NAMES_SHOWN_MAX: Final = 20
"""How many upstreams, workers or capabilities an explanation names."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What an explanation is made of, besides the execution itself."""

    execution: Execution
    now: int
    flow: Flow | None = None
    lane: Lane | None = None
    group: EdgeGroup | None = None
    open_edges: tuple[Edge, ...] = ()
    """Those incoming edges whose upstream has not ended."""
    suspension: Suspension | None = None
    workers: tuple[WorkerRegistration, ...] = ()
    """Those on record that are alive and claim from the execution's lane, up to a bound."""
    ahead: int = 0
    """How many executions of the lane are claimed first, up to a bound."""
    ahead_is_all: bool = True
    """False if there may be more than were counted."""


class Reason(msgspec.Struct, frozen=True):
    """One reason in words."""

    code: WaitingReason
    sentence: str
    would_change_it: str
    details: dict[str, Detail] = {}


def explain(facts: Facts) -> Explanation:
    """The one reason why an execution stands where it stands."""
    execution = facts.execution
    reason = _PHASES[execution.phase](facts)
    return Explanation(
        execution_id=execution.execution_id,
        public_state=public_state(execution),
        code=reason.code,
        sentence=reason.sentence,
        would_change_it=reason.would_change_it,
        details=reason.details,
    )


# Ended


def _ended(facts: Facts) -> Reason:
    execution = facts.execution
    why = execution.failure_reason or execution.cancellation_reason
    by = f" by {execution.cancelled_by}" if execution.cancelled_by else ""
    left = replay_cap(execution) - execution.replay_count
    spent = "Nothing: it has been replayed as often as it may be."
    return Reason(
        WaitingReason.ENDED,
        f"It has ended: {public_state(execution)}{by}{f': {why}' if why else ''}.",
        "Replay it to run it again." if left > 0 else spent,
        {
            "outcome": execution.outcome,
            "failure_reason": execution.failure_reason or None,
            "failure_category": execution.failure_category or None,
            "cancelled_by": execution.cancelled_by or None,
            "ended_at": execution.completed_at,
            "replays_left": max(0, left),
        },
    )


# Running, or thought to be


def _active(facts: Facts) -> Reason:
    execution, lease = facts.execution, facts.execution.lease
    assert lease is not None
    if lease.state is LeaseState.HELD and lease.expires_at > facts.now:
        ends = shown_time(lease.expires_at)
        details: dict[str, Detail] = {
            "worker_instance_id": lease.worker_instance_id,
            "lease_expires_at": lease.expires_at,
            "attempt_index": execution.attempt_count - 1,
        }
        sentence = f"It runs on {lease.worker_instance_id}, whose lease ends at {ends} unless it is renewed."
        return Reason(WaitingReason.RUNNING, sentence, "", details)
    return _lapsed(facts)


def _lapsed(facts: Facts) -> Reason:
    lease = facts.execution.lease
    assert lease is not None
    fate = {
        LeaseState.HELD: f"ran out at {shown_time(lease.expires_at)}",
        LeaseState.EXPIRED: f"ran out at {shown_time(lease.expires_at)}",
        LeaseState.REVOKED: f"was revoked: {lease.revoke_reason or 'no reason was given'}",
    }[lease.state]
    details: dict[str, Detail] = {
        "lease_state": lease.state,
        "worker_instance_id": lease.worker_instance_id,
        "lease_expired_at": lease.expires_at,
        "reclaimable_at": lease.reclaimable_at,
        **_worker_details(facts),
    }
    sentence = f"The lease of {lease.worker_instance_id} {fate}. It waits for another worker to reclaim it."
    if facts.execution.pause_reason is not None:
        change = "An operator ends the pause, which keeps it from being reclaimed."
    elif _lane_is_shut(facts):
        change = f"Its lane {facts.execution.lane_id!r} is opened again; until then it gives nothing out."
    elif lease.reclaimable_at is not None and lease.reclaimable_at > facts.now:
        change = f"Its grace ends at {shown_time(lease.reclaimable_at)}; then a worker may reclaim it."
    elif _capable(facts):
        change = "The next free worker reclaims it."
    else:
        change = _wanted_worker(facts)
    return Reason(WaitingReason.LEASE_LAPSED, sentence, change, details)


def _lane_is_shut(facts: Facts) -> bool:
    return facts.lane is not None and facts.lane.state in GIVES_NO_WORK


# Suspended


def _suspended(facts: Facts) -> Reason:
    suspension = facts.suspension
    if suspension is None:
        words = "It is suspended."
        return Reason(WaitingReason.SUSPENDED, words, "An operator resumes it.", {})
    condition = resume_condition(suspension)
    unmet = tuple(unmet_nodes(condition, suspension.satisfiers))
    if isinstance(condition, TimeoutOnly):
        wanted = "its deadline"
    elif isinstance(condition, OperatorOnly) or not unmet:
        wanted = "an operator"
    else:
        wanted = " and ".join(map(_unmet_words, unmet[:NAMES_SHOWN_MAX]))
    deadline = suspension.timeout_at
    strikes = "" if deadline is None else f" At {shown_time(deadline)}: {suspension.timeout_behavior}."
    return Reason(
        WaitingReason.SUSPENDED,
        f"It is suspended ({suspension.reason_code}) and waits for {wanted}.{strikes}",
        _resuming(unmet, deadline),
        {
            "suspension_id": suspension.suspension_id,
            "reason_code": suspension.reason_code,
            "waitpoints": suspension.waitpoint_keys,
            "missing": tuple(map(_unmet_words, unmet[:NAMES_SHOWN_MAX])),
            "timeout_at": deadline,
            "timeout_behavior": suspension.timeout_behavior,
        },
    )


def _unmet_words(node: Unmet) -> str:
    what = "a signal" if node.signal_name is None else f"the signal {node.signal_name!r}"
    places = ", ".join(repr(key) for key in node.waitpoint_keys)
    if node.needed == 1:
        return f"{what} at {places}"
    return f"{node.needed - node.received} more of {node.needed} times {what} at {places}"


def _resuming(unmet: tuple[Unmet, ...], deadline: int | None) -> str:
    ways = ["The signals that are missing"] if unmet else []
    ways.append("an operator who resumes it" if ways else "An operator who resumes it")
    if deadline is not None:
        ways.append("its deadline")
    return f"{', or '.join(ways)}."


# Runnable


def _runnable(facts: Facts) -> Reason:
    execution, flow = facts.execution, facts.flow
    if flow is not None and flow.cancelled_at is not None and cancels(flow, execution):
        sentence = f"Its flow was cancelled at {shown_time(flow.cancelled_at)}; it is not given out any more."
        return Reason(
            WaitingReason.FLOW_CANCELLED,
            sentence,
            "Nothing: it is cancelled in a moment.",
            {"flow_id": flow.flow_id, "cancelled_at": flow.cancelled_at, "reason": flow.cancel_reason},
        )
    blocker = first_blocker(execution)
    if blocker is not None:
        return _BLOCKERS[blocker.kind](facts, blocker)
    grant = execution.grant
    if grant is not None and grant.expires_at > facts.now:
        ends = shown_time(grant.expires_at)
        return Reason(
            WaitingReason.GRANTED,
            f"It is reserved for {grant.worker_instance_id} until {ends}, which has not claimed it yet.",
            "That worker claims it, or the grant runs out.",
            {"worker_instance_id": grant.worker_instance_id, "grant_expires_at": grant.expires_at},
        )
    return _queued(facts)


def _queued(facts: Facts) -> Reason:
    if not _capable(facts):
        return _unserved(facts)
    details: dict[str, Detail] = {
        "ahead": facts.ahead,
        "ahead_is_all": facts.ahead_is_all,
        **_worker_details(facts),
    }
    if facts.ahead:
        count = f"{facts.ahead}" if facts.ahead_is_all else f"{facts.ahead} or more"
        return Reason(
            WaitingReason.WAITING_ITS_TURN,
            f"It waits its turn in lane {facts.execution.lane_id!r}: {count} executions come before it.",
            "Workers get through them, more workers come, or its priority is raised.",
            details,
        )
    sentence = f"It is the next in lane {facts.execution.lane_id!r}."
    return Reason(WaitingReason.CLAIMABLE, sentence, "The next free worker of the lane claims it.", details)


def _unserved(facts: Facts) -> Reason:
    execution = facts.execution
    if not facts.workers:
        sentence = f"No live worker on record claims from lane {execution.lane_id!r}."
    else:
        lacking = ", ".join(_best_missing(facts))
        sentence = f"No live worker of lane {execution.lane_id!r} offers all it requires; missing: {lacking}."
    return Reason(WaitingReason.NO_CAPABLE_WORKER, sentence, _wanted_worker(facts), _worker_details(facts))


def _wanted_worker(facts: Facts) -> str:
    required = facts.execution.required_capabilities
    offer = f" and offers {', '.join(required)}" if required else ""
    return f"Start a worker that claims from lane {facts.execution.lane_id!r}{offer}."


def _capable(facts: Facts) -> list[WorkerRegistration]:
    required = facts.execution.required_capabilities
    return [worker for worker in facts.workers if not missing_capabilities(required, worker.capabilities)]


def _best_missing(facts: Facts) -> tuple[str, ...]:
    """What the worker lacks that lacks least."""
    required = facts.execution.required_capabilities
    lacking = [missing_capabilities(required, worker.capabilities) for worker in facts.workers]
    return min(lacking, key=len, default=required)


def _worker_details(facts: Facts) -> dict[str, Detail]:
    offered = {capability for worker in facts.workers for capability in worker.capabilities}
    return {
        "lane_id": facts.execution.lane_id,
        "required_capabilities": facts.execution.required_capabilities,
        "missing_capabilities": () if _capable(facts) else _best_missing(facts),
        "offered_capabilities": tuple(sorted(offered)[:NAMES_SHOWN_MAX]),
        "live_workers": len(facts.workers),
        "capable_workers": len(_capable(facts)),
    }


# Blocked

UNBLOCK_IT: Final = "An operator unblocks it."
"""What takes a reason away that was set by hand."""


def _by_operator(facts: Facts, blocker: Blocker) -> Reason:
    said = f": {blocker.detail}" if blocker.detail else ""
    return Reason(
        WaitingReason.PAUSED_BY_OPERATOR,
        f"An operator has paused it{said}.",
        UNBLOCK_IT,
        _blocker_details(facts, blocker),
    )


def _by_lane(facts: Facts, blocker: Blocker) -> Reason:
    said = f": {blocker.detail}" if blocker.detail else ""
    return Reason(
        WaitingReason.LANE_NOT_OPEN,
        f"Its lane {facts.execution.lane_id!r} gives nothing out{said}.",
        "The lane is opened again." if _lane_is_shut(facts) else UNBLOCK_IT,
        {"lane_id": facts.execution.lane_id, **_blocker_details(facts, blocker)},
    )


def _by_dependencies(facts: Facts, blocker: Blocker) -> Reason:
    upstreams = tuple(dict.fromkeys(edge.upstream_execution_id for edge in facts.open_edges))
    needed = 0 if facts.group is None else open_dependencies(facts.group)
    shown = ", ".join(upstreams[:3]) + (" and others" if len(upstreams) > 3 else "")  # noqa: PLR2004
    return Reason(
        WaitingReason.UPSTREAMS_OPEN,
        f"It waits for {needed} of {len(upstreams)} upstreams that have not ended to succeed: {shown}.",
        "They succeed. If too many of them fail, it is skipped.",
        {
            "flow_id": facts.execution.flow_id,
            "needed": needed,
            "open_upstreams": len(upstreams),
            "upstreams": upstreams[:NAMES_SHOWN_MAX],
        },
    )


def _by_time(facts: Facts, blocker: Blocker) -> Reason:
    until = blocker.until_ms or 0
    if until <= facts.now:
        change = "The background duty that ends delays runs; make sure that a worker or a server is up."
    else:
        change = f"Time passes; it is due at {shown_time(until)}."
    return Reason(
        WaitingReason.NOT_DUE,
        f"It is not due before {shown_time(until)} ({blocker.reason.replace('_', ' ')}).",
        change,
        {"until_ms": until, **_blocker_details(facts, blocker)},
    )


def _by_budget(facts: Facts, blocker: Blocker) -> Reason:
    said = f": {blocker.detail}" if blocker.detail else ""
    return Reason(
        WaitingReason.BUDGET_EXHAUSTED,
        f"A budget that it counts against is used up{said}.",
        "The budget is raised or reset." if blocker.waits_for else UNBLOCK_IT,
        _blocker_details(facts, blocker),
    )


def _by_quota(facts: Facts, blocker: Blocker) -> Reason:
    said = f": {blocker.detail}" if blocker.detail else ""
    return Reason(
        WaitingReason.QUOTA_EXHAUSTED,
        f"A quota lets no more through for now{said}.",
        "The window moves on, or running work ends." if blocker.waits_for else UNBLOCK_IT,
        _blocker_details(facts, blocker),
    )


def _by_route(facts: Facts, blocker: Blocker) -> Reason:
    if _capable(facts):
        sentence, change = "It was put aside because no worker could run it; one can by now.", UNBLOCK_IT
    else:
        unserved = _unserved(facts)
        sentence, change = unserved.sentence, f"{unserved.would_change_it} Then an operator unblocks it."
    return Reason(
        WaitingReason.NO_CAPABLE_WORKER,
        sentence,
        change,
        {**_worker_details(facts), **_blocker_details(facts, blocker)},
    )


def _blocker_details(facts: Facts, blocker: Blocker) -> dict[str, Detail]:
    return {
        "detail": blocker.detail or None,
        "since": facts.execution.last_transition_at,
        "all_blockers": tuple(str(other.kind) for other in facts.execution.blockers),
    }


_BLOCKERS: Final[dict[BlockerKind, Callable[[Facts, Blocker], Reason]]] = {
    BlockerKind.OPERATOR: _by_operator,
    BlockerKind.LANE: _by_lane,
    BlockerKind.DEPENDENCIES: _by_dependencies,
    BlockerKind.TIME: _by_time,
    BlockerKind.BUDGET: _by_budget,
    BlockerKind.QUOTA: _by_quota,
    BlockerKind.ROUTE: _by_route,
}

_PHASES: Final[dict[LifecyclePhase, Callable[[Facts], Reason]]] = {
    LifecyclePhase.RUNNABLE: _runnable,
    LifecyclePhase.ACTIVE: _active,
    LifecyclePhase.SUSPENDED: _suspended,
    LifecyclePhase.TERMINAL: _ended,
}

"""The execution's state machine: which states are legal, and how the words for them follow.

The rules this module keeps:

- An execution's *situation* is one row of ``SITUATIONS``; a record that fits no row is corrupt.
- The seven dimensions of the contracts' state vector are functions of the record. Nothing stores
  them, so nothing can leave one of them stale.
- Blockers have an order of precedence (``BLOCKER_ORDER``); the first one gives the words, all of
  them have to go before a claim.
- ``TRANSITIONS`` lists every step there is. The diagram in the documentation is drawn from it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.contracts.states import (
    AttemptState,
    BlockingReason,
    EligibilityState,
    LifecyclePhase,
    OwnershipState,
    PublicState,
    StateVector,
    TerminalOutcome,
)
from flowfabric.core.vocabulary import BlockerKind, Continuation, LeaseState

if TYPE_CHECKING:
    from flowfabric.core.records import Blocker, Execution

BLOCKER_ORDER: Final = {kind: place for place, kind in enumerate(BlockerKind)}

ELIGIBILITY_OF_BLOCKER: Final = {
    BlockerKind.OPERATOR: EligibilityState.BLOCKED_BY_OPERATOR,
    BlockerKind.LANE: EligibilityState.BLOCKED_BY_LANE_STATE,
    BlockerKind.DEPENDENCIES: EligibilityState.BLOCKED_BY_DEPENDENCIES,
    BlockerKind.TIME: EligibilityState.NOT_ELIGIBLE_UNTIL_TIME,
    BlockerKind.BUDGET: EligibilityState.BLOCKED_BY_BUDGET,
    BlockerKind.QUOTA: EligibilityState.BLOCKED_BY_QUOTA,
    BlockerKind.ROUTE: EligibilityState.BLOCKED_BY_ROUTE,
}

PUBLIC_OF_OUTCOME: Final = {
    TerminalOutcome.SUCCESS: PublicState.COMPLETED,
    TerminalOutcome.FAILED: PublicState.FAILED,
    TerminalOutcome.CANCELLED: PublicState.CANCELLED,
    TerminalOutcome.EXPIRED: PublicState.EXPIRED,
    TerminalOutcome.SKIPPED: PublicState.SKIPPED,
}

PUBLIC_OF_ELIGIBILITY: Final = {
    EligibilityState.ELIGIBLE_NOW: PublicState.WAITING,
    EligibilityState.NOT_ELIGIBLE_UNTIL_TIME: PublicState.DELAYED,
    EligibilityState.BLOCKED_BY_DEPENDENCIES: PublicState.WAITING_CHILDREN,
    EligibilityState.BLOCKED_BY_BUDGET: PublicState.RATE_LIMITED,
    EligibilityState.BLOCKED_BY_QUOTA: PublicState.RATE_LIMITED,
    EligibilityState.BLOCKED_BY_ROUTE: PublicState.WAITING,
    EligibilityState.BLOCKED_BY_LANE_STATE: PublicState.WAITING,
    EligibilityState.BLOCKED_BY_OPERATOR: PublicState.WAITING,
}

OWNERSHIP_OF_LEASE: Final = {
    LeaseState.HELD: OwnershipState.LEASED,
    LeaseState.EXPIRED: OwnershipState.LEASE_EXPIRED_RECLAIMABLE,
    LeaseState.REVOKED: OwnershipState.LEASE_REVOKED,
}

ATTEMPT_STATE_OF_CONTINUATION: Final = {
    Continuation.FIRST: AttemptState.PENDING_FIRST_ATTEMPT,
    Continuation.RETRY: AttemptState.PENDING_RETRY_ATTEMPT,
    Continuation.REPLAY: AttemptState.PENDING_REPLAY_ATTEMPT,
    Continuation.RESUME: AttemptState.ATTEMPT_INTERRUPTED,
    Continuation.NONE: AttemptState.NONE,
}


def first_blocker(execution: Execution) -> Blocker | None:
    """The blocker that takes precedence, or None when nothing blocks the execution."""
    if not execution.blockers:
        return None
    return min(execution.blockers, key=lambda blocker: BLOCKER_ORDER[blocker.kind])


def is_terminal(execution: Execution) -> bool:
    """True once the execution has an outcome."""
    return execution.phase is LifecyclePhase.TERMINAL


def is_eligible(execution: Execution) -> bool:
    """True if the execution is runnable and nothing blocks it."""
    return execution.phase is LifecyclePhase.RUNNABLE and not execution.blockers


def ownership_state(execution: Execution) -> OwnershipState:
    """Who owns the execution."""
    if execution.lease is None:
        return OwnershipState.UNOWNED
    return OWNERSHIP_OF_LEASE[execution.lease.state]


def eligibility_state(execution: Execution) -> EligibilityState:
    """Whether the execution may be claimed, and what stands in the way."""
    if execution.phase is not LifecyclePhase.RUNNABLE:
        return EligibilityState.NOT_APPLICABLE
    blocker = first_blocker(execution)
    return EligibilityState.ELIGIBLE_NOW if blocker is None else ELIGIBILITY_OF_BLOCKER[blocker.kind]


def blocking_reason(execution: Execution) -> BlockingReason:
    """What the execution waits for."""
    if execution.phase is LifecyclePhase.SUSPENDED:
        return execution.suspended_reason
    if execution.phase is LifecyclePhase.RUNNABLE:
        blocker = first_blocker(execution)
        return BlockingReason.WAITING_FOR_WORKER if blocker is None else blocker.reason
    if execution.lease is not None and execution.lease.state is not LeaseState.HELD:
        return BlockingReason.WAITING_FOR_WORKER
    return BlockingReason.NONE


def blocking_detail(execution: Execution) -> str:
    """A line for operators that goes with ``blocking_reason``; empty when nothing blocks."""
    if execution.phase is LifecyclePhase.RUNNABLE:
        blocker = first_blocker(execution)
        return "" if blocker is None else blocker.detail
    lease = execution.lease
    if lease is not None and lease.state is LeaseState.EXPIRED:
        return "lease expired, awaiting reclaim"
    if lease is not None and lease.state is LeaseState.REVOKED:
        return f"lease revoked: {lease.revoke_reason}"
    return ""


def attempt_state(execution: Execution) -> AttemptState:
    """Where the execution stands with its attempts."""
    if execution.phase is LifecyclePhase.TERMINAL:
        if execution.attempt is not None:
            return AttemptState.ATTEMPT_TERMINAL
        return ATTEMPT_STATE_OF_CONTINUATION[execution.continuation]
    if execution.lease is not None and execution.lease.state is LeaseState.HELD:
        return AttemptState.RUNNING_ATTEMPT
    if execution.lease is not None:
        return AttemptState.ATTEMPT_INTERRUPTED
    return ATTEMPT_STATE_OF_CONTINUATION[execution.continuation]


def public_state(execution: Execution) -> PublicState:
    """The one word that users see."""
    if execution.phase is LifecyclePhase.TERMINAL:
        return PUBLIC_OF_OUTCOME[execution.outcome]
    if execution.phase is LifecyclePhase.SUSPENDED:
        return PublicState.SUSPENDED
    if execution.phase is LifecyclePhase.ACTIVE:
        return PublicState.ACTIVE
    return PUBLIC_OF_ELIGIBILITY[eligibility_state(execution)]


def state_vector(execution: Execution) -> StateVector:
    """All seven dimensions."""
    return StateVector(
        lifecycle_phase=execution.phase,
        ownership_state=ownership_state(execution),
        eligibility_state=eligibility_state(execution),
        blocking_reason=blocking_reason(execution),
        terminal_outcome=execution.outcome,
        attempt_state=attempt_state(execution),
        public_state=public_state(execution),
    )


class Situation(StrEnum):
    """The legal states of an execution, named."""

    ELIGIBLE = "eligible"
    DELAYED = "delayed"
    BLOCKED = "blocked"
    RUNNING = "running"
    LEASE_EXPIRED = "lease_expired"
    LEASE_REVOKED = "lease_revoked"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SKIPPED = "skipped"


class Legal(msgspec.Struct, frozen=True, kw_only=True):
    """What the dimensions may be in one situation."""

    phase: LifecyclePhase
    ownership: OwnershipState
    eligibility: frozenset[EligibilityState]
    attempt: frozenset[AttemptState]
    outcome: TerminalOutcome


_PENDING: Final = frozenset(
    {
        AttemptState.PENDING_FIRST_ATTEMPT,
        AttemptState.PENDING_RETRY_ATTEMPT,
        AttemptState.PENDING_REPLAY_ATTEMPT,
        AttemptState.ATTEMPT_INTERRUPTED,
    }
)
_BLOCKED: Final = frozenset(ELIGIBILITY_OF_BLOCKER.values()) - {EligibilityState.NOT_ELIGIBLE_UNTIL_TIME}
_NOT_APPLICABLE: Final = frozenset({EligibilityState.NOT_APPLICABLE})
_INTERRUPTED: Final = frozenset({AttemptState.ATTEMPT_INTERRUPTED})


def _runnable(eligibility: frozenset[EligibilityState]) -> Legal:
    return Legal(
        phase=LifecyclePhase.RUNNABLE,
        ownership=OwnershipState.UNOWNED,
        eligibility=eligibility,
        attempt=_PENDING,
        outcome=TerminalOutcome.NONE,
    )


def _active(ownership: OwnershipState, attempt: AttemptState) -> Legal:
    return Legal(
        phase=LifecyclePhase.ACTIVE,
        ownership=ownership,
        eligibility=_NOT_APPLICABLE,
        attempt=frozenset({attempt}),
        outcome=TerminalOutcome.NONE,
    )


def _terminal(outcome: TerminalOutcome, attempt: frozenset[AttemptState]) -> Legal:
    return Legal(
        phase=LifecyclePhase.TERMINAL,
        ownership=OwnershipState.UNOWNED,
        eligibility=_NOT_APPLICABLE,
        attempt=attempt,
        outcome=outcome,
    )


_ENDED: Final = frozenset({AttemptState.ATTEMPT_TERMINAL})
_ENDED_OR_NEVER_RUN: Final = _ENDED | {
    AttemptState.PENDING_FIRST_ATTEMPT,
    AttemptState.PENDING_REPLAY_ATTEMPT,
}

SITUATIONS: Final[dict[Situation, Legal]] = {
    Situation.ELIGIBLE: _runnable(frozenset({EligibilityState.ELIGIBLE_NOW})),
    Situation.DELAYED: _runnable(frozenset({EligibilityState.NOT_ELIGIBLE_UNTIL_TIME})),
    Situation.BLOCKED: _runnable(_BLOCKED),
    Situation.RUNNING: _active(OwnershipState.LEASED, AttemptState.RUNNING_ATTEMPT),
    Situation.LEASE_EXPIRED: _active(
        OwnershipState.LEASE_EXPIRED_RECLAIMABLE, AttemptState.ATTEMPT_INTERRUPTED
    ),
    Situation.LEASE_REVOKED: _active(OwnershipState.LEASE_REVOKED, AttemptState.ATTEMPT_INTERRUPTED),
    Situation.SUSPENDED: Legal(
        phase=LifecyclePhase.SUSPENDED,
        ownership=OwnershipState.UNOWNED,
        eligibility=_NOT_APPLICABLE,
        attempt=_INTERRUPTED,
        outcome=TerminalOutcome.NONE,
    ),
    Situation.COMPLETED: _terminal(TerminalOutcome.SUCCESS, _ENDED),
    Situation.FAILED: _terminal(TerminalOutcome.FAILED, _ENDED),
    Situation.CANCELLED: _terminal(TerminalOutcome.CANCELLED, _ENDED_OR_NEVER_RUN),
    Situation.EXPIRED: _terminal(TerminalOutcome.EXPIRED, _ENDED_OR_NEVER_RUN),
    Situation.SKIPPED: _terminal(TerminalOutcome.SKIPPED, _ENDED | {AttemptState.NONE}),
}

_ENDINGS: Final = (Situation.CANCELLED, Situation.EXPIRED)
_RUNNABLE: Final = (Situation.ELIGIBLE, Situation.DELAYED, Situation.BLOCKED)
_REPLAYED: Final = (Situation.ELIGIBLE, Situation.BLOCKED)
_LAPSED: Final = (Situation.LEASE_EXPIRED, Situation.LEASE_REVOKED)

TRANSITIONS: Final[dict[Situation, tuple[Situation, ...]]] = {
    Situation.ELIGIBLE: (Situation.RUNNING, Situation.BLOCKED, Situation.SKIPPED, *_ENDINGS),
    Situation.DELAYED: (Situation.ELIGIBLE, Situation.BLOCKED, Situation.SKIPPED, *_ENDINGS),
    Situation.BLOCKED: (Situation.ELIGIBLE, Situation.DELAYED, Situation.SKIPPED, *_ENDINGS),
    Situation.RUNNING: (
        *_RUNNABLE,
        *_LAPSED,
        Situation.SUSPENDED,
        Situation.COMPLETED,
        Situation.FAILED,
        Situation.SKIPPED,
        *_ENDINGS,
    ),
    Situation.LEASE_EXPIRED: (
        Situation.RUNNING,
        Situation.FAILED,
        Situation.SKIPPED,
        *_ENDINGS,
    ),
    Situation.LEASE_REVOKED: (
        Situation.RUNNING,
        Situation.FAILED,
        Situation.SKIPPED,
        *_ENDINGS,
    ),
    Situation.SUSPENDED: (*_RUNNABLE, Situation.FAILED, Situation.SKIPPED, *_ENDINGS),
    Situation.COMPLETED: _REPLAYED,
    Situation.FAILED: _REPLAYED,
    Situation.CANCELLED: _REPLAYED,
    Situation.EXPIRED: _REPLAYED,
    Situation.SKIPPED: _REPLAYED,
}
"""From each situation, where one command can lead besides staying where it is."""


def situation_of(execution: Execution) -> Situation | None:
    """The row of ``SITUATIONS`` that the execution is in; None if its record is corrupt."""
    vector = state_vector_or_none(execution)
    if vector is None:
        return None
    for situation, legal in SITUATIONS.items():
        if (
            vector.lifecycle_phase is legal.phase
            and vector.ownership_state is legal.ownership
            and vector.eligibility_state in legal.eligibility
            and vector.attempt_state in legal.attempt
            and vector.terminal_outcome is legal.outcome
        ):
            return situation
    return None


def state_vector_or_none(execution: Execution) -> StateVector | None:
    """The state vector, or None for a terminal record without an outcome."""
    if is_terminal(execution) and execution.outcome is TerminalOutcome.NONE:
        return None
    return state_vector(execution)

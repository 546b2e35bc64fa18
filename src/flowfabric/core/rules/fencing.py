"""Who may act on a running attempt.

A fence is the triple (lease id, lease epoch, attempt id). It is compared as a whole, on every
store, because an epoch alone can repeat after a failover. The checks run in this order, and the
first that fails decides the error: phase, revocation, expiry, identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from flowfabric import errors
from flowfabric.contracts.handles import Handle, HandleKind, HandlePayload, encode_handle
from flowfabric.contracts.ids import (
    OPERATOR_OVERRIDE,
    LeaseFence,
)
from flowfabric.contracts.states import LifecyclePhase
from flowfabric.core.records import Attempt, Execution, Lease, ReleasedLease
from flowfabric.core.registry import RULES
from flowfabric.core.vocabulary import LeaseState

if TYPE_CHECKING:
    from flowfabric.contracts.base import Command
    from flowfabric.core.work import Work

R = TypeVar("R")

_encode = msgspec.msgpack.Encoder().encode


def fence_from_parts(
    lease_id: str | None, lease_epoch: int | None, attempt_id: str | None
) -> LeaseFence | None:
    """Join three optional fields into a fence.

    Raises:
        PartialFenceTriple: some of the three are given and some are not.
    """
    parts = (lease_id, lease_epoch, attempt_id)
    if all(part is None for part in parts):
        return None
    if lease_id is None or lease_epoch is None or attempt_id is None:
        raise errors.PartialFenceTriple
    return msgspec.convert(
        {"lease_id": lease_id, "lease_epoch": lease_epoch, "attempt_id": attempt_id}, LeaseFence
    )


def not_active(execution: Execution) -> errors.ExecutionNotActive:
    """The refusal for an execution that nobody runs, with what its caller needs to reconcile."""
    return errors.ExecutionNotActive(
        terminal_outcome=execution.outcome,
        lease_epoch=execution.lease_epoch,
        lifecycle_phase=execution.phase,
        attempt_id="" if execution.attempt is None else execution.attempt.attempt_id,
    )


def check_lease(work: Work, execution: Execution, fence: LeaseFence | None) -> tuple[Lease, Attempt]:
    """Make sure that the lease is alive and, with a fence, that it is the caller's.

    Raises:
        ExecutionNotActive, LeaseRevoked, LeaseExpired, StaleLease: in this order.
    """
    lease, attempt = execution.lease, execution.attempt
    if execution.phase is not LifecyclePhase.ACTIVE or lease is None or attempt is None:
        raise not_active(execution)
    if lease.state is LeaseState.REVOKED:
        raise errors.LeaseRevoked(execution_id=execution.execution_id)
    if lease.state is LeaseState.EXPIRED or lease.expires_at <= work.now:
        raise errors.LeaseExpired(execution_id=execution.execution_id, expired_at=lease.expires_at)
    if fence is not None and not _is_current(fence, lease, attempt):
        raise errors.StaleLease(execution_id=execution.execution_id, current_epoch=lease.epoch)
    return lease, attempt


def has_lapsed(work: Work, execution: Execution) -> bool:
    """Whether the lease was revoked or is past its expiry, marked or not."""
    lease = execution.lease
    if execution.phase is not LifecyclePhase.ACTIVE or lease is None:
        return False
    return lease.state is not LeaseState.HELD or lease.expires_at <= work.now


def _is_current(fence: LeaseFence, lease: Lease, attempt: Attempt) -> bool:
    return (
        fence.lease_id == lease.lease_id
        and fence.lease_epoch == lease.epoch
        and fence.attempt_id == attempt.attempt_id
    )


def fenced(
    work: Work,
    execution: Execution,
    fence: LeaseFence | None,
    source: str = "",
    attempt_index: int | None = None,
) -> tuple[Lease, Attempt]:
    """The lease and attempt that a fenced command acts on.

    Without a fence only an operator override passes, and only where the command has a ``source``.
    An attempt index is compared even then, so that an override cannot hit a later attempt.

    Raises:
        FenceRequired: no fence, and no override.
        ExecutionNotActive, LeaseRevoked, LeaseExpired, StaleLease: see ``check_lease``.
    """
    if fence is None and source != OPERATOR_OVERRIDE:
        raise errors.FenceRequired(execution_id=execution.execution_id)
    lease, attempt = check_lease(work, execution, fence)
    if attempt_index not in (None, attempt.attempt_index):
        raise errors.StaleLease(
            execution_id=execution.execution_id, current_attempt_index=attempt.attempt_index
        )
    return lease, attempt


def handle_of(work: Work, execution: Execution, kind: HandleKind, lease: Lease, attempt: Attempt) -> Handle:
    """The opaque token for the holder of a lease."""
    payload = HandlePayload(
        execution_id=execution.execution_id,
        attempt_index=attempt.attempt_index,
        attempt_id=attempt.attempt_id,
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
        lease_ttl_ms=lease.ttl_ms,
        lane_id=execution.lane_id,
        worker_instance_id=lease.worker_instance_id,
    )
    return encode_handle(work.envelope.backend, kind, payload)


def first_answer(execution: Execution, fence: LeaseFence | None, command: Command[R]) -> R | None:
    """The answer this fence already got for this kind of command, if it gave up its lease so."""
    released = execution.released
    if released is None or fence is None or released.operation != type(command).__name__:
        return None
    same = (
        fence.lease_id == released.lease_id
        and fence.lease_epoch == released.epoch
        and fence.attempt_id == released.attempt_id
    )
    if not same:
        return None
    answer: R = RULES[type(command)].outcome_decoder.decode(released.outcome)
    return answer


def remember_answer(
    execution: Execution, lease: Lease, attempt: Attempt, command: Command[Any], outcome: Any
) -> None:
    """Keep what the holder of a lease was answered when it gave the lease up."""
    execution.released = ReleasedLease(
        lease_id=lease.lease_id,
        epoch=lease.epoch,
        attempt_id=attempt.attempt_id,
        operation=type(command).__name__,
        outcome=_encode(outcome),
    )

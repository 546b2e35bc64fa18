"""What the tests of suspensions, waitpoints and signals share."""

from __future__ import annotations

from typing import Any

from flowfabric.contracts.conditions import ByName, Single, Wildcard
from flowfabric.contracts.ids import ExecutionId, LeaseFence
from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs, WaitpointToken
from flowfabric.contracts.signals import BufferSignalArgs, DeliverSignalArgs
from flowfabric.contracts.suspensions import (
    CreatePendingWaitpointArgs,
    ExecutionSuspended,
    FreshWaitpoint,
    SuspendExecutionArgs,
    SuspendOutcome,
    SuspendOutcomeDetails,
)
from flowfabric.core.records import Suspension, Waitpoint
from tests.core.harness import Rulebook, new_id

SECRET_HEX = "ab" * 32
OTHER_SECRET_HEX = "cd" * 32
KEY = "review"


def seed(book: Rulebook, kid: str = "k1", secret_hex: str = SECRET_HEX) -> None:
    """Install the first signing key."""
    book.run(SeedWaitpointHmacSecretArgs(kid=kid, secret_hex=secret_hex))


def named(name: str, key: str = KEY) -> Single:
    """The condition that one signal of this name comes."""
    return Single(waitpoint_key=key, matcher=ByName(name=name))


def anything(key: str = KEY) -> Single:
    """The condition that any signal comes."""
    return Single(waitpoint_key=key, matcher=Wildcard())


def fresh(key: str = KEY) -> FreshWaitpoint:
    """A waitpoint that the suspension opens."""
    return FreshWaitpoint(waitpoint_id=new_id(), waitpoint_key=key)


def suspend_args(execution_id: ExecutionId, fence: LeaseFence | None, **fields: Any) -> SuspendExecutionArgs:
    """A suspension that waits for any signal on one fresh waitpoint; any argument can be given."""
    defaults: dict[str, Any] = {
        "execution_id": execution_id,
        "fence": fence,
        "attempt_index": 0,
        "suspension_id": new_id(),
        "waitpoints": (fresh(),),
        "resume_condition": anything(),
    }
    return SuspendExecutionArgs(**{**defaults, **fields})


def suspend(
    book: Rulebook, execution_id: ExecutionId, fence: LeaseFence | None, **fields: Any
) -> SuspendOutcome:
    """Suspend an execution."""
    return book.run(suspend_args(execution_id, fence, **fields))


def suspended(book: Rulebook, **fields: Any) -> tuple[ExecutionId, SuspendOutcomeDetails]:
    """An execution that waits, and its waitpoints."""
    execution_id, fence = book.start()
    outcome = suspend(book, execution_id, fence, **fields)
    assert isinstance(outcome, ExecutionSuspended)
    return execution_id, outcome.details


def signal_args(
    execution_id: ExecutionId,
    waitpoint_id: str,
    token: WaitpointToken | str,
    name: str = "approve",
    **fields: Any,
) -> DeliverSignalArgs:
    """A signal; any argument can be given."""
    defaults: dict[str, Any] = {
        "execution_id": execution_id,
        "waitpoint_id": waitpoint_id,
        "signal_id": new_id(),
        "signal_name": name,
        "signal_category": "human",
        "source_type": "cli",
        "source_identity": "ana",
        "waitpoint_token": token if isinstance(token, WaitpointToken) else WaitpointToken(token),
    }
    return DeliverSignalArgs(**{**defaults, **fields})


def signal(
    book: Rulebook, execution_id: ExecutionId, waitpoint: Any, name: str = "approve", **fields: Any
) -> Any:
    """Send a signal to a waitpoint as it was handed out. Returns the effect, or the outcome."""
    args = signal_args(execution_id, waitpoint.waitpoint_id, waitpoint.waitpoint_token, name, **fields)
    outcome = book.run(args)
    return getattr(outcome, "effect", outcome)


def buffer_args(
    execution_id: ExecutionId, waitpoint: Any, name: str = "approve", **fields: Any
) -> BufferSignalArgs:
    """An early signal; any argument can be given."""
    defaults: dict[str, Any] = {
        "execution_id": execution_id,
        "waitpoint_id": waitpoint.waitpoint_id,
        "signal_id": new_id(),
        "signal_name": name,
        "signal_category": "human",
        "source_type": "cli",
        "source_identity": "ana",
        "waitpoint_token": waitpoint.waitpoint_token,
    }
    return BufferSignalArgs(**{**defaults, **fields})


def pending(book: Rulebook, execution_id: ExecutionId, fence: LeaseFence, **fields: Any) -> Any:
    """Open a waitpoint ahead of its suspension."""
    return book.run(pending_args(execution_id, fence, **fields))


def pending_args(execution_id: ExecutionId, fence: LeaseFence, **fields: Any) -> CreatePendingWaitpointArgs:
    """A waitpoint to be opened ahead; any argument can be given."""
    defaults: dict[str, Any] = {
        "execution_id": execution_id,
        "lease_id": fence.lease_id,
        "lease_epoch": fence.lease_epoch,
        "attempt_id": fence.attempt_id,
        "attempt_index": 0,
        "waitpoint_id": new_id(),
        "waitpoint_key": KEY,
        "expires_in_ms": 60_000,
    }
    return CreatePendingWaitpointArgs(**{**defaults, **fields})


def waitpoint_of(book: Rulebook, execution_id: ExecutionId, waitpoint_id: str) -> Waitpoint:
    """The waitpoint's record."""
    return book.get(Waitpoint, f"{execution_id}/{waitpoint_id}")


def suspension_of(book: Rulebook, execution_id: ExecutionId, details: SuspendOutcomeDetails) -> Suspension:
    """The suspension's record."""
    return book.get(Suspension, f"{execution_id}/{details.suspension_id}")

"""Waitpoints: opening them before and with a suspension, closing them, and reading about them.

The rules this module keeps:

- A waitpoint id is used once per execution, and the records of closed waitpoints stay.
- A waitpoint lives no longer than the attempt that opened it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.contracts.ids import LeaseFence
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.contracts.limits import SAFE_INTEGER_MAX
from flowfabric.contracts.states import WaitpointState
from flowfabric.contracts.suspensions import (
    CloseWaitpointArgs,
    CloseWaitpointResult,
    CreatePendingWaitpointArgs,
    CreatePendingWaitpointResult,
    ListPendingWaitpointsArgs,
    ListPendingWaitpointsResult,
    PendingWaitpointCreated,
    PendingWaitpointInfo,
    ReadWaitpointTokenArgs,
    WaitpointWasClosed,
)
from flowfabric.core.commands import ExpireWaitpointArgs, WaitpointSettled
from flowfabric.core.records import KEYRING_ID, Execution, Key, Keyring, Waitpoint, key_for
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.fencing import fenced
from flowfabric.core.rules.transitions import close_waitpoints
from flowfabric.core.tokens import sign_waitpoint, token_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.core.work import Work

OPEN_WAITPOINTS_MAX: Final = 256
"""How many waitpoints of one execution may be pending or active at once."""

NEVER_COMMITTED: Final = "never_committed"
"""Why a pending waitpoint is closed that no suspension has used in its time."""


def keyring_key(args: object) -> tuple[Key, ...]:
    """The key of the key ring, for rules that sign or verify."""
    return (key_for(Keyring, KEYRING_ID),)


def keyring(work: Work) -> Keyring | None:
    """The store's key ring, or None before the first key is seeded."""
    return work.read(Keyring, KEYRING_ID)


def find_waitpoint(work: Work, execution_id: str, waitpoint_id: str) -> Waitpoint | None:
    """The waitpoint of this execution with this id."""
    return work.read(Waitpoint, f"{execution_id}/{waitpoint_id}")


def is_expired(waitpoint: Waitpoint, now: int) -> bool:
    """True for a pending waitpoint whose time is over, whether or not it has been closed yet."""
    due = waitpoint.expires_at
    return waitpoint.state == WaitpointState.PENDING and due is not None and due <= now


def open_waitpoint(work: Work, execution: Execution, waitpoint: Waitpoint) -> WaitpointToken:
    """Sign a new waitpoint and add it. The execution must be a copy that may be changed.

    Raises:
        WaitpointAlreadyExists: the id has been used.
        LimitExceeded: too many waitpoints are open.
        HmacSecretNotInitialized, InvalidSecret: nothing can be signed.
    """
    if find_waitpoint(work, waitpoint.execution_id, waitpoint.waitpoint_id) is not None:
        raise errors.WaitpointAlreadyExists(waitpoint_id=waitpoint.waitpoint_id)
    if len(execution.open_waitpoint_ids) >= OPEN_WAITPOINTS_MAX:
        raise errors.LimitExceeded(open_waitpoints=OPEN_WAITPOINTS_MAX)
    token = sign_waitpoint(keyring(work), execution.namespace, waitpoint)
    work.add(waitpoint)
    execution.open_waitpoint_ids = (*execution.open_waitpoint_ids, waitpoint.waitpoint_id)
    return token


@rule(CreatePendingWaitpointArgs, reads=keyring_key)
def create_pending_waitpoint(work: Work, args: CreatePendingWaitpointArgs) -> CreatePendingWaitpointResult:
    """Open a waitpoint ahead of its suspension. Signals that come early are kept for it.

    Raises:
        ExecutionNotActive, LeaseRevoked, LeaseExpired, StaleLease: the caller does not own the attempt.
        WaitpointAlreadyExists, LimitExceeded, HmacSecretNotInitialized, InvalidSecret: see
            ``open_waitpoint``.
    """
    execution = work.execution(args.execution_id)
    fence = LeaseFence(lease_id=args.lease_id, lease_epoch=args.lease_epoch, attempt_id=args.attempt_id)
    lease, attempt = fenced(work, execution, fence)
    if attempt.attempt_index != args.attempt_index:
        raise errors.StaleLease(execution_id=args.execution_id, current_epoch=lease.epoch)
    execution = work.edit(execution)
    waitpoint = Waitpoint(
        execution_id=args.execution_id,
        waitpoint_id=args.waitpoint_id,
        waitpoint_key=args.waitpoint_key,
        attempt_index=args.attempt_index,
        state=WaitpointState.PENDING,
        token_kid="",
        token_digest="",
        created_at=work.now,
        expires_at=min(work.now + args.expires_in_ms, SAFE_INTEGER_MAX),
    )
    token = open_waitpoint(work, execution, waitpoint)
    execution.last_mutation_at = work.now
    return PendingWaitpointCreated(
        waitpoint_id=args.waitpoint_id, waitpoint_key=args.waitpoint_key, waitpoint_token=token
    )


@rule(CloseWaitpointArgs)
def close_waitpoint(work: Work, args: CloseWaitpointArgs) -> CloseWaitpointResult:
    """Close a waitpoint for good. Closing a closed one changes nothing.

    Raises:
        WaitpointNotFound: the execution has no such waitpoint.
    """
    execution = work.execution(args.execution_id)
    waitpoint = find_waitpoint(work, args.execution_id, args.waitpoint_id)
    if waitpoint is None:
        raise errors.WaitpointNotFound(waitpoint_id=args.waitpoint_id)
    if waitpoint.state != WaitpointState.CLOSED:
        execution = work.edit(execution)
        before = waitpoint.state
        close_waitpoints(work, execution, (args.waitpoint_id,), args.reason)
        execution.last_mutation_at = work.now
        log_act(
            work,
            "waitpoint_closed",
            execution=execution,
            old=before,
            waitpoint_id=args.waitpoint_id,
            reason=args.reason,
        )
    return WaitpointWasClosed()


@rule(
    ExpireWaitpointArgs,
    subject=no_subject,
    reads=lambda args: (key_for(Waitpoint, args.waitpoint_identity),),
)
def expire_waitpoint(work: Work, args: ExpireWaitpointArgs) -> WaitpointSettled:
    """Close a pending waitpoint whose time is over; the scanner's half of creating one."""
    waitpoint = work.read(Waitpoint, args.waitpoint_identity)
    execution = None if waitpoint is None else work.read(Execution, waitpoint.execution_id)
    if waitpoint is None or execution is None or waitpoint.state != WaitpointState.PENDING:
        return WaitpointSettled(action="gone")
    if not is_expired(waitpoint, work.now):
        return WaitpointSettled(action="kept")
    close_waitpoints(work, work.edit(execution), (waitpoint.waitpoint_id,), NEVER_COMMITTED)
    return WaitpointSettled(action="expired")


def _token_keys(args: ReadWaitpointTokenArgs) -> tuple[Key, ...]:
    return key_for(Keyring, KEYRING_ID), key_for(Waitpoint, f"{args.execution_id}/{args.waitpoint_id}")


@rule(ReadWaitpointTokenArgs, query=True, reads=_token_keys)
def read_waitpoint_token(work: Work, args: ReadWaitpointTokenArgs) -> WaitpointToken | None:
    """The token of an open waitpoint; None when it is closed or unknown.

    Raises:
        TokenExpired: the key that signed it is past its grace or has been removed.
    """
    execution = work.execution(args.execution_id)
    waitpoint = find_waitpoint(work, args.execution_id, args.waitpoint_id)
    if waitpoint is None or waitpoint.state == WaitpointState.CLOSED or is_expired(waitpoint, work.now):
        return None
    return token_of(keyring(work), execution.namespace, waitpoint, work.now)


@rule(ListPendingWaitpointsArgs, query=True)
def list_pending_waitpoints(work: Work, args: ListPendingWaitpointsArgs) -> ListPendingWaitpointsResult:
    """A page of the pending and active waitpoints of an execution, in the order of their ids."""
    execution = work.execution(args.execution_id)
    after = args.after or ""
    waitpoint_ids = sorted(found for found in execution.open_waitpoint_ids if found > after)
    shown = _open_waitpoints(work, args.execution_id, waitpoint_ids)
    page = shown[: args.limit]
    return ListPendingWaitpointsResult(
        entries=tuple(_info(waitpoint) for waitpoint in page),
        next_cursor=page[-1].waitpoint_id if len(shown) > len(page) else None,
    )


def _open_waitpoints(work: Work, execution_id: str, waitpoint_ids: Iterable[str]) -> list[Waitpoint]:
    found = work.read_all(Waitpoint, [f"{execution_id}/{waitpoint_id}" for waitpoint_id in waitpoint_ids])
    return [waitpoint for waitpoint in found if waitpoint is not None and not is_expired(waitpoint, work.now)]


def _info(waitpoint: Waitpoint) -> PendingWaitpointInfo:
    return PendingWaitpointInfo(
        waitpoint_id=waitpoint.waitpoint_id,
        waitpoint_key=waitpoint.waitpoint_key,
        state=WaitpointState(waitpoint.state),
        required_signal_names=waitpoint.required_signal_names,
        created_at=waitpoint.created_at,
        activated_at=waitpoint.activated_at,
        expires_at=waitpoint.expires_at,
        execution_id=waitpoint.execution_id,
        token_kid=waitpoint.token_kid,
        token_fingerprint=waitpoint.token_fingerprint,
    )

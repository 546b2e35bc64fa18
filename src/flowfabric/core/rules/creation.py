"""Creating executions, and binding idempotency keys to them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.executions import (
    TRACE_TAGS,
    CreateExecutionArgs,
    CreateExecutionResult,
    ExecutionCreated,
    ExecutionDuplicate,
)
from flowfabric.contracts.limits import (
    IDEMPOTENCY_WINDOW_MS,
    PRIORITY_MAX,
    PRIORITY_MIN,
    SAFE_INTEGER_MAX,
)
from flowfabric.contracts.partitions import FLOW_PARTITIONS, partition_index
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.states import BlockingReason
from flowfabric.core import records
from flowfabric.core.commands import (
    KeyReserved,
    ReservationSettled,
    ReserveIdempotencyKeyArgs,
    SettleReservationArgs,
)
from flowfabric.core.events import Family
from flowfabric.core.policies import resolve_names
from flowfabric.core.records import Execution, Key, Payload, Reservation, key_for
from flowfabric.core.registry import execution_subject, no_subject, rule
from flowfabric.core.rules.headroom import require_known
from flowfabric.core.rules.lanes import find_lane, refuse_submission_in_lane, under_lane
from flowfabric.core.rules.transitions import add_blocker, publish, publish_tags, time_blocker
from flowfabric.core.state import public_state

if TYPE_CHECKING:
    from flowfabric.core.work import Work

RESERVATION_GRACE_MS: Final = 30_000
"""How long a reservation may wait for its execution before it is closed, and then before it is freed.

Key and execution may be in different places of a store, which are compared one after the other. So a
key is never freed at once: an execution that is created under it meanwhile had its key compared before
it was closed, and is there long before the second look for it.
"""

_encode_sorted = msgspec.msgpack.Encoder(order="deterministic").encode


def _reservation_keys(args: CreateExecutionArgs) -> tuple[Key, ...]:
    if not args.idempotency_key:
        return ()
    return (key_for(Reservation, reservation_identity(args.namespace, args.idempotency_key)),)


@rule(CreateExecutionArgs, reads=_reservation_keys, makes=lambda args: (execution_subject(args),))
def create_execution(work: Work, args: CreateExecutionArgs) -> CreateExecutionResult:
    """Admit a unit of work: eligible at once, or delayed if its time is in the future.

    Raises:
        InvalidInput: the namespace is not the caller's, or the id is in use in another one.
        BudgetNotFound, QuotaPolicyNotFound: the policy names one that is not there.
        LaneClosed: the lane is draining or disabled.
        Contention: the idempotency key is not bound to this execution any more, or an execution
            with this id is being removed.
    """
    work.require_namespace(args.namespace)
    existing = work.read(Execution, args.execution_id)
    if existing is not None and existing.removing_since is not None:
        raise errors.Contention(execution_id=args.execution_id, removing_since=existing.removing_since)
    if existing is not None and existing.namespace != args.namespace:
        raise errors.InvalidInput(field="execution_id", value=args.execution_id, rule="is in use")
    if existing is not None:
        return ExecutionDuplicate(execution_id=args.execution_id)
    lane = find_lane(work, args.namespace, args.lane_id)
    refuse_submission_in_lane(lane)
    _require_reserved(work, args)
    policy = resolve_names(args.policy, args.namespace)
    require_known(work, args.policy, args.namespace)
    execution = new_execution(args, policy, work.now)
    delay_until = _delay_until(args)
    if delay_until is not None and delay_until > work.now:
        add_blocker(execution, time_blocker(delay_until, BlockingReason.WAITING_FOR_DELAY))
    work.add(execution)
    work.add(Payload(execution_id=args.execution_id, data=args.input_payload))
    publish(work, execution, Family.EXECUTION, "created", lane_id=args.lane_id, kind=args.execution_kind)
    publish_tags(work, execution, "attached", args.tags)
    shown = under_lane(execution, lane)
    return ExecutionCreated(execution_id=args.execution_id, public_state=public_state(shown))


def new_execution(args: CreateExecutionArgs, policy: ExecutionPolicy | None, now: int) -> Execution:
    """The record of new work that nothing blocks, with a policy whose names are resolved."""
    return Execution(
        execution_id=args.execution_id,
        namespace=args.namespace,
        lane_id=args.lane_id,
        execution_kind=args.execution_kind,
        priority=clamp_priority(args.priority or (0 if policy is None else policy.priority)),
        creator_identity=args.creator_identity,
        created_at=now,
        last_transition_at=now,
        last_mutation_at=now,
        payload_encoding=args.payload_encoding,
        input_sha256=hashlib.sha256(args.input_payload).digest(),
        policy=policy,
        required_capabilities=() if policy is None else policy.required_capabilities,
        tags=args.tags,
        deadline_at=_deadline(now, args),
        keyed_until=_keyed_until(now, args),
    )


def _require_reserved(work: Work, args: CreateExecutionArgs) -> None:
    """Refuse a key that is bound to something else meanwhile, or is about to be freed.

    A caller that pauses between reserving and creating for longer than the grace finds its
    reservation freed, and perhaps made anew for another execution.
    """
    for key in _reservation_keys(args):
        bound = work.peek(key)
        if not isinstance(bound, Reservation) or bound.execution_id != args.execution_id:
            raise errors.Contention(idempotency_key=args.idempotency_key)
        if bound.closing_at is not None:
            raise errors.Contention(idempotency_key=args.idempotency_key)


def clamp_priority(priority: int) -> int:
    """Priorities outside the range are moved to its nearer end, not refused."""
    return min(max(priority, PRIORITY_MIN), PRIORITY_MAX)


def _delay_until(args: CreateExecutionArgs) -> int | None:
    if args.delay_until is not None or args.policy is None:
        return args.delay_until
    return args.policy.delay_until


def _deadline(now: int, args: CreateExecutionArgs) -> int | None:
    if args.execution_deadline_at is not None:
        return args.execution_deadline_at
    timeouts = None if args.policy is None else args.policy.timeout_policy
    if timeouts is None or timeouts.execution_deadline_ms is None:
        return None
    return min(now + timeouts.execution_deadline_ms, SAFE_INTEGER_MAX)


def _keyed_until(now: int, args: CreateExecutionArgs) -> int | None:
    if not args.idempotency_key:
        return None
    return min(now + idempotency_window_ms(args.policy), SAFE_INTEGER_MAX)


def request_digest(args: CreateExecutionArgs) -> bytes:
    """A digest of what is asked for, without the parts that a repeated request mints anew.

    When it may run is not in it: an instant that was counted from now differs each time.
    """
    content = (
        args.namespace,
        args.lane_id,
        args.execution_kind,
        args.input_payload,
        args.payload_encoding,
        args.priority,
        _own_tags(args.tags),
        None if args.policy is None else replace(args.policy, delay_until=None),
    )
    return hashlib.sha256(_encode_sorted(content)).digest()


def _own_tags(tags: dict[str, str]) -> dict[str, str]:
    """The tags that say what is asked for; the trace in which it is asked does not."""
    carried = TRACE_TAGS.values()
    return {key: value for key, value in tags.items() if key not in carried} if tags else tags


def idempotency_window_ms(policy: ExecutionPolicy | None) -> int:
    """How long an idempotency key stays bound."""
    if policy is None or policy.dedup_window_ms is None:
        return IDEMPOTENCY_WINDOW_MS
    return policy.dedup_window_ms


def reservation_identity(namespace: str, idempotency_key: str) -> str:
    """Where an idempotency key is kept: in the partition of the key's own hash."""
    index = partition_index(f"{namespace}\x1f{idempotency_key}".encode(), FLOW_PARTITIONS)
    return records.reservation_identity(f"{{fp:{index}}}", namespace, idempotency_key)


def _reservation_subject(args: ReserveIdempotencyKeyArgs) -> str:
    return key_for(Reservation, reservation_identity(args.namespace, args.idempotency_key))


@rule(ReserveIdempotencyKeyArgs, subject=no_subject, reads=lambda args: (_reservation_subject(args),))
def reserve_idempotency_key(work: Work, args: ReserveIdempotencyKeyArgs) -> KeyReserved:
    """Bind the key, or answer with the execution that it is bound to already."""
    work.require_namespace(args.namespace)
    identity = reservation_identity(args.namespace, args.idempotency_key)
    bound = work.read(Reservation, identity)
    if bound is not None and bound.expires_at > work.now:
        if bound.digest != args.digest:
            raise errors.IdempotencyConflict(
                idempotency_key=args.idempotency_key, execution_id=bound.execution_id
            )
        if bound.closing_at is not None:
            opened = work.edit(bound)
            opened.created_at, opened.closing_at = work.now, None
        return KeyReserved(execution_id=bound.execution_id)
    work.add(
        Reservation(
            partition_tag=identity.partition("/")[0],
            namespace=args.namespace,
            idempotency_key=args.idempotency_key,
            execution_id=args.execution_id,
            digest=args.digest,
            created_at=work.now,
            expires_at=min(work.now + args.window_ms, SAFE_INTEGER_MAX),
        )
    )
    return KeyReserved(execution_id=args.execution_id)


@rule(
    SettleReservationArgs,
    subject=no_subject,
    reads=lambda args: (key_for(Reservation, args.reservation_id),),
)
def settle_reservation(work: Work, args: SettleReservationArgs) -> ReservationSettled:
    """Confirm or free a reservation; the scanner's half of creating with an idempotency key."""
    reservation = work.read(Reservation, args.reservation_id)
    if reservation is None:
        return ReservationSettled(action="gone")
    if reservation.expires_at <= work.now:
        work.remove(reservation)
        return ReservationSettled(action="expired")
    if reservation.confirmed:
        return ReservationSettled(action="kept")
    execution = work.read(Execution, reservation.execution_id)
    if execution is not None and execution.namespace == reservation.namespace:
        settled = work.edit(reservation)
        settled.confirmed, settled.closing_at = True, None
        return ReservationSettled(action="confirmed")
    waiting_since = reservation.created_at if reservation.closing_at is None else reservation.closing_at
    if waiting_since + RESERVATION_GRACE_MS > work.now:
        return ReservationSettled(action="kept")
    if reservation.closing_at is None:
        work.edit(reservation).closing_at = work.now
        return ReservationSettled(action="closed")
    work.remove(reservation)
    return ReservationSettled(action="freed")

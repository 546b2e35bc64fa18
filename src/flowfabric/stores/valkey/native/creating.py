"""Creating executions on the server: see ``core.rules.creation``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.contracts.executions import CreateExecutionArgs, ExecutionCreated
from flowfabric.contracts.states import PublicState
from flowfabric.core.events import Family
from flowfabric.core.indexes import DUE_DEADLINE, ELIGIBLE, scope_of
from flowfabric.core.layout import is_unlimited, name_of_pair
from flowfabric.core.records import (
    Execution,
    Lane,
    LastRequest,
    Payload,
    encode_record,
    key_for,
    lane_identity,
)
from flowfabric.core.rules.creation import new_execution
from flowfabric.stores.keys import stored_key
from flowfabric.stores.valkey.packing import pack_record

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from flowfabric.core.records import Key
    from flowfabric.core.work import Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects

_encode: Final = msgspec.msgpack.Encoder().encode
_TAGS: Final = name_of_pair("tags")
_UNKNOWN: Final = (1 << 64) - 1
"""Stands for an instant that only the server knows, and takes as many bytes as any."""
_INSTANTS: Final = b"".join(
    name_of_pair(name) + _encode(_UNKNOWN)
    for name in ("created_at", "last_transition_at", "last_mutation_at")
)


class CreateExecution:
    """Stands in for the rule of ``CreateExecutionArgs``."""

    name: Final = "create_execution"
    command_type: Final = CreateExecutionArgs
    serves: Final = (CreateExecutionArgs,)

    def subject(self, asked: Asked) -> Key:
        return key_for(Execution, asked.command.execution_id)

    def owner(self, command: CreateExecutionArgs) -> None:
        """The command names the namespace."""

    def relied_on(self, asked: Asked) -> Key:
        """The lane: nothing new comes into a lane that was changed since it was last looked at."""
        return key_for(Lane, lane_identity(asked.command.namespace, asked.command.lane_id))

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The lane. What waits for a time, a key, or headroom is left to the rule."""
        args: CreateExecutionArgs = asked.command
        usual = (
            args.namespace == asked.namespace
            and not args.idempotency_key
            and args.delay_until is None
            and (args.policy is None or args.policy.delay_until is None)
            and is_unlimited(args.policy)
            and not _has_relative_deadline(args)
            and remembered.recall(self.relied_on(asked)) is not None
        )
        return (args.namespace, args.lane_id) if usual else None

    def shared(self, first: Asked) -> Sequence[Argument]:
        return (first.command.lane_id,)

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        args: CreateExecutionArgs = asked.command
        execution = new_execution(args, args.policy, now=_UNKNOWN)
        outcome = _encode(_outcome(args))
        execution.last_request = LastRequest(asked.envelope.request_id, outcome, type(args).__name__)
        before, found, behind = pack_record(execution).partition(_INSTANTS)
        assert found, "the instants of an execution are next to each other"
        payload = Payload(execution_id=args.execution_id, data=args.input_payload)
        return (
            keys.record(execution.key),
            keys.told(args.execution_id),
            keys.record(payload.key),
        ), (
            args.execution_id,
            before,
            behind,
            execution.priority,
            scope_of("", *execution.required_capabilities, ""),
            "" if execution.deadline_at is None else execution.deadline_at,
            _TAGS + _encode(execution.tags) if execution.tags else b"",
            _encode({"lane_id": args.lane_id, "kind": args.execution_kind}),
            stored_key(execution.key),
            encode_record(payload),
            stored_key(payload.key),
        )

    def answer(self, asked: Asked, reply: bytes, effects: Effects) -> ExecutionCreated:
        args: CreateExecutionArgs = asked.command
        effects.tell(asked, Family.EXECUTION, "created")
        if args.tags:
            effects.tell(asked, Family.TAG, "attached")
        required = () if args.policy is None else args.policy.required_capabilities
        scope = scope_of(args.namespace, args.lane_id, *required, "")
        effects.rows.append((ELIGIBLE, scope, effects.now, args.execution_id))
        if args.execution_deadline_at is not None:
            effects.rows.append((DUE_DEADLINE, "", args.execution_deadline_at, args.execution_id))
        return _outcome(args)


def _outcome(args: CreateExecutionArgs) -> ExecutionCreated:
    """The answer: nothing blocks the work, or the rule would have decided."""
    return ExecutionCreated(execution_id=args.execution_id, public_state=PublicState.WAITING)


def _has_relative_deadline(args: CreateExecutionArgs) -> bool:
    """Whether the deadline counts from the creation, whose instant only the server knows."""
    timeouts = None if args.policy is None else args.policy.timeout_policy
    has_own = args.execution_deadline_at is not None
    return not has_own and timeouts is not None and timeouts.execution_deadline_ms is not None

"""Completing executions on the server: see ``core.rules.finishing``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.contracts.executions import CompleteExecutionArgs, ExecutionCompleted
from flowfabric.contracts.states import PublicState, TerminalOutcome
from flowfabric.core.events import Family
from flowfabric.core.indexes import DUE_MESSAGE
from flowfabric.core.records import ExecutionResult, encode_record
from flowfabric.core.rules.finishing import COMPLETED
from flowfabric.core.rules.transitions import MEMBER_ENDED, news_for_flow
from flowfabric.stores.keys import stored_key
from flowfabric.stores.valkey.native.function import (
    OfLeaseHolder,
    asked_pair,
    last_request_pair,
    released_pair,
    without_zero,
)
from flowfabric.stores.valkey.native.resolving import behind, has_few_edges, note_resolved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.contracts.ids import LeaseFence
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects
    from flowfabric.stores.valkey.native.members import Member

_encode: Final = msgspec.msgpack.Encoder().encode

TOLD_FLOW: Final = b"told_flow"
"""The reply that says that the flow of a member is owed the news."""
A_MEMBER: Final = b"member"
"""What the first function asks for if the execution belongs to a flow."""


class CompleteExecution(OfLeaseHolder):
    """Stands in for the rule of ``CompleteExecutionArgs`` for executions that belong to no flow."""

    name: str = "complete_execution"
    command_type: Final = CompleteExecutionArgs
    serves: Final = (CompleteExecutionArgs,)

    def shared(self, first: Asked) -> Sequence[Argument]:
        return (COMPLETED,)

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        args: CompleteExecutionArgs = asked.command
        fence: LeaseFence | None = args.fence
        assert fence is not None
        outcome = _encode(_outcome(args))
        # A function declines what was replayed, so it is the first generation.
        result = ExecutionResult(
            execution_id=args.execution_id,
            generation=0,
            data=args.result_payload or b"",
            encoding=args.result_encoding,
        )
        return (
            keys.record(self.subject(asked)),
            keys.told(args.execution_id),
            keys.record(result.key),
        ), (
            args.execution_id,
            fence.lease_id,
            fence.lease_epoch,
            fence.attempt_id,
            args.attempt_index,
            asked_pair(asked.envelope.request_id),
            last_request_pair(asked, outcome),
            released_pair(asked, fence, outcome),
            b"" if args.result_payload is None else encode_record(result),
            stored_key(result.key),
        )

    def answer(self, asked: Asked, reply: bytes | list[bytes], effects: Effects) -> ExecutionCompleted:
        effects.tell(asked, Family.LEASE, "released")
        effects.tell(asked, Family.COMPLETION, TerminalOutcome.SUCCESS)
        return _outcome(asked.command)


class CompleteMember(CompleteExecution):
    """The same for members of flows, whose ends are carried to what is behind them, or are owed to that."""

    name = "complete_member"

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        item_keys, item_arguments = super().item(keys, asked)
        message = news_for_flow(asked.command.execution_id, MEMBER_ENDED, 0, 0)
        member_keys, member_arguments = self._behind(keys, asked)
        return (*item_keys, keys.record(message.key), *member_keys), (
            *item_arguments,
            without_zero(encode_record(message)),
            message.identity,
            stored_key(message.key),
            *member_arguments,
        )

    def _behind(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        """What is behind a member, if that is known. If not, other keys have the places of its records."""
        member = _resolvable(asked)
        if member is None:
            return (keys.state,) * 3, ("", 0)
        return behind(keys, asked.command.execution_id, member)

    def answer(self, asked: Asked, reply: bytes | list[bytes], effects: Effects) -> ExecutionCompleted:
        if reply == TOLD_FLOW:
            due = news_for_flow(asked.command.execution_id, MEMBER_ENDED, 0, 0).identity
            effects.rows.append((DUE_MESSAGE, "", effects.now, due))
        elif isinstance(reply, list) and (member := _resolvable(asked)) is not None:
            note_resolved(asked, member, reply[1:], effects)
        return super().answer(asked, reply, effects)

    def edges(self, asked: Asked) -> int:
        """Those of a member whose edges are known, and few enough."""
        member = _resolvable(asked)
        return 0 if member is None else len(member.outgoing)

    def foreseen(self, member: Member) -> bytes:
        """Any member is completed like this."""
        return A_MEMBER


def _resolvable(asked: Asked) -> Member | None:
    """The member that ends, if its place and its edges are known and a function may resolve these."""
    member = asked.member
    usual = member is not None and member.position is not None and has_few_edges(member)
    return member if usual else None


def _outcome(args: CompleteExecutionArgs) -> ExecutionCompleted:
    return ExecutionCompleted(execution_id=args.execution_id, public_state=PublicState.COMPLETED)

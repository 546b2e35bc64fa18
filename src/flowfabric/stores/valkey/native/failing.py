"""Failing executions on the server: see ``core.rules.finishing``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric import errors
from flowfabric.contracts.executions import (
    FailExecutionArgs,
    FailExecutionResult,
    RetryScheduled,
    TerminalFailed,
)
from flowfabric.contracts.policy import parse_retry_policy
from flowfabric.contracts.states import TerminalOutcome
from flowfabric.core.events import Family
from flowfabric.core.indexes import DUE_DELAY, DUE_MESSAGE, ELIGIBLE
from flowfabric.core.records import encode_record
from flowfabric.core.rules.finishing import FAILED, RETRIED
from flowfabric.core.rules.transitions import MEMBER_ENDED, news_for_flow
from flowfabric.stores.keys import stored_key
from flowfabric.stores.valkey.native.completing import TOLD_FLOW
from flowfabric.stores.valkey.native.function import (
    OfLeaseHolder,
    asked_pair,
    released_head,
    without_zero,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from flowfabric.contracts.ids import LeaseFence
    from flowfabric.core.work import Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects

_encode: Final = msgspec.msgpack.Encoder().encode
_TERMINAL: Final = _encode(TerminalFailed())
_TAG_FIELD: Final = str(RetryScheduled.__struct_config__.tag_field)
_RETRY_SCHEDULED: Final = str(RetryScheduled.__struct_config__.tag)
_DECODER: Final[msgspec.msgpack.Decoder[FailExecutionResult]] = msgspec.msgpack.Decoder(FailExecutionResult)


class FailExecution(OfLeaseHolder):
    """Stands in for the rule of ``FailExecutionArgs``."""

    name: Final = "fail_execution"
    command_type: Final = FailExecutionArgs
    serves: Final = (FailExecutionArgs,)

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The namespace. A retry policy that is none is left to the rule, too."""
        return None if _retry_policy(asked.command) is None else super().sharing(asked, remembered)

    def shared(self, first: Asked) -> Sequence[Argument]:
        operation = type(first.command).__name__
        return (FAILED, RETRIED, _TERMINAL, _TAG_FIELD, _RETRY_SCHEDULED, operation)

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        args: FailExecutionArgs = asked.command
        fence: LeaseFence | None = args.fence
        assert fence is not None
        message = news_for_flow(args.execution_id, MEMBER_ENDED, 0, 0)
        return (
            keys.record(self.subject(asked)),
            keys.told(args.execution_id),
            keys.record(message.key),
        ), (
            args.execution_id,
            fence.lease_id,
            fence.lease_epoch,
            fence.attempt_id,
            args.attempt_index,
            asked_pair(asked.envelope.request_id),
            released_head(asked, fence),
            args.failure_reason,
            args.failure_category,
            _retry_policy(args) or b"",
            repr(asked.envelope.random),
            without_zero(encode_record(message)),
            message.identity,
            stored_key(message.key),
        )

    def answer(self, asked: Asked, reply: list[bytes], effects: Effects) -> FailExecutionResult:
        encoded, told_flow, claimable = reply
        outcome = _DECODER.decode(encoded)
        effects.tell(asked, Family.LEASE, "released")
        execution_id: str = asked.command.execution_id
        if isinstance(outcome, RetryScheduled):
            index, scope = (ELIGIBLE, claimable.decode()) if claimable else (DUE_DELAY, "")
            effects.rows.append((index, scope, outcome.delay_until, execution_id))
        else:
            effects.tell(asked, Family.COMPLETION, TerminalOutcome.FAILED)
        if told_flow == TOLD_FLOW:
            member = news_for_flow(execution_id, MEMBER_ENDED, 0, 0).identity
            effects.rows.append((DUE_MESSAGE, "", effects.now, member))
        return outcome


def _retry_policy(args: FailExecutionArgs) -> bytes | None:
    """The caller's retry policy as it is packed, empty if there is none; None if the text is no policy."""
    if not args.retry_policy_json:
        return b""
    try:
        policy = parse_retry_policy(args.retry_policy_json)
    except errors.FlowFabricError:
        return None
    return b"" if policy is None else _encode(policy)

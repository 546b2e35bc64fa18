"""Claiming executions on the server: see ``core.rules.claiming``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.contracts.leases import ClaimBatchArgs
from flowfabric.core.commands import CandidateClaimed, CandidateHeld, ClaimCandidateArgs, ClaimCandidateResult
from flowfabric.core.events import Family
from flowfabric.core.indexes import DUE_ATTEMPT, DUE_LEASE, SEPARATOR
from flowfabric.core.layout import ALONE, facts_of, is_unlimited, name_of_pair
from flowfabric.core.records import (
    Execution,
    Flow,
    FlowNode,
    Lane,
    PastAttempt,
    Payload,
    flow_identity,
    key_for,
    lane_identity,
)
from flowfabric.core.rules.claiming import claimed_work
from flowfabric.core.vocabulary import Continuation
from flowfabric.stores.keys import stored_key
from flowfabric.stores.valkey.native.function import asked_pair, last_request_pair, packed_list
from flowfabric.stores.valkey.native.members import member_of
from flowfabric.stores.valkey.records import loaded_row

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from flowfabric.contracts.policy import ExecutionPolicy
    from flowfabric.core.records import Key
    from flowfabric.core.work import Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects
    from flowfabric.stores.valkey.native.members import Member

_encode: Final = msgspec.msgpack.Encoder().encode
_POLICY: Final = name_of_pair(ALONE[0])
_HELD: Final = _encode(CandidateHeld(resumed=False))
_RESUMED: Final = _encode(CandidateHeld(resumed=True))


class ClaimExecution:
    """Stands in for the rule of ``ClaimCandidateArgs``."""

    name: str = "claim_execution"
    command_type: Final = ClaimCandidateArgs
    serves: Final = (ClaimBatchArgs,)

    def subject(self, asked: Asked) -> Key:
        return key_for(Execution, asked.command.execution_id)

    def owner(self, command: ClaimCandidateArgs) -> Key:
        return key_for(Execution, command.execution_id)

    def relied_on(self, asked: Asked) -> Key:
        """The lane: nothing is given out in a lane that was changed since it was last looked at."""
        return key_for(Lane, lane_identity(asked.namespace, asked.command.lane_id))

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """Namespace, lane and worker. A lane that is not remembered has to be loaded by the rule."""
        args: ClaimCandidateArgs = asked.command
        if remembered.recall(self.relied_on(asked)) is None:
            return None
        return (
            asked.namespace,
            args.lane_id,
            args.worker_id,
            args.worker_instance_id,
            args.worker_capabilities,
            args.lease_ttl_ms,
            id(args.policies),  # one mapping for all candidates of one search
        )

    def shared(self, first: Asked) -> Sequence[Argument]:
        args: ClaimCandidateArgs = first.command
        return (
            args.lane_id,
            args.worker_id,
            args.worker_instance_id,
            SEPARATOR.join(("", *args.worker_capabilities, "")),
            args.lease_ttl_ms,
            packed_list(part for kind, policy in args.policies.items() for part in _offer(kind, policy)),
            _RESUMED,
            type(args).__name__,
        )

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        args: ClaimCandidateArgs = asked.command
        return (
            keys.record(self.subject(asked)),
            keys.told(args.execution_id),
            keys.record(key_for(Payload, args.execution_id)),
        ), (
            args.execution_id,
            args.lease_id,
            args.attempt_id,
            asked_pair(asked.envelope.request_id),
            last_request_pair(asked, _HELD),
        )

    def answer(self, asked: Asked, reply: list[bytes], effects: Effects) -> ClaimCandidateResult:
        execution_id = asked.command.execution_id
        stored_execution, stored_payload, *_ = reply
        _, _, execution = loaded_row(key_for(Execution, execution_id), stored_execution)
        _, _, payload = loaded_row(key_for(Payload, execution_id), stored_payload)
        work = claimed_work(execution, payload, resumed=execution.attempt.resumed_at is not None)
        effects.tell(asked, Family.LEASE, "acquired")
        effects.rows.append((DUE_LEASE, "", work.lease_expires_at, work.execution_id))
        if work.attempt_timeout_at is not None:
            effects.rows.append((DUE_ATTEMPT, "", work.attempt_timeout_at, work.execution_id))
        return CandidateClaimed(work=work)


class ClaimRelatedExecution(ClaimExecution):
    """The same for those with which other records have to be looked at, once it is known which."""

    name = "claim_related_execution"

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        item_keys, item_arguments = super().item(keys, asked)
        execution_id: str = asked.command.execution_id
        past_index, flow_id = asked.wanted.decode().split(" ")
        past_attempt = key_for(PastAttempt, f"{execution_id}/{past_index}")
        return (
            *item_keys,
            keys.record(key_for(FlowNode, execution_id)),
            # What is not related to the execution has a key that no function looks at.
            keys.record(past_attempt) if past_index else item_keys[0],
            keys.record(key_for(Flow, flow_identity(flow_id))) if flow_id else item_keys[0],
        ), (*item_arguments, asked.wanted, stored_key(past_attempt))

    def answer(self, asked: Asked, reply: list[bytes], effects: Effects) -> ClaimCandidateResult:
        execution_id: str = asked.command.execution_id
        stored_execution, _, *stored_nodes = reply
        for stored_node in stored_nodes:
            _, _, execution = loaded_row(key_for(Execution, execution_id), stored_execution)
            _, version, node = loaded_row(key_for(FlowNode, execution_id), stored_node or None)
            if (member := member_of(execution, version, node)) is not None:
                asked.members.learn(execution_id, member)
        return super().answer(asked, reply, effects)

    def foreseen(self, member: Member) -> bytes:
        """What is related to a member if this is its first attempt."""
        return f" {member.flow_id}".encode()


def is_signalled(execution: Execution) -> bool:
    """Whether an execution resumes after a suspension, which every function declines."""
    return execution.continuation is Continuation.RESUME and execution.resumed_suspension_id is not None


def _offer(kind: str, policy: ExecutionPolicy) -> tuple[bytes, ...]:
    """A worker's policy as a function lets an execution have it; an empty one the rule has to see to."""
    timeouts = policy.timeout_policy
    has_deadline = timeouts is not None and timeouts.execution_deadline_ms is not None
    written = b"" if has_deadline or not is_unlimited(policy) else _POLICY + _encode(policy)
    facts = (str(fact).encode() for fact in facts_of(policy).values())
    return (kind.encode(), written, *facts)

"""Which part of an execution a function on a server looks at, and which part it only copies.

A store whose server decides some commands by itself keeps an execution as one map, as ``encode_record``
does, whose pairs are in the order of these parts:

- the *head*: what a function reads and changes, with its lease and its attempt;
- *policy*, *tags*, *last request* and *released*: one pair each, or nothing. A function replaces or
  copies each of them as a whole;
- the *rest*, which a function only copies.

The head also holds *facts*, which follow from the parts that a function cannot read. They are not
fields of an execution, so nothing is ever read back from them.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from flowfabric.contracts.limits import STREAM_RETENTION_MAXLEN
from flowfabric.contracts.states import BlockingReason
from flowfabric.core.indexes import SEPARATOR
from flowfabric.core.records import Execution
from flowfabric.core.registry import ACTING_ANEW
from flowfabric.core.vocabulary import LeaseState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.contracts.policy import ExecutionPolicy

SHOWN: Final = (
    "namespace",
    "lane_id",
    "execution_kind",
    "priority",
    "created_at",
    "last_transition_at",
    "last_mutation_at",
    "phase",
    "continuation",
    "outcome",
    "lease",
    "attempt",
    "lease_epoch",
    "attempt_count",
    "replay_count",
    "retry_count",
    "retry_reason",
    "journal_generation",
    "has_result",
    "failure_reason",
    "failure_category",
    "flow_id",
    "started_at",
    "completed_at",
    "retention_from",
    "signal_count",
    "suspended_reason",
    "suspension_id",
    "waitpoint_id",
    "open_waitpoint_ids",
    "resumed_suspension_id",
    "deadline_at",
    "keyed_until",
    "payload_encoding",
    "blockers",
    "unresolved_dependencies",
)
"""The fields of an execution that are in its head."""

ALONE: Final = ("policy", "tags", "last_request", "released")
"""The fields that are a part of their own."""


class Facts(msgspec.Struct, frozen=True):
    """What a head says besides the fields that it shows, where it is not what it usually is."""

    plain: bool = True
    """See ``is_plain``."""
    free: bool = True
    """See ``is_free``."""
    unlimited: bool = True
    """See ``is_unlimited``."""
    steady: bool = True
    """Plain as far as the lease is concerned: it is held, and no earlier answer has to be kept."""
    only_blocked: bool = False
    """Not plain, and plain again without the blockers and the open dependencies that the head shows."""
    required: str = SEPARATOR
    """The required capabilities, as the scope of ``eligible`` ends with them."""
    kept_ms: int = 0
    """For how long the policy has the ended execution kept at least."""
    attempt_timeout_ms: int = 0
    """How long the policy lets an attempt be leased in all; 0 without a limit."""
    frames_kept: int = STREAM_RETENTION_MAXLEN
    """How many durable frames of an attempt the policy keeps; 0 for all."""


class Parts(NamedTuple):
    """The parts of an execution: each the pairs of a map, one behind the other."""

    head: bytes
    policy: bytes
    tags: bytes
    last_request: bytes
    released: bytes
    rest: bytes


def take_apart(execution: Execution) -> tuple[Parts, int, int]:
    """The parts of an execution, how many pairs all of them have, and how many of these are in the rest."""
    head_count, head = _pairs(_Head(*_shown(execution), *_facts(execution)))
    rest_count, rest = _pairs(_Rest(*_others(execution)))
    last_request, released = execution.last_request, execution.released
    alone = (
        b"" if execution.policy is None else _POLICY + _encode(execution.policy),
        b"" if not execution.tags else _TAGS + _encode(execution.tags),
        b"" if last_request is None else _LAST_REQUEST + _encode(last_request),
        b"" if released is None else _RELEASED + _encode(released),
    )
    count = head_count + sum(map(bool, alone)) + rest_count
    return Parts(head, *alone, rest), count, rest_count


def facts_of(policy: ExecutionPolicy | None) -> dict[str, int]:
    """The facts that follow from a policy."""
    streams = None if policy is None else policy.stream_policy
    timeouts = None if policy is None else policy.timeout_policy
    return {
        "kept_ms": 0 if streams is None else streams.retention_ttl_ms or 0,
        "attempt_timeout_ms": 0 if timeouts is None else timeouts.attempt_timeout_ms or 0,
        "frames_kept": STREAM_RETENTION_MAXLEN if streams is None else streams.retention_maxlen,
    }


def is_unlimited(policy: ExecutionPolicy | None) -> bool:
    """Whether a policy names no budget and no quota policy, which live in other partitions."""
    return policy is None or not (policy.budget_ids or policy.quota_policy_id)


def is_plain(execution: Execution) -> bool:
    """Whether all but the phase is as it is in ordinary work.

    Nothing blocks or reserves the execution, no waitpoint is open, no budget and no quota policy
    concerns it, no operator has a wish for it, and it is steady.
    """
    return not is_blocked(execution) and _is_plain_unless_blocked(execution)


def is_only_blocked(execution: Execution) -> bool:
    """Whether an execution is not plain for nothing but blockers and open dependencies."""
    return is_blocked(execution) and _is_plain_unless_blocked(execution)


def is_blocked(execution: Execution) -> bool:
    """Whether there is a blocker or an open dependency."""
    return bool(execution.blockers or execution.unresolved_dependencies)


def _is_plain_unless_blocked(execution: Execution) -> bool:
    return (
        is_free(execution)
        and is_unlimited(execution.policy)
        and not execution.open_waitpoint_ids
        and execution.suspension_id is None
        and execution.waitpoint_id is None
        and execution.suspended_reason is BlockingReason.NONE
    )


def is_free(execution: Execution) -> bool:
    """Whether what the head shows says all about an execution but for the limits of others.

    Nothing reserves it, no operator has a wish for it, and it is steady.
    """
    return (
        is_steady(execution)
        and execution.grant is None
        and execution.admitted_round is None
        and execution.pause_reason is None
        and execution.cancelled_from is None
    )


def is_steady(execution: Execution) -> bool:
    """Whether the lease, if there is one, is held, and no answer but the last one matters."""
    last, lease = execution.last_request, execution.lease
    return (
        execution.removing_since is None
        and not execution.earlier_requests
        and (last is None or last.operation not in ACTING_ANEW)
        and (lease is None or (lease.state is LeaseState.HELD and lease.epoch == execution.lease_epoch))
    )


def _facts(execution: Execution) -> tuple[Any, ...]:
    required = SEPARATOR.join(("", *execution.required_capabilities, ""))
    return (
        is_plain(execution),
        is_free(execution),
        is_unlimited(execution.policy),
        is_steady(execution),
        is_only_blocked(execution),
        required,
        *facts_of(execution.policy).values(),
    )


_encode = msgspec.msgpack.Encoder().encode

MAP_16: Final = 0xDE
"""Begins a map of more than 15 pairs; one with fewer has their number in the low bits of its first byte."""


def _pairs(struct: msgspec.Struct) -> tuple[int, bytes]:
    """How many pairs a struct is written as, and the pairs without what says that they are a map."""
    encoded = _encode(struct)
    if encoded[0] == MAP_16:
        return int.from_bytes(encoded[1:3]), encoded[3:]
    return encoded[0] & 0x0F, encoded[1:]


def name_of_pair(name: str) -> bytes:
    """A name as the pairs of a map begin with it."""
    return _encode(name)


_POLICY, _TAGS, _LAST_REQUEST, _RELEASED = map(name_of_pair, ALONE)

_OTHERS: Final = tuple(name for name in Execution.__struct_fields__ if name not in {*SHOWN, *ALONE})

_shown = attrgetter(*SHOWN)
_others = attrgetter(*_OTHERS)


def _view(name: str, fields: Iterable[Any]) -> Any:
    """A struct with these fields, which leaves out those that hold what they usually do."""
    usual = [
        (field.name, Any) if field.default is msgspec.NODEFAULT else (field.name, Any, field.default)
        for field in fields
    ]
    return msgspec.defstruct(name, usual, omit_defaults=True)


_FIELDS: Final = {field.name: field for field in msgspec.structs.fields(Execution)}
_Head: Final = _view("_Head", [*(_FIELDS[name] for name in SHOWN), *msgspec.structs.fields(Facts)])
_Rest: Final = _view("_Rest", [_FIELDS[name] for name in _OTHERS])

USUAL: Final = {
    field.name: field.default
    for field in (*(_FIELDS[name] for name in SHOWN), *msgspec.structs.fields(Facts))
    if field.default not in (msgspec.NODEFAULT, None)
}
"""What the head stands for where it says nothing."""

"""What the functions that decide commands are called with: one list for both sides.

A function gets its keys and arguments by these names, never by their places. Every key is known before
anything is read: those of the shard are the same for all commands, and those of a command follow from
the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.core import indexes
from flowfabric.core.events import Family
from flowfabric.core.records import (
    Admission,
    Budget,
    BudgetLedger,
    Dedup,
    Execution,
    ExecutionResult,
    FlowNode,
    GivenBack,
    Keyring,
    Message,
    PastAttempt,
    Payload,
    QuotaPolicy,
    QuotaWindow,
    Signal,
    StreamMeta,
    Waitpoint,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """The names of a function's keys and arguments, in their order."""

    indexes: tuple[str, ...]
    """The indexes whose rows it may change."""
    kinds: tuple[str, ...] = ()
    """The kinds of records that it may make."""
    families: tuple[Family, ...]
    """The families of the events that it may publish."""
    rests: bool = False
    """Whether all commands of a call rest on one record, the key ``relied_on``. It must have the version
    that the argument ``relied_on_version`` says, unless that is empty."""
    observes: tuple[str, ...] = ()
    """The kinds of records, of those that the rule is sure to read, the one that the command is about among
    them, that are read before the call."""
    in_order: bool = False
    """Whether a call may have several commands about one record, the key that a command names first. They
    are decided one after the other, and what comes behind one that was declined is declined too."""
    shared_arguments: tuple[str, ...] = ()
    """Arguments that they have in common, besides ``CALL_ARGUMENTS``."""
    item_keys: tuple[str, ...]
    item_arguments: tuple[str, ...]
    part_keys: tuple[str, ...] = ()
    part_arguments: tuple[str, ...] = ()
    """Names of what comes behind a command for each of its parts, where it has some: its argument
    ``part_count`` says how many."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of all keys that come before those of the commands."""
        logs = [name for family in self.families for name in (f"log:{family}", f"told_in:{family}")]
        listings = [f"keys:{kind}" for kind in self.kinds]
        return (
            "state",
            "outbox",
            *logs,
            *listings,
            *self.indexes,
            *(("relied_on",) if self.rests else ()),
        )

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of all arguments that come before those of the commands."""
        version = ("relied_on_version",) if self.rests else ()
        return (*CALL_ARGUMENTS, *version, *self.shared_arguments)

    def names_all(self, item_keys: Sequence[object], item_arguments: Sequence[object]) -> bool:
        """Whether these are as many keys and arguments as one command has, with all of its parts."""
        of_parts = len(item_keys) - len(self.item_keys)
        parts = of_parts // len(self.part_keys) if self.part_keys else 0
        return of_parts == parts * len(self.part_keys) and len(item_arguments) == len(
            self.item_arguments
        ) + parts * len(self.part_arguments)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """All names, for the function itself."""
        return {
            "keys": self.keys,
            "arguments": self.arguments,
            "item_keys": self.item_keys,
            "item_arguments": self.item_arguments,
            "part_keys": self.part_keys,
            "part_arguments": self.part_arguments,
        }


CALL_ARGUMENTS: Final = ("given_ms", "lag_ms_max", "channel", "origin", "logs", "namespace", "count")
"""What every call says: the clock to live by, where it is told of, whether the log is in this shard, whose
commands they are, and how many."""

_ACTIVE: Final = (
    indexes.ACTIVE,
    indexes.DUE_LEASE,
    indexes.WORKER_LEASES,
    indexes.DUE_ATTEMPT,
    indexes.DUE_DEADLINE,
)
_ENDED: Final = (indexes.TERMINAL, indexes.RETENTION, indexes.ATTACHED)
_CLAIM: Final = (
    "lane_id",
    "worker_id",
    "worker_instance_id",
    "capabilities",
    "lease_ttl_ms",
    "policies",
    "resumed",
    "operation",
)
_CLAIM_ITEM: Final = ("execution_id", "lease_id", "attempt_id", "asked", "last_request")
_COMPLETE_KEYS: Final = ("execution", "told", "result")
_EDGE_KEYS: Final = ("edge", "group", "child")
_EDGE_ARGUMENTS: Final = ("child_id",)
_FENCE: Final = ("lease_id", "lease_epoch", "attempt_id", "attempt_index")
_COMPLETE: Final = (
    "execution_id",
    *_FENCE,
    "asked",
    "last_request",
    "released",
    "result",
    "result_listed",
)

SIGNAL_KEYS: Final = 8
"""For how many numbers of signals each command of a call declares keys: see ``deliver_signal``. As many
signals less one may come from others between a look at the execution and the call."""

SIGNATURES: Final[dict[str, Signature]] = {
    "append_frame": Signature(
        indexes=(),
        kinds=(StreamMeta.KIND,),
        families=(),
        in_order=True,
        shared_arguments=("outcome_head", "outcome_tail", "operation"),
        item_keys=("stream", "execution", "frames"),
        item_arguments=(
            "execution_id",
            *_FENCE,
            "asked",
            "stream_listed",
            "retention_maxlen",
            "payload_bytes",
            "told_at",
            "frame_head",
            "frame_tail",
        ),
    ),
    "check_admission_and_record": Signature(
        indexes=(indexes.DUE_ADMISSION, indexes.DUE_HEADROOM),
        kinds=(Admission.KIND, QuotaWindow.KIND),
        families=(),
        observes=(QuotaPolicy.KIND, Execution.KIND),
        in_order=True,
        shared_arguments=(
            "quota_key",
            "piece",
            "window",
            "window_listed",
            "next_piece",
            "next_window",
            "next_window_listed",
            "grace_ms",
            "admitted",
            "already_admitted",
            "rate_exceeded",
            "concurrency_exceeded",
            "operation",
        ),
        item_keys=("quota", "admission", "execution", "window", "next_window"),
        item_arguments=(
            "asked",
            "execution_version",
            "round",
            "spread_ms",
            "admission",
            "admission_id",
            "admission_listed",
        ),
    ),
    "claim_execution": Signature(
        indexes=(*_ACTIVE, indexes.ELIGIBLE),
        families=(Family.LEASE,),
        rests=True,
        shared_arguments=_CLAIM,
        item_keys=("execution", "told", "payload"),
        item_arguments=_CLAIM_ITEM,
    ),
    "claim_related_execution": Signature(
        indexes=(*_ACTIVE, indexes.ELIGIBLE),
        kinds=(PastAttempt.KIND,),
        families=(Family.LEASE,),
        rests=True,
        shared_arguments=_CLAIM,
        item_keys=("execution", "told", "payload", "node", "past_attempt", "flow"),
        item_arguments=(*_CLAIM_ITEM, "related", "past_attempt_listed"),
    ),
    "complete_execution": Signature(
        indexes=(*_ACTIVE, *_ENDED),
        kinds=(ExecutionResult.KIND,),
        families=(Family.LEASE, Family.COMPLETION),
        shared_arguments=("release_reason",),
        item_keys=_COMPLETE_KEYS,
        item_arguments=_COMPLETE,
    ),
    "complete_member": Signature(
        indexes=(*_ACTIVE, *_ENDED, indexes.DUE_MESSAGE, indexes.BLOCKED, indexes.ELIGIBLE),
        kinds=(ExecutionResult.KIND, Message.KIND),
        families=(Family.LEASE, Family.COMPLETION),
        shared_arguments=("release_reason",),
        item_keys=(*_COMPLETE_KEYS, "message", "node", "progress", "place"),
        item_arguments=(
            *_COMPLETE,
            "message",
            "message_id",
            "message_listed",
            "node_version",
            "part_count",
        ),
        part_keys=_EDGE_KEYS,
        part_arguments=_EDGE_ARGUMENTS,
    ),
    "create_execution": Signature(
        indexes=(indexes.CREATED, indexes.ELIGIBLE, indexes.DUE_DEADLINE),
        kinds=(Execution.KIND, Payload.KIND),
        families=(Family.EXECUTION, Family.TAG),
        rests=True,
        shared_arguments=("lane_id",),
        item_keys=("execution", "told", "payload"),
        item_arguments=(
            "execution_id",
            "before_instants",
            "behind_instants",
            "priority",
            "required",
            "deadline_at",
            "tags",
            "created",
            "listed",
            "payload",
            "payload_listed",
        ),
    ),
    "deliver_signal": Signature(
        indexes=(
            indexes.ELIGIBLE,
            indexes.DELAYED,
            indexes.DUE_DELAY,
            indexes.DUE_DEADLINE,
            indexes.SUSPENDED,
            indexes.DUE_SUSPENSION,
            indexes.DUE_DEDUP,
        ),
        kinds=(Signal.KIND, Dedup.KIND),
        families=(Family.SIGNAL, Family.EXECUTION),
        rests=True,
        observes=(Keyring.KIND, Execution.KIND, Waitpoint.KIND),
        in_order=True,
        shared_arguments=(
            "first_sequence",
            "signal_listed_head",
            "signal_listed_tail",
            "resumed",
            "cause",
            "operation",
        ),
        item_keys=(
            "execution",
            "told",
            "waitpoint",
            "suspension",
            "by_id",
            "by_key",
            *(f"signal_{place}" for place in range(SIGNAL_KEYS)),
        ),
        item_arguments=(
            "execution_id",
            "waitpoint_id",
            "suspension_id",
            "token_kid",
            "token_digest",
            "token_until",
            "signal_cap",
            "resume_delay_ms",
            "asked",
            "accepted",
            "signal_id",
            "signal_name",
            "source_type",
            "source_identity",
            "signals",
            "signal",
            "by_id",
            "by_id_id",
            "by_id_listed",
            "by_key",
            "by_key_id",
            "by_key_listed",
            "by_key_ms",
        ),
    ),
    "fail_execution": Signature(
        indexes=(
            *_ACTIVE,
            indexes.ELIGIBLE,
            indexes.DELAYED,
            indexes.DUE_DELAY,
            *_ENDED,
            indexes.DUE_MESSAGE,
        ),
        kinds=(Message.KIND,),
        families=(Family.LEASE, Family.COMPLETION),
        shared_arguments=("failed", "retried", "terminal", "tag_field", "retry_scheduled", "operation"),
        item_keys=("execution", "told", "message"),
        item_arguments=(
            "execution_id",
            *_FENCE,
            "asked",
            "released",
            "failure_reason",
            "failure_category",
            "retry_policy",
            "random",
            "message",
            "message_id",
            "message_listed",
        ),
    ),
    "release_admission": Signature(
        indexes=(indexes.DUE_ADMISSION, indexes.DUE_HEADROOM),
        kinds=(Admission.KIND,),
        families=(),
        observes=(QuotaPolicy.KIND, Execution.KIND, GivenBack.KIND),
        in_order=True,
        shared_arguments=("quota_key", "released", "kept", "operation"),
        item_keys=("quota", "admission"),
        item_arguments=("asked", "round", "admission_id", "admission_listed"),
    ),
    "renew_lease": Signature(
        indexes=_ACTIVE,
        families=(Family.LEASE,),
        shared_arguments=("outcome_head", "operation"),
        item_keys=("execution", "told"),
        item_arguments=("execution_id", *_FENCE, "asked", "lease_ttl_ms"),
    ),
    "report_usage": Signature(
        indexes=(indexes.DUE_DEDUP,),
        kinds=(BudgetLedger.KIND, Dedup.KIND),
        families=(),
        rests=True,
        observes=(Budget.KIND, Execution.KIND),
        in_order=True,
        shared_arguments=(
            "ceilings",
            "soft_limits",
            "kept_ms",
            "applied",
            "tag_field",
            "soft_breach",
            "operation",
        ),
        item_keys=("usage", "ledger", "dedup"),
        item_arguments=(
            "asked",
            "allowed_until",
            "deltas",
            "ledger",
            "ledger_listed",
            "dedup",
            "dedup_id",
            "dedup_listed",
        ),
    ),
    "resolve_dependency": Signature(
        indexes=(indexes.DUE_MESSAGE, indexes.BLOCKED, indexes.ELIGIBLE),
        kinds=(Message.KIND,),
        families=(),
        observes=(Execution.KIND, FlowNode.KIND),
        item_keys=("message", "execution", "node", "progress", "place"),
        item_arguments=("execution_id", "message_id", "message_listed", "node_version", "part_count"),
        part_keys=_EDGE_KEYS,
        part_arguments=_EDGE_ARGUMENTS,
    ),
}

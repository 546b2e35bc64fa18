"""Every command that is about one execution, as each kind of caller would send it.

The arguments are filled in by the names of the fields, so a new command takes part without a word
here, unless it has a field that no other has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from flowfabric.contracts.conditions import Single
from flowfabric.contracts.executions import ExpireReason
from flowfabric.contracts.flows import CreateFlowArgs
from flowfabric.contracts.ids import FlowId, LeaseFence, partition_of
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.contracts.suspensions import FreshWaitpoint
from flowfabric.core.records import Execution
from flowfabric.core.registry import RULES
from flowfabric.engine.layers import operation_name
from flowfabric.engine.operations import OPERATIONS
from flowfabric.testing.bed import INSTANCE, KIND, LANE, NAMESPACE, TTL_MS, WORKER
from flowfabric.testing.conformance.situations import KEY, KID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowfabric.contracts.base import Command
    from flowfabric.testing.bed import Bed
    from flowfabric.testing.conformance.situations import Place

CommandType: TypeAlias = "type[Command[Any]]"

HOLDER: Final = "holder"
FORMER_HOLDER: Final = "former_holder"
STRANGER: Final = "stranger"
OPERATOR: Final = "operator"
NOBODY: Final = "nobody"
WORKER_CALLER: Final = "worker"
OTHER_WORKER: Final = "other_worker"
ANYONE: Final = "anyone"

FENCE_PARTS: Final = ("lease_id", "lease_epoch", "attempt_id")

VARIANTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "expire_execution_deadline": (
        "ExpireExecutionArgs",
        {"expire_reason": ExpireReason.EXECUTION_DEADLINE},
    ),
    "expire_execution_attempt": ("ExpireExecutionArgs", {"expire_reason": ExpireReason.ATTEMPT_TIMEOUT}),
    "fail_execution": ("FailExecutionArgs", {"failure_category": "error"}),
    "fail_execution_for_good": ("FailExecutionArgs", {"failure_category": "permanent"}),
}
"""Commands that appear under other names than their own, with what distinguishes them."""


def command_types() -> dict[str, tuple[CommandType, dict[str, Any]]]:
    """Every command about one execution, by the name under which it is tested."""
    known = {found.__name__: found for found in (*RULES, *OPERATIONS)}
    renamed = {type_name for type_name, _ in VARIANTS.values()}
    named: dict[str, tuple[CommandType, dict[str, Any]]] = {
        operation_name(found): (found, {})
        for name, found in known.items()
        if "execution_id" in found.__struct_fields__ and name not in renamed
    }
    named |= {name: (known[type_name], fields) for name, (type_name, fields) in VARIANTS.items()}
    return {name: named[name] for name in sorted(named) if name not in NOT_ABOUT_ONE}


NOT_ABOUT_ONE: Final = frozenset({"reserve_idempotency_key", "tail_events"})
"""Commands that name an execution and are about something else."""


def callers_of(command_type: CommandType, place: Place) -> Iterator[str]:
    """Who may send a command about this place."""
    fields = {field.name: field for field in msgspec.structs.fields(command_type)}
    if "fence" in fields or "lease_epoch" in fields:
        if place.claim is not None:
            yield HOLDER
        if place.earlier is not None:
            yield FORMER_HOLDER
        yield STRANGER
        if not fields.get("fence", fields.get("lease_epoch")).required:  # type: ignore[union-attr]
            yield NOBODY
            if "source" in fields and "frame_type" not in fields:
                yield OPERATOR
    elif "worker_id" in fields:
        yield WORKER_CALLER
        yield OTHER_WORKER
    else:
        yield ANYONE


async def build(
    bed: Bed, command_type: CommandType, place: Place, caller: str, fixed: dict[str, Any]
) -> Command[Any]:
    """The command as this caller would send it about this place."""
    record = await bed.execution(place.execution_id)
    values = {**_values(bed, place, record, caller), **_fence_values(bed, command_type, place, caller)}
    values |= _OWN_VALUES.get(operation_name(command_type), {}) | fixed
    if "flow_id" in command_type.__struct_fields__:
        values["flow_id"] = await _flow_beside(bed, place)
    fields = msgspec.structs.fields(command_type)
    wanted = {field.name for field in fields if field.required} | values.keys() & _GIVEN_ANYWAY
    return command_type(**{field.name: values[field.name] for field in fields if field.name in wanted})


async def _flow_beside(bed: Bed, place: Place) -> FlowId:
    """A new flow in the partition of the place's execution."""
    flow_id = bed.new_flow_id(partition_of(place.execution_id))
    await bed.execute(CreateFlowArgs(flow_id=flow_id, flow_kind="dag", namespace=NAMESPACE))
    return flow_id


_GIVEN_ANYWAY: Final = frozenset({*FENCE_PARTS, "fence", "source", "current_attempt_index"})
"""Optional fields that a caller fills in all the same."""

_OWN_VALUES: Final[dict[str, dict[str, Any]]] = {
    "set_execution_tag": {"value": "text"},
    "record_step": {"value": b"value"},
    "append_frame": {"payload": b"frame"},
}


def _values(bed: Bed, place: Place, record: Execution, caller: str) -> dict[str, Any]:
    """What the fields of commands are filled with, by name."""
    attempt_index = max(record.attempt_count - 1, 0)
    other = caller == OTHER_WORKER
    return {
        "execution_id": place.execution_id,
        "namespace": NAMESPACE,
        "lane_id": LANE,
        "execution_kind": KIND,
        "input_payload": b"input",
        "priority": 0,
        "creator_identity": "tests",
        "attempt_index": attempt_index,
        "current_attempt_index": attempt_index,
        "expected_attempt_index": record.attempt_count,
        "worker_id": "other" if other else WORKER,
        "worker_instance_id": "other-1" if other else INSTANCE,
        "worker_capabilities": frozenset(),
        "lease_ttl_ms": TTL_MS,
        "grant_ttl_ms": TTL_MS,
        "failure_reason": "it broke",
        "delay_until": bed.clock.now_ms + 60_000,
        "wake_at": bed.clock.now_ms + 60_000,
        "expires_in_ms": 60_000,
        "died_at": bed.clock.now_ms,
        "fields": ("lane_id",),
        "reason": "because",
        "new_priority": 5,
        "progress_pct": 50,
        "tags": {"owner.name": "text"},
        "key": "owner.name",
        "name": "step",
        "ordinal": 0,
        "frame_type": "text",
        "waitpoint_id": place.waitpoint_id or bed.new_id(),
        "waitpoint_key": "wpk:other",
        "waitpoint_token": place.token or WaitpointToken(f"{KID}:{'0' * 64}"),
        "signal_id": bed.new_id(),
        "signal_name": "go",
        "signal_category": "",
        "source_type": "tests",
        "source_identity": "someone",
        "idempotency_suffix": "1",
        "suspension_id": bed.new_id(),
        "waitpoints": (FreshWaitpoint(waitpoint_id=bed.new_id(), waitpoint_key=KEY),),
        "resume_condition": Single(waitpoint_key=KEY),
    }


def _fence_values(bed: Bed, command_type: CommandType, place: Place, caller: str) -> dict[str, Any]:
    """The lease that a caller believes to hold; for a claim, the one that it asks for."""
    names = command_type.__struct_fields__
    minted = LeaseFence(
        lease_id=bed.new_id(),
        lease_epoch=0 if place.claim is None else place.claim.lease_epoch,
        attempt_id=bed.new_id(),
    )
    if caller in (WORKER_CALLER, OTHER_WORKER):
        return {"lease_id": minted.lease_id, "attempt_id": minted.attempt_id}
    source = "operator_override" if caller == OPERATOR else "lease_holder"
    fence = fence_of(place, caller, minted)
    values: dict[str, Any] = {} if "frame_type" in names else {"source": source}
    if fence is None:
        return values
    return values | {"fence": fence, **{name: getattr(fence, name) for name in FENCE_PARTS}}


def fence_of(place: Place, caller: str, made_up: LeaseFence) -> LeaseFence | None:
    """The fence that a caller sends along."""
    if caller == HOLDER:
        return place.held.fence
    if caller == FORMER_HOLDER:
        assert place.earlier is not None
        return place.earlier.fence
    return made_up if caller == STRANGER else None

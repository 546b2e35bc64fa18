"""Identifiers and constrained scalars: their types and their parsing.

An id is a plain string whose type carries its pattern, so a command that holds one is checked
without a conversion. Ids are canonical: hyphenated lower-case uuids.
"""

from __future__ import annotations

import re
import uuid
from typing import Annotated, TypeAlias

from msgspec import Meta

from flowfabric.contracts.base import Value
from flowfabric.contracts.limits import (
    I32_MAX,
    I32_MIN,
    JSON_CHARS_MAX,
    LANE_BYTES_MAX,
    NAME_CHARS_MAX,
    SAFE_INTEGER_MAX,
    TAG_VALUE_CHARS_MAX,
    TAGS_MAX,
    TEXT_CHARS_MAX,
    U16_MAX,
    U32_MAX,
)
from flowfabric.contracts.partitions import FLOW_PARTITIONS, partition_index
from flowfabric.errors import InvalidInput

UUID_PATTERN = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
ID_PATTERN = rf"\A{UUID_PATTERN}\Z"
EXECUTION_ID_PATTERN = rf"\A\{{fp:[0-9]{{1,5}}\}}:{UUID_PATTERN}\Z"
LANE_PATTERN = r"\A[ -~]*\Z"
NO_CONTROL_PATTERN = r"\A[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*\Z"
TEXT_PATTERN = r"\A[^\x00\ud800-\udfff]*\Z"
TAG_KEY_PATTERN = r"\A[a-z][a-z0-9_]*\.[a-z0-9_][a-z0-9_.]*\Z"

_Uuid = Annotated[str, Meta(pattern=ID_PATTERN)]
_Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX, pattern=NO_CONTROL_PATTERN)]

ExecutionId: TypeAlias = Annotated[str, Meta(pattern=EXECUTION_ID_PATTERN)]
FlowId: TypeAlias = _Uuid
AttemptId: TypeAlias = _Uuid
LeaseId: TypeAlias = _Uuid
SignalId: TypeAlias = _Uuid
WaitpointId: TypeAlias = _Uuid
SuspensionId: TypeAlias = _Uuid
EdgeId: TypeAlias = _Uuid
BudgetId: TypeAlias = _Uuid
QuotaPolicyId: TypeAlias = _Uuid
WorkerId: TypeAlias = _Name
WorkerInstanceId: TypeAlias = _Name
Namespace: TypeAlias = _Name
LaneId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=LANE_BYTES_MAX, pattern=LANE_PATTERN)]
IdempotencyKey: TypeAlias = Annotated[str, Meta(max_length=NAME_CHARS_MAX, pattern=NO_CONTROL_PATTERN)]

Name: TypeAlias = _Name
"""1 to 256 characters, none of them a control character."""
OptionalName: TypeAlias = Annotated[str, Meta(max_length=NAME_CHARS_MAX, pattern=NO_CONTROL_PATTERN)]
"""Like a name, but may be empty."""
Text: TypeAlias = Annotated[str, Meta(max_length=TEXT_CHARS_MAX, pattern=TEXT_PATTERN)]
"""Words for people: up to 4096 characters, newlines allowed."""
JsonText: TypeAlias = Annotated[str, Meta(max_length=JSON_CHARS_MAX, pattern=TEXT_PATTERN)]
"""A JSON document that travels as a string; empty means none."""
CancelSource: TypeAlias = _Name
"""Who ends the work: ``operator_override``, ``lease_holder``, ``flow_cascade``,
``system_timeout`` or any other word."""
OPERATOR_OVERRIDE = "operator_override"

TagKey: TypeAlias = Annotated[str, Meta(max_length=NAME_CHARS_MAX, pattern=TAG_KEY_PATTERN)]
TagValue: TypeAlias = Annotated[str, Meta(max_length=TAG_VALUE_CHARS_MAX, pattern=TEXT_PATTERN)]
Tags: TypeAlias = Annotated[dict[TagKey, TagValue], Meta(max_length=TAGS_MAX)]
Capabilities: TypeAlias = frozenset[str]

TimestampMs: TypeAlias = Annotated[int, Meta(ge=0, le=SAFE_INTEGER_MAX)]
DurationMs: TypeAlias = Annotated[int, Meta(ge=0, le=SAFE_INTEGER_MAX)]
PositiveMs: TypeAlias = Annotated[int, Meta(ge=1, le=SAFE_INTEGER_MAX)]
LeaseEpoch: TypeAlias = Annotated[int, Meta(ge=0, le=SAFE_INTEGER_MAX)]
AttemptIndex: TypeAlias = Annotated[int, Meta(ge=0, le=U32_MAX)]
Amount: TypeAlias = Annotated[int, Meta(ge=0, le=SAFE_INTEGER_MAX)]
Priority: TypeAlias = Annotated[int, Meta(ge=I32_MIN, le=I32_MAX)]

_EXECUTION_TAG = re.compile(r"\{fp:([^}]*)\}:(.*)", re.DOTALL)
_CANONICAL_UUID = re.compile(UUID_PATTERN)
_DECIMAL = re.compile(r"[0-9]{1,5}")
_NAMES = uuid.UUID("5e8ad1a0-7d0c-5f0e-9a51-0d7a4c3f2b16")
"""Never change it: every id that was made from a name follows from it."""


class LeaseFence(Value):
    """What proves that a writer still owns the attempt. The three travel together."""

    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_id: AttemptId


class ExecutionIdError(InvalidInput):
    """The execution id is malformed. Use an id such as {fp:7}:<uuid> as it was handed out."""


class LaneIdError(InvalidInput):
    """The lane name is malformed. Use 1 to 64 printable ASCII characters."""


def parse_execution_id(text: str) -> ExecutionId:
    """Parse an execution id into its canonical form. The partition in it is kept.

    Raises:
        ExecutionIdError: the rule is ``MissingTag``, ``InvalidPartitionIndex`` or ``InvalidUuid``.
    """
    parts = _EXECUTION_TAG.fullmatch(text)
    if parts is None:
        raise ExecutionIdError(field="execution_id", value=_shown(text), rule="MissingTag")
    digits, tail = parts.groups()
    if not _DECIMAL.fullmatch(digits) or int(digits) > U16_MAX:
        raise ExecutionIdError(field="execution_id", value=_shown(text), rule="InvalidPartitionIndex")
    canonical = _canonical_uuid(tail)
    if canonical is None:
        raise ExecutionIdError(field="execution_id", value=_shown(text), rule="InvalidUuid")
    return f"{{fp:{int(digits)}}}:{canonical}"


def parse_uuid(text: str, field: str = "id") -> str:
    """Parse any textual form of a uuid into the canonical one.

    Raises:
        InvalidInput: the text is not a uuid.
    """
    canonical = _canonical_uuid(text)
    if canonical is None:
        raise InvalidInput(field=field, value=_shown(text), rule="InvalidUuid")
    return canonical


def parse_lane_id(text: str) -> LaneId:
    """Parse a lane name.

    Raises:
        LaneIdError: the rule is ``Empty``, ``TooLong`` or ``NonPrintable``.
    """
    if not text:
        raise LaneIdError(field="lane_id", value="''", rule="Empty")
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > LANE_BYTES_MAX:
        raise LaneIdError(field="lane_id", value=_shown(text), rule="TooLong", length=size)
    for index, character in enumerate(text):
        if not " " <= character <= "~":
            raise LaneIdError(field="lane_id", value=_shown(text), rule="NonPrintable", index=index)
    return text


def partition_of(execution_id: str) -> int:
    """Read the partition out of a canonical execution id."""
    return int(execution_id[4 : execution_id.index("}")])


def minted_at_ms(execution_id: str) -> int | None:
    """When a canonical execution id was minted, by its minter's clock; None if it does not tell.

    >>> minted_at_ms("{fp:7}:01997b3e-8000-7000-8000-000000000000")
    1758727864320
    """
    digits = execution_id.rpartition(":")[2].replace("-", "")
    return int(digits[:12], 16) if digits[12] == "7" else None


def flow_partition(flow_id: str, count: int = FLOW_PARTITIONS) -> int:
    """Compute the partition of a flow, a budget or a quota policy from its uuid."""
    return partition_index(bytes.fromhex(flow_id.replace("-", "")), count)


def lane_partition(lane: str, count: int = FLOW_PARTITIONS) -> int:
    """Compute the partition that gathers a lane's executions outside flows."""
    return partition_index(lane.encode(), count)


def budget_id_of(namespace: str, name: str) -> BudgetId:
    """The id of a namespace's budget, by its name. A name that is an id stands for itself."""
    return _id_of("budget", namespace, name)


def quota_policy_id_of(namespace: str, name: str) -> QuotaPolicyId:
    """The id of a namespace's quota policy, by its name. A name that is an id stands for itself."""
    return _id_of("quota", namespace, name)


def _id_of(kind: str, namespace: str, name: str) -> str:
    if _CANONICAL_UUID.fullmatch(name):
        return name
    return str(uuid.uuid5(_NAMES, f"{kind}\x1f{namespace}\x1f{name}"))


def hyphenate(digits: str) -> str:
    """Write the 32 hexadecimal digits of a uuid in their usual form."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _canonical_uuid(text: str) -> str | None:
    if _CANONICAL_UUID.fullmatch(text):
        return text
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= NAME_CHARS_MAX else text[:64] + "…")

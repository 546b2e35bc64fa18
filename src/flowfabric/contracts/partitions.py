"""Which partition a record belongs to: the arithmetic every client must reproduce.

The index is CRC-16/XMODEM of the id's bytes modulo the family's partition count. An id that
carries its partition keeps it: the tag is read, never computed again.
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from enum import StrEnum
from typing import Annotated, TypeAlias

from msgspec import Meta

from flowfabric.contracts.base import Value
from flowfabric.contracts.limits import U16_MAX
from flowfabric.errors import InvalidInput

FLOW_PARTITIONS = 256
BUDGET_PARTITIONS = 32
QUOTA_PARTITIONS = 32

PartitionIndex = Annotated[int, Meta(ge=0, le=U16_MAX)]
PartitionKey: TypeAlias = Annotated[str, Meta(pattern=r"\A\{(fp|b|q):[0-9]{1,5}\}\Z")]

_BODY = re.compile(r"([^:]*):([^:]*)", re.DOTALL)
_DECIMAL = re.compile(r"[0-9]{1,5}", re.ASCII)
_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3
_U64 = 0xFFFFFFFFFFFFFFFF


class PartitionFamily(StrEnum):
    """The three groups of partitions; executions live in the partitions of flows."""

    FLOW = "fp"
    BUDGET = "b"
    QUOTA = "q"


class PartitionKeyError(InvalidInput):
    """The partition key is malformed. Use a key such as {fp:7} exactly as it was handed out."""


class Partition(Value):
    """One partition of one family."""

    family: PartitionFamily = PartitionFamily.FLOW
    index: PartitionIndex

    @property
    def key(self) -> PartitionKey:
        """The wire form, such as ``{fp:7}``."""
        return f"{{{self.family}:{self.index}}}"


class PartitionCounts(Value):
    """How many partitions each family has in a deployment."""

    flow: Annotated[int, Meta(ge=1, le=U16_MAX)] = FLOW_PARTITIONS
    budget: Annotated[int, Meta(ge=1, le=U16_MAX)] = BUDGET_PARTITIONS
    quota: Annotated[int, Meta(ge=1, le=U16_MAX)] = QUOTA_PARTITIONS


def crc16(data: bytes) -> int:
    """Compute CRC-16/XMODEM.

    >>> hex(crc16(b"123456789"))
    '0x31c3'
    """
    return crc_hqx(data, 0)


def fnv1a_64(data: bytes) -> int:
    """Compute the 64-bit FNV-1a hash, which spreads workers over partitions."""
    value = _FNV_OFFSET
    for byte in data:
        value = ((value ^ byte) * _FNV_PRIME) & _U64
    return value


def partition_index(data: bytes, count: int = FLOW_PARTITIONS) -> int:
    """Compute the partition of some bytes among ``count`` partitions."""
    return crc_hqx(data, 0) % count


def parse_partition_key(text: str) -> Partition:
    """Parse a key such as ``{fp:7}``.

    Raises:
        PartitionKeyError: the rule is ``MissingBraces``, ``MalformedBody``,
            ``UnknownFamilyPrefix`` or ``InvalidIndex``.
    """
    if not (text.startswith("{") and text.endswith("}") and len(text) > 1):
        raise _key_error(text, "MissingBraces")
    body = _BODY.fullmatch(text[1:-1])
    if body is None:
        raise _key_error(text, "MalformedBody")
    prefix, digits = body.groups()
    if prefix not in tuple(PartitionFamily):
        raise _key_error(text, "UnknownFamilyPrefix")
    if not _DECIMAL.fullmatch(digits) or int(digits) > U16_MAX:
        raise _key_error(text, "InvalidIndex")
    return Partition(family=PartitionFamily(prefix), index=int(digits))


def _key_error(text: str, rule: str) -> PartitionKeyError:
    return PartitionKeyError(field="partition_key", value=repr(text[:64]), rule=rule)

"""The handle: a worker's opaque proof of its lease, and its byte codec.

The bytes are little-endian and version 2; version 1, which lacks the marker and the store's
tag, is read but never written. A handle is neither signed nor encrypted.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from flowfabric.contracts.base import Value
from flowfabric.contracts.ids import (
    AttemptId,
    AttemptIndex,
    DurationMs,
    ExecutionId,
    LaneId,
    LeaseEpoch,
    LeaseFence,
    LeaseId,
    WorkerInstanceId,
    parse_execution_id,
    parse_lane_id,
    parse_uuid,
)
from flowfabric.errors import Corruption, FlowFabricError, HandleFromOtherBackend

_MARKER_V2 = 0x02
_WIRE_VERSION = 0x01
_HANDLE_BYTES_MAX = 4096


class BackendTag(StrEnum):
    """The kind of store that made a handle."""

    VALKEY = "Valkey"
    POSTGRES = "Postgres"
    SQLITE = "Sqlite"
    MEMORY = "Memory"


TAG_BYTES = {
    BackendTag.VALKEY: 0x01,
    BackendTag.POSTGRES: 0x02,
    BackendTag.SQLITE: 0x03,
    BackendTag.MEMORY: 0x04,
}
"""The byte that stands for a kind of store, in handles and in cursors of events."""
_TAGS = {byte: tag for tag, byte in TAG_BYTES.items()}


class HandleKind(StrEnum):
    """How the holder came by the handle; a suspended one carries no lease."""

    FRESH = "Fresh"
    RESUMED = "Resumed"
    SUSPENDED = "Suspended"
    RECLAIMED = "Reclaimed"


class Handle(Value):
    """A lease token for workers. Pass it back unchanged."""

    backend: BackendTag
    kind: HandleKind
    opaque: Annotated[bytes, Meta(max_length=_HANDLE_BYTES_MAX)]


class HandlePayload(Value):
    """What a handle's bytes say."""

    execution_id: ExecutionId
    attempt_index: AttemptIndex
    attempt_id: AttemptId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    lease_ttl_ms: DurationMs
    lane_id: LaneId
    worker_instance_id: WorkerInstanceId

    @property
    def fence(self) -> LeaseFence:
        """The triple that fences the holder's writes."""
        return LeaseFence(lease_id=self.lease_id, lease_epoch=self.lease_epoch, attempt_id=self.attempt_id)


def encode_handle(backend: BackendTag, kind: HandleKind, payload: HandlePayload) -> Handle:
    """Make a handle."""
    opaque = b"".join(
        (
            bytes((_MARKER_V2, _WIRE_VERSION, TAG_BYTES[backend])),
            _text(payload.execution_id),
            struct.pack("<I", payload.attempt_index),
            _text(payload.attempt_id),
            _text(payload.lease_id),
            struct.pack("<QQ", payload.lease_epoch, payload.lease_ttl_ms),
            _text(payload.lane_id),
            _text(payload.worker_instance_id),
        )
    )
    return Handle(backend=backend, kind=kind, opaque=opaque)


def decode_handle(handle: Handle, expected: BackendTag | None = None) -> HandlePayload:
    """Read a handle.

    Raises:
        Corruption: the bytes are not a handle.
        HandleFromOtherBackend: the handle was made by another kind of store than ``expected``.
    """
    backend, payload = decode_handle_bytes(handle.opaque)
    if backend is not handle.backend:
        raise _corrupt("the store's tag differs from the handle's backend")
    if expected is not None and backend is not expected:
        raise HandleFromOtherBackend(made_by=backend, expected=expected)
    return payload


def decode_handle_bytes(opaque: bytes) -> tuple[BackendTag, HandlePayload]:
    """Read a handle's bytes, of version 2 or 1.

    Raises:
        Corruption: the bytes are not a handle.
    """
    reader = _Reader(opaque)
    backend = _read_head(reader)
    try:
        payload = _read_payload(reader)
    except FlowFabricError as error:
        raise _corrupt(str(error)) from error
    if reader.rest():
        raise _corrupt("trailing bytes")
    return backend, payload


def _read_head(reader: _Reader) -> BackendTag:
    lead = reader.byte()
    if lead == _WIRE_VERSION:
        return BackendTag.VALKEY
    if lead != _MARKER_V2:
        raise _corrupt(f"unknown leading byte 0x{lead:02x}")
    version = reader.byte()
    if version != _WIRE_VERSION:
        raise _corrupt(f"unknown wire version 0x{version:02x}")
    tag = reader.byte()
    if tag not in _TAGS:
        raise _corrupt(f"unknown store tag 0x{tag:02x}")
    return _TAGS[tag]


def _read_payload(reader: _Reader) -> HandlePayload:
    return HandlePayload(
        execution_id=parse_execution_id(reader.text()),
        attempt_index=reader.number("<I", 4),
        attempt_id=parse_uuid(reader.text(), "attempt_id"),
        lease_id=parse_uuid(reader.text(), "lease_id"),
        lease_epoch=reader.number("<Q", 8),
        lease_ttl_ms=reader.number("<Q", 8),
        lane_id=parse_lane_id(reader.text()),
        worker_instance_id=reader.text(),
    )


class _Reader:
    """Takes fields off the front of some bytes; running out is corruption."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise _corrupt("truncated")
        part = self._data[self._at : end]
        self._at = end
        return part

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, layout: str, size: int) -> int:
        value: int = struct.unpack(layout, self.take(size))[0]
        return value

    def text(self) -> str:
        try:
            return self.take(self.number("<I", 4)).decode()
        except UnicodeDecodeError as error:
            raise _corrupt("invalid UTF-8") from error

    def rest(self) -> int:
        return len(self._data) - self._at


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<I", len(data)) + data


def _corrupt(rule: str) -> Corruption:
    return Corruption(field="handle", rule=rule)

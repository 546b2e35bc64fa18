"""Minting ids: the only place where they come from chance and the clock."""

from __future__ import annotations

import os
import time
from binascii import crc_hqx
from typing import Final

from flowfabric.contracts.ids import (
    AttemptId,
    ExecutionId,
    FlowId,
    LeaseId,
    SignalId,
    SuspensionId,
    WaitpointId,
    flow_partition,
    hyphenate,
    lane_partition,
    parse_uuid,
)
from flowfabric.contracts.partitions import FLOW_PARTITIONS
from flowfabric.contracts.suspensions import FreshWaitpoint

DRAWN_AT_ONCE: Final = 256

_VARIANTS: Final = {f"{digit:x}": f"{digit & 0b11 | 0b1000:x}" for digit in range(16)}
"""What a random uuid has in the place of a digit of chance where its variant is told."""

_drawn: list[bytes] = []
"""Chance that was drawn and not used yet, 16 bytes each. Asking the kernel is what costs."""

os.register_at_fork(after_in_child=_drawn.clear)  # or both processes would mint the same ids


def _draw() -> bytes:
    """16 bytes of chance. May be called from any thread."""
    while True:
        try:
            return _drawn.pop()
        except IndexError:
            fresh = os.urandom(16 * DRAWN_AT_ONCE)
            _drawn.extend(fresh[place : place + 16] for place in range(0, len(fresh), 16))


def new_uuid4() -> str:
    """Mint a random uuid."""
    digits = _draw().hex()
    variant = _VARIANTS[digits[16]]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def new_uuid7(now_ms: int | None = None) -> str:
    """Mint a uuid whose text sorts by time, which keeps new index entries together."""
    return hyphenate(_uuid7_bytes(now_ms).hex())


def new_execution_id(
    *,
    lane: str | None = None,
    flow_id: str | None = None,
    partition: int | None = None,
    now_ms: int | None = None,
    partitions: int = FLOW_PARTITIONS,
) -> ExecutionId:
    """Mint an execution id.

    Without a choice the id spreads by its own uuid. ``flow_id`` puts it beside its flow,
    ``lane`` gathers it with the lane's other executions, ``partition`` names the place.
    """
    raw = _uuid7_bytes(now_ms)
    if partition is None:
        partition = _choose_partition(bytes(raw), lane, flow_id, partitions)
    return f"{{fp:{partition}}}:{hyphenate(raw.hex())}"


def deterministic_execution_id(
    text: str,
    *,
    lane: str | None = None,
    flow_id: str | None = None,
    partitions: int = FLOW_PARTITIONS,
) -> ExecutionId:
    """Make the id of a uuid that the caller supplies, so that submitting twice names one work.

    Raises:
        InvalidInput: the text is not a uuid.
    """
    canonical = parse_uuid(text, "execution_id")
    raw = bytes.fromhex(canonical.replace("-", ""))
    place = _choose_partition(raw, lane, flow_id, partitions)
    return f"{{fp:{place}}}:{canonical}"


def new_lease_id() -> LeaseId:
    """Mint a lease id."""
    return new_uuid4()


def new_attempt_id() -> AttemptId:
    """Mint an attempt id."""
    return new_uuid4()


def new_signal_id() -> SignalId:
    """Mint a signal id."""
    return new_uuid4()


def new_waitpoint_id() -> WaitpointId:
    """Mint a waitpoint id."""
    return new_uuid4()


def new_suspension_id() -> SuspensionId:
    """Mint a suspension id."""
    return new_uuid4()


def new_flow_id() -> FlowId:
    """Mint a flow id."""
    return new_uuid4()


def _choose_partition(raw: bytes, lane: str | None, flow_id: str | None, count: int) -> int:
    if flow_id is not None:
        return flow_partition(flow_id, count)
    if lane is not None:
        return lane_partition(lane, count)
    return crc_hqx(raw, 0) % count


def _uuid7_bytes(now_ms: int | None) -> bytearray:
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    raw = bytearray(now_ms.to_bytes(6, "big") + _draw()[6:])
    raw[6] = raw[6] & 0x0F | 0x70
    raw[8] = raw[8] & 0x3F | 0x80
    return raw


def fresh_waitpoint() -> FreshWaitpoint:
    """Mint a waitpoint whose key is ``wpk:<waitpoint id>``."""
    waitpoint_id = new_waitpoint_id()
    return FreshWaitpoint(waitpoint_id=waitpoint_id, waitpoint_key=f"wpk:{waitpoint_id}")

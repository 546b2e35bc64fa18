"""The engine itself: whether it answers, what it stands on, and what it can do."""

from __future__ import annotations

import msgspec

from flowfabric.contracts.base import Command, Value
from flowfabric.contracts.ids import TimestampMs


class Pong(Value):
    """The store answers; this is its clock."""

    now_ms: TimestampMs


class PingArgs(Command[Pong]):
    """Make sure that the store answers. A store that fails raises the fault."""


class BackendCapabilities(Value):
    """Which store there is, what an acknowledged commit survives, and what can be done."""

    backend_label: str
    """The kind of store: ``memory``, ``sqlite`` or another."""
    durability_level: str
    """``D0`` memory only, ``D1`` a killed process, ``D2`` power loss, ``D3`` loss of the host."""
    operations: tuple[str, ...]
    """Every operation by name, in order."""
    supports: dict[str, bool] = msgspec.field(default_factory=dict)
    """Abilities that callers ask for by name."""


class CapabilitiesArgs(Command[BackendCapabilities]):
    """Read what this deployment can do."""

"""What callers ask about the engine itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric.contracts.backend import BackendCapabilities, CapabilitiesArgs, PingArgs, Pong
from flowfabric.core.records import KEYRING_ID, Keyring, key_for
from flowfabric.core.registry import RULES
from flowfabric.engine.layers import operation_name
from flowfabric.engine.operations import OPERATIONS, operation

if TYPE_CHECKING:
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine

ABILITIES: Final = {
    "budget_admin": "create_budget",
    "quota_admin": "create_quota_policy",
    "cancel_flow_wait_timeout": "cancel_flow",
    "cancel_flow_wait_indefinite": "cancel_flow",
    "stream_durable_summary": "read_summary",
    "stream_best_effort_live": "append_frame",
}
"""Abilities that have names of their own, and the operation that has to be there for each."""


@operation(PingArgs)
async def ping(engine: Engine, args: PingArgs, envelope: Envelope) -> Pong:
    """Read a record, so that a store that cannot be read is noticed.

    Raises:
        StoreError: the store failed.
    """
    loaded = await engine.store.load([key_for(Keyring, KEYRING_ID)])
    return Pong(now_ms=loaded.now)


@operation(CapabilitiesArgs)
async def capabilities(engine: Engine, args: CapabilitiesArgs, envelope: Envelope) -> BackendCapabilities:
    """The store, its durability, and every operation there is."""
    durability = engine.durability
    assert durability is not None, "a command only gets here in a running engine"
    operations = public_operations()
    supports = dict.fromkeys(operations, True)
    supports |= {ability: needed in operations for ability, needed in ABILITIES.items()}
    supports["prepare"] = True  # opening a store prepares it
    return BackendCapabilities(
        backend_label=durability.store,
        durability_level=durability.level,
        operations=operations,
        supports=supports,
    )


def public_operations() -> tuple[str, ...]:
    """The names of all operations that callers may ask for, in order."""
    commands = {*RULES, *OPERATIONS}
    public = [command for command in commands if command.__module__.startswith("flowfabric.contracts.")]
    return tuple(sorted(operation_name(command) for command in public))

"""Renewing leases on the server: see ``core.rules.lapsing``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.contracts.leases import LeaseRenewed, RenewLeaseArgs
from flowfabric.core.events import Family
from flowfabric.core.indexes import DUE_LEASE
from flowfabric.core.records import Execution, key_for
from flowfabric.stores.valkey.native.function import asked_pair, without_zero

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from flowfabric.contracts.ids import LeaseFence
    from flowfabric.core.records import Key
    from flowfabric.core.work import Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects

_OUTCOME_HEAD: Final = without_zero(msgspec.msgpack.encode(LeaseRenewed(expires_at=0)))


class RenewLease:
    """Stands in for the rule of ``RenewLeaseArgs``."""

    name: Final = "renew_lease"
    command_type: Final = RenewLeaseArgs
    serves: Final = (RenewLeaseArgs,)

    def subject(self, asked: Asked) -> Key:
        return key_for(Execution, asked.command.execution_id)

    def owner(self, command: RenewLeaseArgs) -> Key:
        return key_for(Execution, command.execution_id)

    def relied_on(self, asked: Asked) -> None:
        """Nothing but the execution itself."""

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The namespace. Whoever has no fence is refused by the rule."""
        return asked.namespace if asked.command.fence is not None else None

    def shared(self, first: Asked) -> Sequence[Argument]:
        return (_OUTCOME_HEAD, type(first.command).__name__)

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        args: RenewLeaseArgs = asked.command
        fence: LeaseFence | None = args.fence
        assert fence is not None
        return (
            keys.record(self.subject(asked)),
            keys.told(args.execution_id),
        ), (
            args.execution_id,
            fence.lease_id,
            fence.lease_epoch,
            fence.attempt_id,
            args.attempt_index,
            asked_pair(asked.envelope.request_id),
            args.lease_ttl_ms,
        )

    def answer(self, asked: Asked, reply: bytes, effects: Effects) -> LeaseRenewed:
        outcome = LeaseRenewed(expires_at=int(reply))
        effects.tell(asked, Family.LEASE, "renewed")
        effects.rows.append((DUE_LEASE, "", outcome.expires_at, asked.command.execution_id))
        return outcome

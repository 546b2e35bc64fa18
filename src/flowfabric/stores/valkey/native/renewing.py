"""Renewing leases on the server: see ``core.rules.lapsing``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.contracts.leases import LeaseRenewed, RenewLeaseArgs
from flowfabric.core.events import Family
from flowfabric.core.indexes import DUE_LEASE
from flowfabric.stores.valkey.native.function import OfLeaseHolder, asked_pair, without_zero

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.contracts.ids import LeaseFence
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects

_OUTCOME_HEAD: Final = without_zero(msgspec.msgpack.encode(LeaseRenewed(expires_at=0)))


class RenewLease(OfLeaseHolder):
    """Stands in for the rule of ``RenewLeaseArgs``."""

    name: Final = "renew_lease"
    command_type: Final = RenewLeaseArgs
    serves: Final = (RenewLeaseArgs,)

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

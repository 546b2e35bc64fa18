"""Ids that a caller may leave to the engine are minted before the rule runs, for rules are pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from flowfabric.contracts.leases import IssueGrantAndClaimArgs, IssueGrantAndClaimResult
from flowfabric.engine.admission import decide_admitted
from flowfabric.engine.operations import operation
from flowfabric.minting import new_attempt_id, new_lease_id

if TYPE_CHECKING:
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine


@operation(IssueGrantAndClaimArgs)
async def mint_claim_ids(
    engine: Engine, args: IssueGrantAndClaimArgs, envelope: Envelope
) -> IssueGrantAndClaimResult:
    """Claim with the ids that the caller gave, and fresh ones for those it did not.

    A repeated request gets the first answer, with the ids that were minted then.
    """
    minted = replace(
        args, lease_id=args.lease_id or new_lease_id(), attempt_id=args.attempt_id or new_attempt_id()
    )
    return await decide_admitted(engine, minted, envelope)

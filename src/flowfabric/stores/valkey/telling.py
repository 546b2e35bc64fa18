"""What the message says that a commit is published with: who has committed, where, and what is new to claim.

The caller writes who and where; the scopes of the eligible index in which the commit puts rows follow,
each behind a ``SCOPE_END``. A message that says less says that anything may have happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric.core.indexes import ELIGIBLE
from flowfabric.stores.valkey.keys import SCOPE_END

if TYPE_CHECKING:
    from flowfabric.stores.base import Commit
    from flowfabric.stores.valkey.sightings import Sightings

SCOPES_MAX: Final = 64
"""How many scopes a message names at most: every server of a cluster passes it on to all that listen."""


def claimable_scopes(commit: Commit) -> set[str]:
    """The scopes in which a commit puts claimable work."""
    return {scope for index, scope, _, _ in commit.rows_added if index == ELIGIBLE}


def teller(origin: str, shard: int) -> str:
    """How a message of a commit begins: who has committed, and into which shard."""
    return f"{origin} {shard}"


def message(origin: str, shard: int, commit: Commit) -> bytes:
    """The whole message of a commit."""
    scopes = claimable_scopes(commit)
    if len(scopes) > SCOPES_MAX:
        return origin.encode()
    return SCOPE_END.join([teller(origin, shard).encode(), *(scope.encode() for scope in scopes)])


def origin_of(told: bytes) -> str:
    """Who has committed."""
    return told.partition(SCOPE_END)[0].partition(b" ")[0].decode()


def note_told(told: bytes, sightings: Sightings) -> None:
    """Note what a message says about where there is something to claim."""
    where, *scopes = told.split(SCOPE_END)
    shard = where.partition(b" ")[2]
    if shard.isdigit() and int(shard) < sightings.shards:
        sightings.put(int(shard), [scope.decode() for scope in scopes])
    else:
        sightings.forget_all()

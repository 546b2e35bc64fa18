"""Finding claimable work; see ``sightings`` for what is known of the shards."""

from __future__ import annotations

import heapq
from itertools import islice
from typing import TYPE_CHECKING, Any

from flowfabric.core.indexes import ELIGIBLE
from flowfabric.stores.valkey.keys import row_of, row_range, scopes_range
from flowfabric.stores.valkey.library import list_scopes

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowfabric.stores.valkey.client import Client
    from flowfabric.stores.valkey.connection import Command
    from flowfabric.stores.valkey.keys import Keys, Shards
    from flowfabric.stores.valkey.sightings import Sightings


class EligibleReads:
    """Reads of the eligible index, for one search.

    Args:
        client: the way to the shards.
        shards: the shards of the store.
        sightings: what is known of them. What is read is added.
        trusting: do not ask a shard which scopes it has if that is known. Rows are read only from
            shards that can have them in either case.
    """

    def __init__(self, client: Client, shards: Shards, sightings: Sightings, *, trusting: bool) -> None:
        self.has_trusted = False
        self._client = client
        self._shards = shards.all
        self._sightings = sightings
        self._trusting = trusting

    async def index_scopes(
        self, index: str, prefix: str, *, after: str | None = None, limit: int = 1_000
    ) -> list[str]:
        assert index == ELIGIBLE, "nothing is known of other indexes"
        found: set[str] = set()
        asked = []
        for keys in self._shards:
            known = self._sightings.scopes(keys.shard, (prefix, after)) if self._trusting else None
            if known is None:
                asked.append(keys)
            else:
                found |= known
                self.has_trusted = True
        if asked:
            found |= await self._look(asked, prefix, after, limit)
        return sorted(found)[:limit]

    async def _look(self, asked: list[Keys], prefix: str, after: str | None, limit: int) -> set[str]:
        """The scopes in some shards, which are remembered."""
        looks = [self._sightings.begin(keys.shard, (prefix, after)) for keys in asked]
        wanted = scopes_range(prefix, after)
        try:
            parts = await self._read_each(
                asked, lambda keys: list_scopes(keys.index(ELIGIBLE), wanted, limit)
            )
        except BaseException:
            for look in looks:
                self._sightings.give_up(look)
            raise
        scopes = [{scope.decode() for scope in part} for part in parts]
        for look, part in zip(looks, scopes, strict=True):
            self._sightings.end(look, part, is_all=len(part) < limit)
        return set().union(*scopes)

    async def read_index(
        self, index: str, scope: str, *, after: tuple[int, str] | None = None, limit: int = 100
    ) -> list[tuple[int, str]]:
        assert index == ELIGIBLE, "nothing is known of other indexes"
        asked = [keys for keys in self._shards if self._sightings.may_have(keys.shard, scope)]
        puts = [self._sightings.puts(keys.shard) for keys in asked]
        wanted = row_range(scope, after, None, descending=False)
        found = await self._read_each(asked, lambda keys: wanted.command(keys.index(ELIGIBLE), limit))
        if after is None:
            for keys, put, part in zip(asked, puts, found, strict=True):
                if not part:
                    self._sightings.note_empty(keys.shard, scope, put)
        return [row_of(stored) for stored in islice(heapq.merge(*found), limit)]

    async def _read_each(self, asked: list[Keys], command: Callable[[Keys], Command]) -> list[Any]:
        return await self._client.read_each([(keys.slot, command(keys)) for keys in asked])

"""Stores around stores: one that remembers what was committed, and one that fails as it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowfabric import errors
from flowfabric.stores.base import Conflict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.core.events import Family, StoredEvent
    from flowfabric.core.records import Key
    from flowfabric.core.work import Frame
    from flowfabric.stores.base import Commit, Durability, Loaded
    from flowfabric.stores.clock import StoreClock
    from flowfabric.testing.clock import ClockedStore


class StoreAround:
    """Hands everything on to another store. Subclasses change one thing."""

    def __init__(self, inner: ClockedStore) -> None:
        self.inner = inner

    @property
    def clock(self) -> StoreClock:
        """The inner store's clock."""
        return self.inner.clock

    @clock.setter
    def clock(self, clock: StoreClock) -> None:
        self.inner.clock = clock

    async def open(self) -> Durability:
        return await self.inner.open()

    async def attest(self) -> Durability:
        return await self.inner.attest()

    async def close(self) -> None:
        await self.inner.close()

    async def now(self) -> int:
        return await self.inner.now()

    async def load(self, keys: Iterable[Key]) -> Loaded:
        return await self.inner.load(keys)

    @property
    def batches_at_once(self) -> int:
        return self.inner.batches_at_once

    def place_of(self, key: Key) -> int:
        return self.inner.place_of(key)

    async def commit(self, commit: Commit) -> int | None:
        return await self.inner.commit(commit)

    async def read_index(
        self,
        index: str,
        scope: str,
        *,
        after: tuple[int, str] | None = None,
        upto: int | None = None,
        limit: int = 100,
        descending: bool = False,
    ) -> list[tuple[int, str]]:
        return await self.inner.read_index(
            index, scope, after=after, upto=upto, limit=limit, descending=descending
        )

    async def count_index(self, index: str, scope: str, *, limit: int | None = None) -> int:
        return await self.inner.count_index(index, scope, limit=limit)

    async def index_scopes(
        self, index: str, prefix: str, *, after: str | None = None, limit: int = 1_000
    ) -> list[str]:
        return await self.inner.index_scopes(index, prefix, after=after, limit=limit)

    async def list_keys(self, prefix: Key, *, after: Key | None = None, limit: int = 100) -> list[Key]:
        return await self.inner.list_keys(prefix, after=after, limit=limit)

    async def list_owned(self, identity: str, *, limit: int = 100) -> list[Key]:
        return await self.inner.list_owned(identity, limit=limit)

    async def read_frames(
        self,
        stream: str,
        *,
        first: tuple[int, int] = (0, 0),
        last: tuple[int, int] | None = None,
        limit: int = 100,
    ) -> list[Frame]:
        return await self.inner.read_frames(stream, first=first, last=last, limit=limit)

    async def read_events(
        self,
        after: int,
        *,
        families: frozenset[Family] | None = None,
        namespace: str | None = None,
        execution_id: str | None = None,
        limit: int = 100,
    ) -> list[StoredEvent]:
        return await self.inner.read_events(
            after, families=families, namespace=namespace, execution_id=execution_id, limit=limit
        )

    async def last_event(self) -> int:
        return await self.inner.last_event()

    async def trimmed_events(self) -> int:
        return await self.inner.trimmed_events()

    async def trim_events(self, upto: int, *, sparing: frozenset[Family] = frozenset()) -> None:
        await self.inner.trim_events(upto, sparing=sparing)

    async def forget_events(self, family: Family, upto: int) -> None:
        await self.inner.forget_events(family, upto)

    async def set_clock_offset(self, offset_ms: int) -> None:
        await self.inner.set_clock_offset(offset_ms)

    async def wait_for_change(self, timeout_ms: int) -> bool:
        return await self.inner.wait_for_change(timeout_ms)


class RecordingStore(StoreAround):
    """Remembers every commit that was applied and what was loaded, and counts loads and reads of indexes."""

    def __init__(self, inner: ClockedStore) -> None:
        super().__init__(inner)
        self.commits: list[Commit] = []
        self.loads = 0
        self.loaded: set[Key] = set()
        self.index_reads = 0

    async def load(self, keys: Iterable[Key]) -> Loaded:
        wanted = list(keys)
        self.loads += 1
        self.loaded.update(wanted)
        return await self.inner.load(wanted)

    async def commit(self, commit: Commit) -> int | None:
        version = await self.inner.commit(commit)
        self.commits.append(commit)
        return version

    async def read_index(self, index: str, scope: str, **options: Any) -> list[tuple[int, str]]:
        self.index_reads += 1
        return await self.inner.read_index(index, scope, **options)

    async def index_scopes(self, index: str, prefix: str, **options: Any) -> list[str]:
        self.index_reads += 1
        return await self.inner.index_scopes(index, prefix, **options)


class FaultyStore(StoreAround):
    """Fails the next calls as it is told, then works again.

    Attributes:
        conflicts: how many commits are refused although nothing has changed, and which keys are
            then said to have changed; None for all keys of the commit.
        lost_replies: how many commits are applied and then answered as if the store were gone.
        lost_commits: how many commits are not applied and answered in the same way.
        lost_loads: how many loads fail.
    """

    def __init__(self, inner: ClockedStore) -> None:
        super().__init__(inner)
        self.conflicts = 0
        self.conflicting_keys: frozenset[Key] | None = None
        self.lost_replies = 0
        self.lost_commits = 0
        self.lost_loads = 0

    async def load(self, keys: Iterable[Key]) -> Loaded:
        if self.lost_loads:
            self.lost_loads -= 1
            raise errors.StoreUnreachable
        return await self.inner.load(keys)

    async def commit(self, commit: Commit) -> int | None:
        if self.lost_commits:
            self.lost_commits -= 1
            raise errors.StoreUnreachable
        touched = frozenset(change.key for change in commit.changes) & (
            self.conflicting_keys or frozenset(change.key for change in commit.changes)
        )
        if self.conflicts and touched:
            self.conflicts -= 1
            raise Conflict(touched)
        version = await self.inner.commit(commit)
        if self.lost_replies:
            self.lost_replies -= 1
            raise errors.StoreUnreachable
        return version

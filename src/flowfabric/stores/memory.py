"""The store in dictionaries: for tests, and the model that other stores are compared with.

Records are kept encoded, so nothing outside can change what was committed.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from itertools import chain, islice
from typing import TYPE_CHECKING

import msgspec

from flowfabric import errors
from flowfabric.core.events import Event, Family, StoredEvent
from flowfabric.core.records import Key, Record, decode_record, encode_record
from flowfabric.core.work import Frame
from flowfabric.stores.base import Commit, Conflict, Durability, Loaded, is_owned, key_order
from flowfabric.stores.clock import StoreClock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flowfabric.core.indexes import IndexRow


class MemoryStore:
    """A ``Store`` without durability (level D0).

    Args:
        clock: the clock it lives by.
    """

    def __init__(self, clock: StoreClock | None = None) -> None:
        self.clock = clock or StoreClock()
        self._records: dict[Key, tuple[int, bytes]] = {}
        self._indexes: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self._events: list[Event] = []
        self._trimmed_events = 0
        self._spared_events: list[StoredEvent] = []
        self._frames: dict[str, list[Frame]] = {}
        self.clock_offset_ms = 0
        self._mark_ms = 0
        self._last_commit = 0

    async def open(self) -> Durability:
        return await self.attest()

    async def attest(self) -> Durability:
        return Durability(level="D0", store="memory", settings={})

    async def close(self) -> None:
        pass

    async def now(self) -> int:
        return self.clock.read(self._mark_ms, self.clock_offset_ms)

    async def set_clock_offset(self, offset_ms: int) -> None:
        """Shift the store's clock. Only tests do that; see ``flowfabric.testing``."""
        self.clock_offset_ms = offset_ms
        self._mark_ms = 0

    async def load(self, keys: Iterable[Key]) -> Loaded:
        return Loaded(now=await self.now(), rows=[self._row(key) for key in keys])

    def _row(self, key: Key) -> tuple[Key, int, Record | None]:
        stored = self._records.get(key)
        if stored is None:
            return key, 0, None
        version, data = stored
        try:
            return key, version, decode_record(key, data)
        except msgspec.DecodeError as error:
            raise errors.StoreCorrupt(record=key, reason=error) from error

    @property
    def batches_at_once(self) -> int:
        return 1

    def place_of(self, key: Key) -> int:
        return 0

    async def commit(self, commit: Commit) -> int:
        self._compare_versions(commit)
        # A version is the number of the commit that wrote it, so that it never comes back when a
        # record is removed and created again.
        self._last_commit += 1
        self._mark_ms = self.clock.read(self._mark_ms, self.clock_offset_ms)
        for change in commit.changes:
            if change.record is None:
                del self._records[change.key]
            else:
                self._records[change.key] = (self._last_commit, encode_record(change.record))
        for row in commit.rows_removed:
            self._remove_row(row)
        for row in commit.rows_added:
            self._add_row(row)
        self._events.extend(commit.events)
        for frame in commit.appends:
            self._frames.setdefault(frame.stream, []).append(frame)
        for trim in commit.trims:
            frames = self._frames.get(trim.stream, [])
            del frames[: max(0, len(frames) - trim.keep)]
        return self._last_commit

    def _compare_versions(self, commit: Commit) -> None:
        relied = [(change.key, change.version) for change in commit.changes] + commit.relied_on
        changed = [key for key, version in relied if self._records.get(key, (0, b""))[0] != version]
        if changed:
            raise Conflict(frozenset(changed))

    def _add_row(self, row: IndexRow) -> None:
        index, scope, sort, member = row
        rows = self._indexes.setdefault((index, scope), [])
        place = bisect_left(rows, (sort, member))
        assert rows[place : place + 1] != [(sort, member)], f"index row {row} is there already"
        rows.insert(place, (sort, member))

    def _remove_row(self, row: IndexRow) -> None:
        index, scope, sort, member = row
        rows = self._indexes[index, scope]
        place = bisect_left(rows, (sort, member))
        assert rows[place : place + 1] == [(sort, member)], f"index row {row} is not there"
        del rows[place]
        if not rows:
            del self._indexes[index, scope]

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
        rows = self._indexes.get((index, scope), [])
        if descending:
            end = len(rows) if after is None else bisect_left(rows, after)
            found = rows[max(0, end - limit) : end][::-1]
            return found if upto is None else [row for row in found if row[0] >= upto]
        start = 0 if after is None else bisect_right(rows, after)
        found = rows[start : start + limit]
        return found if upto is None else [row for row in found if row[0] <= upto]

    async def count_index(self, index: str, scope: str, *, limit: int | None = None) -> int:
        count = len(self._indexes.get((index, scope), ()))
        return count if limit is None else min(count, limit)

    async def index_scopes(
        self, index: str, prefix: str, *, after: str | None = None, limit: int = 1_000
    ) -> list[str]:
        scopes = (scope for name, scope in self._indexes if name == index and scope.startswith(prefix))
        return sorted(scope for scope in scopes if after is None or scope > after)[:limit]

    async def list_keys(self, prefix: Key, *, after: Key | None = None, limit: int = 100) -> list[Key]:
        keys = sorted((key for key in self._records if key.startswith(prefix)), key=key_order)
        start = 0 if after is None else bisect_right(keys, key_order(after), key=key_order)
        return keys[start : start + limit]

    async def list_owned(self, identity: str, *, limit: int = 100) -> list[Key]:
        return sorted((key for key in self._records if is_owned(key, identity)), key=key_order)[:limit]

    async def read_frames(
        self,
        stream: str,
        *,
        first: tuple[int, int] = (0, 0),
        last: tuple[int, int] | None = None,
        limit: int = 100,
    ) -> list[Frame]:
        frames = self._frames.get(stream, [])
        start = bisect_left(frames, first, key=_frame_id)
        end = len(frames) if last is None else bisect_right(frames, last, key=_frame_id)
        return frames[start : min(end, start + limit)]

    async def read_events(
        self,
        after: int,
        *,
        families: frozenset[Family] | None = None,
        namespace: str | None = None,
        execution_id: str | None = None,
        limit: int = 100,
    ) -> list[StoredEvent]:
        found = (
            stored
            for stored in chain(self._spared_events, self._kept_events(after))
            if stored.sequence > after
            and (families is None or stored.event.family in families)
            and namespace in (None, stored.event.namespace)
            and execution_id in (None, stored.event.execution_id)
        )
        return list(islice(found, limit))

    def _kept_events(self, after: int) -> Iterator[StoredEvent]:
        """The events behind a place that were not trimmed."""
        first = max(0, after - self._trimmed_events)
        log = enumerate(islice(self._events, first, None), self._trimmed_events + first + 1)
        return (StoredEvent(sequence=sequence, event=event) for sequence, event in log)

    async def last_event(self) -> int:
        return self._trimmed_events + len(self._events)

    async def trimmed_events(self) -> int:
        return self._trimmed_events

    async def trim_events(self, upto: int, *, sparing: frozenset[Family] = frozenset()) -> None:
        gone = min(max(0, upto - self._trimmed_events), len(self._events))
        trimmed = islice(self._kept_events(self._trimmed_events), gone)
        self._spared_events += [stored for stored in trimmed if stored.event.family in sparing]
        del self._events[:gone]
        self._trimmed_events += gone

    async def forget_events(self, family: Family, upto: int) -> None:
        self._spared_events = [
            stored
            for stored in self._spared_events
            if stored.event.family is not family or stored.sequence > upto
        ]

    async def wait_for_change(self, timeout_ms: int) -> bool:
        await asyncio.sleep(timeout_ms / 1_000)
        return False


def _frame_id(frame: Frame) -> tuple[int, int]:
    return frame.ms, frame.seq

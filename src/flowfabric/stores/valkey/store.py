"""The store on a Valkey server, which many processes on many hosts may share.

The rules this module keeps:

- A commit is one call of the function ``commit``, which compares the versions and applies everything
  or nothing. The server runs one function at a time, so nothing happens in between.
- Every key of a call is declared, and all keys of a shard share a hash tag and hence a slot.
- What is read together is asked for together: commands of one connection are carried out in the order
  in which they were sent.
- No command is sent again after its answer was lost; the caller repeats with the same request id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric import errors
from flowfabric.core.events import Family
from flowfabric.core.records import RECORD_TYPES, kind_of
from flowfabric.stores.base import Conflict, Loaded
from flowfabric.stores.clock import StoreClock
from flowfabric.stores.keys import restored_key, stored_key, stored_prefix_bounds
from flowfabric.stores.valkey import records
from flowfabric.stores.valkey.changes import Changes
from flowfabric.stores.valkey.client import Client
from flowfabric.stores.valkey.keys import Keys, prefix_range, row_of, row_range, text_range
from flowfabric.stores.valkey.opening import LEVELS, attest, prepare

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.core.events import StoredEvent
    from flowfabric.core.records import Key
    from flowfabric.core.work import Frame
    from flowfabric.stores.base import Commit, Durability
    from flowfabric.stores.valkey.client import Settings
    from flowfabric.stores.valkey.connection import Command

LISTED_PER_READ: Final = 1_000
"""How many keys are looked at in one go where only some of them may be wanted."""

EVENTS_TRIMMED_AT_ONCE: Final = 500
"""The server does nothing else meanwhile."""


class Statistics(msgspec.Struct):
    """Counters since the store was opened."""

    commits: int = 0
    conflicts: int = 0


class ValkeyStore:
    """A ``Store`` below one prefix of a Valkey server.

    Args:
        settings: how the server is reached, and what is asked of it.
        allow_clock_offset: accept a prefix whose clock a test has moved.
        clock: the clock to live by instead of the server's.
    """

    def __init__(
        self, settings: Settings, *, allow_clock_offset: bool = False, clock: StoreClock | None = None
    ) -> None:
        self.settings = settings
        self.clock = clock or StoreClock()
        self.statistics = Statistics()
        self._allow_clock_offset = allow_clock_offset
        self._keys = Keys(settings.prefix, 0)
        self._client = Client(settings)
        self._changes: Changes | None = None
        self._opening = False

    # Opening and closing

    async def open(self) -> Durability:
        if self._opening or self._changes is not None:
            raise errors.StoreUnusable(
                f"{self.settings.place} is open already. Close this store before reopening it."
            )
        self._opening = True
        try:
            return await self._open()
        except BaseException:
            self._client.close()
            raise
        finally:
            self._opening = False

    async def _open(self) -> Durability:
        self._client.open()
        durability = await attest(self._client, self.settings.durability)
        await prepare(self._client, self._keys.state, allow_clock_offset=self._allow_clock_offset)
        changes = Changes(self.settings, self._last_commit)
        await changes.open()
        self.statistics = Statistics()
        self._changes = changes
        return durability

    async def attest(self) -> Durability:
        return await attest(self._client, required_level=LEVELS[0])

    async def close(self) -> None:
        changes, self._changes = self._changes, None
        if changes is not None:
            changes.close()
            self._client.close()

    # Reading

    async def now(self) -> int:
        fields, time = await self._client.read(*self._clock_commands())
        return records.state_of(fields, time).now(self.clock)

    def _clock_commands(self) -> tuple[Command, Command]:
        return ("HMGET", self._keys.state, "mark_ms", "clock_offset_ms"), ("TIME",)

    async def load(self, keys: Iterable[Key]) -> Loaded:
        wanted = list(dict.fromkeys(keys))
        # One MGET is one snapshot. The clock comes last: it is read after the records were reached.
        reading: list[Command] = [("MGET", *map(self._keys.record, wanted))] if wanted else []
        *found, fields, time = await self._client.read(*reading, *self._clock_commands())
        values = found[0] if wanted else []
        return Loaded(
            now=records.state_of(fields, time).now(self.clock),
            rows=[records.loaded_row(key, stored) for key, stored in zip(wanted, values, strict=True)],
        )

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
        wanted = row_range(after, upto, descending=descending)
        [found] = await self._client.read(
            wanted.command(self._keys.index(index, scope), limit, descending=descending)
        )
        return [row_of(stored) for stored in found]

    async def count_index(self, index: str, scope: str) -> int:
        [count] = await self._client.read(("ZCARD", self._keys.index(index, scope)))
        return int(count)

    async def index_scopes(
        self, index: str, prefix: str, *, after: str | None = None, limit: int = 1_000
    ) -> list[str]:
        wanted = prefix_range(prefix, after)
        [found] = await self._client.read(wanted.command(self._keys.scopes(index), limit))
        return [scope.decode() for scope in found]

    async def list_keys(self, prefix: Key, *, after: Key | None = None, limit: int = 100) -> list[Key]:
        kinds = (
            [kind_of(prefix)] if "/" in prefix else [kind for kind in RECORD_TYPES if kind.startswith(prefix)]
        )
        place = None if after is None else stored_key(after)
        found: list[str] = []
        for kind in kinds:
            found += await self._list_kind(kind, prefix, place, limit)
        return [restored_key(name) for name in sorted(found)[:limit]]

    async def _list_kind(self, kind: str, prefix: Key, place: str | None, limit: int) -> list[str]:
        """Stored keys of one kind that begin with the prefix, behind ``place``."""
        low, high = stored_prefix_bounds(prefix)
        # Where the bounds do not narrow, only some of what lies between them may begin with the prefix.
        page = limit if low else max(limit, LISTED_PER_READ)
        found: list[str] = []
        while len(found) < limit:
            wanted = text_range(low, high, place)
            [names] = await self._client.read(wanted.command(self._keys.listing(kind), page))
            read = [name.decode() for name in names]
            found += [name for name in read if restored_key(name).startswith(prefix)]
            if len(read) < page:
                break
            place = read[-1]
        return found[:limit]

    async def read_frames(
        self,
        stream: str,
        *,
        first: tuple[int, int] = (0, 0),
        last: tuple[int, int] | None = None,
        limit: int = 100,
    ) -> list[Frame]:
        end = "+" if last is None else f"{last[0]}-{last[1]}"
        key = self._keys.frames(stream)
        [found] = await self._client.read(("XRANGE", key, f"{first[0]}-{first[1]}", end, "COUNT", limit))
        return records.frames_of(stream, found)

    async def read_events(
        self,
        after: int,
        *,
        families: frozenset[Family] | None = None,
        namespace: str | None = None,
        execution_id: str | None = None,
        limit: int = 100,
    ) -> list[StoredEvent]:
        chosen = frozenset(Family) if families is None else families
        if execution_id is not None:
            found = await self._read_told([self._keys.told(execution_id)], after, chosen, limit)
            return [stored for stored in found if namespace in (None, stored.event.namespace)]
        if namespace is not None:
            told = [self._keys.told_in(namespace, family) for family in sorted(chosen)]
            return await self._read_told(told, after, chosen, limit)
        # The parts of the log are read one after another, and a commit may come in between. What is
        # there when the first command is carried out is complete in all of them.
        last, *parts = await self._client.read(
            ("HGET", self._keys.state, "events"),
            *(
                ("XRANGE", self._keys.log(family), after + 1, "+", "COUNT", limit)
                for family in sorted(chosen)
            ),
        )
        found = [event for part in parts for event in records.events_of(part)]
        found.sort(key=_sequence)
        return [event for event in found if event.sequence <= int(last or 0)][:limit]

    async def _read_told(
        self, keys: list[str], after: int, families: frozenset[Family], limit: int
    ) -> list[StoredEvent]:
        """The events that some sets tell of, in the order of the log."""
        found: list[StoredEvent] = []
        while len(found) < limit and keys:
            # As for the log: what is newer than the first answer says waits for the next page.
            last, *parts = await self._client.read(
                ("HGET", self._keys.state, "events"),
                *(("ZRANGE", key, f"({after}", "+inf", "BYSCORE", "LIMIT", 0, limit) for key in keys),
            )
            places = sorted(records.told_of(member) for members in parts for member in members)
            places = [place for place in places if place[0] <= int(last or 0)][:limit]
            if not places:
                break
            after = places[-1][0]
            found += await self._events_at([place for place in places if place[1] in families])
        return found[:limit]

    async def _events_at(self, places: list[tuple[int, Family]]) -> list[StoredEvent]:
        """The events at some places, without those that were trimmed since."""
        parts = await self._client.read(
            *(("XRANGE", self._keys.log(family), place, place) for place, family in places)
        )
        return [event for part in parts for event in records.events_of(part)]

    async def last_event(self) -> int:
        return await self._read_counter("events")

    async def trimmed_events(self) -> int:
        return await self._read_counter("trimmed")

    async def _last_commit(self) -> int:
        return await self._read_counter("commits")

    async def _read_counter(self, name: str) -> int:
        [count] = await self._client.read(("HGET", self._keys.state, name))
        return int(count or 0)

    async def wait_for_change(self, timeout_ms: int) -> bool:
        return await self._open_changes().wait(timeout_ms)

    # Writing

    async def commit(self, commit: Commit) -> None:
        changes = self._open_changes()
        function, keys, arguments = records.commit_call(
            commit, self._keys, self.settings, self.clock, changes.origin
        )
        [done, *answer], *confirmed = await self._client.invoke(function, keys, arguments, *self._waiting())
        if not done:
            self.statistics.conflicts += 1
            changed = {keys[number - 1] for number in answer}
            raise Conflict(frozenset(key for key in _compared(commit) if self._keys.record(key) in changed))
        self.statistics.commits += 1
        changes.committed()
        mark_ms, offset_ms, clock_ms = (int(number) for number in answer)
        self.clock.read(mark_ms, offset_ms, server_ms=clock_ms)  # reports a step back, if there was one
        if confirmed and confirmed[0] < self.settings.replicas:
            raise errors.StoreTimeout(
                f"{self.settings.place} has committed, but only {confirmed[0]} of {self.settings.replicas} "
                "replicas have confirmed it in time: repeat with the same request id."
            )

    def _waiting(self) -> tuple[Command, ...]:
        """What is sent behind a commit, to wait until replicas have it."""
        if not self.settings.replicas:
            return ()
        # Half of the time, so that the answer comes before the connection is given up.
        return (("WAIT", self.settings.replicas, max(1, self.settings.timeout_ms // 2)),)

    async def trim_events(self, upto: int) -> None:
        logs = [self._keys.log(family) for family in Family]
        while True:
            page = await self.read_events(await self.trimmed_events(), limit=EVENTS_TRIMMED_AT_ONCE)
            gone = [stored for stored in page if stored.sequence <= upto]
            if not gone:
                return
            told = {self._keys.told(stored.event.execution_id) for stored in gone}
            told |= {self._keys.told_in(stored.event.namespace, stored.event.family) for stored in gone}
            keys = [self._keys.state, *logs, *sorted(told)]
            await self._client.invoke("trim_events", keys, [gone[-1].sequence, len(logs)])

    async def set_clock_offset(self, offset_ms: int) -> None:
        """Shift the store's clock, on the server itself. Only tests do that."""
        await self._client.write(("HSET", self._keys.state, "clock_offset_ms", offset_ms, "mark_ms", 0))

    def _open_changes(self) -> Changes:
        if self._changes is None:
            raise errors.StoreUnreachable(
                f"the store {self.settings.place} is not open. Open it before using it."
            )
        return self._changes


def _sequence(event: StoredEvent) -> int:
    return event.sequence


def _compared(commit: Commit) -> list[Key]:
    return [change.key for change in commit.changes] + [key for key, _ in commit.relied_on]

"""The store on a Valkey server or cluster, which many processes on many hosts may share.

The rules this module keeps:

- A commit is one call of the function ``commit``, which compares the versions and applies everything
  or nothing. The server runs one function at a time, so nothing happens in between.
- Every key of a call is declared, and all keys of a shard share a hash tag and hence a slot. So a commit
  changes the records of one shard only; ``place_of`` tells which those are.
- What is read together of one shard is asked for together: commands of one connection are carried out
  in the order in which they were sent.
- No command is sent again after its answer was lost; the caller repeats with the same request id.
"""

from __future__ import annotations

import asyncio
import heapq
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.core.events import Family
from flowfabric.core.records import RECORD_TYPES, kind_of
from flowfabric.stores.base import Conflict, Loaded, is_owned, key_order
from flowfabric.stores.clock import STEP_BACK_MS_MAX, StoreClock
from flowfabric.stores.keys import owned_bounds, restored_key, stored_key, stored_prefix_bounds
from flowfabric.stores.valkey import records
from flowfabric.stores.valkey.changes import Changes
from flowfabric.stores.valkey.client import Client
from flowfabric.stores.valkey.confirming import require_confirmed, waiting
from flowfabric.stores.valkey.eligible import EligibleReads
from flowfabric.stores.valkey.keys import Shards, row_of, row_range, scope_range, scopes_range, text_range
from flowfabric.stores.valkey.library import list_scopes
from flowfabric.stores.valkey.native.decisions import Decisions
from flowfabric.stores.valkey.native.decisions import Statistics as NativeStatistics
from flowfabric.stores.valkey.opening import attest, prepare, warn_of_risks
from flowfabric.stores.valkey.outboxes import Outboxes
from flowfabric.stores.valkey.servers import Use
from flowfabric.stores.valkey.sightings import Sightings
from flowfabric.stores.valkey.telling import claimable_scopes, message, teller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowfabric.core.events import StoredEvent
    from flowfabric.core.records import Key
    from flowfabric.core.work import Frame
    from flowfabric.stores.base import Commit, Durability
    from flowfabric.stores.valkey.connection import Command
    from flowfabric.stores.valkey.keys import Keys, Range
    from flowfabric.stores.valkey.records import Argument
    from flowfabric.stores.valkey.settings import Settings

LISTED_PER_READ: Final = 1_000
"""How many keys are looked at in one go where only some of them may be wanted."""

BATCHES_AT_ONCE: Final = 3
"""The server decides one, while another is on its way to it and the answers of a third are on theirs."""

USES: Final = {"claim_execution": Use.CLAIMING, "claim_related_execution": Use.CLAIMING}
"""Over which connections functions are called, if not over the one for writing."""

EVENTS_TRIMMED_AT_ONCE: Final = 500
"""The server does nothing else meanwhile."""


class Statistics(msgspec.Struct):
    """Counters since the store was opened."""

    commits: int = 0
    conflicts: int = 0


class ValkeyStore:
    """A ``Store`` below one prefix of a Valkey server or cluster.

    Args:
        settings: how it is reached, and what is asked of it.
        allow_clock_offset: accept a prefix whose clock a test has moved.
        clock: the clock to live by instead of the servers'.
    """

    def __init__(
        self, settings: Settings, *, allow_clock_offset: bool = False, clock: StoreClock | None = None
    ) -> None:
        self.settings = settings
        self.clock = clock or StoreClock()
        self.statistics = Statistics()
        self.native = Decisions(self)
        self._allow_clock_offset = allow_clock_offset
        self._shards = Shards(settings.prefix, 1)
        self._sightings = Sightings(1)
        self._client = Client(settings)
        self._changes: Changes | None = None
        self._outboxes: Outboxes | None = None
        self._mark_ms = 0
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
        warn_of_risks(self.settings, durability.settings["valkey_version"])
        self._shards = await prepare(self._client, allow_clock_offset=self._allow_clock_offset)
        self._sightings = Sightings(len(self._shards.all))
        changes = Changes(self._client, self._shards.home, self._commits, self._sightings)
        await changes.open()
        self.statistics = Statistics()
        self.native.statistics = NativeStatistics()
        self._mark_ms = 0
        self._outboxes = Outboxes(self._client, self._shards, changes.origin)
        self._outboxes.doubt(self._shards.all)
        self._changes = changes
        return durability

    async def attest(self) -> Durability:
        return await attest(self._client, required_level="D0")

    async def close(self) -> None:
        changes, self._changes = self._changes, None
        if changes is None:
            return
        await self._open_outboxes().close()
        self._outboxes = None
        changes.close()
        self._client.close()

    # Reading

    async def now(self) -> int:
        return self._now([await self._read(self._shards.home, *_clock_commands(self._shards.home))])

    def _now(self, read: Iterable[list[Any]]) -> int:
        """The time by what some shards answered to the commands that read the clock.

        Each server has a clock of its own, so what this process has committed anywhere counts too.
        """
        states = [records.state_of(fields, time) for *_, fields, time in read]
        mark_ms = max(self._mark_ms, *(state.mark_ms for state in states))
        latest = max(states, key=_clock_of)
        return self.clock.read(mark_ms, latest.clock_offset_ms, server_ms=latest.clock_ms)

    async def load(self, keys: Iterable[Key]) -> Loaded:
        wanted: dict[int, list[Key]] = {}
        for key in dict.fromkeys(keys):
            wanted.setdefault(self.place_of(key), []).append(key)
        shards = [self._shards.all[place] for place in wanted] or [self._shards.home]
        parts = list(wanted.values()) or [[]]
        read = await asyncio.gather(*map(self._load_part, shards, parts))
        return Loaded(
            now=self._now(read),
            rows=[
                records.loaded_row(key, stored)
                for part, (*found, _, _) in zip(parts, read, strict=True)
                for key, stored in zip(part, found[0] if found else (), strict=True)
            ],
        )

    async def _load_part(self, shard: Keys, keys: list[Key]) -> list[Any]:
        """Records of one shard and its clock, which comes last: it is read after the records were reached."""
        # One MGET is one snapshot.
        reading: list[Command] = [("MGET", *map(shard.record, keys))] if keys else []
        return await self._read(shard, *reading, *_clock_commands(shard))

    async def _read(self, shard: Keys, *commands: Command) -> list[Any]:
        return await self._client.read(shard.slot, *commands)

    async def _read_each(self, shards: list[Keys], command: Callable[[Keys], Command]) -> list[Any]:
        """Ask each of some shards one thing."""
        if len(shards) == 1:
            return await self._read(shards[0], command(shards[0]))
        return await self._client.read_each([(shard.slot, command(shard)) for shard in shards])

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
        wanted = row_range(scope, after, upto, descending=descending)
        found = await self._read_each(
            self._shards.within(scope),
            lambda shard: wanted.command(shard.index(index), limit, descending=descending),
        )
        merged = heapq.merge(*found, reverse=descending)
        return [row_of(stored) for stored in islice(merged, limit)]

    async def count_index(self, index: str, scope: str, *, limit: int | None = None) -> int:
        rows = scope_range(scope)
        counts = await self._read_each(
            self._shards.within(scope), lambda shard: ("ZLEXCOUNT", shard.index(index), rows.start, rows.end)
        )
        return sum(counts) if limit is None else min(sum(counts), limit)

    async def index_scopes(
        self, index: str, prefix: str, *, after: str | None = None, limit: int = 1_000
    ) -> list[str]:
        wanted = scopes_range(prefix, after)
        found = await self._read_each(
            self._shards.within(prefix), lambda shard: list_scopes(shard.index(index), wanted, limit)
        )
        return [scope.decode() for scope in sorted({scope for part in found for scope in part})[:limit]]

    def eligible_reads(self, *, trusting: bool) -> EligibleReads:
        """Reads for one search for work; see ``stores.base.EligibleReads``."""
        return EligibleReads(self._client, self._shards, self._sightings, trusting=trusting)

    async def list_keys(self, prefix: Key, *, after: Key | None = None, limit: int = 100) -> list[Key]:
        kinds = (
            [kind_of(prefix)] if "/" in prefix else [kind for kind in RECORD_TYPES if kind.startswith(prefix)]
        )
        place = None if after is None else stored_key(after)
        found = [name for kind in kinds for name in await self._list_kind(kind, prefix, place, limit)]
        return [restored_key(name) for name in sorted(found)[:limit]]

    async def _list_kind(self, kind: str, prefix: Key, place: str | None, limit: int) -> list[str]:
        """Stored keys of one kind that begin with the prefix, behind ``place``."""
        shards = self._shards.within(prefix.partition("/")[2])
        low, high = stored_prefix_bounds(prefix)
        # Where the bounds do not narrow, only some of what lies between them may begin with the prefix.
        page = limit if low else max(limit, LISTED_PER_READ)
        found: list[str] = []
        while len(found) < limit:
            read = await self._list_page(shards, kind, text_range(low, high, place), page)
            found += [name for name in read if restored_key(name).startswith(prefix)]
            if len(read) < page:
                break
            place = read[-1]
        return found[:limit]

    async def _list_page(self, shards: list[Keys], kind: str, wanted: Range, limit: int) -> list[str]:
        """Stored keys of one kind in some shards, in order."""
        parts = await self._read_each(shards, lambda shard: wanted.command(shard.listing(kind), limit))
        return [name.decode() for name in islice(heapq.merge(*parts), limit)]

    async def list_owned(self, identity: str, *, limit: int = 100) -> list[Key]:
        shard = self._shards.of(identity)
        wanted = text_range(*owned_bounds(identity), None)
        parts = await self._read(
            shard, *(wanted.command(shard.listing(kind), limit) for kind in RECORD_TYPES)
        )
        keys = [restored_key(name.decode()) for part in parts for name in part]
        return sorted((key for key in keys if is_owned(key, identity)), key=key_order)[:limit]

    async def read_frames(
        self,
        stream: str,
        *,
        first: tuple[int, int] = (0, 0),
        last: tuple[int, int] | None = None,
        limit: int = 100,
    ) -> list[Frame]:
        end = "+" if last is None else f"{last[0]}-{last[1]}"
        shard = self._shards.of(stream)
        reading = ("XRANGE", shard.frames(stream), f"{first[0]}-{first[1]}", end, "COUNT", limit)
        [found] = await self._read(shard, reading)
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
        await self._open_outboxes().settle()
        home = self._shards.home
        chosen = frozenset(Family) if families is None else families
        if execution_id is not None:
            found = await self._read_told([home.told(execution_id)], after, chosen, limit)
            return [stored for stored in found if namespace in (None, stored.event.namespace)]
        if namespace is not None:
            told = [home.told_in(namespace, family) for family in sorted(chosen)]
            return await self._read_told(told, after, chosen, limit)
        # The parts of the log are read one after another, and a commit may come in between. What is
        # there when the first command is carried out is complete in all of them.
        last, *parts = await self._read(
            home,
            ("HGET", home.state, "events"),
            *(("XRANGE", home.log(family), after + 1, "+", "COUNT", limit) for family in sorted(chosen)),
        )
        found = [event for part in parts for event in records.events_of(part)]
        found.sort(key=_sequence)
        return [event for event in found if event.sequence <= int(last or 0)][:limit]

    async def _read_told(
        self, keys: list[str], after: int, families: frozenset[Family], limit: int
    ) -> list[StoredEvent]:
        """The events that some sets tell of, in the order of the log."""
        found: list[StoredEvent] = []
        home = self._shards.home
        while len(found) < limit and keys:
            # As for the log: what is newer than the first answer says waits for the next page.
            last, *parts = await self._read(
                home,
                ("HGET", home.state, "events"),
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
        home = self._shards.home
        parts = await self._read(
            home, *(("XRANGE", home.log(family), place, place) for place, family in places)
        )
        return [event for part in parts for event in records.events_of(part)]

    async def last_event(self) -> int:
        await self._open_outboxes().settle()
        return await self._read_counter("events")

    async def trimmed_events(self) -> int:
        return await self._read_counter("trimmed")

    async def _read_counter(self, name: str) -> int:
        home = self._shards.home
        [count] = await self._read(home, ("HGET", home.state, name))
        return int(count or 0)

    async def _commits(self) -> int:
        counts = await self._read_each(self._shards.all, lambda shard: ("HGET", shard.state, "commits"))
        return sum(int(count or 0) for count in counts)

    async def wait_for_change(self, timeout_ms: int) -> bool:
        changed = await self._open_changes().wait(timeout_ms)
        if not changed:
            # What another process has put out and did not carry to the log before it ended.
            self._open_outboxes().doubt(self._shards.all)
        return changed

    # Writing

    @property
    def batches_at_once(self) -> int:
        return BATCHES_AT_ONCE

    def place_of(self, key: Key) -> int:
        return self._shards.of_record(key).shard

    async def commit(self, commit: Commit) -> int | None:
        changes = self._open_changes()
        shard = self._shard_of(commit)
        commit = await self._compare_elsewhere(shard, commit)
        home = len(self._shards.all) == 1
        announcement = message(changes.origin, shard.shard, commit)
        function, keys, arguments = records.commit_call(
            commit, shard, self.settings, self.clock, announcement, logs=home
        )
        [done, *answer], *confirmed = await self._invoke(shard, function, keys, arguments)
        if not done:
            self.statistics.conflicts += 1
            changed = {keys[number - 1] for number in answer}
            raise Conflict(frozenset(key for key in _compared(commit) if shard.record(key) in changed))
        self.statistics.commits += 1
        changes.committed()
        self._sightings.put(shard.shard, claimable_scopes(commit))
        mark_ms, offset_ms, clock_ms, version, put_out = (int(number) for number in answer)
        self._mark_ms = self.clock.read(mark_ms, offset_ms, server_ms=clock_ms)
        if commit.events:
            self._open_outboxes().note(shard, put_out)
        require_confirmed(confirmed, self.settings)
        # With several shards there is no version to tell: who loads nothing reads no shard's clock, and
        # what is decided about one shard has to follow the clock of that one.
        return version if home else None

    async def _invoke(
        self,
        shard: Keys,
        function: str,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        *,
        use: Use = Use.WRITING,
        waits: bool = True,
    ) -> list[Any]:
        """Call a function that may put work into a shard. Whether it has may stay unknown."""
        try:
            return await self._client.invoke(
                shard.slot, function, keys, arguments, *waiting(self.settings), use=use, waits=waits
            )
        except BaseException:
            self._sightings.forget(shard.shard)
            raise

    # What the functions that decide commands need, see ``native``

    @property
    def is_one_shard(self) -> bool:
        """Whether all records live together."""
        return self._shards.are_one

    def shard_of(self, key: Key) -> Keys:
        """The shard in which a record lives."""
        return self._shards.of_record(key)

    def call_arguments(self, shard: Keys) -> tuple[Argument, ...]:
        """What every call of such a function says first: see ``native.signatures.CALL_ARGUMENTS``."""
        given_ms = self.clock.given_ms()
        logs = len(self._shards.all) == 1
        return (
            "" if given_ms is None else given_ms,
            STEP_BACK_MS_MAX,
            self.settings.channel,
            teller(self._open_changes().origin, shard.shard),
            int(logs),
        )

    async def invoke_native(
        self, shard: Keys, function: str, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> tuple[int, list[Any]]:
        """Call such a function. Returns the instant at which it has decided, and its replies.

        Raises:
            SlotIsMoving: some of its keys are not on the server that has the others.
            StoreError: the server failed. The outcome is unknown if it cannot be reached.
        """
        changes = self._open_changes()
        [[mark_ms, offset_ms, clock_ms, put, put_out, *replies], *confirmed] = await self._invoke(
            shard, function, keys, arguments, use=USES.get(function, Use.WRITING), waits=False
        )
        now = self.clock.read(int(mark_ms), int(offset_ms), server_ms=int(clock_ms))
        if put_out:
            self._mark_ms = now
            self.statistics.commits += 1
            changes.committed()
            self._sightings.put(shard.shard, [scope.decode() for scope in put])
            self._open_outboxes().note(shard, int(put_out))
            require_confirmed(confirmed, self.settings)
        return now, replies

    def _shard_of(self, commit: Commit) -> Keys:
        """The only shard that a commit changes."""
        if commit.changes:
            places = {self.place_of(change.key) for change in commit.changes}
            assert len(places) == 1, f"a commit changes records of {len(places)} shards"
            return self._shards.all[places.pop()]
        named = [frame.stream for frame in commit.appends] + [trim.stream for trim in commit.trims]
        named += [event.execution_id for event in commit.events]
        return self._shards.of(named[0]) if named else self._shards.home

    async def _compare_elsewhere(self, shard: Keys, commit: Commit) -> Commit:
        """Compare what the commit relies on in other shards, as far as that can be done: right before it.

        Returns what is left to compare in the commit itself.
        """
        elsewhere = {key: version for key, version in commit.relied_on if self.place_of(key) != shard.shard}
        if not elsewhere:
            return commit
        found = (await self.load(elsewhere)).rows
        changed = frozenset(key for key, version, _ in found if version != elsewhere[key])
        if changed:
            self.statistics.conflicts += 1
            raise Conflict(changed)
        here = [(key, version) for key, version in commit.relied_on if key not in elsewhere]
        return msgspec.structs.replace(commit, relied_on=here)

    async def trim_events(self, upto: int, *, sparing: frozenset[Family] = frozenset()) -> None:
        home = self._shards.home
        logs = [home.log(family) for family in Family if family not in sparing]
        spared = sorted(family.value for family in sparing)
        while True:
            page = await self.read_events(await self.trimmed_events(), limit=EVENTS_TRIMMED_AT_ONCE)
            gone = [stored for stored in page if stored.sequence <= upto]
            if not gone:
                return
            told = self._told_of([stored for stored in gone if stored.event.family not in sparing])
            keys = [home.state, *logs, *told]
            arguments: list[str | bytes | int] = [gone[-1].sequence, len(logs), *spared]
            await self._client.invoke(home.slot, "trim_events", keys, arguments)

    async def forget_events(self, family: Family, upto: int) -> None:
        home = self._shards.home
        upto = min(upto, await self.trimmed_events())
        while True:
            page = await self.read_events(0, families=frozenset({family}), limit=EVENTS_TRIMMED_AT_ONCE)
            gone = [stored for stored in page if stored.sequence <= upto]
            if not gone:
                return
            keys = [home.log(family), *self._told_of(gone)]
            await self._client.invoke(home.slot, "forget_events", keys, [gone[-1].sequence, family.value])

    def _told_of(self, events: list[StoredEvent]) -> list[str]:
        """The sets that tell of some events."""
        home = self._shards.home
        told = {home.told(stored.event.execution_id) for stored in events}
        told |= {home.told_in(stored.event.namespace, stored.event.family) for stored in events}
        return sorted(told)

    async def set_clock_offset(self, offset_ms: int) -> None:
        """Shift the store's clock, on the servers themselves. Only tests do that."""
        for shard in self._shards.all:
            setting = ("HSET", shard.state, "clock_offset_ms", offset_ms, "mark_ms", 0)
            await self._client.write(shard.slot, setting)
        self._mark_ms = 0

    def _open_changes(self) -> Changes:
        if self._changes is None:
            raise self._not_open()
        return self._changes

    def _open_outboxes(self) -> Outboxes:
        if self._outboxes is None:
            raise self._not_open()
        return self._outboxes

    def _not_open(self) -> errors.StoreUnreachable:
        return errors.StoreUnreachable(
            f"the store {self.settings.place} is not open. Open it before using it."
        )


def _clock_commands(shard: Keys) -> tuple[Command, Command]:
    return ("HMGET", shard.state, "mark_ms", "clock_offset_ms"), ("TIME",)


def _clock_of(state: records.State) -> int:
    return state.clock_ms


def _sequence(event: StoredEvent) -> int:
    return event.sequence


def _compared(commit: Commit) -> list[Key]:
    return [change.key for change in commit.changes] + [key for key, _ in commit.relied_on]

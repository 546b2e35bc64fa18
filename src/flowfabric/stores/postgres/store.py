"""The store on a PostgreSQL server, which many processes on many hosts may share.

The rules this module keeps:

- A commit is one statement, the function ``apply_commit``. It takes the lock of the one row in
  ``state`` first, so commits happen one after another: versions are compared without a race, also
  those of records that were only read or are absent, nothing can deadlock, and events are numbered
  in the order in which they become visible.
- Since a commit is one statement, no process holds that lock while it thinks, waits or is stopped.
- A load is one statement too: the records and the clock from one snapshot.
- No state is kept in a session, except by the listener.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.core.work import Frame
from flowfabric.stores.base import Conflict, Loaded, is_owned
from flowfabric.stores.clock import StoreClock, ToldTime
from flowfabric.stores.keys import owned_bounds, restored_key, stored_key, stored_prefix_bounds
from flowfabric.stores.postgres import records
from flowfabric.stores.postgres.borrowed import BorrowedDatabase
from flowfabric.stores.postgres.changes import Changes
from flowfabric.stores.postgres.clients import client_of
from flowfabric.stores.postgres.connections import CONNECTIONS_MAX, TIMEOUT_MS, Connections, Settings, quoted
from flowfabric.stores.postgres.faults import is_unfinished
from flowfabric.stores.postgres.opening import LEVELS, attest, warn_of_risks
from flowfabric.stores.postgres.records import State, Statements
from flowfabric.stores.postgres.schema import migrate_schema

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.core.events import Family, StoredEvent
    from flowfabric.core.records import Key
    from flowfabric.stores.base import Commit, Durability

COMMITS_AT_ONCE: Final = 2
"""One commit waits for the disk while the next is on its way; more would only queue on the server."""

SENDS_MAX: Final = 4
"""How often a statement is sent that the server undoes because of others."""


class Statistics(msgspec.Struct):
    """Counters since the store was opened."""

    commits: int = 0
    conflicts: int = 0
    resends: int = 0
    """How often the server undid a commit because of others, and it was sent again."""


class PostgresStore:
    """A ``Store`` in one schema of a PostgreSQL database.

    Args:
        url: the database, as in ``postgresql://user:password@host/database``.
        direct_url: reaches the server itself where ``url`` reaches a pooler; for LISTEN.
        schema: the PostgreSQL schema; it is made if it does not exist.
        required_level: refuse to open below this durability level.
        connections_max: how many connections to hold at most, beside the one that listens.
        timeout_ms: how long to wait for a connection or an answer.
        pooler: ``url`` reaches a pooler that may change the session between transactions.
        listen: hear of other processes' commits at once instead of looking for them.
        allow_clock_offset: accept a schema whose clock a test has moved.
        clock: the clock to live by instead of the server's.
    """

    def __init__(
        self,
        url: str,
        *,
        direct_url: str | None = None,
        schema: str = "flowfabric",
        required_level: str = "D2",
        connections_max: int = CONNECTIONS_MAX,
        timeout_ms: int = TIMEOUT_MS,
        pooler: bool = False,
        listen: bool = True,
        allow_clock_offset: bool = False,
        clock: StoreClock | None = None,
    ) -> None:
        self.settings = Settings(
            url=url,
            direct_url=direct_url,
            schema=schema,
            connections_max=connections_max,
            timeout_ms=timeout_ms,
            pooler=pooler,
            listen=listen,
        )
        self.clock = clock or StoreClock()
        self.statistics = Statistics()
        self._told = ToldTime()
        self._required_level = required_level
        self._allow_clock_offset = allow_clock_offset
        self._statements = Statements(quoted(schema))
        self._connections = Connections(self.settings)
        self._changes: Changes | None = None
        self._room = asyncio.Semaphore(COMMITS_AT_ONCE)
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
            await self._connections.close()
            raise
        finally:
            self._opening = False

    async def _open(self) -> Durability:
        warn_of_risks(self.settings)
        await self._connections.open()
        durability = await attest(self._connections, self._required_level)
        await migrate_schema(self._connections)
        await self._require_no_clock_offset()
        changes = Changes(self._connections, self._last_commit)
        await changes.open()
        self.statistics = Statistics()
        # A semaphore belongs to the event loop it was last waited for in; this may be another one.
        self._room = asyncio.Semaphore(COMMITS_AT_ONCE)
        self._changes = changes
        self._told.forget()
        return durability

    async def _require_no_clock_offset(self) -> None:
        offset_ms = (await self._state()).clock_offset_ms
        if offset_ms and not self._allow_clock_offset:
            raise errors.StoreUnusable(
                f"the clock of {self.settings.place} was set {offset_ms} ms off by a test. "
                "Use a schema that no test has touched."
            )

    async def attest(self) -> Durability:
        return await attest(self._connections, required_level=LEVELS[0])

    async def close(self) -> None:
        changes, self._changes = self._changes, None
        self._told.forget()
        if changes is not None:
            await changes.close()
            await self._connections.close()

    # Reading

    async def now(self) -> int:
        return (await self._state()).now(self.clock)

    async def load(self, keys: Iterable[Key]) -> Loaded:
        stored = {stored_key(key): key for key in keys}
        told = None if stored else self._told.now(self.clock)
        if told is not None:
            return Loaded(now=told, rows=[])
        rows = await self._fetch(*self._statements.load(stored))
        self._told.tell(*rows[-1][3:])
        return records.loaded(stored, rows, self.clock)

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
        sql, values = self._statements.read_index(
            index, scope, after=after, upto=upto, limit=limit, descending=descending
        )
        return [(sort, member) for sort, member in await self._fetch(sql, values)]

    async def count_index(self, index: str, scope: str, *, limit: int | None = None) -> int:
        ((count,),) = await self._fetch(*self._statements.count_index(index, scope, limit))
        return int(count)

    async def index_scopes(
        self, index: str, prefix: str, *, after: str | None = None, limit: int = 1_000
    ) -> list[str]:
        found = await self._fetch(*self._statements.index_scopes(index, prefix, after, limit))
        return [scope for (scope,) in found]

    async def list_keys(self, prefix: Key, *, after: Key | None = None, limit: int = 100) -> list[Key]:
        place, _ = stored_prefix_bounds(prefix)
        if after is not None:
            place = max(place, stored_key(after))
        found: list[Key] = []
        while len(found) < limit:
            rows = await self._fetch(*self._statements.list_keys(prefix, place, limit))
            found += records.listed_keys(prefix, rows)
            if len(rows) < limit:
                break
            place = rows[-1][0]
        return found[:limit]

    async def list_owned(self, identity: str, *, limit: int = 100) -> list[Key]:
        low, high = owned_bounds(identity)
        found: list[Key] = []
        while len(found) < limit:
            rows = await self._fetch(*self._statements.list_owned(low, high, limit))
            found += [key for (name,) in rows if is_owned(key := restored_key(name), identity)]
            if len(rows) < limit:
                break
            low = rows[-1][0] + "\x01"
        return found[:limit]

    async def read_frames(
        self,
        stream: str,
        *,
        first: tuple[int, int] = (0, 0),
        last: tuple[int, int] | None = None,
        limit: int = 100,
    ) -> list[Frame]:
        found = await self._fetch(*self._statements.read_frames(stream, first, last, limit))
        return [Frame(stream, ms, seq, data) for ms, seq, data in found]

    async def read_events(
        self,
        after: int,
        *,
        families: frozenset[Family] | None = None,
        namespace: str | None = None,
        execution_id: str | None = None,
        limit: int = 100,
    ) -> list[StoredEvent]:
        if families is not None and not families:
            return []
        sql, values = self._statements.read_events(after, families, namespace, execution_id, limit)
        return records.stored_events(await self._fetch(sql, values))

    async def last_event(self) -> int:
        return (await self._state()).last_event

    async def trimmed_events(self) -> int:
        ((trimmed,),) = await self._connections.fetch(self._statements.trimmed_events)
        return int(trimmed)

    async def _last_commit(self) -> int:
        return (await self._state()).last_commit

    async def _state(self) -> State:
        (row,) = await self._connections.fetch(self._statements.read_state)
        state = State(*row)
        self._told.tell(state.mark_ms, state.clock_offset_ms, state.clock_ms)
        return state

    async def _fetch(self, sql: str, values: list[Any]) -> list[Any]:
        return await self._connections.fetch(sql, *values)

    async def wait_for_change(self, timeout_ms: int) -> bool:
        return await self._open_changes().wait(timeout_ms)

    # Writing

    @property
    def batches_at_once(self) -> int:
        return COMMITS_AT_ONCE

    def place_of(self, key: Key) -> int:
        return 0

    async def commit(self, commit: Commit) -> int:
        changes = self._open_changes()
        values = records.commit_values(commit, self.clock, self.settings.lock_timeout_ms)
        async with self._room:
            ((conflicts, mark_ms, offset_ms, clock_ms, number),) = await self._insistently(values)
        if conflicts:
            self.statistics.conflicts += 1
            raise Conflict(frozenset(restored_key(name) for name in conflicts))
        self.statistics.commits += 1
        mark_ms = self.clock.read(mark_ms, offset_ms, server_ms=clock_ms)  # reports a step back, if any
        self._told.tell(mark_ms, offset_ms, clock_ms)
        changes.committed()
        return int(number)

    async def _insistently(self, values: list[Any]) -> list[Any]:
        """Send a commit, and again if the server undid it because of others."""
        for _ in range(SENDS_MAX - 1):
            try:
                return await self._fetch(self._statements.apply_commit, values)
            except errors.StoreError as error:
                if error.__cause__ is None or not is_unfinished(error.__cause__):
                    raise
            self.statistics.resends += 1
        return await self._fetch(self._statements.apply_commit, values)

    async def trim_events(self, upto: int, *, sparing: frozenset[Family] = frozenset()) -> None:
        trimmed, upto = await self.trimmed_events(), min(upto, await self.last_event())
        if trimmed < upto:
            spared = sorted(family.value for family in sparing)
            await self._connections.fetch(self._statements.trim_events, trimmed, upto, spared)

    async def forget_events(self, family: Family, upto: int) -> None:
        await self._connections.fetch(self._statements.forget_events, family.value, upto)

    def borrow(self, connection: object) -> BorrowedDatabase | None:
        """This store inside a transaction of the connection; None if its kind cannot be borrowed."""
        client = client_of(connection)
        return None if client is None else BorrowedDatabase(client, self.settings, self.clock)

    async def set_clock_offset(self, offset_ms: int) -> None:
        """Shift the store's clock, in the database itself. Only tests do that."""
        await self._connections.fetch(self._statements.set_clock_offset, offset_ms)
        self._told.forget()

    def _open_changes(self) -> Changes:
        if self._changes is None:
            raise errors.StoreUnreachable(
                f"the store {self.settings.place} is not open. Open it before using it."
            )
        return self._changes

"""The store inside a transaction of somebody else's connection to the database.

The rules this module keeps:

- The lock of the one row in ``state`` is taken before anything is read, and belongs to the
  transaction until it ends. So no commit conflicts, and events stay in the order of commits.
- Everything happens behind a savepoint. Going back to it gives the lock back as well, so a refused
  act costs others nothing.
- The transaction's own settings are as before when the act is over.
- Others are told by NOTIFY inside the transaction, which the server sends at its commit. It adds
  no wait: whoever commits holds the store's lock in any case.

An isolation level above READ COMMITTED serves too. If the newest row in ``tick`` is still there, the
transaction's snapshot has all commits; if a commit has replaced it since, the server refuses to
lock it, and the transaction has to be run again.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from flowfabric import errors
from flowfabric.stores.base import Conflict
from flowfabric.stores.keys import restored_key, stored_key
from flowfabric.stores.postgres import records
from flowfabric.stores.postgres.changes import channel_of
from flowfabric.stores.postgres.connections import quoted
from flowfabric.stores.postgres.faults import server_error
from flowfabric.stores.postgres.records import State, Statements
from flowfabric.stores.postgres.schema import MIGRATIONS
from flowfabric.stores.postgres.textual import (
    DATA,
    NUMBER,
    NUMBERS,
    TEXTS,
    rows_of_text,
    textual,
    values_as_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flowfabric.core.records import Key
    from flowfabric.stores.base import Commit, Loaded
    from flowfabric.stores.clock import StoreClock
    from flowfabric.stores.postgres.clients import Client
    from flowfabric.stores.postgres.connections import Settings

SAVEPOINT: Final = "flowfabric"

_RECORDS: Final = (TEXTS, NUMBERS, TEXTS, DATA, TEXTS)
_ROWS: Final = (TEXTS, TEXTS, NUMBERS, TEXTS)
_EVENTS: Final = (TEXTS, TEXTS, TEXTS, DATA)
_FRAMES: Final = (TEXTS, NUMBERS, NUMBERS, DATA)
_TRIMS: Final = (TEXTS, NUMBERS)
_COMMIT: Final = (
    *_RECORDS, *_RECORDS, *_ROWS, *_ROWS, *_EVENTS, *_FRAMES, *_TRIMS, NUMBER, NUMBER, NUMBER,
)  # fmt: skip
"""The types of the arguments of ``apply_commit``."""

_LOADED: Final = ("key", "version", "data", "mark_ms", "offset_ms", "clock_ms")
_STATE: Final = ("last_commit", "last_event", "mark_ms", "offset_ms", "clock_ms")
_COMMITTED: Final = ("conflicts", "mark_ms", "offset_ms", "clock_ms", "number")

_FAILED: Final = ("25P01", "25P02")
"""No transaction, and one in which a statement has failed."""
_OUTDATED: Final = ("40001", "40P01")
"""A snapshot that is too old, and a deadlock that the server ended."""
_LOCKED: Final = "55P03"


class BorrowedDatabase:
    """``stores.base.Borrowed`` over a connection to the store's database.

    Args:
        client: the connection.
        settings: how the store reaches the database.
        clock: the store's clock.
    """

    def __init__(self, client: Client, settings: Settings, clock: StoreClock) -> None:
        self.is_awaited = client.is_awaited
        self._client = client
        self._settings = settings
        self._clock = clock
        self._statements = Statements(quoted(settings.schema))
        self._lock_timeout_ms = 0

    async def begin(self) -> None:
        with self._faults():
            if not self._client.can_go_on():
                raise errors.TransactionRequired(
                    "the connection is in autocommit mode and has no open transaction. Begin one, as with "
                    "`connection.transaction()`, and call this inside it."
                )
            await self._client.run(f"SAVEPOINT {SAVEPOINT}")
        try:
            await self._require_store()
            await self._lock()
        except BaseException:
            with suppress(errors.FlowFabricError):  # what went wrong first says more
                await self.undo()
            raise

    async def keep(self) -> None:
        with self._faults():
            await self._client.run(
                f"SET LOCAL lock_timeout = {self._lock_timeout_ms}; RELEASE SAVEPOINT {SAVEPOINT}"
            )

    async def undo(self) -> None:
        with self._faults():
            await self._client.run(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}; RELEASE SAVEPOINT {SAVEPOINT}")

    async def now(self) -> int:
        [row] = await self._rows(self._statements.read_state, (), _STATE, [])
        return State(*row).now(self._clock)

    async def load(self, keys: Iterable[Key]) -> Loaded:
        stored = {stored_key(key): key for key in keys}
        sql, values = self._statements.load(stored)
        rows = await self._rows(sql, [TEXTS] * len(values), _LOADED, values)
        rows.sort(key=lambda row: row[0] is None)  # the clock's row has no key and comes last
        return records.loaded(stored, rows, self._clock)

    async def commit(self, commit: Commit) -> None:
        values = records.commit_values(commit, self._clock, self._lock_timeout_ms)
        sql = self._statements.apply_commit
        [[conflicts, *_]] = await self._rows(sql, _COMMIT, _COMMITTED, values)
        if conflicts:
            raise Conflict(frozenset(restored_key(name) for name in conflicts))
        if self._settings.listen:
            await self._ask("SELECT pg_notify(%s::text, '')::text", channel_of(self._settings.schema))

    async def _rows(
        self, sql: str, types: Iterable[str], columns: tuple[str, ...], values: list[Any]
    ) -> list[list[Any]]:
        found = await self._ask(textual(sql, tuple(types), columns), values_as_text(values))
        return rows_of_text(found, columns.index("data") if "data" in columns else None)

    async def _ask(self, sql: str, value: str) -> str:
        with self._faults():
            return await self._client.text(sql, value)

    async def _lock(self) -> None:
        """Take the store's lock, and wait for it no longer than the store itself would."""
        own_ms = self._lock_timeout_ms
        wait_ms = min(own_ms or self._settings.lock_timeout_ms, self._settings.lock_timeout_ms)
        with self._faults():
            await self._client.run(
                f"SET LOCAL lock_timeout = {wait_ms}; "
                f"SELECT FROM {self._statements.schema}.state WHERE id = 1 FOR UPDATE; "
                f"SELECT FROM {self._statements.schema}.tick ORDER BY number DESC LIMIT 1 FOR UPDATE"
            )

    async def _require_store(self) -> None:
        """Refuse a database that is not the store's, or not brought up to date."""
        found = await self._ask(
            "SELECT jsonb_build_array(jsonb_build_array(current_database(), (SELECT setting::bigint "
            "FROM pg_catalog.pg_settings WHERE name = 'lock_timeout'), "
            "to_regclass(%s) IS NOT NULL))::text",
            f"{self._statements.schema}.migration",
        )
        [[database, self._lock_timeout_ms, has_tables]] = rows_of_text(found)
        own = _database_of(self._settings)
        if own is not None and own != database:
            raise errors.UnusableConnection(
                f"the connection's database is {database!r}, but the store is {self._settings.place}. "
                "Connect to the store's database."
            )
        if not has_tables or await self._applied() != [(step.number, step.checksum) for step in MIGRATIONS]:
            raise errors.UnusableConnection(
                f"database {database!r} of the connection has no schema {self._settings.schema!r} of this "
                "version. Connect to the store's database, or run `flowfabric migrate`."
            )

    async def _applied(self) -> list[tuple[int, str]]:
        sql = f"SELECT number, checksum FROM {self._statements.schema}.migration"
        rows = await self._rows(sql, (), ("number", "checksum"), [])
        return sorted((number, checksum) for number, checksum in rows)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn what the driver raises into our own errors."""
        try:
            yield
        except self._client.faults as fault:
            raise _error_of(fault, self._settings) from fault


def _database_of(settings: Settings) -> str | None:
    """The database that the URL names; None if it names none, or a pooler's name for one."""
    if settings.pooler:
        return None
    parts = urlsplit(settings.url)
    options = parse_qs(parts.query)
    named = options.get("database") or options.get("dbname") or [unquote(parts.path.removeprefix("/"))]
    return named[0] or None


def _error_of(fault: BaseException, settings: Settings) -> errors.FlowFabricError:
    """What a fault means for somebody else's transaction."""
    state = getattr(fault, "sqlstate", None)
    if state in _FAILED:
        return errors.TransactionRequired(
            f"the connection's transaction cannot go on (SQLSTATE {state}): a statement in it failed before. "
            "Roll it back and begin another one."
        )
    if state in _OUTDATED:
        return errors.TransactionOutdated(
            f"{settings.place}: others wrote while this transaction ran (SQLSTATE {state}). Roll it back and "
            "run all of it again; READ COMMITTED, and submitting last, make this rare."
        )
    if state == _LOCKED:
        return errors.StoreTimeout(
            f"{settings.place}: another transaction held the store's lock for too long. Nothing was "
            "submitted: roll back and try again."
        )
    if state is None:
        return errors.StoreUnreachable(
            f"the connection to {settings.place} failed ({type(fault).__name__}). Whether its transaction "
            "was committed is for its owner to find out."
        )
    return server_error(fault, settings.place)

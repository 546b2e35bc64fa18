"""The file's schema, as migrations that only go forward.

A file records which migrations were applied to it, with a checksum of each. A file that was made
by another program, by a newer version, or by a migration that has since been altered is refused
before anything is written to it. All pending migrations are applied in one transaction under the
write lock, so two processes may open a new file at the same time.

What the tables are for:

- ``record`` and ``large_record`` hold one row per record. Payloads have a table of their own, so
  that the pages of records that change often stay dense.
- ``index_row`` is its own primary key: four columns and nothing else.
- ``event`` is the log. Sequence numbers come from ``state``, under the write lock. The index by
  family leaves out the two families that make up most of the log: reading them is reading the log.
  The index by namespace has them all, so that nobody reads the events of others.
- ``frame`` numbers the frames of each stream, so that trimming counts nothing.
- ``state`` is one row: the latest commit, the latest event and the latest one that was trimmed,
  and the store's clock.

Keys are stored with the partition tag at their end (see ``keys.py``): execution ids begin with
the time, so new rows land beside each other and a commit changes few pages.
"""

from __future__ import annotations

import hashlib
import random
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.stores.clock import host_clock_ms
from flowfabric.stores.sqlite.driver import Busy

if TYPE_CHECKING:
    from flowfabric.stores.sqlite.driver import Connection

APPLICATION_ID: Final = 0x466C6F46
"""Marks the file as ours: «FloF»."""

LOCK_TIMEOUT_MS: Final = 10_000
"""How long opening a file waits for another process that is doing the same."""


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema. Never altered once it was released."""

    number: int
    name: str
    script: str
    """Statements, each ended by a semicolon at the end of a line."""

    @property
    def statements(self) -> list[str]:
        """The script, statement by statement, as drivers want it inside a transaction."""
        return [statement for part in self.script.split(";\n") if (statement := part.strip())]

    @property
    def checksum(self) -> str:
        """What the file remembers of the script."""
        return hashlib.sha256(self.script.encode()).hexdigest()


_FIRST_TABLES: Final = """
CREATE TABLE record (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE TABLE large_record (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE TABLE index_row (
    name TEXT NOT NULL,
    scope TEXT NOT NULL,
    sort INTEGER NOT NULL,
    member TEXT NOT NULL,
    PRIMARY KEY (name, scope, sort, member)
) WITHOUT ROWID;
CREATE TABLE event (
    sequence INTEGER PRIMARY KEY,
    family TEXT NOT NULL,
    execution TEXT NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX event_by_family ON event (family) WHERE family NOT IN ('execution', 'lease');
CREATE INDEX event_by_execution ON event (execution);
CREATE TABLE frame (
    stream TEXT NOT NULL,
    ms INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    number INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (stream, ms, seq)
) WITHOUT ROWID;
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    last_commit INTEGER NOT NULL,
    last_event INTEGER NOT NULL,
    mark_ms INTEGER NOT NULL,
    clock_offset_ms INTEGER NOT NULL
);
INSERT INTO state VALUES (1, 0, 0, 0, 0);
"""

_FEEDS: Final = """
ALTER TABLE event ADD COLUMN namespace TEXT NOT NULL DEFAULT '';
CREATE INDEX event_by_namespace ON event (namespace, family);
ALTER TABLE state ADD COLUMN trimmed_event INTEGER NOT NULL DEFAULT 0;
"""

MIGRATIONS: Final = (
    Migration(1, "records, indexes, events and frames", _FIRST_TABLES),
    Migration(2, "events by namespace, and a log that is trimmed", _FEEDS),
)

_MIGRATION_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS migration ("
    "number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at INTEGER NOT NULL)"
)


def migrate_connection(
    connection: Connection, path: str, migrations: tuple[Migration, ...] = MIGRATIONS
) -> list[Migration]:
    """Bring the file up to date. Returns the migrations that were applied now.

    Raises:
        StoreUnusable: the file belongs to another program or to a newer version.
        StoreTimeout: another process kept the file locked.
    """
    check_ownership(connection, path)
    pending = pending_migrations(connection, path, migrations)
    rows_patiently(connection, "PRAGMA journal_mode = WAL", path)
    if not pending:
        return []
    rows_patiently(connection, "BEGIN IMMEDIATE", path)
    try:
        # Another process may have migrated the file before this one got the lock.
        pending = pending_migrations(connection, path, migrations)
        _apply(connection, pending)
        connection.run("COMMIT")
    except BaseException:
        connection.roll_back()
        raise
    return pending


def check_ownership(connection: Connection, path: str) -> None:
    """Refuse a database that another program made."""
    # Tables first: another process may be migrating a new file at this moment. Whoever sees its
    # tables then sees its mark as well, because both come in one transaction.
    ((tables,),) = rows_patiently(connection, "SELECT count(*) FROM sqlite_master", path)
    ((application_id,),) = rows_patiently(connection, "PRAGMA application_id", path)
    if application_id == APPLICATION_ID or (application_id == 0 and tables == 0):
        return
    raise errors.StoreUnusable(f"{path} is the database of another program. Choose another path.")


def pending_migrations(
    connection: Connection, path: str, migrations: tuple[Migration, ...]
) -> list[Migration]:
    """The migrations that the file still lacks, after comparing those it has."""
    known = {migration.number: migration for migration in migrations}
    applied = _applied_checksums(connection, path)
    for number, checksum in applied.items():
        if number not in known:
            raise errors.StoreUnusable(
                f"{path} was written by a newer version of FlowFabric (its schema is {max(applied)}, "
                f"this version knows {max(known)}). Upgrade FlowFabric or choose another path."
            )
        if known[number].checksum != checksum:
            raise errors.StoreUnusable(
                f"{path}: schema step {number} differs from the one this version would apply. "
                "Open the file with the version that made it, or restore a backup."
            )
    return [migration for migration in migrations if migration.number not in applied]


def _applied_checksums(connection: Connection, path: str) -> dict[int, str]:
    if not rows_patiently(connection, "SELECT 1 FROM sqlite_master WHERE name = 'migration'", path):
        return {}
    found = rows_patiently(connection, "SELECT +number, +checksum FROM migration ORDER BY number", path)
    return dict(found)


def _apply(connection: Connection, pending: list[Migration]) -> None:
    connection.run(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.run(_MIGRATION_TABLE)
    for migration in pending:
        for statement in migration.statements:
            connection.run(statement)
        connection.run(
            "INSERT INTO migration VALUES (?, ?, ?, ?)",
            (migration.number, migration.name, migration.checksum, host_clock_ms()),
        )


def rows_patiently(connection: Connection, sql: str, path: str) -> list[tuple[Any, ...]]:
    """Execute a statement of the opening, waiting for other processes. Blocks its thread.

    SQLite's own busy timeout does not cover the change of the journal mode, so this waits itself.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_MS / 1_000
    while True:
        try:
            return connection.rows(sql)
        except Busy as busy:
            if time.monotonic() > deadline:
                raise errors.StoreTimeout(
                    f"{path} stayed locked for {LOCK_TIMEOUT_MS} ms. Find the process that holds it."
                ) from busy
        time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - spreads the tries of several processes

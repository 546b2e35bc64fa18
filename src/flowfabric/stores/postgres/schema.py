"""The tables in the database, as migrations that only go forward.

They live in a PostgreSQL schema of their own, which remembers which migrations were applied to it,
with a checksum of each. A schema that was made by another program, by a newer version, or by a
migration that has since been altered is refused before anything is written to it. All pending
migrations are applied in one transaction under an advisory lock, so many processes may open a new
database at the same time.

What is in it:

- ``record`` and ``large_record`` hold one row per record. Payloads have a table of their own, so
  that the pages of records that change often stay dense and have room for the next version.
- ``index_row`` is its own primary key: four columns and nothing else.
- ``event`` is the log. The index by family leaves out the two families that make up most of it:
  reading them is reading the log. The index by namespace has them all, so that nobody reads the
  events of others.
- ``frame`` numbers the frames of each stream, so that trimming counts nothing.
- ``state`` is one row that is never written by a commit: whoever commits holds its lock. It says up to
  where the log was trimmed.
- ``tick`` is the latest commit, the latest event and the store's clock. A commit adds a row and
  removes the one before, instead of changing it: while a transaction elsewhere, such as a dump, keeps
  old rows alive, the newest is still the first that is found from the upper end of the index.
- ``apply_commit`` is a whole commit in one statement; see below.

Every text is compared by its bytes (``COLLATE "C"``), as in every other store. Keys are stored with
the partition tag at their end (see ``stores/keys.py``).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.stores.postgres.connections import Connections, quoted

if TYPE_CHECKING:
    from flowfabric.stores.postgres.connections import Settings

_LOCK_SPACE: Final = 0x466C6F46
"""The first half of our advisory locks: «FloF»."""


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema. Never altered once it was released."""

    number: int
    name: str
    script: str
    """Statements; ``{schema}`` stands for the quoted name of the PostgreSQL schema."""

    @property
    def checksum(self) -> str:
        """What the database remembers of the script."""
        return hashlib.sha256(self.script.encode()).hexdigest()


# Rows come and go all the time in these tables, so they are cleaned up after a fixed number of dead
# rows instead of a share of a table that may be large: a read at the front of an index walks over
# the dead entries that are still there.
_FIRST_TABLES: Final = """
CREATE TABLE {schema}.record (
    key text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL,
    data bytea NOT NULL
) WITH (
    fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000
);
CREATE TABLE {schema}.large_record (
    key text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL,
    data bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE TABLE {schema}.index_row (
    name text COLLATE "C" NOT NULL,
    scope text COLLATE "C" NOT NULL,
    sort bigint NOT NULL,
    member text COLLATE "C" NOT NULL,
    PRIMARY KEY (name, scope, sort, member)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE TABLE {schema}.event (
    sequence bigint PRIMARY KEY,
    family text COLLATE "C" NOT NULL,
    namespace text COLLATE "C" NOT NULL,
    execution text COLLATE "C" NOT NULL,
    data bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
CREATE INDEX event_by_family ON {schema}.event (family, sequence) WHERE family NOT IN ('execution', 'lease');
CREATE INDEX event_by_namespace ON {schema}.event (namespace, family, sequence);
CREATE INDEX event_by_execution ON {schema}.event (execution, sequence);
CREATE TABLE {schema}.frame (
    stream text COLLATE "C" NOT NULL,
    ms bigint NOT NULL,
    seq bigint NOT NULL,
    number bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (stream, ms, seq)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
CREATE TABLE {schema}.state (
    id integer PRIMARY KEY CHECK (id = 1),
    clock_offset_ms bigint NOT NULL,
    trimmed_event bigint NOT NULL
);
INSERT INTO {schema}.state VALUES (1, 0, 0);
CREATE TABLE {schema}.tick (
    number bigint PRIMARY KEY,
    last_event bigint NOT NULL,
    mark_ms bigint NOT NULL
);
INSERT INTO {schema}.tick VALUES (0, 0, 0);
"""

# One statement, so one round trip and one transaction: no client that was stopped half-way can
# hold the lock. Every statement inside sees what was committed before the lock was taken, because
# the function is volatile and the isolation level is READ COMMITTED, which opening makes sure of.
#
# The settings keep the planner from scanning tables that were small when it last looked: what is
# wanted is always reached by key.
_APPLY_COMMIT: Final = """
CREATE FUNCTION {schema}.apply_commit(
    small_relied text[], small_versions bigint[], small_written text[], small_data bytea[],
    small_removed text[],
    large_relied text[], large_versions bigint[], large_written text[], large_data bytea[],
    large_removed text[],
    gone_names text[], gone_scopes text[], gone_sorts bigint[], gone_members text[],
    new_names text[], new_scopes text[], new_sorts bigint[], new_members text[],
    event_families text[], event_namespaces text[], event_executions text[], event_data bytea[],
    frame_streams text[], frame_ms bigint[], frame_seqs bigint[], frame_data bytea[],
    trim_streams text[], trim_keeps bigint[],
    given_clock_ms bigint, step_back_ms_max bigint, lock_timeout_ms bigint,
    OUT conflicts text[], OUT seen_mark_ms bigint, OUT offset_ms bigint, OUT clock_ms bigint,
    OUT commit_number bigint
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan SET jit = off
AS $body$
DECLARE
    newest_event bigint;
    counted bigint;
    place integer;
    newest bigint;
    excess bigint;
BEGIN
    -- Whoever waits in vain learns that nothing was written, before the client gives up not knowing.
    PERFORM set_config('lock_timeout', lock_timeout_ms::text, true);
    SELECT s.clock_offset_ms INTO STRICT offset_ms FROM {schema}.state AS s WHERE s.id = 1 FOR UPDATE;
    SELECT t.number + 1, t.last_event, t.mark_ms INTO STRICT commit_number, newest_event, seen_mark_ms
    FROM {schema}.tick AS t ORDER BY t.number DESC LIMIT 1
    FOR UPDATE;  -- with another isolation level it may be an old one, and the server says so here
    -- Not now(), which is when the transaction began: it may have waited long for the lock.
    clock_ms := coalesce(given_clock_ms, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint);

    SELECT array_agg(relied.key) INTO conflicts
    FROM (
        SELECT wanted.key FROM unnest(small_relied, small_versions) AS wanted (key, version)
        LEFT JOIN {schema}.record AS r ON r.key = wanted.key
        WHERE coalesce(r.version, 0) <> wanted.version
        UNION ALL
        SELECT wanted.key FROM unnest(large_relied, large_versions) AS wanted (key, version)
        LEFT JOIN {schema}.large_record AS r ON r.key = wanted.key
        WHERE coalesce(r.version, 0) <> wanted.version
    ) AS relied;
    IF conflicts IS NOT NULL THEN
        RETURN;
    END IF;

    IF cardinality(small_removed) > 0 THEN
        DELETE FROM {schema}.record AS r WHERE r.key = ANY(small_removed);
    END IF;
    IF cardinality(small_written) > 0 THEN
        INSERT INTO {schema}.record AS r (key, version, data)
        SELECT w.key, commit_number, w.data FROM unnest(small_written, small_data) AS w (key, data)
        ON CONFLICT (key) DO UPDATE SET version = excluded.version, data = excluded.data;
    END IF;
    IF cardinality(large_removed) > 0 THEN
        DELETE FROM {schema}.large_record AS r WHERE r.key = ANY(large_removed);
    END IF;
    IF cardinality(large_written) > 0 THEN
        INSERT INTO {schema}.large_record AS r (key, version, data)
        SELECT w.key, commit_number, w.data FROM unnest(large_written, large_data) AS w (key, data)
        ON CONFLICT (key) DO UPDATE SET version = excluded.version, data = excluded.data;
    END IF;

    IF cardinality(gone_names) > 0 THEN
        DELETE FROM {schema}.index_row AS i
        USING unnest(gone_names, gone_scopes, gone_sorts, gone_members) AS gone (name, scope, sort, member)
        WHERE i.name = gone.name AND i.scope = gone.scope AND i.sort = gone.sort AND i.member = gone.member;
        GET DIAGNOSTICS counted = ROW_COUNT;
        IF counted <> cardinality(gone_names) THEN
            RAISE 'index rows are missing' USING ERRCODE = 'data_corrupted';
        END IF;
    END IF;
    IF cardinality(new_names) > 0 THEN
        INSERT INTO {schema}.index_row (name, scope, sort, member)
        SELECT * FROM unnest(new_names, new_scopes, new_sorts, new_members);
    END IF;

    IF cardinality(event_data) > 0 THEN
        INSERT INTO {schema}.event (sequence, family, namespace, execution, data)
        SELECT newest_event + e.place, e.family, e.namespace, e.execution, e.data
        FROM unnest(event_families, event_namespaces, event_executions, event_data) WITH ORDINALITY
            AS e (family, namespace, execution, data, place);
        newest_event := newest_event + cardinality(event_data);
    END IF;

    IF cardinality(frame_data) > 0 THEN
        INSERT INTO {schema}.frame (stream, ms, seq, number, data)
        SELECT f.stream, f.ms, f.seq,
            coalesce(latest.number, 0) + row_number() OVER (PARTITION BY f.stream ORDER BY f.place), f.data
        FROM unnest(frame_streams, frame_ms, frame_seqs, frame_data) WITH ORDINALITY
            AS f (stream, ms, seq, data, place)
        LEFT JOIN LATERAL (
            SELECT old.number FROM {schema}.frame AS old WHERE old.stream = f.stream
            ORDER BY old.ms DESC, old.seq DESC LIMIT 1
        ) AS latest ON true;
    END IF;
    FOR place IN 1 .. cardinality(trim_streams) LOOP
        SELECT f.number INTO newest FROM {schema}.frame AS f WHERE f.stream = trim_streams[place]
        ORDER BY f.ms DESC, f.seq DESC LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        SELECT newest - f.number + 1 - trim_keeps[place] INTO excess FROM {schema}.frame AS f
        WHERE f.stream = trim_streams[place] ORDER BY f.ms, f.seq LIMIT 1;
        CONTINUE WHEN excess <= 0;
        DELETE FROM {schema}.frame AS f WHERE f.stream = trim_streams[place] AND (f.ms, f.seq) <= (
            SELECT o.ms, o.seq FROM {schema}.frame AS o WHERE o.stream = trim_streams[place]
            ORDER BY o.ms, o.seq OFFSET excess - 1 LIMIT 1
        );
    END LOOP;

    -- The clock never reads less than the mark, unless a forward spike has left it behind.
    INSERT INTO {schema}.tick (number, last_event, mark_ms) VALUES (commit_number, newest_event,
        CASE WHEN seen_mark_ms - (clock_ms + offset_ms) BETWEEN 1 AND step_back_ms_max
            THEN seen_mark_ms ELSE clock_ms + offset_ms END);
    DELETE FROM {schema}.tick AS t WHERE t.number = commit_number - 1;
END
$body$;
"""

MIGRATIONS: Final = (
    Migration(1, "records, indexes, events and frames", _FIRST_TABLES),
    Migration(2, "a commit in one statement", _APPLY_COMMIT),
)

_MIGRATION_TABLE: Final = """
CREATE TABLE IF NOT EXISTS {schema}.migration (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""


async def migrate(settings: Settings, migrations: tuple[Migration, ...] = MIGRATIONS) -> list[Migration]:
    """Bring the database up to date, making the schema if needed.

    Returns:
        The migrations that were applied now, oldest first.

    Raises:
        StoreError: as ``PostgresStore.open`` does.
    """
    async with Connections(settings) as connections:
        return await migrate_schema(connections, migrations)


async def pending(settings: Settings) -> list[Migration]:
    """The migrations that the database still lacks. Nothing is changed.

    Raises:
        StoreError: the database cannot be read, belongs to another program, or is newer than this one.
    """
    async with Connections(settings) as connections, connections.use() as connection:
        return await _pending(connection, settings, MIGRATIONS)


async def migrate_schema(
    connections: Connections, migrations: tuple[Migration, ...] = MIGRATIONS
) -> list[Migration]:
    """Bring the schema up to date over open connections. Returns what was applied now."""
    settings = connections.settings
    async with connections.use() as connection:
        if not await _pending(connection, settings, migrations):
            return []
        async with connection.transaction(isolation="read_committed"):
            # The lock ends with the transaction, also behind a pooler. Another process may have
            # migrated before this one got it, so it looks again.
            await connection.execute(
                "SELECT pg_advisory_xact_lock($1, hashtext($2))", _LOCK_SPACE, settings.schema
            )
            found = await _pending(connection, settings, migrations)
            if found:
                await _apply(connection, settings.schema, found)
            return found


async def _pending(connection: Any, settings: Settings, migrations: tuple[Migration, ...]) -> list[Migration]:
    """The migrations that the schema still lacks, after comparing those it has."""
    known = {migration.number: migration for migration in migrations}
    applied = await _applied_checksums(connection, settings)
    for number, checksum in applied.items():
        if number not in known:
            raise errors.StoreUnusable(
                f"{settings.place} was written by a newer version of FlowFabric (its schema is "
                f"{max(applied)}, this version knows {max(known)}). Upgrade FlowFabric, or choose another "
                "schema."
            )
        if known[number].checksum != checksum:
            raise errors.StoreUnusable(
                f"{settings.place}: schema step {number} differs from the one this version would apply. "
                "Open it with the version that made it, or restore a backup."
            )
    return [migration for migration in migrations if migration.number not in applied]


async def _applied_checksums(connection: Any, settings: Settings) -> dict[int, str]:
    tables = {
        row["table_name"]
        for row in await connection.fetch(
            "SELECT relname::text AS table_name FROM pg_catalog.pg_class AS c "
            "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
            settings.schema,
        )
    }
    if "migration" not in tables:
        if not tables:
            return {}
        raise errors.StoreUnusable(
            f"{settings.place} has tables of another program ({min(tables)}). Choose another schema."
        )
    found = await connection.fetch(
        f"SELECT number, checksum FROM {quoted(settings.schema)}.migration ORDER BY number"
    )
    return {row["number"]: row["checksum"] for row in found}


async def _apply(connection: Any, schema: str, migrations: list[Migration]) -> None:
    name = quoted(schema)
    # A role without the right to make schemas may still use one that was made for it.
    if not await connection.fetchval("SELECT true FROM pg_catalog.pg_namespace WHERE nspname = $1", schema):
        await connection.execute(f"CREATE SCHEMA {name}")
    await connection.execute(_MIGRATION_TABLE.replace("{schema}", name))
    for migration in migrations:
        await connection.execute(migration.script.replace("{schema}", name))
        await connection.execute(
            f"INSERT INTO {name}.migration (number, name, checksum) VALUES ($1, $2, $3)",
            migration.number,
            migration.name,
            migration.checksum,
        )

"""Reading and writing the tables: plain functions over one connection, no waiting, no threads."""

from __future__ import annotations

from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.core.events import Event, Family, StoredEvent
from flowfabric.core.records import RECORD_TYPES, Key, decode_record, encode_record, kind_of
from flowfabric.core.work import Frame
from flowfabric.stores.base import Commit, Conflict, Loaded, is_owned
from flowfabric.stores.keys import (
    owned_bounds,
    prefix_bounds,
    restored_key,
    stored_key,
    stored_name,
    stored_prefix_bounds,
    stored_suffix,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowfabric.core.work import Trim
    from flowfabric.stores.clock import StoreClock
    from flowfabric.stores.sqlite.driver import Connection

FREQUENT_FAMILIES: Final = frozenset({Family.EXECUTION, Family.LEASE})
"""Families without an index of their own: they make up most of the log."""

END: Final = b""
"""Sorts behind every text: SQLite orders blobs after texts."""

LARGE_KINDS: Final = frozenset(kind for kind, record_type in RECORD_TYPES.items() if record_type.LARGE)

_TABLES: Final = ("record", "large_record")
_ALL_KEYS: Final = "(SELECT key FROM record UNION ALL SELECT key FROM large_record)"

_encode_json = msgspec.json.Encoder().encode
_encode_event = msgspec.msgpack.Encoder().encode
_decode_event = msgspec.msgpack.Decoder(Event).decode


def _select_of(table: str, column: str, place: int) -> str:
    # The cross join makes SQLite walk the wanted keys and seek each record, whatever it believes
    # about the sizes.
    return (
        f"SELECT +{table}.key, +version, +{table}.{column} "
        f"FROM json_each(?{place}) AS wanted CROSS JOIN {table} ON {table}.key = wanted.value"
    )


# The clock's row and all records in one statement, so that they come from one snapshot. A plus hides
# the declared type of a column, so that converters that somebody has registered for such types with
# the standard library's driver leave our rows alone; the first part of a union gives the types.
_LOAD_SMALL: Final = (
    f"SELECT NULL, +mark_ms, +clock_offset_ms FROM state UNION ALL {_select_of('record', 'data', 1)}"
)
_LOAD: Final = f"{_LOAD_SMALL} UNION ALL {_select_of('large_record', 'data', 2)}"
_VERSIONS_SMALL: Final = _select_of("record", "id", 1)
_VERSIONS: Final = f"{_VERSIONS_SMALL} UNION ALL {_select_of('large_record', 'id', 2)}"


class State(msgspec.Struct, frozen=True):
    """The one row of ``state``."""

    last_commit: int
    last_event: int
    mark_ms: int
    clock_offset_ms: int


def read_state(connection: Connection) -> State:
    """The latest commit, the latest event, and the clock's mark and offset."""
    ((last_commit, last_event, mark_ms, offset_ms),) = connection.rows(
        "SELECT +last_commit, +last_event, +mark_ms, +clock_offset_ms FROM state"
    )
    return State(last_commit, last_event, mark_ms, offset_ms)


# Records


def load_records(connection: Connection, keys: Iterable[Key], clock: StoreClock) -> Loaded:
    """Read records, and the time after they were read."""
    stored = {stored_key(key): key for key in keys}
    found = _select(connection, _LOAD_SMALL, _LOAD, stored)
    _, mark_ms, offset_ms = found[0]
    rows: dict[str, tuple[int, bytes]] = {name: (version, data) for name, version, data in found[1:]}
    return Loaded(
        now=clock.read(mark_ms, offset_ms),
        rows=[_loaded_row(key, rows.get(name)) for name, key in stored.items()],
    )


def _loaded_row(key: Key, row: tuple[int, bytes] | None) -> tuple[Key, int, Any]:
    if row is None:
        return key, 0, None
    version, data = row
    try:
        return key, version, decode_record(key, data)
    except msgspec.MsgspecError as error:
        raise errors.StoreCorrupt(record=key, reason=error) from error


def _select(
    connection: Connection, small_only: str, both: str, stored: dict[str, Key]
) -> list[tuple[Any, ...]]:
    """Run a statement over the stored keys of one table, or of both."""
    large = [name for name, key in stored.items() if kind_of(key) in LARGE_KINDS]
    if not large:
        return connection.rows(small_only, (_encode_json(list(stored)).decode(),))
    small = stored.keys() - set(large)
    return connection.rows(both, (_encode_json(list(small)).decode(), _encode_json(large).decode()))


def list_keys(connection: Connection, prefix: Key, after: Key | None, limit: int) -> list[Key]:
    """Keys that begin with ``prefix``, in ``key_order``. May walk over many others."""
    kind, slash, _ = prefix.partition("/")
    source = _TABLES[kind in LARGE_KINDS] if slash else _ALL_KEYS
    suffix = stored_suffix(prefix)
    place, end = stored_prefix_bounds(prefix)
    if after is not None:
        place = max(place, stored_key(after))
    found: list[Key] = []
    while len(found) < limit:
        names = connection.rows(
            f"SELECT key FROM {source} WHERE key > ?1 AND key < ?2 "
            "AND (?3 = '' OR substr(key, -length(?3)) = ?3) ORDER BY key LIMIT ?4",
            (place, END if end is None else end, suffix, limit),
        )
        keys = (restored_key(name) for (name,) in names)
        found += [key for key in keys if key.startswith(prefix)]
        if len(names) < limit:
            break
        place = names[-1][0]
    return found[:limit]


def list_owned(connection: Connection, identity: str, limit: int) -> list[Key]:
    """Keys of records with this identity or one below it: one seek in each table."""
    low, high = owned_bounds(identity)
    found: list[Key] = []
    while len(found) < limit:
        names = connection.rows(
            f"SELECT key FROM {_ALL_KEYS} WHERE key >= ? AND key < ? ORDER BY key LIMIT ?", (low, high, limit)
        )
        keys = (restored_key(name) for (name,) in names)
        found += [key for key in keys if is_owned(key, identity)]
        if len(names) < limit:
            break
        low = names[-1][0] + "\x00"
    return found[:limit]


# Writing


def apply_commit(connection: Connection, commit: Commit, clock: StoreClock) -> int:
    """Write a commit inside the open transaction. Returns the version of what it wrote.

    Raises:
        Conflict: a record has another version now. The caller rolls back.
    """
    state = read_state(connection)
    ids = _compare_versions(connection, commit)
    number = state.last_commit + 1
    _write_records(connection, commit, ids, number)
    _write_index_rows(connection, commit)
    last_event = _write_events(connection, commit.events, state.last_event)
    _write_frames(connection, commit)
    connection.run(
        "UPDATE state SET last_commit = ?, last_event = ?, mark_ms = ?",
        (number, last_event, clock.read(state.mark_ms, state.clock_offset_ms)),
    )
    return number


def _compare_versions(connection: Connection, commit: Commit) -> dict[Key, int]:
    """The row ids of all records the commit rests on, after their versions were found unchanged."""
    relied = {change.key: change.version for change in commit.changes}
    relied.update(commit.relied_on)
    stored = {stored_key(key): key for key in relied}
    found = _select(connection, _VERSIONS_SMALL, _VERSIONS, stored)
    versions = {stored[name]: version for name, version, _ in found}
    changed = [key for key, version in relied.items() if versions.get(key, 0) != version]
    if changed:
        raise Conflict(frozenset(changed))
    return {stored[name]: row_id for name, _, row_id in found}


def _write_records(connection: Connection, commit: Commit, ids: dict[Key, int], number: int) -> None:
    # The version of a record is the number of the commit that wrote it, so a version never comes
    # back when a record is removed and created again.
    inserts: tuple[list[Any], list[Any]] = ([], [])
    updates: tuple[list[Any], list[Any]] = ([], [])
    removals: tuple[list[Any], list[Any]] = ([], [])
    for change in commit.changes:
        key, record = change.key, change.record
        large = kind_of(key) in LARGE_KINDS
        if record is None:
            removals[large].append((ids[key],))
        elif change.version:
            updates[large].append((number, encode_record(record), ids[key]))
        else:
            inserts[large].append((stored_key(key), number, encode_record(record)))
    for place, table in enumerate(_TABLES):
        _many(connection, f"DELETE FROM {table} WHERE id = ?", removals[place])
        _many(connection, f"UPDATE {table} SET version = ?, data = ? WHERE id = ?", updates[place])
        _many(connection, f"INSERT INTO {table} (key, version, data) VALUES (?, ?, ?)", inserts[place])


def _write_index_rows(connection: Connection, commit: Commit) -> None:
    _many(
        connection,
        "DELETE FROM index_row WHERE name = ? AND scope = ? AND sort = ? AND member = ?",
        commit.rows_removed,
    )
    _many(
        connection, "INSERT INTO index_row (name, scope, sort, member) VALUES (?, ?, ?, ?)", commit.rows_added
    )


def _many(connection: Connection, sql: str, rows: Sequence[Sequence[Any]]) -> None:
    """Execute a statement that changes exactly one row for each element."""
    if not rows:
        return
    changed = connection.many(sql, rows)
    if changed != len(rows):
        raise errors.StoreCorrupt(
            f"{len(rows) - changed} of {len(rows)} rows were not there: an index does not match its "
            "records. Restore a backup."
        )


def _write_events(connection: Connection, events: list[Event], last_event: int) -> int:
    rows = [
        (
            sequence,
            event.family.value,
            event.namespace,
            stored_name(event.execution_id),
            _encode_event(event),
        )
        for sequence, event in enumerate(events, last_event + 1)
    ]
    _many(
        connection,
        "INSERT INTO event (sequence, family, namespace, execution, data) VALUES (?, ?, ?, ?, ?)",
        rows,
    )
    return last_event + len(rows)


def _write_frames(connection: Connection, commit: Commit) -> None:
    rows = [(stored_name(frame.stream), frame.ms, frame.seq, frame.data) for frame in commit.appends]
    _many(
        connection,
        "INSERT INTO frame (stream, ms, seq, number, data) VALUES (?1, ?2, ?3, 1 + coalesce("
        "(SELECT number FROM frame WHERE stream = ?1 ORDER BY ms DESC, seq DESC LIMIT 1), 0), ?4)",
        rows,
    )
    for trim in commit.trims:
        _trim_frames(connection, trim)


def _trim_frames(connection: Connection, trim: Trim) -> None:
    """Remove the oldest frames. Walks over what it removes and nothing else."""
    stream = stored_name(trim.stream)
    numbers = connection.rows(
        "SELECT * FROM (SELECT number FROM frame WHERE stream = ?1 ORDER BY ms, seq LIMIT 1) UNION ALL "
        "SELECT * FROM (SELECT number FROM frame WHERE stream = ?1 ORDER BY ms DESC, seq DESC LIMIT 1)",
        (stream,),
    )
    if not numbers:
        return
    (oldest,), (newest,) = numbers
    excess = newest - oldest + 1 - trim.keep
    if excess <= 0:
        return
    if trim.keep <= 0:
        connection.run("DELETE FROM frame WHERE stream = ?", (stream,))
        return
    connection.run(
        "DELETE FROM frame WHERE stream = ?1 AND (ms, seq) < "
        "(SELECT ms, seq FROM frame WHERE stream = ?1 ORDER BY ms, seq LIMIT 1 OFFSET ?2)",
        (stream, excess),
    )


# Indexes


def read_index(
    connection: Connection,
    index: str,
    scope: str,
    *,
    after: tuple[int, str] | None,
    upto: int | None,
    limit: int,
    descending: bool,
) -> list[tuple[int, str]]:
    """Rows of one scope in order."""
    behind, within, order = ("<", ">=", "DESC") if descending else (">", "<=", "ASC")
    where = "name = ? AND scope = ?"
    values: list[Any] = [index, scope]
    if after is not None:
        where += f" AND (sort, member) {behind} (?, ?)"
        values += after
    if upto is not None:
        where += f" AND sort {within} ?"
        values.append(upto)
    found: list[tuple[int, str]] = connection.rows(
        f"SELECT sort, member FROM index_row WHERE {where} ORDER BY sort {order}, member {order} LIMIT ?",
        (*values, limit),
    )
    return found


def count_index(connection: Connection, index: str, scope: str, limit: int | None) -> int:
    """How many rows one scope has. Walks over all of them, or over as many as the limit says."""
    ((count,),) = connection.rows(
        "SELECT count(*) FROM (SELECT 1 FROM index_row WHERE name = ? AND scope = ? LIMIT ?)",
        (index, scope, -1 if limit is None else limit),
    )
    return int(count)


def index_scopes(connection: Connection, index: str, prefix: str, after: str | None, limit: int) -> list[str]:
    """Scopes that begin with ``prefix``: one seek for each, however many rows they have."""
    low, high = prefix_bounds(prefix)
    if after is not None:
        low = max(low, after + "\x00")
    found = connection.rows(
        "WITH RECURSIVE scopes (scope) AS ("
        "SELECT min(scope) FROM index_row WHERE name = ?1 AND scope >= ?2 AND scope < ?3 UNION ALL "
        "SELECT (SELECT min(scope) FROM index_row WHERE name = ?1 AND scope > scopes.scope AND scope < ?3) "
        "FROM scopes WHERE scopes.scope IS NOT NULL LIMIT ?4) "
        "SELECT scope FROM scopes WHERE scope IS NOT NULL",
        (index, low, END if high is None else high, limit),
    )
    return [scope for (scope,) in found]


# Frames and events


def read_frames(
    connection: Connection,
    stream: str,
    first: tuple[int, int],
    last: tuple[int, int] | None,
    limit: int,
) -> list[Frame]:
    """Frames of a stream in order, both bounds inclusive."""
    where = "stream = ? AND (ms, seq) >= (?, ?)"
    values: list[Any] = [stored_name(stream), *first]
    if last is not None:
        where += " AND (ms, seq) <= (?, ?)"
        values += last
    found = connection.rows(
        f"SELECT ms, seq, data FROM frame WHERE {where} ORDER BY ms, seq LIMIT ?", (*values, limit)
    )
    return [Frame(stream, ms, seq, data) for ms, seq, data in found]


def read_events(
    connection: Connection,
    after: int,
    *,
    families: frozenset[Family] | None,
    namespace: str | None,
    execution_id: str | None,
    limit: int,
) -> list[StoredEvent]:
    """Events after a place in the log, in commit order."""
    chosen: Iterable[Family | None] = (None,) if families is None else families
    if families is None and namespace is not None and execution_id is None:
        chosen = Family
    # One ordered read for each family; the indexes deliver no order over several of them.
    found = merge(
        *(
            _events_where(
                connection, after, family=family, namespace=namespace, execution_id=execution_id, limit=limit
            )
            for family in chosen
        )
    )
    return [
        StoredEvent(sequence=sequence, event=_decode_event(data)) for sequence, data in islice(found, limit)
    ]


def _events_where(
    connection: Connection,
    after: int,
    *,
    family: Family | None,
    namespace: str | None,
    execution_id: str | None,
    limit: int,
) -> list[tuple[int, bytes]]:
    where = "sequence > ?"
    values: list[Any] = [after]
    if execution_id is not None:
        where += " AND execution = ?"
        values.append(stored_name(execution_id))
    if namespace is not None:
        # The plus keeps SQLite from looking up the namespace where the execution narrows more.
        where += " AND namespace = ?" if execution_id is None else " AND +namespace = ?"
        values.append(namespace)
    if family is not None:
        where += " AND family = ?"
        values.append(family.value)
        if execution_id is None and namespace is None and family not in FREQUENT_FAMILIES:
            # The partial index is used only where the statement repeats its condition.
            where += " AND family NOT IN ('execution', 'lease')"
    found: list[tuple[int, bytes]] = connection.rows(
        f"SELECT sequence, data FROM event WHERE {where} ORDER BY sequence LIMIT ?", (*values, limit)
    )
    return found


def last_event(connection: Connection) -> int:
    """The place of the newest event."""
    return read_state(connection).last_event


def trimmed_events(connection: Connection) -> int:
    """The place up to which the log was trimmed."""
    ((trimmed,),) = connection.rows("SELECT trimmed_event FROM state")
    return int(trimmed)


def trim_events(connection: Connection, upto: int, sparing: frozenset[Family] = frozenset()) -> None:
    """Remove the events up to a place. What is there below the log's beginning was spared before."""
    spared = ", ".join(f"'{family.value}'" for family in sorted(sparing))
    connection.run(
        "DELETE FROM event WHERE sequence > (SELECT trimmed_event FROM state) AND sequence <= ? "
        f"AND family NOT IN ({spared})",
        (upto,),
    )
    connection.run("UPDATE state SET trimmed_event = max(trimmed_event, min(?, last_event))", (upto,))


def forget_events(connection: Connection, family: Family, upto: int) -> None:
    """Remove the events of a family that trimming has spared, up to a place."""
    connection.run(
        "DELETE FROM event WHERE family = ? AND family NOT IN ('execution', 'lease') AND sequence <= ? "
        "AND sequence <= (SELECT trimmed_event FROM state)",
        (family.value, upto),
    )


def set_clock_offset(connection: Connection, offset_ms: int) -> None:
    """Shift the store's clock. The mark goes with it, so that a test may also turn it back."""
    connection.run("UPDATE state SET clock_offset_ms = ?1, mark_ms = 0", (offset_ms,))

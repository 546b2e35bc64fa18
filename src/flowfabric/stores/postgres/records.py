"""Statements over the tables and what their rows mean: no connection, no waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.core.events import Event, Family, StoredEvent
from flowfabric.core.records import RECORD_TYPES, Key, decode_record, encode_record, kind_of
from flowfabric.stores.base import Commit, Loaded
from flowfabric.stores.clock import STEP_BACK_MS_MAX
from flowfabric.stores.keys import (
    prefix_bounds,
    restored_key,
    stored_key,
    stored_name,
    stored_prefix_bounds,
    stored_suffix,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowfabric.core.indexes import IndexRow
    from flowfabric.stores.clock import StoreClock

FREQUENT_FAMILIES: Final = frozenset({Family.EXECUTION, Family.LEASE})
"""Families without an index of their own: they make up most of the log."""

LARGE_KINDS: Final = frozenset(kind for kind, record_type in RECORD_TYPES.items() if record_type.LARGE)

ARGUMENTS: Final = 31
"""How many arguments ``apply_commit`` takes."""

_CLOCK_MS: Final = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_TABLES: Final = ("record", "large_record")

_encode_event = msgspec.msgpack.Encoder().encode
_decode_event = msgspec.msgpack.Decoder(Event).decode


class State(msgspec.Struct, frozen=True):
    """The latest tick and the offset of the clock, and the server's clock when they were read."""

    last_commit: int
    last_event: int
    mark_ms: int
    clock_offset_ms: int
    clock_ms: int

    def now(self, clock: StoreClock) -> int:
        """The store's time."""
        return clock.read(self.mark_ms, self.clock_offset_ms, server_ms=self.clock_ms)


class Values(list[Any]):
    """The values of a statement that is being put together."""

    def bind(self, value: Any) -> str:
        """The place that stands for the value in the statement."""
        self.append(value)
        return f"${len(self)}"


class Statements:
    """The statements that read and write the tables of one PostgreSQL schema.

    Args:
        schema: its name, quoted.
    """

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.trimmed_events: Final = f"SELECT trimmed_event FROM {schema}.state"
        # Only what is known to be there is looked for: the index begins with the entries of rows
        # that were trimmed before and are not cleaned up yet.
        self.trim_events: Final = (
            f"WITH told AS (UPDATE {schema}.state SET trimmed_event = greatest(trimmed_event, $2)) "
            f"DELETE FROM {schema}.event "
            "WHERE sequence > $1 AND sequence <= $2 AND family <> ALL ($3::text[])"
        )
        self.forget_events: Final = (
            f"DELETE FROM {schema}.event WHERE family = $1 AND family NOT IN ('execution', 'lease') "
            f"AND sequence <= least($2, (SELECT trimmed_event FROM {schema}.state))"
        )
        # The newest row of all: there may be dead ones below it, but none above.
        tick = f"(SELECT number, last_event, mark_ms FROM {schema}.tick ORDER BY number DESC LIMIT 1)"
        now = f"FROM {tick} AS tick, {schema}.state"
        self.read_state: Final = f"SELECT number, last_event, mark_ms, clock_offset_ms, {_CLOCK_MS} {now}"
        self.set_clock_offset: Final = (
            f"WITH moved AS (UPDATE {schema}.state SET clock_offset_ms = $1) "
            f"UPDATE {schema}.tick SET mark_ms = 0"
        )
        places = ", ".join(f"${place}" for place in range(1, ARGUMENTS + 1))
        self.apply_commit: Final = (
            "SELECT conflicts, seen_mark_ms, offset_ms, clock_ms, commit_number "
            f"FROM {schema}.apply_commit({places})"
        )
        # The clock's row comes last, so that the clock is read after the records were reached;
        # one statement, so that all come from one snapshot.
        clock = f"SELECT NULL, NULL, NULL, mark_ms, clock_offset_ms, {_CLOCK_MS} {now}"
        small, large = (
            f"SELECT key, version, data, NULL::bigint, NULL::bigint, NULL::bigint "
            f"FROM {schema}.{table} WHERE key = ANY(${place})"
            for place, table in enumerate(_TABLES, 1)
        )
        self._load_small: Final = f"{small} UNION ALL {clock}"
        self._load: Final = f"{small} UNION ALL {large} UNION ALL {clock}"

    def load(self, stored: dict[str, Key]) -> tuple[str, Values]:
        """Read records by their stored keys, and the clock."""
        small, large = _split(stored.items())
        return (self._load, Values([small, large])) if large else (self._load_small, Values([small]))

    def read_index(
        self,
        index: str,
        scope: str,
        *,
        after: tuple[int, str] | None,
        upto: int | None,
        limit: int,
        descending: bool,
    ) -> tuple[str, Values]:
        """Rows of one scope in order."""
        behind, within, order = ("<", ">=", "DESC") if descending else (">", "<=", "ASC")
        values = Values([index, scope])
        where = "name = $1 AND scope = $2"
        if after is not None:
            where += f" AND (sort, member) {behind} ({values.bind(after[0])}, {values.bind(after[1])})"
        if upto is not None:
            where += f" AND sort {within} {values.bind(upto)}"
        order_by = f"sort {order}, member {order} LIMIT {values.bind(limit)}"
        return f"SELECT sort, member FROM {self.schema}.index_row WHERE {where} ORDER BY {order_by}", values

    def count_index(self, index: str, scope: str, limit: int | None) -> tuple[str, Values]:
        """How many rows one scope has. Walks over all of them, or over as many as the limit says."""
        rows = f"SELECT 1 FROM {self.schema}.index_row WHERE name = $1 AND scope = $2 LIMIT $3::bigint"
        return f"SELECT count(*) FROM ({rows}) AS counted", Values([index, scope, limit])

    def index_scopes(self, index: str, prefix: str, after: str | None, limit: int) -> tuple[str, Values]:
        """Scopes that begin with ``prefix``: one seek for each, however many rows they have."""
        values = Values([index])
        low, high = prefix_bounds(prefix)
        begin = f"scope >= {values.bind(low)}"
        if after is not None and after >= low:
            begin = f"scope > {values.bind(after)}"
            values[1] = low
            begin += " AND scope >= $2"
        end = "" if high is None else f" AND scope < {values.bind(high)}"
        source = f"FROM {self.schema}.index_row WHERE name = $1"
        sql = (
            "WITH RECURSIVE scopes (found) AS ("
            f"(SELECT scope {source} AND {begin}{end} ORDER BY scope LIMIT 1) UNION ALL "
            f"SELECT (SELECT scope {source} AND scope > scopes.found{end} ORDER BY scope LIMIT 1) "
            "FROM scopes WHERE scopes.found IS NOT NULL) "
            f"SELECT found FROM scopes WHERE found IS NOT NULL LIMIT {values.bind(limit)}"
        )
        return sql, values

    def list_keys(self, prefix: Key, place: str, limit: int) -> tuple[str, Values]:
        """Stored keys after ``place``; all that begin with ``prefix``, and perhaps others."""
        kind, slash, _ = prefix.partition("/")
        tables = (_TABLES[kind in LARGE_KINDS],) if slash else _TABLES
        _, end = stored_prefix_bounds(prefix)
        suffix = stored_suffix(prefix)
        values = Values([place])
        where = "key > $1"
        if end is not None:
            where += f" AND key < {values.bind(end)}"
        if suffix:
            where += f" AND right(key, {values.bind(len(suffix))}) = {values.bind(suffix)}"
        bound = values.bind(limit)
        parts = [
            f"SELECT key FROM {self.schema}.{table} WHERE {where} ORDER BY key LIMIT {bound}"
            for table in tables
        ]
        return _merged(parts, f"ORDER BY key LIMIT {bound}"), values

    def list_owned(self, low: str, high: str, limit: int) -> tuple[str, Values]:
        """Stored keys of a range, of both tables."""
        parts = [
            f"SELECT key FROM {self.schema}.{table} WHERE key >= $1 AND key < $2 ORDER BY key LIMIT $3"
            for table in _TABLES
        ]
        return _merged(parts, "ORDER BY key LIMIT $3"), Values([low, high, limit])

    def read_frames(
        self, stream: str, first: tuple[int, int], last: tuple[int, int] | None, limit: int
    ) -> tuple[str, Values]:
        """Frames of a stream in order, both bounds inclusive."""
        values = Values([stored_name(stream), *first])
        where = "stream = $1 AND (ms, seq) >= ($2, $3)"
        if last is not None:
            where += f" AND (ms, seq) <= ({values.bind(last[0])}, {values.bind(last[1])})"
        order_by = f"ms, seq LIMIT {values.bind(limit)}"
        return f"SELECT ms, seq, data FROM {self.schema}.frame WHERE {where} ORDER BY {order_by}", values

    def read_events(
        self,
        after: int,
        families: frozenset[Family] | None,
        namespace: str | None,
        execution_id: str | None,
        limit: int,
    ) -> tuple[str, Values]:
        """Events after a place in the log: one ordered read for each family, merged."""
        values = Values([after, limit])
        where = "sequence > $1"
        if execution_id is not None:
            where += f" AND execution = {values.bind(stored_name(execution_id))}"
        if namespace is not None:
            where += f" AND namespace = {values.bind(namespace)}"
            families = frozenset(Family) if families is None and execution_id is None else families
        chosen = [""] if families is None else [_family_condition(family) for family in sorted(families)]
        order = "ORDER BY sequence LIMIT $2"
        parts = [
            f"SELECT sequence, data FROM {self.schema}.event WHERE {where}{condition} {order}"
            for condition in chosen
        ]
        return _merged(parts, order), values


def _merged(parts: list[str], order: str) -> str:
    """Several ordered reads as one."""
    if len(parts) == 1:
        return parts[0]
    return f"{' UNION ALL '.join(f'({part})' for part in parts)} {order}"


def _family_condition(family: Family) -> str:
    # The family stands in the statement as a literal, because the planner uses a partial index
    # only where it can prove its condition. The name is a constant of ours.
    return f" AND family = '{family.value}'"


def _split(items: Iterable[tuple[str, Key]]) -> tuple[list[str], list[str]]:
    """Stored keys of the small and of the large table."""
    parts: tuple[list[str], list[str]] = ([], [])
    for name, key in items:
        parts[kind_of(key) in LARGE_KINDS].append(name)
    return parts


# What rows mean


def loaded(stored: dict[str, Key], rows: Sequence[Any], clock: StoreClock) -> Loaded:
    """The answer to ``Statements.load``."""
    *found, (_, _, _, mark_ms, offset_ms, clock_ms) = rows
    by_name = {row[0]: row for row in found}
    return Loaded(
        now=clock.read(mark_ms, offset_ms, server_ms=clock_ms),
        rows=[_loaded_row(key, by_name.get(name)) for name, key in stored.items()],
    )


def _loaded_row(key: Key, row: Any) -> tuple[Key, int, Any]:
    if row is None:
        return key, 0, None
    try:
        return key, row[1], decode_record(key, row[2])
    except msgspec.MsgspecError as error:
        raise errors.StoreCorrupt(record=key, reason=error) from error


def stored_events(rows: Sequence[Any]) -> list[StoredEvent]:
    """The answer to ``Statements.read_events``."""
    return [StoredEvent(sequence=sequence, event=_decode_event(data)) for sequence, data in rows]


def listed_keys(prefix: Key, rows: Sequence[Any]) -> list[Key]:
    """Of the answer to ``Statements.list_keys``, the keys that begin with the prefix."""
    keys = (restored_key(name) for (name,) in rows)
    return [key for key in keys if key.startswith(prefix)]


# What a commit is written as


def commit_values(commit: Commit, clock: StoreClock, lock_timeout_ms: int) -> list[Any]:
    """The arguments of ``apply_commit``, in its order."""
    events, frames, trims = commit.events, commit.appends, commit.trims
    values = [
        *_record_values(commit),
        *_columns(commit.rows_removed),
        *_columns(commit.rows_added),
        [event.family.value for event in events],
        [event.namespace for event in events],
        [stored_name(event.execution_id) for event in events],
        [_encode_event(event) for event in events],
        [stored_name(frame.stream) for frame in frames],
        [frame.ms for frame in frames],
        [frame.seq for frame in frames],
        [frame.data for frame in frames],
        [stored_name(trim.stream) for trim in trims],
        [trim.keep for trim in trims],
        clock.given_ms(),
        STEP_BACK_MS_MAX,
        lock_timeout_ms,
    ]
    assert len(values) == ARGUMENTS
    return values


def _record_values(commit: Commit) -> list[list[Any]]:
    """For each table: keys and versions to compare, keys and data to write, keys to remove."""
    tables: tuple[list[list[Any]], list[list[Any]]] = ([[], [], [], [], []], [[], [], [], [], []])
    versions = {change.key: change.version for change in commit.changes}
    versions.update(commit.relied_on)
    for key, version in versions.items():
        relied, compared, *_ = tables[kind_of(key) in LARGE_KINDS]
        relied.append(stored_key(key))
        compared.append(version)
    for change in commit.changes:
        _, _, written, data, removed = tables[kind_of(change.key) in LARGE_KINDS]
        if change.record is None:
            removed.append(stored_key(change.key))
        else:
            written.append(stored_key(change.key))
            data.append(encode_record(change.record))
    return [*tables[0], *tables[1]]


def _columns(rows: Sequence[IndexRow]) -> list[Sequence[Any]]:
    return list(zip(*rows, strict=True)) if rows else [[], [], [], []]

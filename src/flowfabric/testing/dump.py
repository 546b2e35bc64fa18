"""Everything a store holds, in a form that two stores can be compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric.core.frames import stream_keys
from flowfabric.core.indexes import NAMES, IndexRow
from flowfabric.core.records import RECORD_TYPES, Key, Record, StreamMeta

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flowfabric.stores.base import Store

PAGE: Final = 500

Dump = dict[str, Any]


async def dump(store: Store) -> Dump:
    """All records, index rows, events and frames, as builtins.

    Versions are left out: they say how often a store has committed, not what. Frames are found
    through the records of their streams.
    """
    records = {key: record async for key, record in all_records(store)}
    streams = [record for record in records.values() if isinstance(record, StreamMeta)]
    return {
        "records": {key: _plain(records[key]) for key in sorted(records)},
        "rows": sorted([row async for row in all_rows(store)]),
        "events": [_plain(event) async for event in _all_events(store)],
        "frames": {
            key: await _all_frames(store, key)
            for stream in streams
            for key in stream_keys(stream.execution_id, stream.attempt_index)
        },
    }


def differences(left: Dump, right: Dump) -> list[str]:
    """What differs between two dumps, one line each, at most a few dozen.

    >>> differences({"records": {"a": 1}}, {"records": {"a": 2}})
    ['records a: 1 != 2']
    """
    found: list[str] = []
    for part in sorted(left.keys() | right.keys()):
        ours, theirs = left.get(part), right.get(part)
        if ours == theirs:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found += [
                f"{part} {key}: {ours.get(key)!r} != {theirs.get(key)!r}"
                for key in sorted(ours.keys() | theirs.keys())
                if ours.get(key) != theirs.get(key)
            ]
        elif isinstance(ours, list) and isinstance(theirs, list):
            found += [f"{part}: only left {item!r}" for item in ours if item not in theirs]
            found += [f"{part}: only right {item!r}" for item in theirs if item not in ours]
            found += (
                [f"{part}: another order"] if sorted(map(repr, ours)) == sorted(map(repr, theirs)) else []
            )
    return found[:40]


async def all_records(store: Store) -> AsyncIterator[tuple[Key, Record]]:
    """Every record, kind by kind, in pages."""
    for kind in RECORD_TYPES:
        after: Key | None = None
        while keys := await store.list_keys(f"{kind}/", after=after, limit=PAGE):
            loaded = await store.load(keys)
            for key, _, record in loaded.rows:
                if record is not None:
                    yield key, record
            after = keys[-1]


async def all_rows(store: Store) -> AsyncIterator[IndexRow]:
    """Every index row, in pages."""
    for index in sorted(NAMES):
        async for scope in all_scopes(store, index):
            after: tuple[int, str] | None = None
            while page := await store.read_index(index, scope, after=after, limit=PAGE):
                for sort, member in page:
                    yield index, scope, sort, member
                after = page[-1]


async def all_scopes(store: Store, index: str) -> AsyncIterator[str]:
    """Every scope of an index that has rows, in pages."""
    after: str | None = None
    while scopes := await store.index_scopes(index, "", after=after, limit=PAGE):
        for scope in scopes:
            yield scope
        after = scopes[-1]


async def _all_events(store: Store) -> AsyncIterator[Any]:
    after = 0
    while page := await store.read_events(after, limit=PAGE):
        for event in page:
            yield event
        after = page[-1].sequence


async def _all_frames(store: Store, stream: str) -> list[Any]:
    found: list[Any] = []
    first = (0, 0)
    while page := await store.read_frames(stream, first=first, limit=PAGE):
        found += [_plain(frame) for frame in page]
        first = (page[-1].ms, page[-1].seq + 1)
    return found


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, builtin_types=(bytes,))

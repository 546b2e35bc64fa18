"""Small records and commits, to speak to a store without an engine."""

from typing import Any

from flowfabric.core.events import Event, Family
from flowfabric.core.records import Payload, Record, StreamMeta
from flowfabric.stores.base import Change, Commit, Conflict, Store

TAG = "{fp:7}"
OTHER_TAG = "{fp:12}"


def execution_id(number: int = 1, tag: str = TAG) -> str:
    """An execution id; a larger number is a later one."""
    return f"{tag}:0190aaaa-0000-7000-8000-{number:012x}"


def counter(number: int = 1, count: int = 0, *, tag: str = TAG, index: int = 0) -> StreamMeta:
    """A small record with a number in it."""
    return StreamMeta(
        execution_id=execution_id(number, tag), attempt_index=index, created_at=1, frame_count=count
    )


def payload(number: int = 1, data: bytes = b"input") -> Payload:
    """A large record."""
    return Payload(execution_id=execution_id(number), data=data)


def event(number: int = 1, family: Family = Family.EXECUTION, name: str = "created") -> Event:
    """An event of one execution."""
    return Event(family=family, name=name, namespace="tenant", execution_id=execution_id(number), at_ms=1)


def commit(**fields: Any) -> Commit:
    """A commit with nothing but the given fields."""
    empty: dict[str, Any] = {
        "now": 1,
        "changes": [],
        "relied_on": [],
        "rows_removed": [],
        "rows_added": [],
        "events": [],
        "appends": [],
        "trims": [],
    }
    return Commit(**(empty | fields))


def creation(*records: Record) -> Commit:
    """A commit of new records."""
    return commit(changes=[Change(record.key, 0, record) for record in records])


async def version_of(store: Store, key: str) -> int:
    """The version a record has now, 0 if there is none."""
    ((_, version, _),) = (await store.load([key])).rows
    return version


async def record_of(store: Store, key: str) -> Any:
    """The record as it is now, None if there is none."""
    ((_, _, record),) = (await store.load([key])).rows
    return record


async def increment(store: Store, key: str) -> None:
    """Add one to a counter, trying again for as long as others are faster."""
    while True:
        ((_, version, found),) = (await store.load([key])).rows
        assert isinstance(found, StreamMeta)
        found.frame_count += 1
        try:
            await store.commit(commit(changes=[Change(key, version, found)]))
        except Conflict:
            continue
        return

"""What a store promises by its protocol, whatever the engine does with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from flowfabric.core.events import Event, Family
from flowfabric.core.records import Payload, Record, Reservation, StreamMeta, key_for
from flowfabric.core.work import Frame, Trim
from flowfabric.stores.base import Change, Commit, Conflict, key_order
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.dump import dump

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from flowfabric.core.indexes import IndexRow
    from flowfabric.testing.clock import ClockedStore, ManualClock

INDEX = "eligible"
STREAM = "{fp:7}:00000000-0000-4000-8000-000000000001/0/durable"
ALL_BYTES = bytes(range(256))


def execution_id(number: int, partition: int = 7) -> str:
    """An execution id that says which it is."""
    return f"{{fp:{partition}}}:00000000-0000-4000-8000-{number:012x}"


def payload(number: int = 1, data: bytes = b"data") -> Payload:
    """A large record."""
    return Payload(execution_id=execution_id(number), data=data)


def stream(number: int = 1) -> StreamMeta:
    """A small record."""
    return StreamMeta(execution_id=execution_id(number), attempt_index=0, created_at=1)


def event(
    number: int = 1, family: Family = Family.EXECUTION, name: str = "created", namespace: str = "tenant"
) -> Event:
    """An event."""
    return Event(family=family, name=name, namespace=namespace, execution_id=execution_id(number), at_ms=1)


def frames(*positions: tuple[int, int], stream: str = STREAM, data: bytes = b"frame") -> list[Frame]:
    """Frames at some places of a stream."""
    return [Frame(stream, ms, seq, data) for ms, seq in positions]


async def version_of(store: ClockedStore, key: str) -> int:
    """The version of a record; 0 if there is none."""
    return (await store.load([key])).rows[0][1]


async def loaded(store: ClockedStore, key: str) -> Record | None:
    """A record, or None."""
    return (await store.load([key])).rows[0][2]


async def write(
    store: ClockedStore,
    *records: Record,
    rows: Iterable[IndexRow] = (),
    without: Iterable[IndexRow] = (),
    versions: dict[str, int] | None = None,
    relied_on: Iterable[tuple[str, int]] = (),
    remove: Iterable[str] = (),
    **parts: list[Any],
) -> None:
    """Commit records, resting on the versions they have now unless others are given."""
    changes = [
        Change(key, await version_of(store, key) if versions is None else versions[key], record)
        for key, record in [*((record.key, record) for record in records), *((key, None) for key in remove)]
    ]
    first, *others = _by_place(store, changes) or [[]]
    commit = Commit(
        now=await store.now(),
        changes=first,
        relied_on=list(relied_on),
        rows_removed=list(without),
        rows_added=list(rows),
        events=parts.get("events", []),
        appends=parts.get("appends", []),
        trims=parts.get("trims", []),
    )
    await store.commit(commit)
    for other in others:
        await write(store, *(change.record for change in other if change.record is not None))


def _by_place(store: ClockedStore, changes: list[Change]) -> list[list[Change]]:
    """A commit changes the records of one place only."""
    places: dict[int, list[Change]] = {}
    for change in changes:
        places.setdefault(store.place_of(change.key), []).append(change)
    return list(places.values())


def rows_of(*pairs: tuple[int, str], scope: str = "scope", index: str = INDEX) -> list[IndexRow]:
    """Index rows of one scope."""
    return [(index, scope, sort, member) for sort, member in pairs]


class RecordPromises(StoreSuite):
    """Records, their versions, and conflicts."""

    async def test_a_record_that_does_not_exist_has_version_0(self, store: ClockedStore) -> None:
        [row] = (await store.load([payload().key])).rows
        assert row == (payload().key, 0, None)

    async def test_loading_nothing_tells_the_time(self, store: ClockedStore, clock: ManualClock) -> None:
        answer = await store.load([])
        assert (answer.now, answer.rows) == (clock.now_ms, [])

    async def test_a_record_comes_back_as_it_was_written(self, store: ClockedStore) -> None:
        await write(store, payload(), stream())
        found = {key: record for key, _, record in (await store.load([payload().key, stream().key])).rows}
        assert found == {payload().key: payload(), stream().key: stream()}

    async def test_changing_what_was_loaded_changes_nothing_stored(self, store: ClockedStore) -> None:
        await write(store, stream())
        record = await loaded(store, stream().key)
        assert isinstance(record, StreamMeta)
        record.frame_count = 5
        assert await loaded(store, stream().key) == stream()

    async def test_changing_what_was_written_changes_nothing_stored(self, store: ClockedStore) -> None:
        record = stream()
        await write(store, record)
        record.frame_count = 5
        assert await loaded(store, record.key) == stream()

    async def test_a_removed_record_is_gone(self, store: ClockedStore) -> None:
        await write(store, payload(), stream())
        await write(store, remove=[payload().key, stream().key])
        assert [row[1:] for row in (await store.load([payload().key, stream().key])).rows] == [(0, None)] * 2

    async def test_a_version_never_comes_back(self, store: ClockedStore) -> None:
        """Not even when the record is removed and created again."""
        seen = []
        for _ in range(3):
            await write(store, stream())
            seen.append(await version_of(store, stream().key))
            await write(store, stream())
            seen.append(await version_of(store, stream().key))
            await write(store, remove=[stream().key])
        assert len(set(seen)) == len(seen)
        assert 0 not in seen

    async def test_every_byte_survives(self, store: ClockedStore) -> None:
        await write(store, payload(data=ALL_BYTES), stream())
        assert await loaded(store, payload().key) == payload(data=ALL_BYTES)

    async def test_a_megabyte_survives(self, store: ClockedStore) -> None:
        data = ALL_BYTES * 4_096
        await write(store, payload(data=data))
        assert await loaded(store, payload().key) == payload(data=data)

    async def test_text_of_every_script_survives_in_keys_and_values(self, store: ClockedStore) -> None:
        record = Reservation(
            partition_tag="{fp:3}",
            namespace="Zürich/東京",
            idempotency_key="a/b {c}:%_\U0001f600'\"\\",
            execution_id=execution_id(1),
            digest=ALL_BYTES,
            created_at=1,
            expires_at=2,
        )
        await write(store, record, rows=rows_of((1, record.identity)))
        assert await loaded(store, record.key) == record
        assert await store.list_keys("reservation/") == [record.key]
        assert await store.read_index(INDEX, "scope") == [(1, record.identity)]

    async def test_a_thousand_records_are_one_commit(self, store: ClockedStore) -> None:
        records = [stream(number) for number in range(1_000)]
        await write(store, *records)
        found = (await store.load([record.key for record in records])).rows
        assert all(record is not None for _, _, record in found)
        assert len({version for _, version, _ in found}) == 1 or all(version for _, version, _ in found)


class ConflictPromises(StoreSuite):
    """All or nothing."""

    async def test_a_stale_version_is_refused_by_name(self, store: ClockedStore) -> None:
        await write(store, stream(1), stream(2))
        stale = {stream(1).key: await version_of(store, stream(1).key)}
        await write(store, stream(1))
        fresh = {stream(2).key: await version_of(store, stream(2).key)}
        with pytest.raises(Conflict) as caught:
            await write(store, stream(1), stream(2), versions={**stale, **fresh})
        assert caught.value.keys == {stream(1).key}

    async def test_every_changed_key_is_named(self, store: ClockedStore) -> None:
        await write(store, stream(1), payload(2))
        with pytest.raises(Conflict) as caught:
            await write(store, stream(1), payload(2), versions={stream(1).key: 0, payload(2).key: 0})
        assert caught.value.keys == {stream(1).key, payload(2).key}

    async def test_a_record_that_must_not_exist_conflicts_when_it_does(self, store: ClockedStore) -> None:
        await write(store, payload())
        with pytest.raises(Conflict):
            await write(store, payload(data=b"other"), versions={payload().key: 0})
        assert await loaded(store, payload().key) == payload()

    async def test_a_record_that_is_gone_conflicts(self, store: ClockedStore) -> None:
        await write(store, stream())
        version = await version_of(store, stream().key)
        await write(store, remove=[stream().key])
        with pytest.raises(Conflict):
            await write(store, stream(), versions={stream().key: version})

    async def test_a_record_that_was_relied_on_conflicts_when_it_has_changed(
        self, store: ClockedStore
    ) -> None:
        await write(store, stream(1))
        version = await version_of(store, stream(1).key)
        await write(store, stream(1))
        with pytest.raises(Conflict) as caught:
            await write(store, stream(2), relied_on=[(stream(1).key, version)])
        assert caught.value.keys == {stream(1).key}
        assert await loaded(store, stream(2).key) is None

    async def test_an_absence_that_was_relied_on_conflicts_when_it_has_ended(
        self, store: ClockedStore
    ) -> None:
        await write(store, payload(1))
        with pytest.raises(Conflict):
            await write(store, stream(2), relied_on=[(payload(1).key, 0)])

    async def test_relying_on_what_has_not_changed_is_no_conflict(self, store: ClockedStore) -> None:
        await write(store, stream(1))
        relied_on = [(stream(1).key, await version_of(store, stream(1).key)), (payload(9).key, 0)]
        await write(store, stream(2), relied_on=relied_on)
        assert await loaded(store, stream(2).key) == stream(2)

    async def test_a_conflict_applies_nothing(self, store: ClockedStore) -> None:
        await write(
            store, stream(1), rows=rows_of((1, "a")), events=[event()], appends=frames((1, 0), (2, 0))
        )
        before = await dump(store)
        with pytest.raises(Conflict):
            await write(
                store,
                payload(2),
                stream(1),
                versions={payload(2).key: 0, stream(1).key: 0},
                rows=rows_of((2, "b")),
                without=rows_of((1, "a")),
                events=[event()],
                appends=frames((3, 0)),
                trims=[Trim(STREAM, 0)],
            )
        assert await dump(store) == before

    async def test_a_conflict_takes_no_place_in_the_log(self, store: ClockedStore) -> None:
        await write(store, stream(), events=[event()])
        with pytest.raises(Conflict):
            await write(store, stream(), versions={stream().key: 0}, events=[event()])
        await write(store, stream(), events=[event()])
        assert [found.sequence for found in await store.read_events(0)] == [1, 2]

    async def test_of_many_at_once_exactly_one_wins(self, store: ClockedStore) -> None:
        await write(store, stream())
        versions = {stream().key: await version_of(store, stream().key)}
        answers = await asyncio.gather(
            *(write(store, stream(), versions=versions, events=[event()]) for _ in range(20)),
            return_exceptions=True,
        )
        assert [type(answer) for answer in answers].count(type(None)) == 1
        assert await store.last_event() == 1

    async def test_commits_that_share_nothing_all_succeed_at_once(self, store: ClockedStore) -> None:
        await asyncio.gather(*(write(store, stream(number), events=[event(number)]) for number in range(20)))
        assert [found.sequence for found in await store.read_events(0)] == list(range(1, 21))


class IndexPromises(StoreSuite):
    """Index rows: order, pages, scopes."""

    async def fill(self, store: ClockedStore) -> None:
        pairs = [(2, "a"), (1, "b"), (2, "b"), (1, "a"), (3, "é"), (3, "z"), (3, "A")]
        await write(store, rows=rows_of(*pairs))

    async def test_rows_are_ordered_by_sort_then_by_the_bytes_of_the_member(
        self, store: ClockedStore
    ) -> None:
        await self.fill(store)
        assert await store.read_index(INDEX, "scope") == [
            (1, "a"),
            (1, "b"),
            (2, "a"),
            (2, "b"),
            (3, "A"),
            (3, "z"),
            (3, "é"),
        ]

    async def test_a_page_begins_strictly_behind_the_last_row(self, store: ClockedStore) -> None:
        await self.fill(store)
        pages = []
        after = None
        while page := await store.read_index(INDEX, "scope", after=after, limit=2):
            pages.append(page)
            after = page[-1]
        assert [len(page) for page in pages] == [2, 2, 2, 1]
        assert [row for page in pages for row in page] == await store.read_index(INDEX, "scope")

    async def test_behind_a_row_that_is_gone_the_next_one_follows(self, store: ClockedStore) -> None:
        await self.fill(store)
        await write(store, without=rows_of((1, "b")))
        assert await store.read_index(INDEX, "scope", after=(1, "b"), limit=1) == [(2, "a")]

    async def test_upto_counts_the_last_sort_value(self, store: ClockedStore) -> None:
        await self.fill(store)
        assert await store.read_index(INDEX, "scope", upto=1) == [(1, "a"), (1, "b")]
        assert await store.read_index(INDEX, "scope", upto=0) == []

    async def test_after_and_upto_together(self, store: ClockedStore) -> None:
        await self.fill(store)
        assert await store.read_index(INDEX, "scope", after=(1, "a"), upto=2) == [
            (1, "b"),
            (2, "a"),
            (2, "b"),
        ]

    async def test_descending_is_the_same_order_backwards(self, store: ClockedStore) -> None:
        await self.fill(store)
        forwards = await store.read_index(INDEX, "scope")
        assert await store.read_index(INDEX, "scope", descending=True) == forwards[::-1]
        assert await store.read_index(INDEX, "scope", after=(2, "b"), limit=2, descending=True) == [
            (2, "a"),
            (1, "b"),
        ]
        assert await store.read_index(INDEX, "scope", upto=3, descending=True) == forwards[:3:-1]

    async def test_scopes_and_indexes_do_not_mix(self, store: ClockedStore) -> None:
        await write(
            store,
            rows=[*rows_of((1, "a")), *rows_of((1, "a"), scope="other"), *rows_of((1, "a"), index="delayed")],
        )
        await write(store, without=rows_of((1, "a"), scope="other"))
        assert await store.read_index(INDEX, "scope") == [(1, "a")]
        assert await store.read_index(INDEX, "other") == []
        assert await store.read_index("delayed", "scope") == [(1, "a")]

    async def test_a_row_moves_within_one_commit(self, store: ClockedStore) -> None:
        await write(store, rows=rows_of((1, "a")))
        await write(store, rows=rows_of((2, "a")), without=rows_of((1, "a")))
        assert await store.read_index(INDEX, "scope") == [(2, "a")]

    async def test_sort_values_of_fifty_bits_keep_their_order(self, store: ClockedStore) -> None:
        pairs = [((9_000 << 42) + number, f"m{number}") for number in range(3)]
        await write(store, rows=rows_of(*pairs, (0, "zero")))
        assert await store.read_index(INDEX, "scope") == [(0, "zero"), *pairs]

    async def test_rows_are_counted_per_scope(self, store: ClockedStore) -> None:
        await write(store, rows=[*rows_of((1, "a"), (2, "a")), *rows_of((1, "b"), scope="other")])
        assert await store.count_index(INDEX, "scope") == 2
        assert await store.count_index(INDEX, "none") == 0
        assert await store.count_index(INDEX, "scope", limit=1) == 1
        assert await store.count_index(INDEX, "scope", limit=3) == 2

    async def test_scopes_with_rows_are_listed_by_prefix_in_order(self, store: ClockedStore) -> None:
        for scope in ("t\x1fb", "t\x1fa\x1fx", "t\x1fa", "u", "tz"):
            await write(store, rows=rows_of((1, "m"), (2, "m"), scope=scope))
        assert await store.index_scopes(INDEX, "t\x1f") == ["t\x1fa", "t\x1fa\x1fx", "t\x1fb"]
        assert await store.index_scopes(INDEX, "") == ["t\x1fa", "t\x1fa\x1fx", "t\x1fb", "tz", "u"]
        assert await store.index_scopes("delayed", "") == []

    async def test_scopes_come_in_pages(self, store: ClockedStore) -> None:
        await write(store, rows=[row for scope in "abcde" for row in rows_of((1, "m"), scope=scope)])
        assert await store.index_scopes(INDEX, "", limit=2) == ["a", "b"]
        assert await store.index_scopes(INDEX, "", after="b", limit=2) == ["c", "d"]
        assert await store.index_scopes(INDEX, "", after="e") == []

    async def test_a_scope_without_rows_is_not_listed(self, store: ClockedStore) -> None:
        await write(store, rows=rows_of((1, "m")))
        await write(store, without=rows_of((1, "m")))
        assert await store.index_scopes(INDEX, "") == []

    async def test_reading_an_index_removes_nothing(self, store: ClockedStore) -> None:
        await self.fill(store)
        before = await dump(store)
        await store.read_index(INDEX, "scope", limit=3)
        await store.index_scopes(INDEX, "")
        assert await dump(store) == before


class KeyPromises(StoreSuite):
    """Listing keys."""

    async def test_keys_of_one_kind_come_in_key_order_and_in_pages(self, store: ClockedStore) -> None:
        ids = [execution_id(number, partition) for number, partition in ((3, 1), (1, 9), (2, 10), (4, 1))]
        await write(store, *(Payload(execution_id=found, data=b"") for found in ids), stream(8))
        expected = sorted((key_for(Payload, found) for found in ids), key=key_order)
        found, after = [], None
        while page := await store.list_keys("payload/", after=after, limit=3):
            found += page
            after = page[-1]
        assert found == expected

    async def test_a_prefix_narrows_to_partition_and_execution(self, store: ClockedStore) -> None:
        await write(store, *(Payload(execution_id=execution_id(n, n % 2), data=b"") for n in range(4)))
        partition = await store.list_keys("payload/{fp:1}:")
        assert partition == [f"payload/{execution_id(1, 1)}", f"payload/{execution_id(3, 1)}"]
        assert await store.list_keys(f"payload/{execution_id(2, 0)}") == [f"payload/{execution_id(2, 0)}"]
        assert await store.list_keys("payload/{fp:7}:") == []

    async def test_kinds_do_not_mix(self, store: ClockedStore) -> None:
        await write(store, payload(), stream())
        assert await store.list_keys("stream/") == [stream().key]
        assert await store.list_keys("execution/") == []

    async def test_what_an_identity_owns_is_listed_whatever_its_kind(self, store: ClockedStore) -> None:
        await write(store, payload(1), stream(1), payload(2), stream(2))
        owned = [payload(1).key, stream(1).key]
        assert await store.list_owned(execution_id(1)) == owned
        assert await store.list_owned(execution_id(1), limit=1) == owned[:1]
        assert await store.list_owned(execution_id(1)[:-1]) == []
        assert await store.list_owned(execution_id(1, partition=8)) == []


class FramePromises(StoreSuite):
    """Frames of streams."""

    async def test_frames_come_in_order_with_every_byte(self, store: ClockedStore) -> None:
        await write(store, appends=frames((1, 0), (1, 1), (5, 0), data=ALL_BYTES))
        await write(store, appends=frames((5, 1), data=ALL_BYTES))
        assert await store.read_frames(STREAM) == frames((1, 0), (1, 1), (5, 0), (5, 1), data=ALL_BYTES)

    async def test_both_bounds_are_inclusive(self, store: ClockedStore) -> None:
        await write(store, appends=frames((1, 0), (1, 1), (2, 0), (3, 0)))
        assert await store.read_frames(STREAM, first=(1, 1), last=(2, 0)) == frames((1, 1), (2, 0))
        assert await store.read_frames(STREAM, first=(2, 1), last=(2, 9)) == []

    async def test_a_read_stops_at_its_limit(self, store: ClockedStore) -> None:
        await write(store, appends=frames(*((1, seq) for seq in range(10))))
        assert await store.read_frames(STREAM, first=(1, 2), limit=3) == frames((1, 2), (1, 3), (1, 4))

    async def test_a_trim_keeps_the_newest(self, store: ClockedStore) -> None:
        await write(store, appends=frames((1, 0), (2, 0), (3, 0)))
        await write(store, trims=[Trim(STREAM, 2)])
        assert await store.read_frames(STREAM) == frames((2, 0), (3, 0))

    async def test_a_trim_counts_the_frames_of_its_own_commit(self, store: ClockedStore) -> None:
        await write(store, appends=frames((1, 0), (2, 0)))
        await write(store, appends=frames((3, 0), (4, 0)), trims=[Trim(STREAM, 3)])
        assert await store.read_frames(STREAM) == frames((2, 0), (3, 0), (4, 0))

    async def test_a_stream_trimmed_to_nothing_goes_on(self, store: ClockedStore) -> None:
        await write(store, appends=frames((1, 0), (2, 0)))
        await write(store, trims=[Trim(STREAM, 0)])
        await write(store, appends=frames((3, 0)))
        await write(store, trims=[Trim(STREAM, 5)])
        assert await store.read_frames(STREAM) == frames((3, 0))

    async def test_trims_one_after_another_count_right(self, store: ClockedStore) -> None:
        for number in range(1, 30):
            await write(store, appends=frames((number, 0)), trims=[Trim(STREAM, 4)])
        assert await store.read_frames(STREAM) == frames((26, 0), (27, 0), (28, 0), (29, 0))

    async def test_streams_do_not_mix(self, store: ClockedStore) -> None:
        await write(store, appends=[*frames((1, 0)), *frames((1, 0), stream=STREAM + "2")])
        await write(store, trims=[Trim(STREAM, 0)])
        assert await store.read_frames(STREAM) == []
        assert len(await store.read_frames(STREAM + "2")) == 1

    async def test_a_stream_that_was_never_written_is_empty(self, store: ClockedStore) -> None:
        await write(store, trims=[Trim(STREAM, 3)])
        assert await store.read_frames(STREAM) == []


class EventPromises(StoreSuite):
    """The log."""

    async def test_events_are_numbered_in_commit_order_without_gaps(self, store: ClockedStore) -> None:
        await write(store, events=[event(1), event(2)])
        await write(store, stream())
        await write(store, events=[event(3)])
        found = await store.read_events(0)
        assert [(one.sequence, one.event) for one in found] == [(1, event(1)), (2, event(2)), (3, event(3))]
        assert await store.last_event() == 3

    async def test_an_empty_log_ends_at_0(self, store: ClockedStore) -> None:
        assert await store.last_event() == 0
        assert await store.read_events(0) == []

    async def test_an_execution_without_events_of_a_family_has_none(self, store: ClockedStore) -> None:
        await write(store, events=[event(1), event(1)])
        completions = frozenset({Family.COMPLETION})
        assert await store.read_events(0, families=completions, execution_id=execution_id(1)) == []

    async def test_pages_of_the_log_follow_each_other(self, store: ClockedStore) -> None:
        await write(store, events=[event(number) for number in range(1, 8)])
        assert [one.sequence for one in await store.read_events(2, limit=3)] == [3, 4, 5]
        assert await store.read_events(7) == []

    async def test_a_feed_is_a_filter_over_the_log(self, store: ClockedStore) -> None:
        families = [Family.LEASE, Family.SIGNAL, Family.LEASE, Family.COMPLETION]
        await write(store, events=[event(number % 2, family) for number, family in enumerate(families)])
        by_family = await store.read_events(0, families=frozenset({Family.LEASE, Family.COMPLETION}))
        assert [one.sequence for one in by_family] == [1, 3, 4]
        of_one = await store.read_events(0, execution_id=execution_id(1))
        assert [one.sequence for one in of_one] == [2, 4]
        both = await store.read_events(
            0, families=frozenset({Family.LEASE}), execution_id=execution_id(0), limit=1
        )
        assert [one.sequence for one in both] == [1]

    async def test_the_data_of_an_event_survives(self, store: ClockedStore) -> None:
        told = Event(
            family=Family.OPERATOR,
            name="näme",
            namespace="tenant",
            execution_id=execution_id(1),
            at_ms=2**53 - 1,
            flow_id="flow",
            data={"text": "\U0001f600", "number": 2**53 - 1, "none": None},
        )
        await write(store, events=[told])
        assert (await store.read_events(0))[0].event == told

    async def test_a_namespace_is_a_filter_as_well(self, store: ClockedStore) -> None:
        families = [Family.LEASE, Family.EXECUTION, Family.COMPLETION, Family.LEASE]
        for namespace in ("tenant", "other"):
            await write(store, events=[event(1, family, namespace=namespace) for family in families])

        async def read(**filters: Any) -> list[int]:
            return [one.sequence for one in await store.read_events(0, **filters)]

        assert await read(namespace="other") == [5, 6, 7, 8]
        assert await read(namespace="other", limit=2) == [5, 6]
        assert await read(namespace="tenant", families=frozenset({Family.LEASE})) == [1, 4]
        assert await read(namespace="other", execution_id=execution_id(1)) == [5, 6, 7, 8]
        assert await read(namespace="none") == []

    async def test_a_log_that_was_never_trimmed_says_so(self, store: ClockedStore) -> None:
        await write(store, events=[event(1)])
        assert await store.trimmed_events() == 0

    async def test_a_trimmed_log_begins_behind_what_is_gone(self, store: ClockedStore) -> None:
        await write(store, events=[event(number) for number in range(1, 6)])
        await store.trim_events(3)
        assert [one.sequence for one in await store.read_events(0)] == [4, 5]
        assert [one.sequence for one in await store.read_events(0, namespace="tenant")] == [4, 5]
        assert await store.read_events(0, execution_id=execution_id(1)) == []
        assert (await store.trimmed_events(), await store.last_event()) == (3, 5)

    async def test_trimming_again_or_less_or_more_than_there_is_is_harmless(
        self, store: ClockedStore
    ) -> None:
        await write(store, events=[event(1), event(2)])
        for upto in (2, 1, 0, 9):
            await store.trim_events(upto)
            assert (await store.trimmed_events(), await store.last_event()) == (2, 2)
        await write(store, events=[event(3)])
        assert [one.sequence for one in await store.read_events(0)] == [3]

    async def test_a_spared_family_outlives_the_trimming_of_the_log(self, store: ClockedStore) -> None:
        acts = frozenset({Family.OPERATOR})
        families = [Family.EXECUTION, Family.OPERATOR, Family.LEASE, Family.OPERATOR, Family.EXECUTION]
        await write(store, events=[event(1, family) for family in families])

        async def read(after: int = 0, **filters: Any) -> list[int]:
            return [one.sequence for one in await store.read_events(after, **filters)]

        await store.trim_events(4, sparing=acts)
        assert (await store.trimmed_events(), await store.last_event()) == (4, 5)
        assert await read(4) == [5]
        narrower: list[dict[str, Any]] = [{}, {"namespace": "tenant"}, {"execution_id": execution_id(1)}]
        for filters in narrower:
            assert await read(families=acts, **filters) == [2, 4]
            assert await read(2, families=acts, **filters) == [4]
        assert await read(execution_id=execution_id(1)) == [2, 4, 5]
        await store.trim_events(5, sparing=acts)
        assert await read() == [2, 4]
        for _ in range(2):
            await store.forget_events(Family.OPERATOR, 3)
            assert await read() == await read(execution_id=execution_id(1)) == [4]
        await store.forget_events(Family.LEASE, 9)
        assert await read(namespace="tenant") == [4]
        await write(store, events=[event(1, Family.OPERATOR)])
        await store.forget_events(Family.OPERATOR, 9)
        assert await read() == [6]
        assert (await store.trimmed_events(), await store.last_event()) == (5, 6)


class ClockPromises(StoreSuite):
    """The store's clock."""

    async def test_the_clock_moves_on(self, store: ClockedStore, clock: ManualClock) -> None:
        before = await store.now()
        clock.advance(1)
        assert await store.now() == before + 1
        assert (await store.load([])).now == before + 1

    async def test_a_small_step_back_is_papered_over(self, store: ClockedStore, clock: ManualClock) -> None:
        """Otherwise an event could precede its cause."""
        await write(store, stream())
        before = await store.now()
        clock.now_ms -= 59_000
        assert await store.now() == before
        clock.now_ms += 59_001
        assert await store.now() == before + 1

    async def test_a_large_step_back_is_believed(self, store: ClockedStore, clock: ManualClock) -> None:
        """Otherwise one spike forward would freeze every expiry."""
        clock.advance(3_600_000)
        await write(store, stream())
        clock.now_ms -= 3_600_000
        assert await store.now() == clock.now_ms

    async def test_an_offset_shifts_the_clock(self, store: ClockedStore, clock: ManualClock) -> None:
        await store.set_clock_offset(5_000)
        assert await store.now() == clock.now_ms + 5_000
        await store.set_clock_offset(0)
        assert await store.now() == clock.now_ms


class OpeningPromises(StoreSuite):
    """Opening and closing."""

    async def test_the_durability_is_attested(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        durability = await store.open()
        again = await store.attest()
        await store.close()
        assert durability.level in ("D0", "D1", "D2", "D3")
        assert durability.store
        assert (again.level, again.store) == (durability.level, durability.store)

    async def test_closing_twice_is_harmless(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        await store.open()
        await store.close()
        await store.close()

    async def test_what_was_committed_survives_closing(self, tmp_path: Path, clock: ManualClock) -> None:
        """On every level but D0, which promises nothing."""
        store = self.make_store(tmp_path)
        clock.attach(store)
        durability = await store.open()
        await write(store, stream(), rows=rows_of((1, "a")), events=[event()], appends=frames((1, 0)))
        before = await dump(store)
        await store.close()
        again = self.make_store(tmp_path)
        clock.attach(again)
        await again.open()
        after = await dump(again)
        await again.close()
        assert durability.level == "D0" or after == before

    async def test_waiting_for_others_ends_by_itself(self, store: ClockedStore) -> None:
        assert await store.wait_for_change(1) in (True, False)


class ProtocolConformance(
    RecordPromises,
    ConflictPromises,
    IndexPromises,
    KeyPromises,
    FramePromises,
    EventPromises,
    ClockPromises,
    OpeningPromises,
):
    """All promises of the store protocol."""

"""What every store promises, in the small."""

from itertools import pairwise
from typing import Any

import pytest

from flowfabric.core.events import Family
from flowfabric.core.work import Frame, Trim
from flowfabric.stores.base import Change, Conflict, key_order
from tests.stores.builders import (
    OTHER_TAG,
    commit,
    counter,
    creation,
    event,
    execution_id,
    payload,
    record_of,
    version_of,
)

STREAM = f"{execution_id(1)}/0"


async def frames_of(store: Any, **bounds: Any) -> list[int]:
    return [frame.seq for frame in await store.read_frames(STREAM, **bounds)]


async def append(store: Any, *numbers: int, trims: tuple[int, ...] = ()) -> None:
    frames = [Frame(STREAM, 1_000, number, b"frame") for number in numbers]
    await store.commit(commit(appends=frames, trims=[Trim(STREAM, keep) for keep in trims]))


class TestRecords:
    async def test_a_record_is_read_back_as_it_was_committed(self, store: Any) -> None:
        await store.commit(creation(counter(count=3), payload(data=b"\x00\xff")))
        assert await record_of(store, counter().key) == counter(count=3)
        assert await record_of(store, payload().key) == payload(data=b"\x00\xff")

    async def test_a_record_that_does_not_exist_has_version_0(self, store: Any) -> None:
        loaded = await store.load([counter().key])
        assert loaded.rows == [(counter().key, 0, None)]

    async def test_loading_answers_for_every_key_once_and_tells_the_time(self, store: Any) -> None:
        await store.commit(creation(counter(2)))
        keys = [counter(1).key, counter(2).key, payload(2).key]
        loaded = await store.load(keys)
        assert sorted(key for key, _, _ in loaded.rows) == sorted(keys)
        assert loaded.now > 1_700_000_000_000

    async def test_loading_nothing_tells_the_time(self, store: Any) -> None:
        assert (await store.load([])).now <= await store.now()

    async def test_a_record_can_be_changed_and_removed(self, store: Any) -> None:
        await store.commit(creation(counter(), payload()))
        version = await version_of(store, counter().key)
        await store.commit(commit(changes=[Change(counter().key, version, counter(count=1))]))
        assert (await record_of(store, counter().key)).frame_count == 1
        for key in (counter().key, payload().key):
            await store.commit(commit(changes=[Change(key, await version_of(store, key), None)]))
            assert await version_of(store, key) == 0

    async def test_what_was_loaded_can_be_changed_without_changing_the_store(self, store: Any) -> None:
        await store.commit(creation(counter()))
        (await record_of(store, counter().key)).frame_count = 9
        assert (await record_of(store, counter().key)).frame_count == 0


class TestConflicts:
    async def test_an_old_version_is_refused_and_nothing_is_changed(self, store: Any) -> None:
        await store.commit(creation(counter(1), counter(2)))
        old = await version_of(store, counter(1).key)
        await store.commit(commit(changes=[Change(counter(1).key, old, counter(1, 1))]))
        fresh = await version_of(store, counter(2).key)
        with pytest.raises(Conflict) as raised:
            await store.commit(
                commit(
                    changes=[
                        Change(counter(2).key, fresh, counter(2, 5)),
                        Change(counter(1).key, old, counter(1, 5)),
                        Change(payload(3).key, 0, payload(3)),
                    ],
                    rows_added=[("due_lease", "", 1, "member")],
                    events=[event()],
                    appends=[Frame(STREAM, 1, 0, b"")],
                )
            )
        assert raised.value.keys == {counter(1).key}
        assert (await record_of(store, counter(1).key)).frame_count == 1
        assert (await record_of(store, counter(2).key)).frame_count == 0
        assert await record_of(store, payload(3).key) is None
        assert await store.read_index("due_lease", "") == []
        assert await store.last_event() == 0
        assert await frames_of(store) == []

    async def test_a_conflict_names_exactly_the_records_that_differ(self, store: Any) -> None:
        await store.commit(creation(counter(1), counter(2), payload(3)))
        versions = {
            key: await version_of(store, key) for key in (counter(1).key, counter(2).key, payload(3).key)
        }
        with pytest.raises(Conflict) as raised:
            await store.commit(
                commit(
                    changes=[
                        Change(counter(1).key, versions[counter(1).key], counter(1)),
                        Change(counter(2).key, versions[counter(2).key] + 1, counter(2)),
                        Change(counter(4).key, 0, counter(4)),
                    ],
                    relied_on=[(payload(3).key, 0), (counter(5).key, 0)],
                )
            )
        assert raised.value.keys == {counter(2).key, payload(3).key}

    async def test_a_record_that_was_only_read_is_compared_too(self, store: Any) -> None:
        await store.commit(creation(counter(1)))
        relied_on = [(counter(1).key, await version_of(store, counter(1).key))]
        await store.commit(commit(changes=[Change(counter(2).key, 0, counter(2))], relied_on=relied_on))
        await store.commit(commit(changes=[Change(*relied_on[0], counter(1, 1))]))
        with pytest.raises(Conflict) as raised:
            await store.commit(commit(changes=[Change(counter(3).key, 0, counter(3))], relied_on=relied_on))
        assert raised.value.keys == {counter(1).key}

    async def test_a_record_cannot_be_created_twice(self, store: Any) -> None:
        await store.commit(creation(counter(count=1)))
        with pytest.raises(Conflict):
            await store.commit(creation(counter(count=2)))
        assert (await record_of(store, counter().key)).frame_count == 1

    async def test_a_removed_record_is_not_mistaken_for_its_successor(self, store: Any) -> None:
        await store.commit(creation(counter(count=1)))
        first = await version_of(store, counter().key)
        await store.commit(commit(changes=[Change(counter().key, first, None)]))
        await store.commit(creation(counter(count=2)))
        with pytest.raises(Conflict):
            await store.commit(commit(changes=[Change(counter().key, first, counter(count=3))]))
        assert (await record_of(store, counter().key)).frame_count == 2

    async def test_the_store_works_on_after_a_conflict(self, store: Any) -> None:
        await store.commit(creation(counter(1)))
        with pytest.raises(Conflict):
            await store.commit(creation(counter(1)))
        await store.commit(creation(counter(2)))
        assert await version_of(store, counter(2).key) > 0


class TestIndexes:
    ROWS = (("due", "a", 1, "x"), ("due", "a", 1, "y"), ("due", "a", 5, "b"), ("due", "b", 0, "z"))

    async def test_rows_come_by_sort_then_member(self, store: Any) -> None:
        await store.commit(commit(rows_added=list(reversed(self.ROWS))))
        assert await store.read_index("due", "a") == [(1, "x"), (1, "y"), (5, "b")]
        assert await store.read_index("due", "a", descending=True) == [(5, "b"), (1, "y"), (1, "x")]

    async def test_bounds_and_limit(self, store: Any) -> None:
        await store.commit(commit(rows_added=list(self.ROWS)))
        assert await store.read_index("due", "a", after=(1, "x")) == [(1, "y"), (5, "b")]
        assert await store.read_index("due", "a", upto=1) == [(1, "x"), (1, "y")]
        assert await store.read_index("due", "a", after=(1, "x"), upto=4, limit=1) == [(1, "y")]
        assert await store.read_index("due", "a", after=(5, "b"), descending=True) == [(1, "y"), (1, "x")]
        assert await store.read_index("due", "a", upto=2, descending=True) == [(5, "b")]

    async def test_a_row_can_move_in_one_commit(self, store: Any) -> None:
        await store.commit(commit(rows_added=list(self.ROWS)))
        await store.commit(commit(rows_removed=[self.ROWS[0]], rows_added=[("due", "a", 7, "x")]))
        assert await store.read_index("due", "a") == [(1, "y"), (5, "b"), (7, "x")]

    async def test_reading_removes_nothing(self, store: Any) -> None:
        await store.commit(commit(rows_added=list(self.ROWS)))
        assert await store.read_index("due", "a") == await store.read_index("due", "a")

    async def test_counting_and_listing_scopes(self, store: Any) -> None:
        rows = [
            ("due", scope, 1, "x")
            for scope in ("ns\x1fb\x1f", "ns\x1fa\x1f", "ns\x1fa\x1fgpu", "other\x1fa\x1f")
        ]
        await store.commit(
            commit(rows_added=[*rows, ("due", "ns\x1fa\x1f", 2, "x"), ("late", "ns\x1fc", 1, "x")])
        )
        assert await store.count_index("due", "ns\x1fa\x1f") == 2
        assert await store.count_index("due", "nothing") == 0
        assert await store.index_scopes("due", "ns\x1f") == ["ns\x1fa\x1f", "ns\x1fa\x1fgpu", "ns\x1fb\x1f"]
        assert await store.index_scopes("due", "ns\x1fa\x1f") == ["ns\x1fa\x1f", "ns\x1fa\x1fgpu"]
        assert await store.index_scopes("due", "ns\x1f", limit=1) == ["ns\x1fa\x1f"]
        assert await store.index_scopes("due", "", after="ns\x1fa\x1fgpu") == [
            "ns\x1fb\x1f",
            "other\x1fa\x1f",
        ]
        assert await store.index_scopes("due", "none") == []

    async def test_a_scope_without_rows_is_gone(self, store: Any) -> None:
        await store.commit(commit(rows_added=[self.ROWS[3]]))
        await store.commit(commit(rows_removed=[self.ROWS[3]]))
        assert await store.index_scopes("due", "") == []


class TestKeys:
    async def test_keys_of_one_execution_come_in_order(self, store: Any) -> None:
        await store.commit(
            creation(*(counter(1, index=index) for index in (2, 0, 1)), counter(2), payload(1))
        )
        prefix = f"stream/{execution_id(1)}/"
        found = await store.list_keys(prefix)
        assert found == [f"{prefix}{index}" for index in (0, 1, 2)]
        assert await store.list_keys(prefix, after=found[0], limit=1) == found[1:2]

    async def test_all_keys_can_be_paged_through(self, store: Any) -> None:
        records = [counter(n, tag=tag) for n in range(1, 5) for tag in ("{fp:7}", OTHER_TAG)] + [payload(3)]
        await store.commit(creation(*records))
        for prefix in ("", "stream/", "stream/{fp:12}:", "stream/{fp:1", "payload/", "str"):
            found: list[str] = []
            while page := await store.list_keys(prefix, after=found[-1] if found else None, limit=2):
                found += page
            assert sorted(found) == sorted(record.key for record in records if record.key.startswith(prefix))
            assert all(key_order(one) < key_order(two) for one, two in pairwise(found))


class TestFrames:
    async def test_both_bounds_are_inclusive(self, store: Any) -> None:
        await append(store, 0, 1, 2, 3)
        assert await frames_of(store) == [0, 1, 2, 3]
        assert await frames_of(store, first=(1_000, 1), last=(1_000, 2)) == [1, 2]
        assert await frames_of(store, first=(999, 9), limit=1) == [0]
        assert await frames_of(store, first=(1_001, 0)) == []

    async def test_a_trim_keeps_the_newest_frames(self, store: Any) -> None:
        await append(store, 0, 1, 2)
        await append(store, 3, 4, trims=(2,))
        assert await frames_of(store) == [3, 4]
        await append(store, 5, trims=(2,))
        assert await frames_of(store) == [4, 5]

    async def test_a_trim_to_more_than_there_are_keeps_all(self, store: Any) -> None:
        await append(store, 0, 1, 2, trims=(5,))
        await append(store, 3, trims=(4,))
        assert await frames_of(store) == [0, 1, 2, 3]

    async def test_a_trim_to_none_empties_the_stream_which_can_be_filled_again(self, store: Any) -> None:
        await append(store, 0, 1, trims=(0,))
        assert await frames_of(store) == []
        await append(store, 2, 3, trims=(1,))
        assert await frames_of(store) == [3]

    async def test_a_trim_touches_no_other_stream(self, store: Any) -> None:
        other = f"{execution_id(2)}/0"
        await store.commit(commit(appends=[Frame(other, 1, 0, b"other")]))
        await append(store, 0, trims=(0,))
        assert await store.read_frames(other) == [Frame(other, 1, 0, b"other")]


class TestEvents:
    async def test_events_are_numbered_in_commit_order(self, store: Any) -> None:
        await store.commit(commit(events=[event(1), event(2)]))
        await store.commit(commit(events=[event(3)]))
        found = await store.read_events(0)
        assert [(stored.sequence, stored.event) for stored in found] == [
            (1, event(1)),
            (2, event(2)),
            (3, event(3)),
        ]
        assert await store.last_event() == 3

    async def test_filters_and_limit(self, store: Any) -> None:
        lease, signal = Family.LEASE, Family.SIGNAL
        await store.commit(
            commit(events=[event(1), event(1, lease), event(2, signal), event(2, lease), event(1, signal)])
        )

        async def read(after: int = 0, **filters: Any) -> list[int]:
            return [stored.sequence for stored in await store.read_events(after, **filters)]

        assert await read(families=frozenset({lease, signal})) == [2, 3, 4, 5]
        assert await read(2, families=frozenset({lease})) == [4]
        assert await read(execution_id=execution_id(1)) == [1, 2, 5]
        assert await read(execution_id=execution_id(1), families=frozenset({signal, lease})) == [2, 5]
        assert await read(families=frozenset({lease, signal}), limit=2) == [2, 3]
        assert await read(families=frozenset()) == []
        assert await read(5) == []


async def test_waiting_for_another_process_ends_when_the_time_is_over(store: Any) -> None:
    assert await store.wait_for_change(0) is False


async def test_the_clock_can_be_shifted(store: Any) -> None:
    before = await store.now()
    await store.set_clock_offset(3_600_000)
    assert await store.now() >= before + 3_600_000
    await store.set_clock_offset(0)
    assert await store.now() < before + 3_600_000

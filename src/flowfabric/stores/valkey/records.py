"""What a commit is written as, and what the server's answers mean: no connection, no waiting."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.core.events import Event, Family, StoredEvent
from flowfabric.core.records import (
    ExecutionResult,
    Key,
    Message,
    PastAttempt,
    kind_of,
)
from flowfabric.core.work import Frame
from flowfabric.stores.base import Commit
from flowfabric.stores.clock import STEP_BACK_MS_MAX
from flowfabric.stores.keys import stored_key
from flowfabric.stores.valkey.keys import row_member
from flowfabric.stores.valkey.packing import pack_record, unpack_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowfabric.core.indexes import IndexRow
    from flowfabric.stores.clock import StoreClock
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.settings import Settings

MEMBERS_MAX: Final = 500
"""How many members one entry of a call names: a function can hand only so many on at once."""

ENDING_KINDS: Final = frozenset({PastAttempt.KIND, ExecutionResult.KIND, Message.KIND})
"""New records of these kinds come with the end of work, which frees memory sooner or later."""

Argument = str | bytes | int
Entry = tuple[bytes, list[bytes]]
"""An entry of a stream: its id, and names and values by turns."""

_encode_event = msgspec.msgpack.Encoder().encode
_decode_event = msgspec.msgpack.Decoder(Event).decode


class State(msgspec.Struct, frozen=True):
    """What is read of the state, and the server's clock when it was read."""

    mark_ms: int
    clock_offset_ms: int
    clock_ms: int


class Call:
    """The keys and arguments of one call of ``commit``, put together section by section.

    Args:
        keys: the shard that the call goes to.
        logs: whether the log is kept in this shard and in no other.
    """

    def __init__(self, keys: Keys, *, logs: bool) -> None:
        self._spell = keys
        self._logs = logs
        self._numbers: dict[str, int] = {}
        self.arguments: list[Argument] = []
        self._number(keys.state)

    @property
    def keys(self) -> list[str]:
        """Every key that the call reads or writes."""
        return list(self._numbers)

    def _number(self, key: str) -> int:
        """The number that stands for a key among the arguments."""
        return self._numbers.setdefault(key, len(self._numbers) + 1)

    def add_commit(self, commit: Commit) -> None:
        """All sections of a commit, in the order in which the function reads them."""
        self._add_versions(commit)
        self._add_places(commit.appends)
        self._add_records(commit)
        self._add_sets(commit)
        self._add_events(commit.events if self._logs else [])
        self._add_outbox([] if self._logs else commit.events)
        self._add(
            [(self._frames(frame.stream), f"{frame.ms}-{frame.seq}", frame.data) for frame in commit.appends]
        )
        self._add([(self._frames(trim.stream), trim.keep) for trim in commit.trims])

    def _add(self, entries: Sequence[tuple[Argument, ...]]) -> None:
        self.arguments.append(len(entries))
        for entry in entries:
            self.arguments += entry

    def _frames(self, stream: str) -> int:
        return self._number(self._spell.frames(stream))

    def _record(self, key: Key) -> int:
        return self._number(self._spell.record(key))

    def _add_versions(self, commit: Commit) -> None:
        versions = {change.key: change.version for change in commit.changes}
        versions.update(commit.relied_on)
        self._add([(self._record(key), version) for key, version in versions.items()])

    def _add_places(self, frames: Sequence[Frame]) -> None:
        first: dict[str, Frame] = {}
        for frame in frames:
            first.setdefault(frame.stream, frame)
        self._add([(self._frames(stream), frame.ms, frame.seq) for stream, frame in first.items()])

    def _add_records(self, commit: Commit) -> None:
        written = [(change.key, change.record) for change in commit.changes if change.record is not None]
        removed = [change.key for change in commit.changes if change.record is None]
        self._add([(self._record(key), pack_record(record)) for key, record in written])
        self._add([(self._record(key),) for key in removed])

    def _add_sets(self, commit: Commit) -> None:
        new = [change.key for change in commit.changes if change.record is not None and not change.version]
        gone = [change.key for change in commit.changes if change.record is None]
        # A row may pass from one record to another; it stays where it is then.
        passed = {*commit.rows_removed} & {*commit.rows_added}
        removed = [row for row in commit.rows_removed if row not in passed]
        added = [row for row in commit.rows_added if row not in passed]
        self._add(self._members([*self._listed(new), *self._rows(added)]))
        self._add(self._members([*self._listed(gone), *self._rows(removed)]))

    def _listed(self, keys: Iterable[Key]) -> Iterable[tuple[str, Argument]]:
        return ((self._spell.listing(kind_of(key)), stored_key(key)) for key in keys)

    def _rows(self, rows: Iterable[IndexRow]) -> Iterable[tuple[str, Argument]]:
        return (
            (self._spell.index(index), row_member(scope, sort, member)) for index, scope, sort, member in rows
        )

    def _members(self, members: Iterable[tuple[str, Argument]]) -> list[tuple[Argument, ...]]:
        """Members of ordered sets, gathered by set."""
        entries: list[tuple[Argument, ...]] = []
        for key, found in groupby(sorted(members, key=_first), key=_first):
            named = [member for _, member in found]
            for place in range(0, len(named), MEMBERS_MAX):
                part = named[place : place + MEMBERS_MAX]
                entries.append((self._number(key), len(part), *part))
        return entries

    def _add_events(self, events: Sequence[Event]) -> None:
        self._add(
            [
                (
                    self._number(self._spell.log(event.family)),
                    self._number(self._spell.told(event.execution_id)),
                    self._number(self._spell.told_in(event.namespace, event.family)),
                    event.family.value,
                    _encode_event(event),
                )
                for event in events
            ]
        )

    def _add_outbox(self, events: Sequence[Event]) -> None:
        self._add(
            [
                (
                    self._number(self._spell.outbox),
                    event.family.value,
                    event.execution_id,
                    event.namespace,
                    _encode_event(event),
                )
                for event in events
            ]
        )


def _first(member: tuple[str, Argument]) -> str:
    return member[0]


def commit_call(
    commit: Commit, keys: Keys, settings: Settings, clock: StoreClock, announcement: bytes, *, logs: bool
) -> tuple[str, list[str], list[Argument]]:
    """The function to call for a commit, its keys and its arguments; see ``Call``.

    Args:
        commit: what to commit.
        keys: the shard.
        settings: where the commit is told of.
        clock: the clock to live by.
        announcement: the message with which the commit is published, see ``telling``.
        logs: whether the log is in this shard.
    """
    given_ms = clock.given_ms()
    call = Call(keys, logs=logs)
    call.arguments += ["" if given_ms is None else given_ms, STEP_BACK_MS_MAX, settings.channel, announcement]
    call.add_commit(commit)
    return "commit_when_full" if frees_memory(commit) else "commit", call.keys, call.arguments


def frees_memory(commit: Commit) -> bool:
    """Whether a commit may go through when the server's memory is full.

    It may when it brings nothing new but what belongs to the end of work: leases must still be
    renewed and work must still end, or nothing would ever free memory again.
    """
    new = {
        kind_of(change.key) for change in commit.changes if change.record is not None and not change.version
    }
    return new <= ENDING_KINDS and not commit.appends


def log_call(
    keys: Keys, entries: Sequence[tuple[int, Entry]], settings: Settings, announcement: str
) -> tuple[list[str], list[Argument]]:
    """The keys and arguments of ``log``: what outboxes hold goes into the log.

    Args:
        keys: the home shard.
        entries: what outboxes hold, each with the shard; those of one shard from the beginning of its outbox.
        settings: where the log is told of.
        announcement: the message with which it is published.
    """
    numbers: dict[str, int] = {keys.state: 1}
    shards = {shard: place for place, shard in enumerate(dict(entries), start=1)}
    arguments: list[Argument] = [settings.channel, announcement, len(shards), *shards, len(entries)]
    for shard, (entry, (_, family, _, execution_id, _, namespace, _, data)) in entries:
        kept = Family(family.decode())
        told = (
            keys.log(kept),
            keys.told(execution_id.decode()),
            keys.told_in(namespace.decode(), kept),
        )
        places = [numbers.setdefault(key, len(numbers) + 1) for key in told]
        arguments += [shards[shard], _place(entry)[0], *places, family, data]
    return list(numbers), arguments


# What answers mean


def state_of(fields: Sequence[bytes | None], time: Sequence[bytes]) -> State:
    """The answers to HMGET of mark and offset, and to TIME."""
    mark_ms, offset_ms = (int(field or 0) for field in fields)
    seconds, microseconds = (int(part) for part in time)
    return State(mark_ms, offset_ms, seconds * 1_000 + microseconds // 1_000)


def loaded_row(key: Key, stored: bytes | None) -> tuple[Key, int, Any]:
    """A record as it is stored, with its version."""
    if stored is None:
        return key, 0, None
    version, _, data = stored.partition(b":")
    try:
        return key, int(version), unpack_record(key, data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise errors.StoreCorrupt(record=key, reason=error) from error


def frames_of(stream: str, entries: Iterable[tuple[bytes, list[bytes]]]) -> list[Frame]:
    """The entries of a stream of frames."""
    return [Frame(stream, *_place(entry), fields[1]) for entry, fields in entries]


def events_of(entries: Iterable[tuple[bytes, list[bytes]]]) -> list[StoredEvent]:
    """The entries of a part of the log."""
    return [
        StoredEvent(sequence=_place(entry)[0], event=_decode_event(fields[1])) for entry, fields in entries
    ]


def told_of(member: bytes) -> tuple[int, Family]:
    """A place in the log and the family of the event that is there."""
    place, _, family = member.decode().partition(" ")
    return int(place), Family(family)


def entry_number(entry: Entry) -> int:
    """The number of an entry of an outbox."""
    return _place(entry[0])[0]


def _place(entry: bytes) -> tuple[int, int]:
    first, _, second = entry.partition(b"-")
    return int(first), int(second)

"""The working set of a batch, and the view of it that one rule gets.

A rule reads what was loaded, overlaid with what earlier commands of its batch have changed. Its
own changes stay private until it returns: a refusal, or a record that still has to be loaded,
leaves no trace. That makes running a rule again harmless, and needs no ``await`` in the core.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol

import msgspec

from flowfabric import errors
from flowfabric.contracts.handles import BackendTag
from flowfabric.core.records import AnyRecord, Execution, Key, Record, key_for

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from flowfabric.core.events import Event


class Missing(Exception):
    """A rule asked for records that are not in the working set yet."""

    def __init__(self, *keys: Key) -> None:
        super().__init__(*keys)
        self.keys = keys


class Envelope(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What travels with a command besides its arguments."""

    request_id: str
    namespace: str | None = None
    """The only namespace whose records the caller may see; None for a caller without bounds."""
    actor: str = ""
    random: float = 0.0
    """A random number in [0, 1), minted with the envelope so that rules stay pure."""
    backend: BackendTag = BackendTag.MEMORY
    """The kind of store, which the handles that rules make out have to name."""


class Frame(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One frame to append to a stream."""

    stream: str
    ms: int
    seq: int
    data: bytes


class Trim(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Keep only the newest ``keep`` frames of a stream."""

    stream: str
    keep: int


class Remembered(Protocol):
    """Records that were loaded for earlier batches and may be relied on without loading them.

    A commit still compares their versions, so one that has changed meanwhile is a conflict. A rule
    must not refuse because of such a record, for a refusal commits nothing: so lanes are remembered
    only if they let everything through, and for all other records see ``Work.doubts``.
    """

    def recall(self, key: Key) -> tuple[int, Record | None] | None:
        """The version and the record, or None when it has to be loaded."""

    def learn(self, rows: Sequence[tuple[Key, int, Record | None]]) -> None:
        """Take note of what was loaded."""


class WorkingSet:
    """The records of one batch: what was loaded, and what its commands have made of it."""

    __slots__ = (
        "_lanes",
        "_recent",
        "_under_way",
        "_wary",
        "current",
        "doubtful",
        "loaded",
        "now",
        "versions",
    )

    def __init__(
        self,
        lanes: Remembered | None = None,
        recent: Remembered | None = None,
        under_way: Container[Key] = (),
    ) -> None:
        self._lanes = lanes
        self._recent = recent
        self._under_way = under_way
        """Records that others are just writing. What is remembered of them is about to be outdated."""
        self._wary = recent is None
        self.now = 0
        self.doubtful: set[Key] = set()
        """Records that were not loaded and may have changed. Nothing but a commit may rest on them."""
        self.loaded: dict[Key, Record | None] = {}
        self.versions: dict[Key, int] = {}
        self.current: dict[Key, Record | None] = {}

    def put_loaded(self, now: int, rows: Sequence[tuple[Key, int, Record | None]]) -> None:
        """Take in what a store returned. Version 0 stands for «no such record»."""
        self.now = max(self.now, now)
        for key, version, record in rows:
            self.loaded[key] = record
            self.versions[key] = version
        if self.doubtful:
            self.doubtful.difference_update([key for key, _, _ in rows])
        for remembered in (self._lanes, self._recent):
            if remembered is not None:
                remembered.learn(rows)

    def recall(self, key: Key) -> Record | None:
        """A record that was not loaded for this batch, if one from an earlier batch will do.

        Raises:
            Missing: it has to be loaded.
        """
        if not self.has(key):
            found = None if self._lanes is None or key in self._under_way else self._lanes.recall(key)
            if found is None:
                raise Missing(key)
            self.versions[key], self.loaded[key] = found
        return self.loaded[key]

    def has(self, key: Key) -> bool:
        """Whether the record was loaded, or was written so recently that it need not be."""
        if key in self.loaded:
            return True
        found = None if self._recent is None or key in self._under_way else self._recent.recall(key)
        if found is None:
            return False
        self.versions[key], self.loaded[key] = found
        self.doubtful.add(key)
        return True

    def expect_none(self, key: Key) -> None:
        """Go on as if there were no such record, unless it is known; the commit finds out.

        Where nothing is remembered, after a conflict, and of what is just being written, nothing is taken
        for granted.
        """
        if not self._wary and key not in self._under_way and not self.has(key):
            self.versions[key], self.loaded[key] = 0, None
            self.doubtful.add(key)

    def clear(self) -> None:
        """Forget everything, so that it is loaded again: something was not as it was thought to be."""
        self._wary = True
        self.now = 0
        self.loaded.clear()
        self.versions.clear()
        self.current.clear()
        self.doubtful.clear()

    def absorb(self, work: Work) -> None:
        """Make the changes of a rule that returned visible to the rules after it."""
        self.current.update(work.writes)


class Work:
    """What one rule may read, and the changes it makes."""

    __slots__ = ("_set", "appends", "envelope", "events", "now", "reads", "trims", "writes")

    def __init__(self, working_set: WorkingSet, envelope: Envelope) -> None:
        self._set = working_set
        self.envelope = envelope
        self.now = working_set.now
        self.reads: set[Key] = set()
        self.writes: dict[Key, Record | None] = {}
        self.events: list[Event] = []
        # Few commands write frames, so most need no lists for them.
        self.appends: Sequence[Frame] = ()
        self.trims: Sequence[Trim] = ()

    def peek(self, key: Key) -> Record | None:
        """The record with this key as this rule sees it, or None."""
        if key in self.writes:
            return self.writes[key]
        self.reads.add(key)
        current, loaded = self._set.current, self._set.loaded
        if key in current:
            return current[key]
        return loaded[key] if key in loaded else self._set.recall(key)

    def read(self, record_type: type[AnyRecord], identity: str) -> AnyRecord | None:
        """The record of this type with this identity, or None. Do not change it: ``edit`` it."""
        record = self.peek(key_for(record_type, identity))
        assert record is None or isinstance(record, record_type)
        return record

    def observe(self, record_type: type[AnyRecord], identity: str) -> AnyRecord | None:
        """The record as it was when it was loaded. The commit does not rest on it.

        For a fact that need only have been true: what somebody held when they asked. Whatever must
        still be true at the commit has to be read.
        """
        key = key_for(record_type, identity)
        rests_on_it = key in self.reads
        record = self.read(record_type, identity)
        if key in self._set.doubtful:
            raise Missing(key)
        if not rests_on_it:
            self.reads.discard(key)
        return record

    def read_new(self, record_type: type[AnyRecord], identity: str) -> AnyRecord | None:
        """The record that is about to be made, if it is there after all, which it hardly ever is."""
        key = key_for(record_type, identity)
        if not self._is_loaded(key):
            self._set.expect_none(key)
        return self.read(record_type, identity)

    def read_all(self, record_type: type[AnyRecord], identities: Iterable[str]) -> list[AnyRecord | None]:
        """Records of one type, in the order asked for. All that are not loaded are loaded at once."""
        found: list[AnyRecord | None] = []
        missing: list[Key] = []
        for identity in identities:
            try:
                found.append(self.read(record_type, identity))
            except Missing as one:
                missing.extend(one.keys)
        if missing:
            raise Missing(*missing)
        return found

    def load(self, *keys: Key) -> None:
        """Have records of several types loaded together that are going to be read one by one."""
        missing = [key for key in keys if not self._is_loaded(key)]
        if missing:
            raise Missing(*missing)

    def _is_loaded(self, key: Key) -> bool:
        return key in self.writes or key in self._set.current or self._set.has(key)

    def edit(self, record: AnyRecord) -> AnyRecord:
        """A copy of the record that may be changed and will be committed."""
        key = record.key
        pending = self.writes.get(key)
        if pending is not None:
            assert isinstance(pending, type(record))
            return pending
        self.reads.add(key)
        fresh = copy.copy(record)
        self.writes[key] = fresh
        return fresh

    def add(self, record: Record) -> None:
        """Commit a new record, or replace the one with its key, which the rule must have read then."""
        key = record.key
        self.reads.add(key)
        self.writes[key] = record

    def remove(self, record: Record) -> None:
        """Commit the removal of a record."""
        key = record.key
        self.reads.add(key)
        self.writes[key] = None

    def publish(self, event: Event) -> None:
        """Commit an event together with the changes."""
        self.events.append(event)

    def append(self, frame: Frame) -> None:
        """Commit a frame."""
        self.appends = (*self.appends, frame)

    def trim(self, trim: Trim) -> None:
        """Commit the trimming of a stream, after its appends."""
        self.trims = (*self.trims, trim)

    def discard(self) -> None:
        """Forget all changes: the rule refused. What it read is kept, its refusal rests on it."""
        self.writes.clear()
        self.events.clear()
        self.appends = self.trims = ()

    @property
    def doubts(self) -> set[Key]:
        """The records that have to be loaded before the answer may be given.

        What commits something is compared with what is stored; a refusal, or the answer that there is
        nothing to do, is not.
        """
        return set() if self.changed else self.reads & self._set.doubtful

    @property
    def changed(self) -> bool:
        """True if there is anything to commit."""
        return bool(self.writes or self.events or self.appends or self.trims)

    def require_namespace(self, namespace: str) -> None:
        """Refuse a command that names another namespace than the caller's.

        Raises:
            InvalidInput: it does.
        """
        bound = self.envelope.namespace
        if bound is not None and namespace != bound:
            raise errors.InvalidInput(field="namespace", value=namespace, rule=f"must be {bound!r}")

    def execution(self, execution_id: str, *, observed: bool = False) -> Execution:
        """The execution with this id, in the caller's namespace.

        Args:
            execution_id: which one.
            observed: whether it is only observed; see ``observe``.

        Raises:
            ExecutionNotFound: there is none, or it belongs to another namespace.
        """
        record = (self.observe if observed else self.read)(Execution, execution_id)
        namespace = self.envelope.namespace
        if record is None or record.removing_since is not None or namespace not in (None, record.namespace):
            raise errors.ExecutionNotFound(execution_id=execution_id)
        return record

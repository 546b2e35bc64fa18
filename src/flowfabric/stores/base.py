"""The protocol behind which every store stands.

A store loads records, commits changes if nothing they rest on has changed, reads index ranges,
frames and events, tells the time, and wakes those who wait. No rule lives in a store.

The promises each store keeps, which the conformance suite checks:

- ``commit`` applies everything or nothing, and is durable to the store's level when it returns.
- A version is compared for every key in ``Commit.versions``; if one differs, nothing is applied
  and ``Conflict`` names the keys that differ.
- Reading never removes anything.
- A fault raises ``errors.StoreError``; it never looks like «not found» or «empty».
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.events import Event, Family, StoredEvent
    from flowfabric.core.indexes import IndexRow
    from flowfabric.core.records import Key, Record
    from flowfabric.core.work import Envelope, Frame, Remembered, Trim


class Loaded(msgspec.Struct, gc=False):
    """Records as they are now. Version 0 stands for «no such record».

    What other versions mean is the store's own business. They only ever grow, and a record that is
    removed and created again does not get a version it has had before.
    """

    now: int
    """The store's clock in milliseconds, read after the records were reached.

    Where no records are asked for, it may be what a server told a moment ago, carried on since.
    """
    rows: list[tuple[Key, int, Record | None]]


class Change(msgspec.Struct, gc=False):
    """A record to write or, if ``record`` is None, to remove."""

    key: Key
    version: int
    """The version the change rests on; 0 if the record must not exist yet."""
    record: Record | None


class Commit(msgspec.Struct, gc=False):
    """One atomic change."""

    now: int
    changes: list[Change]
    relied_on: list[tuple[Key, int]]
    """Records that were read and not changed, with the versions that were seen."""
    rows_removed: list[IndexRow]
    """Rows that are there."""
    rows_added: list[IndexRow]
    """Rows that are not there once the others were removed: a row belongs to one record."""
    events: list[Event]
    appends: list[Frame]
    trims: list[Trim]


class Conflict(Exception):
    """Nothing was committed: these records had changed since they were loaded.

    An answer that the engine acts on, not an error.
    """

    def __init__(self, keys: frozenset[Key]) -> None:
        super().__init__(f"{len(keys)} record(s) changed since they were loaded")
        self.keys = keys


class Durability(msgspec.Struct, frozen=True, kw_only=True):
    """What an acknowledged commit survives, read back from the store's own settings."""

    level: str
    """``D0`` memory only, ``D1`` a killed process, ``D2`` power loss, ``D3`` loss of the host."""
    store: str
    settings: dict[str, str]


class Declined:
    """In the place of an answer: the store has not decided, and has changed nothing."""


DECLINED: Final = Declined()


class Decided(msgspec.Struct):
    """What a store has made of some commands."""

    answers: list[Any]
    """For each command its outcome, ``DECLINED``, or the fault after which the outcome is unknown."""
    effects: Commit
    """What was committed, as far as it wakes somebody or is owed to somebody."""


class Reads(Protocol):
    """The two ways of reading an index that finding work needs."""

    async def read_index(
        self, index: str, scope: str, *, after: tuple[int, str] | None = None, limit: int = 100
    ) -> list[tuple[int, str]]:
        """See ``Store.read_index``."""

    async def index_scopes(
        self, index: str, prefix: str, *, after: str | None = None, limit: int = 1_000
    ) -> list[str]:
        """See ``Store.index_scopes``."""


class EligibleReads(Reads, Protocol):
    """Reads of the eligible index of a store in several places, for one search.

    A store that has them returns them from ``eligible_reads(trusting=...)``. Trusting ones ask only the
    places that can have rows, as far as is known, so they may miss what was put anywhere a moment ago.
    """

    has_trusted: bool
    """Whether a place was not asked because of what is known of it. Then there may be more."""


class Native(Protocol):
    """Decides common commands inside the store, in one step and without conflicts.

    A store that does so has one as its attribute ``native``. It writes and answers what the rule would
    have written and answered. Whatever it declines has changed nothing and is decided by the rule.
    """

    def takes(self, command: Command[Any]) -> bool:
        """Whether it knows the command. It may still decline it."""

    def looks_at(self, command: Command[Any]) -> Sequence[Key]:
        """What it reads before it decides a command that it knows, besides what the command is about."""

    def leaves(self, command: Command[Any], known: Record) -> bool:
        """Whether it leaves the command to the rule if the record that it is about is like this.

        That is how this process has written it last, so the rule need not load it, and is as quick.
        """

    def orders(self, command: Command[Any]) -> bool:
        """Whether several of these commands may be about one record. They are decided in their order."""

    def forget(self) -> None:
        """Remember nothing of what was met, as in a new process."""

    async def decide(self, asked: Sequence[tuple[Command[Any], Envelope]], remembered: Remembered) -> Decided:
        """Decide commands. Those about one record are of a kind that it ``orders``, all of the same.

        Args:
            asked: the commands with what travels with each.
            remembered: records that may be relied on without loading them.
        """


class Ledger(Protocol):
    """What deciding needs of a store: the time, the records, and a commit."""

    async def now(self) -> int:
        """The store's clock, in milliseconds."""

    async def load(self, keys: Iterable[Key]) -> Loaded:
        """Read records by key, all from one snapshot."""

    async def commit(self, commit: Commit) -> int | None:
        """Apply a change atomically.

        What it relies on in other places is compared right before, so it may just have changed.

        Returns:
            The version that all records it wrote have now, or None if the store does not tell.

        Raises:
            Conflict: a record that the change rests on has another version now.
            StoreError: the store failed. ``StoreUnreachable`` means the outcome is unknown.
        """


class Borrowed(Ledger, Protocol):
    """A store inside a transaction that somebody else began and will end.

    What is committed here becomes true when that transaction commits. Between ``begin`` and
    ``keep`` or ``undo`` no other commit happens in the store, so no commit conflicts. A store over
    a connection that blocks never suspends the caller.
    """

    is_awaited: bool
    """True if the connection's statements are awaited, False if they block."""

    async def begin(self) -> None:
        """Set a savepoint and take the store's write lock.

        Raises:
            TransactionRequired: the connection has no open transaction, or a failed one.
            TransactionOutdated: the transaction can no longer write; it must be run again.
            StoreError: the connection does not reach the store, or must not be used for it.
        """

    async def keep(self) -> None:
        """Make what happened since ``begin`` a part of the transaction."""

    async def undo(self) -> None:
        """Leave the transaction as it was at ``begin``. Harmless if it is over already."""


class Store(Ledger, Protocol):
    """Where records, indexes, events and frames live."""

    async def open(self) -> Durability:
        """Connect, migrate the schema if needed, and attest the durability level.

        Raises:
            StoreError: the store cannot be reached, is corrupt, or is newer than this program.
        """

    async def attest(self) -> Durability:
        """Read back again what an acknowledged commit survives; a server's owner may have changed it.

        Unlike opening, this does not refuse less than was required.

        Raises:
            StoreError: the store is not open, or cannot be reached.
        """

    async def close(self) -> None:
        """Let go of the store. Closing twice is harmless."""

    def place_of(self, key: Key) -> int:
        """Where a record lives. A commit changes the records of one place.

        Most stores have one place for everything.
        """

    @property
    def batches_at_once(self) -> int:
        """How many batches an engine should have under way here at the same time.

        More than one where deciding would else wait for the answer of a server.
        """

    async def read_index(
        self,
        index: str,
        scope: str,
        *,
        after: tuple[int, str] | None = None,
        upto: int | None = None,
        limit: int = 100,
        descending: bool = False,
    ) -> list[tuple[int, str]]:
        """Rows ``(sort, member)`` of one scope in order, strictly behind ``after``.

        ``upto`` is the last sort value that counts, in either direction.
        """

    async def count_index(self, index: str, scope: str, *, limit: int | None = None) -> int:
        """How many rows one scope has; with a limit, at most so many are counted."""

    async def index_scopes(
        self, index: str, prefix: str, *, after: str | None = None, limit: int = 1_000
    ) -> list[str]:
        """The scopes of an index that begin with ``prefix`` and have rows, in order, after ``after``."""

    async def list_keys(self, prefix: Key, *, after: Key | None = None, limit: int = 100) -> list[Key]:
        """Keys of records that begin with ``prefix``, in ``key_order``, strictly after ``after``."""

    async def list_owned(self, identity: str, *, limit: int = 100) -> list[Key]:
        """Keys of records of every kind with this identity, or one that begins with it and a slash."""

    async def read_frames(
        self,
        stream: str,
        *,
        first: tuple[int, int] = (0, 0),
        last: tuple[int, int] | None = None,
        limit: int = 100,
    ) -> list[Frame]:
        """Frames of a stream in order, both bounds inclusive."""

    async def read_events(
        self,
        after: int,
        *,
        families: frozenset[Family] | None = None,
        namespace: str | None = None,
        execution_id: str | None = None,
        limit: int = 100,
    ) -> list[StoredEvent]:
        """Events after a place in the log, in commit order.

        Reading one namespace costs nothing for the events of others. Events that were trimmed are
        left out without a word; ``trimmed_events`` tells whether there were any.
        """

    async def last_event(self) -> int:
        """The place of the newest event there ever was, 0 if there was none."""

    async def trimmed_events(self) -> int:
        """The place up to which the log was trimmed, 0 if it never was."""

    async def trim_events(self, upto: int, *, sparing: frozenset[Family] = frozenset()) -> None:
        """Remove the events up to and including a place. Their numbers are never used again.

        Events of spared families stay and can still be read, although the log counts as trimmed;
        only ``forget_events`` removes them.
        """

    async def forget_events(self, family: Family, upto: int) -> None:
        """Remove the events of a family up to a place, which trimming has spared."""

    async def set_clock_offset(self, offset_ms: int) -> None:
        """Shift the store's clock and forget its mark. Only ``flowfabric.testing`` does that."""

    async def wait_for_change(self, timeout_ms: int) -> bool:
        """Return as soon as *another* process may have committed, or when the time is over.

        Returns:
            True if there may be something new.
        """


def key_order(key: Key) -> tuple[str, str, str]:
    """What keys are ordered by: identity, partition tag, kind.

    Execution ids begin with the time once the tag is taken away, so new keys come last and the
    records of one execution are neighbours. Within one partition and kind it is the order of the
    keys themselves.

    >>> key_order("signal/{fp:7}:0190-aa/3")
    ('0190-aa/3', '{fp:7}:', 'signal')
    """
    kind, _, identity = key.partition("/")
    rest, tag = split_tag(identity)
    return rest, tag, kind


def is_owned(key: Key, identity: str) -> bool:
    """Whether a record has this identity, or one below it.

    >>> is_owned("signal/{fp:7}:aa/3", "{fp:7}:aa"), is_owned("signal/{fp:7}:aab", "{fp:7}:aa")
    (True, False)
    """
    own = key.partition("/")[2]
    return own == identity or own.startswith(identity + "/")


def split_tag(identity: str) -> tuple[str, str]:
    """An identity without the partition tag at its beginning, and the tag."""
    if identity[:1] == "{":
        tag, colon, rest = identity.partition("}:")
        if colon:
            return rest, tag + colon
    return identity, ""

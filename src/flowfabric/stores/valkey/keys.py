"""How keys and the members of ordered sets are spelled on the server.

No name of a key holds more than a command names: an index is one key with all its scopes, so a function
that decides on the server can be told its keys before the records are read.

Every key begins with a hash tag, so that on a cluster all keys of one tag share a slot and one function
can reach them all. An ordered set gives every member the same score, so its order is that of the
members' bytes. A score is a floating-point number and would round large sort values; eight bytes,
the highest first, are exact and keep the order.
"""

from __future__ import annotations

import binascii
import re
import struct
import zlib
from typing import TYPE_CHECKING, Final

from flowfabric.stores.keys import prefix_bounds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowfabric.core.events import Family
    from flowfabric.core.records import Key
    from flowfabric.stores.valkey.native.signatures import Signature

SLOTS: Final = 16_384
_PARTITION: Final = re.compile(r"\{[a-z]+:(\d+)\}")
SCOPE_END: Final = b"\x00"
"""Ends the scope of a row. Control characters are refused in every name but for the separator, which is
greater, so a scope sorts before those that it is the beginning of."""
BEHIND_SCOPE: Final = b"\x01"
"""What follows a scope in the first text that is behind all its rows."""
SORT_BYTES: Final = 8
_SORT: Final = struct.Struct(">Q")
_SIGN: Final = 1 << 63
"""Added to sort values, so that those below zero come first."""


class Keys:
    """The keys of one shard: of the partitions that share a slot.

    Args:
        prefix: what sets this store apart from others in the same database.
        shard: the shard's number.
        count: how many shards there are.
    """

    def __init__(self, prefix: str, shard: int, count: int = 1) -> None:
        self.shard: Final = shard
        self._count = count
        hashed = f"{prefix}:{shard}"
        self.slot: Final = binascii.crc_hqx(hashed.encode(), 0) % SLOTS
        """The slot of all these keys."""
        tag = f"{{{hashed}}}"
        self.state: Final = f"{tag}state"
        """A hash: numbers of commits, events and trimmed events, the clock's mark and offset, the layout,
        and which server's line of writes the numbers belong to."""
        self._record = f"{tag}record:"
        self._listing = f"{tag}keys:"
        self._index = f"{tag}index:"
        self._log = f"{tag}log:"
        self._told = f"{tag}told:"
        self._told_in = f"{tag}told_in:"
        self._frames = f"{tag}frames:"
        self.outbox: Final = f"{tag}outbox"
        """A stream: the events of this shard that are not in the log yet, where there are several shards."""

    def has(self, key: Key) -> bool:
        """Whether a record lives in this shard."""
        return _shard_of(_identity_of(key), self._count) == self.shard

    def record(self, key: Key) -> str:
        """A string: the record's version, a colon, the record."""
        return self._record + key

    def listing(self, kind: str) -> str:
        """An ordered set: the keys of all records of a kind."""
        return self._listing + kind

    def index(self, index: str) -> str:
        """An ordered set: the rows of all scopes of an index, each beginning with its scope."""
        return self._index + index

    def log(self, family: Family) -> str:
        """A stream: the events of one family, numbered through all families."""
        return self._log + family.value

    def told(self, execution_id: str) -> str:
        """A sorted set: the places of an execution's events in the log, with their families."""
        return self._told + execution_id

    def told_in(self, namespace: str, family: Family) -> str:
        """A sorted set: the places of a namespace's events of one family in the log."""
        return f"{self._told_in}{family.value}:{namespace}"

    def frames(self, stream: str) -> str:
        """A stream: the frames."""
        return self._frames + stream

    def named(self, signature: Signature, namespace: str) -> Iterator[str]:
        """The keys of a function's signature that are the same for all commands of a namespace."""
        yield from (self.state, self.outbox)
        for family in signature.families:
            yield self.log(family)
            yield self.told_in(namespace, family)
        yield from map(self.listing, signature.kinds)
        yield from map(self.index, signature.indexes)


class Shards:
    """All shards of one store. The first one is home to what there is only one of, such as the log.

    Args:
        prefix: what sets this store apart from others in the same database.
        count: how many there are.
    """

    def __init__(self, prefix: str, count: int) -> None:
        self.all: Final = [Keys(prefix, shard, count) for shard in range(count)]
        self.home: Final = self.all[0]
        self.are_one: Final = count == 1

    def of(self, name: str) -> Keys:
        """The shard of what has this name: an identity, or a stream, that begins with a partition."""
        return self.home if self.are_one else self.all[_shard_of(name, len(self.all))]

    def of_record(self, key: Key) -> Keys:
        """The shard of a record."""
        return self.home if self.are_one else self.of(_identity_of(key))

    def within(self, prefix: str) -> list[Keys]:
        """The shards that may hold names that begin with this: one if the partition is among it."""
        return [self.of(prefix)] if _PARTITION.match(prefix) else self.all


def _shard_of(name: str, count: int) -> int:
    """The number of the shard, of so many, of an identity, or a stream, that begins with a partition."""
    if count == 1:
        return 0
    partition = _PARTITION.match(name)
    number = int(partition[1]) if partition else zlib.crc32(name.encode())
    return number % count


def _identity_of(key: Key) -> str:
    return key.partition("/")[2]


def row_member(scope: str, sort: int, member: str) -> bytes:
    """An index row as a member of the ordered set of its index."""
    return scope.encode() + SCOPE_END + _SORT.pack(sort + _SIGN) + member.encode()


def row_of(stored: bytes) -> tuple[int, str]:
    """The sort value and the member of an index row."""
    place = stored.index(SCOPE_END) + len(SCOPE_END)
    return _SORT.unpack_from(stored, place)[0] - _SIGN, stored[place + SORT_BYTES :].decode()


class Range:
    """A range of members by their bytes, as ZRANGE takes it. Without a bound it reaches to the end."""

    __slots__ = ("end", "start")

    def __init__(self, start: bytes = b"-", end: bytes = b"+") -> None:
        self.start = start
        self.end = end

    def command(self, key: str, limit: int, *, descending: bool = False) -> tuple[str | bytes | int, ...]:
        """The command that reads the range."""
        if descending:
            return ("ZRANGE", key, self.end, self.start, "BYLEX", "REV", "LIMIT", 0, limit)
        return ("ZRANGE", key, self.start, self.end, "BYLEX", "LIMIT", 0, limit)


def scope_range(scope: str) -> Range:
    """All rows of a scope."""
    named = scope.encode()
    return Range(b"[" + named + SCOPE_END, b"(" + named + BEHIND_SCOPE)


def row_range(scope: str, after: tuple[int, str] | None, upto: int | None, *, descending: bool) -> Range:
    """The rows of a scope strictly behind ``after`` up to the sort value ``upto``, in either direction."""
    found = scope_range(scope)
    behind = None if after is None else b"(" + row_member(scope, *after)
    if descending:
        found.end = behind or found.end
        if upto is not None:
            found.start = b"[" + row_member(scope, upto, "")
        return found
    found.start = behind or found.start
    if upto is not None:
        found.end = b"(" + row_member(scope, upto + 1, "")
    return found


def scopes_range(prefix: str, after: str | None) -> Range:
    """The rows of all scopes that begin with ``prefix``, strictly behind the scope ``after``."""
    found = prefix_range(prefix, None)
    if after is not None and after >= prefix:
        found.start = b"[" + after.encode() + BEHIND_SCOPE
    return found


def text_range(low: str, high: str | None, after: str | None) -> Range:
    """The texts from ``low`` on, before ``high``, and strictly behind ``after``."""
    start = f"[{low}" if after is None or after < low else f"({after}"
    return Range(start.encode(), b"+" if high is None else f"({high}".encode())


def prefix_range(prefix: str, after: str | None) -> Range:
    """The texts that begin with ``prefix``, strictly behind ``after``."""
    return text_range(*prefix_bounds(prefix), after)

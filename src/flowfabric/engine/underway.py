"""What is on its way to the store, so that no batch decides by what another one is just changing.

Several batches may be under way, but only one of each place decides at a time, and it says what it is
going to write before the next one begins. Who needs such a record waits for its commit, and then goes
on with what that has made of it, instead of colliding with it.

The rule this module keeps: it only steers. The store compares the versions, so what slips through is a
conflict and is decided again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from flowfabric.core.records import Key


class UnderWay:
    """The records that are just being written. One for each engine."""

    def __init__(self) -> None:
        self._deciding: dict[int, asyncio.Lock] = {}
        self._written: dict[Key, Writing] = {}

    def clear(self) -> None:
        """Forget everything. The event loop may be another one from now on."""
        self._deciding.clear()
        self._written.clear()

    def deciding(self, place: int) -> asyncio.Lock:
        """What is held while a batch of this place loads and decides."""
        return self._deciding.setdefault(place, asyncio.Lock())

    def __contains__(self, key: object) -> bool:
        return key in self._written

    def begin(self, keys: Iterable[Key]) -> Writing:
        """From here until the end of what is returned, these records are on their way to the store."""
        writing = Writing(self._written, frozenset(keys))
        self._written.update(dict.fromkeys(writing.keys, writing))
        return writing

    def isdisjoint(self, keys: Collection[Key]) -> bool:
        """Whether none of these records is being written."""
        return self._written.keys().isdisjoint(keys)

    async def wait_for(self, keys: Collection[Key]) -> None:
        """Wait for the writes of these records that are under way now; there may be others then."""
        for writing in {self._written[key] for key in keys if key in self._written}:
            await writing.ended.wait()


class Writing:
    """Some records that are on their way to the store, until this context ends."""

    __slots__ = ("_written", "ended", "keys")

    def __init__(self, written: dict[Key, Writing], keys: frozenset[Key]) -> None:
        self._written = written
        self.keys = keys
        self.ended = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key in self.keys:
            if self._written.get(key) is self:
                del self._written[key]
        self.ended.set()

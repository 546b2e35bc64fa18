"""A clock that shows what it was told, for stores that run inside the test's process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from flowfabric.stores.base import Store
from flowfabric.stores.clock import StoreClock

if TYPE_CHECKING:
    from collections.abc import Callable

START_MS: Final = 1_700_000_000_000
"""Where a manual clock starts, unless told otherwise."""


class ClockedStore(Store, Protocol):
    """A store whose clock is an object that can be replaced."""

    clock: StoreClock


class ManualClock:
    """Stands still until it is advanced. A store that is attached lives by it.

    >>> clock = ManualClock(1_000)
    >>> clock.advance(500)
    1500
    """

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def read(self) -> int:
        """The time it shows, in milliseconds."""
        return self.now_ms

    def attach(self, store: ClockedStore) -> None:
        """Let the store read this clock instead of the host's."""
        store.clock = StoreClock(self.read)

    def advance(self, milliseconds: int) -> int:
        """Move on. Returns what it shows then."""
        assert milliseconds >= 0, "a store's clock does not go back"
        self.now_ms += milliseconds
        return self.now_ms

    def seconds(self) -> Callable[[], float]:
        """The same time as a function of seconds, for what measures with a monotonic clock."""
        return lambda: self.now_ms / 1_000

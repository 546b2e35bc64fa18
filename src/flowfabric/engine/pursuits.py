"""What the claims of one engine are after right now, so that they do not all run after the same work.

A server claims for all its workers. Claims that come at the same time see the same work at the head
of a queue, and all but one would be refused, again and again down the queue. So each reads as far as
all of them together want to, and leaves alone what another one is claiming.

The rule this module keeps: it only steers. The store decides who owns what, and work that was left
alone and was not claimed after all is found by the next claim.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

FURTHER_MAX: Final = 256
"""How many rows further than for itself a claim reads at most."""
CLAIMED_MAX: Final = 1_024
"""How many executions are remembered that were claimed last."""


class Pursuits:
    """Who wants how much, and what is being claimed. One for each engine."""

    def __init__(self) -> None:
        self._claimed_now: set[str] = set()
        self._claimed_last: deque[str] = deque(maxlen=CLAIMED_MAX)
        self._wanted = 0

    @contextmanager
    def wanting(self, limit: int) -> Iterator[None]:
        """While a claim of up to so many executions is under way."""
        self._wanted += limit
        try:
            yield
        finally:
            self._wanted -= limit

    def further(self, limit: int) -> int:
        """How many rows a claim of up to so many reads for the sake of the others."""
        return min(max(0, self._wanted - limit), FURTHER_MAX)

    def __contains__(self, execution_id: str) -> bool:
        return execution_id in self._claimed_now

    def note_claimed(self, execution_ids: Iterable[str]) -> None:
        """Remember that these were claimed."""
        self._claimed_last.extend(execution_ids)

    def has_claimed(self, execution_id: str) -> bool:
        """Whether a claim of this engine has taken an execution lately. For the few that are refused."""
        return execution_id in self._claimed_last

    @contextmanager
    def claiming(self, execution_ids: Collection[str]) -> Iterator[None]:
        """While these are being claimed."""
        self._claimed_now.update(execution_ids)
        try:
            yield
        finally:
            self._claimed_now.difference_update(execution_ids)

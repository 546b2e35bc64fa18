"""How far the claims of one engine keep out of the way of those of other processes.

All processes see the same work at the head of a queue. What one of them has claimed the others try in
vain, which costs them more than a claim does. So an engine that loses to others begins its next searches
somewhere in a window at the head of the queue, which grows as long as it loses and shrinks again when it
does not. Together the processes still take the work at the head of the queue; each alone may begin with
some that stands a little further down.

The rule this module keeps: it only steers. The store decides who owns what. An engine that is alone never
loses, so its claims go in order.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_MAX: Final = 16
"""How many times as much as is wanted the window holds at most."""
LOSSES: Final = 2
"""After so many claims in a row that lost something it is no chance any more."""
CALM_CLAIMS: Final = 8
"""After so many claims that lost nothing the window shrinks: too small a one is found out soon."""


class Crowding:
    """How much is lost to other processes. One for each engine.

    Args:
        choose: a whole number from 0 up to, but not including, the one it is given.
    """

    def __init__(self, choose: Callable[[int], int] = random.randrange) -> None:
        self._choose = choose
        self._losses = 0
        self._calm = 0
        self.window = 1
        """How many times as much as is wanted a search looks at, to choose from it."""

    def note(self, *, lost: bool) -> None:
        """Learn from a claim: whether somebody else had taken some of what it tried."""
        if lost:
            self._losses += 1
            self._calm = 0
            if self._losses >= LOSSES or self.window > 1:
                self.window = min(2 * self.window, WINDOW_MAX)
            return
        self._losses = 0
        self._calm += 1
        if self._calm == CALM_CLAIMS:
            self.window = max(self.window - 1, 1)
            self._calm = 0

    def place(self, found: int, wanted: int) -> int:
        """Where to begin among so much that was found: at a multiple of what is wanted."""
        return wanted * self._choose(-(-found // wanted))

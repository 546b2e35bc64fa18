"""How claims are shared among lanes and namespaces when one worker serves several.

Inside a lane the order of the index decides: urgency, grown by waiting. Between lanes that alone
would let a long queue keep all others waiting until it is as young as they are. So every other
claim goes to the most urgent work of all, and the ones between go to the lane that was served
longest ago. For workers that serve the same lanes this means:

- The most urgent work is never further away than the second claim.
- With work in n lanes, each of them gets at least one of any 2n claims in a row.

A lane here is a lane of one namespace, so the same holds between namespaces. What was claimed when
is remembered by each engine for itself: where each shares fairly, all of them do together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

REMEMBERED_MAX: Final = 4_096
"""How many of each thing are remembered; the oldest are forgotten first."""

Lane = TypeVar("Lane", bound="Hashable")


class Turns:
    """Who had a turn when, and where long searches were interrupted. One for each engine."""

    def __init__(self) -> None:
        self._served: dict[Hashable, int] = {}
        self._number = 0
        self._by_turn: dict[Hashable, bool] = {}
        self._places: dict[Hashable, str] = {}
        self._passed: dict[str, tuple[int, str]] = {}

    def choose(self, worker: Hashable, heads: Mapping[Lane, tuple[int, str]]) -> Lane:
        """The lane that the next claim goes to, of those that have work.

        Args:
            worker: what is the same for workers that serve the same.
            heads: the most urgent work of each lane, as a place in the claiming order.
        """
        if len(heads) == 1:
            return next(iter(heads))
        by_turn = self._by_turn.pop(worker, False)
        _remember(self._by_turn, worker, not by_turn)
        for lane in sorted(heads.keys() - self._served.keys(), key=heads.__getitem__):
            self._serve(lane)  # one that is new here comes after all others
        chosen = min(heads, key=self._served.__getitem__ if by_turn else heads.__getitem__)
        self._serve(chosen)
        return chosen

    def _serve(self, lane: Hashable) -> None:
        self._number += 1
        _remember(self._served, lane, self._number)

    def take_place(self, worker: Hashable) -> str | None:
        """Where a walk over very many scopes goes on; None where it starts at the beginning."""
        return self._places.pop(worker, None)

    def keep_place(self, worker: Hashable, place: str) -> None:
        """Note where the next walk goes on."""
        _remember(self._places, worker, place)

    def take_passed(self, scope: str) -> tuple[int, str] | None:
        """The last row of a scope that the search before this one looked at in vain, if it was long."""
        return self._passed.pop(scope, None)

    def keep_passed(self, rows: Mapping[str, tuple[int, str]]) -> None:
        """Note what was looked at in vain, so that the next search sees what stands behind it."""
        for scope, row in rows.items():
            _remember(self._passed, scope, row)


def _remember(notes: dict[Any, Any], key: Hashable, value: Any) -> None:
    """Note something as the newest, and forget the oldest if there is too much."""
    notes.pop(key, None)
    notes[key] = value
    if len(notes) > REMEMBERED_MAX:
        del notes[next(iter(notes))]

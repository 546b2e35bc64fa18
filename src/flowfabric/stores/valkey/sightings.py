"""Where claimable work has been seen, so that a claim asks only the shards that can have some.

What is known of a shard is a list of the scopes that have rows there. It follows what this process
commits at once, and what others commit as soon as their message is heard, for a commit tells in which
scopes it puts rows. So it is wrong only where a message was lost or is on its way, or where a failover
brought rows back, and it lasts no longer than ``LASTING_S``: then the shard is asked again.

The rule this module keeps: a scope that has rows may be missing for that long, and one that has none may
be listed. Who finds less than was wanted must ask every shard before saying that there is no more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LASTING_S: Final = 1.0
"""How long after a look into a shard it is believed."""
LOOKS_MAX: Final = 256
"""How many looks into one shard are remembered; with more of them, all are forgotten."""

Place = tuple[str, str | None]
"""The beginning of some scopes, and the scope that they come behind if it is not None."""


class Look(msgspec.Struct, eq=False):
    """What one look into a shard has seen."""

    shard: int
    place: Place
    until: float
    """When it is not believed any more, in seconds of the monotonic clock."""
    scopes: set[str] = msgspec.field(default_factory=set)
    """The scopes at this place that have rows in the shard."""

    def covers(self, scope: str) -> bool:
        """Whether this scope would have been seen."""
        prefix, after = self.place
        return scope.startswith(prefix) and (after is None or scope > after)

    def put(self, scopes: Iterable[str]) -> None:
        """Take note that these scopes have rows."""
        self.scopes.update(scope for scope in scopes if self.covers(scope))


class Sightings:
    """What is known of the shards of a store. One for each open store.

    Args:
        shards: how many there are.
        clock: tells the seconds that have passed.
    """

    def __init__(self, shards: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.shards: Final = shards
        self._clock = clock
        self._looks: list[dict[Place, Look]] = [{} for _ in range(shards)]
        self._begun: list[list[Look]] = [[] for _ in range(shards)]
        self._puts = [0] * shards

    def scopes(self, shard: int, place: Place) -> set[str] | None:
        """The scopes at a place that have rows in a shard; None if that is not known."""
        look = self._looks[shard].get(place)
        return None if look is None or look.until <= self._clock() else look.scopes

    def may_have(self, shard: int, scope: str) -> bool:
        """Whether a shard can have rows of a scope, as far as is known."""
        now = self._clock()
        return not any(
            look.until > now and look.covers(scope) and scope not in look.scopes
            for look in self._looks[shard].values()
        )

    def begin(self, shard: int, place: Place) -> Look:
        """Before a shard is asked for the scopes at a place. What is put there from now on is not missed."""
        look = Look(shard, place, self._clock() + LASTING_S)
        self._begun[shard].append(look)
        return look

    def give_up(self, look: Look) -> None:
        """The shard has not answered."""
        if look in self._begun[look.shard]:
            self._begun[look.shard].remove(look)

    def end(self, look: Look, found: set[str], *, is_all: bool) -> None:
        """The shard has answered.

        Args:
            look: what ``begin`` has returned.
            found: scopes at the place that have rows.
            is_all: whether there are no others.
        """
        looks, begun = self._looks[look.shard], self._begun[look.shard]
        for known in looks.values():
            known.put(found)
        if look not in begun:
            return  # something may have been missed since it was begun
        begun.remove(look)
        look.put(found)
        if len(looks) >= LOOKS_MAX:
            looks.clear()
        if is_all:
            looks[look.place] = look

    def puts(self, shard: int) -> int:
        """A number that becomes greater whenever rows are put into a shard."""
        return self._puts[shard]

    def note_empty(self, shard: int, scope: str, puts: int) -> None:
        """Take note that a scope had no rows in a shard.

        Args:
            shard: which one.
            scope: the scope, of which all rows were asked for.
            puts: what ``puts`` said before that.
        """
        if self._puts[shard] == puts:
            for look in self._looks[shard].values():
                look.scopes.discard(scope)

    def put(self, shard: int, scopes: Iterable[str]) -> None:
        """Take note that these scopes may have rows in a shard."""
        named = list(scopes)
        if not named:
            return
        self._puts[shard] += 1
        for look in (*self._looks[shard].values(), *self._begun[shard]):
            look.put(named)

    def forget(self, shard: int) -> None:
        """Take note that anything may have been put into a shard."""
        self._puts[shard] += 1
        self._looks[shard].clear()
        self._begun[shard].clear()

    def forget_all(self) -> None:
        """Take note that anything may have been put anywhere."""
        for shard in range(self.shards):
            self.forget(shard)

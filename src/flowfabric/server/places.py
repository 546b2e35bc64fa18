"""Who takes how much of a server: places for requests, so that nobody takes all of them.

What a request takes is counted for its party: the namespace of its token, whichever of its tokens asks,
or the token itself if it is bound to none. A request beyond its party's bound is refused at once, before
its body is read, and takes nothing from others. The namespace that a request names itself does not
count, since whoever names it may name any.

Requests that work and requests that wait are counted apart: waiting costs little and goes on for long.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from flowfabric.server.calls import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowfabric.server.access import Principal


class Party(msgspec.Struct, frozen=True):
    """Whom places are counted for: a namespace, or a token that is bound to none."""

    namespace: str | None
    token: str

    @classmethod
    def of(cls, principal: Principal) -> Party:
        """The party that a principal belongs to."""
        bound = principal.namespace
        return cls(bound, "" if bound is not None else principal.name)


class Pool:
    """A number of places.

    Args:
        what: what takes a place, in errors.
        each: how many one party may have; None if as many as there are, or half of them for a namespace.
        most: how many there are; None if only each party has a bound.
    """

    def __init__(self, what: str, *, each: int | None = None, most: int | None = None) -> None:
        assert each is not None or most is not None, "a pool has a bound"
        self._what = what
        self._each = each
        self._most = most
        self._taken: Counter[Party] = Counter()

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return self._taken.total()

    def require(self, party: Party) -> None:
        """Look for a place.

        Raises:
            Refused: all are taken, or the party has its share.
        """
        if self._most is not None and self.taken >= self._most:
            raise _too_many(f"too many concurrent {self._what} (server max: {self._most})")
        share = self._share_of(party)
        if share is not None and self._taken[party] >= share:
            whose = "token" if party.namespace is None else "namespace"
            raise _too_many(f"too many concurrent {self._what} of one {whose} (max: {share})")

    def _share_of(self, party: Party) -> int | None:
        """A namespace never has all places of a server. A token for all namespaces may: it is trusted."""
        if self._each is not None or self._most is None:
            return self._each
        return None if party.namespace is None else max(1, self._most // 2)

    def take(self, party: Party) -> None:
        """Take a place, whether there is one or not. Give it back when it is no longer needed."""
        self._taken[party] += 1

    def give_back(self, party: Party) -> None:
        """Give back what was taken."""
        self._taken[party] -= 1
        if not self._taken[party]:
            del self._taken[party]

    @contextmanager
    def taking(self, party: Party) -> Iterator[None]:
        """Take a place, whether there is one or not, for as long as the block goes on."""
        self.take(party)
        try:
            yield
        finally:
            self.give_back(party)


class Place:
    """What one request takes: at first a place among those that work, then perhaps among those that wait."""

    def __init__(self, party: Party, working: Pool, waiting: Pool) -> None:
        self.party = party
        self._waiting = waiting
        self._held = working
        working.require(party)
        working.take(party)

    def wait(self) -> None:
        """Change to a place among those that wait, and stay there.

        Raises:
            Refused: the party has its share of them.
        """
        if self._held is self._waiting:
            return
        self._waiting.require(self.party)
        self._held.give_back(self.party)
        self._held = self._waiting
        self._held.take(self.party)

    def give_back(self) -> None:
        """Leave."""
        self._held.give_back(self.party)


def _too_many(told: str) -> Exception:
    return refused(429, f"{told}; retry with backoff", kind="resource_exhausted", retryable=True)

"""Which scopes of the eligible index a worker can serve, and how to walk past the others.

A scope is a namespace, a lane, and the capabilities that its work requires, in order. The scopes a
worker serves lie scattered among those it does not. From any scope, ``behind`` tells the next place
where one that it serves can be, so a walk costs as many reads as there are places to look at, and
not as there are scopes.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from flowfabric.core.indexes import SEPARATOR, scope_of

if TYPE_CHECKING:
    from collections.abc import Iterable

LAST: Final = "\x7f"
"""Sorts behind every lane of a namespace: lanes are made of printable ASCII."""


class Reach:
    """The scopes of some lanes, of one namespace or of all, that need no more than some capabilities.

    >>> reach = Reach("tenant", ["lane"], {"cpu", "gpu"})
    >>> reach.serves(scope_of("tenant", "lane", "gpu", ""))
    True
    >>> reach.behind(scope_of("tenant", "lane", "disk", "")) == scope_of("tenant", "lane", "gpu")
    True
    """

    def __init__(self, namespace: str | None, lanes: Iterable[str], capabilities: Iterable[str]) -> None:
        self.namespace = namespace
        self.lanes = tuple(sorted(set(lanes)))
        self.capabilities = tuple(sorted(set(capabilities)))
        self._offered = frozenset(self.capabilities)

    @property
    def prefix(self) -> str:
        """What all scopes within reach begin with."""
        if self.namespace is None:
            return ""
        return (
            scope_of(self.namespace, *self.lanes, "") if len(self.lanes) == 1 else self.namespace + SEPARATOR
        )

    @property
    def start(self) -> str | None:
        """A place with no scope within reach before it, or None to start at the prefix."""
        if self.namespace is None or len(self.lanes) == 1:
            return None
        return scope_of(self.namespace, self.lanes[0])

    def serves(self, scope: str) -> bool:
        """Whether a scope is within reach."""
        namespace, lane, *required = scope.split(SEPARATOR)[:-1]
        return (
            self.namespace in (None, namespace) and lane in self.lanes and self._offered.issuperset(required)
        )

    def behind(self, scope: str) -> str | None:
        """The last place behind a scope before the next one within reach; None if none can follow."""
        namespace, lane, *required = scope.split(SEPARATOR)[:-1]
        if lane in self.lanes:
            if self._offered.issuperset(required):
                return scope
            offered = self._next_offer(required)
            if offered is not None:
                return scope_of(namespace, lane, *offered)
        following = _next(self.lanes, lane)
        if following is not None:
            return scope_of(namespace, following)
        return scope_of(namespace, LAST) if self.namespace is None else None

    def _next_offer(self, required: list[str]) -> list[str] | None:
        """The least list of offered capabilities that sorts behind a list with one that is not."""
        place = next(place for place, name in enumerate(required) if name not in self._offered)
        for common in range(place, -1, -1):
            following = _next(self.capabilities, required[common])
            if following is not None:
                return [*required[:common], following]
        return None


def _next(names: tuple[str, ...], name: str) -> str | None:
    """The least of the sorted names that is greater than ``name``."""
    place = bisect_right(names, name)
    return names[place] if place < len(names) else None

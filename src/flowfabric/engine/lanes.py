"""What an engine remembers of the lanes it has met, so that nobody loads a lane to claim from it.

The rule this module keeps: only a lane that lets everything through is remembered with its version.
A commit that relies on it compares the version, so a lane that was changed since is a conflict and
is loaded anew. One that lets less through is loaded whenever it is asked for, because a refusal
commits nothing and would never find out that the lane is open again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric.contracts.states import LaneState
from flowfabric.core.records import Lane
from flowfabric.core.rules.lanes import GIVES_NO_WORK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.core.records import Key, Record

LANES_MAX: Final = 4_096
"""How many lanes are remembered; with more of them, some are loaded again now and then."""

_PREFIX: Final = f"{Lane.KIND}/"


class KnownLanes:
    """The lanes that this engine has loaded."""

    def __init__(self) -> None:
        self._open: dict[Key, tuple[int, Record | None]] = {}
        self._closed: set[Key] = set()

    def recall(self, key: Key) -> tuple[int, Record | None] | None:
        """The version and the record of a lane that lets everything through; None to load it."""
        return self._open.get(key)

    def learn(self, rows: Iterable[tuple[Key, int, Record | None]]) -> None:
        """Take note of the lanes among the records that were loaded."""
        for key, version, record in rows:
            if key.startswith(_PREFIX):
                self._learn_lane(key, version, record)

    def _learn_lane(self, key: Key, version: int, record: Record | None) -> None:
        self.forget((key,))
        if len(self._open) + len(self._closed) >= LANES_MAX:
            self._open.clear()
            self._closed.clear()
        if isinstance(record, Lane) and record.state in GIVES_NO_WORK:
            self._closed.add(key)
        elif record is None or (isinstance(record, Lane) and record.state is LaneState.ACTIVE):
            self._open[key] = version, record

    def forget(self, keys: Iterable[Key]) -> None:
        """Take note that these records are not what they were."""
        for key in keys:
            self._open.pop(key, None)
            self._closed.discard(key)

    def closed(self, keys: Iterable[Key]) -> list[Key]:
        """Those of the lanes that gave no work when they were last loaded. They may since do."""
        return [key for key in keys if key in self._closed] if self._closed else []

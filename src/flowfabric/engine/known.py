"""What an engine knows of records without loading them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from flowfabric.core.work import WorkingSet

if TYPE_CHECKING:
    from flowfabric.engine.lanes import KnownLanes
    from flowfabric.engine.recent import RecentRecords
    from flowfabric.engine.underway import UnderWay


class Known(NamedTuple):
    """What all batches of one engine share."""

    lanes: KnownLanes
    """The lanes that need not be loaded."""
    recent: RecentRecords
    """The records that need not be loaded, because they have just been written here."""
    under_way: UnderWay
    """The records that are just being written here."""

    def working_set(self) -> WorkingSet:
        """A working set for one batch, which loads what is not known."""
        return WorkingSet(self.lanes, self.recent, self.under_way)

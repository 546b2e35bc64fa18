"""For tests of programs that use FlowFabric, and for those who write a store.

``Bed`` is an engine over any store with a clock set by hand. ``FaultyStore`` fails as it is told.
``flowfabric.testing.conformance`` holds the suite that every store has to pass.
"""

from flowfabric.testing.bed import Bed
from flowfabric.testing.clock import ManualClock
from flowfabric.testing.dump import differences, dump
from flowfabric.testing.stores import FaultyStore, RecordingStore, StoreAround

__all__ = ["Bed", "FaultyStore", "ManualClock", "RecordingStore", "StoreAround", "differences", "dump"]

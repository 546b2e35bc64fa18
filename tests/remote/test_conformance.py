"""Everything a store has to pass as far as commands can tell, over HTTP."""

from pathlib import Path
from typing import Any

from flowfabric.stores.memory import MemoryStore
from flowfabric.testing.bed import Bed
from flowfabric.testing.clock import ClockedStore
from flowfabric.testing.conformance import (
    CommandConformance,
    FenceConformance,
    FlowConformance,
    ScenarioConformance,
)
from tests.remote.bed import RemoteBed


class TestOverHttp(CommandConformance, FenceConformance, ScenarioConformance, FlowConformance):
    def make_store(self, path: Path) -> MemoryStore:
        return MemoryStore()

    def make_bed(self, store: ClockedStore, **options: Any) -> Bed:
        return RemoteBed(store, **options)

"""The memory store is the model that the others are compared with, so it comes first."""

from pathlib import Path

from flowfabric.stores.memory import MemoryStore
from flowfabric.testing.conformance import StoreConformance


class TestMemoryStore(StoreConformance):
    def make_store(self, path: Path) -> MemoryStore:
        return MemoryStore()

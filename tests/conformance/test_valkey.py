"""Valkey, on a server that does not wait for the disk: what power loss does is not tested here."""

from pathlib import Path

from flowfabric.stores.valkey import ValkeyStore
from flowfabric.testing.conformance import StoreConformance
from tests.valkey import server


class TestValkey(StoreConformance):
    def make_store(self, path: Path) -> ValkeyStore:
        return server().store(path)

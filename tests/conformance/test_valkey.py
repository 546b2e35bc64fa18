"""Valkey, on servers that do not wait for the disk: what power loss does is not tested here."""

from pathlib import Path

from flowfabric.stores.valkey import ValkeyStore
from flowfabric.testing.conformance import StoreConformance
from tests.valkey import cluster, server


class TestValkey(StoreConformance):
    def make_store(self, path: Path) -> ValkeyStore:
        return server().store(path)


class TestValkeyCluster(StoreConformance):
    """Three primaries, and a store in slots of several of them."""

    def make_store(self, path: Path) -> ValkeyStore:
        return cluster().store(path, shards=4)

"""PostgreSQL, on a server that does not wait for the disk: what power loss does is not tested here."""

from pathlib import Path

from flowfabric.stores.postgres import PostgresStore
from flowfabric.testing.conformance import StoreConformance
from tests.postgres import server


class TestPostgres(StoreConformance):
    def make_store(self, path: Path) -> PostgresStore:
        return server().store(path, listen=False)

"""SQLite, in a file and in memory.

The file is written without waiting for the disk: what power loss does is tested elsewhere.
"""

from pathlib import Path

from flowfabric.stores.sqlite import SqliteStore
from flowfabric.testing.conformance import ProtocolConformance, StoreConformance


class TestSqliteFile(StoreConformance):
    def make_store(self, path: Path) -> SqliteStore:
        return SqliteStore(str(path / "work.db"), synchronous="NORMAL")


class TestSqliteMemory(ProtocolConformance):
    def make_store(self, path: Path) -> SqliteStore:
        return SqliteStore(":memory:")

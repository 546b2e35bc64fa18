"""The store in one SQLite file."""

from flowfabric.stores.sqlite.opening import migrate, pending
from flowfabric.stores.sqlite.store import SqliteStore, Statistics

__all__ = ["SqliteStore", "Statistics", "migrate", "pending"]

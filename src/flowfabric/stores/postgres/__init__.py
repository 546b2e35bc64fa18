"""The store on a PostgreSQL server."""

from flowfabric.stores.postgres.schema import migrate, pending
from flowfabric.stores.postgres.store import PostgresStore, Statistics

__all__ = ["PostgresStore", "Statistics", "migrate", "pending"]

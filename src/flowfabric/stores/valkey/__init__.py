"""The store on a Valkey server."""

from flowfabric.stores.valkey.opening import migrate, pending
from flowfabric.stores.valkey.settings import Settings
from flowfabric.stores.valkey.store import Statistics, ValkeyStore

__all__ = ["Settings", "Statistics", "ValkeyStore", "migrate", "pending"]

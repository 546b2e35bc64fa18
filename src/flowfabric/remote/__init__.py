"""The engine over HTTP: the same interface, for workers and clients without a store of their own."""

from flowfabric.remote.engine import HttpEngine

__all__ = ["HttpEngine"]

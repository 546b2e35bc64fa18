"""Importing this module registers every rule and every operation."""

from flowfabric.core import rules
from flowfabric.engine import creating, journal, listing, minting, scheduler, streams

__all__ = ["creating", "journal", "listing", "minting", "rules", "scheduler", "streams"]

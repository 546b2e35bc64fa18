"""Importing this module registers every rule and every operation."""

from flowfabric.core import rules
from flowfabric.engine import claiming, creating, journal, listing, scheduler, streams

__all__ = ["claiming", "creating", "journal", "listing", "rules", "scheduler", "streams"]

"""Importing this module registers every rule and every operation."""

from flowfabric.core import rules
from flowfabric.engine import claiming, creating, flows, journal, listing, scheduler, streams

__all__ = ["claiming", "creating", "flows", "journal", "listing", "rules", "scheduler", "streams"]

"""Importing this module registers every rule and every operation."""

from flowfabric.core import rules
from flowfabric.engine import (
    claiming,
    creating,
    feeds,
    flows,
    journal,
    listing,
    retention,
    scheduler,
    streams,
)

__all__ = [
    "claiming",
    "creating",
    "feeds",
    "flows",
    "journal",
    "listing",
    "retention",
    "rules",
    "scheduler",
    "streams",
]

"""Importing this module registers every rule and every operation."""

from flowfabric.core import rules
from flowfabric.engine import (
    backend,
    claiming,
    creating,
    explaining,
    feeds,
    flows,
    journal,
    listing,
    retention,
    scheduler,
    streams,
    workers,
)

__all__ = [
    "backend",
    "claiming",
    "creating",
    "explaining",
    "feeds",
    "flows",
    "journal",
    "listing",
    "retention",
    "rules",
    "scheduler",
    "streams",
    "workers",
]

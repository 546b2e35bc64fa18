"""Importing this module registers every rule and every operation."""

from flowfabric.core import rules
from flowfabric.engine import (
    admission,
    backend,
    claiming,
    creating,
    explaining,
    feeds,
    flows,
    headroom,
    journal,
    listing,
    retention,
    scheduler,
    streams,
    workers,
)

__all__ = [
    "admission",
    "backend",
    "claiming",
    "creating",
    "explaining",
    "feeds",
    "flows",
    "headroom",
    "journal",
    "listing",
    "retention",
    "rules",
    "scheduler",
    "streams",
    "workers",
]

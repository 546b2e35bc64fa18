"""Importing this module registers every rule and every operation."""

from flowfabric.core import rules
from flowfabric.engine import (
    backend,
    claiming,
    creating,
    explaining,
    flows,
    journal,
    listing,
    scheduler,
    streams,
    workers,
)

__all__ = [
    "backend",
    "claiming",
    "creating",
    "explaining",
    "flows",
    "journal",
    "listing",
    "rules",
    "scheduler",
    "streams",
    "workers",
]

"""Importing this module registers every rule and every operation."""

from flowfabric.core import rules
from flowfabric.engine import (
    admission,
    claiming,
    creating,
    flows,
    headroom,
    journal,
    listing,
    scheduler,
    streams,
)

__all__ = [
    "admission",
    "claiming",
    "creating",
    "flows",
    "headroom",
    "journal",
    "listing",
    "rules",
    "scheduler",
    "streams",
]

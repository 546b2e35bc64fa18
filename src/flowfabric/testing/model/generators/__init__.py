"""The generators, a module per subject. Importing this package registers all of them."""

from flowfabric.testing.model.generators import (
    budgets,
    executions,
    feeds,
    flows,
    lanes,
    leases,
    reads,
    retention,
    streams,
    waiting,
    workers,
)

__all__ = [
    "budgets",
    "executions",
    "feeds",
    "flows",
    "lanes",
    "leases",
    "reads",
    "retention",
    "streams",
    "waiting",
    "workers",
]

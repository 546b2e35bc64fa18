"""The generators, a module per subject. Importing this package registers all of them."""

from flowfabric.testing.model.generators import (
    budgets,
    executions,
    flows,
    lanes,
    leases,
    reads,
    streams,
    waiting,
    workers,
)

__all__ = ["budgets", "executions", "flows", "lanes", "leases", "reads", "streams", "waiting", "workers"]

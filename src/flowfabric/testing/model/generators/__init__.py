"""The generators, a module per subject. Importing this package registers all of them."""

from flowfabric.testing.model.generators import (
    executions,
    flows,
    lanes,
    leases,
    reads,
    streams,
    waiting,
    workers,
)

__all__ = ["executions", "flows", "lanes", "leases", "reads", "streams", "waiting"]
__all__ = ["executions", "flows", "leases", "reads", "streams", "waiting", "workers"]

"""Every route of the server. Importing the modules registers their rows."""

from flowfabric.server.routes import (
    admin,
    budgets,
    commands,
    executions,
    flows,
    links,
    live,
    metrics,
    runs,
    streams,
    views,
)
from flowfabric.server.routes.table import ROUTES, Route

__all__ = [
    "ROUTES",
    "Route",
    "admin",
    "budgets",
    "commands",
    "executions",
    "flows",
    "links",
    "live",
    "metrics",
    "runs",
    "streams",
    "views",
]

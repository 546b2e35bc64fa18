"""The HTTP server: every operation for other languages, browsers, and workers without a store."""

from flowfabric.server.access import Principal, Role, TokenEntry, Tokens, entry_for, new_token, read_tokens
from flowfabric.server.app import make_app
from flowfabric.server.service import ServerOptions, Service

__all__ = [
    "Principal",
    "Role",
    "ServerOptions",
    "Service",
    "TokenEntry",
    "Tokens",
    "entry_for",
    "make_app",
    "new_token",
    "read_tokens",
]

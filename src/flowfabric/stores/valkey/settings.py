"""How a server or a cluster is reached, and what is asked of it."""

from __future__ import annotations

from typing import Final

import msgspec

TIMEOUT_MS: Final = 30_000
PORT: Final = 6379
CLUSTER_SHARDS: Final = 16
"""How many shards a store on a cluster gets unless told otherwise."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the server is reached, and what is asked of it."""

    host: str = "localhost"
    port: int = PORT
    socket: str | None = None
    """A Unix socket, which takes the place of host and port."""
    cluster: bool = False
    """The server is one of a cluster, which says where the others are."""
    seeds: tuple[tuple[str, int], ...] = ()
    """Others that may be asked where they are, for when that one is gone."""
    shards: int | None = None
    """Into how many shards the store is split; as many as it has, or the default for a new one, if None."""
    database: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca_file: str | None = None
    """The authorities to trust; those of this host when absent."""
    cert_file: str | None = None
    """Who we are, for a server that asks for the certificates of its clients."""
    key_file: str | None = None
    """The key of that certificate, unless it is in the same file."""
    prefix: str = "ff"
    timeout_ms: int = TIMEOUT_MS
    durability: str = "D1"
    """Refuse to open below this level."""
    replicas: int = 0
    """How many replicas must have a commit before it is acknowledged."""

    @property
    def place(self) -> str:
        """The server, database and prefix as errors name them: without user and password."""
        scheme = f"valkey{'s' if self.tls else ''}{'+cluster' if self.cluster else ''}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = self.socket or f"{host}:{self.port}"
        return f"{scheme}://{where}/{self.database} (prefix {self.prefix})"

    @property
    def channel(self) -> str:
        """Where commits are told of. Channels are shared by all databases of a server."""
        return f"{self.prefix}:{self.database}:changed"

    def __repr__(self) -> str:
        return f"Settings({self.place})"

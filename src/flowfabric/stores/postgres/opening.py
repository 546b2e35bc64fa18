"""What an acknowledged commit survives on this server, and whether the server fits at all."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from flowfabric import errors
from flowfabric.addresses import is_loopback
from flowfabric.stores.base import Durability

if TYPE_CHECKING:
    from flowfabric.stores.postgres.connections import Connections, Settings

LEVELS: Final = ("D0", "D1", "D2", "D3")
VERSION_MIN: Final = 15
VERIFIED: Final = frozenset({"verify-ca", "verify-full"})
"""The values of ``sslmode`` with which a certificate is looked at. With any other, whoever is between can
answer in the server's place, or say that there is no TLS."""

_logger = logging.getLogger("flowfabric.stores")

_SETTINGS: Final = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "synchronous_standby_names",
    "server_encoding",
    "transaction_isolation",
    "transaction_read_only",
)


async def attest(connections: Connections, required_level: str) -> Durability:
    """Read back the server's settings and name the durability level that they give.

    Raises:
        StoreUnusable: the server is too old, has other settings than the store rests on, or gives
            less than the required level.
        StoreUnreachable: the database accepts no writes.
    """
    place = connections.settings.place
    columns = ", ".join(f"current_setting('{name}') AS {name}" for name in _SETTINGS)
    (row,) = await connections.fetch(
        f"SELECT {columns}, current_setting('server_version_num')::integer AS number"
    )
    _require_fit(row, place)
    level = _level_of(row)
    if LEVELS.index(level) < LEVELS.index(required_level):
        raise errors.StoreUnusable(
            f"{place} gives durability level {level}, but {required_level} is required "
            f"(fsync={row['fsync']}, synchronous_commit={row['synchronous_commit']}, "
            f"full_page_writes={row['full_page_writes']}). Turn them on, or require less."
        )
    return Durability(level=level, store="postgres", settings={name: row[name] for name in _SETTINGS})


def warn_of_risks(settings: Settings) -> None:
    """Report a way to another machine on which others can read, or answer in the server's place."""
    for link in settings.links():
        strangers = [host for host in link.hosts if not host.startswith("/") and not is_loopback(host)]
        if strangers and link.sslmode not in VERIFIED:
            _logger.warning(
                "what is sent to PostgreSQL at %s, passwords included, can be read on the way "
                "(sslmode is %s). Use ?sslmode=verify-full.",
                ", ".join(strangers),
                link.sslmode,
            )


def _require_fit(row: Any, place: str) -> None:
    if row["number"] < VERSION_MIN * 10_000:
        raise errors.StoreUnusable(
            f"{place} runs PostgreSQL {row['server_version']}; {VERSION_MIN} or newer is needed. "
            "Upgrade the server."
        )
    if row["transaction_read_only"] == "on":
        raise errors.StoreUnreachable(
            f"{place} accepts no writes: its transactions are read only by default. Change that default."
        )
    for name, needed in (("server_encoding", "UTF8"), ("transaction_isolation", "read committed")):
        if row[name] != needed:
            raise errors.StoreUnusable(
                f"{place} has {name} {row[name]!r}, but {needed!r} is needed. "
                "Choose another database, or change the default of this one."
            )


def _level_of(row: Any) -> str:
    """What a commit survives. A synchronous standby is shown, but promises nothing more here."""
    if row["synchronous_commit"] == "off":
        return "D0"
    if row["fsync"] != "on" or row["full_page_writes"] != "on":
        return "D1"
    return "D2"

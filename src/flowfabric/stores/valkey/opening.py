"""What an acknowledged commit survives on this server, and whether the server fits at all."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.addresses import is_loopback
from flowfabric.stores.base import Durability
from flowfabric.stores.valkey.client import Client
from flowfabric.stores.valkey.keys import Keys, Shards
from flowfabric.stores.valkey.library import library
from flowfabric.stores.valkey.settings import CLUSTER_SHARDS

if TYPE_CHECKING:
    from flowfabric.stores.valkey.settings import Settings

VERSION_MIN: Final = 8
PATCHED: Final = ((8, 0, 6), (8, 1, 4))
"""The first version of each line in which functions cannot break out of their sandbox in a known way."""
LAYOUT: Final = 2
"""How the keys are laid out. A program refuses a store with a layout that it does not know."""

_logger = logging.getLogger("flowfabric.stores")

_TOLD: Final = ("valkey_version", "server_mode", "role", "connected_slaves")
_CONFIGURED: Final = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")


async def attest(client: Client, required_level: str) -> Durability:
    """Read back the settings of every primary and name the durability level that they all give.

    Raises:
        StoreUnusable: a server is no Valkey, too old, evicts keys, has fewer replicas than asked for, or
            gives less than the required level; or it is part of a cluster and the URL says it is not.
        StoreUnreachable: a server is a replica.
    """
    servers = await _read_settings(client)
    for place, shown in servers:
        _require_fit(place, shown, client.settings)
    place, lowest = min(servers, key=lambda server: _level_of(server[1]))
    level = _level_of(lowest)
    if level < required_level:
        raise errors.StoreUnusable(
            f"{place} gives durability level {level}, but {required_level} is required "
            f"(appendonly={lowest['appendonly']}, appendfsync={lowest['appendfsync']}). "
            "Turn them up, or require less with ?durability=."
        )
    settings = {name: lowest[name] for name in (*_TOLD, *_CONFIGURED)}
    settings |= {"primaries": str(len(servers)), "replicas_awaited": str(client.settings.replicas)}
    return Durability(level=level, store="valkey", settings=settings)


def warn_of_risks(settings: Settings, version: str) -> None:
    """Report what is no reason to refuse a server, but one to do something soon.

    Args:
        settings: how it is reached.
        version: what it runs.
    """
    if settings.socket is None and not settings.tls and not is_loopback(settings.host):
        _logger.warning(
            "what is sent to %s, passwords included, can be read on the way. Use valkeys:// and TLS.",
            settings.place,
        )
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    patched = next((least for least in PATCHED if least[:2] == numbers[:2]), numbers)
    if numbers < patched:
        _logger.warning(
            "%s runs Valkey %s, in which a user who may load functions can take the server over "
            "(CVE-2025-49844). Upgrade to %s.",
            settings.place,
            version,
            ".".join(map(str, patched)),
        )


async def _read_settings(client: Client) -> list[tuple[str, dict[str, str]]]:
    """For every primary its name in errors, what it tells of itself, and how it is configured."""
    told = await client.read_everywhere(("INFO", "server"), ("INFO", "replication"))
    try:
        configured = await client.read_everywhere(("CONFIG", "GET", *_CONFIGURED))
    except errors.StoreUnusable as error:
        raise errors.StoreUnusable(
            f"{client.settings.place} does not let its settings be read, so nothing can be said about "
            "durability. Allow the user CONFIG GET."
        ) from error
    return [
        (place, _told(info) | _configured(reply))
        for (place, info), (_, [reply]) in zip(told, configured, strict=True)
    ]


def _told(replies: list[bytes]) -> dict[str, str]:
    lines = (line for reply in replies for line in reply.decode().splitlines())
    return dict.fromkeys(_TOLD, "") | dict(line.split(":", 1) for line in lines if ":" in line)


def _configured(reply: list[bytes]) -> dict[str, str]:
    values = [value.decode() for value in reply]
    return dict(zip(values[::2], values[1::2], strict=True))


def _require_fit(place: str, shown: dict[str, str], settings: Settings) -> None:
    version = shown["valkey_version"]
    if not version:
        raise errors.StoreUnusable(
            f"{place} is not a Valkey server. Valkey {VERSION_MIN} or newer is needed."
        )
    if int(version.partition(".")[0]) < VERSION_MIN:
        raise errors.StoreUnusable(
            f"{place} runs Valkey {version}; {VERSION_MIN} or newer is needed. Upgrade the server."
        )
    if shown["server_mode"] == "cluster" and not settings.cluster:
        raise errors.StoreUnusable(
            f"{place} is part of a cluster. Use a URL that begins with valkey+cluster:// or valkeys+cluster://."
        )
    if shown["role"] != "master":
        raise errors.StoreUnreachable(f"{place} accepts no writes: it is a replica. Connect to the primary.")
    if int(shown["connected_slaves"]) < settings.replicas:
        raise errors.StoreUnusable(
            f"{place} has {shown['connected_slaves']} replicas, but commits are to wait for "
            f"{settings.replicas}. Connect more replicas, or wait for fewer."
        )
    if shown["maxmemory-policy"] != "noeviction":
        raise errors.StoreUnusable(
            f"{place} evicts keys when its memory is full "
            f"(maxmemory-policy={shown['maxmemory-policy']}). Set maxmemory-policy to noeviction."
        )


def _level_of(shown: dict[str, str]) -> str:
    """What a commit survives. Replicas are shown, but promise nothing more: they may lag behind."""
    if shown["appendonly"] != "yes":
        return "D0"
    return "D2" if shown["appendfsync"] == "always" else "D1"


async def prepare(client: Client, *, allow_clock_offset: bool) -> Shards:
    """Load the library, and make the store if it is not there. Returns the shards that it has.

    Raises:
        StoreUnusable: the store was made by a newer program, has another number of shards than asked
            for, or its clock was moved by a test.
        StoreError: a server refused.
    """
    settings = client.settings
    await client.load_library()
    home = Keys(settings.prefix, 0)
    wanted = settings.shards or (CLUSTER_SHARDS if settings.cluster else 1)
    made = [("HSETNX", home.state, "shards", wanted), ("HSETNX", home.state, "layout", LAYOUT)]
    await client.write(home.slot, *made)
    reading = ("HMGET", home.state, "layout", "shards", "clock_offset_ms")
    [[layout, shards, offset_ms]] = await client.read(home.slot, reading)
    _require_layout(int(layout), int(shards), settings)
    if int(offset_ms or 0) and not allow_clock_offset:
        raise errors.StoreUnusable(
            f"the clock of {settings.place} was set {int(offset_ms)} ms off by a test. "
            "Use a prefix that no test has touched."
        )
    return Shards(settings.prefix, int(shards))


def _require_layout(layout: int, shards: int, settings: Settings) -> None:
    if layout != LAYOUT:
        raise errors.StoreUnusable(
            f"{settings.place} has layout {layout}, but this program knows layout {LAYOUT}. "
            "Use the program that made it, or another prefix."
        )
    if settings.shards not in (None, shards):
        raise errors.StoreUnusable(
            f"{settings.place} was made with {shards} shards, but {settings.shards} are asked for. "
            "Leave ?shards= out, or use another prefix: the number cannot be changed."
        )


async def pending(settings: Settings) -> tuple[str, ...]:
    """What the server still lacks: the library of this program, unless it is there.

    Raises:
        StoreError: the server cannot be reached or refuses us.
    """
    client = Client(settings)
    client.open()
    try:
        return () if await client.has_library() else (f"functions {library().digest}",)
    finally:
        client.close()


async def migrate(settings: Settings) -> tuple[str, ...]:
    """Load the library of this program if the server lacks it. Others stay beside it.

    Raises:
        StoreError: the server cannot be reached or refuses us.
    """
    loaded = await pending(settings)
    client = Client(settings)
    client.open()
    try:
        await client.load_library()
    finally:
        client.close()
    return loaded

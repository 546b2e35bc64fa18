"""What an acknowledged commit survives on this server, and whether the server fits at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.stores.base import Durability
from flowfabric.stores.valkey.client import Client
from flowfabric.stores.valkey.library import library

if TYPE_CHECKING:
    from flowfabric.stores.valkey.client import Settings

LEVELS: Final = ("D0", "D1", "D2", "D3")
VERSION_MIN: Final = 8
LAYOUT: Final = 1
"""How the keys are laid out. A program refuses a store with a layout that it does not know."""

_CONFIGURED: Final = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")


async def attest(client: Client, required_level: str) -> Durability:
    """Read back the server's settings and name the durability level that they give.

    Raises:
        StoreUnusable: the server is no Valkey, too old, part of a cluster, evicts keys, has fewer
            replicas than asked for, or gives less than the required level.
        StoreUnreachable: the server is a replica.
    """
    settings = client.settings
    info = await _info(client)
    _require_fit(info, settings)
    configured = await _configuration(client)
    if configured["maxmemory-policy"] != "noeviction":
        raise errors.StoreUnusable(
            f"{settings.place} evicts keys when its memory is full "
            f"(maxmemory-policy={configured['maxmemory-policy']}). Set maxmemory-policy to noeviction."
        )
    level = _level_of(configured)
    if LEVELS.index(level) < LEVELS.index(required_level):
        raise errors.StoreUnusable(
            f"{settings.place} gives durability level {level}, but {required_level} is required "
            f"(appendonly={configured['appendonly']}, appendfsync={configured['appendfsync']}). "
            "Turn them up, or require less with ?durability=."
        )
    shown = {name: configured[name] for name in _CONFIGURED}
    shown |= {"server_version": info["valkey_version"], "replicas": info.get("connected_slaves", "0")}
    shown["replicas_awaited"] = str(settings.replicas)
    return Durability(level=level, store="valkey", settings=shown)


async def _info(client: Client) -> dict[str, str]:
    """What the server tells of itself."""
    replies = await client.read(("INFO", "server"), ("INFO", "replication"))
    lines = (line for reply in replies for line in reply.decode().splitlines())
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _require_fit(info: dict[str, str], settings: Settings) -> None:
    place = settings.place
    version = info.get("valkey_version")
    if version is None:
        raise errors.StoreUnusable(
            f"{place} is not a Valkey server. Valkey {VERSION_MIN} or newer is needed."
        )
    if int(version.partition(".")[0]) < VERSION_MIN:
        raise errors.StoreUnusable(
            f"{place} runs Valkey {version}; {VERSION_MIN} or newer is needed. Upgrade the server."
        )
    if info.get("server_mode") == "cluster":
        raise errors.StoreUnusable(
            f"{place} is part of a cluster, which is not supported. Use a server that is none."
        )
    if info.get("role") != "master":
        raise errors.StoreUnreachable(f"{place} accepts no writes: it is a replica. Connect to the primary.")
    if int(info.get("connected_slaves", "0")) < settings.replicas:
        raise errors.StoreUnusable(
            f"{place} has {info.get('connected_slaves', '0')} replicas, but commits are to wait for "
            f"{settings.replicas}. Connect more replicas, or wait for fewer."
        )


async def _configuration(client: Client) -> dict[str, str]:
    try:
        [reply] = await client.read(("CONFIG", "GET", *_CONFIGURED))
    except errors.StoreUnusable as error:
        raise errors.StoreUnusable(
            f"{client.settings.place} does not let its settings be read, so nothing can be said about "
            "durability. Allow the user CONFIG GET."
        ) from error
    values = [value.decode() for value in reply]
    return dict(zip(values[::2], values[1::2], strict=True))


def _level_of(configured: dict[str, str]) -> str:
    """What a commit survives. Replicas are shown, but promise nothing more: they may lag behind."""
    if configured["appendonly"] != "yes":
        return "D0"
    return "D2" if configured["appendfsync"] == "always" else "D1"


async def prepare(client: Client, state: str, *, allow_clock_offset: bool) -> None:
    """Load the library, and make the store if it is not there.

    Raises:
        StoreUnusable: the store was made by a newer program, or its clock was moved by a test.
        StoreError: the server refused.
    """
    await client.load_library()
    await client.write(("HSETNX", state, "layout", LAYOUT))
    [[layout, offset_ms]] = await client.read(("HMGET", state, "layout", "clock_offset_ms"))
    if int(layout) != LAYOUT:
        raise errors.StoreUnusable(
            f"{client.settings.place} has layout {int(layout)}, but this program knows layout {LAYOUT}. "
            "Use the program that made it, or another prefix."
        )
    if int(offset_ms or 0) and not allow_clock_offset:
        raise errors.StoreUnusable(
            f"the clock of {client.settings.place} was set {int(offset_ms)} ms off by a test. "
            "Use a prefix that no test has touched."
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

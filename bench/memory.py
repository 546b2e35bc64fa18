"""What an execution costs a Valkey server: bytes for each one that waits, is suspended, or has ended.

Also how many keys there are for it, and what the keys of each kind take.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from bench.growth import BATCH, claim, create, end, suspend
from bench.scene import Figure
from flowfabric import FlowFabric
from flowfabric.stores.valkey import ValkeyStore

COUNT = 2_000
SMALL = b"x" * 64
LARGE = bytes(range(256)) * 16


class Use(msgspec.Struct, frozen=True):
    """What a server uses."""

    bytes: int
    keys: int


async def measure(url: str) -> list[Figure]:
    """Bytes and keys for each execution in three situations, with small inputs and with 4 KiB."""
    found: list[Figure] = []
    for name, payload in (("64 B", SMALL), ("4 KiB", LARGE)):
        for situation in ("waiting", "suspended", "finished"):
            found += await _measure_one(f"{url}{len(found)}", situation, payload, name)
    return found


async def _measure_one(url: str, situation: str, payload: bytes, name: str) -> list[Figure]:
    app = FlowFabric(url)
    await app.start(scanners=False)
    try:
        before = await _use(app)
        for _ in range(COUNT // BATCH):
            await create(app, payload)
            if situation == "suspended":
                await suspend(app, await claim(app))
            elif situation == "finished":
                await end(app, await claim(app))
        after = await _use(app)
        kinds = await _by_kind(app)
    finally:
        await app.stop()
    note = ", ".join(f"{kind} {count / COUNT:,.0f}" for kind, count in kinds.most_common(6))
    per_execution = (after.bytes - before.bytes) / COUNT
    keys = (after.keys - before.keys) / COUNT
    return [
        Figure(name=f"{situation}, {name} of input", value=per_execution, unit="B", note=note),
        Figure(name=f"{situation}, {name} of input, keys", value=keys, unit=""),
    ]


def _store(app: FlowFabric) -> ValkeyStore:
    store = getattr(app.engine, "store", None)
    assert isinstance(store, ValkeyStore), "the memory of a Valkey server is measured"
    return store


async def _use(app: FlowFabric) -> Use:
    [(_, [info, keys])] = await _store(app)._client.read_everywhere(("INFO", "memory"), ("DBSIZE",))
    lines = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    return Use(int(lines["used_memory"]), keys)


async def _by_kind(app: FlowFabric) -> Counter[str]:
    """Bytes of all keys below the prefix, by what stands between its tag and the first colon."""
    store = _store(app)
    keys: list[bytes] = []
    cursor: bytes = b"0"
    while True:
        scan = ("SCAN", cursor, "MATCH", f"{{{store.settings.prefix}:*", "COUNT", 1_000)
        [[cursor, found]] = await store._client.read(0, scan)
        keys += found
        if cursor == b"0":
            break
    sizes = await store._client.read(0, *(("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys))
    kinds: Counter[str] = Counter()
    for key, size in zip(keys, sizes, strict=True):
        name = key.decode().partition("}")[2]
        kind, _, rest = name.partition(":")
        kinds[f"{kind}:{rest.partition('/')[0]}" if kind in ("record", "keys") else kind] += size
    return kinds

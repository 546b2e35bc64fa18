"""What a command costs this process: our own client against valkey-py, both on the same server.

Processor time is compared, because the server and the network take the same for both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import cast

from valkey.asyncio import Valkey

from bench.scene import Figure
from flowfabric.stores.valkey import ValkeyStore
from flowfabric.stores.valkey.client import Client
from flowfabric.urls import store_for

COMMANDS = 20_000
TOGETHER = 64
RUNS = 3
RATIO_MIN = 1.3
KEY, VALUE = "{bench}key", b"v" * 200

Run = Callable[[], Awaitable[None]]


async def measure(url: str) -> list[Figure]:
    """Processor time of a command, sent alone, by many tasks at once, and in a batch of one task."""
    settings = cast("ValkeyStore", store_for(url)).settings
    ours = Client(settings)
    ours.open()
    theirs = Valkey(unix_socket_path=settings.socket)
    try:
        await ours.write(0, ("SET", KEY, VALUE))
        found = []
        for name, own, other in (
            ("alone", _alone(ours), _alone_there(theirs)),
            (f"by {TOGETHER} tasks at once", _tasks(ours), _tasks_there(theirs)),
            (f"in batches of {TOGETHER}", _batch(ours), _batch_there(theirs)),
        ):
            found += await _compare(name, own, other)
        return found
    finally:
        ours.close()
        await theirs.aclose()


async def _compare(name: str, own: Run, other: Run) -> list[Figure]:
    """Both in turn, so that a noisy moment hits both."""
    times: dict[Run, list[float]] = {own: [], other: []}
    for run in (own, other) * RUNS:
        begun = time.process_time()
        await run()
        times[run].append((time.process_time() - begun) / COMMANDS * 1e6)
    us, their_us = median(times[own]), median(times[other])
    return [
        Figure(name=f"a command {name}", value=us, unit="us", note=f"valkey-py {their_us:,.1f} us"),
        Figure(name=f"valkey-py's against it, {name}", value=their_us / us, unit="x", floor=RATIO_MIN),
    ]


def _alone(client: Client) -> Run:
    async def run() -> None:
        for _ in range(COMMANDS):
            await client.read(0, ("GET", KEY))

    return run


def _alone_there(client: Valkey) -> Run:
    async def run() -> None:
        for _ in range(COMMANDS):
            await client.get(KEY)

    return run


def _tasks(client: Client) -> Run:
    async def one() -> None:
        for _ in range(COMMANDS // TOGETHER):
            await client.read(0, ("GET", KEY))

    async def run() -> None:
        await asyncio.gather(*(one() for _ in range(TOGETHER)))

    return run


def _tasks_there(client: Valkey) -> Run:
    async def one() -> None:
        for _ in range(COMMANDS // TOGETHER):
            await client.get(KEY)

    async def run() -> None:
        await asyncio.gather(*(one() for _ in range(TOGETHER)))

    return run


def _batch(client: Client) -> Run:
    commands = [("GET", KEY)] * TOGETHER

    async def run() -> None:
        for _ in range(COMMANDS // TOGETHER):
            await client.read(0, *commands)

    return run


def _batch_there(client: Valkey) -> Run:
    async def run() -> None:
        for _ in range(COMMANDS // TOGETHER):
            pipeline = client.pipeline(transaction=False)
            for _ in range(TOGETHER):
                pipeline.get(KEY)
            await pipeline.execute()

    return run

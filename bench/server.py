"""How many requests a second a real server answers, and what one costs it.

Submits and claims, one and a hundred in a request, over sixteen connections that stay open.
The client is a few lines over asyncio's streams that count on the server's good manners, because a
whole HTTP client would take more of this machine than the server does.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count, repeat
from typing import Any

from bench.scene import PAYLOAD, Figure, processor_s
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.leases import ClaimBatchArgs
from flowfabric.contracts.packed import MSGPACK, pack
from flowfabric.minting import new_execution_id

CONNECTIONS = 16
SINGLE = 3_000
MANY = 60
TOGETHER = 100
PATIENCE_S = 30.0


async def measure(url: str, *, single: int = SINGLE, many: int = MANY) -> list[Figure]:
    """Submit, then claim what was submitted; first one in a request, then a hundred."""
    async with serving(url) as (address, pid):
        client = Client(address, pid)
        await client.run("warming up", _nothings(), single // 10)
        return [
            *await client.run("nothing (server_time)", _nothings(), single),
            *await client.run("submit one", _submits(), single),
            *await client.run("claim one", _claims(1), single),
            *await client.run(f"submit {TOGETHER}", _submits_together(), many, TOGETHER),
            *await client.run(f"claim {TOGETHER}", _claims(TOGETHER), many, TOGETHER),
        ]


class Client:
    """Sends the same kind of request over some connections, as fast as they are answered."""

    def __init__(self, address: str, pid: int) -> None:
        self._address = address
        self._pid = pid

    async def run(
        self, name: str, requests: Iterator[tuple[str, bytes]], number: int, commands: int = 1
    ) -> list[Figure]:
        """So many requests, and how the server fared with them."""
        bodies = iter([next(requests) for _ in range(number)])
        begun, begun_cpu = time.perf_counter(), processor_s(self._pid)
        await asyncio.gather(*(self._send(bodies) for _ in range(CONNECTIONS)))
        rate = number / (time.perf_counter() - begun)
        cpu_us = (processor_s(self._pid) - begun_cpu) / number * 1e6
        note = f"{rate * commands:,.0f} commands/s" if commands > 1 else ""
        return [
            Figure(name=f"requests: {name}", value=rate, unit="1/s", note=note),
            Figure(name=f"the server's processor time: {name}", value=cpu_us, unit="us"),
        ]

    async def _send(self, bodies: Iterator[tuple[str, bytes]]) -> None:
        host, _, port = self._address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for path, body in bodies:
            writer.write(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {MSGPACK}\r\n"
                f"FlowFabric-Namespace: bench\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            )
            writer.write(body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.partition(b":")[2]))
        writer.close()


def _nothings() -> Iterator[tuple[str, bytes]]:
    return repeat(("/v1/commands/server_time", pack({}, MSGPACK)))


def _creation() -> CreateExecutionArgs:
    return CreateExecutionArgs(
        execution_id=new_execution_id(),
        namespace="bench",
        lane_id="default",
        execution_kind="echo",
        input_payload=PAYLOAD,
        priority=0,
        creator_identity="bench",
    )


def _submits() -> Iterator[tuple[str, bytes]]:
    return (("/v1/commands/create_execution", pack(_creation(), MSGPACK)) for _ in count())


def _submits_together() -> Iterator[tuple[str, bytes]]:
    def asked() -> dict[str, Any]:
        return {"operation": "create_execution", "command": _creation()}

    return (
        ("/v1/commands", pack({"commands": [asked() for _ in range(TOGETHER)]}, MSGPACK)) for _ in count()
    )


def _claims(limit: int) -> Iterator[tuple[str, bytes]]:
    command = ClaimBatchArgs(
        lanes=("default",), worker_id="w", worker_instance_id="bench", limit=limit, lease_ttl_ms=600_000
    )
    return repeat(("/v1/commands/claim_batch", pack(command, MSGPACK)))


@asynccontextmanager
async def serving(url: str):
    """A server process on a store. Yields where it listens, and its id."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "flowfabric", "server", "--url", url, "--listen", address, "--log-level", "warning"),
    )
    try:
        await _until(lambda: _accepts(address))
        yield address, process.pid
    finally:
        process.terminate()
        await process.wait()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True

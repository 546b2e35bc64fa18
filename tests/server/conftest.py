"""A server in this process: the real application over the real engine, without a socket."""

from collections.abc import AsyncIterator

import httpx
import pytest

from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs
from flowfabric.engine.engine import Engine
from flowfabric.server import ServerOptions, Service, make_app
from flowfabric.stores.memory import MemoryStore

SECRET = "5a" * 32
ID = "{fp:86}:0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22"
OTHER = "{fp:86}:1f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22"
EXECUTION = "/v1/executions/%7Bfp:86%7D:0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22"
CREATION = {
    "execution_id": ID,
    "namespace": "demo",
    "lane_id": "default",
    "execution_kind": "resize",
    "input_payload": [0, 123, 255],
    "priority": 5,
    "creator_identity": "tests",
    "tags": {"team.name": "media"},
    "partition_id": 0,
    "now": 1,
}


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine(MemoryStore()) as started:
        await started.execute(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex=SECRET))
        yield started


@pytest.fixture
def options() -> ServerOptions:
    return ServerOptions()


@pytest.fixture
def service(engine: Engine, options: ServerOptions) -> Service:
    return Service(engine, options)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=make_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as opened:
        yield opened
    service.close()

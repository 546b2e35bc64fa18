"""What is open to everybody, and what a server says of itself."""

import httpx
import pytest
from openapi_spec_validator import validate

from flowfabric import errors
from flowfabric.engine.engine import Engine
from flowfabric.server import ServerOptions, Service, make_app
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing.stores import FaultyStore


@pytest.mark.scenario("HTTP-001")
async def test_a_healthy_server_says_ok(client: httpx.AsyncClient) -> None:
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_a_server_without_its_store_is_not_healthy() -> None:
    class Gone(FaultyStore):
        async def now(self) -> int:
            raise errors.StoreUnreachable

    async with Engine(Gone(MemoryStore())) as engine:
        transport = httpx.ASGITransport(make_app(Service(engine, ServerOptions())))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answer = await client.get("/healthz")
    assert answer.status_code == 500
    assert answer.json()["retryable"] is True


async def test_a_server_that_ends_is_healthy_but_not_ready(
    client: httpx.AsyncClient, service: Service
) -> None:
    assert (await client.get("/readyz")).status_code == 200
    service.close()
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/healthz")).status_code == 200


async def test_a_server_says_what_it_is_and_who_asks(client: httpx.AsyncClient) -> None:
    told = (await client.get("/v1/server")).json()
    assert (told["store"], told["durability"]) == ("memory", "D0")
    assert (told["name"], told["namespace"], told["roles"]) == ("anonymous", None, ["admin"])


@pytest.mark.slow
async def test_the_document_keeps_the_rules_of_openapi(client: httpx.AsyncClient) -> None:
    validate((await client.get("/openapi.json")).json())


async def test_every_answer_tells_browsers_to_take_it_as_it_is(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/nothing"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"

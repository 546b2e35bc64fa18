"""What is open to everybody, and what a server says of itself."""

import asyncio
import time

import httpx
import pytest
from msgspec.structs import replace
from openapi_spec_validator import validate

from flowfabric import errors
from flowfabric.engine.engine import Engine
from flowfabric.engine.scanners import Scanners
from flowfabric.server import ServerOptions, Service, make_app
from flowfabric.stores.base import Durability
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


async def test_a_server_whose_store_is_gone_is_not_ready() -> None:
    class Gone(FaultyStore):
        async def now(self) -> int:
            raise errors.StoreUnreachable

    async with Engine(Gone(MemoryStore())) as engine:
        answer = await asked(Service(engine, ServerOptions()), "/readyz")
    assert (answer.status_code, answer.json()["retryable"]) == (503, True)


async def test_a_server_whose_store_keeps_less_than_it_did_is_not_ready() -> None:
    class Weakened(FaultyStore):
        level = "D2"

        async def open(self) -> Durability:
            return replace(await self.inner.open(), level=self.level)

        async def attest(self) -> Durability:
            return replace(await self.inner.attest(), level=self.level)

    store = Weakened(MemoryStore())
    async with Engine(store) as engine:
        service = Service(engine, ServerOptions())
        assert (await asked(service, "/readyz")).status_code == 200
        store.level = "D1"
        await engine.attest()
        answer = await asked(service, "/readyz")
        assert (answer.status_code, "survive less" in answer.text) == (503, True)
        store.level = "D2"
        await engine.attest()
        assert (await asked(service, "/readyz")).status_code == 200


async def test_a_server_whose_duties_have_stalled_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Engine(MemoryStore()) as engine:
        scanners = Scanners(engine)
        scanners.start()
        service = Service(engine, ServerOptions(), scanners=scanners)
        assert (await asked(service, "/readyz")).status_code == 200
        begun = time.monotonic()
        monkeypatch.setattr("flowfabric.engine.scanners.loop.time.monotonic", lambda: begun + 61)
        answer = await asked(service, "/readyz")
        monkeypatch.undo()
        assert answer.status_code == 503
        assert "delayed_promoter" in answer.text
        assert "retention_trimmer" not in answer.text  # it looks once a minute
        [task] = [task for task in scanners._tasks if task.get_name() == "flowfabric unblock"]
        task.cancel()
        await asyncio.wait([task])
        assert "unblock" in (await asked(service, "/readyz")).text
        assert (await asked(service, "/healthz")).status_code == 200
        await scanners.stop()


async def asked(service: Service, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(make_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.get(path)


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


async def test_one_audit_is_made_at_a_time(client: httpx.AsyncClient, service: Service) -> None:
    report = (await client.post("/v1/admin/audit")).json()
    assert report["violations"] == []
    with service.audit_permit():
        async with service.rotation_permit():
            pass
        second = await client.post("/v1/admin/audit")
    assert second.status_code == 429
    assert second.json()["retryable"]
    assert (await client.post("/v1/admin/audit")).status_code == 200

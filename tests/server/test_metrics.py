"""`GET /metrics`, and the names that requests get."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from flowfabric.engine.engine import Engine
from flowfabric.engine.scanners.duties import DUTIES
from flowfabric.observability.exposing import Exposed
from flowfabric.observability.metrics import Metrics
from flowfabric.server import Role, ServerOptions, Service, entry_for, make_app
from flowfabric.stores.memory import MemoryStore
from tests.server.conftest import CREATION, EXECUTION

TOKEN = "ff_0123456789012345678901234567890123456789012"


@asynccontextmanager
async def measured(options: ServerOptions) -> AsyncIterator[tuple[httpx.AsyncClient, Metrics]]:
    metrics = Metrics()
    async with Engine(MemoryStore(), layers=[metrics.layer], observer=metrics) as engine:
        service = Service(engine, options, watched=Exposed(metrics, engine, DUTIES))
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client, metrics


@pytest.mark.scenario("HTTP-010")
async def test_metrics_are_text_that_needs_no_token() -> None:
    tokens = (entry_for(TOKEN, "t", (Role.ADMIN,), None),)
    async with measured(ServerOptions(metrics=True, tokens=tokens)) as (client, _):
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE ff_http_requests_total counter" in answer.text
    assert "ff_queue_depth" in answer.text or "ff_store_up 1.0" in answer.text


@pytest.mark.scenario("HTTP-010")
async def test_without_the_option_there_are_none(client: httpx.AsyncClient) -> None:
    assert (await client.get("/metrics")).status_code == 404
    async with measured(ServerOptions()) as (other, _):
        assert (await other.get("/metrics")).status_code == 404


async def test_requests_are_counted_by_template_method_and_status() -> None:
    async with measured(ServerOptions(metrics=True)) as (client, metrics):
        await client.post("/v1/executions", json=CREATION)
        await client.get(EXECUTION)
        await client.get("/no/such/path")
        await client.request("BREW", EXECUTION)
    text = metrics.render().decode()
    assert 'ff_http_requests_total{method="POST",path="/v1/executions",status="201"} 1.0' in text
    assert 'ff_http_requests_total{method="GET",path="/v1/executions/{id}",status="200"} 1.0' in text
    assert 'ff_http_requests_total{method="GET",path="unknown",status="404"} 1.0' in text
    assert 'ff_http_requests_total{method="OTHER",path="unknown",status="405"} 1.0' in text
    assert 'ff_operation_total{operation="create_execution",outcome="ok"} 1.0' in text


async def test_requests_that_are_turned_away_are_counted_too() -> None:
    tokens = (entry_for(TOKEN, "t", (Role.ADMIN,), None),)
    async with measured(ServerOptions(metrics=True, tokens=tokens)) as (client, metrics):
        await client.get(EXECUTION)
    assert metrics.registry.get_sample_value(
        "ff_http_requests_total", {"method": "GET", "path": "unknown", "status": "401"}
    )


async def test_no_id_and_no_secret_is_in_the_metrics() -> None:
    tokens = (entry_for(TOKEN, "t", (Role.ADMIN,), None),)
    async with measured(ServerOptions(metrics=True, tokens=tokens)) as (client, _):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        await client.post("/v1/executions", json=CREATION, headers=headers)
        await client.get(EXECUTION, headers=headers)
        text = (await client.get("/metrics")).text
    assert TOKEN not in text
    assert str(CREATION["execution_id"])[7:] not in text


async def test_a_request_keeps_its_own_id_and_gets_one_otherwise(client: httpx.AsyncClient) -> None:
    own = await client.get("/healthz", headers={"X-Request-Id": "abc-1"})
    assert own.headers["x-request-id"] == "abc-1"
    ids = {(await client.get("/healthz")).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    long = await client.get("/healthz", headers={"X-Request-Id": "a" * 129})
    assert len(long.headers["x-request-id"]) == 16

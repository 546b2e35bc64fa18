"""Metrics at an address of their own."""

import asyncio
import socket

import httpx
import pytest

from flowfabric.cli.exits import UsageError
from flowfabric.cli.measuring import exposing, make_metrics
from flowfabric.engine.engine import Engine
from flowfabric.engine.scanners.duties import DUTIES
from flowfabric.observability.exposing import Exposed, exposed_at
from flowfabric.stores.memory import MemoryStore


async def test_metrics_are_told_at_their_address_with_the_gauges_of_the_store() -> None:
    metrics = make_metrics()
    async with Engine(MemoryStore(), observer=metrics) as engine:
        with exposed_at("127.0.0.1:0", Exposed(metrics, engine, DUTIES)) as port:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                answer = await client.get("/metrics")
                assert (await client.get("/")).status_code == 404
                assert (await client.post("/metrics")).status_code == 404
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "ff_store_up 1.0" in answer.text
    assert "process_cpu_seconds_total" in answer.text


async def test_several_scrapes_at_once_are_answered() -> None:
    metrics = make_metrics()
    async with Engine(MemoryStore(), observer=metrics) as engine:
        with exposed_at("127.0.0.1:0", Exposed(metrics, engine)) as port:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                answers = await asyncio.gather(*(client.get("/metrics") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}


async def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(UsageError, match=address),
            exposing(make_metrics(), None, DUTIES, address),
        ):
            raise AssertionError

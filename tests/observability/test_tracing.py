"""Traces: who asked, who did it, and that they are one story."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from flowfabric import FlowFabric, Run, Task, errors
from flowfabric.contracts.executions import TRACE_TAGS, ChangePriorityArgs
from flowfabric.contracts.leases import RenewLeaseArgs
from flowfabric.contracts.reads import DescribeExecutionArgs, ServerTimeArgs
from flowfabric.engine.engine import Engine
from flowfabric.observability.tracing import EXPORT_S, Tracing, export_timeout_s
from flowfabric.remote import HttpEngine
from flowfabric.server import ServerOptions, Service, make_app
from flowfabric.stores.memory import MemoryStore
from tests.worker.stage import working

ID = "{fp:7}:0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22"


class Stage:
    """Where spans end up."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider)
        self.tracer = provider.get_tracer("tests")

    def all(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [found] = self.all(name)
        return found


@pytest.fixture
def stage() -> Stage:
    return Stage()


def trace_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id


async def tags_of(run: Run[Any]) -> dict[str, str]:
    found = await run._engine.execute(DescribeExecutionArgs(execution_id=run.execution_id))
    assert found is not None
    return found.tags


@pytest.mark.scenario("BOOT-011")
async def test_a_command_has_a_span_with_what_it_is_about(stage: Stage) -> None:
    async with FlowFabric(store=MemoryStore(), tracing=stage.tracing) as app:
        with pytest.raises(errors.FlowFabricError):
            await app.engine.execute(ChangePriorityArgs(execution_id=ID, new_priority=1), namespace="demo")
        await app.engine.execute(ServerTimeArgs())
    span = stage.one("ff.change_priority")
    assert span.attributes is not None
    assert dict(span.attributes) == {
        "execution_id": ID,
        "namespace": "demo",
        "backend": "memory",
        "error.type": "execution_not_found",
    }
    assert span.status.status_code is StatusCode.ERROR
    assert stage.one("ff.server_time").status.status_code is StatusCode.UNSET


async def test_a_span_names_the_lease_that_fences_its_command(stage: Stage) -> None:
    async with FlowFabric(store=MemoryStore(), tracing=stage.tracing) as app, working(app) as worker:

        @app.handler
        async def hold(task: Task) -> None:
            """Do nothing."""

        run = await app.submit(hold)
        await run.result()
        assert worker.instance_id
    attributes = stage.one("ff.complete_execution").attributes
    ran = stage.one("ff.run hold").attributes
    assert attributes is not None
    assert ran is not None
    for name in ("lease_id", "lease_epoch", "attempt_id", "attempt_index", "execution_id"):
        assert attributes[name] == ran[name]
    assert ran["worker_instance_id"] == worker.instance_id
    assert ran["lane"] == "default"


async def test_the_trace_of_a_submitter_goes_on_in_the_handler(stage: Stage) -> None:
    app = FlowFabric(store=MemoryStore(), tracing=stage.tracing)
    seen: list[int] = []

    @app.handler
    async def inner(task: Task) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)

    @app.handler
    async def outer(task: Task) -> None:
        await app.submit(inner)

    async with app:
        with stage.tracer.start_as_current_span("request") as request:
            run = await app.submit(outer)
        async with working(app):
            await run.result()
            while not stage.all("ff.run inner"):
                await asyncio.sleep(0.005)
    expected = request.get_span_context()
    ran = stage.one("ff.run outer")
    assert trace_of(ran) == expected.trace_id
    assert ran.parent is not None
    assert ran.parent.span_id == expected.span_id
    assert ran.kind is SpanKind.CONSUMER
    assert seen == [expected.trace_id]
    assert trace_of(stage.one("ff.run inner")) == expected.trace_id


async def test_a_handler_that_fails_says_so_without_its_words(stage: Stage) -> None:
    app = FlowFabric(store=MemoryStore(), tracing=stage.tracing)

    @app.handler
    async def break_down(task: Task) -> None:
        raise ValueError("CANARY")

    async with app, working(app):
        run = await app.submit(break_down, {"secret": "CANARY"})
        with pytest.raises(Exception, match="CANARY"):
            await run.result()
    span = stage.one("ff.run break_down")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "handler_error")
    assert "CANARY" not in "".join(one.to_json() for one in stage.exporter.get_finished_spans())


async def test_a_submission_outside_a_trace_carries_none(stage: Stage) -> None:
    async with FlowFabric(store=MemoryStore(), tracing=stage.tracing) as app:
        run = await app.submit("resize")
        assert await tags_of(run) == {}


async def test_the_same_key_from_another_trace_is_the_same_submission(stage: Stage) -> None:
    async with FlowFabric(store=MemoryStore(), tracing=stage.tracing) as app:
        runs = []
        for name in ("first", "again"):
            with stage.tracer.start_as_current_span(name):
                runs.append(await app.submit("resize", 1, idempotency_key="key", tags={"team.name": "media"}))
        assert runs[0].execution_id == runs[1].execution_id
        tags = await tags_of(runs[0])
        assert set(tags) == {"team.name", TRACE_TAGS["traceparent"]}
        with stage.tracer.start_as_current_span("other"), pytest.raises(errors.IdempotencyConflict):
            await app.submit("resize", 1, idempotency_key="key", tags={"team.name": "other"})


async def test_a_submitter_with_all_tags_of_its_own_keeps_them(stage: Stage) -> None:
    tags = {f"team.t{number}": "x" for number in range(64)}
    async with FlowFabric(store=MemoryStore(), tracing=stage.tracing) as app:
        with stage.tracer.start_as_current_span("request"):
            run = await app.submit("resize", tags=tags)
        assert await tags_of(run) == tags


async def test_the_tags_of_a_stranger_break_no_handler(stage: Stage) -> None:
    app = FlowFabric(store=MemoryStore(), tracing=stage.tracing)

    @app.handler
    async def hold(task: Task) -> str:
        return "done"

    async with app, working(app):
        run = await app.submit(hold, tags={TRACE_TAGS["traceparent"]: "no trace at all"})
        assert await run.result() == "done"


def test_a_collector_that_is_gone_does_not_hold_up_the_end_for_long() -> None:
    assert export_timeout_s({}) == EXPORT_S
    assert EXPORT_S <= 2
    assert export_timeout_s({"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "7"}) is None


# HTTP


@asynccontextmanager
async def remote(stage: Stage) -> AsyncIterator[tuple[HttpEngine, httpx.AsyncClient]]:
    async with Engine(MemoryStore(), layers=[stage.tracing.layer]) as engine:
        service = Service(engine, ServerOptions(), tracing=stage.tracing)
        transport = httpx.ASGITransport(make_app(service))
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
            HttpEngine("http://server", transport=transport, tracing=stage.tracing) as far,
        ):
            yield far, client
            service.close()


async def test_a_request_goes_on_in_the_trace_of_its_client(stage: Stage) -> None:
    async with remote(stage) as (_, client):
        header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await client.get(
            "/v1/executions/%7Bfp:7%7D:0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22?secret=CANARY",
            headers={"traceparent": header, "X-Request-Id": "r-7"},
        )
    span = stage.one("GET /v1/executions/{id}")
    assert trace_of(span) == int("0af7651916cd43dd8448eb211c80319c", 16)
    assert span.kind is SpanKind.SERVER
    assert span.attributes is not None
    assert dict(span.attributes) == {
        "http.request.method": "GET",
        "http.route": "/v1/executions/{id}",
        "http.response.status_code": 404,
        "request_id": "r-7",
    }
    assert "CANARY" not in "".join(one.to_json() for one in stage.exporter.get_finished_spans())


async def test_a_command_is_one_trace_from_the_client_to_the_store(stage: Stage) -> None:
    async with remote(stage) as (far, _):
        with stage.tracer.start_as_current_span("mine") as mine:
            await far.execute(ServerTimeArgs())
    expected = mine.get_span_context().trace_id
    asked = [span for span in stage.all("POST /v1/commands") if span.kind is SpanKind.CLIENT]
    served = [span for span in stage.all("POST /v1/commands") if span.kind is SpanKind.SERVER]
    assert [trace_of(span) for span in (*asked, *served)] == [expected, expected]
    assert expected in {trace_of(span) for span in stage.all("ff.server_time")}


async def test_callers_who_share_a_request_are_linked_to_it(stage: Stage) -> None:
    async with remote(stage) as (far, _):

        async def ask(name: str) -> int:
            with stage.tracer.start_as_current_span(name) as span:
                await far.execute(ServerTimeArgs())
                return span.get_span_context().trace_id

        traces = await asyncio.gather(*(ask(f"caller {number}") for number in range(3)))
    [asked] = [span for span in stage.all("POST /v1/commands") if span.kind is SpanKind.CLIENT]
    assert [trace_of(asked), *(link.context.trace_id for link in asked.links)] == list(traces)


async def test_an_unknown_lease_is_a_command_that_failed_and_no_more(stage: Stage) -> None:
    async with remote(stage) as (far, _):
        with pytest.raises(errors.FlowFabricError):
            await far.execute(RenewLeaseArgs(execution_id=ID, attempt_index=0, lease_ttl_ms=1_000))
    assert stage.exporter.get_finished_spans()

"""Secrets go through everything that a server does, and come out of nothing that it tells."""

import io
import logging
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs
from flowfabric.contracts.leases import ClaimBatchArgs
from flowfabric.contracts.suspensions import CreatePendingWaitpointArgs
from flowfabric.engine.engine import Engine
from flowfabric.engine.scanners.duties import DUTIES
from flowfabric.minting import new_uuid4
from flowfabric.observability.exposing import Exposed
from flowfabric.observability.logs import FieldsFilter
from flowfabric.observability.metrics import Metrics
from flowfabric.observability.tracing import Tracing
from flowfabric.server import Service, make_app
from flowfabric.server.settings import read_settings
from flowfabric.stores.memory import MemoryStore
from tests.server.conftest import CREATION, EXECUTION, ID

API_TOKEN = "CANARY-api-token-of-the-operators"
STRANGERS_TOKEN = "CANARY-token-of-a-stranger"
FIRST_SECRET = "ca0a12" * 10 + "aaaa"
NEXT_SECRET = "ca0a12" * 10 + "bbbb"
PAYLOAD = b"CANARY-payload"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """All that we log, as it was said: nothing is struck out here."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(FieldsFilter())
    handler.setFormatter(logging.Formatter("%(message)s %(fields)s %(exc_info)s"))
    ours = logging.getLogger("flowfabric")
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield stream
    ours.removeHandler(handler)
    ours.setLevel(before)


async def test_no_secret_is_told(lines: io.StringIO) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing, metrics = Tracing(provider), Metrics()
    settings = read_settings({}, {"FF_API_TOKEN": API_TOKEN, "FF_METRICS": "on", "FF_ACCESS_LOG": "on"}, None)
    answers: list[httpx.Response] = []
    layers = [metrics.layer, tracing.layer]
    async with Engine(MemoryStore(), layers=layers, observer=metrics) as engine:
        exposed = Exposed(metrics, engine, DUTIES)
        service = Service(engine, settings.options, watched=exposed, tracing=tracing)
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            client.headers["Authorization"] = f"Bearer {API_TOKEN}"
            waitpoint_id, token = await prepare(engine, client)
            tampered = token[:-1] + ("1" if token[-1] == "0" else "0")
            answers += [await answer(client, waitpoint_id, given) for given in (tampered, token, token)]
            for secret in (NEXT_SECRET, FIRST_SECRET, "CANARY no digits"):
                body = {"new_kid": "k2", "new_secret_hex": secret}
                answers.append(await client.post("/v1/admin/rotate-waitpoint-secret", json=body))
            headers = {"Authorization": f"Bearer {STRANGERS_TOKEN}"}
            answers += [
                await client.get("/v1/server", headers=headers),
                await client.get(f"/v1/{API_TOKEN}"),
                await client.get("/v1/executions?partition=CANARY"),
                await client.post("/v1/executions", content=b'{"input_payload": "CANARY'),
            ]
        rendered = (await exposed.render()).decode()
    statuses = [one.status_code for one in answers]
    assert statuses[:4] == [400, 200, 200, 200], [one.text for one in answers[:4]]
    assert statuses[6:8] == [401, 404]
    spans = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert "ff.deliver_signal" in spans
    assert "ff_operation_total" in rendered
    told = {
        "logs": lines.getvalue(),
        "metrics": rendered,
        "traces": spans,
        "errors": "".join(one.text for one in answers if one.is_error),
        "settings": repr(settings),
    }
    mac = token.partition(":")[2]
    for place, text in told.items():
        for canary in ("CANARY", mac, mac[:-1], FIRST_SECRET, NEXT_SECRET):
            assert canary not in text, place


async def prepare(engine: Engine, client: httpx.AsyncClient) -> tuple[str, str]:
    """An execution that is claimed and has an early waitpoint. Returns that, and its token."""
    await engine.execute(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex=FIRST_SECRET))
    assert (await client.post("/v1/executions", json={**CREATION, "input_payload": list(PAYLOAD)})).is_success
    claim = ClaimBatchArgs(lanes=("default",), worker_id="w", worker_instance_id="i", lease_ttl_ms=60_000)
    [work] = (await engine.execute(claim)).claims
    assert work.input_payload == PAYLOAD
    pending = await engine.execute(
        CreatePendingWaitpointArgs(
            execution_id=ID,
            lease_id=work.fence.lease_id,
            lease_epoch=work.fence.lease_epoch,
            attempt_id=work.fence.attempt_id,
            attempt_index=0,
            waitpoint_id=new_uuid4(),
            waitpoint_key="wpk:early",
            expires_in_ms=60_000,
        )
    )
    return pending.waitpoint_id, pending.waitpoint_token.value


async def answer(client: httpx.AsyncClient, waitpoint_id: str, token: str) -> httpx.Response:
    """Signal the waitpoint, as whoever has a token does."""
    body = {
        "execution_id": ID,
        "waitpoint_id": waitpoint_id,
        "signal_id": new_uuid4(),
        "signal_name": "approve",
        "signal_category": "human",
        "source_type": "human",
        "source_identity": "ana",
        "payload": list(PAYLOAD),
        "payload_encoding": "bytes",
        "idempotency_key": "once",
        "waitpoint_token": token,
        "target_scope": "waitpoint",
        "now": 1,
    }
    return await client.post(f"{EXECUTION}/signal", json=body)

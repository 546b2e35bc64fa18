"""Looking at everything with plain GET requests."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from flowfabric.contracts.events import EventsPage
from flowfabric.contracts.flows import FlowStatus
from flowfabric.contracts.packed import JSON, unpack
from flowfabric.contracts.retention import TrimRetentionArgs
from flowfabric.contracts.workers import RegisterWorkerArgs
from flowfabric.engine.engine import Engine
from flowfabric.minting import new_flow_id, new_uuid4
from flowfabric.server.openapi import openapi_document
from flowfabric.server.routes import ROUTES
from tests.server.conftest import EXECUTION, ID
from tests.server.test_executions import claim, complete, create
from tests.server.test_flows import FLOW, add_member, open_flow
from tests.server.test_live import emit
from tests.server.test_waiting import signal, suspend, token_of

VIEW = EXECUTION.replace("/v1/", "/v1/view/")
NOBODY = "%7Bfp:86%7D:3f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22"
NO_FLOW = "3f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c23"


async def seen(client: httpx.AsyncClient, path: str, **query: Any) -> Any:
    answer = await client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_document_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(msgspec.json.decode(msgspec.json.encode(openapi_document()))).validate()


def test_every_row_is_in_the_document_once_under_a_name_of_its_own() -> None:
    document = openapi_document()
    names = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(names) == len(set(names))
    for row in ROUTES:
        if row.operations is None:
            assert row.method.lower() in document["paths"][row.path]


async def test_executions_are_listed_and_filtered(client: httpx.AsyncClient) -> None:
    await create(client)
    [row] = (await seen(client, "/v1/view/executions", public_state="waiting"))["executions"]
    assert (row["execution_id"], row["execution_kind"]) == (ID, "resize")
    assert (await seen(client, "/v1/view/executions", public_state="failed"))["executions"] == []
    first = await seen(client, "/v1/view/executions", limit="1")
    assert len(first["executions"]) == 1


async def test_one_execution_is_seen_from_all_sides(client: httpx.AsyncClient, engine: Engine) -> None:
    waitpoint_id = await suspend(client, engine)
    assert (await seen(client, VIEW))["public_state"] == "suspended"
    assert (await seen(client, f"{VIEW}/explanation"))["execution_id"] == ID
    read = await seen(client, f"{VIEW}/input")
    assert base64.b64decode(read["input_payload"]) == bytes([0, 123, 255])
    assert read["tags"] == {"team.name": "media"}
    [attempt] = (await seen(client, f"{VIEW}/attempts"))["attempts"]
    assert attempt["attempt_index"] == 0
    [entry] = (await seen(client, f"{VIEW}/waitpoints"))["entries"]
    assert entry["waitpoint_id"] == waitpoint_id
    await signal(client, waitpoint_id, await token_of(client, waitpoint_id))
    [sent] = (await seen(client, f"{VIEW}/signals", with_payloads="true"))["signals"]
    assert (sent["signal_name"], base64.b64decode(sent["payload"])) == ("approve", b'"ok"')
    events = await seen(client, f"{VIEW}/events", families="signal,lease", limit="1")
    assert [event["type"] for event in events["events"]] == ["Lease"]
    assert events["next_cursor"]
    assert (await seen(client, f"{VIEW}/journal"))["entries"] == []


async def test_a_flow_is_seen_with_its_members_and_edges(client: httpx.AsyncClient) -> None:
    await open_flow(client)
    (upstream, _), (downstream, _) = await add_member(client), await add_member(client)
    edge_id = new_uuid4()
    ends = {"upstream_execution_id": upstream, "downstream_execution_id": downstream}
    edge = {"flow_id": FLOW, "edge_id": edge_id, **ends, "expected_graph_revision": 2, "now": 1}
    await client.post(f"/v1/flows/{FLOW}/edges", json=edge)
    flow = f"/v1/view/flows/{FLOW}"
    assert (await seen(client, flow))["node_count"] == 2
    page = await seen(client, f"{flow}/members", limit="1")
    assert ([row["execution_id"] for row in page["members"]], page["next_cursor"]) == ([upstream], 0)
    assert (await seen(client, f"{flow}/edges/{edge_id}"))["upstream_execution_id"] == upstream
    before = await seen(client, f"{flow}/members/{downstream}/edges")
    assert [one["edge_id"] for one in before["edges"]] == [edge_id]
    assert (await seen(client, f"{flow}/members/{downstream}/edges", direction="out"))["edges"] == []
    listed = (await seen(client, "/v1/view/flows"))["flows"]
    assert [(row["flow_id"], row["status"], row["node_count"]) for row in listed] == [
        (FLOW, FlowStatus.ACTIVE, 2)
    ]
    elsewhere = await client.get("/v1/view/flows", headers={"FlowFabric-Namespace": "other"})
    assert elsewhere.json()["flows"] == []


async def test_flows_of_all_partitions_are_listed_page_by_page(client: httpx.AsyncClient) -> None:
    flows = {new_flow_id() for _ in range(7)}
    for number, flow_id in enumerate(flows):
        namespace = "demo" if number % 2 else "other"
        body = {"flow_id": flow_id, "flow_kind": "x", "namespace": namespace, "now": 1}
        await client.post("/v1/flows", json=body)
    for headers, expected in (({}, 7), ({"FlowFabric-Namespace": "demo"}, 3)):
        found: list[str] = []
        query: dict[str, str] = {"limit": "2"}
        while True:
            page = (await client.get("/v1/view/flows", params=query, headers=headers)).json()
            found += [row["flow_id"] for row in page["flows"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        assert len(found) == len(set(found)) == expected
        assert set(found) <= flows


async def test_lanes_workers_quotas_and_keys_are_seen(client: httpx.AsyncClient, engine: Engine) -> None:
    await create(client)
    assert (await seen(client, "/v1/view/lanes"))["lanes"] == ["default"]
    there = RegisterWorkerArgs(worker_id="w", worker_instance_id="w-1", namespace="demo", lanes=("default",))
    await engine.execute(there)
    [worker] = (await seen(client, "/v1/view/workers", lane_id="default"))["workers"]
    assert worker["worker_instance_id"] == "w-1"
    quota = new_uuid4()
    body = {
        "quota_policy_id": quota,
        "window_seconds": 60,
        "max_requests_per_window": 1,
        "max_concurrent": 1,
        "now": 1,
    }
    demo = {"FlowFabric-Namespace": "demo"}
    await client.post("/v1/quotas", json=body, headers=demo)
    found = (await client.get(f"/v1/view/quotas/{quota}", headers=demo)).json()
    assert found["quota_policy_id"] == quota
    keys = await seen(client, "/v1/view/keys")
    assert keys["current_kid"] == "k1"
    assert "secret" not in str(keys)


async def test_waiting_and_lapsed_work_is_listed(client: httpx.AsyncClient, engine: Engine) -> None:
    await suspend(client, engine)
    assert [row["execution_id"] for row in (await seen(client, "/v1/view/suspended"))["entries"]] == [ID]
    assert (await seen(client, "/v1/view/expired-leases"))["entries"] == []


async def test_the_log_is_read_from_its_beginning_page_by_page(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    await create(client)
    await complete(engine, None)
    await client.post(f"{EXECUTION}/replay")
    page = await seen(client, "/v1/view/events", families="operator,completion", limit="1")
    assert [event["type"] for event in page["events"]] == ["Completion"]
    query = {"families": "operator,completion", "after": page["next_cursor"]}
    page = await seen(client, "/v1/view/events", **query)
    assert [event["name"] for event in page["events"]] == ["replayed"]
    end = await seen(client, "/v1/view/events", after=page["next_cursor"])
    assert end["events"] == []


async def test_an_act_on_all_namespaces_at_once_is_read_as_the_document_says(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    await engine.execute(TrimRetentionArgs(retention_ms=86_400_000), actor="amir")
    answer = await client.get("/v1/view/events", params={"families": "operator", "after": "start"})
    event = unpack(answer.content, EventsPage, JSON).events[-1]
    assert (event.namespace, event.execution_id) == ("", "")


async def test_the_summary_of_a_stream_is_404_until_there_is_one(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    await create(client)
    await emit(engine, await claim(engine), b"x")
    answer = await client.get(f"{VIEW}/attempts/0/summary")
    assert answer.status_code == 404


async def test_msgpack_is_answered_to_whoever_asks_for_it(client: httpx.AsyncClient) -> None:
    await create(client)
    answer = await client.get(f"{VIEW}/input", headers={"Accept": "application/msgpack"})
    assert msgspec.msgpack.decode(answer.content)["input_payload"] == bytes([0, 123, 255])
    assert answer.headers["content-type"] == "application/msgpack"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/v1/view/executions/{NOBODY}", 404),
        (f"/v1/view/executions/{NOBODY}/input", 404),
        (f"/v1/view/executions/{NOBODY}/attempts", 404),
        (f"/v1/view/flows/{NO_FLOW}", 404),
        (f"/v1/view/flows/{NO_FLOW}/members", 404),
        ("/v1/view/executions/nonsense", 400),
        ("/v1/view/flows/nonsense", 400),
        ("/v1/view/executions?limit=x", 400),
        ("/v1/view/executions?public_state=odd", 400),
        (f"/v1/view/flows/{FLOW}/members/{NOBODY}/edges?direction=up", 400),
        ("/v1/view/events?families=odd", 400),
    ],
)
async def test_what_is_not_there_or_makes_no_sense_is_refused(
    client: httpx.AsyncClient, path: str, status: int
) -> None:
    answer = await client.get(path)
    assert answer.status_code == status
    assert answer.json()["error"]


async def test_another_namespace_sees_nothing(client: httpx.AsyncClient) -> None:
    await create(client)
    other = {"FlowFabric-Namespace": "other"}
    for path in (VIEW, f"{VIEW}/input", f"{VIEW}/attempts", f"{VIEW}/events"):
        assert (await client.get(path, headers=other)).status_code == 404, path
    assert (await client.get("/v1/view/executions", headers=other)).json()["executions"] == []

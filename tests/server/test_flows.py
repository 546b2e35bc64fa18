"""The routes of flows."""

from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from flowfabric.engine.engine import Engine
from flowfabric.minting import new_execution_id, new_flow_id, new_uuid4
from flowfabric.server import ServerOptions, Service, make_app
from tests.postgres import server
from tests.server.conftest import CREATION

FLOW = new_flow_id()


async def open_flow(client: httpx.AsyncClient) -> httpx.Response:
    body = {"flow_id": FLOW, "flow_kind": "media", "namespace": "demo", "now": 1}
    return await client.post("/v1/flows", json=body)


async def add_member(client: httpx.AsyncClient) -> tuple[str, httpx.Response]:
    execution_id = new_execution_id(flow_id=FLOW)
    await client.post("/v1/executions", json={**CREATION, "execution_id": execution_id})
    body = {"flow_id": FLOW, "execution_id": execution_id, "now": 1}
    return execution_id, await client.post(f"/v1/flows/{FLOW}/members", json=body)


@pytest.mark.scenario("HTTP-003")
async def test_a_flow_is_opened_filled_and_cancelled(client: httpx.AsyncClient) -> None:
    first, again = await open_flow(client), await open_flow(client)
    assert (first.status_code, first.json()) == (201, {"Created": {"flow_id": FLOW}})
    assert (again.status_code, again.json()) == (200, {"AlreadySatisfied": {"flow_id": FLOW}})
    member, added = await add_member(client)
    assert (added.status_code, added.json()) == (
        201,
        {"Added": {"execution_id": member, "new_node_count": 1}},
    )
    repeated = await client.post(
        f"/v1/flows/{FLOW}/members", json={"flow_id": FLOW, "execution_id": member, "now": 1}
    )
    assert repeated.status_code == 200
    assert repeated.json() == {"AlreadyMember": {"execution_id": member, "node_count": 1}}
    body = {"flow_id": FLOW, "reason": "x", "cancellation_policy": "cancel_all", "now": 1}
    cancelled = await client.post(f"/v1/flows/{FLOW}/cancel?wait=true", json=body)
    assert cancelled.json() == {
        "Cancelled": {"cancellation_policy": "cancel_all", "member_execution_ids": [member]}
    }


async def test_edges_are_staged_by_revision_and_applied(client: httpx.AsyncClient) -> None:
    await open_flow(client)
    (upstream, _), (downstream, _) = await add_member(client), await add_member(client)
    ends = {"upstream_execution_id": upstream, "downstream_execution_id": downstream}
    edge = {"flow_id": FLOW, "edge_id": new_uuid4(), **ends, "now": 1}
    stale = await client.post(f"/v1/flows/{FLOW}/edges", json={**edge, "expected_graph_revision": 1})
    assert stale.status_code == 409
    assert stale.json()["kind"] == "contention"
    staged = await client.post(f"/v1/flows/{FLOW}/edges", json={**edge, "expected_graph_revision": 2})
    assert staged.status_code == 201
    assert staged.json() == {"Staged": {"edge_id": edge["edge_id"], "new_graph_revision": 3}}
    apply = {**edge, "graph_revision": 3}
    applied = await client.post(f"/v1/flows/{FLOW}/edges/apply", json=apply)
    assert applied.json() == {"Applied": {"unsatisfied_count": 1}}
    again = await client.post(f"/v1/flows/{FLOW}/edges/apply", json=apply)
    assert again.json() == "AlreadyApplied"


async def test_an_edge_to_itself_is_a_conflict(client: httpx.AsyncClient) -> None:
    await open_flow(client)
    member, _ = await add_member(client)
    ends = {"upstream_execution_id": member, "downstream_execution_id": member}
    edge = {"flow_id": FLOW, "edge_id": new_uuid4(), **ends, "expected_graph_revision": 1, "now": 1}
    answer = await client.post(f"/v1/flows/{FLOW}/edges", json=edge)
    assert (answer.status_code, answer.json()["kind"]) == (409, "self_referencing_edge")


async def test_an_unknown_flow_is_not_found(client: httpx.AsyncClient) -> None:
    body = {"reason": "x", "cancellation_policy": "cancel_all", "now": 1}
    answer = await client.post(f"/v1/flows/{new_flow_id()}/cancel", json=body)
    assert answer.status_code == 404
    assert answer.json()["error"] == "not found: flow"


async def test_a_malformed_flow_id_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/flows/nonsense/cancel", json={})).status_code == 400


@pytest.mark.scenario("HTTP-011")
async def test_a_flow_of_three_runs_over_postgres_too(tmp_path: Path) -> None:
    async with Engine(server().store(tmp_path)) as engine:
        transport = httpx.ASGITransport(make_app(Service(engine, ServerOptions())))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            await open_flow(client)
            members = [(await add_member(client))[0] for _ in range(3)]
            for revision, (upstream, downstream) in enumerate(pairwise(members), 3):
                edge = {
                    "flow_id": FLOW,
                    "edge_id": new_uuid4(),
                    "upstream_execution_id": upstream,
                    "downstream_execution_id": downstream,
                    "now": 1,
                }
                staged = await client.post(
                    f"/v1/flows/{FLOW}/edges", json={**edge, "expected_graph_revision": revision}
                )
                assert staged.json()["Staged"]["new_graph_revision"] == revision + 1
                await client.post(
                    f"/v1/flows/{FLOW}/edges/apply", json={**edge, "graph_revision": revision + 1}
                )
            states = [(await client.get(f"/v1/executions/{member}/state")).json() for member in members]
    assert states == ["waiting", "waiting_children", "waiting_children"]

"""Submitting and waiting with nothing but HTTP."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import pytest

from flowfabric.contracts.events import FROM_START, Family, TailEventsArgs
from flowfabric.contracts.executions import CompleteExecutionArgs
from flowfabric.contracts.leases import ClaimBatchArgs
from flowfabric.contracts.reads import ReadExecutionContextArgs
from flowfabric.engine.engine import Engine
from flowfabric.server import Service


async def finish(engine: Engine, result: bytes, encoding: str | None = "json") -> None:
    args = ClaimBatchArgs(lanes=("default",), worker_id="w", worker_instance_id="w-1", lease_ttl_ms=30_000)
    [work] = (await engine.execute(args)).claims
    await engine.execute(
        CompleteExecutionArgs(
            execution_id=work.execution_id,
            fence=work.fence,
            attempt_index=work.attempt_index,
            source="lease_holder",
            result_payload=result,
            result_encoding=encoding,
        )
    )


async def submit(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/runs", json={"kind": "greet", **fields})


async def test_a_kind_and_an_input_are_enough(client: httpx.AsyncClient, engine: Engine) -> None:
    answer = await submit(client, input={"name": "ana"})
    run = answer.json()
    assert (answer.status_code, run["public_state"], run["duplicate"]) == (201, "waiting", False)
    context = await engine.execute(ReadExecutionContextArgs(execution_id=run["execution_id"]))
    assert (context.input_payload, context.execution_kind) == (b'{"name":"ana"}', "greet")


async def test_the_answer_can_wait_for_the_end(client: httpx.AsyncClient, engine: Engine) -> None:
    waiting = asyncio.create_task(client.post("/v1/runs?wait_ms=30000", json={"kind": "greet"}))
    log = TailEventsArgs(families=frozenset({Family.EXECUTION}), after=FROM_START, block_ms=10_000)
    await engine.execute(log)
    await finish(engine, b'{"said":"hello"}')
    async with asyncio.timeout(20):
        run = (await waiting).json()
    assert (run["public_state"], run["result"]) == ("completed", {"said": "hello"})
    again = (await client.get(f"/v1/runs/{run['execution_id']}?wait_ms=30000")).json()
    assert again == run


async def test_a_result_that_is_no_json_comes_in_base64(client: httpx.AsyncClient, engine: Engine) -> None:
    run = (await submit(client)).json()
    await finish(engine, b"\x00\xff", "bytes")
    found = (await client.get(f"/v1/runs/{run['execution_id']}")).json()
    assert (found["result"], base64.b64decode(found["result_base64"])) == (None, b"\x00\xff")


async def test_bytes_are_submitted_in_base64(client: httpx.AsyncClient, engine: Engine) -> None:
    run = (await submit(client, input_base64=base64.b64encode(b"\x00\xff").decode())).json()
    context = await engine.execute(ReadExecutionContextArgs(execution_id=run["execution_id"]))
    assert context.input_payload == b"\x00\xff"


async def test_the_same_key_gives_the_same_run(client: httpx.AsyncClient) -> None:
    first, again = await submit(client, idempotency_key="k"), await submit(client, idempotency_key="k")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["duplicate"]
    assert again.json()["execution_id"] == first.json()["execution_id"]
    other = await submit(client, idempotency_key="k", input=1)
    assert other.status_code == 409


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": ""},
        {"input": 1, "input_base64": "AA=="},
        {"colour": "red"},
        {"lane": "x" * 65},
        {"policy": {"nonsense": 1}},
        {"tags": {"team.name": 1}},
        {"delay_ms": "soon"},
    ],
    ids=str,
)
async def test_what_makes_no_sense_is_refused_and_nothing_is_submitted(
    client: httpx.AsyncClient, wrong: dict[str, Any]
) -> None:
    answer = await submit(client, **wrong)
    assert answer.status_code == 400, answer.text
    assert (await client.get("/v1/view/executions")).json()["executions"] == []


async def test_many_are_submitted_with_an_answer_each(client: httpx.AsyncClient) -> None:
    runs = [{"kind": "a", "idempotency_key": "k"}, {"kind": "b", "lane": "closed"}, {"kind": "c"}]
    lane = {"namespace": "default", "lane_id": "closed", "state": "disabled"}
    await client.post("/v1/commands/set_lane_state", json=lane)
    answers = (await client.post("/v1/runs/batch", json={"runs": runs})).json()["answers"]
    assert [answer["status"] for answer in answers] == [201, 409, 201]
    assert answers[1]["problem"]["code"] == "lane_closed"
    again = (await client.post("/v1/runs/batch", json={"runs": runs[:1]})).json()["answers"]
    assert again == [{"status": 200, "execution_id": answers[0]["execution_id"], "duplicate": True}]


async def test_too_many_are_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/runs/batch", json={"runs": [{"kind": "a"}] * 1_001})
    assert answer.status_code == 400


async def test_a_server_that_ends_answers_with_what_was_submitted(
    client: httpx.AsyncClient, service: Service
) -> None:
    waiting = asyncio.create_task(client.post("/v1/runs?wait_ms=30000", json={"kind": "greet"}))
    async with asyncio.timeout(20):
        while not (await service.engine.store.last_event()):
            await asyncio.sleep(0)
        service.close()
        answer = await waiting
    assert (answer.status_code, answer.json()["public_state"]) == (201, "waiting")


GRAPH: dict[str, Any] = {
    "kind": "order",
    "members": {
        "charge": {"kind": "charge_card", "input": 7},
        "pack": {"kind": "pack"},
        "ship": {"kind": "ship", "after": ["charge", "pack"]},
        "mail": {"kind": "mail", "after": {"any_of": ["charge", "pack"]}},
    },
}


async def test_a_graph_is_submitted_in_one_request(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/graphs", json={**GRAPH, "idempotency_key": "g"})
    graph = answer.json()
    assert (answer.status_code, set(graph["members"])) == (201, set(GRAPH["members"]))
    flow = (await client.get(f"/v1/view/flows/{graph['flow_id']}")).json()
    assert (flow["node_count"], flow["edge_count"]) == (4, 4)
    ship = (await client.get(f"/v1/runs/{graph['members']['ship']}")).json()
    assert ship["public_state"] == "waiting_children"
    again = await client.post("/v1/graphs", json={**GRAPH, "idempotency_key": "g"})
    assert (again.status_code, again.json()) == (200, {**graph, "duplicate": True})


async def test_a_graph_can_be_validated_only(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/graphs?validate=1", json=GRAPH)
    assert (answer.status_code, answer.json()["valid"]) == (200, True)
    assert (await client.get("/v1/view/flows")).json()["flows"] == []


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"a": {"kind": "x", "after": "b"}, "b": {"kind": "x", "after": "a"}},
        {"a": {"kind": "x", "after": "nobody"}},
        {"a": {"kind": "x", "colour": "red"}},
        {"a": {"kind": "x"}, "b": {"kind": "x", "after": {"quorum": 2}}},
        {"a": {"kind": "x", "delay": "soon"}},
    ],
    ids=str,
)
async def test_a_graph_that_makes_no_sense_is_refused_either_way(
    client: httpx.AsyncClient, members: dict[str, Any]
) -> None:
    for path in ("/v1/graphs", "/v1/graphs?validate=1"):
        answer = await client.post(path, json={"kind": "order", "members": members})
        assert answer.status_code == 400, answer.text
    assert (await client.get("/v1/view/flows")).json()["flows"] == []

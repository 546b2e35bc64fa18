"""The routes of executions, byte for byte where clients rely on it."""

import httpx
import pytest

from flowfabric.contracts.executions import CompleteExecutionArgs
from flowfabric.contracts.leases import ClaimBatchArgs, ClaimedWork
from flowfabric.engine.engine import Engine
from tests.server.conftest import CREATION, EXECUTION, ID, OTHER


async def create(client: httpx.AsyncClient, **fields: object) -> httpx.Response:
    return await client.post("/v1/executions", json={**CREATION, **fields})


async def claim(engine: Engine) -> ClaimedWork:
    args = ClaimBatchArgs(lanes=("default",), worker_id="w", worker_instance_id="w-1", lease_ttl_ms=30_000)
    [work] = (await engine.execute(args, namespace="demo")).claims
    return work


async def complete(engine: Engine, result: bytes | None) -> None:
    work = await claim(engine)
    await engine.execute(
        CompleteExecutionArgs(
            execution_id=work.execution_id,
            fence=work.fence,
            attempt_index=work.attempt_index,
            source="lease_holder",
            result_payload=result,
        )
    )


@pytest.mark.scenario("HTTP-002")
async def test_a_creation_answers_201_and_its_repetition_200(client: httpx.AsyncClient) -> None:
    first, second = await create(client), await create(client)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == {"Created": {"execution_id": ID, "public_state": "waiting"}}
    assert second.json() == {"Duplicate": {"execution_id": ID}}


async def test_an_execution_is_read_in_full(client: httpx.AsyncClient) -> None:
    await create(client)
    found = (await client.get(EXECUTION)).json()
    assert found["namespace"] == "demo"
    assert found["priority"] == 5
    assert found["created_at"].isdigit()
    assert "started_at" not in found
    assert found["flow_id"] is None
    assert found["blocking_detail"] == ""
    assert found["state_vector"]["eligibility_state"] == "eligible_now"


async def test_an_unknown_execution_is_not_found(client: httpx.AsyncClient) -> None:
    for path in ("", "/state"):
        answer = await client.get(f"{EXECUTION}{path}")
        assert answer.status_code == 404
        assert answer.json()["error"] == f"execution not found: {ID}"


async def test_a_malformed_id_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/executions/nonsense")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("invalid execution_id")


async def test_the_state_is_one_bare_word(client: httpx.AsyncClient) -> None:
    await create(client)
    assert (await client.get(f"{EXECUTION}/state")).content == b'"waiting"'


@pytest.mark.scenario("HTTP-007")
async def test_a_result_comes_as_the_bytes_that_were_stored(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    await create(client)
    missing = await client.get(f"{EXECUTION}/result")
    assert missing.status_code == 404
    assert missing.json() == {"error": f"execution result not found: {ID}"}
    await complete(engine, b"\x00\xff{")
    found = await client.get(f"{EXECUTION}/result")
    assert found.content == b"\x00\xff{"
    assert found.headers["content-type"] == "application/octet-stream"


async def test_a_page_of_ids_has_a_cursor_only_when_there_is_more(client: httpx.AsyncClient) -> None:
    await create(client)
    await create(client, execution_id=OTHER)
    first = (await client.get("/v1/executions?partition=86&limit=1")).json()
    assert first == {"executions": [ID], "next_cursor": ID}
    second = await client.get("/v1/executions", params={"partition": 86, "cursor": first["next_cursor"]})
    assert second.json() == {"executions": [OTHER], "next_cursor": None}


@pytest.mark.parametrize(
    "query", ["", "partition=x", "partition=1&cursor=nonsense", "partition=70000", "partition=1&limit=-1"]
)
async def test_a_list_with_a_bad_query_is_refused(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/v1/executions?{query}")).status_code == 400


@pytest.mark.scenario("HTTP-002")
async def test_cancelling_ends_the_execution(client: httpx.AsyncClient) -> None:
    await create(client)
    answer = await client.post(f"{EXECUTION}/cancel", json={"execution_id": ID, "reason": "x", "now": 1})
    assert answer.status_code == 200
    assert answer.json()["Cancelled"]["public_state"] == "cancelled"
    assert (await client.get(f"{EXECUTION}/state")).json() == "cancelled"


async def test_a_body_that_names_another_execution_changes_nothing(client: httpx.AsyncClient) -> None:
    await create(client)
    answer = await client.post(f"{EXECUTION}/cancel", json={"execution_id": OTHER, "reason": "x", "now": 1})
    assert answer.status_code == 400
    assert answer.json() == {"error": "path execution_id does not match body execution_id"}
    assert (await client.get(f"{EXECUTION}/state")).json() == "waiting"


@pytest.mark.scenario("LEASE-019")
async def test_a_cancel_with_a_stale_fence_is_refused(client: httpx.AsyncClient, engine: Engine) -> None:
    await create(client)
    fence = (await claim(engine)).fence
    body = {"reason": "x", "source": "lease_holder", "attempt_id": fence.attempt_id, "now": 1}
    stale = {**body, "lease_id": fence.lease_id, "lease_epoch": fence.lease_epoch + 1}
    refused = await client.post(f"{EXECUTION}/cancel", json=stale)
    assert refused.status_code == 409
    assert refused.json()["code"] == "stale_lease"
    assert (await client.get(f"{EXECUTION}/state")).json() == "active"
    holder = {**body, "lease_id": fence.lease_id, "lease_epoch": fence.lease_epoch}
    assert (await client.post(f"{EXECUTION}/cancel", json=holder)).status_code == 200


async def test_the_priority_of_waiting_work_changes(client: httpx.AsyncClient) -> None:
    await create(client)
    answer = await client.put(f"{EXECUTION}/priority", json={"new_priority": 500})
    assert answer.json() == {"Changed": {"execution_id": ID}}
    assert (await client.get(EXECUTION)).json()["priority"] == 500


async def test_only_what_has_ended_is_replayed(client: httpx.AsyncClient, engine: Engine) -> None:
    await create(client)
    refused = await client.post(f"{EXECUTION}/replay")
    assert refused.status_code == 409
    assert refused.json()["kind"] == "execution_not_terminal"
    assert refused.json()["retryable"] is False
    await complete(engine, None)
    assert (await client.post(f"{EXECUTION}/replay")).json() == {"Replayed": {"public_state": "waiting"}}


async def test_revoking_answers_with_strings(client: httpx.AsyncClient, engine: Engine) -> None:
    await create(client)
    work = await claim(engine)
    answer = await client.post(f"{EXECUTION}/revoke-lease")
    assert answer.json() == {"Revoked": {"lease_id": work.fence.lease_id, "lease_epoch": "1"}}


async def test_a_reclaim_is_tagged_by_status(client: httpx.AsyncClient, engine: Engine) -> None:
    await create(client)
    await claim(engine)
    body = {"worker_id": "w2", "worker_instance_id": "w2-1", "lane_id": "default", "grant_ttl_ms": 1000}
    held = (await client.post(f"{EXECUTION}/reclaim", json=body)).json()
    assert held["status"] == "not_reclaimable"
    await client.post(f"{EXECUTION}/revoke-lease")
    granted = (await client.post(f"{EXECUTION}/reclaim", json=body)).json()
    assert granted["status"] == "granted"
    assert granted["partition_key"] == "{fp:86}"
    assert granted["lane_id"] == "default"


@pytest.mark.parametrize("ttl", [0, 60_001])
async def test_a_grant_lives_a_minute_at_most(client: httpx.AsyncClient, ttl: int) -> None:
    body = {"worker_id": "w2", "worker_instance_id": "i", "lane_id": "default", "grant_ttl_ms": ttl}
    for path in (f"{EXECUTION}/reclaim", "/v1/workers/w2/claim"):
        answer = await client.post(path, json=body)
        assert answer.status_code == 400
        assert answer.json() == {"error": "grant_ttl_ms must be in 1..=60000"}


async def test_a_worker_is_granted_work_or_told_that_there_is_none(client: httpx.AsyncClient) -> None:
    body = {"worker_instance_id": "i", "lane_id": "default", "grant_ttl_ms": 5000}
    headers = {"FlowFabric-Namespace": "demo"}
    none = await client.post("/v1/workers/w1/claim", json=body, headers=headers)
    assert (none.status_code, none.content) == (204, b"")
    await create(client)
    granted = await client.post("/v1/workers/w1/claim", json=body, headers=headers)
    assert granted.json()["execution_id"] == ID
    assert granted.json()["partition_key"] == "{fp:86}"


@pytest.mark.parametrize("worker", ["a%20b", "a%0Ab", "x" * 257])
async def test_a_worker_id_is_one_word(client: httpx.AsyncClient, worker: str) -> None:
    body = {"worker_instance_id": "i", "lane_id": "default", "grant_ttl_ms": 5000}
    assert (await client.post(f"/v1/workers/{worker}/claim", json=body)).status_code == 400


async def test_unknown_fields_are_ignored(client: httpx.AsyncClient) -> None:
    assert (await create(client, colour="blue")).status_code == 201


async def test_null_is_no_default(client: httpx.AsyncClient) -> None:
    answer = await create(client, tags=None)
    assert answer.status_code == 422
    assert answer.json()["error"] == "invalid JSON: Unprocessable Entity"
    assert "tags" in answer.json()["detail"]


async def test_a_body_that_is_no_json_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    for body in (b"{", b"[" * 100_000, b'{"a": 1e999999}', b"\xff", b'"\\ud800"'):
        answer = await client.post("/v1/executions", content=body, headers=headers)
        assert answer.status_code in (400, 422), body[:20]
    assert (await client.post("/v1/executions", content=b"{}")).status_code == 415


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_beyond_the_limit_is_not_read(client: httpx.AsyncClient, declared: bool) -> None:
    body = b" " * (64 * 1024 + 1)

    async def pieces():
        yield body

    answer = await client.post(
        f"{EXECUTION}/cancel",
        content=body if declared else pieces(),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 413
    assert answer.json() == {
        "error": "payload_too_large",
        "limit_bytes": 65_536,
        "route": "/v1/executions/{id}/cancel",
    }


async def test_unknown_paths_and_verbs_get_empty_answers(client: httpx.AsyncClient) -> None:
    unknown, verb = await client.get("/v1/nothing"), await client.delete("/v1/executions")
    assert (unknown.status_code, unknown.content) == (404, b"")
    assert (verb.status_code, verb.content) == (405, b"")
    assert set(verb.headers["allow"].split(", ")) >= {"GET"}

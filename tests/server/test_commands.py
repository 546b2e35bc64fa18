"""Every operation over HTTP, one at a time and many at once."""

import asyncio
import base64
from typing import Any

import httpx
import msgspec
import pytest

from flowfabric.contracts.packed import JSON, MSGPACK
from flowfabric.engine.engine import Engine
from flowfabric.server import Role, ServerOptions, Service, entry_for
from flowfabric.server.openapi import openapi_document
from flowfabric.server.routes.commands import operations
from tests.server.conftest import CREATION, ID

COMMAND = {**CREATION, "input_payload": base64.b64encode(b"\x00{").decode()}
CLAIM = {"lanes": ["default"], "worker_id": "w", "worker_instance_id": "w-1", "lease_ttl_ms": 30_000}
DEMO = {"FlowFabric-Namespace": "demo"}


async def ask(client: httpx.AsyncClient, operation: str, **command: Any) -> httpx.Response:
    return await client.post(f"/v1/commands/{operation}", json=command, headers=DEMO)


async def test_a_command_in_json_has_its_bytes_in_base64(client: httpx.AsyncClient) -> None:
    created = await ask(client, "create_execution", **COMMAND)
    assert created.json() == {"type": "Created", "execution_id": ID, "public_state": "waiting"}
    context = await ask(client, "read_execution_context", execution_id=ID)
    assert base64.b64decode(context.json()["input_payload"]) == b"\x00{"


async def test_a_command_in_msgpack_is_answered_in_msgpack(client: httpx.AsyncClient) -> None:
    body = msgspec.msgpack.encode({**CREATION, "input_payload": b"\x00\xff"})
    answer = await client.post(
        "/v1/commands/create_execution", content=body, headers={"Content-Type": MSGPACK}
    )
    assert answer.headers["content-type"] == MSGPACK
    assert msgspec.msgpack.decode(answer.content)["type"] == "Created"


async def test_a_worker_needs_nothing_but_http(client: httpx.AsyncClient) -> None:
    await ask(client, "create_execution", **COMMAND)
    [work] = (await client.post("/v1/claims", json=CLAIM, headers=DEMO)).json()["claims"]
    held = {"execution_id": ID, "attempt_index": work["attempt_index"]}
    held["fence"] = {name: work[name] for name in ("lease_id", "lease_epoch", "attempt_id")}
    renewed = await ask(client, "renew_lease", **held, lease_ttl_ms=30_000)
    assert renewed.json()["type"] == "Renewed"
    done = {"source": "lease_holder", "result_payload": base64.b64encode(b"ok").decode()}
    assert (await ask(client, "complete_execution", **held, **done)).json()["type"] == "Completed"
    result = await ask(client, "get_execution_result", execution_id=ID)
    assert base64.b64decode(result.json()) == b"ok"


async def test_a_repeated_request_id_gets_the_first_answer(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "r-1", **DEMO}
    await ask(client, "create_execution", **COMMAND)
    body = {"execution_id": ID, "new_priority": 7}
    first = await client.post("/v1/commands/change_priority", json=body, headers=headers)
    again = await client.post(
        "/v1/commands/change_priority", json={**body, "new_priority": 9}, headers=headers
    )
    assert first.json() == again.json()
    info = await ask(client, "read_execution_info", execution_id=ID)
    assert info.json()["priority"] == 7


async def test_many_commands_have_an_answer_each(client: httpx.AsyncClient) -> None:
    commands = [
        {"operation": "create_execution", "command": COMMAND},
        {"operation": "read_execution_state", "command": {"execution_id": ID}},
        {"operation": "replay_execution", "command": {"execution_id": ID}},
        {"operation": "create_execution", "command": {"execution_id": 5}},
        {"operation": "no_such_thing", "command": {}},
    ]
    answer = await client.post("/v1/commands", json={"commands": commands}, headers=DEMO)
    created, _state, replayed, wrong, unknown = answer.json()["answers"]
    assert created["outcome"]["type"] == "Created"
    assert (replayed["status"], replayed["problem"]["code"]) == (409, "execution_not_terminal")
    assert (wrong["status"], unknown["status"]) == (400, 400)


async def test_a_command_that_breaks_leaves_the_answers_of_the_others(
    client: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def carry_out_many(asked: list[Any]) -> list[Any]:
        return ["first", ZeroDivisionError("a secret of ours")]

    monkeypatch.setattr(engine, "carry_out_many", carry_out_many)
    commands = [{"operation": "server_time", "command": {}}] * 2
    answer = await client.post("/v1/commands", json={"commands": commands})
    first, second = answer.json()["answers"]
    assert first["outcome"] == "first"
    assert (second["status"], second["problem"]["error"]) == (500, "internal error")
    assert "secret" not in answer.text


async def test_too_many_commands_are_refused(client: httpx.AsyncClient) -> None:
    commands = [{"operation": "server_time", "command": {}}] * 257
    answer = await client.post("/v1/commands", json={"commands": commands})
    assert answer.status_code == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xc1", b"nul"])
@pytest.mark.parametrize("form", [JSON, MSGPACK])
async def test_a_body_that_is_no_command_is_refused(
    client: httpx.AsyncClient, body: bytes, form: str
) -> None:
    answer = await client.post("/v1/commands/create_execution", content=body, headers={"Content-Type": form})
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_input"


async def test_an_unknown_operation_or_form_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/commands/no_such_thing", json={})).status_code == 404
    plain = await client.post(
        "/v1/commands/server_time", content=b"{}", headers={"Content-Type": "text/plain"}
    )
    assert plain.status_code == 415


async def test_a_claim_waits_for_work(client: httpx.AsyncClient) -> None:
    waiting = asyncio.create_task(client.post("/v1/claims?wait_ms=20000", json=CLAIM, headers=DEMO))
    await asyncio.sleep(0)
    await ask(client, "create_execution", **COMMAND)
    assert len((await waiting).json()["claims"]) == 1


async def test_a_claim_does_not_outlast_the_server(client: httpx.AsyncClient, service: Service) -> None:
    waiting = asyncio.create_task(client.post("/v1/claims?wait_ms=20000", json=CLAIM, headers=DEMO))
    while not service.waiting:
        await asyncio.sleep(0)
    service.close()
    assert (await waiting).status_code == 503


async def test_a_change_wakes_whoever_waits_for_one(client: httpx.AsyncClient) -> None:
    mark = (await client.get("/v1/changes")).json()["mark"]
    assert (await client.get("/v1/changes", params={"after": mark})).json()["mark"] == mark
    waiting = asyncio.create_task(client.get("/v1/changes", params={"after": mark, "wait_ms": 20_000}))
    await asyncio.sleep(0)
    await ask(client, "create_execution", **COMMAND)
    assert (await waiting).json()["mark"] != mark


class TestWorkerTokens:
    """A worker acts on what it holds and on nothing else."""

    @pytest.fixture
    def options(self) -> ServerOptions:
        return ServerOptions(tokens=(entry_for("w", "worker", (Role.WORKER,), "demo"),))

    @pytest.mark.parametrize("operation", ["complete_execution", "fail_execution", "delay_execution"])
    async def test_without_a_fence_it_is_refused(
        self, client: httpx.AsyncClient, engine: Engine, operation: str
    ) -> None:
        body = {
            "execution_id": ID,
            "attempt_index": 0,
            "source": "operator_override",
            "failure_reason": "x",
            "failure_category": "x",
            "delay_until": 1,
        }
        answer = await client.post(
            f"/v1/commands/{operation}", json=body, headers={"Authorization": "Bearer w"}
        )
        assert answer.status_code == 403
        assert answer.json()["code"] == "unauthorized"


async def test_the_document_describes_every_operation_and_route(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document == msgspec.json.decode(msgspec.json.encode(openapi_document()))
    assert {f"/v1/commands/{name}" for name in operations()} < set(document["paths"])
    assert document["openapi"].startswith("3.1")

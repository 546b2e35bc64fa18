"""The routes that clients of other makes rely on, byte for byte, over memory and over a file.

Every expectation is the whole answer: a field too many is a difference like one too few.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs
from flowfabric.contracts.streams import AppendFrameArgs
from flowfabric.contracts.suspensions import CreatePendingWaitpointArgs
from flowfabric.engine.engine import Engine
from flowfabric.minting import new_execution_id, new_flow_id, new_signal_id, new_uuid4
from flowfabric.server import ServerOptions, Service, make_app
from tests.engine.lost_calls import STORES
from tests.server.conftest import CREATION, EXECUTION, ID, SECRET
from tests.server.test_executions import claim, complete, create
from tests.server.test_flows import FLOW, add_member, open_flow
from tests.server.test_waiting import signal, suspend, token_of

JSON = "application/json"
DEMO = {"FlowFabric-Namespace": "demo"}


@pytest.fixture(params=list(STORES))
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    async with Engine(STORES[request.param](tmp_path)) as started:
        await started.execute(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex=SECRET))
        yield started


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    service = Service(engine, ServerOptions())
    transport = httpx.ASGITransport(app=make_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as opened:
        yield opened
    service.close()


class Like:
    """Equal to every string or number of a form, where a value cannot be known beforehand."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def __eq__(self, other: object) -> bool:
        return type(other) in (str, int) and re.fullmatch(self._pattern, json.dumps(other)) is not None

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<like {self._pattern}>"


NUMBER = Like(r"\d+")
MS = Like(r"\d{13}")
MS_TEXT = Like(r'"\d{13}"')
UUID = Like(r'"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"')
TOKEN = Like(r'"k1:[0-9a-f]{64}"')
TEXT = Like(r'".+"')


def said(answer: httpx.Response, status: int, body: Any) -> None:
    """The answer has this status and this whole JSON body."""
    assert (answer.status_code, answer.json()) == (status, body)
    assert answer.headers["content-type"] == JSON


def refused(answer: httpx.Response, status: int, error: str, **more: Any) -> None:
    """The answer is the envelope: ``kind`` and ``retryable`` are there or are left out."""
    found = answer.json()
    envelope = {name: found[name] for name in ("error", "kind", "retryable") if name in found}
    assert (answer.status_code, envelope) == (status, {"error": error, **more})
    assert answer.headers["content-type"] == JSON


def plain(answer: httpx.Response) -> None:
    """The answer is a 400 in plain text."""
    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text


CONTENTION = {"kind": "contention", "retryable": True}


class TestHealth:
    async def test_e1(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/healthz")
        said(answer, 200, {"status": "ok"})
        assert answer.content == b'{"status":"ok"}'


class TestList:
    async def test_e3(self, client: httpx.AsyncClient) -> None:
        said(await client.get("/v1/executions?partition=86"), 200, {"executions": [], "next_cursor": None})
        await create(client)
        full = {"executions": [ID], "next_cursor": None}
        said(await client.get("/v1/executions?partition=86&cursor="), 200, full)
        said(await client.get("/v1/executions?partition=86&limit=99999"), 200, full)
        none: dict[str, Any] = {"executions": [], "next_cursor": None}
        said(await client.get("/v1/executions?partition=86&limit=0"), 200, none)
        said(await client.get("/v1/executions", params={"partition": 86, "cursor": ID}), 200, none)

    @pytest.mark.parametrize(
        "query", ["", "partition=", "partition=x", "partition=70000", "partition=1&limit=x", "partition=-1"]
    )
    async def test_a_query_that_cannot_be_read(self, client: httpx.AsyncClient, query: str) -> None:
        plain(await client.get(f"/v1/executions?{query}"))

    async def test_a_cursor_that_is_no_id(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/executions?partition=1&cursor=nonsense")
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("invalid cursor: ")


class TestCreate:
    async def test_e4(self, client: httpx.AsyncClient) -> None:
        said(await create(client), 201, {"Created": {"execution_id": ID, "public_state": "waiting"}})
        said(await create(client), 200, {"Duplicate": {"execution_id": ID}})

    async def test_delayed(self, client: httpx.AsyncClient) -> None:
        answer = await create(client, delay_until=9_000_000_000_000)
        said(answer, 201, {"Created": {"execution_id": ID, "public_state": "delayed"}})

    async def test_an_idempotency_key_belongs_to_the_namespace(self, client: httpx.AsyncClient) -> None:
        await create(client, idempotency_key="once")
        elsewhere = new_execution_id(flow_id=FLOW)
        again = await create(client, execution_id=elsewhere, idempotency_key="once")
        said(again, 200, {"Duplicate": {"execution_id": ID}})

    async def test_an_upper_case_id_is_answered_in_lower_case(self, client: httpx.AsyncClient) -> None:
        answer = await create(
            client, execution_id="{fp:86}:" + ID.partition(":")[2].partition(":")[2].upper()
        )
        said(answer, 201, {"Created": {"execution_id": ID, "public_state": "waiting"}})

    @pytest.mark.parametrize("left_out", ["partition_id", "now", "tags"])
    async def test_what_may_be_left_out(self, client: httpx.AsyncClient, left_out: str) -> None:
        body = {name: value for name, value in CREATION.items() if name != left_out}
        assert (await client.post("/v1/executions", json=body)).status_code == 201

    @pytest.mark.parametrize("nullable", ["payload_encoding", "idempotency_key", "policy", "delay_until"])
    async def test_null_is_absence(self, client: httpx.AsyncClient, nullable: str) -> None:
        assert (await create(client, **{nullable: None})).status_code == 201

    @pytest.mark.parametrize(
        "missing",
        [
            "execution_id",
            "namespace",
            "lane_id",
            "execution_kind",
            "input_payload",
            "priority",
            "creator_identity",
        ],
    )
    async def test_what_may_not(self, client: httpx.AsyncClient, missing: str) -> None:
        body = {name: value for name, value in CREATION.items() if name != missing}
        answer = await client.post("/v1/executions", json=body)
        refused(answer, 422, "invalid JSON: Unprocessable Entity")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"tags": None},
            {"priority": "5"},
            {"priority": 2**31},
            {"input_payload": "AAH/"},
            {"input_payload": [256]},
            {"execution_id": "0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22"},
            {"execution_id": "{fp:65536}:0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22"},
            {"lane_id": ""},
            {"lane_id": "x" * 65},
            {"lane_id": "ü"},
        ],
        ids=str,
    )
    async def test_values_of_another_type(self, client: httpx.AsyncClient, wrong: dict[str, Any]) -> None:
        refused(await create(client, **wrong), 422, "invalid JSON: Unprocessable Entity")

    async def test_a_body_of_another_form(self, client: httpx.AsyncClient) -> None:
        broken = await client.post("/v1/executions", content=b"{", headers={"Content-Type": JSON})
        refused(broken, 400, "invalid JSON: Bad Request")
        for headers in ({}, {"Content-Type": "text/plain"}):
            foreign = await client.post("/v1/executions", content=json.dumps(CREATION), headers=headers)
            refused(foreign, 415, "invalid JSON: Unsupported Media Type")
        typed = {"Content-Type": "application/json; charset=utf-8"}
        good = await client.post("/v1/executions", content=json.dumps(CREATION), headers=typed)
        assert good.status_code == 201

    async def test_a_policy_that_cannot_be_honoured(self, client: httpx.AsyncClient) -> None:
        answer = await create(client, policy={"routing_requirements": []})
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("invalid_policy_json")
        capabilities = {"routing_requirements": {"required_capabilities": ["a,b"]}}
        answer = await create(client, policy=capabilities)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("invalid_capabilities: ")

    async def test_a_body_beyond_the_cap(self, client: httpx.AsyncClient) -> None:
        large = await create(client, input_payload=[200] * 300_000)
        told = {"error": "payload_too_large", "limit_bytes": 1_048_576, "route": "/v1/executions"}
        said(large, 413, told)
        cancel = await client.post(f"{EXECUTION}/cancel", json={"reason": "x" * 65_536, "now": 1})
        route = "/v1/executions/{id}/cancel"
        said(cancel, 413, {"error": "payload_too_large", "limit_bytes": 65_536, "route": route})

    async def test_a_route_without_a_body_has_a_cap_too(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(f"{EXECUTION}/replay", content=b"x" * 65_537)
        route = "/v1/executions/{id}/replay"
        said(answer, 413, {"error": "payload_too_large", "limit_bytes": 65_536, "route": route})
        small = await client.post(f"{EXECUTION}/replay", json={})
        assert small.status_code == 404


STATE_VECTOR = {
    "lifecycle_phase": "runnable",
    "ownership_state": "unowned",
    "eligibility_state": "eligible_now",
    "blocking_reason": "waiting_for_worker",
    "terminal_outcome": "none",
    "attempt_state": "pending_first_attempt",
    "public_state": "waiting",
}
INFO = {
    "execution_id": ID,
    "namespace": "demo",
    "lane_id": "default",
    "execution_kind": "resize",
    "priority": 5,
    "state_vector": STATE_VECTOR,
    "public_state": "waiting",
    "created_at": MS_TEXT,
    "current_attempt_index": 0,
    "flow_id": None,
    "blocking_detail": "",
}


class TestRead:
    async def test_e5(self, client: httpx.AsyncClient, engine: Engine) -> None:
        await create(client)
        said(await client.get(EXECUTION), 200, INFO)
        said(await client.get(f"/v1/executions/{ID}"), 200, INFO)
        await complete(engine, None)
        ended = (await client.get(EXECUTION)).json()
        assert set(ended) == {*INFO, "started_at", "completed_at"}
        assert (ended["started_at"], ended["completed_at"]) == (MS_TEXT, MS_TEXT)
        assert ended["public_state"] == "completed"

    async def test_a_priority_is_kept_between_its_bounds(self, client: httpx.AsyncClient) -> None:
        await create(client, priority=2**31 - 1)
        assert (await client.get(EXECUTION)).json()["priority"] == 9_000

    async def test_what_is_not_there(self, client: httpx.AsyncClient) -> None:
        refused(await client.get(EXECUTION), 404, f"execution not found: {ID}")
        refused(await client.get(f"{EXECUTION}/state"), 404, f"execution not found: {ID}")
        refused(await client.get(f"{EXECUTION}/result"), 404, f"execution result not found: {ID}")
        refused(await client.get(f"{EXECUTION}/pending-waitpoints"), 404, "not found: execution")
        for path in ("", "/state", "/result", "/pending-waitpoints"):
            answer = await client.get(f"/v1/executions/nonsense{path}")
            assert answer.status_code == 400
            assert answer.json()["error"].startswith("invalid execution_id: ")

    async def test_e6(self, client: httpx.AsyncClient) -> None:
        await create(client)
        assert (await client.get(f"{EXECUTION}/state")).content == b'"waiting"'

    async def test_e7(self, client: httpx.AsyncClient, engine: Engine) -> None:
        waitpoint_id = await suspend(client, engine)
        row = {
            "waitpoint_id": waitpoint_id,
            "waitpoint_key": TEXT,
            "state": "active",
            "required_signal_names": [],
            "created_at": MS,
            "activated_at": MS,
            "execution_id": ID,
            "token_kid": "k1",
            "token_fingerprint": Like(r'"[0-9a-f]{16}"'),
        }
        said(await client.get(f"{EXECUTION}/pending-waitpoints"), 200, [row])

    async def test_e8(self, client: httpx.AsyncClient, engine: Engine) -> None:
        waitpoint_id = await suspend(client, engine)
        found = await client.get(f"{EXECUTION}/waitpoints/{waitpoint_id}/token")
        said(found, 200, {"token": TOKEN})
        unknown = await client.get(f"{EXECUTION}/waitpoints/{new_uuid4()}/token")
        said(unknown, 404, {"error": "waitpoint token not found (consumed, expired, or unknown id)"})
        assert {found.headers["cache-control"], unknown.headers["cache-control"]} == {"no-store"}
        malformed = await client.get(f"{EXECUTION}/waitpoints/nonsense/token")
        assert malformed.status_code == 400
        assert malformed.json()["error"].startswith("waitpoint_id: ")

    async def test_e9(self, client: httpx.AsyncClient, engine: Engine) -> None:
        await create(client)
        await complete(engine, bytes(range(256)))
        found = await client.get(f"{EXECUTION}/result")
        assert found.content == bytes(range(256))
        assert found.headers["content-type"] == "application/octet-stream"


class TestAct:
    async def test_e10(self, client: httpx.AsyncClient) -> None:
        await create(client)
        body = {"execution_id": ID, "reason": "user closed the tab", "now": 1}
        answer = await client.post(f"{EXECUTION}/cancel", json=body)
        told = {"execution_id": ID, "public_state": "cancelled", "cancelled_from": "runnable"}
        said(answer, 200, {"Cancelled": told})
        foreign = await client.post(
            f"{EXECUTION}/cancel", json={**body, "execution_id": new_execution_id(flow_id=FLOW)}
        )
        refused(foreign, 400, "path execution_id does not match body execution_id")

    async def test_cancelling_what_has_completed(self, client: httpx.AsyncClient, engine: Engine) -> None:
        await create(client)
        await complete(engine, None)
        answer = await client.post(f"{EXECUTION}/cancel", json={"execution_id": ID, "reason": "x", "now": 1})
        refused(answer, 409, "execution_not_active", **CONTENTION)

    async def test_e11(self, client: httpx.AsyncClient, engine: Engine) -> None:
        waitpoint_id = await suspend(client, engine)
        token = await token_of(client, waitpoint_id)
        signal_id = new_signal_id()
        once = {"signal_id": signal_id, "idempotency_key": "ana-1"}
        first = await signal(client, waitpoint_id, token, **once)
        said(first, 200, {"Accepted": {"signal_id": signal_id, "effect": "resume_condition_satisfied"}})
        second = await signal(client, waitpoint_id, token, idempotency_key="ana-1")
        said(second, 200, {"Duplicate": {"existing_signal_id": signal_id}})
        assert (await client.get(f"{EXECUTION}/state")).json() == "waiting"

    async def test_a_wrong_token(self, client: httpx.AsyncClient, engine: Engine) -> None:
        waitpoint_id = await suspend(client, engine)
        token = await token_of(client, waitpoint_id)
        tampered = token[:-1] + ("0" if token[-1] != "0" else "1")
        refused(await signal(client, waitpoint_id, tampered), 400, "invalid_token")
        refused(await signal(client, new_uuid4(), token), 400, "invalid_token")

    async def test_a_pending_waitpoint_keeps_the_signal(
        self, client: httpx.AsyncClient, engine: Engine
    ) -> None:
        await create(client)
        work = await claim(engine)
        waitpoint_id = new_uuid4()
        pending = await engine.execute(
            CreatePendingWaitpointArgs(
                execution_id=ID,
                lease_id=work.fence.lease_id,
                lease_epoch=work.fence.lease_epoch,
                attempt_id=work.fence.attempt_id,
                attempt_index=0,
                waitpoint_id=waitpoint_id,
                waitpoint_key="wpk:early",
                expires_in_ms=60_000,
            )
        )
        signal_id = new_signal_id()
        answer = await signal(client, waitpoint_id, pending.waitpoint_token.value, signal_id=signal_id)
        told = {"signal_id": signal_id, "effect": "buffered_for_pending_waitpoint"}
        said(answer, 200, {"Accepted": told})

    async def test_e12(self, client: httpx.AsyncClient, engine: Engine) -> None:
        await create(client)
        answer = await client.put(f"{EXECUTION}/priority", json={"new_priority": 500})
        said(answer, 200, {"Changed": {"execution_id": ID}})
        await claim(engine)
        answer = await client.put(f"{EXECUTION}/priority", json={"new_priority": 500})
        refused(answer, 409, "execution_not_eligible", **CONTENTION)

    async def test_e13(self, client: httpx.AsyncClient, engine: Engine) -> None:
        await create(client)
        early = await client.post(f"{EXECUTION}/replay")
        refused(early, 409, "execution_not_terminal", kind="execution_not_terminal", retryable=False)
        await complete(engine, None)
        said(await client.post(f"{EXECUTION}/replay"), 200, {"Replayed": {"public_state": "waiting"}})

    async def test_e14(self, client: httpx.AsyncClient, engine: Engine) -> None:
        await create(client)
        none = await client.post(f"{EXECUTION}/revoke-lease")
        refused(none, 409, "execution_not_active", **CONTENTION)
        work = await claim(engine)
        revoked = await client.post(f"{EXECUTION}/revoke-lease")
        said(revoked, 200, {"Revoked": {"lease_id": work.fence.lease_id, "lease_epoch": "1"}})
        again = await client.post(f"{EXECUTION}/revoke-lease")
        said(again, 200, {"AlreadySatisfied": {"reason": "already_revoked"}})

    async def test_e15(self, client: httpx.AsyncClient, engine: Engine) -> None:
        await create(client)
        await claim(engine)
        who = {"worker_id": "w", "worker_instance_id": "w-2", "lane_id": "default", "grant_ttl_ms": 60_000}
        live = await client.post(f"{EXECUTION}/reclaim", json=who)
        detail = "execution_not_reclaimable"
        said(live, 200, {"status": "not_reclaimable", "execution_id": ID, "detail": detail})
        await client.post(f"{EXECUTION}/revoke-lease")
        granted = await client.post(f"{EXECUTION}/reclaim", json=who)
        grant = {
            "status": "granted",
            "execution_id": ID,
            "partition_key": "{fp:86}",
            "grant_key": TEXT,
            "expires_at_ms": MS,
            "lane_id": "default",
        }
        said(granted, 200, grant)
        for ttl in (0, 60_001, -1):
            late = await client.post(f"{EXECUTION}/reclaim", json={**who, "grant_ttl_ms": ttl})
            refused(late, 400, "grant_ttl_ms must be in 1..=60000")

    async def test_e16(self, client: httpx.AsyncClient) -> None:
        who = {"lane_id": "default", "worker_instance_id": "w-1", "grant_ttl_ms": 5_000}
        nothing = await client.post("/v1/workers/w/claim", json=who)
        assert (nothing.status_code, nothing.content) == (204, b"")
        await create(client)
        granted = await client.post("/v1/workers/w/claim", json=who)
        grant = {"execution_id": ID, "partition_key": "{fp:86}", "grant_key": TEXT, "expires_at_ms": MS}
        said(granted, 200, grant)
        for worker in ("a%20b", "x" * 257, "%C3%BC" * 129, "a%07"):
            answer = await client.post(f"/v1/workers/{worker}/claim", json=who)
            assert answer.status_code == 400, worker


STREAM = f"{EXECUTION}/attempts/0/stream"
OPEN = {"frames": [], "count": 0}


class TestStreams:
    async def emit(self, engine: Engine, payload: bytes, **fields: Any) -> str:
        work = await claim(engine)
        appended = await engine.execute(
            AppendFrameArgs(
                execution_id=ID,
                attempt_index=0,
                lease_id=work.fence.lease_id,
                lease_epoch=work.fence.lease_epoch,
                attempt_id=work.fence.attempt_id,
                frame_type="token",
                payload=payload,
                **fields,
            )
        )
        return appended.entry_id

    async def test_e17_and_e18(self, client: httpx.AsyncClient, engine: Engine) -> None:
        await create(client)
        said(await client.get(STREAM), 200, OPEN)
        said(await client.get(f"{STREAM}/tail"), 200, OPEN)
        entry_id = await self.emit(engine, b"Hel", encoding="utf8", source="worker")
        fields = {
            "encoding": "utf8",
            "frame_type": "token",
            "mode": "durable",
            "payload": "Hel",
            "source": "worker",
            "ts": MS_TEXT,
        }
        page = {"frames": [{"id": entry_id, "fields": fields}], "count": 1}
        read = await client.get(STREAM)
        said(read, 200, page)
        assert list(read.json()["frames"][0]["fields"]) == sorted(fields)
        said(await client.get(f"{STREAM}?from={entry_id}&to=end"), 200, page)
        said(await client.get(f"{STREAM}/tail?after=0-0&limit=1000&block_ms=0"), 200, page)
        said(await client.get(f"{STREAM}/tail?after={entry_id}"), 200, OPEN)

    async def test_a_closed_stream(self, client: httpx.AsyncClient, engine: Engine) -> None:
        await create(client)
        await complete(engine, None)
        closed = {**OPEN, "closed_at": MS, "closed_reason": "attempt_success"}
        said(await client.get(f"{STREAM}/tail?block_ms=30000"), 200, closed)

    @pytest.mark.parametrize("query", ["limit=x", "limit=", "limit=-1"])
    async def test_numbers_that_cannot_be_read(self, client: httpx.AsyncClient, query: str) -> None:
        plain(await client.get(f"{STREAM}?{query}"))
        plain(await client.get(f"{STREAM}/tail?{query}"))
        plain(await client.get(f"{EXECUTION}/attempts/x/stream"))
        plain(await client.get(f"{EXECUTION}/attempts/4294967296/stream/tail"))

    @pytest.mark.parametrize("query", ["limit=0", "limit=1001", "from=-", "to=%2B"])
    async def test_reads_beyond_the_rules(self, client: httpx.AsyncClient, query: str) -> None:
        answer = await client.get(f"{STREAM}?{query}")
        assert answer.status_code == 400
        assert answer.json()["error"]

    @pytest.mark.parametrize("query", ["limit=0", "block_ms=30001", "after=start", "after=end", "after=-"])
    async def test_tails_beyond_the_rules(self, client: httpx.AsyncClient, query: str) -> None:
        answer = await client.get(f"{STREAM}/tail?{query}")
        assert answer.status_code == 400
        assert answer.json()["error"]


class TestFlows:
    async def test_e19_and_e20(self, client: httpx.AsyncClient) -> None:
        said(await open_flow(client), 201, {"Created": {"flow_id": FLOW}})
        said(await open_flow(client), 200, {"AlreadySatisfied": {"flow_id": FLOW}})
        member, added = await add_member(client)
        said(added, 201, {"Added": {"execution_id": member, "new_node_count": 1}})
        body = {"flow_id": FLOW, "execution_id": member, "now": 1}
        again = await client.post(f"/v1/flows/{FLOW}/members", json=body)
        said(again, 200, {"AlreadyMember": {"execution_id": member, "node_count": 1}})
        other = {**body, "flow_id": new_flow_id()}
        foreign = await client.post(f"/v1/flows/{FLOW}/members", json=other)
        refused(foreign, 400, "path flow_id does not match body flow_id")

    async def test_a_member_of_another_partition(self, client: httpx.AsyncClient) -> None:
        await open_flow(client)
        await create(client)
        body = {"flow_id": FLOW, "execution_id": ID, "now": 1}
        answer = await client.post(f"/v1/flows/{FLOW}/members", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("invalid_input: add_execution_to_flow: ")

    async def test_e21(self, client: httpx.AsyncClient) -> None:
        await open_flow(client)
        member, _ = await add_member(client)
        body = {"flow_id": FLOW, "reason": "x", "cancellation_policy": "cancel_all", "now": 1}
        policy = {"cancellation_policy": "cancel_all"}
        scheduled = await client.post(f"/v1/flows/{FLOW}/cancel", json=body)
        told = {**policy, "member_count": 1, "member_execution_ids": [member]}
        said(scheduled, 200, {"CancellationScheduled": told})
        other = {**body, "cancellation_policy": "flow_only"}
        again = await client.post(f"/v1/flows/{FLOW}/cancel?wait=1", json=other)
        said(again, 200, {"Cancelled": {**policy, "member_execution_ids": [member]}})

    async def test_what_is_not_there(self, client: httpx.AsyncClient) -> None:
        body = {"flow_id": FLOW, "reason": "x", "cancellation_policy": "cancel_all", "now": 1}
        refused(await client.post(f"/v1/flows/{FLOW}/cancel", json=body), 404, "not found: flow")
        member, _ = await add_member(client)
        add = {"flow_id": FLOW, "execution_id": member, "now": 1}
        refused(await client.post(f"/v1/flows/{FLOW}/members", json=add), 404, "not found: flow")

    async def test_e22_and_e23(self, client: httpx.AsyncClient) -> None:
        await open_flow(client)
        (upstream, _), (downstream, _) = await add_member(client), await add_member(client)
        ends = {"upstream_execution_id": upstream, "downstream_execution_id": downstream}
        edge = {"flow_id": FLOW, "edge_id": new_uuid4(), **ends, "now": 1}
        stale = await client.post(f"/v1/flows/{FLOW}/edges", json={**edge, "expected_graph_revision": 0})
        refused(stale, 409, "stale_graph_revision", **CONTENTION)
        staged = await client.post(f"/v1/flows/{FLOW}/edges", json={**edge, "expected_graph_revision": 2})
        said(staged, 201, {"Staged": {"edge_id": edge["edge_id"], "new_graph_revision": 3}})
        back = {
            **edge,
            "edge_id": new_uuid4(),
            "upstream_execution_id": downstream,
            "downstream_execution_id": upstream,
        }
        cycle = await client.post(f"/v1/flows/{FLOW}/edges", json={**back, "expected_graph_revision": 3})
        refused(cycle, 409, "cycle_detected", kind="cycle_detected", retryable=False)
        itself = {**back, "downstream_execution_id": downstream, "expected_graph_revision": 3}
        own = await client.post(f"/v1/flows/{FLOW}/edges", json=itself)
        refused(own, 409, "self_referencing_edge", kind="self_referencing_edge", retryable=False)
        other = {**back, "edge_id": edge["edge_id"], "expected_graph_revision": 3}
        again = await client.post(f"/v1/flows/{FLOW}/edges", json=other)
        existing = "dependency_already_exists"
        refused(again, 409, existing, kind=existing, retryable=False)
        apply = {**edge, "graph_revision": 3}
        applied = await client.post(f"/v1/flows/{FLOW}/edges/apply", json=apply)
        said(applied, 200, {"Applied": {"unsatisfied_count": 1}})
        applied = await client.post(f"/v1/flows/{FLOW}/edges/apply", json=apply)
        assert (applied.status_code, applied.content) == (200, b'"AlreadyApplied"')


BUDGET = "7c9f1a40-9b1d-4f3e-8a51-0d8f6e2b7a10"
BUDGET_CREATION = {
    "budget_id": BUDGET,
    "scope_type": "flow",
    "scope_id": "a1",
    "enforcement_mode": "strict",
    "on_hard_limit": "deny",
    "on_soft_limit": "warn",
    "reset_interval_ms": 0,
    "dimensions": ["tokens"],
    "hard_limits": [1200],
    "soft_limits": [800],
    "now": 1,
}


class TestBudgets:
    async def test_e24_and_e25(self, client: httpx.AsyncClient) -> None:
        missing = await client.get(f"/v1/budgets/{BUDGET}", headers=DEMO)
        refused(missing, 404, "not found: budget")
        created = await client.post("/v1/budgets", json=BUDGET_CREATION, headers=DEMO)
        said(created, 201, {"Created": {"budget_id": BUDGET}})
        again = await client.post("/v1/budgets", json=BUDGET_CREATION, headers=DEMO)
        said(again, 200, {"AlreadySatisfied": {"budget_id": BUDGET}})
        status = {
            "budget_id": BUDGET,
            "scope_type": "flow",
            "scope_id": "a1",
            "enforcement_mode": "strict",
            "usage": {},
            "hard_limits": {"tokens": 1200},
            "soft_limits": {"tokens": 800},
            "breach_count": 0,
            "soft_breach_count": 0,
            "last_breach_at": None,
            "last_breach_dim": None,
            "next_reset_at": None,
            "created_at": MS_TEXT,
            "name": "",
            "on_hard_limit": "deny",
            "on_soft_limit": "warn",
            "closed_at": None,
        }
        said(await client.get(f"/v1/budgets/{BUDGET}", headers=DEMO), 200, status)

    async def test_e26_and_e27(self, client: httpx.AsyncClient) -> None:
        await client.post("/v1/budgets", json=BUDGET_CREATION, headers=DEMO)

        async def report(tokens: int, **more: Any) -> httpx.Response:
            body = {"dimensions": {"tokens": tokens}, "now": 1, **more}
            return await client.post(f"/v1/budgets/{BUDGET}/usage", json=body, headers=DEMO)

        first = await report(400, dedup_key="a")
        assert (first.status_code, first.content) == (200, b'"Ok"')
        again = await report(400, dedup_key="a")
        assert (again.status_code, again.content) == (200, b'"AlreadyApplied"')
        soft = {"dimension": "tokens", "current_usage": 900, "soft_limit": 800}
        said(await report(500), 200, {"SoftBreach": soft})
        hard = {"dimension": "tokens", "current_usage": 900, "hard_limit": 1200, "on_hard_limit": "deny"}
        said(await report(301), 200, {"HardBreach": hard})
        reset = await client.post(f"/v1/budgets/{BUDGET}/reset", headers=DEMO)
        said(reset, 200, {"Reset": {"next_reset_at": 0}})

    async def test_a_period_says_when_it_ends(self, client: httpx.AsyncClient) -> None:
        body = {**BUDGET_CREATION, "reset_interval_ms": 60_000}
        await client.post("/v1/budgets", json=body, headers=DEMO)
        status = (await client.get(f"/v1/budgets/{BUDGET}", headers=DEMO)).json()
        assert status["next_reset_at"] == MS_TEXT
        reset = await client.post(f"/v1/budgets/{BUDGET}/reset", headers=DEMO)
        said(reset, 200, {"Reset": {"next_reset_at": MS}})

    async def test_e28(self, client: httpx.AsyncClient) -> None:
        body = {
            "quota_policy_id": BUDGET,
            "window_seconds": 60,
            "max_requests_per_window": 10,
            "max_concurrent": 2,
            "now": 1,
        }
        first = await client.post("/v1/quotas", json=body, headers=DEMO)
        said(first, 201, {"Created": {"quota_policy_id": BUDGET}})
        again = await client.post("/v1/quotas", json=body, headers=DEMO)
        said(again, 200, {"AlreadySatisfied": {"quota_policy_id": BUDGET}})


class TestKeys:
    async def rotate(self, client: httpx.AsyncClient, kid: str, secret: str) -> httpx.Response:
        body = {"new_kid": kid, "new_secret_hex": secret}
        return await client.post("/v1/admin/rotate-waitpoint-secret", json=body)

    async def test_e29(self, client: httpx.AsyncClient) -> None:
        for _ in range(2):
            answer = await self.rotate(client, "k2", "ab" * 32)
            said(answer, 200, {"rotated": NUMBER, "failed": [], "new_kid": "k2"})

    async def test_another_secret_under_the_same_kid(self, client: httpx.AsyncClient) -> None:
        await self.rotate(client, "k2", "ab" * 32)
        answer = await self.rotate(client, "k2", "cd" * 32)
        refused(answer, 409, "rotation_conflict", kind="rotation_conflict", retryable=False)

    @pytest.mark.parametrize("kid", ["", "a:b"])
    async def test_a_kid_that_cannot_be(self, client: httpx.AsyncClient, kid: str) -> None:
        answer = await self.rotate(client, kid, "ab" * 32)
        refused(answer, 400, "new_kid must be non-empty and must not contain ':'")

    @pytest.mark.parametrize("secret", ["", "abc", "zz"])
    async def test_a_secret_that_is_not_hexadecimal(self, client: httpx.AsyncClient, secret: str) -> None:
        answer = await self.rotate(client, "k2", secret)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("invalid_secret_hex")


@pytest.mark.scenario("HTTP-012")
class TestDefaults:
    async def test_paths_and_verbs_that_are_not_there(self, client: httpx.AsyncClient) -> None:
        unknown = await client.get("/v1/nothing")
        assert (unknown.status_code, unknown.content) == (404, b"")
        verb = await client.delete("/v1/executions")
        assert (verb.status_code, verb.content) == (405, b"")
        assert set(verb.headers["allow"].replace(" ", "").split(",")) >= {"GET", "POST"}

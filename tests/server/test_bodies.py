"""Bodies that are meant to harm: nobody can be told two things by one, and none costs more than it may."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest

from flowfabric.server.calls import ambiguity_of
from flowfabric.server.routes import ROUTES, Route
from tests.server.conftest import CREATION, EXECUTION, ID

DEEP = 100_000
JSON_HEADERS = {"Content-Type": "application/json"}
DIGITS = b"1" * 400

HARMFUL = {
    "a name twice": b'{"kind": "k", "kind": "j"}',
    "a name twice, spelled differently": b'{"kind": "k", "k\\u0069nd": "j"}',
    "a name twice, deep inside": b'{"kind": "k", "input": [{"a": [{"b": 1, "b": 2}]}]}',
    "a whole number that few can hold": b'{"kind": "k", "input": ' + DIGITS + b"}",
    "a negative one": b'{"kind": "k", "input": -' + DIGITS + b"}",
    "one where a small one belongs": b'{"kind": "k", "priority": ' + DIGITS + b"}",
    "a fraction without end": b'{"kind": "k", "input": 1e400}',
    "no number": b'{"kind": "k", "input": NaN}',
    "infinity": b'{"kind": "k", "input": -Infinity}',
    "deep lists": b'{"kind": "k", "input": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "an end that never comes": b"[" * DEEP,
    "half a character": b'{"kind": "\\ud800"}',
    "half a character in the input": b'{"kind": "k", "input": "\\ud800"}',
    "bytes that are no text": b'{"kind": "\xff\xfe"}',
    "another alphabet": json.dumps({"kind": "k"}).encode("utf-16"),
    "a mark in front": b"\xef\xbb\xbf" + b'{"kind": "k"}',
    "a control character in a name": b'{"kind": "a\\u0000b"}',
    "a raw one": b'{"kind": "a\x00b"}',
    "a line break in a name": b'{"kind": "a\\r\\nb"}',
    "something behind": b'{"kind": "k"} {"kind": "j"}',
    "a comment": b'{"kind": "k" /* j */}',
    "nothing": b"",
    "squeezed": gzip.compress(b'{"kind": "k"}'),
}


@pytest.mark.parametrize("name", HARMFUL)
async def test_a_body_that_is_meant_to_harm_is_refused(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post("/v1/runs", content=HARMFUL[name], headers=JSON_HEADERS)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]
    listed = await client.get("/v1/view/executions", headers={"FlowFabric-Namespace": "default"})
    assert listed.json()["executions"] == []


@pytest.mark.parametrize("name", HARMFUL)
@pytest.mark.parametrize("path", ["/v1/flows", "/v1/commands/create_flow", "/v1/commands", "/w/answer"])
async def test_no_route_breaks_on_it(client: httpx.AsyncClient, path: str, name: str) -> None:
    answer = await client.post(path, content=HARMFUL[name], headers=JSON_HEADERS)
    assert answer.status_code in (400, 413, 422)


async def test_a_body_that_says_it_is_squeezed_is_not_unpacked(client: httpx.AsyncClient) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 64 * 1024
    headers = {**JSON_HEADERS, "Content-Encoding": "gzip"}
    assert (await client.post("/v1/flows", content=bomb, headers=headers)).status_code == 400


def test_text_that_looks_like_a_long_number_is_none() -> None:
    assert ambiguity_of(b'{"a": "' + DIGITS + b'", "b": 12}') is None
    assert ambiguity_of(b'{"a": {"n": 1}, "b": {"n": 1}}') is None


BODIES = [route for route in ROUTES if route.body_bytes_max and not route.operations]


@pytest.mark.parametrize("route", BODIES, ids=lambda route: f"{route.method} {route.path}")
async def test_a_body_may_be_as_long_as_its_limit_and_not_a_byte_longer(
    client: httpx.AsyncClient, route: Route
) -> None:
    path = route.path.replace("{execution_id}", EXECUTION.rpartition("/")[2])
    for name in ("budget_id", "flow_id"):
        path = path.replace(f"{{{name}}}", "0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22")
    path = path.replace("{worker_id}", "w")
    for length, is_refused in ((-1, False), (0, False), (1, True)):
        body = b"{}".ljust(route.body_bytes_max + length)
        declared = await client.request(route.method, path, content=body, headers=JSON_HEADERS)
        assert (declared.status_code == 413) == is_refused, declared.text


async def pieces(length: int):
    for _ in range(length // 1024):
        yield b" " * 1024
    yield b" " * (length % 1024)


@pytest.mark.parametrize(("length", "status"), [(65_535, 400), (65_536, 400), (65_537, 413)])
async def test_a_body_of_unknown_length_is_cut_at_the_limit(
    client: httpx.AsyncClient, length: int, status: int
) -> None:
    answer = await client.post("/v1/flows", content=pieces(length), headers=JSON_HEADERS)
    assert answer.status_code == status


@pytest.mark.parametrize("query", ["limit=1&limit=2", "limit=1&limit=1", "cursor=a&cursor="])
async def test_a_parameter_that_is_there_twice_is_refused(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/v1/view/executions?{query}")).status_code == 400


async def test_that_is_said_in_json_on_every_route(client: httpx.AsyncClient) -> None:
    path = f"/v1/flows/{ID.rpartition(':')[2]}/cancel?wait=1&wait=0"
    assert (await client.post(path, json={})).json() == {
        "error": "invalid query: each parameter at most once"
    }


async def test_the_word_null_is_a_name_like_any_other(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/runs", json={"kind": "k"})).status_code == 201
    for query in ("public_state=null", "limit=null", "limit=", "lane_id="):
        assert (await client.get(f"/v1/view/executions?{query}")).status_code == 400, query
    assert (await client.get("/v1/view/executions?lane_id=null")).json()["executions"] == []


async def test_truth_values_are_no_numbers(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/executions", json={**CREATION, "input_payload": [True, 1]})
    assert answer.status_code == 422
    body = {
        "flow_id": "0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22",
        "reason": "",
        "cancellation_policy": "flow_only",
    }
    wrong = await client.post(f"/v1/flows/{body['flow_id']}/cancel", json={**body, "wait": 0})
    assert wrong.status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/w/..%2faccess.py",
        "/w/../access.py",
        "/w/%2e%2e/access.py",
        "/w//etc/passwd",
        "/w/answer.js%00.html",
        "/w/answer.js/",
        "/w/..%5c..%5caccess.py",
        "/v1/view/executions/..%2f..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
    ],
)
async def test_a_path_that_climbs_finds_nothing(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code in (400, 404)
    assert len(answer.content) < 1_000


@pytest.mark.parametrize("path", ["/v1/changes", "/v1/runs/x"])
async def test_nobody_waits_longer_than_the_document_says(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"{path}?wait_ms=30001")).status_code == 400


async def test_nobody_waits_longer_for_work(client: httpx.AsyncClient) -> None:
    body = {"lanes": ["default"], "worker_id": "w", "worker_instance_id": "w-1", "lease_ttl_ms": 30_000}
    assert (await client.post("/v1/claims?wait_ms=30001", json=body)).status_code == 400


KEY = {"Idempotency-Key": "r-1"}


class TestRequestsThatAreSentAgain:
    """A request with an ``Idempotency-Key`` does once what it does, on every route that submits."""

    async def test_a_run_is_submitted_once(self, client: httpx.AsyncClient) -> None:
        first, again = [
            await client.post("/v1/runs", json={"kind": "k", "delay_ms": 5}, headers=KEY) for _ in "ab"
        ]
        assert first.json()["execution_id"] == again.json()["execution_id"]

    async def test_many_runs_are_submitted_once_each(self, client: httpx.AsyncClient) -> None:
        body = {"runs": [{"kind": "k"}, {"kind": "k"}]}
        first, again = [
            (await client.post("/v1/runs/batch", json=body, headers=KEY)).json()["answers"] for _ in "ab"
        ]
        assert [one["execution_id"] for one in first] == [one["execution_id"] for one in again]
        assert len({one["execution_id"] for one in first}) == 2

    async def test_a_flow_is_submitted_once(self, client: httpx.AsyncClient) -> None:
        body = {"kind": "k", "members": {"a": {"kind": "x"}}}
        first, again = [(await client.post("/v1/graphs", json=body, headers=KEY)).json() for _ in "ab"]
        assert (first["flow_id"], first["members"]) == (again["flow_id"], again["members"])

    async def test_many_commands_are_carried_out_once_each(self, client: httpx.AsyncClient) -> None:
        runs = (await client.post("/v1/runs/batch", json={"runs": [{"kind": "k"}] * 2})).json()["answers"]
        told = []
        for priority in (7, 9):
            commands = [
                {
                    "operation": "change_priority",
                    "command": {"execution_id": run["execution_id"], "new_priority": priority},
                }
                for run in runs
            ]
            told.append((await client.post("/v1/commands", json={"commands": commands}, headers=KEY)).json())
        assert told[0] == told[1]
        for run in runs:
            body = {"execution_id": run["execution_id"]}
            info = await client.post("/v1/commands/read_execution_info", json=body)
            assert info.json()["priority"] == 7

    @pytest.mark.parametrize("key", ["x" * 257, "a b", "\x84"])
    @pytest.mark.parametrize("path", ["/v1/commands", "/v1/runs/batch", "/v1/runs"])
    async def test_an_id_that_cannot_be_kept_is_refused(
        self, client: httpx.AsyncClient, path: str, key: str
    ) -> None:
        bodies: dict[str, dict[str, object]] = {
            "/v1/commands": {"commands": []},
            "/v1/runs/batch": {"runs": []},
            "/v1/runs": {"kind": "k"},
        }
        headers = httpx.Headers([(b"Idempotency-Key", key.encode("latin-1"))])
        assert (await client.post(path, json=bodies[path], headers=headers)).status_code == 400

"""Requests that ask for more work than they are long: refused, or done in a bounded number of steps."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from flowfabric.contracts.limits import EDGES_PER_REQUEST_MAX, MEMBERS_PER_REQUEST_MAX
from flowfabric.flow_documents import FlowDocument, build_flow
from tests.server.conftest import CREATION

HUGE = (2**63, 2**64, -1, -(2**63) - 1, 1.5)
LENGTH = EDGES_PER_REQUEST_MAX + 1
NUMBERS = ("delay_until", "execution_deadline_at", "priority")


def chain(length: int) -> dict[str, Any]:
    """A chain of members, the last one first, so that none is found in its place."""
    members = {f"m{place}": {"kind": "k", "after": f"m{place - 1}"} for place in range(length - 1, 0, -1)}
    return {"kind": "chain", "members": {**members, "m0": {"kind": "k"}}}


def dense(size: int) -> dict[str, Any]:
    """Every member after all members before it."""
    members = {
        f"m{place}": {"kind": "k", "after": [f"m{up}" for up in range(place)]} for place in range(size)
    }
    return {"kind": "dense", "members": members}


class Steps(list[str]):
    """Names that count how often somebody goes through them."""

    taken = 0

    def __iter__(self) -> Any:
        Steps.taken += 1
        return super().__iter__()


async def test_a_chain_of_100_000_is_refused_before_it_is_put_in_order(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/graphs", json=chain(100_000))
    assert answer.status_code == 400, answer.text
    assert f"at most {MEMBERS_PER_REQUEST_MAX:,} members" in answer.text


async def test_a_dense_graph_is_refused_by_its_edges(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/graphs", json=dense(500))
    assert answer.status_code == 400, answer.text
    assert f"at most {EDGES_PER_REQUEST_MAX:,} edges" in answer.text


def test_putting_members_in_order_looks_at_each_a_few_times() -> None:
    document = msgspec.convert(chain(LENGTH), FlowDocument)
    for member in document.members.values():
        member.after = Steps(member.upstreams)
    Steps.taken = 0
    flow = build_flow(document, "tests")
    assert list(flow.members) == [f"m{place}" for place in range(LENGTH)]
    assert Steps.taken <= 8 * LENGTH


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("name", NUMBERS)
async def test_a_number_that_no_time_is_is_refused(client: httpx.AsyncClient, name: str, value: Any) -> None:
    if name == "priority" and value == -1:
        value = -(2**31) - 1
    answer = await client.post("/v1/executions", json={**CREATION, name: value})
    assert answer.status_code in (400, 422), (name, value, answer.text)
    assert (await client.get("/v1/view/executions")).json()["executions"] == []


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "1e18"])
async def test_a_number_that_is_none_is_refused(client: httpx.AsyncClient, text: str) -> None:
    body = msgspec.json.encode({**CREATION, "delay_until": 0}).replace(
        b'"delay_until":0', b'"delay_until":' + text.encode()
    )
    sent = await client.post("/v1/executions", content=body, headers={"Content-Type": "application/json"})
    assert sent.status_code in (400, 422), sent.text


@pytest.mark.parametrize("value", [2**63, -1, 2**64, 1.5, "1"])
async def test_a_run_with_such_a_delay_is_refused(client: httpx.AsyncClient, value: Any) -> None:
    answer = await client.post("/v1/runs", json={"kind": "k", "delay_ms": value})
    assert answer.status_code in (400, 422), answer.text
    assert (await client.get("/v1/view/executions")).json()["executions"] == []


async def test_a_delay_that_ends_behind_all_times_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/runs", json={"kind": "k", "delay_ms": 2**53 - 1})
    assert answer.status_code in (400, 422), answer.text
    assert (await client.get("/v1/view/executions")).json()["executions"] == []

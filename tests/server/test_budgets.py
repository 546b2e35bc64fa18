"""The routes of budgets and quota policies."""

import httpx
import pytest

from flowfabric.minting import new_uuid4

BUDGET = {
    "scope_type": "flow",
    "scope_id": "a1",
    "enforcement_mode": "strict",
    "on_hard_limit": "deny",
    "on_soft_limit": "warn",
    "reset_interval_ms": 0,
    "dimensions": ["tokens"],
    "hard_limits": [500],
    "soft_limits": [400],
    "now": 1,
}
DEMO = {"FlowFabric-Namespace": "demo"}


async def create(client: httpx.AsyncClient, budget_id: str) -> httpx.Response:
    return await client.post("/v1/budgets", json={**BUDGET, "budget_id": budget_id}, headers=DEMO)


async def report(client: httpx.AsyncClient, budget_id: str, tokens: int, **more: object) -> object:
    body = {"dimensions": {"tokens": tokens}, "now": 1, **more}
    answer = await client.post(f"/v1/budgets/{budget_id}/usage", json=body, headers=DEMO)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.scenario("HTTP-004")
async def test_a_budget_is_created_once_and_read(client: httpx.AsyncClient) -> None:
    budget_id = new_uuid4()
    first, again = await create(client, budget_id), await create(client, budget_id)
    assert (first.status_code, first.json()) == (201, {"Created": {"budget_id": budget_id}})
    assert (again.status_code, again.json()) == (200, {"AlreadySatisfied": {"budget_id": budget_id}})
    status = (await client.get(f"/v1/budgets/{budget_id}", headers=DEMO)).json()
    assert (status["hard_limits"], status["soft_limits"]) == ({"tokens": 500}, {"tokens": 400})
    assert (status["breach_count"], status["soft_breach_count"]) == (0, 0)
    assert (status["next_reset_at"], status["last_breach_dim"]) == (None, None)
    assert status["created_at"].isdigit()


async def test_usage_counts_up_to_the_hard_limit_and_starts_anew(client: httpx.AsyncClient) -> None:
    budget_id = new_uuid4()
    await create(client, budget_id)
    assert await report(client, budget_id, 300, dedup_key="a") == "Ok"
    assert await report(client, budget_id, 300, dedup_key="a") == "AlreadyApplied"
    soft = {"dimension": "tokens", "current_usage": 450, "soft_limit": 400}
    assert await report(client, budget_id, 150) == {"SoftBreach": soft}
    hard = {"dimension": "tokens", "current_usage": 450, "hard_limit": 500, "on_hard_limit": "deny"}
    assert await report(client, budget_id, 51) == {"HardBreach": hard}
    reset = await client.post(f"/v1/budgets/{budget_id}/reset", headers=DEMO)
    assert reset.json() == {"Reset": {"next_reset_at": 0}}
    assert (await client.get(f"/v1/budgets/{budget_id}", headers=DEMO)).json()["usage"].get("tokens", 0) == 0


async def test_an_unknown_budget_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/v1/budgets/{new_uuid4()}", headers=DEMO)
    assert (answer.status_code, answer.json()["error"]) == (404, "not found: budget")
    assert (await client.get("/v1/budgets/nonsense")).status_code == 400


@pytest.mark.parametrize("dimensions", [None, [], "tokens", {"tokens": -1}, {"tokens": "1"}])
async def test_usage_that_is_no_map_of_amounts_is_refused(
    client: httpx.AsyncClient, dimensions: object
) -> None:
    budget_id = new_uuid4()
    await create(client, budget_id)
    body = {"dimensions": dimensions, "now": 1}
    answer = await client.post(f"/v1/budgets/{budget_id}/usage", json=body, headers=DEMO)
    assert answer.status_code == 422


@pytest.mark.scenario("HTTP-004")
async def test_a_quota_policy_is_created_once(client: httpx.AsyncClient) -> None:
    policy = {"quota_policy_id": new_uuid4(), "window_seconds": 60, "now": 1}
    limits = {"max_requests_per_window": 5, "max_concurrent": 2}
    first = await client.post("/v1/quotas", json={**policy, **limits}, headers=DEMO)
    again = await client.post("/v1/quotas", json={**policy, **limits}, headers=DEMO)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == {"Created": {"quota_policy_id": policy["quota_policy_id"]}}

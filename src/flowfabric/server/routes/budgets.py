"""Budgets and quota policies: create, look, report, reset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowfabric.contracts.budgets import (
    BudgetCreated,
    BudgetReset,
    BudgetStatus,
    CreateBudgetArgs,
    CreateBudgetResult,
    GetBudgetStatusArgs,
    ReportUsageAdminArgs,
    ReportUsageResult,
    ResetBudgetArgs,
)
from flowfabric.contracts.quotas import CreateQuotaPolicyArgs, CreateQuotaPolicyResult, QuotaPolicyCreated
from flowfabric.server.access import Role
from flowfabric.server.calls import read_as, refused
from flowfabric.server.routes.table import route

if TYPE_CHECKING:
    from starlette.responses import Response

    from flowfabric.server.calls import Call

BUDGET = "/v1/budgets/{budget_id}"


@route(
    "POST",
    "/v1/budgets",
    Role.OPERATOR,
    body=CreateBudgetArgs,
    statuses={201: CreateBudgetResult, 200: CreateBudgetResult},
)
async def create_budget(call: Call) -> Response:
    """Create a budget; repeating it answers AlreadySatisfied."""
    outcome = await call.execute(await call.command(CreateBudgetArgs))
    return call.answer(outcome, 201 if isinstance(outcome, BudgetCreated) else 200)


@route("GET", BUDGET, Role.READ, statuses={200: BudgetStatus})
async def read_budget(call: Call) -> Response:
    """Read a budget: its limits, and what has been spent."""
    return call.answer(await call.execute(GetBudgetStatusArgs(budget_id=call.path_id("budget_id"))))


@route("POST", f"{BUDGET}/usage", Role.OPERATOR, body=dict[str, Any], statuses={200: ReportUsageResult})
async def report_usage(call: Call) -> Response:
    """Report usage in some dimensions; beyond a hard limit nothing of it counts."""
    body = await call.json()
    usage = body.get("dimensions")
    if not isinstance(usage, dict):
        raise refused(422, "invalid JSON: Unprocessable Entity", detail="dimensions: Expected `object`")
    told = {**body, "dimensions": list(usage), "deltas": list(usage.values())}
    command = read_as(ReportUsageAdminArgs, {**told, "budget_id": call.path_id("budget_id")})
    return call.answer(await call.execute(command))


@route("POST", f"{BUDGET}/reset", Role.OPERATOR, statuses={200: BudgetReset})
async def reset_budget(call: Call) -> Response:
    """Begin a new period: what was spent no longer counts."""
    return call.answer(await call.execute(ResetBudgetArgs(budget_id=call.path_id("budget_id"))))


@route(
    "POST",
    "/v1/quotas",
    Role.OPERATOR,
    body=CreateQuotaPolicyArgs,
    statuses={201: CreateQuotaPolicyResult, 200: CreateQuotaPolicyResult},
)
async def create_quota_policy(call: Call) -> Response:
    """Create a quota policy; repeating it answers AlreadySatisfied."""
    outcome = await call.execute(await call.command(CreateQuotaPolicyArgs))
    return call.answer(outcome, 201 if isinstance(outcome, QuotaPolicyCreated) else 200)

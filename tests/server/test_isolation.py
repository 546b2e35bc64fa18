"""What a token of one namespace learns about another one: nothing, on any route, by any operation.

Everything that the namespace ``other`` has bears one uuid. Each question is asked three times: by a
stranger with ids that nobody has, by the stranger with the ids of ``other``, and by its owner. The
first two answers are the same to the byte; that the third differs shows that there was something to
be seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from flowfabric.contracts.base import Command
from flowfabric.contracts.budgets import CreateBudgetArgs, EnforcementMode, OnHardLimit, OnSoftLimit
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.flows import AddExecutionToFlowArgs, CreateFlowArgs, StageDependencyEdgeArgs
from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs
from flowfabric.contracts.lanes import SetLaneStateArgs
from flowfabric.contracts.packed import JSON, pack
from flowfabric.contracts.quotas import CreateQuotaPolicyArgs
from flowfabric.contracts.states import LaneState
from flowfabric.contracts.wire import to_wire
from flowfabric.contracts.workers import RegisterWorkerArgs
from flowfabric.engine.engine import Engine
from flowfabric.minting import new_execution_id
from flowfabric.server import Role, ServerOptions, Service, entry_for, make_app
from flowfabric.server.routes import ROUTES, Route
from flowfabric.server.routes.commands import operations
from flowfabric.server.routes.table import PATH_FIELD
from flowfabric.stores.memory import MemoryStore
from tests.contracts.samples import UUID, struct
from tests.server.conftest import SECRET

OTHERS = "22222222-2222-4333-8444-555555555555"
NOBODYS = "33333333-2222-4333-8444-555555555555"
EVERYTHING = tuple(Role)
VARIES = re.compile(r"\b1[0-9]{12}\b|\{fp:\d+\}")
"""Times, and partitions: that of a flow follows from its id."""
NAMED = {"worker_id": UUID, "worker_instance_id": UUID, "lane_id": UUID, "partition": 7}
"""Fields of free text that name something of a namespace as well."""

CREATES = {"create_execution", "create_flow", "submit_flow", "create_budget", "create_quota_policy"}
"""An id that is taken cannot be taken again, and only that is said; ids are random, so nobody guesses one."""


@asynccontextmanager
async def two_namespaces() -> AsyncIterator[tuple[httpx.AsyncClient, Engine]]:
    """A server whose namespace ``other`` has one of everything, and whose ``demo`` has nothing."""
    tokens = [entry_for(namespace, namespace, EVERYTHING, namespace) for namespace in ("demo", "other")]
    async with Engine(MemoryStore()) as engine:
        await engine.execute(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex=SECRET))
        for command in everything():
            await engine.execute(command, namespace="other")
        service = Service(engine, ServerOptions(tokens=tuple(tokens)))
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client, engine
        service.close()


def everything() -> list[Command[Any]]:
    """One execution that waits for work, a flow with two members and an edge, and the rest."""
    execution_id = f"{{fp:7}}:{OTHERS}"
    upstream, downstream = (new_execution_id(flow_id=OTHERS) for _ in range(2))
    return [
        creation(execution_id),
        creation(upstream),
        creation(downstream),
        CreateFlowArgs(flow_id=OTHERS, flow_kind="k", namespace="other"),
        *(AddExecutionToFlowArgs(flow_id=OTHERS, execution_id=id_) for id_ in (upstream, downstream)),
        StageDependencyEdgeArgs(
            flow_id=OTHERS,
            edge_id=OTHERS,
            upstream_execution_id=upstream,
            downstream_execution_id=downstream,
            expected_graph_revision=2,
        ),
        CreateBudgetArgs(
            budget_id=OTHERS,
            scope_type="t",
            scope_id="s",
            enforcement_mode=EnforcementMode.STRICT,
            on_hard_limit=OnHardLimit.DENY,
            on_soft_limit=OnSoftLimit.WARN,
            reset_interval_ms=0,
            dimensions=("tokens",),
            hard_limits=(5,),
            soft_limits=(4,),
        ),
        CreateQuotaPolicyArgs(
            quota_policy_id=OTHERS, window_seconds=60, max_requests_per_window=1, max_concurrent=1
        ),
        RegisterWorkerArgs(worker_id=OTHERS, worker_instance_id=OTHERS, namespace="other", lanes=(OTHERS,)),
        SetLaneStateArgs(namespace="other", lane_id=OTHERS, state=LaneState.DRAINING),
    ]


def creation(execution_id: str) -> CreateExecutionArgs:
    return CreateExecutionArgs(
        execution_id=execution_id,
        namespace="other",
        lane_id="default",
        execution_kind="k",
        input_payload=b"secret",
        priority=0,
        creator_identity="other",
        tags={"team.name": "secret"},
        partition_id=int(execution_id[4 : execution_id.index("}")]),
    )


async def ask(
    client: httpx.AsyncClient, who: str, whose: str, asked: tuple[str, str], body: str | None = None
) -> tuple[int, str]:
    """What a token is answered when it asks for this uuid; the uuid itself is blotted out."""
    method, path = asked
    answer = await client.request(
        method,
        path.replace(UUID, whose),
        content=None if body is None else body.replace(UUID, whose),
        headers={"Authorization": f"Bearer {who}", "Content-Type": JSON},
    )
    return answer.status_code, VARIES.sub("", answer.text.replace(whose, ""))


async def three_answers(method: str, path: str, body: str | None) -> list[tuple[int, str]]:
    """Nobody's ids and those of ``other`` as a stranger sees them, and the latter as their owner does."""
    answers = []
    for who, whose in (("demo", NOBODYS), ("demo", OTHERS), ("other", OTHERS)):
        async with two_namespaces() as (client, _):
            answers.append(await ask(client, who, whose, (method, path), body))
    return answers


def command_of(operation: str, *, full: bool) -> str:
    """The body of a command that names everything by the one uuid."""
    kind = operations()[operation]
    raw = json.loads(pack(struct(kind, full=full), JSON))
    named = {name: value for name, value in NAMED.items() if name in raw}
    return json.dumps({**raw, **named, **({"namespace": "demo"} if "namespace" in raw else {})})


BLIND = {
    "ack_cancel_member",
    "add_execution_to_flow",
    "block_route",
    "capabilities",
    "claim_batch",
    "claim_for_worker",
    "expire_execution",
    "get_execution_result",
    "get_flow_tag",
    "issue_claim_grant",
    "list_edges",
    "list_execution_summaries",
    "list_expired_leases",
    "list_flows",
    "list_suspended",
    "list_waitpoint_hmac_kids",
    "list_workers",
    "ping",
    "resolve_execution_flow_id",
    "rotate_waitpoint_hmac_secret",
    "rotate_waitpoint_hmac_secret_all",
    "scan_eligible",
    "seed_waitpoint_hmac_secret",
    "server_time",
    "stage_dependency_edge",
    "tail_events",
    "trim_retention",
}
"""Operations that tell their owner no more: because it has nothing of the kind, or they name nothing."""


@pytest.mark.parametrize("operation", sorted(set(operations()) - CREATES))
async def test_an_operation_says_the_same_of_what_others_have_as_of_nothing(operation: str) -> None:
    told_more = False
    for full in (False, True):
        body = command_of(operation, full=full)
        missing, foreign, own = await three_answers("POST", f"/v1/commands/{operation}", body)
        assert foreign == missing
        told_more |= own != missing
    assert told_more == (operation not in BLIND)


@pytest.mark.parametrize("operation", sorted(CREATES))
async def test_what_others_have_is_not_replaced(operation: str) -> None:
    body = command_of(operation, full=False)
    async with two_namespaces() as (client, _):
        before = await seen_by_its_owner(client)
        status, told = await ask(client, "demo", OTHERS, ("POST", f"/v1/commands/{operation}"), body)
        assert status in (400, 409)
        assert "secret" not in told
        assert await seen_by_its_owner(client) == before


async def seen_by_its_owner(client: httpx.AsyncClient) -> list[tuple[int, str]]:
    return [
        await ask(client, "other", OTHERS, ("GET", path_of(route)))
        for route in ROUTES
        if route.method == "GET" and "/v1/view/" in route.path and "{" in route.path
    ]


def path_of(route: Route) -> str:
    """The path of a route with the one uuid for every id."""
    path = route.path.replace("{execution_id}", f"%7Bfp:7%7D:{UUID}").replace("{attempt_index}", "0")
    return PATH_FIELD.sub(UUID, path)


def body_of(route: Route) -> str | None:
    """A body for a route, with what its path does not say."""
    if route.body is None:
        return None
    if not (isinstance(route.body, type) and issubclass(route.body, Command)):
        return "{}"
    raw = to_wire(struct(route.body, full=False))
    in_path = PATH_FIELD.findall(route.path)
    return json.dumps({name: value for name, value in raw.items() if name not in in_path})


WITH_IDS = [route for route in ROUTES if "_id}" in route.path]


@pytest.mark.parametrize("route", WITH_IDS, ids=lambda route: f"{route.method} {route.path}")
async def test_a_route_says_the_same_of_what_others_have_as_of_nothing(route: Route) -> None:
    answers = []
    for whose in (NOBODYS, OTHERS):
        async with two_namespaces() as (client, _):
            answers.append(await ask(client, "demo", whose, (route.method, path_of(route)), body_of(route)))
    assert answers[0] == answers[1]


async def test_lists_show_nothing_of_others() -> None:
    lists = [
        route
        for route in ROUTES
        if route.method == "GET" and route.path.startswith("/v1/") and "{" not in route.path
    ]
    async with two_namespaces() as (client, _):
        for route in lists:
            if "/live/" not in route.path:
                query = "?partition=7" if "partition" in route.query else ""
                _, told = await ask(client, "demo", OTHERS, ("GET", f"{route.path}{query}"))
                assert "secret" not in told
                assert "other" not in told, route.path


BY_ID = ("/v1/executions?partition=7&", "/v1/view/suspended?", "/v1/view/flows?")
"""Lists whose cursors name what they continue behind."""


@pytest.mark.parametrize("path", BY_ID)
async def test_a_cursor_of_others_leads_where_one_of_nobody_does(path: str) -> None:
    """Between the ids is nothing of the caller's, so all of them have to lead to the same page."""
    answers = []
    for whose in (f"21{OTHERS[2:]}", OTHERS, NOBODYS):
        async with two_namespaces() as (client, engine):
            for first in "19":
                own = creation(f"{{fp:7}}:{first}{OTHERS[1:]}")
                await engine.execute(msgspec.structs.replace(own, namespace="demo"), namespace="demo")
            cursor = whose if "flows" in path else f"%7Bfp:7%7D:{whose}"
            answers.append(await ask(client, "demo", whose, ("GET", f"{path}cursor={cursor}")))
    assert answers[0] == answers[1] == answers[2]

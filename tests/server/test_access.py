"""Who is let in, and to what."""

import itertools
from pathlib import Path

import httpx
import pytest

from flowfabric.engine.engine import Engine
from flowfabric.errors import InvalidInput
from flowfabric.server import Role, ServerOptions, Service, entry_for, make_app, new_token, read_tokens
from flowfabric.server.access import GIVES, Tokens
from flowfabric.server.permissions import NEEDED, roles_for
from flowfabric.server.routes import ROUTES, Route
from flowfabric.server.routes.commands import operations
from flowfabric.stores.memory import MemoryStore
from tests.server.conftest import CREATION, EXECUTION, ID

TOKENS = {role: f"token-of-{role}" for role in Role}
ENTRIES = tuple(entry_for(TOKENS[role], str(role), (role,), "demo") for role in Role)
NOW = 1_000


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def options() -> ServerOptions:
    return ServerOptions(tokens=ENTRIES)


def concrete(route: Route) -> str:
    path = route.path.replace("{execution_id}", EXECUTION.rpartition("/")[2])
    for name, value in {
        "{budget_id}": "0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22",
        "{flow_id}": "0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22",
        "{waitpoint_id}": "0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22",
        "{attempt_index}": "0",
        "{worker_id}": "w",
        "{edge_id}": "0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22",
        "{quota_policy_id}": "0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22",
        "{operation}": "server_time",
    }.items():
        path = path.replace(name, value)
    assert "{" not in path.replace("%7B", "")
    return path


OPEN = [route for route in ROUTES if not route.roles]


BY_LINK = {"/w/", "/w/answer.js", "/w/answer.css", "/w/question", "/w/answer"}
"""Open to whoever holds the token of a waitpoint, and the page that they open."""


def test_only_health_metrics_the_documents_and_links_are_open() -> None:
    assert {route.path for route in OPEN} - BY_LINK == {
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/metrics",
    }


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_without_a_token_no_route_answers(client: httpx.AsyncClient, route: Route) -> None:
    answer = await client.request(route.method, concrete(route))
    assert (answer.status_code == 401) == bool(route.roles)
    if route.roles:
        assert answer.json() == {"error": "missing or invalid Authorization header"}


async def test_an_unknown_path_needs_a_token_too(client: httpx.AsyncClient) -> None:
    assert (await client.get("/nothing")).status_code == 401
    assert (await client.get("/nothing", headers=bearer(TOKENS[Role.READ]))).status_code == 404


@pytest.mark.parametrize(
    ("role", "route"),
    [pair for pair in itertools.product(Role, ROUTES) if pair[1].roles],
    ids=lambda part: str(part) if isinstance(part, Role) else f"{part.method} {part.path}",
)
async def test_a_route_answers_exactly_the_roles_that_give_what_it_needs(
    client: httpx.AsyncClient, service: Service, role: Role, route: Route
) -> None:
    service.close()  # so that no answer goes on
    answer = await client.request(route.method, concrete(route), headers=bearer(TOKENS[role]))
    refused = answer.status_code == 403
    needed = roles_for("server_time") if "{operation}" in route.path else route.roles
    assert refused == needed.isdisjoint(GIVES[role])


def test_every_operation_has_been_given_to_somebody() -> None:
    assert set(NEEDED) == set(operations())


def test_an_operation_that_is_not_named_is_for_admins_only() -> None:
    assert roles_for("no_such_operation") == {Role.ADMIN}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"bearer token-of-admin",
        b"Bearer  token-of-admin",
        b"Bearer token-of-admi",
        b"Bearer token-of-admin ",
        b"Basic token-of-admin",
        "Bearer tökén".encode(),
        b"Bearer \xff\xfe",
        b"Bearer " + b"x" * 1_000_000,
    ],
)
def test_a_header_that_holds_no_known_token_is_refused(header: bytes) -> None:
    assert Tokens(ENTRIES).principal_of([header], NOW) is None


def test_two_headers_are_refused_even_if_both_are_good() -> None:
    header = b"Bearer token-of-admin"
    assert Tokens(ENTRIES).principal_of([header], NOW) is not None
    assert Tokens(ENTRIES).principal_of([header, header], NOW) is None
    assert Tokens(ENTRIES).principal_of([], NOW) is None


def test_a_token_is_refused_from_the_instant_of_its_expiry() -> None:
    tokens = Tokens([entry_for("t", "t", (Role.READ,), None, expires_at=NOW)])
    assert tokens.principal_of([b"Bearer t"], NOW - 1) is not None
    assert tokens.principal_of([b"Bearer t"], NOW) is None


async def test_a_token_sees_its_own_namespace_only(client: httpx.AsyncClient, engine: Engine) -> None:
    foreign = {**CREATION, "namespace": "other"}
    refused = await client.post("/v1/executions", json=foreign, headers=bearer(TOKENS[Role.SUBMIT]))
    assert refused.status_code == 400
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(make_app(Service(engine, ServerOptions()))), base_url="http://server"
    ) as anyone:
        assert (await anyone.post("/v1/executions", json=foreign)).status_code == 201
    hidden = await client.get(EXECUTION, headers=bearer(TOKENS[Role.ADMIN]))
    assert hidden.status_code == 404
    assert hidden.json() == {"error": f"execution not found: {ID}"}
    page = await client.get("/v1/executions?partition=86", headers=bearer(TOKENS[Role.READ]))
    assert page.json()["executions"] == []


async def test_a_token_cannot_name_another_namespace(client: httpx.AsyncClient) -> None:
    headers = {**bearer(TOKENS[Role.ADMIN]), "FlowFabric-Namespace": "other"}
    answer = await client.get("/v1/executions?partition=1", headers=headers)
    assert answer.status_code == 403


def test_new_tokens_differ_and_are_long() -> None:
    assert new_token() != new_token()
    assert len(new_token()) >= 43


def test_a_tokens_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    entry = entry_for("secret", "ana", (Role.READ,), "demo")
    path.write_text(f'[[token]]\nname="ana"\nsha256="{entry.sha256}"\nroles=["read"]\nnamespace="demo"\n')
    assert read_tokens(path) == [entry]
    assert "secret" not in path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "[[token]",
        '[[token]]\nname="a"',
        '[[token]]\nname="a"\nsha256="xy"',
        f'[[token]]\nname="a"\nsha256="{"0" * 64}"\nroles=["king"]',
        f'[[token]]\nname="a"\nsha256="{"0" * 64}"\nroles=[]',
        f'[[token]]\nname="a"\nsha256="{"0" * 64}"\ncolour="red"',
        f'[[token]]\nname="a"\nsha256="{"0" * 64}"\n' * 2,
    ],
)
def test_a_tokens_file_that_is_wrong_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as refused:
        read_tokens(path)
    assert str(path) in str(refused.value)


async def test_every_answer_says_so_when_the_server_is_open_to_all() -> None:
    async with Engine(MemoryStore()) as engine:
        service = Service(engine, ServerOptions(insecure=True))
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            for path in ("/healthz", "/nothing", "/v1/executions"):
                assert (await client.get(path)).headers["flowfabric-insecure"] == "true"


async def test_a_closed_server_says_nothing_about_being_open(client: httpx.AsyncClient) -> None:
    assert "flowfabric-insecure" not in (await client.get("/healthz")).headers

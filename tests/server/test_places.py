"""A namespace takes its share of a server, and the others are served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from flowfabric.engine.engine import Engine
from flowfabric.server import Role, ServerOptions, Service, entry_for
from flowfabric.server.access import Principal
from flowfabric.server.calls import Refused
from flowfabric.server.places import Party, Pool
from tests.server.live import Follower

NOISY, QUIET, SECOND, FREE = "token-n", "token-q", "token-s", "token-f"
TOKENS = (
    entry_for(NOISY, "noisy", (Role.ADMIN,), "noisy"),
    entry_for(SECOND, "noisy again", (Role.ADMIN,), "noisy"),
    entry_for(QUIET, "quiet", (Role.ADMIN,), "quiet"),
    entry_for(FREE, "operations", (Role.ADMIN,), None),
)
SHARE = 3
A, B = Party("a", ""), Party("b", "")
ALL = Party(None, "operations")
WAITING = (
    ("GET", "/v1/changes?wait_ms=30000&after={mark}", None),
    ("POST", "/v1/commands/tail_events", {"families": ["completion"], "block_ms": 30_000}),
    (
        "POST",
        "/v1/claims?wait_ms=30000",
        {"lanes": ["default"], "worker_id": "w", "worker_instance_id": "w-1", "lease_ttl_ms": 30_000},
    ),
)


def by(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class Gate:
    """Holds the commands of one namespace up, so that their requests stay under way."""

    def __init__(self, engine: Engine) -> None:
        self._execute = engine.execute
        self.opened = asyncio.Event()
        self.held = 0
        self.news = asyncio.Condition()

    async def execute(self, command: Any, **more: Any) -> Any:
        if more.get("namespace") == "noisy":
            async with self.news:
                self.held += 1
                self.news.notify_all()
            await self.opened.wait()
        return await self._execute(command, **more)

    async def until_held(self, count: int) -> None:
        async with asyncio.timeout(10), self.news:
            await self.news.wait_for(lambda: self.held == count)


@pytest.fixture
def options() -> ServerOptions:
    return ServerOptions(tokens=TOKENS, requests_per_namespace_max=SHARE, waits_per_namespace_max=SHARE)


@pytest.fixture
def gate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate(engine)
    monkeypatch.setattr(engine, "execute", gate.execute)
    return gate


def require_too_many(answer: httpx.Response) -> None:
    told = answer.json()
    assert (answer.status_code, told["kind"], told["retryable"]) == (429, "resource_exhausted", True)
    assert int(answer.headers["retry-after"]) > 0


async def read(client: httpx.AsyncClient, token: str) -> httpx.Response:
    async with asyncio.timeout(10):
        return await client.post("/v1/commands/server_time", json={}, headers=by(token))


async def test_a_namespace_at_its_bound_is_refused_and_the_others_are_served(
    client: httpx.AsyncClient, gate: Gate
) -> None:
    async with asyncio.TaskGroup() as group:
        noise = [group.create_task(read(client, NOISY)) for _ in range(SHARE)]
        await gate.until_held(SHARE)
        for token in (NOISY, SECOND):
            require_too_many(await read(client, token))
        for token in (QUIET, FREE):
            assert (await read(client, token)).status_code == 200
        assert gate.held == SHARE
        gate.opened.set()
    assert [task.result().status_code for task in noise] == [200] * SHARE
    assert (await read(client, NOISY)).status_code == 200


async def test_nothing_is_read_of_a_request_beyond_the_bound(client: httpx.AsyncClient, gate: Gate) -> None:
    reads = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal reads
        reads += 1
        yield b"{}"

    async with asyncio.TaskGroup() as group:
        for _ in range(SHARE):
            group.create_task(read(client, NOISY))
        await gate.until_held(SHARE)
        require_too_many(await client.post("/v1/executions", content=body(), headers=by(NOISY)))
        assert reads == 0
        gate.opened.set()


async def test_the_namespace_that_a_request_names_is_not_what_counts(
    client: httpx.AsyncClient, gate: Gate
) -> None:
    named = {**by(FREE), "Flowfabric-Namespace": "noisy"}
    async with asyncio.TaskGroup() as group:
        for _ in range(SHARE):
            group.create_task(client.post("/v1/commands/server_time", json={}, headers=named))
        await gate.until_held(SHARE)
        require_too_many(await read(client, FREE))
        assert (await read(client, QUIET)).status_code == 200
        gate.opened.set()


async def test_what_is_open_to_everybody_answers_whoever_is_at_their_bound(
    client: httpx.AsyncClient, gate: Gate
) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(SHARE):
            group.create_task(read(client, NOISY))
        await gate.until_held(SHARE)
        assert (await client.get("/healthz", headers=by(NOISY))).status_code == 200
        gate.opened.set()


@pytest.mark.parametrize(("method", "path", "body"), WAITING, ids=[path for _, path, _ in WAITING])
async def test_those_who_wait_are_counted_apart(
    client: httpx.AsyncClient, service: Service, method: str, path: str, body: Any
) -> None:
    mark = (await client.get("/v1/changes", headers=by(NOISY))).json()["mark"]
    path = path.replace("{mark}", mark)

    async def wait(token: str) -> httpx.Response:
        return await client.request(method, path, json=body, headers=by(token))

    tasks = [asyncio.create_task(wait(NOISY)) for _ in range(SHARE)]
    await until(lambda: service.waiting == SHARE)
    require_too_many(await wait(NOISY))
    assert (await read(client, NOISY)).status_code == 200
    tasks.append(asyncio.create_task(wait(QUIET)))
    await until(lambda: service.waiting == SHARE + 1)
    service.close()
    assert {(await task).status_code for task in tasks} == {503}


async def test_a_run_that_could_not_be_waited_for_is_not_submitted(
    client: httpx.AsyncClient, service: Service
) -> None:
    with waits_taken(service, "noisy"):
        answer = await client.post("/v1/runs?wait_ms=1000", json={"kind": "resize"}, headers=by(NOISY))
    require_too_many(answer)
    listed = await client.get("/v1/view/executions", headers=by(NOISY))
    assert listed.json()["executions"] == []
    answer = await client.post("/v1/runs", json={"kind": "resize"}, headers=by(NOISY))
    assert answer.status_code == 201


async def test_a_live_stream_waits(client: httpx.AsyncClient, service: Service) -> None:
    with waits_taken(service, "noisy"):
        require_too_many(await client.get("/v1/live/events", headers=by(NOISY)))
    assert service.live == 0
    async with Follower(service, "/v1/live/events", headers=by(NOISY)) as follower:
        await follower.next()
        assert service.live == 1


@contextmanager
def waits_taken(service: Service, namespace: str) -> Iterator[None]:
    """All places of a namespace among those that wait are taken."""
    principal = Principal("other", namespace, frozenset())
    with ExitStack() as stack:
        for _ in range(SHARE):
            place = service.place_for(principal)
            place.wait()
            stack.callback(place.give_back)
        yield


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


class TestPools:
    """Where a server has a number of places, a namespace has half of them at most."""

    def test_a_namespace_never_has_all_places(self) -> None:
        pool = Pool("tails", most=4)
        with pool.taking(A), pool.taking(A):
            with pytest.raises(Refused, match=r"of one namespace \(max: 2\)"):
                pool.require(A)
            pool.require(B)
        pool.require(A)
        assert pool.taken == 0

    def test_a_token_for_all_namespaces_may_have_them_all(self) -> None:
        pool = Pool("tails", most=2)
        with pool.taking(ALL):
            pool.require(ALL)
            with pool.taking(ALL), pytest.raises(Refused, match=r"server max: 2"):
                pool.require(ALL)

    def test_all_places_are_all(self) -> None:
        pool = Pool("tails", most=2)
        with pool.taking(A), pool.taking(B), pytest.raises(Refused, match=r"server max: 2"):
            pool.require(Party("c", ""))

    def test_a_namespace_and_a_token_of_its_name_are_two(self) -> None:
        noisy = frozenset[Role]()
        assert Party.of(Principal("a", None, noisy)) != Party.of(Principal("b", "a", noisy))
        assert Party.of(Principal("a", "n", noisy)) == Party.of(Principal("b", "n", noisy))

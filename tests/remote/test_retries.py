"""Sending a request again: when that may help, no more often than that, and always the same one."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from flowfabric import errors
from flowfabric.contracts.packed import MSGPACK, pack, unpack
from flowfabric.contracts.reads import ServerTimeArgs
from flowfabric.contracts.streams import TailFramesArgs
from flowfabric.remote import HttpEngine
from flowfabric.remote import engine as remote_engine
from flowfabric.remote.problems import error_of, may_succeed_later

GREETING = {"version": "1", "store": "memory", "durability": "D0", "name": "x", "roles": []}
Answer = Callable[[httpx.Request], httpx.Response]


class Server:
    """Answers requests with commands as a list says, and remembers them."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []
        self.ids: list[str | None] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/server":
            return httpx.Response(200, json=GREETING)
        if request.url.path == "/v1/changes":
            await asyncio.Event().wait()
        self.bodies.append(request.content)
        self.ids.append(request.headers.get("idempotency-key"))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer(request)


def told(request: httpx.Request) -> httpx.Response:
    commands = unpack(request.content, dict, MSGPACK)["commands"]
    answers = {"answers": [{"outcome": {"now_ms": 7}} for _ in commands]}
    return httpx.Response(200, content=pack(answers, MSGPACK))


class Status:
    """An answer with this status. Shown by what it says, for it names a test."""

    def __init__(self, number: int, **more: object) -> None:
        self.number = number
        self.more = more

    def __call__(self, _: httpx.Request) -> httpx.Response:
        headers = {"Retry-After": "3"} if self.number in (429, 503) else {}
        return httpx.Response(self.number, json={"error": "x", **self.more}, headers=headers)

    def __str__(self) -> str:
        return " ".join([str(self.number), *(f"{name}={value}" for name, value in self.more.items())])


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the client makes, which take no time."""
    made: list[float] = []
    sleep = asyncio.sleep

    async def pause(delay: float) -> None:
        made.append(delay)
        await sleep(0)

    monkeypatch.setattr("flowfabric.remote.engine.asyncio.sleep", pause)
    return made


async def started(server: Server) -> AsyncIterator[HttpEngine]:
    async with HttpEngine("http://server", transport=httpx.MockTransport(server)) as engine:
        yield engine


@pytest.mark.scenario("HTTP-013")
@pytest.mark.parametrize("code", range(400, 600))
def test_what_the_server_says_of_retrying_wins(code: int) -> None:
    assert may_succeed_later(code, {}) == (code in (429, 502, 503, 504))
    assert may_succeed_later(code, "no object") == (code in (429, 502, 503, 504))
    assert may_succeed_later(code, {"retryable": True})
    assert not may_succeed_later(code, {"retryable": False})


@pytest.mark.scenario("HTTP-013")
@pytest.mark.parametrize(
    "failure",
    [
        Status(429),
        Status(502),
        Status(503),
        Status(504),
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("gone"),
        httpx.ReadError("reset"),
    ],
    ids=str,
)
async def test_a_request_that_may_succeed_later_is_sent_again(
    failure: Answer | Exception, pauses: list[float]
) -> None:
    server = Server(failure, failure, told)
    async for engine in started(server):
        assert (await engine.execute(ServerTimeArgs())).now_ms == 7
    assert len(set(server.bodies)) == 1
    assert len(server.bodies) == 3


@pytest.mark.scenario("HTTP-013")
async def test_a_server_that_asks_to_be_left_alone_is(pauses: list[float]) -> None:
    server = Server(Status(503), told)
    async for engine in started(server):
        await engine.execute(ServerTimeArgs())
    assert [pause for pause in pauses if pause >= 3] == [3]


@pytest.mark.scenario("HTTP-013")
async def test_it_is_not_sent_for_ever(pauses: list[float]) -> None:
    server = Server(*[Status(503)] * 9)
    async for engine in started(server):
        with pytest.raises(errors.StoreUnreachable):
            await engine.execute(ServerTimeArgs())
    assert len(server.bodies) == 1 + len(remote_engine.RETRY_PAUSES_S)


@pytest.mark.scenario("HTTP-013")
@pytest.mark.parametrize(
    "failure",
    [
        Status(503, retryable=False),
        Status(400),
        Status(401),
        Status(409, retryable=True, code="contention"),
        Status(500, code="store_corrupt"),
        httpx.ReadTimeout("late"),
    ],
    ids=str,
)
async def test_a_request_that_would_fail_again_is_sent_once(
    failure: Answer | Exception, pauses: list[float]
) -> None:
    server = Server(failure)
    async for engine in started(server):
        with pytest.raises(errors.FlowFabricError):
            await engine.execute(ServerTimeArgs())
    assert len(server.bodies) == 1


async def test_a_command_that_travels_alone_keeps_its_request_id(pauses: list[float]) -> None:
    frames: dict[str, object] = {"frames": [], "closed_at": None, "closed_reason": None}
    server = Server(Status(502), lambda _: httpx.Response(200, content=pack(frames, MSGPACK)))
    command = TailFramesArgs(
        execution_id="{fp:7}:0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22", attempt_index=0, block_ms=0
    )
    async for engine in started(server):
        await engine.execute(command)
    assert server.ids[0]
    assert server.ids[0] == server.ids[1]


def test_a_server_that_ends_is_one_that_cannot_be_reached() -> None:
    """Its workers wait for its successor; an operation that is not offered would end them."""
    ending = {"error": "shutting down", "kind": "unavailable", "retryable": False}
    assert isinstance(error_of(503, ending), errors.StoreUnreachable)
    assert error_of(503, ending).retryable
    assert isinstance(error_of(503, {**ending, "code": "unavailable"}), errors.Unavailable)

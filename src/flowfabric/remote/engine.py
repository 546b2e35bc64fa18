"""The engine's one door, over a server.

- Commands that come up in one turn of the event loop travel in one request.
- Every command has a request id from here, so that a lost answer is learned by asking again.
- Commands that wait on the server travel alone, so that they hold up no others.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from flowfabric import errors
from flowfabric.addresses import is_loopback
from flowfabric.contracts.check import check
from flowfabric.contracts.events import TailEventsArgs
from flowfabric.contracts.flows import CancelFlowArgs
from flowfabric.contracts.packed import MSGPACK, pack, unpack
from flowfabric.contracts.reads import ServerTimeArgs
from flowfabric.contracts.streams import TailFramesArgs
from flowfabric.core.registry import result_type_of
from flowfabric.engine.feeds import Subscribing
from flowfabric.engine.layers import operation_name
from flowfabric.engine.notifier import Notifier
from flowfabric.remote.problems import RETRYABLE, error_of, error_of_fault, may_succeed_later
from flowfabric.stores.base import Durability

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from flowfabric.contracts.base import Command
    from flowfabric.engine.layers import Door, Layer

R = TypeVar("R")

COMMANDS_MAX: Final = 256
REQUESTS_MAX: Final = 4
"""How many requests with commands are in flight at once; while they are, the next one fills."""
TIMEOUT_S: Final = 60.0
WATCH_MS: Final = 20_000
PAUSE_S: Final = 1.0
RETRY_PAUSES_S: Final = (0.1, 0.4, 1.6)
"""How long the client waits at least before it sends a request again; after that it gives up."""
RETRY_AFTER_S_MAX: Final = 5.0
"""The longest that the client waits because a server asks for it."""
PATIENT: Final = (TailFramesArgs, TailEventsArgs, CancelFlowArgs)
"""Commands that the server may answer late."""

log = logging.getLogger("flowfabric.remote")


class Told(msgspec.Struct):
    """One answer of a request with many commands."""

    outcome: msgspec.Raw = msgspec.Raw()
    status: int = 200
    problem: dict[str, Any] | None = None


class ManyTold(msgspec.Struct):
    """The answers to many commands, in their order."""

    answers: list[Told]


class Failed(msgspec.Struct):
    """A request that had no success, and whether to send it again."""

    error: errors.FlowFabricError
    is_worth_repeating: bool
    retry_after_s: float = 0.0


class Errand(msgspec.Struct):
    """One command on its way to the server."""

    command: Any
    request_id: str
    namespace: str | None
    answer: asyncio.Future[Any]
    caller: Any = None
    """The span in which it was asked for, if there are spans."""


class RequestTracing(Protocol):
    """What opens a span around each request with commands."""

    def caller(self) -> Any:
        """The span in which we are."""

    def asking(
        self, method: str, route: str, callers: Iterable[Any]
    ) -> AbstractContextManager[dict[str, str]]:
        """The span of a request that carries commands of these callers. Yields its headers."""


class Outside:
    """The door behind all layers: the way to the server."""

    def __init__(self, engine: HttpEngine) -> None:
        self._engine = engine

    async def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        """Send one command. The server knows the actor by the token."""
        check(command)
        send = self._engine.send_alone if type(command) in PATIENT else self._engine.send
        return await send(command, request_id, namespace)

    async def execute_many(
        self,
        commands: Sequence[Command[R]],
        *,
        request_ids: Sequence[str | None] | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> list[R | Exception]:
        """Send many commands."""
        ids = request_ids if request_ids is not None else [None] * len(commands)
        tasks = [
            self.execute(command, request_id=request_id, namespace=namespace)
            for command, request_id in zip(commands, ids, strict=True)
        ]
        answers: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                raise answer
        return answers


class HttpEngine(Subscribing):
    """Executes commands through a server.

    Args:
        url: where the server is, such as ``http://localhost:9090``.
        token: what the server knows the caller by.
        namespace: the namespace of commands that do not name another.
        layers: what wraps the door, the innermost first.
        transport: how requests are sent, for tests.
        tracing: opens spans for requests.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        namespace: str | None = None,
        layers: Iterable[Layer] = (),
        transport: httpx.AsyncBaseTransport | None = None,
        tracing: RequestTracing | None = None,
    ) -> None:
        self.namespace = namespace
        self.notifier = Notifier()
        self.durability: Durability | None = None
        self._url = url
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._transport = transport
        self._tracing = tracing
        self._client: httpx.AsyncClient | None = None
        self._closing = False
        self._queue: list[Errand] = []
        self._senders: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._request_prefix = ""
        self._request_numbers = itertools.count()
        self._door: Door = Outside(self)
        for layer in layers:
            self._door = layer(self._door)

    async def start(self) -> Durability:
        """Greet the server. Returns what an acknowledged command survives there.

        Raises:
            Unauthorized: the token is not known.
            StoreError: the server cannot be reached.
        """
        self._warn_of_risks()
        self._client = httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=TIMEOUT_S, transport=self._transport
        )
        self._request_prefix = secrets.token_hex(8)
        try:
            told = await self._get("/v1/server")
        except BaseException:
            await self._client.aclose()
            self._client = None
            raise
        self.durability = Durability(level=str(told["durability"]), store=str(told["store"]), settings={})
        self.notifier.open()
        self._watch = asyncio.create_task(self._watch_server(), name="flowfabric watch")
        return self.durability

    def _warn_of_risks(self) -> None:
        url = urlsplit(self._url)
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            log.warning(
                "what is sent to http://%s, tokens included, can be read on the way. Use https://.",
                url.netloc.rpartition("@")[2],
            )

    async def stop(self) -> None:
        """Finish what is in flight and close the connections."""
        client = self._client
        if client is None or self._closing:
            return
        self._closing = True
        self.notifier.close()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await asyncio.gather(*self._senders, return_exceptions=True)
        await client.aclose()
        self._client, self.durability, self._closing = None, None, False

    async def now(self) -> int:
        """The clock of the server's store, in milliseconds."""
        return (await self.execute(ServerTimeArgs())).now_ms

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        """What ``Engine.execute`` does, by the server.

        Raises:
            InvalidInput: a field breaks a rule; nothing was changed.
            Unauthorized: the token does not allow this.
            FlowFabricError: the refusal of the command's rule; nothing was changed.
            StoreError: no answer came. Ask again with the same ``request_id``.
        """
        return await self._door.execute(command, request_id=request_id, namespace=namespace, actor=actor)

    async def execute_many(
        self,
        commands: Sequence[Command[R]],
        *,
        request_ids: Sequence[str | None] | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> list[R | Exception]:
        """What ``Engine.execute_many`` does, by the server."""
        return await self._door.execute_many(
            commands, request_ids=request_ids, namespace=namespace, actor=actor
        )

    async def ask(self, path: str) -> bytes:
        """Have the server do something that no command stands for. It may take as long as it needs.

        Raises:
            Unauthorized: the token does not allow this.
            StoreError: no answer came.
        """
        self._require_running()
        answer = await self._request("POST", path, headers=self._bounds(self.namespace), timeout=None)
        return answer.content

    # The way to the server

    async def send(self, command: Command[R], request_id: str | None, namespace: str | None) -> R:
        """Send a command together with the others that come up now."""
        self._require_running()
        errand = Errand(
            command,
            request_id or self._new_request_id(),
            self.namespace if namespace is None else namespace,
            asyncio.get_running_loop().create_future(),
            None if self._tracing is None else self._tracing.caller(),
        )
        self._queue.append(errand)
        if len(self._senders) < REQUESTS_MAX:
            sender = asyncio.get_running_loop().create_task(self._send_queued())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        answer: R = await errand.answer
        return answer

    async def send_alone(self, command: Command[R], request_id: str | None, namespace: str | None) -> R:
        """Send a command in a request of its own, which may take as long as the command says."""
        self._require_running()
        kind = type(command)
        caller = None if self._tracing is None else self._tracing.caller()
        data = await self._post(
            f"/v1/commands/{operation_name(kind)}",
            pack(command, MSGPACK),
            {"Idempotency-Key": request_id or self._new_request_id()},
            self.namespace if namespace is None else namespace,
            [caller],
        )
        answer: R = unpack(data, result_type_of(kind), MSGPACK)
        return answer

    async def _send_queued(self) -> None:
        while self._queue:
            namespace = self._queue[0].namespace
            batch = [errand for errand in self._queue if errand.namespace == namespace][:COMMANDS_MAX]
            self._queue = [errand for errand in self._queue if errand not in batch]
            await self._send_batch(batch, namespace)

    async def _send_batch(self, batch: list[Errand], namespace: str | None) -> None:
        """Send commands of one namespace, and give each its answer."""
        try:
            asked = {"commands": [_asked(errand) for errand in batch]}
            callers = [errand.caller for errand in batch]
            data = await self._post("/v1/commands", pack(asked, MSGPACK), {}, namespace, callers)
            answers = unpack(data, ManyTold, MSGPACK).answers
            for errand, told in zip(batch, answers, strict=True):
                _settle(errand, told)
        except Exception as error:  # noqa: BLE001 - it is the answer of all that are left
            for errand in batch:
                if not errand.answer.done():
                    errand.answer.set_exception(error)

    async def _post(
        self, path: str, body: bytes, headers: dict[str, str], namespace: str | None, callers: list[Any]
    ) -> bytes:
        sent = {"Content-Type": MSGPACK, **headers, **self._bounds(namespace)}
        if self._tracing is None:
            return (await self._send_until_answered(path, content=body, headers=sent)).content
        with self._tracing.asking("POST", path, callers) as carried:
            answer = await self._send_until_answered(path, content=body, headers={**sent, **carried})
            return answer.content

    def _bounds(self, namespace: str | None) -> dict[str, str]:
        return {} if namespace is None else {"FlowFabric-Namespace": namespace}

    async def _get(self, path: str, **query: str | int) -> dict[str, Any]:
        answer = await self._request("GET", path, params=query)
        found: dict[str, Any] = answer.json()
        return found

    async def _send_until_answered(self, path: str, **options: Any) -> httpx.Response:
        """Send commands, and the same request again while that may help, a bounded number of times.

        Every command has its request id in the request, so it is carried out once however often it
        is sent.
        """
        for pause_s in RETRY_PAUSES_S:
            answered = await self._try("POST", path, **options)
            if not isinstance(answered, Failed):
                return answered
            if not answered.is_worth_repeating or self._closing:
                raise answered.error
            log.info("%s failed, sending it again: %s", path, answered.error)
            spread = 1 + random.random()  # noqa: S311 - spreads retries
            await asyncio.sleep(max(pause_s * spread, answered.retry_after_s))
        return await self._request("POST", path, **options)

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        answered = await self._try(method, path, **options)
        if isinstance(answered, Failed):
            raise answered.error
        return answered

    async def _try(self, method: str, path: str, **options: Any) -> httpx.Response | Failed:
        assert self._client is not None
        try:
            answer = await self._client.request(method, path, **options)
        except httpx.HTTPError as fault:
            error = error_of_fault(fault)
            # A request that was waited for in vain has had its time.
            return Failed(error, not isinstance(error, errors.StoreTimeout))
        if answer.is_success:
            return answer
        body = _document_of(answer)
        return Failed(
            error_of(answer.status_code, body),
            # Contention is for the caller to judge: the command may have to be another one now.
            answer.status_code in RETRYABLE and may_succeed_later(answer.status_code, body),
            _retry_after_s(answer),
        )

    async def _watch_server(self) -> None:
        """Wake those who wait in this process whenever something has changed on the server."""
        mark = ""
        while True:
            try:
                told = await self._get("/v1/changes", after=mark, wait_ms=WATCH_MS)
            except errors.FlowFabricError as error:
                log.warning("cannot look for changes, trying again: %s", error)
                await asyncio.sleep(PAUSE_S)
                self.notifier.publish_foreign_change()
                continue
            if told["mark"] != mark:
                mark = str(told["mark"])
                self.notifier.publish_foreign_change()

    def _new_request_id(self) -> str:
        return f"{self._request_prefix}-{next(self._request_numbers)}"

    def _require_running(self) -> None:
        if self._client is None or self._closing:
            raise errors.Unavailable("The engine is not running. Start it before sending commands.")


def _asked(errand: Errand) -> dict[str, Any]:
    kind: type[Command[Any]] = type(errand.command)
    return {
        "operation": operation_name(kind),
        "command": errand.command,
        "request_id": errand.request_id,
    }


def _settle(errand: Errand, told: Told) -> None:
    if errand.answer.done():  # whoever asked was cancelled
        return
    if told.problem is not None:
        errand.answer.set_exception(error_of(told.status, told.problem))
    else:
        kind = result_type_of(type(errand.command))
        errand.answer.set_result(unpack(told.outcome, kind, MSGPACK))


def _retry_after_s(answer: httpx.Response) -> float:
    """How long the server wants to be left alone, within bounds."""
    text = answer.headers.get("retry-after", "")
    return min(float(text), RETRY_AFTER_S_MAX) if text.isascii() and text.isdigit() else 0.0


def _document_of(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return {}

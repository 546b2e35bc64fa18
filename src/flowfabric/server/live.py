"""Server-sent events: what happens, told to whoever keeps a connection open.

- Every message has a place as its id. A client that comes back with it in ``Last-Event-ID`` misses
  nothing that is still kept, also from another server, for places are those of the store.
- Nothing is queued for a client: the next page is read when the one before was taken. A client that
  does not take a message in good time is cut off.
- While nothing happens a heartbeat goes out, which carries the place as well, so that a quiet
  client is not overtaken by the trimming of the log.
- A stream that is over says so, with the id ``end``; asked to go on behind it, the server answers
  204, which tells browsers to stop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from starlette.responses import Response

from flowfabric import errors
from flowfabric.server.problems import problem_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Receive, Scope, Send

    from flowfabric.server.places import Party
    from flowfabric.server.service import Service

log = logging.getLogger("flowfabric.server")

EVENT_STREAM: Final = "text/event-stream"
END: Final = "end"
"""The place behind everything of a stream that is over."""
RETRY_MS: Final = 1_000
"""How soon a client whose connection broke shall come back."""
ABORT: Final = "flowfabric.abort"
"""The key in a request's scope under which the protocol offers to cut the connection."""


class Message(msgspec.Struct, frozen=True):
    """One thing to tell: its name, its content, and the place behind it."""

    name: str
    content: Any
    place: str


class Source(Protocol):
    """Where messages come from."""

    over: bool
    """Whether nothing can follow."""

    @property
    def place(self) -> str:
        """Where to go on behind everything that was told."""

    async def look(self, block_ms: int) -> list[Message]:
        """What comes next; waits up to ``block_ms`` if there is nothing yet."""


def encoded(messages: Iterable[Message]) -> bytes:
    """Messages as they are sent. JSON has no line breaks, so each content is one line.

    >>> encoded([Message("state", {"a": 1}, "7")]).decode().splitlines()
    ['id: 7', 'event: state', 'data: {"a":1}', '']
    """
    parts = []
    for message in messages:
        content = msgspec.json.encode(message.content)
        parts.append(
            b"id: %s\nevent: %s\ndata: %s\n\n" % (_line(message.place), _line(message.name), content)
        )
    return b"".join(parts)


def _written(messages: list[Message], place: str) -> bytes:
    return encoded(messages) if messages else heartbeat(place)


def heartbeat(place: str) -> bytes:
    """A sign of life. It has no content, so clients take over the place and tell nobody."""
    return b": heartbeat\nid: %s\n\n" % _line(place)


def _line(text: str) -> bytes:
    assert "\n" not in text
    assert "\r" not in text
    return text.encode()


class LiveResponse(Response):
    """An answer that goes on until its source is over, the client is gone, or the server ends."""

    def __init__(self, source: Source, first: list[Message], service: Service, party: Party) -> None:
        super().__init__(
            media_type=EVENT_STREAM, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._source = source
        self._first = first
        self._service = service
        self._party = party

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send messages for as long as there is somebody to take them."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        with self._service.live_place(self._party):
            telling = asyncio.ensure_future(self._tell(scope, send))
            leaving = asyncio.ensure_future(_until_left(receive))
            ending = asyncio.ensure_future(self._service.until_close())
            tasks = (telling, leaving, ending)
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if telling.done():
                    telling.result()
                elif ending.done():
                    await self._part(telling, send)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _part(self, telling: asyncio.Future[None], send: Send) -> None:
        """End the answer in good order, so that the client comes back to another server."""
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await send({"type": "http.response.body"})

    async def _tell(self, scope: Scope, send: Send) -> None:
        source = self._source
        heartbeat_ms = self._service.options.heartbeat_ms
        try:
            async with self._patience():
                await _send_part(send, b"retry: %d\n\n" % RETRY_MS + _written(self._first, source.place))
            while not source.over:
                messages = await self._look(heartbeat_ms)
                async with self._patience():
                    await _send_part(send, _written(messages, source.place))
            await send({"type": "http.response.body"})
        except TimeoutError:
            log.info("a client that took no message for too long was cut off")
            scope.get(ABORT, _nothing)()

    def _patience(self) -> asyncio.Timeout:
        return asyncio.timeout(self._service.options.send_timeout_ms / 1_000)

    async def _look(self, heartbeat_ms: int) -> list[Message]:
        """What comes next. An error ends the stream and is its last message; its place stays."""
        try:
            return await self._source.look(heartbeat_ms)
        except errors.FlowFabricError as error:
            self._source.over = True
            return [Message("error", problem_of(error).body, self._source.place)]


def _nothing() -> None:
    return None


async def _send_part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

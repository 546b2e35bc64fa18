"""A client of server-sent events that talks to the application without a socket."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec

from flowfabric.server import make_app

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from starlette.types import Message as AsgiMessage

    from flowfabric.server import Service

PATIENCE_S = 60


class Told(msgspec.Struct):
    """One message, as a browser sees it. A heartbeat has neither name nor content."""

    place: str = ""
    name: str = ""
    content: Any = None


class Follower:
    """Keeps a connection open and takes messages one by one; may stop taking them, or leave."""

    def __init__(self, service: Service, path: str, headers: dict[str, str] | None = None) -> None:
        self._app = make_app(service)
        path, _, query = path.partition("?")
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "server": ("server", 80),
            "client": ("client", 1),
        }
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ended = asyncio.Event()
        self.taking = asyncio.Event()
        self.taking.set()
        self._left = asyncio.Event()
        self._parts: asyncio.Queue[bytes] = asyncio.Queue()
        self._text = ""

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.leave()
        async with asyncio.timeout(PATIENCE_S):
            await self._running

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()

    async def _run(self) -> None:
        try:
            await self._app(self.scope, self._receive, self._send)
        finally:
            self.ended.set()
            self._parts.put_nowait(b"")

    async def _receive(self) -> AsgiMessage:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: AsgiMessage) -> None:
        await self.taking.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif message.get("body"):
            self._parts.put_nowait(message["body"])

    async def next(self) -> Told | None:
        """The next message or heartbeat; None if the answer is over."""
        while "\n\n" not in self._text:
            async with asyncio.timeout(PATIENCE_S):
                part = await self._parts.get()
            if not part:
                return None
            self._text += part.decode()
        block, _, self._text = self._text.partition("\n\n")
        told = Told()
        for line in block.splitlines():
            field, _, value = line.partition(": ")
            if field == "id":
                told.place = value
            elif field == "event":
                told.name = value
            elif field == "data":
                told.content = json.loads(value)
        return told

    async def until(self, name: str) -> Told:
        """The next message with this name; others are skipped."""
        while (told := await self.next()) is not None:
            if told.name == name:
                return told
        raise AssertionError(f"the answer was over before {name!r}")

    async def rest(self) -> list[Told]:
        """All messages until the answer is over, without heartbeats."""
        found = []
        while (told := await self.next()) is not None:
            if told.name:
                found.append(told)
        return found

"""Watches requests from outside the door: counts them, and names each one.

Every request has an id, the client's own or a new one. It is in the answer and in every line that is
logged on the way, so that a complaint about one answer leads to its lines.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

from flowfabric.observability.logs import bound

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from flowfabric.server.service import Service

log = logging.getLogger("flowfabric.access")

TEMPLATE: Final = "flowfabric.template"
"""Where the route leaves the template of its path, in the scope of the request."""
REQUEST_ID: Final = b"x-request-id"
REQUEST_ID_CHARS_MAX: Final = 128
CLIENT_GONE: Final = 499
"""Stands for the answer that nobody waited for."""


def _tell_nobody(route: str | None, status: int, request_id: str) -> None:
    """Stands for the end of a span that is none."""


_NO_SPAN: Final = nullcontext(_tell_nobody)


class Watch:
    """Sees every request with its answer, and how long that took."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._watched = service.watched
        self._tracing = service.tracing
        self._is_logging = service.options.access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        status = CLIENT_GONE
        began = time.perf_counter()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID, request_id.encode())]
            await send(message)

        with bound(request_id=request_id), self._span(scope) as tell:
            try:
                await self._app(scope, receive, send_named)
            finally:
                tell(scope.get(TEMPLATE), status, request_id)
                self._tell(scope, status, time.perf_counter() - began)

    def _span(self, scope: Scope) -> AbstractContextManager[Callable[[str | None, int, str], None]]:
        """The span of a request; nothing without spans."""
        if self._tracing is None:
            return _NO_SPAN
        return self._tracing.serving(scope["method"], scope["headers"])

    def _tell(self, scope: Scope, status: int, elapsed_s: float) -> None:
        method, path = scope["method"], scope.get(TEMPLATE)
        if self._watched is not None:
            self._watched.requested(method, path, status, elapsed_s)
        if self._is_logging:
            who = getattr(scope.get("principal"), "name", "")
            log.info("%s %s %d %.1f ms %s", method, path or "unknown", status, elapsed_s * 1_000, who)


def request_id_of(headers: list[tuple[bytes, bytes]]) -> str:
    """The id that the client gave its request, if it can be written into a line; else a new one."""
    given: Any = next((value for name, value in headers if name == REQUEST_ID), b"")
    text = given.decode("latin-1")
    if given and len(text) <= REQUEST_ID_CHARS_MAX and text.isascii() and text.isprintable():
        return str(text)
    return secrets.token_hex(8)

"""Running the application under uvicorn: limits on connections, and an end in good order.

When it is stopped, the server takes no more connections, ends every request that only waits, lets
the others finish within their time, and only then lets go of the store.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flowfabric.server.app import make_app
from flowfabric.server.live import ABORT
from flowfabric.server.service import Service

if TYPE_CHECKING:
    from collections.abc import Generator

    from flowfabric.engine.engine import Engine
    from flowfabric.engine.scanners import Scanners
    from flowfabric.server.service import RequestTracing, Watched
    from flowfabric.server.settings import Settings

log = logging.getLogger("flowfabric.server")

HEAD_BYTES_MAX: Final = 64 * 1_024
BODY_IN_FIRST_READ: Final = 256 * 1_024
"""What one read may bring besides the head: the beginning of the body."""
VERSIONS: Final = ("1.0", "1.1")


class GuardedProtocol(HttpToolsProtocol):
    """One connection whose requests have to begin in good time, with heads of a bounded size.

    A request that is answered before its body is there, because it is refused, has as long to end as
    a head: whoever sends on for ever holds no connection.
    """

    head_timeout_s: ClassVar[float]

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._rest_timer: asyncio.TimerHandle | None = None
        self._is_arriving = False
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._head_arrived()
        self._rest_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass bytes on, unless they are a head that does not end."""
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX + BODY_IN_FIRST_READ:
                self._give_up("431 Request Header Fields Too Large")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._is_arriving = True
        self.scope[ABORT] = self.transport.abort  # type: ignore[typeddict-unknown-key]
        self._expect_head()

    def on_headers_complete(self) -> None:
        """The head is there.

        Raises:
            HttpParserError: the request is of a version without heads, or of one that is none.
        """
        self._head_arrived()
        if self.parser.get_http_version() not in VERSIONS:
            raise httptools.HttpParserError("unknown version of HTTP")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is there."""
        self._is_arriving = False
        self._rest_arrived()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request has its answer. If its body is still on the way, wait for the rest, but not long."""
        super().on_response_complete()
        is_body_on_the_way = self._is_arriving and self._head_timer is None
        if is_body_on_the_way and self.cycle.response_complete and self._rest_timer is None:
            self._rest_timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _rest_arrived(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _expect_head(self) -> None:
        if self._head_timer is None:
            timeout = self.head_timeout_s
            self._head_timer = self.loop.call_later(timeout, self._give_up, "408 Request Timeout")

    def _head_arrived(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self, status: str) -> None:
        self._head_arrived()
        if not self.transport.is_closing():
            head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            self.transport.write(head.encode())
            self.transport.close()


class Server(uvicorn.Server):
    """A server that ends waiting requests before it waits for the others.

    It listens to no signals: whoever runs it does, since there is more to end than the server.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to others."""
        yield

    def stop(self) -> None:
        """Take nothing more, end whoever only waits, and let the others finish within their time."""
        self.service.close()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in good order; say so if requests had to be cut off."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.config.timeout_graceful_shutdown or 0)
        await super().shutdown(sockets)
        if loop.time() >= deadline:
            log.error("requests were cut off, because they did not end in time")
            if self.service.watched is not None:
                self.service.watched.ended_late()


def make_server(
    engine: Engine,
    settings: Settings,
    scanners: Scanners | None = None,
    watched: Watched | None = None,
    tracing: RequestTracing | None = None,
) -> Server:
    """The server of an engine that is started. ``await server.serve()`` runs it.

    Args:
        engine: what it serves.
        settings: how.
        scanners: the background duties of its process; it is ready while they are alive.
        watched: the metrics of its process.
        tracing: opens spans for its requests.
    """
    service = Service(engine, settings.options, scanners=scanners, watched=watched, tracing=tracing)
    if watched is not None:
        watched.watch_waiting(lambda: service.waiting)
    config = uvicorn.Config(
        make_app(service),
        host=settings.host,
        port=settings.port,
        http=type("Protocol", (GuardedProtocol,), {"head_timeout_s": settings.head_timeout_ms / 1_000}),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.connections_max,
        timeout_keep_alive=max(1, settings.idle_timeout_ms // 1_000),
    )
    # Its type says whole seconds, but it is only ever waited for.
    config.timeout_graceful_shutdown = settings.shutdown_timeout_ms / 1_000  # type: ignore[assignment]
    return Server(config, service)

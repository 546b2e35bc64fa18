"""Metrics for whoever asks: as text for a route, or on an address of their own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from flowfabric.errors import InvalidInput
from flowfabric.observability.metrics import CONTENT_TYPE, Metrics
from flowfabric.observability.readings import Readings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

    from flowfabric.engine.engine import Engine
    from flowfabric.engine.scanners.duties import Duty

READING_S: Final = 10.0
"""How long a scrape waits for the store; after that it tells what is known."""


class Exposed:
    """The metrics of one process, with the gauges of its store where it has one.

    Args:
        metrics: what the process counts.
        engine: its engine; None if that is behind a server, which tells the store's gauges itself.
        duties: the background duties whose lag is told.
    """

    def __init__(self, metrics: Metrics, engine: Engine | None = None, duties: Iterable[Duty] = ()) -> None:
        self.metrics = metrics
        self._readings = None if engine is None else Readings(engine, duties)
        if self._readings is not None:
            self._readings.register(metrics.registry)

    async def render(self) -> bytes:
        """Everything, read now, in the text format 0.0.4."""
        if self._readings is not None:
            await self._readings.refresh()
        return self.metrics.render()

    def requested(self, method: str, path: str | None, status: int, elapsed_s: float) -> None:
        """Count an HTTP request."""
        self.metrics.requested(method, path, status, elapsed_s)

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Tell how many requests wait, by asking this."""
        self.metrics.watch_waiting(count)

    def ended_late(self) -> None:
        """Count an end of the server that cut requests off."""
        self.metrics.ended_late()


class _Server(ThreadingMixIn, WSGIServer):
    """Answers each scrape in a thread, so that one that waits for the store holds up no other."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Writes no line for each scrape."""

    timeout = 10

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


@contextmanager
def exposed_at(address: str, exposed: Exposed) -> Iterator[int]:
    """Answer ``GET /metrics`` at ``host:port`` for as long as the context is open. Yields the port.

    It runs in threads of its own, so that a busy event loop is late with the store's gauges only.

    Raises:
        InvalidInput: nobody can listen there.
    """
    loop = asyncio.get_running_loop()

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["REQUEST_METHOD"] != "GET" or environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Length", "0")])
            return []
        body = asyncio.run_coroutine_threadsafe(exposed.render(), loop).result(READING_S)
        start_response("200 OK", [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(body)))])
        return [body]

    host, _, port = address.rpartition(":")
    try:
        server = make_server(host.strip("[]"), int(port), answer, _Server, _Quiet)
    except OSError as error:
        raise InvalidInput(field="metrics_listen", value=address, rule=f"a free address ({error})") from error
    serving = threading.Thread(target=server.serve_forever, name="flowfabric metrics", daemon=True)
    serving.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        serving.join()

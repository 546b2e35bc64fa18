"""What all requests of one server share: the engine, the options, the permits, and its end."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec

from flowfabric.engine.notifier import EVENTS
from flowfabric.server.access import TokenEntry
from flowfabric.server.calls import refused
from flowfabric.server.places import Party, Place, Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    from flowfabric.engine.engine import Engine
    from flowfabric.engine.notifier import Notifier
    from flowfabric.engine.scanners import Scanners
    from flowfabric.server.access import Principal

T = TypeVar("T")

STREAMS_MAX: Final = 64
LIVE_MAX: Final = 256
REQUESTS_PER_NAMESPACE_MAX: Final = 256
WAITS_PER_NAMESPACE_MAX: Final = 512
HEARTBEAT_MS: Final = 15_000
SEND_TIMEOUT_MS: Final = 30_000


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a server behaves. Every option is on the page about configuration."""

    tokens: tuple[TokenEntry, ...] = ()
    """Who is let in; without any, everybody is."""
    insecure: bool = False
    """Whether the server may be reached from other machines without tokens; every answer says so."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call the server; none by default."""
    streams_max: int = STREAMS_MAX
    """How many stream reads and tails are served at once."""
    body_timeout_ms: int = 30_000
    """How long a request's body may take to arrive."""
    live_max: int = LIVE_MAX
    """How many clients may follow what happens at once."""
    requests_per_namespace_max: int = REQUESTS_PER_NAMESPACE_MAX
    """How many requests of one namespace are carried out at once."""
    waits_per_namespace_max: int = WAITS_PER_NAMESPACE_MAX
    """How many requests of one namespace wait at once; those that follow what happens are among them."""
    heartbeat_ms: int = HEARTBEAT_MS
    """How long such a client hears nothing at most. Proxies cut connections that are silent."""
    send_timeout_ms: int = SEND_TIMEOUT_MS
    """How long such a client may take to receive a message before it is cut off."""
    hmac_grace_ms: int = 86_400_000
    """How long a key that was rotated out still verifies tokens."""
    access_log: bool = False
    """Whether a line is logged for each request."""
    metrics: bool = False
    """Whether ``/metrics`` answers, to everybody."""


class Changes:
    """Tells clients that something may have changed, without saying what.

    A mark is valid for one server process; a mark of another one says «look again» at once.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._origin = secrets.token_hex(4)
        self._count = 0
        self._counting: asyncio.Task[None] | None = None

    async def next(self, after: str | None, wait_ms: int) -> str:
        """The newest mark, as soon as it differs from ``after`` or the time is over."""
        if self._counting is None or self._counting.done():
            self._counting = asyncio.create_task(self._keep_counting(), name="flowfabric changes")
            await asyncio.sleep(0)
        if after == self._mark:
            with self._notifier.subscribe(EVENTS) as news:
                await news.wait(wait_ms)
            await asyncio.sleep(0)
        return self._mark

    @property
    def _mark(self) -> str:
        return f"{self._origin}-{self._count}"

    async def _keep_counting(self) -> None:
        with self._notifier.subscribe(EVENTS) as news:
            while not self._notifier.closed:
                await news.wait(None)
                self._count += 1

    def close(self) -> None:
        """Stop counting."""
        if self._counting is not None:
            self._counting.cancel()


class Watched(Protocol):
    """The metrics of a server's process."""

    async def render(self) -> bytes:
        """All of them, as Prometheus reads them."""

    def requested(self, method: str, path: str | None, status: int, elapsed_s: float) -> None:
        """A request was answered. ``path`` is the template of its route."""

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Tell how many requests wait, by asking this."""

    def ended_late(self) -> None:
        """Requests were cut off, because the server had to end."""


class RequestTracing(Protocol):
    """What opens a span around each request."""

    def serving(
        self, method: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> AbstractContextManager[Callable[[str | None, int, str], None]]:
        """The span of a request. Yields what to call with its route, its status and its id."""


class Service:
    """One server's shared state. It is made before the first request and ends after the last."""

    def __init__(
        self,
        engine: Engine,
        options: ServerOptions,
        *,
        scanners: Scanners | None = None,
        watched: Watched | None = None,
        tracing: RequestTracing | None = None,
    ) -> None:
        self.engine = engine
        self.options = options
        self.scanners = scanners
        self.watched = watched
        self.tracing = tracing
        self.changes = Changes(engine.notifier)
        self.waiting = 0
        """How many requests wait for something to happen."""
        self._requests = Pool("requests", each=options.requests_per_namespace_max)
        self._waits = Pool("waiting requests", each=options.waits_per_namespace_max)
        self._streams = Pool("stream_ops calls", most=options.streams_max)
        self._live = Pool("live streams", most=options.live_max)
        self._rotating = False
        self._auditing = False
        self._closing = asyncio.Event()
        self._level_promised = engine.durability.level if engine.durability is not None else ""

    def missing(self) -> str | None:
        """What this server promised at its start and cannot keep now; None if it keeps everything."""
        durability = self.engine.durability
        if durability is None or durability.level < self._level_promised:
            return "acknowledged commits survive less than when the server started"
        stalled = [] if self.scanners is None else self.scanners.stalled()
        return f"background duties have stalled: {', '.join(stalled)}" if stalled else None

    @property
    def closing(self) -> bool:
        """True from the moment the server takes no more requests."""
        return self._closing.is_set()

    def close(self) -> None:
        """End every request that only waits."""
        self._closing.set()
        self.changes.close()

    @property
    def live(self) -> int:
        """How many clients follow what happens."""
        return self._live.taken

    def place_for(self, principal: Principal) -> Place:
        """The place of a request; whoever asked for it gives it back.

        Raises:
            Refused: the principal's party has its share of requests.
        """
        return Place(Party.of(principal), self._requests, self._waits)

    @contextmanager
    def stream_permit(self, party: Party) -> Iterator[None]:
        """A place among the stream operations.

        Raises:
            Refused: all are taken, the party has its share, or the server is shutting down.
        """
        self._require_open()
        self._streams.require(party)
        with self._streams.taking(party):
            yield

    def require_live_place(self, party: Party) -> None:
        """Look for a place among those who follow what happens.

        Raises:
            Refused: all are taken, the party has its share, or the server is shutting down.
        """
        self._require_open()
        self._live.require(party)

    def live_place(self, party: Party) -> AbstractContextManager[None]:
        """Take a place among those who follow what happens."""
        return self._live.taking(party)

    async def until_close(self) -> None:
        """Wait until the server takes no more requests."""
        await self._closing.wait()

    @asynccontextmanager
    async def rotation_permit(self) -> AsyncIterator[None]:
        """The only place for rotating keys.

        Raises:
            Refused: a rotation is going on.
        """
        if self._rotating:
            raise refused(
                429,
                "too many concurrent admin_rotate calls (server max: 1); retry with backoff",
                retryable=True,
            )
        self._rotating = True
        try:
            yield
        finally:
            self._rotating = False

    @contextmanager
    def audit_permit(self) -> Iterator[None]:
        """The only place for an audit, which reads a whole store.

        Raises:
            Refused: one is going on.
        """
        if self._auditing:
            raise refused(
                429,
                "too many concurrent audit calls (server max: 1); retry with backoff",
                kind="resource_exhausted",
                retryable=True,
            )
        self._auditing = True
        try:
            yield
        finally:
            self._auditing = False

    async def until_closing(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work answers, unless the server ends before.

        Raises:
            Refused: the server is shutting down.
        """
        working = asyncio.ensure_future(work)
        closing = asyncio.ensure_future(self._closing.wait())
        self.waiting += 1
        try:
            await asyncio.wait([working, closing], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self._require_open()
            return await working
        finally:
            self.waiting -= 1
            closing.cancel()
            working.cancel()
            await asyncio.gather(closing, working, return_exceptions=True)

    def _require_open(self) -> None:
        if self.closing:
            raise refused(503, "shutting down", kind="unavailable", retryable=False)

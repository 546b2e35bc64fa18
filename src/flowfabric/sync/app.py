"""``FlowFabric`` for code that blocks: the names of the async app, with plain calls."""

from __future__ import annotations

import logging
import signal
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from flowfabric.app import FlowFabric as AsyncFlowFabric
from flowfabric.errors import UnusableConnection
from flowfabric.registering import Registering
from flowfabric.sync.engine import Engine, Feed
from flowfabric.sync.portal import Portal
from flowfabric.sync.runs import Budget, FlowRun, Quota, Run
from flowfabric.transactions import SyncTransaction
from flowfabric.worker.signals import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta
    from types import FrameType

    from flowfabric.budgeting import Amounts
    from flowfabric.contracts.events import AnyEvent, Family
    from flowfabric.engine.feeds import FeedOptions
    from flowfabric.flows import Flow
    from flowfabric.handlers import Handler
    from flowfabric.submissions import SubmitOptions
    from flowfabric.transactions import PlainConnection
    from flowfabric.worker import Worker

R = TypeVar("R")

log = logging.getLogger("flowfabric.worker")


class FlowFabric(Registering):
    """Your handlers and the store that remembers their work; every call blocks.

    Args:
        url: the store or the server, as for ``flowfabric.FlowFabric``.
        options: what ``flowfabric.FlowFabric`` takes besides, such as ``namespace`` and ``token``.
    """

    def __init__(self, url: str | None = None, **options: Any) -> None:
        self._app = AsyncFlowFabric(url, **options)
        self._portal = Portal()
        super().__init__(self._app.handlers)
        self.url = self._app.url
        self.namespace = self._app.namespace
        self.metrics = self._app.metrics
        self.tracing = self._app.tracing

    @property
    def engine(self) -> Engine:
        """The engine, which offers every operation of the contracts.

        Raises:
            RuntimeError: this object was not started; use ``with``.
        """
        if not self._portal.is_open:
            raise RuntimeError("FlowFabric is not started: use `with ff:` or call `ff.start()` first")
        return Engine(self._portal, lambda: self._app.engine)

    def start(self, *, scanners: bool = True) -> None:
        """Open the store and begin the background duties. Starting twice is harmless.

        Raises:
            InvalidInput: the URL names no store, or the secret is malformed.
            StoreError: the store cannot be used.
        """
        self._portal.open()
        try:
            self._portal.call(lambda: self._app.start(scanners=scanners))
        except BaseException:
            self._portal.close()
            raise

    def stop(self) -> None:
        """Finish what is in flight and close the store, once everyone who started it has stopped."""
        if not self._portal.is_open:
            return
        try:
            self._portal.call(self._app.stop)
        finally:
            self._portal.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @overload
    def submit(
        self, handler: Handler[..., R], input: Any = None, **options: Unpack[SubmitOptions]
    ) -> Run[R]: ...

    @overload
    def submit(self, handler: str, input: Any = None, **options: Unpack[SubmitOptions]) -> Run[Any]: ...

    def submit(
        self,
        handler: Handler[..., Any] | str,
        input: Any = None,  # noqa: A002 - the word users know
        **options: Unpack[SubmitOptions],
    ) -> Run[Any]:
        """Submit one execution; see ``flowfabric.FlowFabric.submit``."""
        return Run(self._portal, self._portal.call(lambda: self._app.submit(handler, input, **options)))

    @overload
    def submit_many(
        self, handler: Handler[..., R], inputs: Sequence[Any], **options: Unpack[SubmitOptions]
    ) -> list[Run[R]]: ...

    @overload
    def submit_many(
        self, handler: str, inputs: Sequence[Any], **options: Unpack[SubmitOptions]
    ) -> list[Run[Any]]: ...

    def submit_many(
        self, handler: Handler[..., Any] | str, inputs: Sequence[Any], **options: Unpack[SubmitOptions]
    ) -> list[Run[Any]]:
        """Submit many executions of one kind in one call."""
        runs = self._portal.call(lambda: self._app.submit_many(handler, inputs, **options))
        return [Run(self._portal, run) for run in runs]

    def subscribe(self, *families: Family | str, **options: Unpack[FeedOptions]) -> Feed[AnyEvent]:
        """Events of this namespace as they happen: ``for event in ff.subscribe("completion")``."""
        return Feed(self._portal, self._app.subscribe(*families, **options))

    def submit_flow(self, flow: Flow, *, idempotency_key: str | None = None) -> FlowRun:
        """Submit a flow as a whole: all its members with their joins, or nothing."""
        run = self._portal.call(lambda: self._app.submit_flow(flow, idempotency_key=idempotency_key))
        return FlowRun(self._portal, run)

    def flow_run(self, flow_id: str) -> FlowRun:
        """The run of a flow that was submitted before, here or elsewhere."""
        return FlowRun(self._portal, self._app.flow_run(flow_id))

    def within(self, connection: PlainConnection) -> SyncTransaction:
        """Submit and signal as a part of a transaction of yours on the store's database.

        The runs that it gives are the async app's; ``ff.run(run.execution_id)`` gives the one here.

        Raises:
            UnusableConnection: this store cannot be reached through such a connection.
        """
        made: object = self._app.within(connection)
        if not isinstance(made, SyncTransaction):
            raise UnusableConnection("This connection is awaited. Give a plain one.")
        return made

    def run(self, execution_id: str, *, result_type: Any = Any) -> Run[Any]:
        """The run of an execution that was submitted before, here or elsewhere."""
        return Run(self._portal, self._app.run(execution_id, result_type=result_type))

    def create_budget(
        self,
        name: str,
        *,
        hard: Amounts | None = None,
        soft: Amounts | None = None,
        on_hard_limit: str = "deny",
        reset_every: timedelta | float | None = None,
        **options: Any,
    ) -> Budget:
        """Create a budget, unless there is the same one already; see ``flowfabric.FlowFabric``."""
        made = self._portal.call(
            lambda: self._app.create_budget(
                name, hard=hard, soft=soft, on_hard_limit=on_hard_limit, reset_every=reset_every, **options
            )
        )
        return Budget(self._portal, made)

    def budget(self, name: str) -> Budget:
        """The budget of this name: its status, reports, releases, resets and limits."""
        return Budget(self._portal, self._app.budget(name))

    def create_quota(
        self, name: str, *, per: timedelta | float = 60, max_requests: int = 0, max_concurrent: int = 0
    ) -> Quota:
        """Create a quota policy, unless there is the same one already; see ``flowfabric.FlowFabric``."""
        made = self._portal.call(
            lambda: self._app.create_quota(
                name, per=per, max_requests=max_requests, max_concurrent=max_concurrent
            )
        )
        return Quota(self._portal, made)

    def quota(self, name: str) -> Quota:
        """The quota policy of this name."""
        return Quota(self._portal, self._app.quota(name))

    def pause_lane(self, lane: str, *, reason: str = "") -> None:
        """Give none of a lane's work to workers. What runs goes on, and submissions are taken."""
        self._portal.call(lambda: self._app.pause_lane(lane, reason=reason))

    def drain_lane(self, lane: str, *, reason: str = "") -> None:
        """Take no submissions to a lane (``LaneClosed``), and finish what is in it."""
        self._portal.call(lambda: self._app.drain_lane(lane, reason=reason))

    def disable_lane(self, lane: str, *, reason: str = "") -> None:
        """Take no submissions to a lane and give none of its work to workers. What runs goes on."""
        self._portal.call(lambda: self._app.disable_lane(lane, reason=reason))

    def resume_lane(self, lane: str, *, reason: str = "") -> None:
        """Let a lane take and give work again."""
        self._portal.call(lambda: self._app.resume_lane(lane, reason=reason))

    def run_worker(self, *, handle_signals: bool = False, **options: Any) -> None:
        """Run a worker in this process until it is interrupted.

        Args:
            handle_signals: drain and return on SIGTERM or SIGINT, which only the main thread may
                ask for; at the second one stop at once.
            options: see ``WorkerOptions``; ``lanes`` defaults to those of the handlers.
        """
        self.start()
        try:
            worker = self.worker(**options)
            with self._stopped_by_signals(worker) if handle_signals else nullcontext():
                self._portal.call(worker.run)
        finally:
            self.stop()

    def worker(self, **options: Any) -> Worker:
        """Make a worker for the handlers registered here. ``run_worker`` runs one."""

        async def made() -> Worker:
            return self._app.worker(**options)

        return self._portal.call(made)

    @contextmanager
    def _stopped_by_signals(self, worker: Worker) -> Iterator[None]:
        """Drain at the first signal; stop at once at the second."""
        received: list[int] = []

        def on_signal(number: int, frame: FrameType | None) -> None:
            received.append(number)
            at_once = len(received) > 1
            log.info("signal %d received: %s", number, "stopping at once" if at_once else "draining")
            self._portal.tell(lambda: worker.stop(at_once=at_once))

        before = {number: signal.signal(number, on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

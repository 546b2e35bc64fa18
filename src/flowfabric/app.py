"""``FlowFabric``: handlers, submitting, and running a worker, over one store."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    ParamSpec,
    Self,
    TypeVar,
    Unpack,
    overload,
)

from flowfabric.budgeting import Amounts, Budget, Quota, budget_creation, quota_creation
from flowfabric.contracts.durations import parse_duration_ms
from flowfabric.contracts.keyring import ListWaitpointHmacKidsArgs, SeedWaitpointHmacSecretArgs
from flowfabric.contracts.lanes import SetLaneStateArgs
from flowfabric.contracts.limits import RETENTION_MS
from flowfabric.contracts.states import LaneState
from flowfabric.engine.engine import Engine
from flowfabric.engine.scanners import Scanners
from flowfabric.engine.scanners.duties import duties
from flowfabric.errors import StoreUnusable
from flowfabric.flows import Flow, FlowRun
from flowfabric.handlers import Handler, milliseconds
from flowfabric.registering import Registering
from flowfabric.run import Run
from flowfabric.submissions import Submissions, SubmitOptions, require_options_for_many
from flowfabric.transactions import (
    AsyncConnection,
    Inside,
    PlainConnection,
    SyncTransaction,
    Transaction,
)
from flowfabric.urls import DEFAULT_URL, borrow_store, is_server, store_for
from flowfabric.worker import Worker, WorkerOptions, stopped_by_signals

if TYPE_CHECKING:
    from flowfabric.contracts.events import AnyEvent, Family
    from flowfabric.engine.feeds import Feed, FeedOptions
    from flowfabric.engine.interface import AnyEngine
    from flowfabric.engine.layers import Layer
    from flowfabric.observability.metrics import Metrics
    from flowfabric.observability.tracing import Tracing
    from flowfabric.stores.base import Durability, Store

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_NAMESPACE: Final = "default"
FIRST_KID: Final = "k1"


class FlowFabric(Registering):
    """Your handlers and the store that remembers their work.

    Args:
        url: the store, such as ``sqlite:///work.db``, or a server, such as
            ``https://flows.example``. ``FF_URL`` is used when it is absent, and a file
            ``flowfabric.db`` in the current folder when that is absent too.
        namespace: the tenant that everything submitted and claimed here belongs to.
            ``FF_NAMESPACE`` is used when it is absent, and ``default`` when that is absent too.
        reclaim_grace: seconds or timedelta after a lapsed lease before others may reclaim the work.
        retention: seconds or timedelta that ended executions and flows, and the log of events, are
            kept; ``math.inf`` keeps them for ever. ``FF_RETENTION`` (such as ``7d``, or ``off``) is used
            when it is absent, and a day when that is absent too.
        layers: what wraps the engine's door, the innermost first; see ``flowfabric.engine.layers``.
        token: what a server knows us by; ``FF_TOKEN`` is used when it is absent.
        metrics: counts what this process does; see ``flowfabric.observability.metrics``.
        tracing: opens spans for it; see ``flowfabric.observability.tracing``.
        store: a store to use instead of a URL, for tests.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        reclaim_grace: timedelta | float = 0,
        retention: timedelta | float | None = None,
        layers: Iterable[Layer] = (),
        token: str | None = None,
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
        store: Store | None = None,
    ) -> None:
        self.url = url or os.environ.get("FF_URL") or DEFAULT_URL
        self.namespace = namespace or os.environ.get("FF_NAMESPACE") or DEFAULT_NAMESPACE
        super().__init__()
        self._submissions = Submissions(self.handlers, self.namespace, self._carried)
        self._reclaim_grace_ms = milliseconds(reclaim_grace) or 0
        self._retention_ms = retention_ms_of(retention)
        self._store = store
        self.metrics = metrics
        self.tracing = tracing
        self._layers = tuple(layers)
        self._token = token
        self._engine: AnyEngine | None = None
        self._engine_of_runs: Callable[[], AnyEngine] = lambda: self.engine
        """Gives runs the engine that they were submitted to. There are many runs, so it is one for all."""
        self._scanners: Scanners | None = None
        self._users = 0
        self._starting = asyncio.Lock()

    @property
    def engine(self) -> AnyEngine:
        """The engine, which offers every operation of the contracts.

        Raises:
            RuntimeError: this object was not started; use ``async with``.
        """
        if self._engine is None:
            raise RuntimeError(
                "FlowFabric is not started: use `async with ff:` or call `await ff.start()` first"
            )
        return self._engine

    async def start(self, *, scanners: bool = True) -> None:
        """Open the store and begin the background duties. Starting twice is harmless.

        A store without a key that signs waitpoint tokens gets one: the 64 hexadecimal digits in
        ``FF_WAITPOINT_HMAC_SECRET``, or a random one.

        Args:
            scanners: whether this process also expires leases, ends delays, and so on.

        Raises:
            InvalidInput: the URL names no store, or the secret is malformed.
            StoreError: the store cannot be used.
        """
        async with self._starting:
            self._users += 1
            try:
                if self._engine is None:
                    self._engine = engine = await self._started_engine()
                    self._engine_of_runs = lambda: engine
            except BaseException:
                self._users -= 1
                raise
            if scanners and self._scanners is None and isinstance(self._engine, Engine):
                found = duties(reclaim_grace_ms=self._reclaim_grace_ms, retention_ms=self._retention_ms)
                self._scanners = Scanners(self._engine, found)
                self._scanners.start()

    async def _started_engine(self) -> AnyEngine:
        watching = [one.layer for one in (self.metrics, self.tracing) if one is not None]
        layers = (*self._layers, *watching)
        if is_server(self.url) and self._store is None:
            remote = server_engine(
                self.url, self._token, namespace=self.namespace, layers=layers, tracing=self.tracing
            )
            self._tell_backend(await remote.start())
            return remote
        engine = Engine(
            self._store or store_for(self.url),
            namespace=self.namespace,
            layers=layers,
            observer=self.metrics,
        )
        self._tell_backend(await engine.start())
        try:
            await seed_signing_key(engine)
        except BaseException:
            await engine.stop()
            raise
        return engine

    def _tell_backend(self, durability: Durability) -> None:
        if self.tracing is not None:
            self.tracing.backend = durability.store

    def _carried(self) -> dict[str, str]:
        """What travels with every submission besides what the submitter says."""
        return {} if self.tracing is None else self.tracing.carried()

    async def stop(self) -> None:
        """Finish what is in flight and close the store, once everyone who started it has stopped."""
        async with self._starting:
            self._users = max(0, self._users - 1)
            if self._users or self._engine is None:
                return
            engine, self._engine = self._engine, None
            scanners, self._scanners = self._scanners, None
            try:
                if scanners is not None:
                    await scanners.stop()
            finally:
                await engine.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @overload
    async def submit(
        self, handler: Handler[..., R], input: Any = None, **options: Unpack[SubmitOptions]
    ) -> Run[R]: ...

    @overload
    async def submit(self, handler: str, input: Any = None, **options: Unpack[SubmitOptions]) -> Run[Any]: ...

    async def submit(
        self,
        handler: Handler[..., Any] | str,
        input: Any = None,  # noqa: A002 - the word users know
        **options: Unpack[SubmitOptions],
    ) -> Run[Any]:
        """Submit one execution.

        Args:
            handler: a registered handler, or the name of a kind that some worker handles.
            input: what the handler gets; anything with a JSON form, or bytes.
            **options: see ``SubmitOptions``.

        Raises:
            IdempotencyConflict: the key is bound to a submission with other content.
            InvalidInput: a value breaks a rule; nothing was submitted.
            Unencodable: the input cannot be stored; nothing was submitted.
        """
        engine = self.engine
        [command] = await self._submissions.creations(engine, handler, [input], options)
        return self._submissions.run(self._engine_of_runs, handler, await engine.execute(command))

    @overload
    async def submit_many(
        self, handler: Handler[..., R], inputs: Sequence[Any], **options: Unpack[SubmitOptions]
    ) -> list[Run[R]]: ...

    @overload
    async def submit_many(
        self, handler: str, inputs: Sequence[Any], **options: Unpack[SubmitOptions]
    ) -> list[Run[Any]]: ...

    async def submit_many(
        self, handler: Handler[..., Any] | str, inputs: Sequence[Any], **options: Unpack[SubmitOptions]
    ) -> list[Run[Any]]:
        """Submit many executions of one kind in one call; see ``submit``.

        Raises:
            FlowFabricError: the first refusal, if any; the others were submitted.
            TypeError: an option names one execution, and these are many.
        """
        require_options_for_many(options)
        engine, runs = self.engine, []
        commands = await self._submissions.creations(engine, handler, inputs, options)
        for outcome in await engine.execute_many(commands):
            if isinstance(outcome, Exception):
                raise outcome
            runs.append(self._submissions.run(self._engine_of_runs, handler, outcome))
        return runs

    def subscribe(self, *families: Family | str, **options: Unpack[FeedOptions]) -> Feed[AnyEvent]:
        """Events of this namespace as they happen: ``async for event in ff.subscribe("completion")``.

        Args:
            families: ``completion``, ``lease``, ``signal``, ``tag``, ``execution``, ``operator``,
                ``budget``; all of them when there is none.
            options: see ``FeedOptions``. Keep ``event.cursor`` and pass it as ``after`` to go on
                where you left.

        Raises:
            ValueError: there is no such family.
        """
        return self.engine.subscribe(*families, namespace=self.namespace, **options)

    async def submit_flow(self, flow: Flow, *, idempotency_key: str | None = None) -> FlowRun:
        """Submit a flow as a whole: all its members with their joins, or nothing.

        Args:
            flow: what was built. It may be submitted again, which makes another flow.
            idempotency_key: submitting the same with this key again gives the same flow.

        Raises:
            IdempotencyConflict: the key was used for a flow with other content.
            InvalidInput: a value breaks a rule, or there are no members, or too many.
            Unencodable: an input cannot be stored.
        """
        engine = self.engine
        command, ids = await flow.command(engine, self._submissions, idempotency_key)
        return flow.run(lambda: engine, self._submissions, await engine.execute(command), ids)

    def flow_run(self, flow_id: str) -> FlowRun:
        """The run of a flow that was submitted before, here or elsewhere."""
        engine = self.engine
        return FlowRun(lambda: engine, self.namespace, flow_id)

    @overload
    def within(self, connection: AsyncConnection) -> Transaction: ...

    @overload
    def within(self, connection: PlainConnection) -> SyncTransaction: ...

    def within(self, connection: AsyncConnection | PlainConnection) -> Transaction | SyncTransaction:
        """Submit and signal as a part of a transaction of yours on the store's database.

        If the transaction commits, the execution exists and workers learn of it; if it rolls back,
        nothing has happened. The connection stays yours: it is neither committed nor closed here.
        This object need not be started for it.

        Args:
            connection: one of asyncpg or psycopg to a PostgreSQL database, or one of sqlite3 or
                apsw to a SQLite file, with an open transaction.

        Returns:
            A ``Transaction`` over a connection that is awaited, else a ``SyncTransaction``.

        Raises:
            UnusableConnection: this store cannot be reached through such a connection.
        """
        open_store = self._engine.store if isinstance(self._engine, Engine) else None
        store = open_store or self._store or store_for(self.url)
        inside = Inside(borrow_store(store, connection), self._submissions, lambda: self.engine)
        return Transaction(inside) if inside.is_awaited else SyncTransaction(inside)

    def run(self, execution_id: str, *, result_type: Any = Any) -> Run[Any]:
        """The run of an execution that was submitted before, here or elsewhere."""
        engine = self.engine
        return Run(lambda: engine, execution_id, self.namespace, result_type=result_type)

    async def create_budget(
        self,
        name: str,
        *,
        hard: Amounts | None = None,
        soft: Amounts | None = None,
        on_hard_limit: str = "deny",
        reset_every: timedelta | float | None = None,
        **options: Any,
    ) -> Budget:
        """Create a budget, unless there is the same one already.

        Args:
            name: unique in the namespace.
            hard: the limit of each dimension that reports may not pass.
            soft: the limit of each dimension that is told of when it is passed.
            on_hard_limit: ``deny`` refuses the report; ``pause`` also holds all attached work back
                until there is headroom; ``cancel`` cancels it.
            reset_every: seconds or timedelta after which usage is zero again.
            options: ``enforcement_mode`` (``strict`` or ``advisory``), ``on_soft_limit`` (``warn``
                or ``ignore``), ``scope`` (a type and an id, for those who look at it).

        Raises:
            BudgetConflict: there is one with this name and another definition.
            InvalidInput: a word or a number breaks a rule.
        """
        creation = budget_creation(
            name,
            self.namespace,
            hard=hard,
            soft=soft,
            on_hard_limit=on_hard_limit,
            reset_interval_ms=milliseconds(reset_every) or 0,
            **options,
        )
        await self.engine.execute(creation)
        return self.budget(name)

    def budget(self, name: str) -> Budget:
        """The budget of this name: its status, reports, releases, resets and limits."""
        return Budget(self.engine, self.namespace, name)

    async def create_quota(
        self,
        name: str,
        *,
        per: timedelta | float = 60,
        max_requests: int = 0,
        max_concurrent: int = 0,
    ) -> Quota:
        """Create a quota policy, unless there is the same one already.

        Args:
            name: unique in the namespace.
            per: the length of the sliding window, in seconds or as a timedelta.
            max_requests: how many claims there may be in one window; 0 for any number.
            max_concurrent: how many executions may run at the same time; 0 for any number.

        Raises:
            QuotaPolicyConflict: there is one with this name and other limits.
            InvalidQuotaSpec: a number breaks a rule.
        """
        creation = quota_creation(
            name,
            self.namespace,
            window_ms=milliseconds(per) or 0,
            max_requests=max_requests,
            max_concurrent=max_concurrent,
        )
        await self.engine.execute(creation)
        return self.quota(name)

    def quota(self, name: str) -> Quota:
        """The quota policy of this name."""
        return Quota(self.engine, self.namespace, name)

    async def pause_lane(self, lane: str, *, reason: str = "") -> None:
        """Give none of a lane's work to workers. What runs goes on, and submissions are taken."""
        await self._set_lane_state(lane, LaneState.PAUSED, reason)

    async def drain_lane(self, lane: str, *, reason: str = "") -> None:
        """Take no submissions to a lane (``LaneClosed``), and finish what is in it."""
        await self._set_lane_state(lane, LaneState.DRAINING, reason)

    async def disable_lane(self, lane: str, *, reason: str = "") -> None:
        """Take no submissions to a lane and give none of its work to workers. What runs goes on."""
        await self._set_lane_state(lane, LaneState.DISABLED, reason)

    async def resume_lane(self, lane: str, *, reason: str = "") -> None:
        """Let a lane take and give work again."""
        await self._set_lane_state(lane, LaneState.ACTIVE, reason)

    async def _set_lane_state(self, lane: str, state: LaneState, reason: str) -> None:
        await self.engine.execute(
            SetLaneStateArgs(namespace=self.namespace, lane_id=lane, state=state, reason=reason)
        )

    async def run_worker(self, *, handle_signals: bool = False, **options: Any) -> None:
        """Run a worker in this process until it is cancelled.

        Args:
            handle_signals: drain and return on SIGTERM or SIGINT; at the second one stop at once.
            options: see ``WorkerOptions``; ``lanes`` defaults to those of the handlers.
        """
        await self.start()
        try:
            worker = self.worker(**options)
            with stopped_by_signals(worker) if handle_signals else nullcontext():
                await worker.run()
        finally:
            await self.stop()

    def worker(self, **options: Any) -> Worker:
        """Make a worker for the handlers registered here."""
        lanes = tuple(sorted({handler.lane for handler in self.handlers.values()})) or ("default",)
        return Worker(
            self.engine,
            self.handlers,
            namespace=self.namespace,
            options=WorkerOptions(**{"lanes": lanes, **options}),
            observer=self.metrics,
            tracing=self.tracing,
        )


def server_engine(
    url: str,
    token: str | None,
    *,
    namespace: str | None,
    layers: Iterable[Layer] = (),
    tracing: Tracing | None = None,
) -> AnyEngine:
    """The engine behind a server; not started yet.

    Raises:
        StoreUnusable: the library for it is not installed.
    """
    try:
        from flowfabric.remote import HttpEngine  # noqa: PLC0415 - its library may be absent
    except ModuleNotFoundError as missing:
        raise StoreUnusable(
            f"{missing.name} is not installed. Install flowfabric[http] to use a server."
        ) from missing
    known_by = token or os.environ.get("FF_TOKEN")
    return HttpEngine(url, token=known_by, namespace=namespace, layers=layers, tracing=tracing)


def retention_ms_of(given: timedelta | float | None) -> int | None:
    """How long to keep what has ended: as given, else as ``FF_RETENTION`` says; None for ever.

    Raises:
        ValueError: ``FF_RETENTION`` is neither a duration nor ``off``.
    """
    if given is not None:
        return None if given == math.inf else milliseconds(given)
    text = os.environ.get("FF_RETENTION")
    if not text:
        return RETENTION_MS
    return None if text == "off" else parse_duration_ms(text)


async def seed_signing_key(engine: Engine) -> None:
    """Install the first signing key, unless there is one. Of two processes the first one wins."""
    kids = await engine.execute(ListWaitpointHmacKidsArgs())
    if kids.current_kid is None:
        secret = os.environ.get("FF_WAITPOINT_HMAC_SECRET") or secrets.token_hex(32)
        await engine.execute(SeedWaitpointHmacSecretArgs(kid=FIRST_KID, secret_hex=secret))

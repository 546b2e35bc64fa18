"""``FlowFabric``: handlers, submitting, and running a worker, over one store."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    ParamSpec,
    Protocol,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from msgspec.structs import replace

from flowfabric.codec import encode_value
from flowfabric.contracts.durations import parse_duration_ms
from flowfabric.contracts.executions import CreateExecutionArgs, CreateExecutionResult, ExecutionDuplicate
from flowfabric.contracts.keyring import ListWaitpointHmacKidsArgs, SeedWaitpointHmacSecretArgs
from flowfabric.contracts.limits import RETENTION_MS
from flowfabric.contracts.policy import Backoff, ExecutionPolicy
from flowfabric.engine.engine import Engine
from flowfabric.engine.scanners import Scanners
from flowfabric.engine.scanners.duties import duties
from flowfabric.handlers import Handler, handler_policy, milliseconds
from flowfabric.minting import new_execution_id
from flowfabric.run import Run
from flowfabric.urls import DEFAULT_URL, store_for
from flowfabric.worker import Worker, WorkerOptions, stopped_by_signals

if TYPE_CHECKING:
    from flowfabric.contracts.events import AnyEvent, Family
    from flowfabric.engine.feeds import Feed, FeedOptions
    from flowfabric.engine.layers import Layer
    from flowfabric.stores.base import Store

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_NAMESPACE: Final = "default"
FIRST_KID: Final = "k1"


class SubmitOptions(TypedDict, total=False):
    """What may be said about a submission. An option that is None, or absent, says nothing."""

    lane: str | None
    """Where it waits; the handler's lane when absent."""
    priority: int | None
    """0 to 9000; the handler's when absent."""
    idempotency_key: str | None
    """Submitting again with this key gives the same run."""
    delay: timedelta | float | None
    """Seconds or timedelta before it may be claimed."""
    deadline: datetime | None
    """When it expires if it has not ended."""
    tags: dict[str, str] | None
    """Labels such as ``{"team.name": "media"}``."""
    policy: ExecutionPolicy | None
    """Wins over the handler's, part by part."""
    execution_id: str | None
    """The id to use; minted when absent."""
    creator: str | None
    """Who submits, for the record."""


class Registration(Protocol):
    """What ``FlowFabric.handler(...)`` with options gives: the decorator itself."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Handler[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Handler[P, R]: ...


class FlowFabric:
    """Your handlers and the store that remembers their work.

    Args:
        url: the store, such as ``sqlite:///work.db``. ``FF_URL`` is used when it is absent, and
            a file ``flowfabric.db`` in the current folder when that is absent too.
        namespace: the tenant that everything submitted and claimed here belongs to.
            ``FF_NAMESPACE`` is used when it is absent, and ``default`` when that is absent too.
        reclaim_grace: seconds or timedelta after a lapsed lease before others may reclaim the work.
        retention: seconds or timedelta that ended executions and flows, and the log of events, are
            kept; ``math.inf`` keeps them for ever. ``FF_RETENTION`` (such as ``7d``, or ``off``) is used
            when it is absent, and a day when that is absent too.
        layers: what wraps the engine's door, the innermost first; see ``flowfabric.engine.layers``.
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
        store: Store | None = None,
    ) -> None:
        self.url = url or os.environ.get("FF_URL") or DEFAULT_URL
        self.namespace = namespace or os.environ.get("FF_NAMESPACE") or DEFAULT_NAMESPACE
        self.handlers: dict[str, Handler[..., Any]] = {}
        self._reclaim_grace_ms = milliseconds(reclaim_grace) or 0
        self._retention_ms = _retention_ms(retention)
        self._store = store
        self._layers = tuple(layers)
        self._engine: Engine | None = None
        self._scanners: Scanners | None = None
        self._users = 0
        self._starting = asyncio.Lock()

    @property
    def engine(self) -> Engine:
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
                    self._engine = await self._started_engine()
            except BaseException:
                self._users -= 1
                raise
            if scanners and self._scanners is None:
                found = duties(reclaim_grace_ms=self._reclaim_grace_ms, retention_ms=self._retention_ms)
                self._scanners = Scanners(self._engine, found)
                self._scanners.start()

    async def _started_engine(self) -> Engine:
        engine = Engine(self._store or store_for(self.url), namespace=self.namespace, layers=self._layers)
        await engine.start()
        try:
            await _seed_signing_key(engine)
        except BaseException:
            await engine.stop()
            raise
        return engine

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
    def handler(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Handler[P, R]: ...

    @overload
    def handler(self, function: Callable[P, R], /) -> Handler[P, R]: ...

    @overload
    def handler(
        self,
        /,
        *,
        name: str | None = None,
        lane: str = "default",
        priority: int = 0,
        retries: int | None = None,
        backoff: Backoff | None = None,
        retry_on: Iterable[str] = (),
        timeout: timedelta | float | None = None,
        deadline: timedelta | float | None = None,
        capabilities: Iterable[str] = (),
    ) -> Registration: ...

    def handler(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        lane: str = "default",
        priority: int = 0,
        retries: int | None = None,
        backoff: Backoff | None = None,
        retry_on: Iterable[str] = (),
        timeout: timedelta | float | None = None,
        deadline: timedelta | float | None = None,
        capabilities: Iterable[str] = (),
    ) -> Any:
        """Register a function as the handler of an execution kind.

        Args:
            function: ``async def`` or ``def``; takes a ``Task``, an input, both, or nothing.
            name: the execution kind; the function's name when absent.
            lane: where its executions wait.
            priority: 0 to 9000; higher is claimed first.
            retries: how often a failed attempt is made again; ``retries=3`` means 4 attempts.
            backoff: how long to wait between attempts.
            retry_on: failure categories that are retried; empty retries all that may be.
            timeout: seconds or timedelta that one attempt may hold its lease in all.
            deadline: seconds or timedelta from submission to the latest end.
            capabilities: what a worker must offer to run it.

        Raises:
            TypeError: the function cannot be a handler; the message says what to change.
            ValueError: another handler has this name, or a value breaks a rule.
        """
        policy = handler_policy(
            retries=retries,
            backoff=backoff,
            retry_on=retry_on,
            timeout=timeout,
            deadline=deadline,
            capabilities=capabilities,
        )

        def register(target: Callable[..., Any]) -> Handler[..., Any]:
            kind = name or getattr(target, "__name__", "")
            if not kind:
                raise ValueError(f"{target!r} has no name; give it one with name=")
            if kind in self.handlers:
                raise ValueError(f"there is already a handler named {kind!r}")
            made: Handler[..., Any] = Handler(target, kind=kind, lane=lane, priority=priority, policy=policy)
            self.handlers[kind] = made
            return made

        return register if function is None else register(function)

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
        [command] = await self._creations(handler, [input], options)
        return self._run_of(engine, handler, await engine.execute(command))

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
        if {"idempotency_key", "execution_id"} & options.keys():
            raise TypeError("an idempotency key or an execution id names one execution; submit one by one")
        engine, runs = self.engine, []
        for outcome in await engine.execute_many(await self._creations(handler, inputs, options)):
            if isinstance(outcome, Exception):
                raise outcome
            runs.append(self._run_of(engine, handler, outcome))
        return runs

    def subscribe(self, *families: Family | str, **options: Unpack[FeedOptions]) -> Feed[AnyEvent]:
        """Events of this namespace as they happen: ``async for event in ff.subscribe("completion")``.

        Args:
            families: ``completion``, ``lease``, ``signal``, ``tag``, ``execution``, ``operator``; all
                of them when there is none.
            options: see ``FeedOptions``. Keep ``event.cursor`` and pass it as ``after`` to go on
                where you left.

        Raises:
            ValueError: there is no such family.
        """
        return self.engine.subscribe(*families, namespace=self.namespace, **options)

    def run(self, execution_id: str, *, result_type: Any = Any) -> Run[Any]:
        """The run of an execution that was submitted before, here or elsewhere."""
        return Run(self.engine, execution_id, self.namespace, result_type=result_type)

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
        )

    async def _creations(
        self, handler: Handler[..., Any] | str, inputs: Sequence[Any], options: SubmitOptions
    ) -> list[CreateExecutionArgs]:
        delay_ms = milliseconds(options.get("delay"))
        delay_until = None if delay_ms is None else await self.engine.store.now() + delay_ms
        return [self._creation(handler, value, options, delay_until) for value in inputs]

    def _creation(
        self, handler: Handler[..., Any] | str, value: Any, options: SubmitOptions, delay_until: int | None
    ) -> CreateExecutionArgs:
        known = self.handlers.get(handler) if isinstance(handler, str) else handler
        payload, encoding = encode_value(value)
        lane, priority = options.get("lane"), options.get("priority")
        execution_id, key = options.get("execution_id"), options.get("idempotency_key")
        deadline = options.get("deadline")
        return CreateExecutionArgs(
            execution_id=new_execution_id() if execution_id is None else execution_id,
            namespace=self.namespace,
            lane_id=(lane or (known.lane if known else "default")),
            execution_kind=handler if isinstance(handler, str) else handler.kind,
            input_payload=payload,
            payload_encoding=encoding,
            priority=priority if priority is not None else (known.priority if known else 0),
            creator_identity=options.get("creator") or "",
            idempotency_key=None if key is None else key,
            tags=options.get("tags") or {},
            policy=_submitted_policy(options.get("policy"), known),
            delay_until=delay_until,
            execution_deadline_at=None if deadline is None else round(deadline.timestamp() * 1_000),
        )

    def _run_of(
        self, engine: Engine, handler: Handler[..., Any] | str, outcome: CreateExecutionResult
    ) -> Run[Any]:
        known = self.handlers.get(handler) if isinstance(handler, str) else handler
        return Run(
            engine,
            outcome.execution_id,
            self.namespace,
            result_type=Any if known is None else known.result_type,
            duplicate=isinstance(outcome, ExecutionDuplicate),
        )


def _retention_ms(given: timedelta | float | None) -> int | None:
    """How long to keep what has ended; None for ever.

    Raises:
        ValueError: ``FF_RETENTION`` is neither a duration nor ``off``.
    """
    if given is not None:
        return None if given == math.inf else milliseconds(given)
    text = os.environ.get("FF_RETENTION")
    if not text:
        return RETENTION_MS
    return None if text == "off" else parse_duration_ms(text)


async def _seed_signing_key(engine: Engine) -> None:
    """Install the first signing key, unless there is one. Of two processes the first one wins."""
    kids = await engine.execute(ListWaitpointHmacKidsArgs())
    if kids.current_kid is None:
        secret = os.environ.get("FF_WAITPOINT_HMAC_SECRET") or secrets.token_hex(32)
        await engine.execute(SeedWaitpointHmacSecretArgs(kid=FIRST_KID, secret_hex=secret))


def _submitted_policy(
    own: ExecutionPolicy | None, handler: Handler[..., Any] | None
) -> ExecutionPolicy | None:
    """What has to be known before the first claim: routing and deadlines come from the handler."""
    if handler is None or handler.policy is None:
        return own
    early = handler.policy
    if early.routing_requirements is None and early.timeout_policy is None:
        return own
    base = own or ExecutionPolicy()
    return replace(
        base,
        routing_requirements=base.routing_requirements or early.routing_requirements,
        timeout_policy=base.timeout_policy or early.timeout_policy,
    )

"""Submitting and signalling inside a transaction of the user's own.

The user begins and ends it. What is done here in between is a part of it: it becomes true with the
user's own changes, or not at all. The answer comes at once, because the same rules decide, over
the same connection.

Methods follow the connection: they are awaited where the connection is, and block where it blocks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack, overload

from flowfabric.engine.inline import InlineEngine
from flowfabric.flows import Flow, FlowRun
from flowfabric.run import Run, send_signal
from flowfabric.submissions import Submissions, SubmitOptions, require_options_for_many

if TYPE_CHECKING:
    from flowfabric.contracts.signals import DeliverSignalResult
    from flowfabric.engine.engine import Engine
    from flowfabric.handlers import Handler
    from flowfabric.stores.base import Borrowed

R = TypeVar("R")


class AsyncConnection(Protocol):
    """A connection whose statements are awaited: asyncpg's, or psycopg's asynchronous one."""

    def execute(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Execute a statement."""


class PlainConnection(Protocol):
    """A connection whose statements block: sqlite3's, apsw's or psycopg's."""

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement."""


class Inside:
    """What happens inside somebody else's transaction, whatever the connection.

    Args:
        store: the store, inside the transaction.
        submissions: makes commands and runs.
        engine: gives the engine that the runs are to ask once the transaction has committed.
    """

    def __init__(self, store: Borrowed, submissions: Submissions, engine: Callable[[], Engine]) -> None:
        self.is_awaited = store.is_awaited
        self._store = store
        self._submissions = submissions
        self._engine = engine
        self._inline = InlineEngine(store, submissions.namespace)

    async def submit(
        self, handler: Handler[..., Any] | str, inputs: Sequence[Any], options: SubmitOptions
    ) -> list[Run[Any]]:
        """Submit executions of one kind, all of them or none."""
        async with self._inline.act():
            commands = await self._submissions.creations(self._store, handler, inputs, options)
            outcomes = await self._inline.execute_many(commands)
        return [self._submissions.run(self._engine, handler, outcome) for outcome in outcomes]

    async def submit_flow(self, flow: Flow, idempotency_key: str | None) -> FlowRun:
        """Submit a flow as a whole."""
        async with self._inline.act():
            command, ids = await flow.command(self._store, self._submissions, idempotency_key)
            outcome = await self._inline.execute(command)
        return flow.run(self._engine, self._submissions, outcome, ids)

    async def signal(
        self,
        run: Run[Any] | str,
        name: str,
        payload: Any,
        *,
        source_identity: str,
        idempotency_key: str | None,
    ) -> DeliverSignalResult:
        """Deliver a signal to the waitpoint that is meant."""
        async with self._inline.act():
            return await send_signal(
                self._inline,
                self._submissions.namespace,
                run if isinstance(run, str) else run.execution_id,
                name,
                payload,
                source_identity=source_identity,
                idempotency_key=idempotency_key,
            )


class Transaction:
    """Your transaction on the store's database, as ``FlowFabric.within`` gives it.

    A refusal leaves the transaction as it was, so it can go on. Of a PostgreSQL store, no other
    commit can happen between the first submission or signal and the end of the transaction: make
    it the last thing you do, and end the transaction soon.
    """

    def __init__(self, inside: Inside) -> None:
        self._inside = inside

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
        """Submit one execution; it exists once the transaction has committed.

        Args:
            handler: a registered handler, or the name of a kind that some worker handles.
            input: what the handler gets; anything with a JSON form, or bytes.
            **options: see ``SubmitOptions``.

        Raises:
            IdempotencyConflict: the key is bound to a submission with other content.
            InvalidInput: a value breaks a rule.
            TransactionRequired: the connection has no open transaction, or a failed one.
            TransactionOutdated: roll the transaction back and run all of it again.
            UnusableConnection: the connection does not reach the store.
            StoreError: the connection must not be used for the store, or the store failed.
        """
        [run] = await self._inside.submit(handler, [input], options)
        return run

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
        """Submit many executions of one kind, all of them or none; see ``submit``.

        Raises:
            TypeError: an option names one execution, and these are many.
        """
        require_options_for_many(options)
        return await self._inside.submit(handler, inputs, options)

    async def submit_flow(self, flow: Flow, *, idempotency_key: str | None = None) -> FlowRun:
        """Submit a flow, which exists once the transaction has committed.

        See ``FlowFabric.submit_flow``.

        Raises:
            FlowFabricError: as ``submit`` does.
        """
        return await self._inside.submit_flow(flow, idempotency_key)

    async def signal(
        self,
        run: Run[Any] | str,
        name: str,
        payload: Any = None,
        *,
        source_identity: str = "",
        idempotency_key: str | None = None,
    ) -> DeliverSignalResult:
        """Send a signal, which is delivered once the transaction has committed; see ``Run.signal``.

        Args:
            run: the run, or its execution id.
            name: what the waitpoint asks for.
            payload: anything with a JSON form, or bytes.
            source_identity: who sends it, for the record.
            idempotency_key: a signal with the same key is delivered once.

        Raises:
            WaitpointNotFound: nothing waits for such a signal now.
            FlowFabricError: as ``submit`` does.
        """
        return await self._inside.signal(
            run, name, payload, source_identity=source_identity, idempotency_key=idempotency_key
        )


class SyncTransaction:
    """A ``Transaction`` over a connection that blocks: the same methods, without ``await``."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside

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
        """Submit one execution; see ``Transaction.submit``."""
        [run] = _finish(self._inside.submit(handler, [input], options))
        return run

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
        """Submit many executions of one kind, all of them or none; see ``Transaction.submit_many``."""
        require_options_for_many(options)
        return _finish(self._inside.submit(handler, inputs, options))

    def submit_flow(self, flow: Flow, *, idempotency_key: str | None = None) -> FlowRun:
        """Submit a flow; see ``Transaction.submit_flow``."""
        return _finish(self._inside.submit_flow(flow, idempotency_key))

    def signal(
        self,
        run: Run[Any] | str,
        name: str,
        payload: Any = None,
        *,
        source_identity: str = "",
        idempotency_key: str | None = None,
    ) -> DeliverSignalResult:
        """Send a signal; see ``Transaction.signal``."""
        return _finish(
            self._inside.signal(
                run, name, payload, source_identity=source_identity, idempotency_key=idempotency_key
            )
        )


def _finish(act: Coroutine[Any, Any, R]) -> R:
    """Run what never waits: over a connection that blocks, nothing gives control away."""
    try:
        act.send(None)
    except StopIteration as end:
        result: R = end.value
        return result
    act.close()
    raise AssertionError("an act over a connection that blocks tried to wait")

"""A run: one submitted execution, as its submitter holds it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from flowfabric import errors
from flowfabric.codec import decode_value, encode_value
from flowfabric.contracts.cursors import BEGINNING, StreamCursor
from flowfabric.contracts.executions import CancelExecutionArgs
from flowfabric.contracts.runs import ReadRunArgs, RunView
from flowfabric.contracts.signals import DeliverSignalArgs, DeliverSignalResult
from flowfabric.contracts.states import PublicState, WaitpointState
from flowfabric.contracts.streams import StreamFrame, TailFramesArgs
from flowfabric.contracts.suspensions import ListPendingWaitpointsArgs, ReadWaitpointTokenArgs
from flowfabric.engine.notifier import ended_topic
from flowfabric.errors import RunCancelled, RunExpired, RunFailed, RunSkipped
from flowfabric.links import make_link
from flowfabric.minting import new_signal_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.contracts.keyring import WaitpointToken
    from flowfabric.contracts.suspensions import PendingWaitpointInfo
    from flowfabric.engine.interface import AnyEngine

R = TypeVar("R")
T = TypeVar("T")

ENDED: Final = frozenset(
    {
        PublicState.COMPLETED,
        PublicState.FAILED,
        PublicState.CANCELLED,
        PublicState.EXPIRED,
        PublicState.SKIPPED,
    }
)
SAFETY_POLL_MS: Final = 1_000
"""How often a waiter looks even if nothing woke it."""
TAIL_BLOCK_MS: Final = 2_000
"""How long one look at a stream waits for a frame. An execution that is cancelled before it ever
ran closes no stream, so whoever follows it has to look at the execution now and then."""


class Run(Generic[T]):
    """One execution, by its id.

    Args:
        engine: gives the engine to ask; called whenever the run is used.
        execution_id: the execution.
        namespace: the one it belongs to.
        result_type: what its result is decoded into.
        duplicate: True if submitting found that it existed already.

    Attributes:
        execution_id: the execution.
        duplicate: True if submitting found that it existed already.
    """

    def __init__(
        self,
        engine: Callable[[], AnyEngine],
        execution_id: str,
        namespace: str,
        *,
        result_type: Any = Any,
        duplicate: bool = False,
    ) -> None:
        self.execution_id = execution_id
        self.duplicate = duplicate
        self._engine_now = engine
        self._namespace = namespace
        self._result_type = result_type

    @property
    def _engine(self) -> AnyEngine:
        return self._engine_now()

    def __repr__(self) -> str:
        return f"<Run {self.execution_id}>"

    async def view(self) -> RunView:
        """How the execution stands.

        Raises:
            ExecutionNotFound: there is no such execution.
        """
        return await self._engine.execute(
            ReadRunArgs(execution_id=self.execution_id), namespace=self._namespace
        )

    async def state(self) -> PublicState:
        """The execution's public state."""
        return (await self.view()).public_state

    async def result(self, timeout: float | None = None) -> T:
        """Wait for the end and return the handler's result.

        Args:
            timeout: seconds to wait; None waits for ever. The execution goes on in any case.

        Raises:
            TimeoutError: the time was over first.
            RunFailed, RunCancelled, RunExpired, RunSkipped: it ended otherwise.
        """
        async with asyncio.timeout(timeout):
            view = await self.wait()
        return self.result_of(view)

    async def wait(self) -> RunView:
        """Wait for the end, whatever it is."""
        with self._engine.notifier.subscribe(ended_topic(self.execution_id)) as changes:
            while True:
                view = await self.view()
                if view.public_state in ENDED:
                    return view
                await changes.wait(SAFETY_POLL_MS)

    def result_of(self, view: RunView) -> T:
        """The handler's result, once the execution has ended.

        Raises:
            RunFailed, RunCancelled, RunExpired, RunSkipped: it ended otherwise.
        """
        match view.public_state:
            case PublicState.COMPLETED:
                result: T = decoded_result(view, self._result_type)
                return result
            case PublicState.CANCELLED:
                raise RunCancelled(execution_id=self.execution_id, reason=view.cancellation_reason)
            case PublicState.EXPIRED:
                raise RunExpired(execution_id=self.execution_id, reason=view.failure_reason)
            case PublicState.SKIPPED:
                raise RunSkipped(execution_id=self.execution_id)
            case _:
                raise RunFailed(
                    execution_id=self.execution_id,
                    reason=view.failure_reason,
                    category=view.failure_category,
                    attempts=view.total_attempt_count,
                )

    async def cancel(self, reason: str = "cancelled by its submitter") -> None:
        """Cancel the execution. A running handler is stopped when its worker renews the lease.

        Raises:
            ExecutionNotActive: it has ended otherwise already.
        """
        await self._engine.execute(
            CancelExecutionArgs(execution_id=self.execution_id, reason=reason), namespace=self._namespace
        )

    async def signal(
        self,
        name: str,
        payload: Any = None,
        *,
        source_identity: str = "",
        idempotency_key: str | None = None,
    ) -> DeliverSignalResult:
        """Send a signal to the waitpoint that asks for this name, has it as its key, or takes any.

        Of those that take any, one that is waited for comes before one that was only published.

        Raises:
            WaitpointNotFound: nothing waits for such a signal now.
            InvalidInput: several waitpoints take it equally well; send it under the key of one.
        """
        return await send_signal(
            self._engine,
            self._namespace,
            self.execution_id,
            name,
            payload,
            source_identity=source_identity,
            idempotency_key=idempotency_key,
        )

    async def waitpoint_link(
        self,
        name: str,
        *,
        question: str = "",
        choices: Mapping[str, Any] | None = None,
        public_url: str | None = None,
    ) -> str:
        """The link with which somebody outside sends this signal in a browser, once.

        It is a secret: whoever has it may answer. See ``Task.waitpoint_link``.

        Raises:
            WaitpointNotFound: nothing waits for such a signal now.
            InvalidInput: several waitpoints take it, or nobody has said where the server is.
        """
        waitpoint_id, token = await held_token(self._engine, self._namespace, self.execution_id, name)
        return make_link(
            self.execution_id,
            waitpoint_id,
            token.value,
            name=name,
            question=question,
            choices=choices,
            public_url=public_url,
        )

    async def stream(self, attempt: int | None = None) -> AsyncIterator[StreamFrame]:
        """Frames as they are written; ends by itself when the stream is closed.

        Args:
            attempt: the attempt to follow; None follows the execution through all its attempts.
        """
        index = 0 if attempt is None else attempt
        while True:
            async for frame in self._attempt_frames(index):
                yield frame
            view = await self.view()
            if attempt is not None or (view.public_state in ENDED and index >= view.current_attempt_index):
                return
            index += 1

    async def _attempt_frames(self, index: int) -> AsyncIterator[StreamFrame]:
        after, block_ms = BEGINNING, 0
        while True:
            page = await self._engine.execute(
                TailFramesArgs(
                    execution_id=self.execution_id, attempt_index=index, after=after, block_ms=block_ms
                ),
                namespace=self._namespace,
            )
            for frame in page.frames:
                yield frame
            if page.frames:
                after = StreamCursor(page.frames[-1].id)
            elif page.is_closed or await self._never_ran(index):
                return
            block_ms = TAIL_BLOCK_MS

    async def _never_ran(self, index: int) -> bool:
        """True if the execution has ended without an attempt of this index."""
        view = await self.view()
        return view.public_state in ENDED and index >= view.total_attempt_count


def decoded_result(view: RunView, result_type: Any) -> Any:
    """What a handler has returned; None where there is no result."""
    return None if view.result is None else decode_value(view.result, view.result_encoding, result_type)


class Asked(Protocol):
    """What sending a signal needs of an engine."""

    async def execute(self, command: Command[R], *, namespace: str | None = None) -> R:
        """Carry out one command and return its outcome."""


async def send_signal(
    engine: Asked,
    namespace: str,
    execution_id: str,
    name: str,
    payload: Any,
    *,
    source_identity: str,
    idempotency_key: str | None,
) -> DeliverSignalResult:
    """Find the waitpoint that a signal of this name is meant for, and deliver it; see ``Run.signal``."""
    waitpoint_id, token = await held_token(engine, namespace, execution_id, name)
    data, encoding = (None, None) if payload is None else encode_value(payload)
    return await engine.execute(
        DeliverSignalArgs(
            execution_id=execution_id,
            waitpoint_id=waitpoint_id,
            signal_id=new_signal_id(),
            signal_name=name,
            signal_category="",
            source_type="submitter",
            source_identity=source_identity,
            payload=data,
            payload_encoding=encoding,
            idempotency_key=None if idempotency_key is None else idempotency_key,
            waitpoint_token=token,
        ),
        namespace=namespace,
    )


async def held_token(
    engine: Asked, namespace: str, execution_id: str, name: str
) -> tuple[str, WaitpointToken]:
    """The waitpoint that a signal of this name is meant for, and its token.

    Raises:
        WaitpointNotFound: nothing waits for such a signal now.
        InvalidInput: several waitpoints take it equally well.
    """
    pending = await engine.execute(ListPendingWaitpointsArgs(execution_id=execution_id), namespace=namespace)
    waitpoint = _waitpoint_for(name, pending.entries)
    if waitpoint is None:
        raise errors.WaitpointNotFound(execution_id=execution_id, signal_name=name)
    token = await engine.execute(
        ReadWaitpointTokenArgs(execution_id=execution_id, waitpoint_id=waitpoint.waitpoint_id),
        namespace=namespace,
    )
    if token is None:
        raise errors.WaitpointNotFound(execution_id=execution_id, signal_name=name)
    return waitpoint.waitpoint_id, token


def _waitpoint_for(name: str, entries: Sequence[PendingWaitpointInfo]) -> PendingWaitpointInfo | None:
    """The waitpoint that a signal of this name is meant for.

    Raises:
        InvalidInput: it could be meant for several.
    """
    for_any = [entry for entry in entries if not entry.required_signal_names]
    found = (
        [entry for entry in entries if name in entry.required_signal_names]
        or [entry for entry in for_any if entry.waitpoint_key == name]
        or [entry for entry in for_any if entry.state is WaitpointState.ACTIVE]
        or for_any
    )
    if len(found) > 1:
        keys = ", ".join(sorted(entry.waitpoint_key for entry in found))
        raise errors.InvalidInput(field="name", value=repr(name), rule=f"one waitpoint's key of: {keys}")
    return found[0] if found else None

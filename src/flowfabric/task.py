"""What a handler holds: its execution, and everything it may do while it runs.

A handler may run more than once: after a crash, a retry, a sleep or a wait. Code inside ``step``
runs again only if it died before it was recorded; code outside steps runs again each time.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import sys
import typing
from collections.abc import Awaitable, Coroutine
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, overload

import msgspec

from flowfabric import errors
from flowfabric.codec import Undecodable, Unencodable, decode_value, encode_value, require_size
from flowfabric.contracts.budgets import (
    OnHardLimit,
    ReportUsageArgs,
    UsageAlreadyApplied,
    UsageApplied,
    UsageHardBreach,
    UsageSoftBreach,
)
from flowfabric.contracts.conditions import ByName, ResumeCondition, Single
from flowfabric.contracts.executions import DelayExecutionArgs, UpdateProgressArgs
from flowfabric.contracts.flows import ReadParentResultsArgs
from flowfabric.contracts.ids import budget_id_of
from flowfabric.contracts.journal import (
    JournalEntry,
    JournalKind,
    ReadJournalArgs,
    RecordSleepArgs,
    RecordStepArgs,
)
from flowfabric.contracts.limits import JOURNAL_BYTES_MAX, NAME_CHARS_MAX
from flowfabric.contracts.policy import TimeoutBehavior
from flowfabric.contracts.reads import ServerTimeArgs
from flowfabric.contracts.signals import ObserveSignalsArgs, ResumeSignal
from flowfabric.contracts.streams import AppendFrameArgs
from flowfabric.contracts.suspensions import (
    CreatePendingWaitpointArgs,
    ExecutionSuspended,
    FreshWaitpoint,
    ResumePolicy,
    SuspendExecutionArgs,
    SuspensionReasonCode,
    UsePendingWaitpoint,
)
from flowfabric.core.journal_pointer import journal_pointer
from flowfabric.core.registry import EARLIER_REQUESTS_MAX
from flowfabric.interrupts import ExecutionSuspendedInterrupt
from flowfabric.leased import Window
from flowfabric.links import make_link
from flowfabric.minting import new_suspension_id, new_waitpoint_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flowfabric.contracts.leases import ClaimedWork
    from flowfabric.leased import LeasedEngine

P = ParamSpec("P")
T = TypeVar("T")

_inside: ContextVar[str] = ContextVar("flowfabric_step", default="")
"""The path of the steps that this code runs in. It leads the names of what is journalled in them,
so that an outer step, which is not run again, does not shift the ordinals of those outside."""


class SignalTimeout(TimeoutError):
    """The signal did not come in time."""


class ReceivedSignal(msgspec.Struct, frozen=True, kw_only=True):
    """A signal that a handler waited for."""

    name: str
    payload: Any
    source_type: str
    source_identity: str
    signal_id: str
    accepted_at: int


class PublishedWaitpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A place where a signal may arrive before or after the handler waits for it."""

    waitpoint_id: str
    waitpoint_key: str
    token: str
    """Whoever holds it may signal this waitpoint. Treat it as a secret."""

    def __repr__(self) -> str:
        return f"<PublishedWaitpoint {self.waitpoint_key!r} {self.waitpoint_id}>"


class Claimed:
    """The execution that a handler runs, and its journal.

    Attributes:
        execution_id: the execution that is being run.
        attempt: the attempt's index, from 0. Resuming keeps it; a retry has the next one.
        resumed: True if this run continues an attempt that waited or was given back.
        tags: the execution's tags.
        kind: the execution kind.
        lane: the lane it was claimed from.
    """

    def __init__(
        self, leased: LeasedEngine, claim: ClaimedWork, journal: tuple[JournalEntry, ...] = ()
    ) -> None:
        self.execution_id = claim.execution_id
        self.attempt = claim.attempt_index
        self.resumed = claim.resumed
        self.tags = claim.tags
        self.kind = claim.execution_kind
        self.lane = claim.lane_id
        self._leased = leased
        self._frames = Window(EARLIER_REQUESTS_MAX)
        self._generation = claim.generation
        self._budget_ids = () if claim.policy is None else claim.policy.budget_ids or ()
        self._fence = claim.fence
        self._ordinals: dict[str, int] = {}
        self._journal = {(entry.name, entry.ordinal): entry for entry in journal}

    @property
    def idempotency_key(self) -> str:
        """The same for every run of this execution: hand it to services that can use one."""
        return f"{self.execution_id}/{self._generation}"

    @property
    def fence(self) -> tuple[str, int, str]:
        """Lease id, lease epoch and attempt id, for downstream stores that can compare them."""
        return self._fence.lease_id, self._fence.lease_epoch, self._fence.attempt_id

    def _next_place(self, name: str) -> tuple[str, int]:
        """The journal's name and ordinal for the next use of a name."""
        full_name = _inside.get() + name
        ordinal = self._ordinals.get(full_name, 0)
        self._ordinals[full_name] = ordinal + 1
        return full_name, ordinal

    def _entry(self, name: str, ordinal: int, kind: JournalKind) -> JournalEntry | None:
        entry = self._journal.get((name, ordinal))
        if entry is not None and entry.kind is not kind:
            raise errors.JournalMismatch(name=name, ordinal=ordinal, recorded=entry.kind, asked=kind)
        return entry

    def _usage_key(self, budget: str) -> str:
        """The same in every run for the n-th report to a budget at this place."""
        name, ordinal = self._next_place(f"usage {budget}")
        place = f"{name}/{ordinal}"
        room = NAME_CHARS_MAX - len(self.idempotency_key) - 1
        if len(place) > room:
            place = hashlib.sha256(place.encode()).hexdigest()
        return f"{self.idempotency_key}/{place}"

    async def _record_step(self, name: str, ordinal: int, value: Any, returns: Any) -> JournalEntry:
        recorded = await self._leased.execute(
            RecordStepArgs(
                execution_id=self.execution_id,
                fence=self._fence,
                attempt_index=self.attempt,
                name=name,
                ordinal=ordinal,
                value=_step_bytes(name, value, returns),
            )
        )
        return recorded.entry


class Task(Claimed):
    """One run of a handler; see ``Claimed`` for what it says about its execution."""

    @overload
    def step(
        self, name: str, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def step(
        self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...

    def step(
        self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Run a function once and record what it returns; later runs get the recorded value.

        Args:
            name: the step's name. The n-th use of a name is its own entry, so loops may repeat it.
                Steps that run at the same time are numbered in the order of the calls.
            function: sync or async. It runs again only if it died before its result was recorded.
                A plain function runs in the event loop; hand slow ones to ``asyncio.to_thread``.
            *args: for the function.
            **kwargs: for the function.

        Returns:
            What was recorded. It went through JSON, into the type that the function's annotation
            names; without an annotation that can be resolved it is plain data. So the first run
            gets what later ones will get.

        Raises:
            JournalMismatch: this place in the journal holds a wait or a sleep.
            Unencodable, Undecodable: the result cannot be stored, or not be read back.
        """
        return self._step(*self._next_place(name), functools.partial(function, *args, **kwargs))

    async def _step(self, name: str, ordinal: int, call: functools.partial[Any]) -> Any:
        returns = _return_type(call.func)
        entry = self._entry(name, ordinal, JournalKind.STEP)
        if entry is None:
            with _inside_step(name, ordinal):
                value = call()
                if inspect.isawaitable(value):
                    value = await value
            entry = await self._record_step(name, ordinal, value, returns)
        return _step_value(entry, returns)

    async def wait_for_signal(
        self,
        name: str,
        *,
        timeout: timedelta | float | None = None,
        payload_type: Any = Any,
        waitpoint: PublishedWaitpoint | None = None,
        reason: SuspensionReasonCode = SuspensionReasonCode.WAITING_FOR_SIGNAL,
    ) -> ReceivedSignal:
        """Wait until a signal with this name arrives. No worker is held meanwhile.

        The handler stops here and runs again from the top when the signal is there; the journal
        then answers this call at once.

        Args:
            name: the signal's name.
            timeout: seconds or a timedelta; None waits for ever.
            payload_type: the type that the signal's payload must have.
            waitpoint: a waitpoint published before; without one a new waitpoint is made.
            reason: why the execution waits, for those who look at it.

        Raises:
            SignalTimeout: the signal did not come in time.
            Undecodable: the payload has another type.
        """
        place = self._next_place(name)
        entry = self._entry(*place, JournalKind.WAIT)
        if entry is None:
            binding, key = _binding_for(waitpoint, f"{name}:{place[1]}")
            condition = Single(waitpoint_key=key, matcher=ByName(name=name))
            entry = await self._suspend(place, condition, (binding,), timeout=timeout, reason=reason)
        return _received(entry, name, payload_type)

    async def sleep(self, duration: timedelta | float, name: str = "sleep") -> None:
        """Sleep without holding a worker. The handler runs again from the top afterwards.

        Args:
            duration: seconds or a timedelta, counted from the first time this place is reached.
            name: the journal's name for this sleep.
        """
        place, ordinal = self._next_place(name)
        entry = self._entry(place, ordinal, JournalKind.SLEEP)
        now = await self.now()
        if entry is None:
            recorded = await self._leased.execute(
                RecordSleepArgs(
                    execution_id=self.execution_id,
                    fence=self._fence,
                    attempt_index=self.attempt,
                    name=place,
                    ordinal=ordinal,
                    wake_at=now + _milliseconds(duration),
                )
            )
            entry = recorded.entry
        wake_at = entry.wake_at or 0
        if wake_at > now:
            await self._give_back(wake_at)

    async def suspend(
        self,
        condition: ResumeCondition,
        waitpoints: tuple[FreshWaitpoint | UsePendingWaitpoint, ...],
        *,
        timeout: timedelta | float | None = None,
        timeout_behavior: TimeoutBehavior = TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL,
        resume_policy: ResumePolicy | None = None,
        reason: SuspensionReasonCode = SuspensionReasonCode.WAITING_FOR_SIGNAL,
        name: str = "suspend",
    ) -> tuple[ResumeSignal, ...]:
        """Suspend on any condition; the full form of ``wait_for_signal``.

        Args:
            condition: what has to happen before the handler runs again.
            waitpoints: where signals arrive; the first is the primary one.
            timeout: seconds or a timedelta; None waits for ever.
            timeout_behavior: what happens when the time is over.
            resume_policy: what happens when the condition is met.
            reason: why the execution waits, for those who look at it.
            name: the journal's name for this wait.

        Returns:
            The signals that met the condition, in the order of their arrival.
        """
        place = self._next_place(name)
        entry = self._entry(*place, JournalKind.WAIT)
        if entry is None:
            entry = await self._suspend(
                place,
                condition,
                waitpoints,
                timeout=timeout,
                timeout_behavior=timeout_behavior,
                resume_policy=resume_policy,
                reason=reason,
            )
        return entry.signals

    async def create_waitpoint(
        self, key: str, *, expires_in: timedelta | float = timedelta(days=1)
    ) -> PublishedWaitpoint:
        """Publish a waitpoint before waiting on it, so that an early signal is not lost.

        It is recorded like a step: every later run gets the same waitpoint and token.
        """
        return await self.step(f"waitpoint {key}", self._publish_waitpoint, key, expires_in)

    async def _publish_waitpoint(self, key: str, expires_in: timedelta | float) -> PublishedWaitpoint:
        created = await self._leased.execute(
            CreatePendingWaitpointArgs(
                execution_id=self.execution_id,
                lease_id=self._fence.lease_id,
                lease_epoch=self._fence.lease_epoch,
                attempt_id=self._fence.attempt_id,
                attempt_index=self.attempt,
                waitpoint_id=new_waitpoint_id(),
                waitpoint_key=key,
                expires_in_ms=_milliseconds(expires_in),
            )
        )
        return PublishedWaitpoint(
            waitpoint_id=created.waitpoint_id,
            waitpoint_key=created.waitpoint_key,
            token=created.waitpoint_token.value,
        )

    def waitpoint_link(
        self,
        waitpoint: PublishedWaitpoint,
        name: str,
        *,
        question: str = "",
        choices: Mapping[str, Any] | None = None,
        public_url: str | None = None,
    ) -> str:
        """The link with which somebody outside answers a waitpoint in a browser, once.

        Args:
            waitpoint: one that was published with ``create_waitpoint``.
            name: what ``wait_for_signal`` waits for.
            question: what is asked, as the page shows it.
            choices: what can be chosen, with the payload of each: ``{"Yes": True, "No": False}``;
                without any, the page asks for a text.
            public_url: where outsiders reach the server; ``FF_PUBLIC_URL`` when absent.

        Raises:
            InvalidInput: nobody has said where the server is, or the link would be too long.
        """
        return make_link(
            self.execution_id,
            waitpoint.waitpoint_id,
            waitpoint.token,
            name=name,
            question=question,
            choices=choices,
            public_url=public_url,
        )

    async def emit(self, frame_type: str, payload: Any = b"", *, correlation_id: str | None = None) -> None:
        """Append a frame to this attempt's stream. Readers see it at once.

        Args:
            frame_type: a name for the kind of frame, such as ``token``.
            payload: bytes and text stay as they are, other values become JSON.
            correlation_id: ties frames together that belong together.
        """
        data, encoding = _frame_payload(payload)
        frame = AppendFrameArgs(
            execution_id=self.execution_id,
            attempt_index=self.attempt,
            lease_id=self._fence.lease_id,
            lease_epoch=self._fence.lease_epoch,
            attempt_id=self._fence.attempt_id,
            frame_type=frame_type,
            payload=data,
            encoding=encoding,
            correlation_id=correlation_id,
        )
        async with self._frames.place():
            await self._leased.execute(frame)

    async def progress(self, percent: int | None = None, message: str | None = None) -> None:
        """Say how far the work is. What is None keeps its value."""
        await self._leased.execute(
            UpdateProgressArgs(
                execution_id=self.execution_id,
                lease_id=self._fence.lease_id,
                lease_epoch=self._fence.lease_epoch,
                attempt_id=self._fence.attempt_id,
                progress_pct=percent,
                progress_message=message,
            )
        )

    async def report_usage(
        self, budget: str, /, **amounts: int
    ) -> UsageApplied | UsageSoftBreach | UsageAlreadyApplied:
        """Count what this execution has spent of a budget: ``report_usage("team", tokens=310)``.

        The n-th report at a place counts once, also when the handler or a step runs again, within
        24 hours. Report inside of steps what must never count twice.

        Args:
            budget: the budget's name or id.
            amounts: how much of which dimension.

        Returns:
            Whether it was counted, and whether a soft limit is passed.

        Raises:
            BudgetExceeded: a hard limit would be passed; nothing was counted. A budget that pauses
                what it is attached to puts the execution aside instead: the handler stops here and
                runs again when there is headroom.
            BudgetNotFound: there is no such budget.
        """
        budget_id = budget_id_of(self._leased.namespace, budget)
        try:
            outcome = await self._leased.execute(
                ReportUsageArgs(
                    budget_id=budget_id,
                    execution_id=self.execution_id,
                    fence=self._fence,
                    dimensions=tuple(amounts),
                    deltas=tuple(amounts.values()),
                    dedup_key=self._usage_key(budget),
                )
            )
        except errors.IdempotencyConflict:
            # A step that died half-way may count otherwise when it runs again; it counts once.
            return UsageAlreadyApplied()
        if not isinstance(outcome, UsageHardBreach):
            return outcome
        if outcome.on_hard_limit is OnHardLimit.PAUSE and budget_id in self._budget_ids:
            await self._give_back(0)
        raise errors.BudgetExceeded(
            name=budget,
            dimension=outcome.dimension,
            current_usage=outcome.current_usage,
            hard_limit=outcome.hard_limit,
        )

    async def resume_signals(self) -> tuple[ResumeSignal, ...]:
        """The signals that resumed this attempt; empty if it was not resumed by signals."""
        observed = await self._leased.execute(
            ObserveSignalsArgs(execution_id=self.execution_id, fence=self._fence, attempt_index=self.attempt)
        )
        return observed.signals

    async def inputs(self, expected: Any = Any) -> dict[str, Any]:
        """What the executions that this one depends on hand down to it.

        Args:
            expected: the type that every result must have.

        Returns:
            The results of the upstreams that have succeeded, by the ``data_passing_ref`` of the
            edge. An edge without one hands nothing down.
        """
        handed = await self._leased.execute(ReadParentResultsArgs(execution_id=self.execution_id))
        return {
            found.name: None if found.result is None else decode_value(found.result, found.encoding, expected)
            for found in handed.results
        }

    async def now(self) -> int:
        """The store's clock, in milliseconds."""
        return (await self._leased.execute(ServerTimeArgs())).now_ms

    async def _suspend(
        self,
        place: tuple[str, int],
        condition: ResumeCondition,
        waitpoints: tuple[FreshWaitpoint | UsePendingWaitpoint, ...],
        *,
        timeout: timedelta | float | None,
        reason: SuspensionReasonCode,
        timeout_behavior: TimeoutBehavior = TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL,
        resume_policy: ResumePolicy | None = None,
    ) -> JournalEntry:
        """Suspend and leave the handler; return only if early signals had met the condition."""
        name, ordinal = place
        outcome = await self._leased.execute(
            SuspendExecutionArgs(
                execution_id=self.execution_id,
                fence=self._fence,
                attempt_index=self.attempt,
                suspension_id=new_suspension_id(),
                waitpoints=waitpoints,
                resume_condition=condition,
                resume_policy=resume_policy or ResumePolicy(),
                reason_code=reason,
                timeout_at=None if timeout is None else await self.now() + _milliseconds(timeout),
                timeout_behavior=timeout_behavior,
                continuation_metadata_pointer=journal_pointer(JournalKind.WAIT, ordinal, name),
            )
        )
        if isinstance(outcome, ExecutionSuspended):
            self._leave()
        page = await self._leased.execute(ReadJournalArgs(execution_id=self.execution_id))
        return next(entry for entry in page.entries if (entry.name, entry.ordinal) == place)

    async def _give_back(self, delay_until: int) -> NoReturn:
        """Give the lease up and leave the handler; the same attempt goes on at that instant."""
        await self._leased.execute(
            DelayExecutionArgs(
                execution_id=self.execution_id,
                fence=self._fence,
                attempt_index=self.attempt,
                delay_until=delay_until,
                source="lease_holder",
            )
        )
        self._leave()

    def _leave(self) -> NoReturn:
        """Leave the handler: the execution waits, and its lease is released."""
        self._leased.gone = True
        raise ExecutionSuspendedInterrupt


class SyncTask(Claimed):
    """A ``Task`` for handlers that are plain functions: the same methods, without ``await``.

    The handler runs in a thread of its own; each call waits for the event loop's answer.
    """

    def __init__(self, task: Task, loop: asyncio.AbstractEventLoop) -> None:
        vars(self).update(vars(task))
        self._task = task
        self._loop = loop

    @overload
    def step(
        self, name: str, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    def step(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """See ``Task.step``. A plain function runs in the handler's thread."""
        name, ordinal = self._next_place(name)
        returns = _return_type(function)
        entry = self._entry(name, ordinal, JournalKind.STEP)
        if entry is None:
            with _inside_step(name, ordinal):
                value = function(*args, **kwargs)
                if inspect.iscoroutine(value):
                    value = self._wait(value)
            entry = self._wait(self._record_step(name, ordinal, value, returns))
        return _step_value(entry, returns)

    def wait_for_signal(self, name: str, **options: Any) -> ReceivedSignal:
        """See ``Task.wait_for_signal``."""
        return self._wait(self._task.wait_for_signal(name, **options))

    def sleep(self, duration: timedelta | float, name: str = "sleep") -> None:
        """See ``Task.sleep``."""
        self._wait(self._task.sleep(duration, name))

    def suspend(
        self, condition: ResumeCondition, waitpoints: Any, **options: Any
    ) -> tuple[ResumeSignal, ...]:
        """See ``Task.suspend``."""
        return self._wait(self._task.suspend(condition, waitpoints, **options))

    def create_waitpoint(self, key: str, **options: Any) -> PublishedWaitpoint:
        """See ``Task.create_waitpoint``."""
        return self._wait(self._task.create_waitpoint(key, **options))

    def waitpoint_link(self, waitpoint: PublishedWaitpoint, name: str, **options: Any) -> str:
        """See ``Task.waitpoint_link``."""
        return self._task.waitpoint_link(waitpoint, name, **options)

    def emit(self, frame_type: str, payload: Any = b"", *, correlation_id: str | None = None) -> None:
        """See ``Task.emit``."""
        self._wait(self._task.emit(frame_type, payload, correlation_id=correlation_id))

    def progress(self, percent: int | None = None, message: str | None = None) -> None:
        """See ``Task.progress``."""
        self._wait(self._task.progress(percent, message))

    def report_usage(
        self, budget: str, /, **amounts: int
    ) -> UsageApplied | UsageSoftBreach | UsageAlreadyApplied:
        """See ``Task.report_usage``."""
        return self._wait(self._task.report_usage(budget, **amounts))

    def resume_signals(self) -> tuple[ResumeSignal, ...]:
        """See ``Task.resume_signals``."""
        return self._wait(self._task.resume_signals())

    def inputs(self, expected: Any = Any) -> dict[str, Any]:
        """See ``Task.inputs``."""
        return self._wait(self._task.inputs(expected))

    def now(self) -> int:
        """See ``Task.now``."""
        return self._wait(self._task.now())

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


@contextmanager
def _inside_step(name: str, ordinal: int) -> Iterator[None]:
    token = _inside.set(f"{name}[{ordinal}] > ")
    try:
        yield
    finally:
        _inside.reset(token)


def _step_bytes(name: str, value: Any, returns: Any) -> bytes:
    """What the journal keeps of a step's result. What cannot be read back is not recorded."""
    try:
        data, encoding = encode_value(value)
        decode_value(data, encoding, returns)
        packed = msgspec.msgpack.encode((data, encoding))
        require_size(packed, JOURNAL_BYTES_MAX, "it")
    except (Unencodable, Undecodable) as error:
        raise type(error)(f"the result of step {name!r} cannot be recorded: {error}") from None
    return packed


def _step_value(entry: JournalEntry, returns: Any) -> Any:
    data, encoding = msgspec.msgpack.decode(entry.value or b"", type=tuple[bytes, str])
    return decode_value(data, encoding, returns)


def _binding_for(
    waitpoint: PublishedWaitpoint | None, key: str
) -> tuple[FreshWaitpoint | UsePendingWaitpoint, str]:
    """How a wait binds its waitpoint, and the waitpoint's key."""
    if waitpoint is None:
        return FreshWaitpoint(waitpoint_id=new_waitpoint_id(), waitpoint_key=key), key
    return UsePendingWaitpoint(waitpoint_id=waitpoint.waitpoint_id), waitpoint.waitpoint_key


def _received(entry: JournalEntry, name: str, payload_type: Any) -> ReceivedSignal:
    if entry.timed_out or not entry.signals:
        raise SignalTimeout(f"no signal {name!r} came before the wait ended")
    signal = entry.signals[-1]
    payload = signal.payload
    return ReceivedSignal(
        name=signal.signal_name,
        payload=None if payload is None else decode_value(payload, signal.payload_encoding, payload_type),
        source_type=signal.source_type,
        source_identity=signal.source_identity,
        signal_id=signal.signal_id,
        accepted_at=signal.accepted_at,
    )


def _frame_payload(payload: Any) -> tuple[bytes, str]:
    if isinstance(payload, str):
        return payload.encode(), "utf8"
    data, encoding = encode_value(payload)
    return data, encoding


def _return_type(function: Callable[..., Any]) -> Any:
    """What a call of the function results in, once awaited; Any where that cannot be found out."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isclass(function):
        return function
    if not hasattr(function, "__annotations__"):
        function = type(function).__call__
    hint = getattr(function, "__annotations__", {}).get("return", Any)
    if hint is not Any and not isinstance(hint, type):
        hint = _resolved(hint, getattr(function, "__module__", ""))
    return typing.get_args(hint)[-1] if typing.get_origin(hint) in (Awaitable, Coroutine) else hint


@functools.lru_cache(1_024)
def _resolved(annotation: Any, module: str) -> Any:
    """What an annotation means in a module. Steps run often, and resolving takes long."""
    returns = SimpleNamespace(__annotations__={"return": annotation})
    namespace = vars(sys.modules[module]) if module in sys.modules else {}
    try:
        return typing.get_type_hints(returns, globalns=namespace)["return"]
    except (NameError, TypeError):
        return Any


def _milliseconds(duration: timedelta | float) -> int:
    return round((duration.total_seconds() if isinstance(duration, timedelta) else duration) * 1_000)

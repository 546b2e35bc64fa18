"""Layers around the one door: tracing, metrics, a rate limit and a circuit breaker.

A layer takes a door and is one, so layers stack in any order::

    door = Traced(Metered(RateLimited(engine, limits), sink), tracer)

The rule this module keeps: a layer never changes a command or an answer. It lets a command
through, or refuses it before it reaches the engine.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

import msgspec

from flowfabric import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from flowfabric.contracts.base import Command

R = TypeVar("R")

OK: Final = "ok"
FAULTS_MAX: Final = 5
COOL_DOWN_S: Final = 30.0

_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Door(Protocol):
    """What carries out commands: an engine, or a layer around one."""

    async def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        """Carry out one command and return its outcome."""

    async def execute_many(
        self,
        commands: Sequence[Command[R]],
        *,
        request_ids: Sequence[str | None] | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> list[R | Exception]:
        """Carry out many commands; each has its own outcome or exception."""


Layer: TypeAlias = "Callable[[Door], Door]"
"""What wraps a door in another."""


@cache
def operation_name(command_type: type[Command[Any]]) -> str:
    """The word for an operation in logs, metrics and spans.

    >>> from flowfabric.contracts.executions import CompleteExecutionArgs
    >>> operation_name(CompleteExecutionArgs)
    'complete_execution'
    """
    return _HUMP.sub("_", command_type.__name__.removesuffix("Args")).lower()


# Tracing


class Tracer(Protocol):
    """Where spans go. A few lines join it to any tracing library."""

    def span(self, name: str, attributes: Mapping[str, str | int]) -> AbstractContextManager[object]:
        """A span that is open for as long as the context is. It sees exceptions pass."""


_TRACED: Final = {
    "execution_id": "execution_id",
    "flow_id": "flow_id",
    "lane_id": "lane",
    "attempt_index": "attempt_index",
    "worker_id": "worker_id",
    "worker_instance_id": "worker_instance_id",
    "waitpoint_id": "waitpoint_id",
}
"""The fields of commands that a span tells, and how it calls them. None holds content or a secret."""
_FENCED: Final = ("lease_id", "lease_epoch", "attempt_id")


class Traced:
    """Opens a span ``ff.<operation>`` around every command, and one around commands sent together."""

    def __init__(self, inner: Door, tracer: Tracer) -> None:
        self._inner = inner
        self._tracer = tracer

    async def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        """Carry out one command inside a span."""
        with self._tracer.span(f"ff.{operation_name(type(command))}", _attributes(command, namespace)):
            return await self._inner.execute(command, request_id=request_id, namespace=namespace, actor=actor)

    async def execute_many(
        self,
        commands: Sequence[Command[R]],
        *,
        request_ids: Sequence[str | None] | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> list[R | Exception]:
        """Carry out many commands inside one span, which is named after them if they are alike."""
        names = {operation_name(type(command)) for command in commands}
        name = names.pop() if len(names) == 1 else "execute_many"
        attributes: dict[str, str | int] = {"count": len(commands)}
        if namespace is not None:
            attributes["namespace"] = namespace
        with self._tracer.span(f"ff.{name}", attributes):
            return await self._inner.execute_many(
                commands, request_ids=request_ids, namespace=namespace, actor=actor
            )


def _attributes(command: Command[Any], namespace: str | None) -> dict[str, str | int]:
    values: dict[str, Any] = {shown: getattr(command, name, None) for name, shown in _TRACED.items()}
    fence = getattr(command, "fence", None)
    if fence is not None:
        values.update({name: getattr(fence, name) for name in _FENCED})
    values["namespace"] = namespace
    return {name: value for name, value in values.items() if value is not None}


# Metrics


class MetricsSink(Protocol):
    """Where measurements go."""

    def record_call(self, method: str, elapsed_s: float, outcome: str) -> None:
        """One command was answered. ``outcome`` is ``ok`` or the code of the error."""


class Metered:
    """Reports every command with its duration. Commands sent together share theirs."""

    def __init__(
        self, inner: Door, sink: MetricsSink, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._inner = inner
        self._sink = sink
        self._clock = clock

    async def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        """Carry out one command and report it."""
        began = self._clock()
        try:
            answer = await self._inner.execute(
                command, request_id=request_id, namespace=namespace, actor=actor
            )
        except BaseException as error:
            self.report(command, error, self._clock() - began)
            raise
        self.report(command, answer, self._clock() - began)
        return answer

    async def execute_many(
        self,
        commands: Sequence[Command[R]],
        *,
        request_ids: Sequence[str | None] | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> list[R | Exception]:
        """Carry out many commands and report each."""
        began = self._clock()
        answers = await self._inner.execute_many(
            commands, request_ids=request_ids, namespace=namespace, actor=actor
        )
        elapsed_s = self._clock() - began
        for command, answer in zip(commands, answers, strict=True):
            self.report(command, answer, elapsed_s)
        return answers

    def report(self, command: Command[Any], answer: object, elapsed_s: float) -> None:
        """Report one command with its answer, or with the exception that stood in its place."""
        self._sink.record_call(operation_name(type(command)), elapsed_s, outcome_of(answer))


def outcome_of(answer: object) -> str:
    """``ok``, the code of an error, ``cancelled``, or ``error`` for an exception that has no code."""
    if isinstance(answer, errors.FlowFabricError):
        return answer.code
    if isinstance(answer, asyncio.CancelledError):
        return "cancelled"
    return "error" if isinstance(answer, BaseException) else OK


# Rate limit


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """So many commands a second, and so many at once after a pause."""

    per_s: float
    burst: int


class _Bucket:
    """Tokens that come at a steady rate and are kept up to the burst."""

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = float(rate.burst)
        self._filled_at = now

    def wait_s(self, now: float) -> float:
        """Take a token and return 0, or return how long it takes until there is one."""
        gained = (now - self._filled_at) * self._rate.per_s
        self._tokens = min(self._rate.burst, self._tokens + gained)
        self._filled_at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate.per_s


class RateLimited:
    """Refuses commands above their operation's rate. Operations without a rate pass."""

    def __init__(
        self, inner: Door, limits: Mapping[str, Rate], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._buckets = {operation: _Bucket(rate, clock()) for operation, rate in limits.items()}

    async def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        """Carry out one command.

        Raises:
            RateLimitExceeded: the operation's rate is reached; ``retry_after_ms`` says for how long.
        """
        refusal = self._refusal(command)
        if refusal is not None:
            raise refusal
        return await self._inner.execute(command, request_id=request_id, namespace=namespace, actor=actor)

    async def execute_many(
        self,
        commands: Sequence[Command[R]],
        *,
        request_ids: Sequence[str | None] | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> list[R | Exception]:
        """Carry out those of the commands that are within their rate; the others are refused."""
        ids = request_ids if request_ids is not None else [None] * len(commands)
        refusals = [self._refusal(command) for command in commands]
        admitted = [place for place, refusal in enumerate(refusals) if refusal is None]
        answers: list[R | Exception] = [refusal or errors.RateLimitExceeded() for refusal in refusals]
        carried_out = await self._inner.execute_many(
            [commands[place] for place in admitted],
            request_ids=[ids[place] for place in admitted],
            namespace=namespace,
            actor=actor,
        )
        for place, answer in zip(admitted, carried_out, strict=True):
            answers[place] = answer
        return answers

    def _refusal(self, command: Command[Any]) -> errors.RateLimitExceeded | None:
        operation = operation_name(type(command))
        bucket = self._buckets.get(operation)
        wait_s = 0.0 if bucket is None else bucket.wait_s(self._clock())
        if wait_s == 0.0:
            return None
        return errors.RateLimitExceeded(operation=operation, retry_after_ms=max(1, round(wait_s * 1_000)))


# Circuit breaker


class CircuitBreaker:
    """Stops asking a store that keeps failing, so that callers learn it at once.

    Only faults of the store count, and only in a row. After the cool-down one command is let
    through as a trial: if the store answers, the circuit closes; if not, it stays open as long again.

    Args:
        inner: the door behind the breaker.
        name: how the breaker calls itself when it refuses.
        faults_max: faults in a row that open the circuit.
        cool_down_s: how long it stays open.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        inner: Door,
        *,
        name: str = "store",
        faults_max: int = FAULTS_MAX,
        cool_down_s: float = COOL_DOWN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._name = name
        self._faults_max = faults_max
        self._cool_down_s = cool_down_s
        self._clock = clock
        self._faults = 0
        self._opened_at: float | None = None
        self._trying = False

    @property
    def state(self) -> str:
        """``closed``, ``open``, or ``half_open`` when a trial is due or under way."""
        if self._opened_at is None:
            return "closed"
        return "open" if self._clock() - self._opened_at < self._cool_down_s else "half_open"

    async def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        """Carry out one command.

        Raises:
            StoreUnreachable: the circuit is open; nothing was sent.
        """
        with self._guarded():
            try:
                answer = await self._inner.execute(
                    command, request_id=request_id, namespace=namespace, actor=actor
                )
            except errors.FlowFabricError as error:
                self._judge(error)
                raise
            self._close()
            return answer

    async def execute_many(
        self,
        commands: Sequence[Command[R]],
        *,
        request_ids: Sequence[str | None] | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> list[R | Exception]:
        """Carry out many commands; together they count once.

        Raises:
            StoreUnreachable: the circuit is open; nothing was sent.
        """
        with self._guarded():
            answers = await self._inner.execute_many(
                commands, request_ids=request_ids, namespace=namespace, actor=actor
            )
            faults = [answer for answer in answers if isinstance(answer, errors.StoreError)]
            if faults:
                self._judge(faults[0])
            elif not all(isinstance(answer, errors.InvalidInput) for answer in answers):
                self._close()
            return answers

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let a command through, or refuse it; of those in a half-open circuit only one."""
        state = self.state
        if state == "open" or (state == "half_open" and self._trying):
            raise errors.StoreUnreachable(
                f"The circuit breaker {self._name!r} is open after {self._faults} faults in a row. "
                "Nothing was sent. Check the store, then try again.",
                breaker=self._name,
            )
        trial = state == "half_open"
        self._trying = self._trying or trial
        try:
            yield
        finally:
            if trial:
                self._trying = False

    def _judge(self, error: errors.FlowFabricError) -> None:
        """Count a fault of the store; any other refusal shows that the store answers."""
        if isinstance(error, errors.StoreError):
            self._faults += 1
            if self._faults >= self._faults_max:
                self._opened_at = self._clock()
        elif not isinstance(error, errors.InvalidInput):
            # Invalid input is refused before the store is asked, so it says nothing about it.
            self._close()

    def _close(self) -> None:
        self._faults = 0
        self._opened_at = None

"""Registering handlers, which an app and its blocking twin do in the same way."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from flowfabric.contracts.policy import Backoff
from flowfabric.flows import Flow
from flowfabric.handlers import Handler, handler_policy

P = ParamSpec("P")
R = TypeVar("R")


class Registration(Protocol):
    """What ``FlowFabric.handler(...)`` with options gives: the decorator itself."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Handler[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Handler[P, R]: ...


class Registering:
    """The handlers of an app, by the kind of executions that each of them runs.

    Attributes:
        handlers: what was registered.
    """

    def __init__(self, handlers: dict[str, Handler[..., Any]] | None = None) -> None:
        self.handlers: dict[str, Handler[..., Any]] = {} if handlers is None else handlers

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
        budgets: Iterable[str] = (),
        quota: str | None = None,
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
        budgets: Iterable[str] = (),
        quota: str | None = None,
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
            budgets: names of the budgets that must have headroom before it runs.
            quota: the name of the quota policy that must admit each claim.

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
            budgets=budgets,
            quota=quota,
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

    def flow(self, kind: str) -> Flow:
        """Begin to build a flow; ``submit_flow`` submits it.

        Args:
            kind: what kind of flow it is, for whoever looks at it.
        """
        return Flow(kind)

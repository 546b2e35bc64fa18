"""Handlers: the functions that do the work, with what their decorator says about them."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Generic, ParamSpec, TypeVar

import msgspec

from flowfabric.contracts.limits import RETRIES_DEFAULT
from flowfabric.contracts.policy import (
    Backoff,
    ExecutionPolicy,
    ExponentialBackoff,
    RetryPolicy,
    RoutingRequirements,
    TimeoutPolicy,
    check_capabilities,
    policy_from_builtins,
)
from flowfabric.task import SyncTask, Task

P = ParamSpec("P")
R = TypeVar("R")


class Handler(Generic[P, R]):
    """A function that does the work of one execution kind. Calling it calls the function.

    ``R`` is what a run of it results in: for ``async def`` what the awaited call returns.

    Raises:
        TypeError: the function cannot be a handler; the message says what to change.
    """

    def __init__(
        self,
        function: Callable[P, Any],
        *,
        kind: str,
        lane: str,
        priority: int,
        policy: ExecutionPolicy | None,
    ) -> None:
        self.function = function
        self.kind = kind
        self.lane = lane
        self.priority = priority
        self.policy = policy
        self.is_async = _is_async(function)
        self.takes_task, parameter, hints = _signature(function, Task if self.is_async else SyncTask)
        self.takes_input = parameter is not None
        self.input_type = Any if parameter is None else hints.get(parameter.name, Any)
        self.has_default = parameter is not None and parameter.default is not parameter.empty
        self.result_type = hints.get("return", Any)
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", kind)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the function itself, outside of any execution; for tests."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Handler {self.kind!r} on lane {self.lane!r}>"


def _is_async(function: Callable[..., Any]) -> bool:
    candidates = (function, type(function).__call__, inspect.unwrap(function))
    if any(map(inspect.isgeneratorfunction, candidates)) or any(map(inspect.isasyncgenfunction, candidates)):
        raise TypeError("a handler cannot yield: it returns its result, and emits frames with task.emit")
    return any(map(inspect.iscoroutinefunction, candidates))


def _signature(
    function: Callable[..., Any], task_type: type[Any]
) -> tuple[bool, inspect.Parameter | None, dict[str, Any]]:
    """Whether the first parameter is the task, the parameter for the input, and all types."""
    hints = _type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    takes_task = bool(parameters) and _is_task(parameters[0], hints, task_type)
    rest = parameters[1:] if takes_task else parameters
    taken = [p for p in rest if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [
        p.name for p in rest if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(required) > 1 or set(required) - {p.name for p in taken}:
        names = ", ".join(required)
        raise TypeError(
            f"a handler takes a task and one positional input, got {names}; join them in one dataclass"
        )
    return takes_task, taken[0] if taken else None, hints


def _is_task(parameter: inspect.Parameter, hints: dict[str, Any], task_type: type[Any]) -> bool:
    hint = hints.get(parameter.name)
    if hint in (Task, SyncTask) and hint is not task_type:
        kind = "an async" if task_type is Task else "a plain"
        raise TypeError(f"{kind} handler holds a {task_type.__name__}, not a {hint.__name__}")
    return hint is task_type or (hint is None and parameter.name == "task")


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    while isinstance(function, functools.partial):
        function = function.func
    described = function if hasattr(function, "__annotations__") else type(function).__call__
    try:
        return typing.get_type_hints(described)
    except NameError as error:
        raise TypeError(
            f"the types of {getattr(function, '__name__', function)!r} cannot be resolved ({error}); "
            "import them at module level, outside TYPE_CHECKING"
        ) from error


def handler_policy(
    *,
    retries: int | None = None,
    backoff: Backoff | None = None,
    retry_on: Iterable[str] = (),
    timeout: timedelta | float | None = None,
    deadline: timedelta | float | None = None,
    capabilities: Iterable[str] = (),
    budgets: Iterable[str] = (),
    quota: str | None = None,
) -> ExecutionPolicy | None:
    """Make the policy that a handler's decorator describes; None if it describes none.

    Raises:
        InvalidInput: a value breaks a rule.
    """
    required = check_capabilities(frozenset(capabilities))
    categories = tuple(retry_on)
    wants_retry = retries is not None or backoff is not None or bool(categories)
    policy = ExecutionPolicy(
        retry_policy=RetryPolicy(
            max_retries=RETRIES_DEFAULT if retries is None else retries,
            backoff=backoff or ExponentialBackoff(jitter=True),
            retryable_categories=categories,
        )
        if wants_retry
        else None,
        timeout_policy=TimeoutPolicy(
            attempt_timeout_ms=milliseconds(timeout), execution_deadline_ms=milliseconds(deadline)
        )
        if timeout is not None or deadline is not None
        else None,
        routing_requirements=RoutingRequirements(required_capabilities=required) if required else None,
        budget_ids=tuple(budgets) or None,
        quota_policy_id=quota,
    )
    return None if policy == ExecutionPolicy() else policy_from_builtins(msgspec.to_builtins(policy))


def milliseconds(duration: timedelta | float | None) -> int | None:
    """A duration in milliseconds; numbers are seconds."""
    if duration is None:
        return None
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    return round(seconds * 1_000)

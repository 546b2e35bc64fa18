"""What may be a handler, and what its decorator says."""

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict

import pytest
from msgspec import Struct
from pydantic import BaseModel

from flowfabric import ExponentialBackoff, FlowFabric, SyncTask, Task
from flowfabric.contracts.policy import RetryPolicy, RoutingRequirements, TimeoutPolicy
from flowfabric.handlers import handler_policy
from tests.worker.stage import work_once, working

if TYPE_CHECKING:
    from elsewhere import Unknown  # type: ignore[import-not-found]


@dataclass
class Point:
    x: int


class Cover(Struct):
    title: str


class Options(TypedDict):
    depth: int


class Model(BaseModel):
    name: str


INPUTS: list[tuple[Any, Any, Any]] = [
    (Point, Point(1), Point(1)),
    (Point, {"x": 1}, Point(1)),
    (Cover, Cover("a"), Cover("a")),
    (Options, {"depth": 2}, {"depth": 2}),
    (Model, Model(name="m"), Model(name="m")),
    (bytes, b"\x00\xff", b"\x00\xff"),
    (dict, {"a": [1]}, {"a": [1]}),
    (list[int], [1, 2], [1, 2]),
    (str, "text", "text"),
    (int, 5, 5),
    (None, None, None),
    (Any, Point(1), {"x": 1}),
]


@pytest.mark.parametrize(("kind", "value", "expected"), INPUTS)
async def test_a_handler_gets_its_input_in_the_type_it_names(
    app: FlowFabric, kind: Any, value: Any, expected: Any
) -> None:
    seen: list[Any] = []

    async def taking(value):
        seen.append(value)
        return value

    taking.__annotations__ = {"value": kind, "return": kind}
    handler = app.handler(taking)
    async with working(app):
        result = await (await app.submit(handler, value)).result(timeout=60)
    assert (seen, result) == ([expected], expected)
    assert type(seen[0]) is type(result) is type(expected)


async def test_an_input_of_another_type_is_a_final_failure_that_says_why(app: FlowFabric) -> None:
    @app.handler(retries=5)
    async def taking(point: Point) -> None: ...

    view = await work_once(app, taking, {"x": "one"})
    assert (view.failure_category, view.total_attempt_count) == ("extractor_payload_decode", 1)
    assert "not a valid Point: Expected `int`, got `str`" in view.failure_reason


async def test_a_default_stands_in_for_an_input_that_was_not_given(app: FlowFabric) -> None:
    @app.handler
    async def taking(number: int = 5) -> int:
        return number

    assert (await work_once(app, taking)).result == b"5"
    assert (await work_once(app, taking, 6)).result == b"6"


async def no_parameters() -> str:
    return "-"


async def only_task(task: Task) -> str:
    return task.kind


async def unannotated(task, value):
    return f"{task.kind} {value}"


async def only_input(value: str) -> str:
    return value


def plain(task: SyncTask, value: str) -> str:
    return f"{task.kind} {value}"


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Callables:
    async def method(self, task: Task, value: str) -> str:
        return f"{task.kind} {value}"

    async def __call__(self, task: Task, value: str) -> str:
        return f"{task.kind} {value}"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (no_parameters, "-"),
        (only_task, "kind"),
        (unannotated, "kind v"),
        (only_input, "v"),
        (plain, "kind v"),
        (decorated(unannotated), "kind v"),
        (decorated(Callables().method), "kind v"),
        (Callables().method, "kind v"),
        (Callables(), "kind v"),
        (functools.partial(only_input, "bound"), "bound"),
        (lambda value: value, "v"),
    ],
)
async def test_any_callable_can_be_a_handler(app: FlowFabric, function: Any, expected: str) -> None:
    app.handler(name="kind")(function)
    async with working(app):
        assert await (await app.submit("kind", "v")).result(timeout=60) == expected


async def yielding() -> AsyncIterator[int]:
    yield 1


def yielding_plain() -> Iterator[int]:
    yield 1


async def too_many(task: Task, first: int, second: int) -> None: ...


async def by_keyword(task: Task, *, value: int) -> None: ...


async def holds_sync(task: SyncTask) -> None: ...


def holds_async(task: Task) -> None: ...


async def unresolved(value: "Unknown") -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (yielding, "cannot yield"),
        (yielding_plain, "cannot yield"),
        (too_many, "got first, second; join them"),
        (by_keyword, "one positional input, got value"),
        (holds_sync, "an async handler holds a Task, not a SyncTask"),
        (holds_async, "a plain handler holds a SyncTask, not a Task"),
        (unresolved, "import them at module level"),
    ],
)
def test_what_cannot_be_a_handler_is_refused_when_it_is_registered(function: Any, words: str) -> None:
    app = FlowFabric("memory://")
    with pytest.raises(TypeError, match=words):
        app.handler(function)
    assert app.handlers == {}


def test_a_second_handler_of_the_same_name_is_refused() -> None:
    app = FlowFabric("memory://")
    first = app.handler(no_parameters)
    with pytest.raises(ValueError, match="there is already a handler named 'no_parameters'"):
        app.handler(name="no_parameters")(only_input)
    assert app.handlers == {"no_parameters": first}


def test_a_callable_without_a_name_needs_one() -> None:
    with pytest.raises(ValueError, match="has no name"):
        FlowFabric("memory://").handler(Callables())


@pytest.mark.parametrize(
    "options", [{"retries": -1}, {"timeout": 0}, {"deadline": -1}, {"capabilities": {"a b"}}], ids=str
)
def test_a_policy_that_breaks_a_rule_is_refused_when_it_is_made(options: Any) -> None:
    with pytest.raises(ValueError, match=r"policy|capabilities"):
        FlowFabric("memory://").handler(**options)(no_parameters)


def test_a_policy_has_only_the_parts_that_were_given() -> None:
    assert handler_policy() is None
    policy = handler_policy(timeout=timedelta(minutes=1), capabilities=["b", "a", "b"])
    assert policy is not None
    assert policy.retry_policy is None
    assert policy.timeout_policy == TimeoutPolicy(attempt_timeout_ms=60_000)
    assert policy.routing_requirements == RoutingRequirements(required_capabilities=("a", "b"))
    policy = handler_policy(retry_on=(name for name in ["a", "b"]))
    assert policy is not None
    assert policy.retry_policy == RetryPolicy(
        max_retries=3, backoff=ExponentialBackoff(jitter=True), retryable_categories=("a", "b")
    )


async def test_calling_a_handler_calls_its_function() -> None:
    handler = FlowFabric("memory://").handler(only_input)
    assert await handler("direct") == "direct"

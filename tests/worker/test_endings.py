"""What a handler returns or raises decides how its attempt ends."""

import asyncio
import logging
from typing import Any

import pytest

from flowfabric import ExponentialBackoff, Fatal, FixedBackoff, FlowFabric, Retry
from flowfabric.codec import Undecodable
from flowfabric.contracts.runs import RunView
from flowfabric.contracts.states import PublicState
from flowfabric.errors import JournalMismatch
from flowfabric.task import SyncTask, Task
from flowfabric.worker.failures import category_of, describe
from tests.worker.stage import ended, store_of, until, work_once, working

AT_ONCE = FixedBackoff(delay_ms=0)


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class BrokenOut(BaseException):
    pass


def deep(n: int = 0) -> int:
    return deep(n + 1)


FAILURES: list[tuple[BaseException, str, str]] = [
    (ValueError("no such page"), "handler_error", "ValueError: no such page"),
    (SystemExit(3), "handler_panic", "SystemExit: 3"),
    (KeyboardInterrupt(), "handler_panic", "KeyboardInterrupt"),
    (GeneratorExit(), "handler_panic", "GeneratorExit"),
    (BrokenOut("out"), "handler_panic", "BrokenOut: out"),
    (StopIteration(1), "handler_error", "StopIteration"),
    (StopAsyncIteration(1), "handler_error", "StopAsyncIteration"),
    (asyncio.CancelledError("mine"), "handler_error", "CancelledError: mine"),
    (TimeoutError(), "handler_error", "TimeoutError"),
    (Unshowable(), "handler_error", "Unshowable"),
    (ValueError("x" * 1_000_000), "handler_error", "xxxxx"),
    (ValueError("half \ud83d of a \x00 pair"), "handler_error", "half \\ud83d of a  pair"),
    (ExceptionGroup("two", [KeyError("a"), OSError("b")]), "handler_error", "OSError: b"),
    (Fatal("never again"), "fatal", "never again"),
    (ExceptionGroup("wrapped", [ValueError("a"), Fatal("final")]), "fatal", "Fatal: final"),
    (Retry("later", category="rate_limit"), "rate_limit", "later"),
    (Retry("later", category="line\nbreak\x1b"), "linebreak", "later"),
]


@pytest.mark.parametrize(("raised", "category", "words"), FAILURES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
@pytest.mark.scenario("RETRY-008")
async def test_whatever_a_handler_raises_fails_its_attempt_and_not_the_worker(
    raised: BaseException, category: str, words: str, is_async: bool
) -> None:
    async with FlowFabric("memory://") as app:

        async def breaking() -> None:
            raise raised

        def breaking_plain() -> None:
            raise raised

        broken = app.handler(breaking if is_async else breaking_plain)
        view = await work_once(app, broken)
        assert view.public_state is PublicState.FAILED
        assert view.failure_category == category
        assert words in view.failure_reason
        assert len(view.failure_reason) <= 4_096


async def test_endless_recursion_is_a_failure(app: FlowFabric) -> None:
    @app.handler
    async def recursing() -> int:
        return deep()

    view = await work_once(app, recursing)
    assert (view.failure_category, "RecursionError" in view.failure_reason) == ("handler_error", True)


@pytest.mark.scenario("RETRY-008")
def test_a_failure_is_described_with_its_causes() -> None:
    error = ValueError("outer")
    error.__cause__ = KeyError("root")
    assert describe(error) == "ValueError: outer: KeyError: 'root'"
    assert category_of(error) == "handler_error"


def test_a_chain_of_causes_that_bites_its_tail_is_described() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert describe(first).count("first") == 5


@pytest.mark.parametrize("error", [Fatal(), Undecodable(), JournalMismatch()], ids=lambda e: type(e).__name__)
async def test_a_final_failure_uses_no_retry(app: FlowFabric, error: Exception) -> None:
    @app.handler(retries=5, backoff=AT_ONCE)
    async def failing() -> None:
        raise error

    view = await work_once(app, failing)
    assert (view.public_state, view.total_attempt_count) == (PublicState.FAILED, 1)


async def test_n_retries_are_n_plus_one_attempts(app: FlowFabric) -> None:
    attempts: list[int] = []

    @app.handler(retries=2, backoff=AT_ONCE)
    async def failing(task: Task) -> None:
        attempts.append(task.attempt)
        raise ValueError("again")

    view = await work_once(app, failing)
    assert attempts == [0, 1, 2]
    assert view.total_attempt_count == 3


async def test_without_a_policy_the_first_failure_is_the_last(app: FlowFabric) -> None:
    @app.handler
    async def failing() -> None:
        raise ValueError("once")

    assert (await work_once(app, failing)).total_attempt_count == 1


async def test_a_category_that_is_not_listed_is_not_retried(app: FlowFabric) -> None:
    @app.handler(retries=3, backoff=AT_ONCE, retry_on=(name for name in ["rate_limit"]))
    async def failing(task: Task) -> None:
        raise Retry("slow down", category="rate_limit" if task.attempt < 2 else "other")

    view = await work_once(app, failing)
    assert (view.total_attempt_count, view.failure_category) == (3, "other")


async def test_the_policy_of_the_execution_wins_part_by_part(app: FlowFabric) -> None:
    from flowfabric.contracts.policy import ExecutionPolicy, RetryPolicy, TimeoutPolicy
    from flowfabric.core.records import Execution, key_for

    @app.handler(retries=5, backoff=AT_ONCE, timeout=60)
    async def failing() -> None:
        raise ValueError("again")

    own = ExecutionPolicy(retry_policy=RetryPolicy(max_retries=1, backoff=AT_ONCE))
    async with working(app):
        run = await app.submit(failing, policy=own)
        assert (await ended(run)).total_attempt_count == 2
    loaded = await store_of(app).load([key_for(Execution, run.execution_id)])
    stored = loaded.rows[0][2]
    assert isinstance(stored, Execution)
    assert stored.policy is not None
    assert stored.policy.timeout_policy == TimeoutPolicy(attempt_timeout_ms=60_000)


RESULTS: list[tuple[Any, str]] = [
    (object(), "object has no JSON form"),
    ({"inner": object()}, "object has no JSON form"),
    ("\ud800", "surrogates not allowed"),
    (b"x" * (1024 * 1024 + 1), "the limit is 1048576"),
    ("x" * (1024 * 1024), "the limit is 1048576"),
]


@pytest.mark.parametrize(("result", "words"), RESULTS, ids=["object", "inner", "surrogate", "bytes", "text"])
async def test_a_result_that_cannot_be_stored_is_a_final_failure_that_says_why(
    app: FlowFabric, result: Any, words: str
) -> None:
    @app.handler(retries=5, backoff=AT_ONCE)
    async def returning() -> Any:
        return result

    view = await work_once(app, returning)
    assert (view.public_state, view.total_attempt_count) == (PublicState.FAILED, 1)
    assert words in view.failure_reason


async def test_a_result_that_contains_itself_is_a_final_failure(app: FlowFabric) -> None:
    @app.handler
    async def returning() -> Any:
        endless: list[Any] = []
        endless.append(endless)
        return endless

    assert "recursion" in (await work_once(app, returning)).failure_reason


async def test_a_result_of_exactly_the_limit_is_stored(app: FlowFabric) -> None:
    @app.handler
    async def returning() -> bytes:
        return b"x" * 1024 * 1024

    async with working(app):
        run = await app.submit(returning)
        assert len(await run.result(timeout=60)) == 1024 * 1024


async def test_an_unknown_kind_is_a_final_failure_that_names_the_known_ones(app: FlowFabric) -> None:
    @app.handler
    async def known() -> None: ...

    view = await work_once(app, "unknown")
    assert (view.public_state, view.failure_category) == (PublicState.FAILED, "runtime_no_handler")
    assert "no handler for 'unknown'; it has: known" in view.failure_reason


async def test_a_handler_that_swallows_the_interrupt_completes_nothing(
    app: FlowFabric, caplog: pytest.LogCaptureFixture
) -> None:
    @app.handler
    async def swallowing(task: Task) -> str:
        try:
            await task.wait_for_signal("go")
        except BaseException:  # noqa: BLE001 - what handlers must not do
            return "wrong"
        return "right"

    async with working(app):
        run = await app.submit(swallowing)
        await until(lambda: "its result is not used" in caplog.text)
        assert await run.state() is PublicState.SUSPENDED
        await run.signal("go")
        assert await run.result(timeout=60) == "right"


async def test_an_interrupt_inside_a_task_group_suspends_the_execution(app: FlowFabric) -> None:
    @app.handler
    async def grouping(task: Task) -> str:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(task.wait_for_signal("go"))
            group.create_task(asyncio.sleep(0))
        return waiting.result().name

    async with working(app):
        run = await app.submit(grouping)
        await until(lambda: suspended(run))
        await run.signal("go")
        assert await run.result(timeout=60) == "go"


async def suspended(run: Any) -> bool:
    return await run.state() is PublicState.SUSPENDED


async def test_a_handler_that_goes_on_after_it_suspended_can_do_nothing(app: FlowFabric) -> None:
    refused: list[str] = []

    @app.handler
    async def going_on(task: Task) -> None:
        try:
            await task.wait_for_signal("go")
        except BaseException:
            for call in (task.emit("late"), task.progress(5), task.step("late", int), task.sleep(1)):
                try:
                    await call
                except BaseException as error:  # noqa: BLE001 - what handlers must not do
                    refused.append(type(error).__name__)
            raise

    async with working(app):
        run = await app.submit(going_on)
        await until(lambda: len(refused) == 4)
        view: RunView = await run.view()
    assert set(refused) == {"LeaseLostInterrupt"}
    assert view.progress_pct is None


async def test_a_sync_handler_runs_in_a_thread_and_its_calls_are_answered(app: FlowFabric) -> None:
    import threading

    names: list[str] = []

    @app.handler
    def plain(task: SyncTask, number: int) -> int:
        names.append(threading.current_thread().name)
        here = task.step("where", lambda: threading.current_thread().name)
        names.append(here)
        task.progress(50, "half")
        task.emit("frame", {"number": number})
        return task.step("double", awaited_double, number)

    async with working(app):
        run = await app.submit(plain, 21)
        assert await run.result(timeout=60) == 42
    assert names == [f"flowfabric-handler {run.execution_id}"] * 2
    assert (await run.view()).progress_pct == 50


async def awaited_double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def test_a_sync_handler_suspends_and_runs_again(app: FlowFabric) -> None:
    runs: list[bool] = []

    @app.handler
    def plain(task: SyncTask) -> Any:
        runs.append(task.resumed)
        task.step("before", runs.append, False)
        return task.wait_for_signal("go").payload

    async with working(app):
        run = await app.submit(plain)
        await until(lambda: suspended(run))
        await run.signal("go", {"by": "ada"})
        assert await run.result(timeout=60) == {"by": "ada"}
    assert runs == [False, False, True]


async def test_the_worker_outlives_a_failing_handler(
    app: FlowFabric, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flowfabric.worker")

    @app.handler
    async def half(number: int) -> int:
        if number % 2:
            raise SystemExit(number)
        return number

    async with working(app):
        runs = await app.submit_many(half, range(20))
        views = [await ended(run) for run in runs]
    assert [view.public_state for view in views] == [PublicState.COMPLETED, PublicState.FAILED] * 10


def test_the_default_backoff_of_a_handler_is_spread() -> None:
    from flowfabric.handlers import handler_policy

    policy = handler_policy(retries=1)
    assert policy is not None
    assert policy.retry_policy is not None
    assert policy.retry_policy.backoff == ExponentialBackoff(jitter=True)

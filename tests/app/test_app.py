"""Starting, stopping and submitting."""

import asyncio
import math
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flowfabric import FixedBackoff, FlowFabric, RunCancelled, RunFailed
from flowfabric.codec import Unencodable
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.keyring import ListWaitpointHmacKidsArgs
from flowfabric.contracts.policy import ExecutionPolicy, RetryPolicy
from flowfabric.contracts.reads import ReadExecutionInfoArgs
from flowfabric.contracts.states import PublicState
from flowfabric.core.records import Execution, key_for
from flowfabric.errors import IdempotencyConflict, InvalidInput, LaneClosed, Unavailable, WaitpointNotFound
from flowfabric.stores.memory import MemoryStore
from flowfabric.task import Task
from tests.worker.stage import ended, store_of, until, until_state, work_once, working


async def record_of(app: FlowFabric, execution_id: str) -> Execution:
    loaded = await store_of(app).load([key_for(Execution, execution_id)])
    record = loaded.rows[0][2]
    assert isinstance(record, Execution)
    return record


async def greet(name: str = "you") -> str:
    return f"hello {name}"


# Starting and stopping


@pytest.mark.scenario("LIFE-035")
async def test_one_app_after_another_in_one_process(tmp_path: Path) -> None:
    for number in range(2):
        app = FlowFabric(f"sqlite:///{tmp_path}/{number}.db")
        greeting = app.handler(greet)
        async with app, working(app):
            assert await (await app.submit(greeting, "ada")).result(timeout=60) == "hello ada"
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_an_app_can_be_started_again_after_it_was_stopped(tmp_path: Path) -> None:
    app = FlowFabric(f"sqlite:///{tmp_path}/work.db")
    app.handler(greet)
    async with app:
        run = await app.submit("greet")
    async with app, working(app):
        assert await app.run(run.execution_id).result(timeout=60) == "hello you"


async def test_an_app_is_stopped_when_the_last_of_its_users_stops_it() -> None:
    app = FlowFabric("memory://")
    await asyncio.gather(app.start(), app.start(), app.start())
    engine = app.engine
    await app.stop()
    await app.stop()
    assert app.engine is engine
    await app.stop()
    with pytest.raises(RuntimeError, match="not started"):
        _ = app.engine
    await app.stop()


async def test_background_duties_begin_with_the_first_user_who_wants_them() -> None:
    app = FlowFabric("memory://")
    await app.start(scanners=False)
    before = app._scanners
    await app.start()
    assert (before, app._scanners is None) == (None, False)
    await app.stop()
    await app.stop()


async def test_a_start_that_failed_leaves_nothing_behind(tmp_path: Path) -> None:
    app = FlowFabric(f"sqlite:///{tmp_path}/missing/work.db")
    for _ in range(2):
        with pytest.raises(Exception, match="missing"):
            await app.start()
    (tmp_path / "missing").mkdir()
    async with app:
        assert app._users == 1


async def test_a_stop_that_is_cancelled_does_not_cancel_commands_in_flight() -> None:
    store = Gated()
    app = FlowFabric(store=store)
    await app.start(scanners=False)
    store.gate.clear()
    submitting = asyncio.create_task(app.submit("greet"))
    await store.reached.wait()
    stopping = asyncio.create_task(app.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    store.gate.set()
    assert (await submitting).duplicate is False


class Gated(MemoryStore):
    """Holds every commit back while its gate is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.reached = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def commit(self, commit: Any) -> int:
        if not self.gate.is_set():
            self.reached.set()
            await self.gate.wait()
        return await super().commit(commit)


async def test_a_caller_who_is_cancelled_does_not_disturb_the_others() -> None:
    store = Gated()
    async with FlowFabric(store=store) as app:
        store.gate.clear()
        impatient, patient = asyncio.create_task(app.submit("a")), asyncio.create_task(app.submit("b"))
        await store.reached.wait()
        impatient.cancel()
        await asyncio.sleep(0)
        store.gate.set()
        assert await (await patient).state() is PublicState.WAITING
        with pytest.raises(asyncio.CancelledError):
            await impatient


async def test_two_apps_on_one_file_agree_on_the_signing_key(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/work.db"
    async with FlowFabric(url) as one, FlowFabric(url) as two:
        kids = [await app.engine.execute(ListWaitpointHmacKidsArgs()) for app in (one, two)]
    assert kids[0] == kids[1]
    assert kids[0].current_kid == "k1"


async def test_a_malformed_signing_secret_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FF_WAITPOINT_HMAC_SECRET", "not hexadecimal")
    app = FlowFabric("memory://")
    with pytest.raises(InvalidInput) as refused:
        await app.start()
    assert "not hexadecimal" not in str(refused.value)


async def test_environment_variables_stand_in_for_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FF_URL", "memory://")
    monkeypatch.setenv("FF_NAMESPACE", "team")
    app = FlowFabric()
    assert (app.url, app.namespace) == ("memory://", "team")
    assert FlowFabric("sqlite:///x.db", namespace="other").namespace == "other"


async def test_a_run_of_a_stopped_app_says_that_it_is_stopped() -> None:
    app = FlowFabric("memory://")
    async with app:
        run = await app.submit("greet")
    with pytest.raises(Unavailable):
        await run.state()


async def test_a_worker_returns_when_it_is_signalled() -> None:
    app = FlowFabric("memory://")
    greeting = app.handler(greet)
    async with app:
        working_task = asyncio.create_task(app.run_worker(handle_signals=True))
        assert await (await app.submit(greeting)).result(timeout=60) == "hello you"
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(60):
            await working_task
        assert await store_of(app).now() > 0
    assert asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM) is False


# Submitting


async def test_every_option_of_a_submission_is_kept(app: FlowFabric) -> None:
    deadline = datetime.now(UTC) + timedelta(hours=1)
    policy = ExecutionPolicy(retry_policy=RetryPolicy(max_retries=7))
    run = await app.submit(
        "anything",
        {"a": 1},
        lane="slow",
        priority=3,
        delay=timedelta(minutes=1),
        deadline=deadline,
        tags={"team.name": "media"},
        policy=policy,
        creator="ada",
    )
    record = await record_of(app, run.execution_id)
    assert (record.lane_id, record.priority, record.tags) == ("slow", 3, {"team.name": "media"})
    assert (record.creator_identity, record.deadline_at) == ("ada", round(deadline.timestamp() * 1_000))
    assert record.policy == policy
    assert await run.state() is PublicState.DELAYED


async def test_a_handler_gives_lane_priority_and_routing_and_the_submission_wins(app: FlowFabric) -> None:
    handler = app.handler(lane="heavy", priority=4, capabilities={"gpu"}, deadline=60)(greet)
    given, own = await app.submit(handler), await app.submit("greet", lane="other", priority=0)
    records = [await record_of(app, run.execution_id) for run in (given, own)]
    assert [(record.lane_id, record.priority) for record in records] == [("heavy", 4), ("other", 0)]
    assert {record.required_capabilities for record in records} == {("gpu",)}
    assert all(record.deadline_at == record.created_at + 60_000 for record in records)


async def test_submitting_again_with_the_same_key_gives_the_same_run(app: FlowFabric) -> None:
    first = await app.submit("greet", "ada", idempotency_key="k")
    again = await app.submit("greet", "ada", idempotency_key="k")
    assert again.execution_id == first.execution_id
    assert (first.duplicate, again.duplicate) == (False, True)
    with pytest.raises(IdempotencyConflict):
        await app.submit("greet", "bob", idempotency_key="k")


async def test_instants_that_are_counted_from_now_are_no_other_content(app: FlowFabric) -> None:
    """Whoever submits again, after a lost answer, does so a little later."""
    now = datetime.now(UTC)
    first, again = [
        await app.submit("greet", delay=after, deadline=now + timedelta(hours=after), idempotency_key="k")
        for after in (60, 61)
    ]
    assert again.execution_id == first.execution_id


async def test_what_cannot_be_stored_is_not_submitted(app: FlowFabric) -> None:
    with pytest.raises(Unencodable):
        await app.submit("greet", object())
    with pytest.raises(InvalidInput, match="input_payload"):
        await app.submit("greet", b"x" * (1024 * 1024 + 1))
    with pytest.raises(InvalidInput):
        await app.submit("greet", lane="x" * 65)


async def test_an_option_for_one_execution_is_refused_for_many(app: FlowFabric) -> None:
    with pytest.raises(TypeError, match="names one execution"):
        await app.submit_many("greet", ["a", "b"], idempotency_key="k")


async def test_many_are_submitted_with_the_same_options(app: FlowFabric) -> None:
    runs = await app.submit_many("greet", ["a", "b"], lane="slow", delay=60)
    records = [await record_of(app, run.execution_id) for run in runs]
    assert [record.lane_id for record in records] == ["slow", "slow"]
    assert [await run.state() for run in runs] == [PublicState.DELAYED] * 2


async def test_a_command_of_another_namespace_is_not_seen(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/work.db"
    async with FlowFabric(url, namespace="one") as one, FlowFabric(url, namespace="two") as two:
        run = await one.submit("greet")
        with pytest.raises(Exception, match="does not exist"):
            await two.run(run.execution_id).state()
        assert isinstance(await store_of(one).now(), int)


# Runs


async def test_a_result_that_does_not_come_in_time_is_a_timeout(app: FlowFabric) -> None:
    run = await app.submit("greet")
    with pytest.raises(TimeoutError):
        await run.result(timeout=0.01)
    assert await run.state() is PublicState.WAITING


async def test_a_failed_run_raises_with_its_reason(app: FlowFabric) -> None:
    @app.handler(retries=1, backoff=FixedBackoff(delay_ms=0))
    async def failing() -> None:
        raise ValueError("no such page")

    async with working(app):
        run = await app.submit(failing)
        with pytest.raises(RunFailed) as failed:
            await run.result(timeout=60)
    assert failed.value.details["reason"] == "ValueError: no such page"
    assert failed.value.details["attempts"] == "2"


async def test_a_run_that_was_cancelled_before_it_began_raises(app: FlowFabric) -> None:
    run = await app.submit("greet")
    await run.cancel("not needed")
    with pytest.raises(RunCancelled):
        await run.result(timeout=60)
    assert [frame async for frame in run.stream()] == []


async def test_a_signal_that_nobody_waits_for_is_refused(app: FlowFabric) -> None:
    run = await app.submit("greet")
    with pytest.raises(WaitpointNotFound):
        await run.signal("go")


async def test_the_frames_of_all_attempts_are_followed(app: FlowFabric) -> None:
    @app.handler(retries=2, backoff=FixedBackoff(delay_ms=1))
    async def emitting(task: Task) -> None:
        await task.emit("attempt", task.attempt)
        if task.attempt < 2:
            raise ValueError("again")

    run = await app.submit(emitting)
    async with working(app):
        async with asyncio.timeout(60):
            frames = [frame.payload async for frame in run.stream()]
    assert frames == [b"0", b"1", b"2"]
    assert [frame.payload async for frame in run.stream(attempt=1)] == [b"1"]


async def test_a_waiter_is_woken_by_the_end(app: FlowFabric) -> None:
    handler = app.handler(greet)
    waiting = asyncio.create_task(ended(await app.submit(handler)))
    await asyncio.sleep(0)
    begun = asyncio.get_running_loop().time()
    await work_once(app, handler)
    await waiting
    assert asyncio.get_running_loop().time() - begun < 0.9


async def test_a_run_found_by_its_id_decodes_into_the_asked_type(app: FlowFabric) -> None:
    app.handler(greet)
    async with working(app):
        run = await app.submit("greet", "ada")
        assert await app.run(run.execution_id, result_type=str).result(timeout=60) == "hello ada"


async def test_a_signal_reaches_the_waitpoint_that_waits_for_its_name(app: FlowFabric) -> None:
    @app.handler
    async def waiting(task: Task) -> list[Any]:
        return [(await task.wait_for_signal(name)).payload for name in ("first", "second")]

    async with working(app):
        run = await app.submit(waiting)
        await until_state(run, PublicState.SUSPENDED)
        with pytest.raises(WaitpointNotFound):
            await run.signal("second")
        await run.signal("first", 1)

        async def waits_for_second() -> bool:
            try:
                await run.signal("second", 2)
            except WaitpointNotFound:
                return False
            return True

        await until(waits_for_second)
        assert await run.result(timeout=60) == [1, 2]


def test_a_creation_has_no_fields_that_submissions_cannot_give() -> None:
    from flowfabric.submissions import SubmitOptions

    # What the app gives by itself, and the wire fields that mean nothing here.
    by_the_app = {"namespace", "execution_kind", "input_payload", "payload_encoding", "partition_id", "now"}
    renamed = {
        "lane_id": "lane",
        "creator_identity": "creator",
        "delay_until": "delay",
        "execution_deadline_at": "deadline",
    }
    fields = {renamed.get(name, name) for name in CreateExecutionArgs.__struct_fields__}
    parts_of_the_policy = {"budgets", "quota"}
    assert fields - by_the_app == SubmitOptions.__annotations__.keys() - parts_of_the_policy


async def test_a_paused_lane_starts_nothing_until_it_is_resumed(app):
    @app.handler(lane="slow")
    async def echo(value):
        return value

    await app.pause_lane("slow", reason="maintenance")
    run = await app.submit(echo, 7)
    worker = asyncio.create_task(app.run_worker())
    try:
        info = await app.engine.execute(ReadExecutionInfoArgs(execution_id=run.execution_id))
        assert info.blocking_detail == "lane slow is paused: maintenance"
        await app.resume_lane("slow")
        assert await run.result() == 7
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


@pytest.mark.parametrize("close", ["drain_lane", "disable_lane"])
async def test_a_lane_that_takes_no_work_refuses_submissions(app, close):
    await getattr(app, close)("slow")
    with pytest.raises(LaneClosed):
        await app.submit("echo", 7, lane="slow")
    await app.resume_lane("slow")
    await app.submit("echo", 7, lane="slow")


async def test_events_are_subscribed_to_in_the_namespace_of_the_app(app: FlowFabric) -> None:
    async with app.subscribe("execution") as feed:
        run = await app.submit("kind", 1)
        event = await anext(feed)
    assert event.execution_id == run.execution_id


async def test_events_of_another_process_come_as_well(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'work.db'}"
    async with FlowFabric(url) as ours, FlowFabric(url) as theirs, ours.subscribe("execution") as feed:
        run = await theirs.submit("kind", 1)
        async with asyncio.timeout(60):
            assert (await anext(feed)).execution_id == run.execution_id


async def test_a_feed_ends_with_its_engine() -> None:
    app = FlowFabric("memory://")
    async with app:
        feed = app.subscribe("completion")
        waiting = asyncio.ensure_future(anext(feed))
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_an_unknown_family_is_refused(app: FlowFabric) -> None:
    with pytest.raises(ValueError, match="weather"):
        app.subscribe("weather")


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        (None, "", 86_400_000),
        (None, "7d", 7 * 86_400_000),
        (None, "off", None),
        (60, "7d", 60_000),
        (timedelta(hours=1), "off", 3_600_000),
        (math.inf, "", None),
    ],
)
def test_the_retention_is_given_by_argument_or_environment_or_is_a_day(
    monkeypatch: pytest.MonkeyPatch, given: Any, variable: str, expected: int | None
) -> None:
    monkeypatch.setenv("FF_RETENTION", variable)
    assert FlowFabric("memory://", retention=given)._retention_ms == expected


def test_a_malformed_retention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FF_RETENTION", "soon")
    with pytest.raises(ValueError, match="soon"):
        FlowFabric("memory://")

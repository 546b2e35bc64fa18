"""The app for code that does not use asyncio: the same names, from any thread, over every store."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import flowfabric
from flowfabric import SyncTask, budgeting, errors
from flowfabric.contracts.reads import ServerTimeArgs
from flowfabric.stores.memory import MemoryStore
from flowfabric.sync import Budget, FlowFabric, FlowRun, Quota, Run
from tests.project.tree import ROOT
from tests.server.threaded import served_from_a_thread

PATIENCE_S = 20


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server over a store in memory."""
    with served_from_a_thread() as address:
        yield address


@pytest.fixture(params=["memory", "sqlite", "http"])
def ff(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FlowFabric]:
    if request.param == "memory":
        app = FlowFabric(store=MemoryStore())
    elif request.param == "sqlite":
        app = FlowFabric(f"sqlite:///{tmp_path}/work.db")
    else:
        app = FlowFabric(request.getfixturevalue("server"))

    @app.handler
    def greet(task: SyncTask, name: str) -> str:
        task.emit("said", b"hello")
        task.progress(50)
        return f"hello {name}"

    @app.handler
    def ask(task: SyncTask) -> str:
        return str(task.wait_for_signal("answer").payload)

    with app:
        yield app


@pytest.fixture
def worker(ff: FlowFabric) -> Iterator[None]:
    """A worker that runs in another thread."""
    made = ff.worker()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(lambda: ff._portal.call(made.run))
        yield
        ff._portal.tell(lambda: made.stop(at_once=True))
        running.result(PATIENCE_S)


@pytest.mark.usefixtures("worker")
class TestRuns:
    def test_what_is_submitted_is_waited_for(self, ff: FlowFabric) -> None:
        run = ff.submit("greet", "ana", idempotency_key="k")
        assert run.result(PATIENCE_S) == "hello ana"
        assert (run.state(), run.view().progress_pct) == ("completed", 50)
        again = ff.submit("greet", "ana", idempotency_key="k")
        assert (again.execution_id, again.duplicate) == (run.execution_id, True)
        assert ff.run(run.execution_id).wait().public_state == "completed"
        assert ff.engine.execute(ServerTimeArgs()).now_ms <= ff.engine.now()

    def test_frames_are_followed_to_their_end(self, ff: FlowFabric) -> None:
        run = ff.submit("greet", "ana")
        with run.stream() as frames:
            assert [frame.payload for frame in frames] == [b"hello"]

    def test_a_signal_ends_a_wait(self, ff: FlowFabric) -> None:
        run = ff.submit("ask")
        with ff.subscribe("execution", after="start", execution_id=run.execution_id) as events:
            for _ in events:
                if run.state() == "suspended":
                    break
        assert run.waitpoint_link("answer", public_url="https://flows.example").startswith("https://")
        run.signal("answer", 42)
        assert run.result(PATIENCE_S) == "42"

    def test_events_are_followed_from_a_cursor(self, ff: FlowFabric) -> None:
        with ff.subscribe("completion") as events:
            run = ff.submit("greet", "ana")
            event = next(events)
            assert event.execution_id == run.execution_id
            assert events.cursor

    def test_a_flow_gives_its_results(self, ff: FlowFabric) -> None:
        flow = ff.flow("pair")
        first = flow.add("greet", "ana", name="first")
        flow.add("greet", "bob", after=first, name="second")
        run = ff.submit_flow(flow)
        assert run.result(PATIENCE_S) == {"second": "hello bob"}
        assert run.member("first").result(PATIENCE_S) == "hello ana"
        assert [member.execution_kind for member in run.members()] == ["greet", "greet"]
        assert ff.flow_run(run.flow_id).state() == "completed"

    def test_any_number_of_threads_may_use_one_app(self, ff: FlowFabric) -> None:
        def work(number: int) -> str:
            return str(ff.submit("greet", str(number)).result(PATIENCE_S))

        with ThreadPoolExecutor(16) as threads:
            assert list(threads.map(work, range(64))) == [f"hello {number}" for number in range(64)]


def test_many_are_submitted_and_cancelled(ff: FlowFabric) -> None:
    runs = ff.submit_many("greet", ["a", "b"])
    for run in runs:
        run.cancel()
        with pytest.raises(flowfabric.RunCancelled):
            run.result(PATIENCE_S)


def test_waiting_has_an_end(ff: FlowFabric) -> None:
    with pytest.raises(TimeoutError):
        ff.submit("greet", "ana").result(0.01)


def test_an_operator_says_what_may_be_done(ff: FlowFabric) -> None:
    budget = ff.create_budget("team", hard={"tokens": 10})
    budget.report({"tokens": 4})
    assert budget.status().usage == {"tokens": 4}
    budget.change_limits(hard={"tokens": 20})
    budget.reset()
    assert ff.budget("team").status().hard_limits == {"tokens": 20}
    assert (
        ff.create_quota("api", max_concurrent=2).limits().quota_policy_id == ff.quota("api").quota_policy_id
    )
    ff.disable_lane("default")
    with pytest.raises(errors.LaneClosed):
        ff.submit("greet", "ana")
    ff.resume_lane("default")
    ff.submit("greet", "ana")


class TestTheLoop:
    def test_before_it_is_started_an_app_says_what_to_do(self) -> None:
        app = FlowFabric(store=MemoryStore())
        for use in (lambda: app.engine, lambda: app.submit("greet"), lambda: app.budget("b")):
            with pytest.raises(RuntimeError, match="not started"):
                use()
        app.stop()

    def test_starting_twice_takes_stopping_twice(self) -> None:
        app = FlowFabric(store=MemoryStore())
        with app:
            with app:
                app.submit("greet")
            app.submit("greet")
        with pytest.raises(RuntimeError, match="not started"):
            app.submit("greet")
        with app:
            app.submit("greet")

    def test_a_store_that_cannot_be_opened_leaves_no_thread(self, tmp_path: Path) -> None:
        app = FlowFabric(f"sqlite:///{tmp_path}/missing/folder/work.db?mode=rw")
        before = threading.active_count()
        with pytest.raises(errors.FlowFabricError):
            app.start()
        assert threading.active_count() == before

    def test_the_thread_of_the_loop_does_not_wait_for_itself(self) -> None:
        app = FlowFabric(store=MemoryStore())
        refusals: list[str] = []

        @app.handler
        async def nested() -> None:
            try:
                app.submit("nested")
            except RuntimeError as refusal:
                refusals.append(str(refusal))

        with app, ThreadPoolExecutor(1) as threads:
            worker = app.worker()
            running = threads.submit(lambda: app._portal.call(worker.run))
            app.submit(nested).result(PATIENCE_S)
            app._portal.tell(worker.stop)
            running.result(PATIENCE_S)
        assert ["flowfabric.FlowFabric" in refusal for refusal in refusals] == [True]

    def test_whoever_waits_when_the_app_stops_is_told(self) -> None:
        app = FlowFabric(store=MemoryStore())
        app.start()
        run = app.submit("greet")
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(run.result)
            with app.subscribe("execution", after="start") as events:
                assert next(events).execution_id == run.execution_id
            app.stop()
            with pytest.raises((errors.Unavailable, RuntimeError)):
                waiting.result(PATIENCE_S)

    @pytest.mark.slow
    def test_a_signal_drains_the_worker(self, tmp_path: Path) -> None:
        script = tmp_path / "work.py"
        script.write_text(
            "import os, signal\n"
            "from flowfabric.sync import FlowFabric\n"
            "from flowfabric.stores.memory import MemoryStore\n"
            "ff = FlowFabric(store=MemoryStore())\n"
            "@ff.handler\n"
            "def last() -> str:\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
            "    return 'done'\n"
            "with ff:\n"
            "    run = ff.submit(last)\n"
            "    ff.run_worker(handle_signals=True)\n"
            "    print(run.result(timeout=5))\n"
        )
        done = subprocess.run(
            [sys.executable, str(script)],
            env={"PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        assert signal.getsignal(signal.SIGTERM) is not None


PAIRS = [
    (flowfabric.FlowFabric, FlowFabric),
    (flowfabric.Run, Run),
    (flowfabric.FlowRun, FlowRun),
    (budgeting.Budget, Budget),
    (budgeting.Quota, Quota),
]


def public(kind: type[Any]) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("awaited", "plain"), PAIRS, ids=lambda kind: kind.__name__)
def test_every_name_is_there_with_the_same_arguments_and_blocks(awaited: type[Any], plain: type[Any]) -> None:
    theirs, ours = public(awaited), public(plain)
    assert theirs.keys() <= ours.keys() | {"durability"}
    for name, member in theirs.items():
        if not inspect.isfunction(member):
            continue
        assert not inspect.iscoroutinefunction(ours[name])
        assert not inspect.isasyncgenfunction(ours[name])
        if name != "within":
            expected = list(inspect.signature(member).parameters.values())
            found = list(inspect.signature(ours[name]).parameters.values())
            shapes = [[(one.name, one.kind, one.default) for one in side] for side in (expected, found)]
            assert shapes[0] == shapes[1], name


def test_nothing_that_is_awaited_is_given_out() -> None:
    with FlowFabric(store=MemoryStore()) as app:
        run = app.submit("greet")
        for value in (run, run.view(), run.state(), app.subscribe(), run.stream()):
            assert not isinstance(value, (Coroutine, AsyncIterator))

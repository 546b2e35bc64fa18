"""Keeping leases, losing them, and running out of time."""

import asyncio
import threading
from typing import Any

import pytest

from flowfabric import FixedBackoff, FlowFabric, Run, RunCancelled
from flowfabric.contracts.leases import RenewLeaseArgs, RevokeLeaseArgs
from flowfabric.contracts.states import PublicState
from flowfabric.contracts.streams import ReadFramesArgs
from flowfabric.core.records import Execution, key_for
from flowfabric.errors import StoreUnreachable
from flowfabric.interrupts import LeaseLostInterrupt
from flowfabric.stores.base import Commit
from flowfabric.stores.memory import MemoryStore
from flowfabric.task import SyncTask, Task
from flowfabric.testing import FaultyStore, RecordingStore
from flowfabric.testing.stores import StoreAround
from flowfabric.worker.heartbeat import Heartbeat
from tests.worker.stage import ended, store_of, until, until_state, working

SHORT_MS = 300
KEPT_MS = 1_500
"""Of a lease that has to be renewed in time also where the machine is busy."""


async def record_of(app: FlowFabric, run: Run[Any]) -> Execution:
    loaded = await store_of(app).load([key_for(Execution, run.execution_id)])
    record = loaded.rows[0][2]
    assert isinstance(record, Execution)
    return record


@pytest.mark.slow
async def test_a_handler_may_run_longer_than_its_lease(app: FlowFabric) -> None:
    @app.handler
    async def long(task: Task) -> int:
        await asyncio.sleep(1.5 * KEPT_MS / 1_000)
        return task.attempt

    async with working(app, lease_ttl_ms=KEPT_MS):
        run = await app.submit(long)
        assert await run.result(timeout=60) == 0
    assert (await record_of(app, run)).lease_epoch == 1


@pytest.mark.parametrize("plain", [False, True], ids=["async", "sync"])
async def test_a_revoked_lease_stops_the_handler_which_reports_nothing(app: FlowFabric, plain: bool) -> None:
    left: list[BaseException] = []
    begun, stop = threading.Event(), threading.Event()

    async def waiting(task: Task) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            left.append(error)
            raise

    def waiting_plain(task: SyncTask) -> None:
        begun.set()
        try:
            while not stop.wait(0.005):
                task.emit("alive")
        except LeaseLostInterrupt as error:
            left.append(error)
            raise

    handler = app.handler(waiting_plain if plain else waiting)
    async with working(app, lease_ttl_ms=SHORT_MS, drain_timeout_s=10.0) as worker:
        run = await app.submit(handler)
        await until(begun.is_set)
        worker.stop()
        revoked = RevokeLeaseArgs(execution_id=run.execution_id, reason="test")
        await app.engine.execute(revoked)
        await until(lambda: left)
    record = await record_of(app, run)
    assert await run.state() is PublicState.ACTIVE
    assert record.lease is not None
    assert record.lease.state == "revoked"


async def test_a_cancelled_execution_stops_its_handler(app: FlowFabric) -> None:
    stopped = asyncio.Event()

    @app.handler
    async def waiting() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async with working(app, lease_ttl_ms=SHORT_MS):
        run = await app.submit(waiting)
        await until_state(run, PublicState.ACTIVE)
        await run.cancel("not needed")
        async with asyncio.timeout(60):
            await stopped.wait()
        with pytest.raises(RunCancelled, match="not needed"):
            await run.result(timeout=60)


@pytest.mark.slow
async def test_a_worker_that_cannot_renew_stops_its_handler_before_the_lease_is_over() -> None:
    store = Blocking(MemoryStore())
    times: list[float] = []
    async with FlowFabric(store=store) as app:

        @app.handler
        async def waiting() -> None:
            times.append(asyncio.get_running_loop().time())
            store.blocked = True
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                times.append(asyncio.get_running_loop().time())
                store.blocked = False
                raise

        async with working(app, lease_ttl_ms=2_400):
            await app.submit(waiting)
            await until(lambda: len(times) >= 2)
    assert 1.5 < times[1] - times[0] < 2.4


class Blocking(StoreAround):
    """A store whose commits take for ever while it is blocked."""

    blocked = False

    async def commit(self, commit: Commit) -> int | None:
        while self.blocked:
            await asyncio.sleep(0.005)
        return await super().commit(commit)


@pytest.mark.slow
async def test_a_store_that_fails_for_a_moment_is_not_the_handlers_failure() -> None:
    store = FaultyStore(MemoryStore())
    async with FlowFabric(store=store) as app:

        @app.handler
        async def stepping(task: Task) -> list[int]:
            calls: list[int] = []
            store.lost_commits = 2
            await task.step("first", calls.append, 1)
            store.lost_replies = 2
            await task.step("second", calls.append, 2)
            store.lost_replies = 1
            return calls

        async with working(app):
            run = await app.submit(stepping)
            assert await run.result(timeout=60) == [1, 2]
        assert (await record_of(app, run)).retry_count == 0


async def test_frames_written_side_by_side_are_written_once_although_their_replies_are_lost() -> None:
    store = FaultyStore(MemoryStore())
    async with FlowFabric(store=store) as app:

        @app.handler
        async def writing(task: Task) -> None:
            await task.emit("first")
            store.lost_replies = 3
            await asyncio.gather(*(task.emit("token", str(number)) for number in range(40)))

        async with working(app):
            run = await app.submit(writing)
            await run.result(timeout=60)
        page = await app.engine.execute(ReadFramesArgs(execution_id=run.execution_id, attempt_index=0))
    assert [frame.payload for frame in page.frames] == [b"", *(b"%d" % number for number in range(40))]


async def test_a_worker_survives_faults_while_it_claims(caplog: pytest.LogCaptureFixture) -> None:
    store = Broken(MemoryStore())
    async with FlowFabric(store=store) as app:

        @app.handler
        async def quick() -> str:
            return "done"

        store.faults = [StoreUnreachable(), RuntimeError("a bug")]
        async with working(app):
            await until(lambda: not store.faults)
            assert await (await app.submit(quick)).result(timeout=60) == "done"
    assert "cannot claim" in caplog.text
    assert "RuntimeError: a bug" in caplog.text


class Broken(StoreAround):
    """A store whose index of claimable work fails."""

    faults: list[Exception]

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.faults = []

    async def index_scopes(self, *args: Any, **options: Any) -> list[str]:
        if self.faults:
            raise self.faults.pop(0)
        return await super().index_scopes(*args, **options)


async def test_five_hundred_leases_are_renewed_in_a_few_commits() -> None:
    store = RecordingStore(MemoryStore())
    async with FlowFabric(store=store) as app:

        @app.handler
        async def waiting() -> None: ...

        await app.submit_many(waiting, [None] * 500)
        worker = app.worker(concurrency=500)
        leases = [*await worker._claim(250), *await worker._claim(250)]
        assert len(leases) == 500
        store.commits.clear()
        await worker._heartbeat._renew(leases)
        assert len(store.commits) <= 3
        assert {lease.stopped for lease in leases} == {None}
        for lease in leases:
            worker._heartbeat.let_go(lease)


@pytest.mark.slow
async def test_the_heartbeat_survives_an_engine_that_breaks(
    app: FlowFabric, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = 2
    renew = Heartbeat._renew

    async def break_twice(self: Heartbeat, leases: Any) -> None:
        nonlocal broken
        if broken:
            broken -= 1
            raise AssertionError("a bug")
        await renew(self, leases)

    monkeypatch.setattr(Heartbeat, "_renew", break_twice)

    @app.handler
    async def long() -> int:
        await asyncio.sleep(1.5 * KEPT_MS / 1_000)
        return 1

    async with working(app, lease_ttl_ms=KEPT_MS):
        assert await (await app.submit(long)).result(timeout=60) == 1
    assert "leases could not be renewed" in caplog.text


# Time limits


async def test_an_attempt_that_takes_too_long_is_stopped_and_uses_a_retry(app: FlowFabric) -> None:
    stopped: list[int] = []

    @app.handler(timeout=0.5, retries=1, backoff=FixedBackoff(delay_ms=0))
    async def slow(task: Task) -> int:
        if task.attempt == 0:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                stopped.append(task.attempt)
                raise
        return task.attempt

    async with working(app):
        assert await (await app.submit(slow)).result(timeout=60) == 1
    assert stopped == [0]


@pytest.mark.parametrize("limit", ["timeout", "deadline"])
async def test_without_a_retry_left_it_expires(app: FlowFabric, limit: str) -> None:
    stopped = asyncio.Event()

    @app.handler(**{limit: 0.05})  # type: ignore[call-overload]
    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async with working(app):
        view = await ended(await app.submit(slow))
        async with asyncio.timeout(60):
            await stopped.wait()
    assert view.public_state is PublicState.EXPIRED
    assert view.failure_reason == ("attempt_timeout" if limit == "timeout" else "execution_deadline")


async def test_a_time_limit_needs_no_background_duties() -> None:
    app = FlowFabric("memory://")
    await app.start(scanners=False)

    @app.handler(timeout=0.05)
    async def slow() -> None:
        await asyncio.sleep(60)

    async with working(app):
        assert (await ended(await app.submit(slow))).public_state is PublicState.EXPIRED
    await app.stop()


@pytest.mark.slow
async def test_time_spent_waiting_does_not_count_against_the_attempt(app: FlowFabric) -> None:
    @app.handler(timeout=1.0)
    async def waiting(task: Task) -> str:
        await task.sleep(1.1)
        return "in time"

    async with working(app):
        assert await (await app.submit(waiting)).result(timeout=60) == "in time"


async def test_a_lease_that_nobody_renewed_is_not_kept_by_its_old_holder(app: FlowFabric) -> None:
    """What a worker sends after its lease was taken over is refused."""
    going_on = asyncio.Event()
    refused: list[type[BaseException]] = []

    @app.handler
    async def shared(task: Task) -> str:
        if task.attempt == 1:
            return "second"
        try:
            await going_on.wait()
            await task.emit("late")
        except BaseException as error:
            refused.append(type(error))
            raise
        return "first"

    first = app.worker()
    [lease] = await claim_one(app, first, shared)
    run = app.run(lease.claim.execution_id)
    # The first worker's clock stands still: nothing is renewed and no timer strikes.
    lease.close()
    holding = asyncio.create_task(first._runner.run(lease, lambda: None))
    await asyncio.sleep(0)
    await app.engine.execute(RevokeLeaseArgs(execution_id=run.execution_id, reason="gone"))
    async with working(app):
        assert await run.result(timeout=60) == "second"
        going_on.set()
        await holding
    assert refused == [LeaseLostInterrupt]
    assert await run.result() == "second"
    renewal = RenewLeaseArgs(
        execution_id=run.execution_id, attempt_index=0, fence=lease.claim.fence, lease_ttl_ms=1_000
    )
    [answer] = await app.engine.execute_many([renewal])
    assert isinstance(answer, Exception)


async def claim_one(app: FlowFabric, worker: Any, handler: Any) -> Any:
    await app.submit(handler)
    return await worker._claim(1)

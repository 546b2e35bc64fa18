"""A handler that is a plain function can do what one with ``async def`` can."""

from typing import Any

from flowfabric import FlowFabric
from flowfabric.contracts.conditions import Single
from flowfabric.contracts.states import PublicState
from flowfabric.contracts.suspensions import FreshWaitpoint
from flowfabric.minting import new_waitpoint_id
from flowfabric.task import SyncTask, Task
from tests.worker.stage import ended, until_state, work_once, working


def fresh(key: str) -> FreshWaitpoint:
    return FreshWaitpoint(waitpoint_id=new_waitpoint_id(), waitpoint_key=key)


async def test_it_sleeps_and_reads_the_store_s_clock(app: FlowFabric) -> None:
    def plain(task: SyncTask) -> int:
        before = task.step("before", task.now)
        task.sleep(0.001)
        return task.now() - before

    view = await work_once(app, app.handler(plain))
    assert view.public_state is PublicState.COMPLETED
    assert view.result is not None
    assert int(view.result) >= 1


async def test_it_publishes_a_waitpoint_suspends_and_sees_what_resumed_it(app: FlowFabric) -> None:
    def plain(task: SyncTask) -> list[Any]:
        published = task.create_waitpoint("early")
        signals = task.suspend(Single(waitpoint_key="late"), (fresh("late"),))
        resumed_by = [signal.signal_name for signal in task.resume_signals()]
        return [published.waitpoint_key, [signal.signal_name for signal in signals], resumed_by]

    handler = app.handler(plain)
    async with working(app):
        run = await app.submit(handler)
        await until_state(run, PublicState.SUSPENDED)
        await run.signal("go")
        assert (await ended(run)).public_state is PublicState.COMPLETED
    assert await run.result() == ["early", ["go"], ["go"]]


async def test_an_attempt_that_no_signal_resumed_sees_none(app: FlowFabric) -> None:
    async def looking(task: Task) -> int:
        return len(await task.resume_signals())

    handler = app.handler(looking)
    async with working(app):
        assert await (await app.submit(handler)).result(timeout=60) == 0

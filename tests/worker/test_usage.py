"""Handlers report what they spend, and feel the limits."""

import pytest

from flowfabric import Fatal, FixedBackoff, FlowFabric, Retry
from flowfabric.contracts.budgets import UsageApplied, UsageHardBreach, UsageSoftBreach
from flowfabric.contracts.states import PublicState
from flowfabric.errors import BudgetConflict, BudgetExceeded, InvalidInput, QuotaPolicyNotFound
from flowfabric.task import SyncTask, Task
from tests.worker.stage import ended, until_state, work_once, working


async def used(app: FlowFabric, name: str = "team") -> int:
    return (await app.budget(name).status()).usage.get("tokens", 0)


async def test_a_report_counts_and_says_what_it_passed(app):
    await app.create_budget("team", soft={"tokens": 5})
    answers = []

    @app.handler
    async def spend(task: Task) -> None:
        answers.append(await task.report_usage("team", tokens=3))
        answers.append(await task.report_usage("team", tokens=4))

    await work_once(app, spend)
    assert answers == [UsageApplied(), UsageSoftBreach(dimension="tokens", current_usage=7, soft_limit=5)]
    assert await used(app) == 7


async def test_a_plain_function_reports_as_well(app):
    await app.create_budget("team")

    @app.handler
    def spend(task: SyncTask) -> None:
        task.report_usage("team", tokens=3)

    await work_once(app, spend)
    assert await used(app) == 3


async def test_a_handler_that_runs_again_counts_once_whatever_it_counts(app):
    """The second run reports another number at the same place."""
    await app.create_budget("team")

    @app.handler(retries=1, backoff=FixedBackoff(delay_ms=0))
    async def spend(task: Task) -> None:
        await task.step("write", write, task)
        await task.report_usage("team", tokens=10)

    async def write(task: Task) -> None:
        await task.report_usage("team", tokens=1 + task.attempt)
        if task.attempt == 0:
            raise Retry("half-way")

    view = await work_once(app, spend)
    assert view.public_state is PublicState.COMPLETED
    assert await used(app) == 11


async def test_a_hard_limit_raises_in_the_handler(app):
    await app.create_budget("team", hard={"tokens": 5})

    @app.handler
    async def spend(task: Task) -> int:
        with pytest.raises(BudgetExceeded) as caught:
            await task.report_usage("team", tokens=6)
        return int(caught.value.details["hard_limit"])

    view = await work_once(app, spend)
    assert view.public_state is PublicState.COMPLETED
    assert await used(app) == 0


async def test_an_execution_that_does_not_catch_it_fails_for_that_reason(app):
    await app.create_budget("team", hard={"tokens": 5})

    @app.handler
    async def spend(task: Task) -> None:
        await task.report_usage("team", tokens=6)

    view = await work_once(app, spend)
    assert (view.public_state, view.failure_category) == (PublicState.FAILED, "budget_exceeded")


async def test_a_budget_that_pauses_puts_the_execution_aside_until_there_is_headroom(app):
    budget = await app.create_budget("team", hard={"tokens": 5}, on_hard_limit="pause")
    runs = []

    @app.handler(budgets=["team"])
    async def spend(task: Task) -> str:
        runs.append(task.attempt)
        await task.report_usage("team", tokens=4)
        await task.report_usage("team", tokens=3)
        return "done"

    async with working(app):
        run = await app.submit(spend)
        await until_state(run, PublicState.RATE_LIMITED)
        assert await used(app) == 4
        await budget.change_limits(hard={"tokens": 10})
        assert (await ended(run)).public_state is PublicState.COMPLETED
    assert runs == [0, 0]
    assert await used(app) == 7


async def test_a_budget_that_pauses_something_else_raises(app):
    """An execution that the budget is not attached to would be claimed again at once."""
    await app.create_budget("team", hard={"tokens": 5}, on_hard_limit="pause")

    @app.handler
    async def spend(task: Task) -> None:
        try:
            await task.report_usage("team", tokens=6)
        except BudgetExceeded as error:
            raise Fatal("spent") from error

    assert (await work_once(app, spend)).public_state is PublicState.FAILED


async def test_no_more_handlers_run_at_once_than_the_quota_admits(app):
    await app.create_quota("one", max_concurrent=1)
    running, most = 0, 0

    @app.handler(quota="one")
    async def work(task: Task) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await task.progress(50)
        running -= 1

    async with working(app):
        for run in [await app.submit(work) for _ in range(5)]:
            await ended(run)
    assert most == 1
    limits = await app.quota("one").limits()
    assert limits.active == 0


async def test_a_submission_may_name_its_own_budgets(app):
    budget = await app.create_budget("team", hard={"tokens": 1})

    @app.handler
    async def idle(task: Task) -> None:
        pass

    assert await budget.report({"tokens": 1}, key="a") == UsageApplied()
    assert isinstance(await budget.report({"tokens": 1}), UsageHardBreach)
    async with working(app):
        run = await app.submit(idle, budgets=["team"])
        await until_state(run, PublicState.RATE_LIMITED)
        await budget.reset()
        await ended(run)


async def test_what_the_app_says_of_budgets_that_are_not_as_asked_for(app):
    await app.create_budget("team", hard={"tokens": 1})
    await app.create_budget("team", hard={"tokens": 1})
    with pytest.raises(BudgetConflict):
        await app.create_budget("team", hard={"tokens": 2})
    with pytest.raises(InvalidInput, match="on_hard_limit"):
        await app.create_budget("other", on_hard_limit="explode")
    with pytest.raises(QuotaPolicyNotFound):
        await app.quota("nobody").limits()
    assert repr(app.budget("team")) == f"<Budget 'team' in {app.namespace!r}>"


async def test_what_an_execution_spent_can_be_taken_back(app):
    budget = await app.create_budget("team")

    @app.handler
    async def spend(task: Task) -> None:
        await task.report_usage("team", tokens=3)

    async with working(app):
        run = await app.submit(spend)
        await ended(run)
    assert await budget.release(run.execution_id) == {"tokens": 3}
    assert await budget.release(run.execution_id) == {}
    assert await used(app) == 0

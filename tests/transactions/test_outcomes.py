"""What is submitted or signalled in the user's transaction takes place if it commits, and only then."""

import asyncio
from typing import Any

import pytest

import flowfabric.run as run_module
from flowfabric import FlowFabric, Run, errors
from flowfabric.codec import Unencodable
from flowfabric.contracts.states import PublicState
from flowfabric.engine import watches
from flowfabric.worker import worker
from tests.transactions.conftest import with_handlers
from tests.transactions.parties import Party, Place
from tests.worker.stage import until_state, working

PATIENCE_S = 60.0
NEVER_MS = 600_000


@pytest.fixture
def only_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who waits looks by itself in time, so whoever moves was woken."""
    for module, name in ((watches, "WATCH_MS"), (worker, "SAFETY_POLL_MS"), (run_module, "SAFETY_POLL_MS")):
        monkeypatch.setattr(module, name, NEVER_MS)


async def exists(run: Run[Any]) -> bool:
    """Whether others see the execution."""
    try:
        return bool(await run.state())
    except errors.ExecutionNotFound:
        return False


async def test_a_commit_makes_the_execution_and_the_users_change_exist(party: Party) -> None:
    await party.begin()
    await party.order(7)
    run = await party.submit("double", 7)
    await party.commit()
    assert await party.orders() == [7]
    assert await run.state() is PublicState.WAITING


async def test_a_rollback_leaves_neither_the_execution_nor_the_users_change(party: Party) -> None:
    await party.begin()
    await party.order(7)
    run = await party.submit("double", 7)
    await party.roll_back()
    assert await party.orders() == []
    assert not await exists(run)


async def test_nobody_else_sees_the_execution_before_the_commit(party: Party) -> None:
    await party.begin()
    run = await party.submit("double", 7)
    assert not await exists(run)


async def test_an_app_that_was_never_started_can_submit(place: Place, app: FlowFabric) -> None:
    party = await place.party(with_handlers(place.app()))
    await party.begin()
    run = await party.submit("double", 7)
    await party.commit()
    assert await exists(app.run(run.execution_id))
    with pytest.raises(RuntimeError, match="not started"):
        await run.state()


async def test_a_waiting_worker_is_woken_by_the_commit(
    only_woken: None, app: FlowFabric, party: Party
) -> None:
    async with working(app):
        await party.begin()
        run = await party.submit("double", 7)
        await party.commit()
        assert await run.result(timeout=PATIENCE_S) == 14


async def test_a_delay_counts_from_the_submission(party: Party) -> None:
    await party.begin()
    run = await party.submit("double", 7, delay=3_600)
    await party.commit()
    assert await run.state() is PublicState.DELAYED


async def test_many_are_submitted_together(party: Party) -> None:
    await party.begin()
    runs = await party.submit_many("double", list(range(300)))
    await party.commit()
    assert len({run.execution_id for run in runs}) == 300
    assert await asyncio.gather(*map(exists, runs)) == [True] * 300


async def test_several_acts_in_one_transaction_see_each_other(party: Party) -> None:
    await party.begin()
    first = await party.submit("double", 7, idempotency_key="order-7")
    second = await party.submit("double", 7, idempotency_key="order-7")
    assert (first.execution_id, first.duplicate) == (second.execution_id, False)
    assert second.duplicate
    await party.commit()
    assert await exists(first)


async def test_an_execution_that_exists_is_found_inside_a_transaction(app: FlowFabric, party: Party) -> None:
    run = await app.submit("double", 7)
    await party.begin()
    again = await party.submit("double", 7, execution_id=run.execution_id)
    await party.commit()
    assert again.duplicate


async def test_a_key_is_bound_beyond_the_transaction(party: Party) -> None:
    runs = []
    for _ in range(2):
        await party.begin()
        runs.append(await party.submit("double", 7, idempotency_key="order-7"))
        await party.commit()
    assert runs[0].execution_id == runs[1].execution_id
    assert runs[1].duplicate


async def test_a_rollback_frees_the_key(party: Party) -> None:
    await party.begin()
    await party.submit("double", 7, idempotency_key="order-7")
    await party.roll_back()
    await party.begin()
    run = await party.submit("double", 8, idempotency_key="order-7")
    await party.commit()
    assert not run.duplicate
    assert await exists(run)


async def test_a_refused_submission_leaves_the_transaction_as_it_was(party: Party) -> None:
    await party.begin()
    await party.order(7)
    run = await party.submit("double", 7, idempotency_key="order-7")
    with pytest.raises(errors.IdempotencyConflict):
        await party.submit("double", 8, idempotency_key="order-7")
    await party.order(8)
    await party.commit()
    assert await party.orders() == [7, 8]
    assert await exists(run)


async def test_a_signal_is_delivered_by_the_commit(only_woken: None, app: FlowFabric, party: Party) -> None:
    async with working(app):
        run = await app.submit("approval")
        await until_state(run, PublicState.SUSPENDED)
        await party.begin()
        await party.signal(run, "review", "yes")
        assert await run.state() is PublicState.SUSPENDED
        await party.commit()
        assert await run.result(timeout=PATIENCE_S) == "yes"


async def test_a_signal_that_is_rolled_back_never_was(app: FlowFabric, party: Party) -> None:
    async with working(app):
        run = await app.submit("approval")
        await until_state(run, PublicState.SUSPENDED)
        await party.begin()
        await party.signal(run.execution_id, "review", "no")
        await party.roll_back()
        await run.signal("review", "yes")
        assert await run.result(timeout=PATIENCE_S) == "yes"


async def test_a_signal_that_nothing_waits_for_is_refused_and_the_transaction_goes_on(
    app: FlowFabric, party: Party
) -> None:
    run = await app.submit("approval")
    await party.begin()
    await party.order(7)
    with pytest.raises(errors.WaitpointNotFound):
        await party.signal(run, "review", "yes")
    await party.commit()
    assert await party.orders() == [7]


async def test_an_input_without_a_json_form_is_refused_and_the_transaction_goes_on(party: Party) -> None:
    await party.begin()
    await party.order(7)
    with pytest.raises(Unencodable):
        await party.submit_many("double", [1, object()])
    await party.commit()
    assert await party.orders() == [7]


async def test_a_flow_is_submitted_by_the_commit(app: FlowFabric, party: Party) -> None:
    flow = app.flow("doubled")
    flow.add("double", 7, after=flow.add("double", 1, name="first"), name="second")
    async with working(app):
        await party.begin()
        run = await party.submit_flow(flow)
        with pytest.raises(errors.FlowNotFound):
            await run.state()
        await party.commit()
        assert await run.result(timeout=PATIENCE_S) == {"second": 14}


async def test_one_execution_is_named_only_where_one_is_submitted(party: Party) -> None:
    await party.begin()
    with pytest.raises(TypeError, match="names one execution"):
        await party.submit_many("double", [1, 2], idempotency_key="order-7")


async def test_another_namespace_stays_out_of_reach(place: Place, app: FlowFabric) -> None:
    run = await app.submit("approval")
    party = await place.party(FlowFabric(store=place.store(), namespace="elsewhere"))
    await party.begin()
    with pytest.raises(errors.ExecutionNotFound):
        await party.signal(run, "review", "yes")

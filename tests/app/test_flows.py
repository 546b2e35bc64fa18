"""Flows as users build, submit and hold them."""

from typing import Any

import pytest

from flowfabric import Fatal, FlowFabric, Member, Task, all_of, any_of, quorum
from flowfabric.contracts.states import PublicState
from flowfabric.errors import FlowNotFound, FlowRunCancelled, FlowRunFailed, IdempotencyConflict, InvalidInput
from flowfabric.flows import Flow
from tests.worker.stage import working


@pytest.fixture
def handled(app: FlowFabric) -> FlowFabric:
    """The app with the handlers of these tests."""

    @app.handler
    async def number(value: int) -> int:
        return value

    @app.handler
    async def total(task: Task) -> int:
        return sum((await task.inputs(int)).values())

    @app.handler
    async def inputs(task: Task) -> dict[str, Any]:
        return await task.inputs()

    @app.handler
    async def broken() -> None:
        raise Fatal("no such luck")

    @app.handler
    async def waiting(task: Task) -> Any:
        return (await task.wait_for_signal("go")).payload

    return app


class TestBuilding:
    def test_a_member_is_named_after_its_kind_and_a_number(self, app: FlowFabric) -> None:
        flow = app.flow("sums")
        members = [flow.add("number", value) for value in range(3)]
        assert [member.name for member in members] == ["number", "number-2", "number-3"]

    def test_a_name_is_given_once(self, app: FlowFabric) -> None:
        flow = app.flow("sums")
        flow.add("number", name="one")
        with pytest.raises(ValueError, match="already a member named 'one'"):
            flow.add("number", name="one")
        assert list(flow.members) == ["one"]

    def test_a_member_comes_after_members_of_its_own_flow(self, app: FlowFabric) -> None:
        flow, stranger = app.flow("sums"), app.flow("others").add("number")
        with pytest.raises(ValueError, match="not a member of this flow"):
            flow.add("total", after=stranger)
        assert flow.members == {}

    def test_a_member_comes_after_another_one_only_once(self, app: FlowFabric) -> None:
        flow = app.flow("sums")
        one = flow.add("number")
        with pytest.raises(ValueError, match="only once"):
            flow.add("total", after=[one, one])

    @pytest.mark.parametrize("option", ["idempotency_key", "execution_id"])
    def test_a_member_has_no_identity_of_its_own(self, app: FlowFabric, option: str) -> None:
        options: Any = {option: "mine"}
        with pytest.raises(TypeError, match="give the flow a key"):
            app.flow("sums").add("number", **options)

    async def test_a_flow_without_members_is_refused(self, app: FlowFabric) -> None:
        with pytest.raises(InvalidInput, match="executions"):
            await app.submit_flow(app.flow("empty"))


class TestRunning:
    async def test_the_result_is_that_of_the_members_that_nobody_comes_after(
        self, handled: FlowFabric
    ) -> None:
        flow = handled.flow("sums")
        one, two = flow.add("number", 1), flow.add("number", 2)
        three = flow.add("total", after=[one, two], name="three")
        flow.add("total", after=three, name="same")
        flow.add("number", 4, name="alone")
        async with working(handled):
            run = await handled.submit_flow(flow)
            assert await run.result(timeout=60) == {"same": 3, "alone": 4}
            assert await run.member(three).result() == 3
            assert await run.state() == "completed"

    async def test_inputs_come_under_the_names_of_the_members(self, handled: FlowFabric) -> None:
        flow = handled.flow("sums")
        left, right = flow.add("number", 1, name="left"), flow.add("number", 2, name="right")
        flow.add("inputs", after=all_of(left, right))
        async with working(handled):
            run = await handled.submit_flow(flow)
            assert await run.result(timeout=60) == {"inputs": {"left": 1, "right": 2}}

    @pytest.mark.parametrize("cancel_remaining", [True, False])
    async def test_a_decided_join_cancels_the_others_if_asked_to(
        self, handled: FlowFabric, cancel_remaining: bool
    ) -> None:
        flow = handled.flow("race")
        racers: list[Member[Any]] = [flow.add("number", 1), flow.add("waiting")]
        flow.add("total", after=any_of(*racers, cancel_remaining=cancel_remaining))
        async with working(handled):
            run = await handled.submit_flow(flow)
            assert await run.member("total").result(timeout=60) == 1
            slow = run.member(racers[1])
            if cancel_remaining:
                assert (await slow.wait()).public_state is PublicState.CANCELLED
                assert await run.result(timeout=60) == {"total": 1}
            else:
                assert await slow.state() is not PublicState.CANCELLED

    async def test_a_quorum_is_enough(self, handled: FlowFabric) -> None:
        flow = handled.flow("vote")
        votes: list[Member[Any]] = [flow.add("number", 1), flow.add("number", 2), flow.add("waiting")]
        flow.add("total", after=quorum(2, votes))
        async with working(handled):
            assert await (await handled.submit_flow(flow)).result(timeout=60) == {"total": 3}

    async def test_a_member_that_fails_fails_the_flow(self, handled: FlowFabric) -> None:
        flow = handled.flow("sums")
        flow.add("total", after=flow.add("broken"))
        async with working(handled):
            run = await handled.submit_flow(flow)
            with pytest.raises(FlowRunFailed) as failure:
                await run.result(timeout=60)
        assert failure.value.details == {"flow_id": run.flow_id, "failed": "1", "skipped": "1"}

    async def test_a_result_that_takes_too_long_is_not_waited_for(self, handled: FlowFabric) -> None:
        flow = handled.flow("sums")
        flow.add("number", 1)
        with pytest.raises(TimeoutError):
            await (await handled.submit_flow(flow)).result(timeout=0.01)


class TestHolding:
    async def test_cancelling_reaches_the_members(self, handled: FlowFabric) -> None:
        flow = handled.flow("sums")
        one = flow.add("number", 1)
        run = await handled.submit_flow(flow)
        await run.cancel("changed my mind", wait=True)
        assert await run.member(one).state() is PublicState.CANCELLED
        with pytest.raises(FlowRunCancelled, match="changed my mind"):
            await run.result(timeout=60)

    async def test_cancelling_by_another_policy_spares_the_members(self, handled: FlowFabric) -> None:
        flow = handled.flow("sums")
        one = flow.add("number", 1, delay=60)
        run = await handled.submit_flow(flow)
        await run.cancel(policy="cancel_flow_only")
        assert await run.state() == "cancelled"
        assert await run.member(one).state() is PublicState.DELAYED

    async def test_an_unknown_policy_is_refused_and_changes_nothing(self, handled: FlowFabric) -> None:
        flow = handled.flow("sums")
        flow.add("number", 1)
        run = await handled.submit_flow(flow)
        with pytest.raises(InvalidInput, match="one of flow_only"):
            await run.cancel(policy="cancel_some")
        assert await run.state() == "running"

    async def test_members_are_listed_in_the_order_in_which_they_were_added(
        self, handled: FlowFabric
    ) -> None:
        flow = handled.flow("many")
        names = [flow.add("number", value).name for value in range(201)]
        run = await handled.submit_flow(flow)
        listed = [member async for member in handled.flow_run(run.flow_id).members()]
        assert [member.execution_id for member in listed] == [run.member(n).execution_id for n in names]

    async def test_a_key_finds_the_first_flow_with_its_members(self, handled: FlowFabric) -> None:
        flow = handled.flow("sums")
        flow.add("number", 1)
        first = await handled.submit_flow(flow, idempotency_key="today")
        second = await handled.submit_flow(flow, idempotency_key="today")
        assert (first.duplicate, second.duplicate) == (False, True)
        assert first.flow_id == second.flow_id
        assert await second.member("number").state() is PublicState.WAITING

    async def test_a_key_is_bound_to_what_was_submitted(self, handled: FlowFabric) -> None:
        def sums(value: int, *others: str) -> Flow:
            flow = handled.flow("sums")
            first = flow.add("number", value)
            for name in others:
                flow.add("number", 2, name=name, after=first, delay=1)
            return flow

        await handled.submit_flow(sums(1, "b"), idempotency_key="today")
        again = await handled.submit_flow(sums(1, "b"), idempotency_key="today")
        assert again.duplicate
        for other in (sums(2, "b"), sums(1), sums(1, "b", "c"), sums(1, "c")):
            with pytest.raises(IdempotencyConflict):
                await handled.submit_flow(other, idempotency_key="today")

    async def test_a_member_without_a_name_is_refused(self, handled: FlowFabric) -> None:
        with pytest.raises(ValueError, match="needs a name"):
            handled.flow("sums").add("number", 1, name="")

    async def test_without_a_key_each_submission_is_another_flow(self, handled: FlowFabric) -> None:
        flow = handled.flow("sums")
        flow.add("number", 1)
        runs = [await handled.submit_flow(flow) for _ in range(2)]
        assert runs[0].flow_id != runs[1].flow_id

    async def test_a_flow_that_was_submitted_elsewhere_has_no_names_here(self, handled: FlowFabric) -> None:
        flow = handled.flow("sums")
        flow.add("number", 1)
        found = handled.flow_run((await handled.submit_flow(flow)).flow_id)
        with pytest.raises(LookupError, match="use members"):
            found.member("number")
        with pytest.raises(LookupError, match="submitted elsewhere"):
            await found.result()

    async def test_a_flow_that_is_not_there_is_not_found(self, handled: FlowFabric) -> None:
        gone = handled.flow_run("00000000-0000-4000-8000-000000000000")
        with pytest.raises(FlowNotFound):
            await gone.view()
        with pytest.raises(FlowNotFound):
            [member async for member in gone.members()]

"""Layers around the door: each does its one thing, and they stack."""

import asyncio
from contextlib import contextmanager
from typing import cast

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import ChangePriorityArgs
from flowfabric.contracts.reads import DescribeExecutionArgs, ServerTimeArgs
from flowfabric.engine.engine import Engine
from flowfabric.engine.layers import CircuitBreaker, Door, Metered, Rate, RateLimited, Traced, operation_name
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, FaultyStore


@pytest.fixture
async def bed():
    async with Bed(FaultyStore(MemoryStore())) as bed:
        yield bed


class Tracer:
    def __init__(self):
        self.spans = []

    @contextmanager
    def span(self, name, attributes):
        self.spans.append([name, dict(attributes), "open"])
        try:
            yield
        except errors.FlowFabricError as error:
            self.spans[-1][2] = error.code
            raise
        self.spans[-1][2] = "closed"


class Sink:
    def __init__(self):
        self.calls = []

    def record_call(self, method, elapsed_s, outcome):
        self.calls.append((method, elapsed_s, outcome))


def prioritise(execution_id, priority=5):
    return ChangePriorityArgs(execution_id=execution_id, new_priority=priority)


def test_an_operation_is_named_like_its_command():
    assert operation_name(ChangePriorityArgs) == "change_priority"


# Tracing


@pytest.mark.scenario("BOOT-011")
async def test_every_command_has_a_span_with_its_execution(bed):
    tracer = Tracer()
    execution_id = await bed.create()
    await Traced(bed.engine, tracer).execute(
        DescribeExecutionArgs(execution_id=execution_id), namespace="tenant"
    )
    expected = {"execution_id": execution_id, "namespace": "tenant"}
    assert tracer.spans == [["ff.describe_execution", expected, "closed"]]


async def test_a_span_sees_the_refusal(bed):
    tracer = Tracer()
    with pytest.raises(errors.ExecutionNotFound):
        await Traced(bed.engine, tracer).execute(prioritise(bed.new_execution_id()))
    assert [span[2] for span in tracer.spans] == ["execution_not_found"]


async def test_a_span_never_shows_content(bed):
    tracer = Tracer()
    await Traced(bed.engine, tracer).execute(bed.creation(input_payload=b"secret", tags={"a.b": "secret"}))
    assert "secret" not in repr(tracer.spans)


async def test_commands_sent_together_share_a_span(bed):
    tracer = Tracer()
    door = Traced(bed.engine, tracer)
    await door.execute_many([bed.creation(), bed.creation()])
    await door.execute_many([bed.creation(), prioritise(bed.new_execution_id())], namespace="tenant")
    assert [span[:2] for span in tracer.spans] == [
        ["ff.create_execution", {"count": 2}],
        ["ff.execute_many", {"count": 2, "namespace": "tenant"}],
    ]


# Metrics


@pytest.mark.scenario("FAULT-005")
async def test_every_call_is_recorded_with_its_duration_and_its_outcome(bed):
    sink, ticks = Sink(), iter([1.0, 1.5, 2.0, 4.0])
    door = Metered(bed.engine, sink, clock=lambda: next(ticks))
    await door.execute(bed.creation())
    with pytest.raises(errors.ExecutionNotFound):
        await door.execute(prioritise(bed.new_execution_id()))
    assert sink.calls == [("create_execution", 0.5, "ok"), ("change_priority", 2.0, "execution_not_found")]


async def test_of_commands_sent_together_each_is_recorded(bed):
    sink, ticks = Sink(), iter([1.0, 1.5])
    door = Metered(bed.engine, sink, clock=lambda: next(ticks))
    await door.execute_many([bed.creation(), prioritise(bed.new_execution_id())])
    assert sink.calls == [("create_execution", 0.5, "ok"), ("change_priority", 0.5, "execution_not_found")]


async def test_a_call_that_is_given_up_is_recorded_as_cancelled(bed):
    class Never:
        async def execute(self, command, **options):
            await asyncio.Event().wait()

        async def execute_many(self, commands, **options):
            await asyncio.Event().wait()

    sink, never = Sink(), cast("Door", Never())
    asked = asyncio.create_task(Metered(never, sink).execute(bed.creation()))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert [call[2] for call in sink.calls] == ["cancelled"]


# Rate limit


def limited(bed, **limits):
    limits = {operation: Rate(per_s=per_s, burst=burst) for operation, (per_s, burst) in limits.items()}
    return RateLimited(bed.engine, limits, clock=bed.clock.seconds())


async def test_above_its_rate_a_command_is_refused_and_told_when_to_come_back(bed):
    door = limited(bed, create_execution=(2, 1))
    await door.execute(bed.creation())
    with pytest.raises(errors.RateLimitExceeded) as caught:
        await door.execute(bed.creation())
    assert caught.value.details == {"operation": "create_execution", "retry_after_ms": "500"}
    bed.clock.advance(500)
    await door.execute(bed.creation())


async def test_after_a_pause_a_burst_is_let_through_and_no_more(bed):
    door = limited(bed, create_execution=(1, 3))
    bed.clock.advance(60_000)
    answers = await door.execute_many([bed.creation() for _ in range(5)])
    assert [isinstance(answer, Exception) for answer in answers] == [False] * 3 + [True] * 2


async def test_an_operation_without_a_rate_passes(bed):
    door = limited(bed, change_priority=(1, 1))
    answers = await door.execute_many([bed.creation() for _ in range(20)])
    assert not [answer for answer in answers if isinstance(answer, Exception)]


async def test_what_is_refused_never_reaches_the_engine(bed):
    door = limited(bed, create_execution=(1, 1))
    args = [bed.creation(), bed.creation()]
    await door.execute_many(args, request_ids=["a", "b"])
    assert (await bed.execution(args[0].execution_id)).last_request.request_id == "a"
    assert await bed.find(type(await bed.execution(args[0].execution_id)), args[1].execution_id) is None


# Circuit breaker


@pytest.fixture
def breaker(bed):
    return CircuitBreaker(bed.engine, name="ours", clock=bed.clock.seconds())


async def fail(bed, breaker, times=5):
    for _ in range(times):
        bed.store.lost_loads = 1
        with pytest.raises(errors.StoreUnreachable):
            await breaker.execute(bed.creation())


@pytest.mark.scenario("FAULT-004")
async def test_after_five_faults_in_a_row_nothing_is_sent_any_more(bed, breaker):
    await fail(bed, breaker)
    assert breaker.state == "open"
    bed.store.lost_loads = 1
    with pytest.raises(errors.StoreUnreachable, match="circuit breaker 'ours' is open") as caught:
        await breaker.execute(bed.creation())
    assert caught.value.details["breaker"] == "ours"
    with pytest.raises(errors.StoreUnreachable):
        await breaker.execute_many([bed.creation()])
    assert bed.store.lost_loads == 1


async def test_one_success_in_between_starts_the_count_again(bed, breaker):
    await fail(bed, breaker, 4)
    await breaker.execute(bed.creation())
    await fail(bed, breaker, 4)
    assert breaker.state == "closed"


async def test_a_refusal_shows_that_the_store_answers(bed, breaker):
    await fail(bed, breaker, 4)
    with pytest.raises(errors.ExecutionNotFound):
        await breaker.execute(prioritise(bed.new_execution_id()))
    await fail(bed, breaker, 4)
    assert breaker.state == "closed"


async def test_invalid_input_says_nothing_about_the_store(bed, breaker):
    await fail(bed, breaker, 4)
    with pytest.raises(errors.InvalidInput):
        await breaker.execute(prioritise(bed.new_execution_id(), 2**40))
    await fail(bed, breaker, 1)
    assert breaker.state == "open"


async def test_after_the_cool_down_one_trial_closes_it(bed, breaker):
    await fail(bed, breaker)
    bed.clock.advance(29_999)
    assert breaker.state == "open"
    bed.clock.advance(1)
    assert breaker.state == "half_open"
    await breaker.execute(bed.creation())
    assert breaker.state == "closed"


async def test_a_trial_that_fails_opens_it_for_as_long_again(bed, breaker):
    await fail(bed, breaker)
    bed.clock.advance(30_000)
    await fail(bed, breaker, 1)
    assert breaker.state == "open"
    bed.clock.advance(29_999)
    assert breaker.state == "open"


async def test_while_a_trial_is_under_way_the_others_wait_outside(bed, breaker):
    await fail(bed, breaker)
    bed.clock.advance(30_000)
    answers = await asyncio.gather(
        *(breaker.execute(bed.creation()) for _ in range(3)), return_exceptions=True
    )
    assert [isinstance(answer, errors.StoreUnreachable) for answer in answers] == [False, True, True]


async def test_a_trial_that_is_given_up_leaves_the_next_one_its_turn(bed, breaker):
    await fail(bed, breaker)
    bed.clock.advance(30_000)
    trial = asyncio.create_task(breaker.execute(bed.creation()))
    await asyncio.sleep(0)
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    await breaker.execute(bed.creation())
    assert breaker.state == "closed"


async def test_commands_sent_together_count_once(bed, breaker):
    for _ in range(4):
        bed.store.lost_loads = 1
        await breaker.execute_many([bed.creation() for _ in range(10)])
    assert breaker.state == "closed"
    bed.store.lost_loads = 1
    await breaker.execute_many([bed.creation()])
    assert breaker.state == "open"


async def test_commands_sent_together_close_it_again(bed, breaker):
    await fail(bed, breaker)
    bed.clock.advance(30_000)
    await breaker.execute_many([bed.creation(), bed.creation()])
    assert breaker.state == "closed"


async def test_commands_sent_together_that_are_all_invalid_say_nothing_about_the_store(bed, breaker):
    await fail(bed, breaker, 4)
    await breaker.execute_many([prioritise(bed.new_execution_id(), 2**40)])
    await fail(bed, breaker, 1)
    assert breaker.state == "open"


async def test_layers_stack(bed):
    tracer, sink = Tracer(), Sink()
    breaker = CircuitBreaker(limited(bed, create_execution=(1, 1)), clock=bed.clock.seconds())
    door = Traced(Metered(breaker, sink), tracer)
    await door.execute(bed.creation())
    with pytest.raises(errors.RateLimitExceeded):
        await door.execute(bed.creation())
    assert [call[2] for call in sink.calls] == ["ok", "rate_limit_exceeded"]
    assert [span[2] for span in tracer.spans] == ["closed", "rate_limit_exceeded"]


async def test_an_engine_sends_everything_through_its_layers():
    tracer = Tracer()
    sink = Sink()
    layers = (lambda door: Metered(door, sink), lambda door: Traced(door, tracer))
    async with Engine(MemoryStore(), namespace="default", layers=layers) as engine:
        await engine.execute(ServerTimeArgs())
        await engine.execute_many([ServerTimeArgs(), ServerTimeArgs()])
    assert [name for name, _, _ in tracer.spans] == ["ff.server_time", "ff.server_time"]
    assert len(sink.calls) == 3

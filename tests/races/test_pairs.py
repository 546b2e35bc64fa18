"""One operation runs inside another, between its decision and its commit, on the same execution.

The one inside is committed first, so the other must answer, and leave, what it does when it comes
second. Every ordered pair of the operations of a running execution is tried.
"""

from typing import Any

import pytest

from flowfabric import errors
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed, StoreAround, differences, dump
from flowfabric.testing.conformance.callers import HOLDER, build, callers_of, command_types
from flowfabric.testing.conformance.situations import bring, seed_key
from flowfabric.testing.faults import comparable

NAMES = (
    "append_frame",
    "cancel_execution",
    "complete_execution",
    "create_pending_waitpoint",
    "delay_execution",
    "fail_execution",
    "fail_execution_for_good",
    "move_to_waiting_children",
    "record_sleep",
    "record_step",
    "renew_lease",
    "revoke_lease",
    "set_execution_tag",
    "suspend_execution",
)


class Gate(StoreAround):
    """Lets something happen just before the next commit reaches the store."""

    def __init__(self, inner):
        super().__init__(inner)
        self.inside = None

    async def commit(self, commit):
        if self.inside is not None:
            inside, self.inside = self.inside, None
            await inside()
        return await self.inner.commit(commit)


async def answer_of(bed, command, request_id):
    try:
        return await bed.execute(command, request_id=request_id)
    except errors.FlowFabricError as refusal:
        return refusal.code


async def scene(bed, names):
    """A running execution, and the commands of its holder."""
    await seed_key(bed)
    [place] = await bring(bed, "running", 1)
    types = command_types()
    return [
        await build(bed, types[name][0], place, caller_of(types[name][0], place), types[name][1])
        for name in names
    ]


def caller_of(command_type, place):
    callers = list(callers_of(command_type, place))
    return HOLDER if HOLDER in callers else callers[0]


async def one_after_the_other(first, second):
    async with Bed(MemoryStore()) as bed:
        outer, inner = await scene(bed, (first, second))
        answers = {
            "inner": await answer_of(bed, inner, "inner"),
            "outer": await answer_of(bed, outer, "outer"),
        }
        return answers, comparable(await dump(bed.store))


@pytest.mark.slow
@pytest.mark.parametrize("first", NAMES)
async def test_an_operation_that_is_overtaken_does_what_it_does_when_it_comes_second(first):
    for second in NAMES:
        expected, left = await one_after_the_other(first, second)
        gate = Gate(MemoryStore())
        async with Bed(gate) as bed, Bed(gate.inner, clock=bed.clock) as other:
            outer, inner = await scene(bed, (first, second))
            answers: dict[str, Any] = {}

            async def inside(command=inner, bed=other, answers=answers):
                answers["inner"] = await answer_of(bed, command, "inner")

            gate.inside = inside
            answers["outer"] = await answer_of(bed, outer, "outer")
            assert answers == expected, (first, second)
            assert not differences(comparable(await dump(gate)), left), (first, second)
            await bed.check()

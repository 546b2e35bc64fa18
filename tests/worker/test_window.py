"""Calls that may run side by side, and how far one may get ahead of another."""

import asyncio

from flowfabric.leased import Window


class Calls:
    """Calls that run until they are told to end."""

    def __init__(self, size):
        self.window = Window(size)
        self.inside = []
        self.ends = {}

    async def call(self, number):
        self.ends[number] = asyncio.Event()
        async with self.window.place():
            self.inside.append(number)
            await self.ends[number].wait()

    async def settle(self):
        for _ in range(20):
            await asyncio.sleep(0)


async def test_a_call_waits_for_the_earliest_not_for_any_other():
    calls = Calls(3)
    tasks = [asyncio.create_task(calls.call(number)) for number in range(5)]
    await calls.settle()
    assert calls.inside == [0, 1, 2]
    calls.ends[1].set()
    await calls.settle()
    assert calls.inside == [0, 1, 2]
    calls.ends[0].set()
    await calls.settle()
    assert calls.inside == [0, 1, 2, 3, 4]
    for end in calls.ends.values():
        end.set()
    await asyncio.gather(*tasks)


async def test_a_call_that_is_cancelled_leaves_its_place():
    calls = Calls(1)
    tasks = [asyncio.create_task(calls.call(number)) for number in range(3)]
    await calls.settle()
    tasks[0].cancel()
    tasks[1].cancel()
    await calls.settle()
    assert calls.inside == [0, 2]
    calls.ends[2].set()
    await tasks[2]

"""Which share of what the server's functions can do on their own the whole engine reaches.

On their own means: their calls have been written beforehand, as the store writes them, and are sent as
fast as the server takes them, with nothing around. No worker, no handler, no look for work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

from bench import throughput
from bench.core import LANE, NAMESPACE, claim_of, completion_of, creation_of
from bench.scene import Figure, running
from flowfabric.contracts.base import Command
from flowfabric.contracts.ids import LeaseFence
from flowfabric.core.commands import ClaimCandidateArgs
from flowfabric.core.records import Lane, key_for, lane_identity
from flowfabric.core.work import Envelope
from flowfabric.engine.lanes import KnownLanes
from flowfabric.stores.valkey import ValkeyStore
from flowfabric.stores.valkey.keys import Keys
from flowfabric.stores.valkey.native.decisions import FAILED, Decisions
from flowfabric.stores.valkey.native.signatures import CALL_ARGUMENTS
from flowfabric.urls import store_for

EXECUTIONS = 9_600
WRITTEN_AT_ONCE = 960
"""How many executions pass through before the next ones do, so that the queue is as long as it is there."""
CALLS_IN_FLIGHT = 4

Call = tuple[Keys, str, Sequence[str], Sequence[str | bytes | int]]


async def measure(url: str, *, executions: int = EXECUTIONS) -> list[Figure]:
    """Both rates, and the one in terms of the other."""
    alone = await _functions_alone(url, executions)
    async with running(url) as scene:
        await throughput.run_many(scene, executions // 10)
        whole, _ = await throughput.run_many(scene, executions)
    return [
        Figure(name="functions alone", value=alone, unit="1/s", note="create, claim, complete"),
        Figure(name="share that the whole engine reaches", value=whole / alone * 100, unit="%"),
    ]


async def _functions_alone(url: str, executions: int) -> float:
    """Executions a second, from nothing but the calls that create, claim and complete them."""
    store = cast("ValkeyStore", store_for(url))
    await store.open()
    try:
        spent = 0.0
        for _ in range(executions // WRITTEN_AT_ONCE):
            creations = [creation_of() for _ in range(WRITTEN_AT_ONCE)]
            claims = [claim_of(command.execution_id) for command in creations]
            completions = [completion_of(one.execution_id, _fence_of(one)) for one in claims]
            calls = [await _written(store, commands) for commands in (creations, claims, completions)]
            begun = time.perf_counter()
            for of_a_kind in calls:
                await _send(store, of_a_kind)
            spent += time.perf_counter() - begun
        return executions / spent
    finally:
        await store.close()


def _fence_of(claim: ClaimCandidateArgs) -> LeaseFence:
    """What the first claim of an execution gets."""
    return LeaseFence(lease_id=claim.lease_id, lease_epoch=1, attempt_id=claim.attempt_id)


async def _written(store: ValkeyStore, commands: Sequence[Command[Any]]) -> list[Call]:
    """The calls for some commands, as the store would send them."""
    lanes = KnownLanes()
    lanes.learn([(key_for(Lane, lane_identity(NAMESPACE, LANE)), 0, None)])
    noting = _NotingStore(store)
    asked = [
        (command, Envelope(request_id=f"{type(command).__name__}-{place}", namespace=NAMESPACE))
        for place, command in enumerate(commands)
    ]
    await Decisions(cast("ValkeyStore", noting)).decide(asked, lanes)
    return noting.calls


class _NotingStore:
    """Notes the calls that would be made, in the place of a store that makes them."""

    def __init__(self, store: ValkeyStore) -> None:
        self.calls: list[Call] = []
        self.is_one_shard = store.is_one_shard
        self.shard_of = store.shard_of
        self.call_arguments = store.call_arguments

    async def invoke_native(
        self, shard: Keys, function: str, keys: Sequence[str], arguments: Sequence[str | bytes | int]
    ) -> tuple[int, list[Any]]:
        """Note a call, and say that the function left all its commands to the rules."""
        self.calls.append((shard, function, keys, arguments))
        return 0, [None] * int(arguments[CALL_ARGUMENTS.index("count")])


async def _send(store: ValkeyStore, calls: Sequence[Call]) -> None:
    """Send the calls, some of them on their way at any time, and make sure that nothing was declined."""
    waiting = iter(calls)

    async def send() -> None:
        for call in waiting:
            _, replies = await store.invoke_native(*call)
            assert all(map(_is_decided, replies)), f"{call[1]} has not decided what it decides elsewhere"

    await asyncio.gather(*(send() for _ in range(CALLS_IN_FLIGHT)))


def _is_decided(reply: Any) -> bool:
    """Whether a function has neither declined nor failed."""
    return bool(reply) and not (isinstance(reply, bytes) and reply.startswith(FAILED))

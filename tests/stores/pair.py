"""Two beds that are driven alike: in one the server decides what it can, in the other the rules do."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import msgspec

from flowfabric import errors
from flowfabric.contracts.base import Command
from flowfabric.core.indexes import ELIGIBLE
from flowfabric.core.layout import USUAL, Facts
from flowfabric.core.records import Execution, Key, kind_of
from flowfabric.stores.valkey import ValkeyStore
from flowfabric.stores.valkey.keys import scopes_range
from flowfabric.stores.valkey.library import list_scopes
from flowfabric.stores.valkey.packing import FRAME
from flowfabric.testing import ManualClock, differences
from flowfabric.testing.bed import Bed
from flowfabric.testing.stores import StoreAround
from tests.valkey import Server


class Pair:
    """Asks both beds the same, and compares what they answer and what they store.

    Args:
        server: where both stores are.
        folder: what their prefixes are named after.
        options: settings of both stores.
    """

    def __init__(self, server: Server, folder: Path, **options: Any) -> None:
        clock = ManualClock()
        self.store: ValkeyStore = server.store(folder / "native", **options)
        self.native = Bed(self.store, clock=clock)
        # What is around the other store does not show that it decides anything.
        self._ruled_store: ValkeyStore = server.store(folder / "ruled", **options)
        self.ruled = Bed(StoreAround(self._ruled_store), clock=clock)
        self.clock = clock
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for bed in (self.native, self.ruled):
            await self._stack.enter_async_context(bed)
        self.store._sightings._clock = lambda: 0.0  # what is known does not go out of date
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def accepted(self) -> dict[str, int]:
        """How many commands each function has decided."""
        return self.store.native.statistics.accepted

    @property
    def declined(self) -> dict[str, int]:
        """How many commands each function has left to the rules."""
        return self.store.native.statistics.declined

    async def ask(self, *commands: Command[Any], **options: Any) -> Any:
        """The answer to one command, or those to several at once. Refusals are answers."""
        async with self._telling():
            return self._same(
                [
                    await bed.engine.execute_many(list(commands), **options)
                    for bed in (self.native, self.ruled)
                ]
            )

    async def ask_unbounded(self, *commands: Command[Any]) -> Any:
        """The same as a caller without bounds, as the engine itself is one."""
        async with self._telling():
            return self._same(
                [await bed.engine.execute_unbounded(list(commands)) for bed in (self.native, self.ruled)]
            )

    def _same(self, answers: list[list[Any]]) -> Any:
        native, ruled = ([_comparable(answer) for answer in found] for found in answers)
        assert native == ruled
        assert not self.store.native.statistics.failed
        return answers[0] if len(answers[0]) > 1 else answers[0][0]

    async def each(self, act: Any) -> Any:
        """Do something with both beds that is no single command; what comes of it must be the same."""
        native, ruled = await act(self.native), await act(self.ruled)
        assert native == ruled
        return native

    async def compare(self, *, settled: bool = True) -> None:
        """Make sure that both stores hold the same, and that every invariant holds.

        Args:
            settled: whether what is due is done before.
        """
        for bed in (self.native, self.ruled):
            if settled:
                await bed.settle()
            await bed.check()
        dumped = await self.native.dump()
        found = differences(dumped, await self.ruled.dump())
        assert not found, "\n".join(found)
        for key in dumped["records"]:
            if kind_of(key) == Execution.KIND:
                assert await _facts(self.store, key) == await _facts(self._ruled_store, key), key

    @asynccontextmanager
    async def _telling(self) -> AsyncIterator[None]:
        """Make sure that the store learns of all work that what happens meanwhile makes claimable."""
        await self.store.eligible_reads(trusting=False).index_scopes(ELIGIBLE, "")
        yield
        for shard in self.store._shards.all:
            known = self.store._sightings.scopes(shard.shard, ("", None))
            listing = list_scopes(shard.index(ELIGIBLE), scopes_range("", None), 1_000)
            [scopes] = await self.store._client.read(shard.slot, listing)
            assert known is None or known >= {scope.decode() for scope in scopes}


async def _facts(store: ValkeyStore, key: Key) -> dict[str, Any]:
    """What an execution is stored with besides its fields, from which no dump can tell."""
    shard = store.shard_of(key)
    [stored] = await store._client.read(shard.slot, ("GET", shard.record(key)))
    pairs = msgspec.msgpack.decode(stored.partition(b":")[2][FRAME.size :])
    return {name: pairs.get(name, USUAL[name]) for name in Facts.__struct_fields__}


def _comparable(answer: Any) -> Any:
    if isinstance(answer, errors.FlowFabricError):
        return type(answer), answer.details
    assert not isinstance(answer, Exception), answer
    return answer


def fenced(claim: Any, **fields: Any) -> dict[str, Any]:
    """The arguments of a command that the holder of a lease gives."""
    named = {"execution_id": claim.execution_id, "fence": claim.fence, "attempt_index": claim.attempt_index}
    return named | fields


def accepted_of(pair: Pair, names: Sequence[str]) -> list[int]:
    """How often some functions have decided."""
    return [pair.accepted.get(name, 0) for name in names]

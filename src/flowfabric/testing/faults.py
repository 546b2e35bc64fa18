"""Every call to the store fails once, before or after it took effect; asking again makes it right.

A scenario is a short life of some executions, told by a ``Caller``: it asks again, under the same
request id, until it has its answer, as a worker does, or somebody at a terminal. ``disturbed`` runs
the scenario once for each call of the store and each way in which the call can fail. What is
stored in the end must be what an undisturbed run leaves, of which every invariant holds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec

from flowfabric import errors
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing.bed import Bed
from flowfabric.testing.dump import differences, dump
from flowfabric.testing.stores import StoreAround

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.events import Family, StoredEvent
    from flowfabric.core.records import Key, Record
    from flowfabric.core.work import Envelope, Frame, Remembered
    from flowfabric.stores.base import Commit, Decided, Loaded, Native
    from flowfabric.testing.clock import ClockedStore
    from flowfabric.testing.dump import Dump

R = TypeVar("R")

BEFORE: Final = "before"
AFTER: Final = "after"
TRIES_MAX: Final = 4
"""One more than a caller needs who meets a single fault, with one to spare."""

CHANGING: Final = ("commit", "decide", "trim_events")
"""The calls that change what is stored."""
_MINTED: Final = re.compile(r"request-\d+")


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong in one run."""

    call: str
    number: int
    """Which call of this name fails, counted from 1."""
    way: str
    """``before`` the call reaches the store, or ``after`` it took effect there."""

    def __str__(self) -> str:
        return f"{self.way} {self.call} {self.number}"


class BreakingStore(StoreAround):
    """Fails one call, as if the connection had gone, then works again.

    Args:
        inner: the store that works.
        fault: which call fails, and how; None for none.
    """

    def __init__(self, inner: ClockedStore, fault: Fault | None = None) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()
        self.failed = False
        """True once the fault has struck."""
        self._fault = fault
        native: Native | None = getattr(inner, "native", None)
        if native is not None:
            self.native = BreakingNative(native, self)

    @property
    def has_met_its_fault(self) -> bool:
        """False if the call that should have failed was made and has not failed.

        A run may make fewer calls than the one in which they were counted: which commands share a commit also
        depends on when what was read for each of them arrives. Nothing fails in it then.
        """
        fault = self._fault
        return self.failed or fault is None or self.calls[fault.call] < fault.number

    @property
    def batches_at_once(self) -> int:
        """One, so that every run makes the same calls: with more, which commands share a commit is a race."""
        return 1

    async def call(self, name: str, call: Callable[[], Awaitable[R]]) -> R:
        """Make a call of this name, unless it is the one that fails."""
        self.calls[name] += 1
        fault = self._fault
        if fault is None or (fault.call, fault.number) != (name, self.calls[name]):
            return await call()
        self.failed = True
        if fault.way == AFTER:
            await call()
        raise errors.StoreUnreachable

    async def commit(self, commit: Commit) -> int | None:
        return await self.call("commit", lambda: self.inner.commit(commit))

    async def trim_events(self, upto: int, *, sparing: frozenset[Family] = frozenset()) -> None:
        await self.call("trim_events", lambda: self.inner.trim_events(upto, sparing=sparing))

    async def forget_events(self, family: Family, upto: int) -> None:
        await self.call("forget_events", lambda: self.inner.forget_events(family, upto))

    async def now(self) -> int:
        return await self.call("now", self.inner.now)

    async def load(self, keys: Iterable[Key]) -> Loaded:
        return await self.call("load", lambda: self.inner.load(keys))

    async def read_index(self, index: str, scope: str, **bounds: Any) -> list[tuple[int, str]]:
        return await self.call("read_index", lambda: self.inner.read_index(index, scope, **bounds))

    async def count_index(self, index: str, scope: str, **bounds: Any) -> int:
        return await self.call("count_index", lambda: self.inner.count_index(index, scope, **bounds))

    async def index_scopes(self, index: str, prefix: str, **bounds: Any) -> list[str]:
        return await self.call("index_scopes", lambda: self.inner.index_scopes(index, prefix, **bounds))

    async def list_keys(self, prefix: Key, **bounds: Any) -> list[Key]:
        return await self.call("list_keys", lambda: self.inner.list_keys(prefix, **bounds))

    async def list_owned(self, identity: str, **bounds: Any) -> list[Key]:
        return await self.call("list_owned", lambda: self.inner.list_owned(identity, **bounds))

    async def read_frames(self, stream: str, **bounds: Any) -> list[Frame]:
        return await self.call("read_frames", lambda: self.inner.read_frames(stream, **bounds))

    async def read_events(self, after: int, **bounds: Any) -> list[StoredEvent]:
        return await self.call("read_events", lambda: self.inner.read_events(after, **bounds))

    async def last_event(self) -> int:
        return await self.call("last_event", self.inner.last_event)

    async def trimmed_events(self) -> int:
        return await self.call("trimmed_events", self.inner.trimmed_events)


class BreakingNative:
    """What the inner store decides by itself: a call like all others, which may fail."""

    def __init__(self, inner: Native, store: BreakingStore) -> None:
        self._inner = inner
        self._store = store

    def takes(self, command: Command[Any]) -> bool:
        return self._inner.takes(command)

    def looks_at(self, command: Command[Any]) -> Sequence[Key]:
        return self._inner.looks_at(command)

    def leaves(self, command: Command[Any], known: Record) -> bool:
        return self._inner.leaves(command, known)

    def forget(self) -> None:
        self._inner.forget()

    def orders(self, command: Command[Any]) -> bool:
        return self._inner.orders(command)

    async def decide(self, asked: Sequence[tuple[Command[Any], Envelope]], remembered: Remembered) -> Decided:
        return await self._store.call("decide", lambda: self._inner.decide(asked, remembered))


class Caller:
    """Asks, and asks again until there is an answer."""

    def __init__(self, bed: Bed, store: BreakingStore) -> None:
        self.bed = bed
        self._store = store
        self._number = 0

    async def ask(self, command: Command[R]) -> R:
        """The answer to one command."""
        [answer] = await self.ask_at_once([command])
        return answer

    async def ask_at_once(self, commands: Sequence[Command[R]]) -> list[R]:
        """The answers to commands that are on their way at the same time, and so share a commit.

        What a fault left for the scanners has been done by them before this returns.
        """
        undisturbed = not self._store.failed
        first = self._number
        self._number += len(commands)
        ids = [f"ask-{first + place}" for place in range(len(commands))]
        answers: list[Any] = await self.bed.engine.execute_many(list(commands), request_ids=ids)
        for place, command in enumerate(commands):
            for _ in range(TRIES_MAX):
                if not isinstance(answers[place], errors.StoreError):
                    break
                [answers[place]] = await self.bed.engine.execute_many([command], request_ids=[ids[place]])
        if undisturbed and self._store.failed:
            await self.pass_time(0)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def pass_time(self, milliseconds: int) -> None:
        """Let time pass, with everything that is due by then; a sweep that fails is made again."""
        until = self.bed.clock.now_ms + milliseconds
        for _ in range(TRIES_MAX):
            try:
                await self.bed.advance(until - self.bed.clock.now_ms)
            except errors.StoreError:
                continue
            return
        raise AssertionError("the store came back, and the duties were not done")


Scenario: TypeAlias = "Callable[[Caller], Awaitable[None]]"


class Disturbance(msgspec.Struct, frozen=True, kw_only=True):
    """One fault in one run of a scenario, and what it has left behind."""

    fault: Fault
    differences: tuple[str, ...]


async def disturbed(
    make_store: Callable[[], ClockedStore], scenario: Scenario, *, changes_only: bool = False
) -> AsyncIterator[Disturbance]:
    """Run a scenario once for every call that it makes and every way in which that can fail.

    A call that only reads fails in one way, before it: to the caller there is no difference, and
    the store does not notice. So it is enough to fail reads on one store.

    Args:
        make_store: makes an empty store, unopened.
        scenario: what is to be run.
        changes_only: leave out the calls that only read.

    Raises:
        AssertionError: an invariant is broken after the undisturbed run in memory, with which others
            are compared; or an undisturbed run on this store leaves something else.
        FlowFabricError: the scenario was refused something that it needs.
    """
    _, expected = await told(BreakingStore(MemoryStore()), scenario, audited=True)
    calls, held = await told(BreakingStore(make_store()), scenario)
    assert held == expected, "\n".join(differences(held, expected))
    for fault in faults_of(calls, changes_only=changes_only):
        store = BreakingStore(make_store(), fault)
        try:
            _, held = await told(store, scenario)
        except Exception as error:
            error.add_note(f"The fault struck {fault}.")
            raise
        found = differences(held, expected) if store.has_met_its_fault else ["the fault did not strike"]
        yield Disturbance(fault=fault, differences=tuple(found))


def faults_of(calls: Mapping[str, int], *, changes_only: bool) -> Iterator[Fault]:
    """Every fault that can strike a run which makes so many calls of each name."""
    for call, count in sorted(calls.items()):
        if changes_only and call not in CHANGING:
            continue
        for number in range(1, count + 1):
            for way in (BEFORE, AFTER) if call in CHANGING else (BEFORE,):
                yield Fault(call=call, number=number, way=way)


async def told(
    store: BreakingStore, scenario: Scenario, *, audited: bool = False
) -> tuple[dict[str, int], Dump]:
    """Run a scenario. Returns how often it has made each call, and what the store holds in the end."""
    async with Bed(store) as bed:
        bed.store = store.inner  # what the bed looks at for itself never fails, and does not count
        caller = Caller(bed, store)
        await scenario(caller)
        calls = dict(store.calls)
        await caller.pass_time(0)
        if audited:
            await bed.check()
        return calls, comparable(await dump(bed.store))


def comparable(held: Dump) -> Dump:
    """A dump without what may differ between two runs that came to the same.

    Ids of requests that the engine has made for itself are counted, also for requests that failed;
    and what a scanner had to finish may stand elsewhere in the log, among what is about others.
    """
    events: dict[str, list[Any]] = {}
    for event in held["events"]:
        events.setdefault(str(event["event"]["execution_id"]), []).append(event["event"])
    return {**held, "records": unnumbered(held["records"]), "events": events}


def unnumbered(value: Any) -> Any:
    """Builtins without the numbers of requests that an engine has made for itself."""
    if isinstance(value, str):
        return _MINTED.sub("request", value)
    if isinstance(value, dict):
        return {name: unnumbered(part) for name, part in value.items()}
    return [unnumbered(part) for part in value] if isinstance(value, (list, tuple)) else value

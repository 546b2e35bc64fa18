"""A test bed: one engine over one store, a clock set by hand, and ids that repeat from run to run.

Two beds that are driven by the same commands leave equal stores behind, whatever the stores are:
ids, request ids and random numbers follow from a counter, and time only passes when it is told to.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec

from flowfabric import errors
from flowfabric.audit import audit
from flowfabric.contracts.executions import (
    CompleteExecutionArgs,
    CreateExecutionArgs,
    DelayExecutionArgs,
    FailExecutionArgs,
)
from flowfabric.contracts.handles import BackendTag
from flowfabric.contracts.ids import ExecutionId, FlowId, flow_partition
from flowfabric.contracts.leases import ClaimedWork, RenewLeaseArgs
from flowfabric.contracts.limits import U16_MAX
from flowfabric.core.commands import CandidateClaimed, ClaimCandidateArgs
from flowfabric.core.records import Execution, key_for
from flowfabric.core.state import Situation, public_state, situation_of, state_vector
from flowfabric.engine.crowding import Crowding
from flowfabric.engine.engine import Engine
from flowfabric.engine.native import native_of
from flowfabric.engine.scanners.duties import DUTIES
from flowfabric.engine.scanners.loop import sweep
from flowfabric.testing.clock import ManualClock
from flowfabric.testing.dump import Dump, differences, dump

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.contracts.states import PublicState, StateVector
    from flowfabric.core.records import AnyRecord
    from flowfabric.core.work import Envelope
    from flowfabric.testing.clock import ClockedStore

R = TypeVar("R")

NAMESPACE: Final = "tenant"
LANE: Final = "lane"
KIND: Final = "kind"
WORKER: Final = "worker"
INSTANCE: Final = "worker-1"
TTL_MS: Final = 30_000
STEPS_MAX: Final = 10_000
"""How many instants one ``advance`` may stop at."""
READS_AT_ONCE: Final = 4
ROUNDS_MAX: Final = 16
"""How often one round of duties may make work for another one at the same instant."""


INDEXED: Final = tuple(duty for duty in DUTIES if duty.whole is None)
"""The duties that an index of instants tells of."""


class SteadyEngine(Engine):
    """An engine that mints the same request ids and random numbers in every run."""

    def __init__(
        self,
        store: ClockedStore,
        *,
        namespace: str | None = NAMESPACE,
        requests: Iterator[int] | None = None,
    ) -> None:
        super().__init__(store, namespace=namespace)
        self.crowding = Crowding(choose=lambda _: 0)
        self._requests = requests or itertools.count(1)

    def envelope(self, request_id: str | None, namespace: str | None, actor: str) -> Envelope:
        envelope = super().envelope(request_id, namespace, actor)
        return msgspec.structs.replace(
            envelope,
            request_id=request_id or f"request-{next(self._requests)}",
            random=0.5,
            backend=BackendTag.MEMORY,
        )


class Bed:
    """One engine under test. Use it as an async context manager.

    Args:
        store: an unopened store whose clock can be replaced.
        clock: shared with other beds, if time is to pass for all of them.
        namespace: the engine's namespace.
    """

    def __init__(
        self, store: ClockedStore, *, clock: ManualClock | None = None, namespace: str | None = NAMESPACE
    ) -> None:
        self.clock = clock or ManualClock()
        self.clock.attach(store)
        self.store = store
        self._requests = itertools.count(1)
        self.engine = SteadyEngine(store, namespace=namespace, requests=self._requests)
        self._ids = itertools.count(1)
        self._settled_at: int | None = None

    async def __aenter__(self) -> Self:
        await self.engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.stop()

    async def restart(self, store: ClockedStore) -> None:
        """Close the engine and its store, and go on over another store object with the same data."""
        await self.engine.stop()
        self.clock.attach(store)
        self.store = store
        self.engine = SteadyEngine(store, namespace=self.engine.namespace, requests=self._requests)
        await self.engine.start()

    @contextmanager
    def nothing_delivered(self) -> Iterator[None]:
        """What is committed in the block does nothing of what it owes, as if the process crashed there."""
        courier: Any = self.engine._courier  # noqa: SLF001 - all that is owed goes through it

        async def crash(owed: list[Any]) -> None:
            """Commit, and no more."""

        courier.deliver, courier.following = crash, lambda _batch, _now: []
        try:
            yield
        finally:
            del courier.deliver, courier.following

    def forget(self) -> None:
        """Let the engine remember nothing of what it has written, as if it were new."""
        self.engine.recent.clear()
        if (native := native_of(self.store)) is not None:
            native.forget()

    # Ids

    def new_id(self) -> str:
        """A uuid that no other call returns."""
        return f"00000000-0000-4000-8000-{next(self._ids):012x}"

    def new_execution_id(self, partition: int = 7) -> ExecutionId:
        """An execution id that no other call returns."""
        assert 0 <= partition <= U16_MAX
        return f"{{fp:{partition}}}:{self.new_id()}"

    def new_flow_id(self, partition: int = 7) -> FlowId:
        """A flow id of this partition that no other call returns."""
        return next(found for found in iter(self.new_id, "") if flow_partition(found) == partition)

    # Commands

    async def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        """What ``Engine.execute`` does."""
        return await self.engine.execute(command, request_id=request_id, namespace=namespace, actor=actor)

    async def execute_many(self, commands: Sequence[Command[R]]) -> list[R | Exception]:
        """What ``Engine.execute_many`` does."""
        return await self.engine.execute_many(commands)

    async def refused(self, command: Command[Any], **options: Any) -> errors.FlowFabricError:
        """The error with which a command is refused. Makes sure that nothing changed."""
        before = await dump(self.store)
        try:
            answer = await self.execute(command, **options)
        except errors.FlowFabricError as error:
            refusal = error
        else:
            raise AssertionError(f"{type(command).__name__} was not refused: {answer}")
        changed = differences(before, await dump(self.store))
        assert not changed, f"{refusal.code} changed {changed}"
        return refusal

    async def unchanging(self, command: Command[R], **options: Any) -> R:
        """The answer to a command that must not change anything."""
        before = await dump(self.store)
        answer = await self.execute(command, **options)
        changed = differences(before, await dump(self.store))
        assert not changed, f"{type(command).__name__} changed {changed}"
        return answer

    def creation(self, **fields: Any) -> CreateExecutionArgs:
        """The arguments of a creation; any of them can be given."""
        defaults: dict[str, Any] = {
            "namespace": NAMESPACE,
            "lane_id": LANE,
            "execution_kind": KIND,
            "input_payload": b"input",
            "priority": 0,
            "creator_identity": "tests",
        }
        if "execution_id" not in fields:
            defaults["execution_id"] = self.new_execution_id()
        return CreateExecutionArgs(**{**defaults, **fields})

    async def create(self, **fields: Any) -> ExecutionId:
        """Create an execution; any argument can be given. Returns its id."""
        args = self.creation(**fields)
        await self.execute(args, namespace=args.namespace)
        return args.execution_id

    def claiming(self, execution_id: str, **fields: Any) -> ClaimCandidateArgs:
        """The arguments of a claim that takes the execution whichever way it has to be taken."""
        defaults: dict[str, Any] = {
            "execution_id": execution_id,
            "lane_id": LANE,
            "worker_id": WORKER,
            "worker_instance_id": INSTANCE,
            "worker_capabilities": frozenset(),
            "lease_ttl_ms": TTL_MS,
        }
        minted = {"lease_id": self.new_id(), "attempt_id": self.new_id()}
        return ClaimCandidateArgs(**{**defaults, **minted, **fields})

    async def claim(self, execution_id: str, **fields: Any) -> ClaimedWork:
        """Claim an execution: new, resumed or lapsed."""
        outcome = await self.execute(self.claiming(execution_id, **fields))
        assert isinstance(outcome, CandidateClaimed), outcome
        return outcome.work

    async def start(self, **fields: Any) -> ClaimedWork:
        """Create an execution and claim it."""
        return await self.claim(await self.create(**fields), lane_id=fields.get("lane_id", LANE))

    async def complete(self, claim: ClaimedWork, **fields: Any) -> Any:
        """Complete what was claimed."""
        return await self.execute(CompleteExecutionArgs(**{**_fenced(claim), **fields}))

    async def fail(self, claim: ClaimedWork, **fields: Any) -> Any:
        """Let the claimed attempt fail."""
        defaults = {"failure_reason": "it broke", "failure_category": "error"}
        return await self.execute(FailExecutionArgs(**{**_fenced(claim), **defaults, **fields}))

    async def delay(self, claim: ClaimedWork, delay_ms: int, **fields: Any) -> Any:
        """Put the claimed work to sleep."""
        until = self.clock.now_ms + delay_ms
        return await self.execute(DelayExecutionArgs(**{**_fenced(claim), "delay_until": until, **fields}))

    async def renew(self, claim: ClaimedWork, lease_ttl_ms: int = TTL_MS) -> Any:
        """Renew the lease."""
        fields = {**_fenced(claim), "lease_ttl_ms": lease_ttl_ms}
        del fields["source"]
        return await self.execute(RenewLeaseArgs(**fields))

    # Time

    async def advance(self, milliseconds: int) -> None:
        """Let time pass, doing every duty at the instant at which it is due."""
        target = self.clock.now_ms + milliseconds
        await self.settle()
        for _ in range(STEPS_MAX):
            instant = await self._next_instant(target)
            self.clock.now_ms = target if instant is None else instant
            await self.settle()
            if instant is None:
                return
        raise AssertionError(f"more than {STEPS_MAX} instants in {milliseconds} ms")

    async def settle(self) -> None:
        """Do every duty until nothing that can be done is left."""
        await self._do_what_has_no_index()
        before: list[list[tuple[int, str]]] = []
        for _ in range(ROUNDS_MAX):
            due = await self._due()
            if not any(due):
                return
            for duty, entries in zip(INDEXED, due, strict=True):
                if entries:
                    await sweep(self.engine, duty)
            if due == before:  # what is left stays put; what only failed was done again
                return
            before = due
        raise AssertionError("the duties keep making work for each other")

    async def _do_what_has_no_index(self) -> None:
        """Do the duties that depend on nothing but the time, once at each instant."""
        if self._settled_at == self.clock.now_ms:
            return
        for duty in DUTIES:
            if duty.whole is not None:
                await sweep(self.engine, duty)
        self._settled_at = self.clock.now_ms

    async def _due(self) -> list[list[tuple[int, str]]]:
        """The first entries of each duty that are due now."""
        now = self.clock.now_ms
        return await _few_at_once(
            self.store.read_index(duty.index, duty.scope, upto=now - duty.grace_ms, limit=duty.page)
            for duty in INDEXED
        )

    async def _next_instant(self, target: int) -> int | None:
        """The next instant, later than now and not later than the target, at which a duty is due."""
        now = self.clock.now_ms
        upcoming = await _few_at_once(
            self.store.read_index(duty.index, duty.scope, after=(now - duty.grace_ms, "\U0010ffff"), limit=1)
            for duty in INDEXED
        )
        instants = [
            sort + duty.grace_ms
            for duty, entries in zip(INDEXED, upcoming, strict=True)
            for sort, _ in entries
        ]
        instant = min(instants, default=target + 1)
        return instant if instant <= target else None

    # Looking

    async def find(self, record_type: type[AnyRecord], identity: str) -> AnyRecord | None:
        """The record, or None."""
        loaded = await self.store.load([key_for(record_type, identity)])
        record = loaded.rows[0][2]
        assert record is None or isinstance(record, record_type)
        return record

    async def get(self, record_type: type[AnyRecord], identity: str) -> AnyRecord:
        """The record, which must exist."""
        record = await self.find(record_type, identity)
        assert record is not None, f"no {record_type.KIND} {identity}"
        return record

    async def execution(self, execution_id: str) -> Execution:
        """The execution's record."""
        return await self.get(Execution, execution_id)

    async def situation(self, execution_id: str) -> Situation | None:
        """Where the execution stands."""
        return situation_of(await self.execution(execution_id))

    async def state(self, execution_id: str) -> PublicState:
        """The word that users see."""
        return public_state(await self.execution(execution_id))

    async def vector(self, execution_id: str) -> StateVector:
        """The seven words of its state."""
        return state_vector(await self.execution(execution_id))

    async def indexes_of(self, execution_id: str) -> set[str]:
        """The indexes in which the execution has rows."""
        held = await dump(self.store)
        return {index for index, _, _, member in held["rows"] if member == execution_id}

    async def events(self, execution_id: str, *families: str) -> list[str]:
        """The names of the execution's events, in order."""
        return [
            str(stored.event.name)
            async for stored in self._events_of(execution_id)
            if not families or stored.event.family in families
        ]

    async def _events_of(self, execution_id: str) -> AsyncIterator[Any]:
        after = 0
        while page := await self.store.read_events(after, execution_id=execution_id):
            for stored in page:
                yield stored
            after = page[-1].sequence

    async def dump(self) -> Dump:
        """Everything the store holds."""
        return await dump(self.store)

    async def check(self) -> None:
        """Make sure that every invariant holds."""
        report = await audit(self.engine)
        assert not report.violations, "\n".join(map(str, report.violations))


async def _few_at_once(reads: Iterable[Coroutine[Any, Any, R]]) -> list[R]:
    """The answers to some reads, of which only few wait at once: a server may need a connection for each."""
    waiting = iter(reads)
    found: list[R] = []
    while some := list(itertools.islice(waiting, READS_AT_ONCE)):
        found += await asyncio.gather(*some)
    return found


def _fenced(claim: ClaimedWork) -> dict[str, Any]:
    return {
        "execution_id": claim.execution_id,
        "fence": claim.fence,
        "attempt_index": claim.attempt_index,
        "source": "lease_holder",
    }

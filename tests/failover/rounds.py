"""Rounds in which a cluster changes under load, and what is counted afterwards.

Tasks create, claim and complete executions, and repeat whatever has got no answer under the same
request id. Meanwhile a primary is killed, replaced in an orderly way, or gives slots away. Afterwards
everything that was acknowledged must be there, as far as the level promises it, nothing may have been
accepted twice, and no answer may have been of the wrong kind.
"""

import asyncio
import collections
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from flowfabric import errors
from flowfabric.audit import audit
from flowfabric.contracts.base import Command
from flowfabric.contracts.budgets import (
    CreateBudgetArgs,
    EnforcementMode,
    OnHardLimit,
    OnSoftLimit,
    ReportUsageArgs,
)
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.ids import LeaseFence, budget_id_of
from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs
from flowfabric.contracts.states import LifecyclePhase
from flowfabric.contracts.streams import AppendFrameArgs
from flowfabric.core.records import Execution, key_for
from flowfabric.engine.engine import Engine
from flowfabric.minting import new_execution_id, new_uuid4
from flowfabric.stores.valkey import ValkeyStore
from flowfabric.stores.valkey.keys import Keys
from tests.core.requests import candidate, complete, fail, progress, renew
from tests.core.waits import suspend_args
from tests.valkey import Cluster, Server, prefix_of

NAMESPACE, LANE, TTL_MS = "failover", "lane", 3_600_000
TASKS = 8
SHARDS = 8
RECOVERY_S = 15
"""Within this time after the change, the store answers again: a second until the others notice that a
server is gone, the vote, and the next look at where the slots are."""
SETTLED_S = 0.5
"""How long the load runs before and after the change."""


class Counts(msgspec.Struct):
    """What a round has seen."""

    created: int = 0
    completed: int = 0
    lost_creations: int = 0
    lost_completions: int = 0
    again: collections.Counter[str] = msgspec.field(default_factory=collections.Counter)
    """How often a command was repeated, by what it had been answered."""
    refused: collections.Counter[str] = msgspec.field(default_factory=collections.Counter)
    """What was refused although it had been acknowledged; only where something was lost."""
    recovered_s: float = 0.0
    """How long after the change began every shard had answered a command that was asked after that."""
    violations: list[str] = msgspec.field(default_factory=list)
    reloads: int = 0


def creation(execution_id: str) -> CreateExecutionArgs:
    """An execution that anybody may claim."""
    return CreateExecutionArgs(
        execution_id=execution_id,
        namespace=NAMESPACE,
        lane_id=LANE,
        execution_kind="kind",
        input_payload=b"x" * 1_000,
        priority=0,
        creator_identity="failover",
    )


class Load:
    """Tasks that work on one engine until they are told to stop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.counts = Counts()
        self.created: list[str] = []
        self.completed: list[str] = []
        self._changing_at: float | None = None
        self._unheard_of: set[int] = set(range(SHARDS))
        self._stopping = False

    async def run(self, change: Callable[[], Awaitable[None]]) -> None:
        """Work, let the cluster change, work on, and come to an end."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(TASKS):
                tasks.create_task(self._work())
            await asyncio.sleep(SETTLED_S)
            self._changing_at = time.monotonic()
            await change()
            async with asyncio.timeout(RECOVERY_S):
                while not self.counts.recovered_s:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(SETTLED_S)
            self._stopping = True

    async def _work(self) -> None:
        while not self._stopping:
            try:
                await self._live(new_execution_id())
            except (errors.NotFound, errors.StateRefusal) as refusal:
                self.counts.refused[type(refusal).__name__] += 1

    async def _live(self, execution_id: str) -> None:
        """One whole execution."""
        await self._ask(creation(execution_id))
        self.created.append(execution_id)
        claimed = await self._ask(candidate(execution_id, lane_id=LANE, lease_ttl_ms=TTL_MS))
        await self._ask(complete(execution_id, claimed.work.fence))
        self.completed.append(execution_id)

    async def _ask(self, command: Command[Any]) -> Any:
        """Ask until there is an answer, always under the same request id."""
        request_id = new_uuid4()
        begun = time.monotonic()
        while True:
            try:
                answer = await self.engine.execute(command, request_id=request_id)
            except (errors.StoreUnreachable, errors.StoreTimeout, errors.Contention) as fault:
                self.counts.again[type(fault).__name__] += 1
                await asyncio.sleep(0.02)
                continue
            self._note_answer(command.execution_id, begun)  # type: ignore[attr-defined]
            return answer

    def _note_answer(self, execution_id: str, begun: float) -> None:
        if self._changing_at is None or begun < self._changing_at or not self._unheard_of:
            return
        self._unheard_of.discard(self.engine.store.place_of(key_for(Execution, execution_id)))
        if not self._unheard_of:
            self.counts.recovered_s = time.monotonic() - self._changing_at


async def under_load(store: ValkeyStore, change: Callable[[], Awaitable[None]]) -> Counts:
    """One round: what was lost and what was said while the cluster changed."""
    async with Engine(store, namespace=NAMESPACE) as engine:
        load = Load(engine)
        await load.run(change)
        counts = load.counts
        counts.created, counts.completed = len(load.created), len(load.completed)
        found = await executions(store, load.created)
        counts.lost_creations = sum(one is None for one in found.values())
        counts.lost_completions = sum(
            one is None or one.phase is not LifecyclePhase.TERMINAL
            for one in (found[execution_id] for execution_id in load.completed)
        )
        report = await audit(engine)
        counts.violations = [str(violation) for violation in report.violations]
        counts.reloads = store._client.reloads
        return counts


async def executions(store: ValkeyStore, execution_ids: Iterable[str]) -> dict[str, Execution | None]:
    """The records of some executions."""
    keys = {key_for(Execution, one): one for one in execution_ids}
    found: dict[str, Any] = {}
    async with asyncio.timeout(RECOVERY_S):
        while len(found) < len(keys):
            try:
                found = {keys[key]: record for key, _, record in (await store.load(keys)).rows}
            except errors.StoreUnreachable:
                await asyncio.sleep(0.02)
    return found


def in_background(change: Callable[[], Any]) -> Callable[[], Awaitable[None]]:
    """A change that waits for servers, in a thread beside the load."""

    async def run() -> None:
        await asyncio.to_thread(change)

    return run


def kill_and_return(cluster: Cluster) -> Callable[[], Awaitable[None]]:
    """Kill a primary, and let it come back as a replica of the one that has taken over."""

    async def run() -> None:
        await asyncio.to_thread(cluster.kill, primary_of(cluster))
        cluster.start_again()  # not in the thread, which does not live long
        await asyncio.to_thread(cluster.until_whole)

    return run


def move_slot(cluster: Cluster, store: ValkeyStore) -> None:
    """Let another primary have one of the slots in which the store is."""
    keys = store._shards.all[1]
    owner = cluster.owner_of(keys.state)
    other = next(one for one in cluster.servers if one.is_primary and one is not owner)
    cluster.move(keys.slot, owner, other)


def primary_of(cluster: Cluster) -> Server:
    """One of the primaries."""
    return next(one for one in cluster.servers if one.is_primary)


class Stale(msgspec.Struct):
    """What happened to the calls of holders whose lease a failover had lost."""

    sent: int = 0
    refused: collections.Counter[str] = msgspec.field(default_factory=collections.Counter)
    epochs_repeated: int = 0
    accepted_twice: int = 0
    violations: list[str] = msgspec.field(default_factory=list)
    """Where what the audit has found differs from what it must find."""


def stale_calls(execution_id: str, fence: LeaseFence) -> list[Command[Any]]:
    """All seven kinds of calls that the holder of a lease makes."""
    parts: dict[str, Any] = {
        "lease_id": fence.lease_id,
        "lease_epoch": fence.lease_epoch,
        "attempt_id": fence.attempt_id,
    }
    return [
        renew(execution_id, fence, lease_ttl_ms=TTL_MS),
        AppendFrameArgs(
            execution_id=execution_id, attempt_index=0, frame_type="token", payload=b"old", **parts
        ),
        progress(execution_id, fence),
        ReportUsageArgs(
            budget_id=budget_id_of(NAMESPACE, "team"),
            execution_id=execution_id,
            fence=fence,
            dimensions=("tokens",),
            deltas=(1,),
        ),
        suspend_args(execution_id, fence),
        complete(execution_id, fence),
        fail(execution_id, fence),
    ]


def place_for(cluster: Cluster, place: str, *, apart: bool) -> str:
    """Where to make a store whose second shard is on the server that has the log, or on another one."""
    for number in itertools.count():
        found = f"{place}{number}"
        home, other = (cluster.owner_of(Keys(prefix_of(found), shard).state) for shard in (0, 1))
        if (home is not other) == apart:
            return found
    raise AssertionError


async def held_back(store: ValkeyStore, cluster: Cluster, count: int) -> Stale:
    """Claims that a failover loses, claims anew with the same epochs, and calls of the first holders.

    Where the log is on another server than what is lost, it tells of both leases.
    """
    stale = Stale()
    async with Engine(store, namespace=NAMESPACE) as engine:
        keys = store._shards.all[1]
        await engine.execute(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex="ab" * 32))
        await engine.execute(budget())
        ids = [f"{{fp:1}}:{new_uuid4()}" for _ in range(count)]
        await all_of(engine, [creation(one) for one in ids])
        owner = cluster.owner_of(keys.state)
        log_survives = cluster.owner_of(store._shards.home.state) is not owner
        with cluster.held_back(owner, f"{keys.state}:filler"):
            first = await claims(engine, ids)
            await store.last_event()  # all of them are in the log
        await executions(store, ids)
        second = await claims(engine, ids)
        stale.epochs_repeated = sum(first[one].lease_epoch == second[one].lease_epoch for one in ids)
        calls = [call for one in ids for call in stale_calls(one, first[one])]
        stale.sent = len(calls)
        before = await executions(store, ids)
        for answer in await engine.execute_many(calls):
            if isinstance(answer, errors.StateRefusal):
                stale.refused[type(answer).__name__] += 1
        assert await executions(store, ids) == before
        await all_of(engine, [complete(one, second[one]) for one in ids])
        again = await engine.execute_many([complete(one, first[one]) for one in ids])
        stale.accepted_twice = sum(not isinstance(answer, Exception) for answer in again)
        told_twice = ids if log_survives else []
        expected = {text for one in told_twice for text in granted_twice(one, second[one].lease_epoch)}
        found = {str(violation) for violation in (await audit(engine)).violations}
        stale.violations = sorted(found ^ expected)
    return stale


def granted_twice(execution_id: str, epoch: int) -> list[str]:
    """What the audit finds in a log that tells of two leases with one epoch."""
    how = (f"after {epoch}", f"while {epoch} was held")
    return [f"one_lease: {key_for(Execution, execution_id)}: epoch {epoch} was granted {one}" for one in how]


def budget() -> CreateBudgetArgs:
    """A budget without limits worth naming."""
    return CreateBudgetArgs(
        budget_id=budget_id_of(NAMESPACE, "team"),
        scope_type="team",
        scope_id="team",
        name="team",
        enforcement_mode=EnforcementMode.STRICT,
        on_hard_limit=OnHardLimit.DENY,
        on_soft_limit=OnSoftLimit.WARN,
        reset_interval_ms=0,
        dimensions=("tokens",),
        hard_limits=(1_000_000,),
        soft_limits=(1_000_000,),
    )


async def claims(engine: Engine, execution_ids: Iterable[str]) -> dict[str, LeaseFence]:
    """The fences of new leases."""
    commands = [candidate(one, lane_id=LANE, lease_ttl_ms=TTL_MS) for one in execution_ids]
    return {
        command.execution_id: answer.work.fence
        for command, answer in zip(commands, await all_of(engine, commands), strict=True)
    }


async def all_of(engine: Engine, commands: list[Any]) -> list[Any]:
    """The answers; none of the commands may be refused."""
    answers = await engine.execute_many(commands)
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert not refused, refused[0]
    return answers

"""What generators draw from, and the list of generators.

A generator makes one command that fits what there is; it takes part by being decorated::

    @generator(ReplayExecutionArgs)
    def replay_execution(draw: Draw) -> ReplayExecutionArgs:
        return ReplayExecutionArgs(execution_id=draw.terminal().execution_id)

Where what it needs is not there, the ``Draw`` raises ``Lacking``, which names the commands that
lead to it; those are sent first, and the generator is asked again. A generator that ``provokes``
an error makes a command that is refused with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec

from flowfabric.contracts.executions import (
    CompleteExecutionArgs,
    CreateExecutionArgs,
    DelayExecutionArgs,
    FailExecutionArgs,
)
from flowfabric.contracts.flows import (
    AddEdgesArgs,
    AddExecutionToFlowArgs,
    CreateFlowArgs,
    SubmitFlowArgs,
)
from flowfabric.contracts.ids import flow_partition
from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs, WaitpointToken
from flowfabric.contracts.leases import IssueGrantAndClaimArgs, MarkLeaseExpiredArgs, RevokeLeaseArgs
from flowfabric.contracts.suspensions import CreatePendingWaitpointArgs, SuspendExecutionArgs
from flowfabric.core.commands import ClaimCandidateArgs
from flowfabric.core.records import (
    KEYRING_ID,
    Edge,
    Execution,
    Flow,
    FlowMember,
    Keyring,
    Waitpoint,
    flow_identity,
)
from flowfabric.core.state import Situation, situation_of
from flowfabric.core.tokens import waitpoint_mac
from flowfabric.core.vocabulary import LeaseState
from flowfabric.testing.bed import INSTANCE, LANE, NAMESPACE, TTL_MS, WORKER
from flowfabric.testing.model.steps import Pass

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from flowfabric.contracts.base import Command
    from flowfabric.errors import FlowFabricError
    from flowfabric.testing.model.world import World

T = TypeVar("T")
Make: TypeAlias = "Callable[[Draw], Command[Any]]"

PARTITION: Final = 7
OTHER_NAMESPACE: Final = "other"
WORKERS: Final = ((WORKER, INSTANCE), ("second", "second-1"))
CAPABILITY: Final = "gpu"
TERMINAL: Final = (
    Situation.COMPLETED,
    Situation.FAILED,
    Situation.CANCELLED,
    Situation.EXPIRED,
    Situation.SKIPPED,
)
UNCLAIMED: Final = (Situation.ELIGIBLE, Situation.DELAYED, Situation.BLOCKED)
LAPSED: Final = (Situation.LEASE_EXPIRED, Situation.LEASE_REVOKED)


class Lacking(Exception):
    """What a generator needs is not there; one of these leads to it."""

    def __init__(self, *remedies: type[Command[Any]] | Pass) -> None:
        super().__init__(*remedies)
        self.remedies = remedies


class Generator(msgspec.Struct, frozen=True, kw_only=True):
    """How one kind of command is made."""

    name: str
    command_type: type[Command[Any]]
    make: Make
    provokes: type[FlowFabricError] | None = None
    unbounded: bool = False
    """True for what only the engine itself sends, which is bound to no namespace."""


GENERATORS: Final[list[Generator]] = []


def generator(
    command_type: type[Command[Any]],
    *,
    provokes: type[FlowFabricError] | None = None,
    unbounded: bool = False,
) -> Callable[[Callable[[Draw], Any]], Callable[[Draw], Any]]:
    """Register the decorated function as a way to make ``command_type``."""

    def register(make: Callable[[Draw], Any]) -> Callable[[Draw], Any]:
        GENERATORS.append(
            Generator(
                name=make.__name__,
                command_type=command_type,
                make=make,
                provokes=provokes,
                unbounded=unbounded,
            )
        )
        return make

    return register


class Draw:
    """Chance, and what there is to choose from.

    Args:
        random: where every choice comes from.
        world: what there is.
    """

    def __init__(self, random: Random, world: World) -> None:
        self.random = random
        self.world = world
        self.now = 0
        """The stores' time; set before each step."""
        self._ids = itertools.count(1)

    # Chance

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return self.random.choice(choices)

    def some(self, choices: Sequence[T], most: int) -> list[T]:
        """Up to so many different ones, at least one."""
        return self.random.sample(choices, min(len(choices), self.random.randint(1, most)))

    # Ids

    def new_id(self) -> str:
        """A uuid that no other call returns."""
        return f"00000000-0000-4000-9000-{next(self._ids):012x}"

    def new_execution_id(self) -> str:
        """An execution id that no other call returns."""
        partition = PARTITION if self.chance(0.9) else self.random.randrange(256)
        return self.id_in(partition)

    def id_in(self, partition: int) -> str:
        """An execution id of this partition that no other call returns."""
        return f"{{fp:{partition}}}:{self.new_id()}"

    def new_flow_id(self) -> str:
        """A flow id that no other call returns, in the partition of most executions."""
        return next(found for found in iter(self.new_id, "") if flow_partition(found) == PARTITION)

    # Executions

    def executions(self, *situations: Situation) -> list[Execution]:
        """Those that are in one of the situations; all if none is named."""
        found = self.world.all(Execution)
        return [one for one in found if not situations or situation_of(one) in situations]

    def one_of(self, found: Sequence[T], *remedies: type[Command[Any]] | Pass) -> T:
        """One of what was found; the remedies lead to one where there is none."""
        if not found:
            raise Lacking(*remedies)
        return self.pick(found)

    def execution(self) -> Execution:
        """Any execution."""
        return self.one_of(self.executions(), CreateExecutionArgs)

    def eligible(self) -> Execution:
        """One that may be claimed now."""
        free = [one for one in self.executions(Situation.ELIGIBLE) if one.grant is None]
        return self.one_of(free, CreateExecutionArgs)

    def unclaimed(self) -> Execution:
        """One that waits for a worker, now or later."""
        return self.one_of(self.executions(*UNCLAIMED), CreateExecutionArgs)

    def running(self) -> Execution:
        """One whose lease is alive."""
        held = [one for one in self.executions(Situation.RUNNING) if lease_of(one).expires_at > self.now]
        return self.one_of(held, ClaimCandidateArgs, IssueGrantAndClaimArgs)

    def overdue(self) -> Execution:
        """One whose lease is past its expiry and not marked yet."""
        late = [one for one in self.executions(Situation.RUNNING) if lease_of(one).expires_at <= self.now]
        held = self.executions(Situation.RUNNING)
        return self.one_of(late, Pass(milliseconds=TTL_MS) if held else ClaimCandidateArgs)

    def lapsed(self) -> Execution:
        """One whose lease has expired or was revoked."""
        return self.one_of(self.executions(*LAPSED), MarkLeaseExpiredArgs, RevokeLeaseArgs)

    def suspended(self) -> Execution:
        """One that waits for signals."""
        return self.one_of(self.executions(Situation.SUSPENDED), SuspendExecutionArgs)

    def delayed(self) -> Execution:
        """One that sleeps."""
        return self.one_of(self.executions(Situation.DELAYED), DelayExecutionArgs)

    def terminal(self) -> Execution:
        """One that has ended."""
        return self.one_of(self.executions(*TERMINAL), CompleteExecutionArgs, FailExecutionArgs)

    # What goes with an execution

    def worker(self) -> dict[str, Any]:
        """The fields that name a worker."""
        worker_id, instance = self.pick(WORKERS)
        return {"worker_id": worker_id, "worker_instance_id": instance}

    def minted(self) -> dict[str, Any]:
        """The ids that a claim brings along."""
        return {"lease_id": self.new_id(), "attempt_id": self.new_id()}

    def capabilities(self) -> frozenset[str]:
        """What a worker can do."""
        return frozenset({CAPABILITY}) if self.chance(0.8) else frozenset()

    def fenced(self, execution: Execution) -> dict[str, Any]:
        """The fields of a command with a fence."""
        return {
            "execution_id": execution.execution_id,
            "fence": self.world.fences[execution.execution_id][-1],
            "attempt_index": execution.attempt_count - 1,
        }

    def owned(self, execution: Execution) -> dict[str, Any]:
        """The fields of a command that names the three parts of the fence one by one."""
        fence = self.world.fences[execution.execution_id][-1]
        return {"execution_id": execution.execution_id, **msgspec.structs.asdict(fence)}

    def payload(self) -> bytes:
        """Some bytes."""
        return self.random.randbytes(self.pick((0, 1, 7, 40)))

    def later(self) -> int:
        """An instant that is not far away."""
        return self.now + self.pick((0, 1, 1_000, TTL_MS // 2, 2 * TTL_MS))

    # Waitpoints

    def keyring(self) -> Keyring:
        """The ring of signing keys."""
        ring = self.world.find(Keyring, KEYRING_ID)
        if ring is None:
            raise Lacking(SeedWaitpointHmacSecretArgs)
        return ring

    def waitpoint(self, *states: str) -> Waitpoint:
        """A waitpoint in one of these states."""
        found = [one for one in self.world.all(Waitpoint) if one.state in states]
        pending = "active" not in states or self.chance(0.3)
        return self.one_of(found, CreatePendingWaitpointArgs if pending else SuspendExecutionArgs)

    def token(self, waitpoint: Waitpoint) -> WaitpointToken:
        """The waitpoint's token, valid or not by now."""
        owner = self.world.find(Execution, waitpoint.execution_id)
        key = next((one for one in self.keyring().keys if one.kid == waitpoint.token_kid), None)
        if owner is None or key is None:
            return WaitpointToken(f"{waitpoint.token_kid}:{'0' * 64}")
        return WaitpointToken(f"{key.kid}:{waitpoint_mac(key, owner.namespace, waitpoint)}")

    # Flows

    def flow(self, *, open_only: bool = True) -> Flow:
        """A flow, one whose graph may still grow unless any will do."""
        found = [
            one
            for one in self.world.all(Flow)
            if not open_only or (one.sealed_at is None and one.cancelled_at is None)
        ]
        return self.one_of(found, CreateFlowArgs, *(() if open_only else (SubmitFlowArgs,)))

    def members(self, flow: Flow, count: int) -> list[Execution]:
        """So many members of a flow, in the order of their places."""
        found = [self.world.find(Execution, member.execution_id) for member in self._places(flow)]
        present = [one for one in found if one is not None]
        if len(present) < count:
            raise Lacking(AddExecutionToFlowArgs)
        chosen = self.random.sample(range(len(present)), count)
        return [present[place] for place in sorted(chosen)]

    def _places(self, flow: Flow) -> list[FlowMember]:
        found = [
            self.world.find(FlowMember, f"{flow_identity(flow.flow_id)}/{place}")
            for place in range(flow.node_count)
        ]
        return [one for one in found if one is not None]

    def edge(self, *states: str) -> Edge:
        """An edge in one of these states; any if none is named."""
        found = [one for one in self.world.all(Edge) if not states or one.state in states]
        return self.one_of(found, AddEdgesArgs, SubmitFlowArgs)

    def creation(self, **fields: Any) -> CreateExecutionArgs:
        """A plain creation; any field can be given."""
        defaults: dict[str, Any] = {
            "execution_id": self.new_execution_id(),
            "namespace": NAMESPACE,
            "lane_id": LANE,
            "execution_kind": "kind",
            "input_payload": self.payload(),
            "priority": self.pick((0, 5, 9_000)),
            "creator_identity": "model",
        }
        return CreateExecutionArgs(**{**defaults, **fields})


def lease_of(execution: Execution) -> Any:
    """The lease of an execution that has one."""
    assert execution.lease is not None
    return execution.lease


def is_held(execution: Execution, now: int) -> bool:
    """Whether somebody holds a lease that is alive."""
    lease = execution.lease
    return lease is not None and lease.state is LeaseState.HELD and lease.expires_at > now

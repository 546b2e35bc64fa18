"""Whatever goes wrong on the way, in the end nothing waits for headroom that is there.

Random programs over budgets and quota policies, on a store that loses calls and reports conflicts,
by an engine that now and then dies before it has done what its commits owe.
"""

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from flowfabric import errors
from flowfabric.contracts.base import Command
from flowfabric.contracts.blocking import PauseExecutionArgs, UnblockExecutionArgs, UnpauseExecutionArgs
from flowfabric.contracts.budgets import (
    ChangeBudgetLimitsArgs,
    OnHardLimit,
    ReleaseBudgetArgs,
    ReportUsageAdminArgs,
    ResetBudgetArgs,
)
from flowfabric.contracts.executions import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric.contracts.leases import ClaimedWork, IssueClaimGrantArgs, RevokeLeaseArgs
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.quotas import CheckAdmissionArgs, ReadQuotaPolicyLimitsArgs, ReleaseAdmissionArgs
from flowfabric.core.records import Execution
from flowfabric.core.state import is_terminal
from flowfabric.stores.base import Conflict
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed
from flowfabric.testing.bed import INSTANCE, LANE, WORKER
from flowfabric.testing.conformance.admission import quota_creation
from flowfabric.testing.conformance.budgets import budget_creation, claim_work, reporting
from flowfabric.testing.stores import StoreAround

STEPS = 100
LOOKS_MAX = 100
FAULTS = 0.4


class UnluckyStore(StoreAround):
    """Loses some calls before they took effect, some commits after it, and finds changes that are none."""

    def __init__(self, inner: Any, chance: random.Random) -> None:
        super().__init__(inner)
        self.chance = chance
        self.faults = 0.0

    async def load(self, keys: Any) -> Any:
        if self.chance.random() < self.faults / 8:
            raise errors.StoreUnreachable
        return await self.inner.load(keys)

    async def commit(self, commit: Any) -> None:
        fault = self.chance.random()
        if fault < self.faults / 3:
            raise errors.StoreUnreachable
        if fault < 2 * self.faults / 3:
            keys = [change.key for change in commit.changes] + [key for key, _ in commit.relied_on]
            raise Conflict(frozenset([self.chance.choice(keys)]))
        await self.inner.commit(commit)
        if fault < self.faults:
            raise errors.StoreUnreachable


class Program:
    """One random program."""

    def __init__(self, bed: Bed, chance: random.Random) -> None:
        self.bed = bed
        self.chance = chance
        self.quotas: list[str] = []
        self.budgets: list[str] = []
        self.ids: list[str] = []
        self.claims: list[ClaimedWork] = []

    async def prepare(self) -> None:
        """Create the policies and budgets, of every kind."""
        bed = self.bed
        for rate, cap in ((0, 1), (2, 0), (3, 2)):
            creation = quota_creation(quota_policy_id=bed.new_id(), name="", rate=rate, cap=cap)
            self.quotas.append((await bed.execute(creation)).quota_policy_id)
        for way in OnHardLimit:
            period_ms = self.chance.choice([0, 50_000])
            named: dict[str, Any] = {"budget_id": bed.new_id(), "name": "", "reset_interval_ms": period_ms}
            self.budgets.append(
                (await bed.execute(budget_creation(hard=5, on_hard_limit=way, **named))).budget_id
            )

    async def step(self) -> None:
        """Do something, whatever comes of it."""
        act = self.chance.choice([self.create, self.create, self.claim, self.claim, self.give_up, self.say])
        with contextlib.suppress(errors.FlowFabricError):
            await act()

    async def create(self) -> None:
        pick = self.chance.sample
        policy = ExecutionPolicy(
            quota_policy_id=self.chance.choice([*self.quotas, None]),
            budget_ids=tuple(pick(self.budgets, self.chance.randrange(3))),
        )
        creation = self.bed.creation(policy=policy, priority=self.chance.randrange(5))
        self.ids.append(creation.execution_id)
        await self.bed.execute(creation)

    async def claim(self) -> None:
        self.claims += await claim_work(self.bed, self.chance.choice([1, 3, 10]))

    async def give_up(self) -> None:
        if not self.claims:
            return
        claim = self.claims.pop(self.chance.randrange(len(self.claims)))
        match self.chance.randrange(3):
            case 0:
                await self.bed.complete(claim)
            case 1:
                await self.bed.fail(claim)
            case _:
                await self.bed.delay(claim, 0)

    async def say(self) -> None:
        """What an operator, a worker or another system says."""
        chosen = self.chance.sample(self.ids, min(len(self.ids), 5))
        commands = [*map(self.about_budget, self.budgets), *map(self.about_execution, chosen)]
        if self.claims:
            report = reporting(self.chance.choice(self.budgets), self.chance.choice(self.claims), 2)
            commands += [report] * len(commands)
        await self.bed.execute(self.chance.choice(commands))

    def about_budget(self, budget_id: str) -> Command[Any]:
        limits: dict[str, Any] = {
            "dimensions": ("tokens",),
            "hard_limits": (self.chance.randrange(12),),
            "soft_limits": (0,),
        }
        spender = self.chance.choice(self.ids) if self.ids else self.bed.new_execution_id()
        return self.chance.choice(
            [
                ResetBudgetArgs(budget_id=budget_id),
                ChangeBudgetLimitsArgs(budget_id=budget_id, **limits),
                ReleaseBudgetArgs(budget_id=budget_id, execution_id=spender),
                ReportUsageAdminArgs(budget_id=budget_id, dimensions=("tokens",), deltas=(3,)),
            ]
        )

    def about_execution(self, execution_id: str) -> Command[Any]:
        asked: dict[str, Any] = {
            "quota_policy_id": self.chance.choice(self.quotas),
            "execution_id": execution_id,
        }
        worker: dict[str, Any] = {"worker_id": WORKER, "worker_instance_id": INSTANCE, "grant_ttl_ms": 1_000}
        makers: list[Callable[..., Command[Any]]] = [PauseExecutionArgs, UnpauseExecutionArgs]
        makers += [UnblockExecutionArgs, ReplayExecutionArgs]
        return self.chance.choice(
            [
                self.chance.choice(makers)(execution_id=execution_id),
                CancelExecutionArgs(execution_id=execution_id, reason="", source="operator_override"),
                CheckAdmissionArgs(**asked),
                ReleaseAdmissionArgs(**asked),
                IssueClaimGrantArgs(execution_id=execution_id, lane_id=LANE, **worker),
                RevokeLeaseArgs(execution_id=execution_id, reason=""),
            ]
        )

    async def finish(self) -> None:
        """Lift all limits of budgets and all pauses, and work until nothing is left."""
        for budget_id in self.budgets:
            unlimited: dict[str, Any] = {"dimensions": ("tokens",), "hard_limits": (0,), "soft_limits": (0,)}
            await self.bed.execute(ChangeBudgetLimitsArgs(budget_id=budget_id, **unlimited))
        for _ in range(LOOKS_MAX):
            await self.bed.advance(31_000)
            await self.bed.engine.execute_many([UnpauseExecutionArgs(execution_id=one) for one in self.ids])
            for claim in await claim_work(self.bed):
                await self.bed.complete(claim)
            if not await self.waiting():
                return

    async def waiting(self) -> list[str]:
        """What has not ended."""
        found = [await self.bed.find(Execution, execution_id) for execution_id in self.ids]
        return [one.execution_id for one in found if one is not None and not is_terminal(one)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_in_the_end_nothing_waits_for_headroom_that_is_there(seed: int) -> None:
    chance = random.Random(seed)
    store = UnluckyStore(MemoryStore(), chance)
    async with Bed(store) as bed:
        program = Program(bed, chance)
        await program.prepare()
        for _ in range(STEPS):
            store.faults = chance.choice([0, FAULTS])
            dying = chance.random() < 0.3
            with bed.nothing_delivered() if dying else contextlib.nullcontext():
                await program.step()
            store.faults = 0
            await bed.advance(chance.choice([0, 0, 0, 1_000, 20_000]))
        await bed.check()
        await program.finish()
        assert await program.waiting() == []
        await bed.advance(60_000)
        for quota_policy_id in program.quotas:
            limits = await bed.execute(ReadQuotaPolicyLimitsArgs(quota_policy_id=quota_policy_id))
            assert limits is not None
            assert limits.active == 0
        await bed.check()

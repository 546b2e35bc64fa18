"""The auditor finds every kind of damage to budgets and quota policies."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flowfabric.audit import audit
from flowfabric.core.records import (
    Admission,
    Budget,
    BudgetLedger,
    BudgetUsage,
    Execution,
    QuotaPolicy,
    QuotaWindow,
    admission_identity,
    budget_identity,
    key_for,
    ledger_identity,
    quota_identity,
)
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed
from flowfabric.testing.conformance.admission import limited, new_quota
from flowfabric.testing.conformance.budgets import claim_work, new_budget, spend
from tests.conformance.test_flow_audit import change, remove


class Sound:
    """A budget with usage, and a quota policy with one admission that is used."""

    budget_id: str
    quota_policy_id: str
    execution_id: str


async def sound(bed: Bed) -> Sound:
    made = Sound()
    made.budget_id = await new_budget(bed, hard=10)
    await spend(bed, made.budget_id, 5)
    made.quota_policy_id = await new_quota(bed, rate=3, cap=2)
    made.execution_id = await limited(bed)
    await claim_work(bed)
    return made


Damage = Callable[[Bed, Sound], Awaitable[None]]


async def usage_without_a_ledger(bed: Bed, made: Sound) -> None:
    remove(bed, key_for(BudgetLedger, ledger_identity(made.budget_id, 0, "admin")))


async def a_ledger_that_says_more(bed: Bed, made: Sound) -> None:
    await change(bed, BudgetLedger, ledger_identity(made.budget_id, 0, "admin"), spent={"tokens": 6})


async def counters_that_are_gone(bed: Bed, made: Sound) -> None:
    remove(bed, key_for(BudgetUsage, budget_identity(made.budget_id)))


async def a_reached_limit_of_an_open_budget(bed: Bed, made: Sound) -> None:
    await change(bed, Budget, budget_identity(made.budget_id), hard_limits={"tokens": 5})


async def a_counter_that_is_off(bed: Bed, made: Sound) -> None:
    await change(bed, QuotaPolicy, quota_identity(made.quota_policy_id), active=0)


async def an_admission_that_is_gone(bed: Bed, made: Sound) -> None:
    remove(bed, key_for(Admission, admission_identity(made.quota_policy_id, made.execution_id)))


async def a_window_that_forgot(bed: Bed, made: Sound) -> None:
    await change(bed, QuotaWindow, f"{quota_identity(made.quota_policy_id)}/0", instants=())


async def an_admission_without_a_lease(bed: Bed, made: Sound) -> None:
    other = await bed.create()
    await change(bed, Execution, other, admitted_round=1)


FOUND_AS: dict[Damage, str] = {
    usage_without_a_ledger: "conservation",
    a_ledger_that_says_more: "conservation",
    counters_that_are_gone: "conservation",
    a_reached_limit_of_an_open_budget: "hard_limit",
    a_counter_that_is_off: "quota",
    an_admission_that_is_gone: "quota",
    a_window_that_forgot: "quota",
    an_admission_without_a_lease: "legal_situation",
}


@pytest.mark.parametrize("damage", FOUND_AS, ids=lambda damage: damage.__name__)
async def test_damage_is_found(damage: Damage) -> None:
    async with Bed(MemoryStore()) as bed:
        made = await sound(bed)
        assert not (await audit(bed.engine)).violations
        await damage(bed, made)
        found: Any = {violation.invariant for violation in (await audit(bed.engine)).violations}
        assert FOUND_AS[damage] in found

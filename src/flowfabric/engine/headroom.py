"""What a budget or a quota policy owes to others: letting go those that wait, cancelling, tidying.

Everything goes in pages of bounded size, and the record says what is left to do, so a crash in
between loses nothing and a second process that does the same does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.budgets import BudgetReconciled, ReconcileBudgetCountersArgs
from flowfabric.contracts.quotas import QuotaReconciled, ReconcileQuotaCountersArgs
from flowfabric.core.commands import (
    CancelForBudgetArgs,
    CorrectBudgetUsageArgs,
    CorrectQuotaCounterArgs,
    ForgetLedgersArgs,
    HeadroomSettled,
    LedgersForgotten,
    LetGo,
    LetGoArgs,
    LookAfterWaitingArgs,
    PruneLedgersArgs,
    ReadRoomArgs,
    SettleBudgetHeadroomArgs,
    SettleQuotaHeadroomArgs,
)
from flowfabric.core.indexes import ATTACHED, WAITING
from flowfabric.core.records import (
    ADMIN,
    FORGOTTEN,
    Admission,
    Budget,
    BudgetLedger,
    BudgetUsage,
    Execution,
    QuotaPolicy,
    budget_identity,
    key_for,
    kind_of,
    quota_identity,
)
from flowfabric.engine.listing import load_records
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.work import Envelope
    from flowfabric.engine.deliveries import Aside
    from flowfabric.engine.engine import Engine

PAGE: Final = 100
STEPS_MAX: Final = 10
"""How often others are looked for who take the room that some could not."""
LEDGER_PAGES_MAX: Final = 100
"""How many pages of ledgers one look removes. With fewer, many spenders would outrun it."""
COUNTS_MAX: Final = 3
"""How often counters are added up that change meanwhile."""

ACTOR: Final = "headroom"


async def look_after_waiting(
    engine: Aside, args: LookAfterWaitingArgs, _envelope: Envelope
) -> HeadroomSettled:
    """Let those go that wait, page by page, as long as there is room for them."""
    look = _look_after_budget if kind_of(args.subject) == Budget.KIND else _look_after_quota
    for _ in range(args.pages):
        if not await look(engine, args.subject.partition("/")[2]):
            return HeadroomSettled(action="done")
    return HeadroomSettled(action="more")


operation(LookAfterWaitingArgs)(look_after_waiting)


class Page(msgspec.Struct, frozen=True):
    """What became of a page of executions."""

    failed: bool
    """Whether some have still to be seen to, which could not be done now."""
    last: bool
    """Whether there were no others behind it."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.last and not self.failed


NOTHING_TO_DO: Final = Page(failed=False, last=True)


async def _look_after_budget(engine: Aside, identity: str) -> bool:
    """Cancel a page, or let a page go. Returns whether to look again at once."""
    [budget] = await load_records(engine.store, [key_for(Budget, identity)])
    if not isinstance(budget, Budget) or (budget.cancelling_at is None and budget.waking_at is None):
        return False
    cancelled, woken = await _cancel_page(engine, budget), await _wake_page(engine, budget)
    settling = SettleBudgetHeadroomArgs(
        budget_identity=identity,
        turn=budget.turn,
        woken=budget.waking_at is not None and woken.is_done,
        cancelled=budget.cancelling_at is not None and cancelled.is_done,
    )
    if settling.woken or settling.cancelled:
        await _run(engine, [settling])
    return not (cancelled.failed or woken.failed)


async def _cancel_page(engine: Aside, budget: Budget) -> Page:
    """Cancel a page of what the breached budget is attached to."""
    if budget.cancelling_at is None:
        return NOTHING_TO_DO
    rows = await engine.store.read_index(ATTACHED, budget.budget_id, upto=budget.cancelling_at, limit=PAGE)
    commands = [CancelForBudgetArgs(execution_id=member, budget_id=budget.budget_id) for _, member in rows]
    return Page(failed=_any_failed(await _run(engine, commands)), last=len(rows) < PAGE)


async def _wake_page(engine: Aside, budget: Budget) -> Page:
    """Let a page of those go that wait for the budget. While it is closed there is nobody to let go."""
    if budget.waking_at is None or budget.closed_at is not None:
        return NOTHING_TO_DO
    rows = await engine.store.read_index(WAITING, budget.budget_id, limit=PAGE)
    return Page(failed=_any_failed(await _let_go(engine, rows, budget.budget_id)), last=len(rows) < PAGE)


async def _look_after_quota(engine: Aside, identity: str) -> bool:
    """Let go as many as there is room for. Returns whether to look again at once."""
    [left] = await _run(engine, [ReadRoomArgs(quota_identity=identity, page=PAGE)])
    if isinstance(left, Exception):
        raise left
    if not left.due:
        return False
    let_go, others = await _let_some_go(engine, identity.partition("}:")[2], left.room)
    [settled] = await _run(
        engine,
        [SettleQuotaHeadroomArgs(quota_identity=identity, turn=left.turn, let_go=let_go, more=others)],
    )
    return isinstance(settled, HeadroomSettled) and settled.action != "done"


async def _let_some_go(engine: Aside, quota_policy_id: str, room: int) -> tuple[int, bool]:
    """Let go as many as there is room for, the most urgent first.

    One that cannot be let go takes no room from those behind it.

    Returns:
        How many were let go, and whether others may still wait.
    """
    let_go, any_failed = 0, False
    after: tuple[int, str] | None = None
    for _ in range(STEPS_MAX):
        wanted = room - let_go
        rows = await engine.store.read_index(WAITING, quota_policy_id, after=after, limit=wanted + 1)
        answers = await _let_go(engine, rows[:wanted], quota_policy_id)
        let_go += sum(isinstance(answer, LetGo) and answer.action == "let_go" for answer in answers)
        any_failed |= _any_failed(answers)
        if len(rows) <= wanted:
            return let_go, any_failed
        if let_go == room:
            break
        after = rows[wanted - 1]
    return let_go, True


async def _let_go(engine: Aside, rows: Sequence[tuple[int, str]], waits_for: str) -> list[Any]:
    return await _run(engine, [LetGoArgs(execution_id=member, waits_for=waits_for) for _, member in rows])


def _any_failed(answers: Sequence[Any]) -> bool:
    return any(isinstance(answer, Exception) for answer in answers)


async def _run(engine: Aside, commands: Sequence[Command[Any]]) -> list[Any]:
    return await engine.execute_unbounded(commands, actor=ACTOR)


# Ledgers and counters


@operation(PruneLedgersArgs)
async def prune_ledgers(engine: Engine, args: PruneLedgersArgs, _envelope: Envelope) -> LedgersForgotten:
    """Remove the ledgers of periods that are over, page by page; then join those of what is gone."""
    for _ in range(LEDGER_PAGES_MAX):
        forgotten = await _prune_page(engine, args.budget_identity)
        if forgotten.action == "done":
            await _join_forgotten(engine, args.budget_identity)
            return forgotten
    return LedgersForgotten(action="more")


async def _prune_page(engine: Engine, identity: str) -> LedgersForgotten:
    """Remove a page of the ledgers of the oldest period that is over."""
    [budget] = await load_records(engine.store, [key_for(Budget, identity)])
    if not isinstance(budget, Budget) or budget.oldest_period >= budget.period:
        return LedgersForgotten(action="done")
    prefix = f"{key_for(BudgetLedger, identity)}/{budget.oldest_period}/"
    keys = await engine.store.list_keys(prefix, limit=PAGE)
    forgetting = ForgetLedgersArgs(
        budget_identity=identity,
        period=budget.oldest_period,
        ledger_ids=tuple(key.partition("/")[2] for key in keys),
        last=len(keys) < PAGE,
    )
    return await _forget(engine, forgetting)


async def _join_forgotten(engine: Engine, identity: str) -> None:
    """Join the ledgers of the current period whose executions are gone, if it is time for that."""
    loaded = await engine.store.load([key_for(Budget, identity)])
    budget = loaded.rows[0][2]
    if not isinstance(budget, Budget) or budget.joining_at is None or budget.joining_at > loaded.now:
        return
    forgetting = ForgetLedgersArgs(budget_identity=identity, period=budget.period, ledger_ids=(), last=False)
    async for keys in _pages(engine, f"{key_for(BudgetLedger, identity)}/{budget.period}/"):
        ledger_ids = await _of_forgotten(engine, keys)
        await _forget(engine, replace(forgetting, ledger_ids=ledger_ids))
    await _forget(engine, replace(forgetting, last=True))


async def _of_forgotten(engine: Engine, keys: list[str]) -> tuple[str, ...]:
    """Which of some ledgers belong to executions that are gone."""
    found = [one for one in await load_records(engine.store, keys) if isinstance(one, BudgetLedger)]
    ledgers = {one.spender: one.identity for one in found if one.spender not in (ADMIN, FORGOTTEN)}
    executions = await load_records(engine.store, [key_for(Execution, spender) for spender in ledgers])
    return tuple(
        ledger_id
        for ledger_id, execution in zip(ledgers.values(), executions, strict=True)
        if execution is None
    )


async def _forget(engine: Engine, forgetting: ForgetLedgersArgs) -> LedgersForgotten:
    [answer] = await _run(engine, [forgetting])
    if isinstance(answer, Exception):
        raise answer
    forgotten: LedgersForgotten = answer
    return forgotten


@operation(ReconcileBudgetCountersArgs)
async def reconcile_budget_counters(
    engine: Engine, args: ReconcileBudgetCountersArgs, envelope: Envelope
) -> BudgetReconciled:
    """Add the ledgers of the current period up, and correct the usage if it differs.

    Raises:
        BudgetNotFound: there is no such budget.
    """
    identity = budget_identity(args.budget_id)
    total: dict[str, int] = {}
    for _ in range(COUNTS_MAX):
        budget, usage = await load_records(
            engine.store, [key_for(Budget, identity), key_for(BudgetUsage, identity)]
        )
        if not isinstance(budget, Budget) or envelope.namespace not in (None, budget.namespace):
            raise errors.BudgetNotFound(budget_id=args.budget_id)
        if not isinstance(usage, BudgetUsage):
            raise errors.StoreCorrupt(record=key_for(BudgetUsage, identity))
        total = await _sum_of_ledgers(engine, budget)
        correction = CorrectBudgetUsageArgs(
            budget_id=args.budget_id, period=budget.period, revision=usage.revision, usage=total
        )
        [answer] = await engine.decide([(correction, envelope)])
        if isinstance(answer, Exception):
            raise answer
        if answer.action != "busy":
            return BudgetReconciled(action=answer.action, usage=total)
    return BudgetReconciled(action="busy", usage=total)


async def _sum_of_ledgers(engine: Engine, budget: Budget) -> dict[str, int]:
    total: dict[str, int] = {}
    async for keys in _pages(engine, f"{key_for(BudgetLedger, budget.identity)}/{budget.period}/"):
        for ledger in await load_records(engine.store, keys):
            if isinstance(ledger, BudgetLedger):
                for name, amount in ledger.spent.items():
                    total[name] = total.get(name, 0) + amount
    return total


@operation(ReconcileQuotaCountersArgs)
async def reconcile_quota_counters(
    engine: Engine, args: ReconcileQuotaCountersArgs, envelope: Envelope
) -> QuotaReconciled:
    """Count the admissions, and correct the counter if it differs.

    Raises:
        QuotaPolicyNotFound: there is no such policy.
    """
    identity = quota_identity(args.quota_policy_id)
    active = 0
    for _ in range(COUNTS_MAX):
        [quota] = await load_records(engine.store, [key_for(QuotaPolicy, identity)])
        if not isinstance(quota, QuotaPolicy) or envelope.namespace not in (None, quota.namespace):
            raise errors.QuotaPolicyNotFound(quota_policy_id=args.quota_policy_id)
        active = sum([len(keys) async for keys in _pages(engine, f"{key_for(Admission, identity)}/")])
        correction = CorrectQuotaCounterArgs(
            quota_policy_id=args.quota_policy_id, revision=quota.revision, active=active
        )
        [answer] = await engine.decide([(correction, envelope)])
        if isinstance(answer, Exception):
            raise answer
        if answer.action != "busy":
            return QuotaReconciled(action=answer.action, active=active)
    return QuotaReconciled(action="busy", active=active)


async def _pages(engine: Engine, prefix: str) -> AsyncIterator[list[str]]:
    after: str | None = None
    while keys := await engine.store.list_keys(prefix, after=after, limit=PAGE):
        yield keys
        after = keys[-1]

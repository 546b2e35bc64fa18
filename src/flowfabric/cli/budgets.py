"""``budget`` and ``quota``: what work may spend, and how much of it may run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowfabric.budgeting import Budget, Quota, budget_creation, quota_creation
from flowfabric.cli.exits import OK
from flowfabric.cli.output import print_fields, print_json, print_table, shown_age
from flowfabric.cli.session import open_engine, run
from flowfabric.contracts.budgets import BudgetCreated, ResetBudgetArgs
from flowfabric.contracts.quotas import QuotaPolicyCreated
from flowfabric.core.instants import shown_time

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.budgets import BudgetStatus
    from flowfabric.contracts.quotas import QuotaPolicyLimits


def manage_budget(arguments: Namespace) -> int:
    """Carry out ``budget``."""
    actions = {"create": _create, "show": _show, "limit": _limit, "reset": _reset}
    return run(actions[arguments.action](arguments))


async def _create(arguments: Namespace) -> int:
    creation = budget_creation(
        arguments.name,
        arguments.namespace,
        hard=dict(arguments.hard),
        soft=dict(arguments.soft),
        on_hard_limit=arguments.on_hard_limit,
        enforcement_mode="advisory" if arguments.advisory else "strict",
        reset_interval_ms=arguments.reset_every or 0,
    )
    async with open_engine(arguments, create=True) as engine:
        outcome = await engine.execute(creation)
    created = isinstance(outcome, BudgetCreated)
    done = "was created" if created else "existed before"
    return _report(outcome, f"budget {arguments.name} {done}", as_json=arguments.json)


async def _show(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        status = await Budget(engine, arguments.namespace, arguments.name).status()
        now = await engine.now()
    if arguments.json:
        print_json(status)
    else:
        _print_status(status, now)
    return OK


def _print_status(status: BudgetStatus, now: int) -> None:
    print_fields(
        [
            ("name", status.name or status.budget_id),
            ("id", status.budget_id),
            ("enforcement", f"{status.enforcement_mode}, {status.on_hard_limit} at a hard limit"),
            ("headroom", _shown_headroom(status, now)),
            ("breaches", f"{status.breach_count} hard, {status.soft_breach_count} soft"),
            ("next reset", "none" if status.next_reset_at is None else shown_time(status.next_reset_at)),
        ]
    )
    names = sorted({*status.usage, *status.hard_limits, *status.soft_limits})
    limits = (status.soft_limits, status.hard_limits)
    rows = [
        [name, str(status.usage.get(name, 0)), *(str(known.get(name) or "-") for known in limits)]
        for name in names
    ]
    print_table(["DIMENSION", "USED", "SOFT", "HARD"], rows, flexible=0)


def _shown_headroom(status: BudgetStatus, now: int) -> str:
    return "yes" if status.closed_at is None else f"none since {shown_age(status.closed_at, now)}"


async def _limit(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        budget = Budget(engine, arguments.namespace, arguments.name)
        await budget.change_limits(hard=dict(arguments.hard), soft=dict(arguments.soft))
        status = await budget.status()
    return _report(status, f"the limits of {arguments.name} hold from now on", as_json=arguments.json)


async def _reset(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        budget = Budget(engine, arguments.namespace, arguments.name)
        outcome = await engine.execute(ResetBudgetArgs(budget_id=budget.budget_id))
    return _report(outcome, f"a new period of {arguments.name} has begun", as_json=arguments.json)


def manage_quota(arguments: Namespace) -> int:
    """Carry out ``quota``."""
    actions = {"create": _create_quota, "show": _show_quota}
    return run(actions[arguments.action](arguments))


async def _create_quota(arguments: Namespace) -> int:
    creation = quota_creation(
        arguments.name,
        arguments.namespace,
        window_ms=arguments.per,
        max_requests=arguments.requests,
        max_concurrent=arguments.concurrent,
    )
    async with open_engine(arguments, create=True) as engine:
        outcome = await engine.execute(creation)
    created = isinstance(outcome, QuotaPolicyCreated)
    done = "was created" if created else "existed before"
    return _report(outcome, f"quota policy {arguments.name} {done}", as_json=arguments.json)


async def _show_quota(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        limits = await Quota(engine, arguments.namespace, arguments.name).limits()
    if arguments.json:
        print_json(limits)
    else:
        _print_quota(limits)
    return OK


def _print_quota(limits: QuotaPolicyLimits) -> None:
    requests, concurrent = limits.max_requests_per_window, limits.max_concurrent
    print_fields(
        [
            ("name", limits.name or limits.quota_policy_id),
            ("id", limits.quota_policy_id),
            ("rate", f"{requests} in {limits.window_seconds} s" if requests else "no limit"),
            ("at once", str(concurrent) if concurrent else "no limit"),
            ("active", str(limits.active)),
        ]
    )


def _report(outcome: Any, sentence: str, *, as_json: bool) -> int:
    if as_json:
        print_json(outcome)
    else:
        print(sentence)
    return OK

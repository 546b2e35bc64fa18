"""Who may be claimed: the headroom of budgets and the admission of quota policies.

The rules this module keeps:

- No lease is given while a budget that the execution is attached to is closed, or without the
  admission of its quota policy. The commit of the claim rests on both.
- Work that is refused is blocked, so that it leaves the claimable work and costs nothing. That
  commit rests on the record that refused it, so no headroom that returns can overlook it.
- An execution without budgets and quota policy reads nothing for all of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.ids import budget_id_of, quota_policy_id_of
from flowfabric.contracts.states import BlockingReason
from flowfabric.core.commands import (
    CancelForBudgetArgs,
    CancelledForBudget,
    HeadroomSettled,
    HeldBack,
    HoldBackArgs,
    LetGo,
    LetGoArgs,
    ReadRoomArgs,
    RoomLeft,
    SettleBudgetHeadroomArgs,
    SettleQuotaHeadroomArgs,
)
from flowfabric.core.policies import adopt_policy
from flowfabric.core.records import (
    Admission,
    Blocker,
    Budget,
    Execution,
    QuotaPolicy,
    admission_identity,
    budget_identity,
    key_for,
    quota_identity,
)
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.rules.ending import cancel
from flowfabric.core.rules.quotas import has_concurrency_room, has_room, window_frees_at
from flowfabric.core.rules.reading import find
from flowfabric.core.rules.transitions import add_blocker, mark_transition, remove_blocker
from flowfabric.core.state import is_eligible, is_terminal
from flowfabric.core.vocabulary import BlockerKind, LeaseState

if TYPE_CHECKING:
    from flowfabric.contracts.policy import ExecutionPolicy
    from flowfabric.core.records import Key
    from flowfabric.core.work import Work

RECLAIM_LATER_MS: Final = 15_000
"""How long a lapsed lease is not reclaimed again after there was no headroom for it."""

LOOK_AGAIN_MS: Final = 5_000
"""When to look again after some were let go. One that is cancelled before its claim takes no room,
and nobody else would tell the others."""

WINDOW_STEP_MS: Final = 20
"""The shortest pause between two looks at a window that moves all the time."""

BUDGET_BREACHED: Final = "budget_exceeded"


def require_known(work: Work, policy: ExecutionPolicy | None, namespace: str) -> None:
    """Refuse a policy that names what is not there, so that a typing error is noticed at once.

    Args:
        work: what the rule may read.
        policy: as it was given, with names or ids.
        namespace: where they have to be.

    Raises:
        BudgetNotFound, QuotaPolicyNotFound: it does not exist, or belongs to another namespace.
    """
    if policy is None:
        return
    ids = {name: budget_id_of(namespace, name) for name in policy.budget_ids or ()}
    budgets = work.read_all(Budget, map(budget_identity, ids.values()))
    for (name, budget_id), budget in zip(ids.items(), budgets, strict=True):
        if budget is None or budget.namespace != namespace:
            raise errors.BudgetNotFound(name=name, budget_id=budget_id)
    if policy.quota_policy_id is not None:
        quota_policy_id = quota_policy_id_of(namespace, policy.quota_policy_id)
        quota = work.read(QuotaPolicy, quota_identity(quota_policy_id))
        if quota is None or quota.namespace != namespace:
            raise errors.QuotaPolicyNotFound(name=policy.quota_policy_id, quota_policy_id=quota_policy_id)


def admit(work: Work, execution: Execution) -> None:
    """Let a lease be given, and remember the admission that it uses. ``execution`` is a copy.

    Raises:
        BudgetNotFound, BudgetExceeded, QuotaPolicyNotFound, AdmissionMissing: in this order.
        RateLimitExceeded, ConcurrencyLimitExceeded: there is no admission and no room for one.
    """
    require_headroom(work, execution)
    policy = execution.policy
    if policy is not None and policy.quota_policy_id is not None and execution.admitted_round is None:
        execution.admitted_round = execution.lease_epoch + 1


def require_headroom(work: Work, execution: Execution) -> None:
    """Refuse a claim for which there is no headroom. See ``admit``."""
    policy = execution.policy
    if policy is None:
        return
    if policy.budget_ids:
        _require_open_budgets(work, execution, policy.budget_ids)
    if policy.quota_policy_id is not None and execution.admitted_round is None:
        _require_admission(work, execution, policy.quota_policy_id)


def _require_open_budgets(work: Work, execution: Execution, budget_ids: tuple[str, ...]) -> None:
    budgets = work.read_all(Budget, map(budget_identity, budget_ids))
    for budget_id, budget in zip(budget_ids, budgets, strict=True):
        if budget is None or budget.namespace != execution.namespace:
            raise errors.BudgetNotFound(budget_id=budget_id)
        if budget.closed_at is not None:
            raise errors.BudgetExceeded(
                budget_id=budget_id, name=budget.name, dimension=budget.closed_dimension
            )


def _require_admission(work: Work, execution: Execution, quota_policy_id: str) -> None:
    admission = work.read(Admission, admission_identity(quota_policy_id, execution.execution_id))
    if admission is not None and admission.round == execution.lease_epoch + 1:
        return
    quota = work.read(QuotaPolicy, quota_identity(quota_policy_id))
    if quota is None or quota.namespace != execution.namespace:
        raise errors.QuotaPolicyNotFound(quota_policy_id=quota_policy_id)
    if not quota.waiting or has_room(work, quota):
        raise errors.AdmissionMissing(quota_policy_id=quota_policy_id, execution_id=execution.execution_id)
    details = {"quota_policy_id": quota_policy_id, "name": quota.name}
    if not has_concurrency_room(quota):
        raise errors.ConcurrencyLimitExceeded(**details, concurrent_max=quota.concurrent_max)
    frees_at = window_frees_at(work, quota)
    raise errors.RateLimitExceeded(
        **details, requests_max=quota.requests_max, retry_after_ms=frees_at - work.now
    )


# Holding back and letting go


@rule(HoldBackArgs)
def hold_back(work: Work, args: HoldBackArgs) -> HeldBack:
    """Block an execution until there is headroom for it, if there is none now.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    execution = work.execution(args.execution_id)
    held = work.edit(execution)
    adopt_policy(held, args.policies.get(held.execution_kind))
    refusal = _refusal_of(work, held)
    lapsed = held.lease is not None and held.lease.state is not LeaseState.HELD
    granted = held.grant is not None and held.grant.expires_at > work.now
    if refusal is None or granted or not (lapsed or is_eligible(held)):
        work.discard()
        return HeldBack(action="room" if refusal is None else "gone")
    if lapsed:
        assert held.lease is not None
        held.lease = replace(held.lease, reclaimable_at=work.now + RECLAIM_LATER_MS)
        return HeldBack(action="later")
    blocker = _blocker_for(refusal)
    add_blocker(held, blocker)
    held.held_back = True
    mark_transition(work, held)
    return HeldBack(action="blocked", subject=_subject_of(blocker))


def _refusal_of(work: Work, execution: Execution) -> errors.FlowFabricError | None:
    """Why there is no headroom; None if there is, or if the quota policy was not asked yet."""
    try:
        require_headroom(work, execution)
    except errors.AdmissionMissing:
        return None
    except (errors.LimitExceeded, errors.NotFound) as refusal:
        return refusal
    return None


def _blocker_for(refusal: errors.FlowFabricError) -> Blocker:
    budget_id = refusal.details.get("budget_id")
    if budget_id is not None:
        return Blocker(
            kind=BlockerKind.BUDGET,
            reason=BlockingReason.WAITING_FOR_BUDGET,
            detail=_words(refusal, "budget", budget_id),
            waits_for=budget_id,
        )
    quota_policy_id = refusal.details["quota_policy_id"]
    return Blocker(
        kind=BlockerKind.QUOTA,
        reason=BlockingReason.WAITING_FOR_QUOTA,
        detail=_words(refusal, "quota policy", quota_policy_id),
        waits_for=quota_policy_id,
    )


def _subject_of(blocker: Blocker) -> Key:
    """The key of what the blocker waits for."""
    if blocker.kind is BlockerKind.BUDGET:
        return key_for(Budget, budget_identity(blocker.waits_for))
    return key_for(QuotaPolicy, quota_identity(blocker.waits_for))


def _words(refusal: errors.FlowFabricError, what: str, subject_id: str) -> str:
    """What operators read: which budget or policy it is, and what it lacks."""
    named = f"{what} {refusal.details.get('name') or subject_id}"
    if isinstance(refusal, errors.NotFound):
        return f"{named} does not exist"
    if isinstance(refusal, errors.BudgetExceeded):
        return f"{named}: the hard limit of {refusal.details['dimension']} is reached"
    if isinstance(refusal, errors.ConcurrencyLimitExceeded):
        return f"{named}: {refusal.details['concurrent_max']} are active"
    return f"{named}: {refusal.details['requests_max']} in one window"


@rule(LetGoArgs)
def let_go(work: Work, args: LetGoArgs) -> LetGo:
    """Take away the blocker that waits for this headroom. Other blockers stay."""
    execution = find(work, args)
    waiting = () if execution is None else execution.blockers
    kinds = [blocker.kind for blocker in waiting if blocker.waits_for == args.waits_for]
    if execution is None or not kinds:
        return LetGo(action="gone")
    execution = work.edit(execution)
    remove_blocker(execution, kinds[0])
    mark_transition(work, execution)
    return LetGo(action="let_go")


@rule(CancelForBudgetArgs)
def cancel_for_budget(work: Work, args: CancelForBudgetArgs) -> CancelledForBudget:
    """Cancel an execution that a breached budget is attached to."""
    execution = find(work, args)
    if execution is None or is_terminal(execution):
        return CancelledForBudget(action="gone")
    cancel(work, work.edit(execution), f"budget {args.budget_id} is spent", BUDGET_BREACHED)
    return CancelledForBudget(action="cancelled")


# Those that wait


@rule(
    SettleBudgetHeadroomArgs, subject=no_subject, reads=lambda args: (key_for(Budget, args.budget_identity),)
)
def settle_budget_headroom(work: Work, args: SettleBudgetHeadroomArgs) -> HeadroomSettled:
    """Note what was done, unless there is something new to do since it was begun."""
    budget = work.read(Budget, args.budget_identity)
    if budget is None or budget.turn != args.turn:
        return HeadroomSettled(action="busy")
    budget = work.edit(budget)
    if args.woken:
        budget.waking_at = None
    if args.cancelled:
        budget.cancelling_at = None
    return HeadroomSettled(action="done")


@rule(
    ReadRoomArgs,
    subject=no_subject,
    reads=lambda args: (key_for(QuotaPolicy, args.quota_identity),),
    query=True,
)
def read_room(work: Work, args: ReadRoomArgs) -> RoomLeft:
    """How many more would be admitted now, up to a page."""
    quota = work.read(QuotaPolicy, args.quota_identity)
    if quota is None:
        return RoomLeft(room=0, turn=0, waiting=False, due=False)
    most = args.page
    if quota.concurrent_max:
        most = min(most, max(0, quota.concurrent_max - quota.active))
    if quota.requests_max:
        most = min(most, quota.requests_max)
    full = (ahead for ahead in range(most) if window_frees_at(work, quota, ahead) > work.now)
    return RoomLeft(
        room=next(full, most),
        turn=quota.turn,
        waiting=quota.waiting,
        due=quota.waking_at is not None and quota.waking_at <= work.now,
    )


@rule(
    SettleQuotaHeadroomArgs,
    subject=no_subject,
    reads=lambda args: (key_for(QuotaPolicy, args.quota_identity),),
)
def settle_quota_headroom(work: Work, args: SettleQuotaHeadroomArgs) -> HeadroomSettled:
    """Note who was let go. A policy for which nobody seems to wait is looked at once more.

    From the commit that takes ``waiting`` away on nobody is held back any more, so a look after it
    cannot miss anyone.
    """
    quota = work.read(QuotaPolicy, args.quota_identity)
    if quota is None or quota.turn != args.turn:
        return HeadroomSettled(action="busy")
    quota = work.edit(quota)
    if args.more:
        quota.waiting = True
        quota.waking_at = _next_look(work, quota, args.let_go)
        return HeadroomSettled(action="done")
    if not quota.waiting:
        quota.waking_at = None
        return HeadroomSettled(action="done")
    quota.waiting = False
    quota.waking_at = work.now
    return HeadroomSettled(action="more")


def _next_look(work: Work, quota: QuotaPolicy, let_go: int) -> int | None:
    """When there may be room for others; None if only an admission that is given back makes some."""
    if not has_concurrency_room(quota):
        return None
    ahead = min(let_go, max(quota.requests_max - 1, 0))
    frees_at = window_frees_at(work, quota, ahead)
    if frees_at > work.now:
        again = max(frees_at, work.now + WINDOW_STEP_MS)
        return min(again, work.now + LOOK_AGAIN_MS) if let_go else again
    return work.now + LOOK_AGAIN_MS

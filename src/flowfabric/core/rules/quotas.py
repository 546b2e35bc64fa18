"""Quota policies: creating them, and admitting claims.

The rules this module keeps:

- ``active`` is the number of admissions on record.
- The ring of the latest admissions has as many places as the window may have admissions. The place
  that the next one takes holds the oldest that counts, so no window ever has more.
- An execution is held back only on a policy that is marked as ``waiting`` and has no room, and the
  commit that holds it back rests on the policy. So no admission that is given back can overlook it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from flowfabric import errors
from flowfabric.contracts.ids import quota_policy_id_of
from flowfabric.contracts.quotas import (
    AdmissionConcurrencyExceeded,
    AdmissionGranted,
    AdmissionRateExceeded,
    AdmissionReleased,
    AlreadyAdmitted,
    CheckAdmissionArgs,
    CheckAdmissionResult,
    CreateQuotaPolicyArgs,
    CreateQuotaPolicyResult,
    QuotaPolicyCreated,
    QuotaPolicyExists,
    QuotaPolicyLimits,
    ReadQuotaPolicyLimitsArgs,
    ReleaseAdmissionArgs,
    ReleaseAdmissionResult,
)
from flowfabric.core.commands import (
    AdmissionSettled,
    CorrectQuotaCounterArgs,
    CountersCorrected,
    ForgetGivenBackArgs,
    GiveAdmissionBackArgs,
    SettleAdmissionArgs,
)
from flowfabric.core.records import (
    Admission,
    Execution,
    GivenBack,
    QuotaPolicy,
    QuotaWindow,
    admission_identity,
    key_for,
    quota_identity,
)
from flowfabric.core.registry import execution_subject, no_subject, rule
from flowfabric.core.rules.acting import log_act, spelled
from flowfabric.core.rules.budgets import own_namespace
from flowfabric.core.state import is_eligible
from flowfabric.core.vocabulary import LeaseState

if TYPE_CHECKING:
    from flowfabric.core.records import Key
    from flowfabric.core.work import Work

INSTANTS_PER_PIECE: Final = 128
"""How many instants of the ring one record holds."""

ADMISSION_GRACE_MS: Final = 30_000
"""How long an admission may wait for the claim that it was given for."""


class NamesQuotaPolicy(Protocol):
    """A command about one quota policy."""

    @property
    def quota_policy_id(self) -> str:
        """Which one."""


def quota_subject(args: NamesQuotaPolicy) -> Key:
    """The subject of commands about one quota policy."""
    return key_for(QuotaPolicy, quota_identity(args.quota_policy_id))


def _admission_keys(args: CheckAdmissionArgs | ReleaseAdmissionArgs) -> tuple[Key, ...]:
    admission = admission_identity(args.quota_policy_id, args.execution_id)
    return (key_for(Admission, admission), execution_subject(args))


def find_quota(work: Work, quota_policy_id: str) -> QuotaPolicy | None:
    """The quota policy, or None if there is none in the caller's namespace."""
    quota = work.read(QuotaPolicy, quota_identity(quota_policy_id))
    namespace = work.envelope.namespace
    return None if quota is None or namespace not in (None, quota.namespace) else quota


def the_quota(work: Work, quota_policy_id: str) -> QuotaPolicy:
    """The quota policy with this id, in the caller's namespace.

    Raises:
        QuotaPolicyNotFound: there is none, or it belongs to another namespace.
    """
    quota = find_quota(work, quota_policy_id)
    if quota is None:
        raise errors.QuotaPolicyNotFound(quota_policy_id=quota_policy_id)
    return quota


# Creating and reading


@rule(CreateQuotaPolicyArgs, subject=quota_subject)
def create_quota_policy(work: Work, args: CreateQuotaPolicyArgs) -> CreateQuotaPolicyResult:
    """Create a quota policy. One that exists with the same limits stays as it is.

    Raises:
        InvalidInput: the namespace is not the caller's, or the id is not the one of the name.
        QuotaPolicyConflict: the id belongs to a policy with other limits.
    """
    namespace = own_namespace(work, args.namespace)
    if args.name and args.quota_policy_id != quota_policy_id_of(namespace, args.name):
        raise errors.InvalidInput(
            field="quota_policy_id", value=args.quota_policy_id, rule="the id of the name"
        )
    quota = QuotaPolicy(
        quota_policy_id=args.quota_policy_id,
        namespace=namespace,
        name=args.name,
        created_at=work.now,
        window_ms=args.window_seconds * 1_000,
        requests_max=args.max_requests_per_window,
        concurrent_max=args.max_concurrent,
        waking_at=work.now,
    )
    existing = work.read(QuotaPolicy, quota.identity)
    if existing is not None:
        if _definition(existing) != _definition(quota):
            raise errors.QuotaPolicyConflict(quota_policy_id=args.quota_policy_id, name=args.name)
        return QuotaPolicyExists(quota_policy_id=args.quota_policy_id)
    work.add(quota)
    log_act(
        work,
        "quota_policy_created",
        namespace=namespace,
        quota_policy_id=args.quota_policy_id,
        name=args.name,
        new=spelled({"requests_max": quota.requests_max, "concurrent_max": quota.concurrent_max}),
        window_ms=quota.window_ms,
    )
    return QuotaPolicyCreated(quota_policy_id=args.quota_policy_id)


def _definition(quota: QuotaPolicy) -> tuple[object, ...]:
    return quota.namespace, quota.name, quota.window_ms, quota.requests_max, quota.concurrent_max


@rule(ReadQuotaPolicyLimitsArgs, subject=quota_subject, query=True)
def read_quota_policy_limits(work: Work, args: ReadQuotaPolicyLimitsArgs) -> QuotaPolicyLimits | None:
    """The limits of a quota policy, or None if there is none."""
    quota = find_quota(work, args.quota_policy_id)
    if quota is None:
        return None
    return QuotaPolicyLimits(
        quota_policy_id=quota.quota_policy_id,
        name=quota.name,
        window_seconds=quota.window_ms // 1_000,
        max_requests_per_window=quota.requests_max,
        max_concurrent=quota.concurrent_max,
        active=quota.active,
        created_at=quota.created_at,
    )


# Room


def has_concurrency_room(quota: QuotaPolicy) -> bool:
    """Whether one more may be active."""
    return not quota.concurrent_max or quota.active < quota.concurrent_max


def window_frees_at(work: Work, quota: QuotaPolicy, ahead: int = 0) -> int:
    """From when on the window takes one more admission, after ``ahead`` others. 0 for at once.

    Raises:
        StoreCorrupt: a piece of the ring is gone. That is not the same as an empty window.
    """
    number = quota.admitted + ahead
    if not quota.requests_max or number < quota.requests_max:
        return 0
    piece, place = divmod(number % quota.requests_max, INSTANTS_PER_PIECE)
    identity = f"{quota.identity}/{piece}"
    window = work.read(QuotaWindow, identity)
    if window is None or place >= len(window.instants):
        raise errors.StoreCorrupt(record=key_for(QuotaWindow, identity))
    admitted_at = window.instants[place]
    # One that is still to come was written before the clock was set back by far. The clock is
    # believed again, and with it that nothing was admitted in the window that it shows.
    return 0 if admitted_at > work.now else admitted_at + quota.window_ms


def has_room(work: Work, quota: QuotaPolicy) -> bool:
    """Whether one more execution would be admitted now."""
    return has_concurrency_room(quota) and window_frees_at(work, quota) <= work.now


def _take_place_in_window(work: Work, quota: QuotaPolicy) -> None:
    """Write the instant of an admission over the one that no longer counts. ``quota`` is a copy."""
    if quota.requests_max:
        piece, place = divmod(quota.admitted % quota.requests_max, INSTANTS_PER_PIECE)
        window = work.read(QuotaWindow, f"{quota.identity}/{piece}")
        if window is None:
            window = QuotaWindow(
                quota_policy_id=quota.quota_policy_id, namespace=quota.namespace, piece=piece
            )
            work.add(window)
        window = work.edit(window)
        window.instants = (*window.instants[:place], work.now, *window.instants[place + 1 :])
    quota.admitted += 1


# Admitting


@rule(CheckAdmissionArgs, subject=quota_subject, reads=_admission_keys)
def check_admission(work: Work, args: CheckAdmissionArgs) -> CheckAdmissionResult:
    """Admit the next claim of an execution. Asking again for the same claim counts nothing.

    The commit rests on the execution. Whoever asks late, when another has claimed it meanwhile,
    would else take a place that nobody uses and that is missed until it is settled.

    Raises:
        QuotaPolicyNotFound, ExecutionNotFound: there is no such policy, or execution.
        InvalidQuotaSpec: the caller believes in other limits than the policy has.
        ExecutionNotEligible: the execution cannot be claimed now.
    """
    quota = the_quota(work, args.quota_policy_id)
    _refuse_other_limits(quota, args)
    claim_round = round_to_admit(work, quota, args.execution_id)
    identity = admission_identity(args.quota_policy_id, args.execution_id)
    admission = work.read(Admission, identity)
    if admission is not None and admission.round == claim_round:
        return AlreadyAdmitted()
    frees_at = window_frees_at(work, quota)
    if frees_at > work.now:
        _expect_waiting(work, quota, frees_at)
        spread_ms = round(work.envelope.random * (args.jitter_ms or 0))
        return AdmissionRateExceeded(retry_after_ms=frees_at - work.now + spread_ms)
    if admission is None and not has_concurrency_room(quota):
        _expect_waiting(work, quota, None)
        return AdmissionConcurrencyExceeded()
    quota = work.edit(quota)
    _take_place_in_window(work, quota)
    if admission is None:
        quota.active += 1
        quota.revision += 1
    work.add(
        Admission(
            quota_policy_id=args.quota_policy_id,
            namespace=quota.namespace,
            admitted_id=args.execution_id,
            round=claim_round,
            admitted_at=work.now,
            settle_at=work.now + ADMISSION_GRACE_MS,
        )
    )
    return AdmissionGranted()


def _refuse_other_limits(quota: QuotaPolicy, args: CheckAdmissionArgs) -> None:
    named = {
        "window_seconds": (args.window_seconds, quota.window_ms // 1_000),
        "rate_limit": (args.rate_limit, quota.requests_max),
        "concurrency_cap": (args.concurrency_cap, quota.concurrent_max),
    }
    for field, (asked, actual) in named.items():
        if asked not in (None, actual):
            raise errors.InvalidQuotaSpec(
                field=field, value=asked, rule=f"the policy's own, which is {actual}"
            )


def round_to_admit(work: Work, quota: QuotaPolicy, execution_id: str) -> int:
    """Which claim of an execution is asked for: the next one, or the one that it runs under.

    Raises:
        ExecutionNotFound: there is no such execution in the namespace of the policy.
        ExecutionNotEligible: it cannot be claimed now.
    """
    execution = execution_under(work, quota, execution_id)
    _require_claimable(execution)
    return execution.lease_epoch + 1 if execution.admitted_round is None else execution.admitted_round


def execution_under(
    work: Work, quota: QuotaPolicy, execution_id: str, *, observed: bool = False
) -> Execution:
    """The execution, which has to be in the namespace of the policy.

    Raises:
        ExecutionNotFound: there is none there.
    """
    execution = work.execution(execution_id, observed=observed)
    if execution.namespace != quota.namespace:
        raise errors.ExecutionNotFound(execution_id=execution_id)
    return execution


def _require_claimable(execution: Execution) -> None:
    """Refuse what no claim could use an admission for, unless it runs with one already.

    Raises:
        ExecutionNotEligible: it runs, waits for something else, or has ended.
    """
    lapsed = execution.lease is not None and execution.lease.state is not LeaseState.HELD
    if execution.admitted_round is None and not (lapsed or is_eligible(execution)):
        raise errors.ExecutionNotEligible(
            execution_id=execution.execution_id, lifecycle_phase=execution.phase
        )


def _expect_waiting(work: Work, quota: QuotaPolicy, frees_at: int | None) -> None:
    """Have those looked after that are held back from now on, when the window moves at the latest."""
    sooner = frees_at is not None and (quota.waking_at is None or frees_at < quota.waking_at)
    if quota.waiting and not sooner:
        return
    quota = work.edit(quota)
    quota.waiting = True
    quota.turn += 1
    if sooner:
        quota.waking_at = frees_at


# Giving back


@rule(ReleaseAdmissionArgs, subject=quota_subject, reads=_admission_keys)
def release_admission(work: Work, args: ReleaseAdmissionArgs) -> ReleaseAdmissionResult:
    """Give an admission back. The place in the window stays taken: the admission has happened.

    Raises:
        QuotaPolicyNotFound, ExecutionNotFound: there is no such policy, or execution.
    """
    quota = the_quota(work, args.quota_policy_id)
    execution_under(work, quota, args.execution_id, observed=True)
    admission = work.read(Admission, admission_identity(args.quota_policy_id, args.execution_id))
    if admission is not None:
        _remove_admission(work, quota, admission)
    return AdmissionReleased()


def _remove_admission(work: Work, quota: QuotaPolicy, admission: Admission) -> None:
    work.remove(admission)
    quota = work.edit(quota)
    quota.active -= 1
    quota.revision += 1
    if quota.waiting:
        quota.waking_at = work.now
        quota.turn += 1


@rule(
    GiveAdmissionBackArgs,
    subject=no_subject,
    reads=lambda args: (key_for(GivenBack, args.given_back_id),),
)
def give_admission_back(work: Work, args: GiveAdmissionBackArgs) -> AdmissionSettled:
    """Carry the end of a lease to the quota policy. A newer admission of the execution stays."""
    given_back = work.observe(GivenBack, args.given_back_id)
    if given_back is None:
        return AdmissionSettled(action="gone")
    quota = work.read(QuotaPolicy, quota_identity(given_back.quota_policy_id))
    identity = admission_identity(given_back.quota_policy_id, given_back.execution_id)
    admission = work.read(Admission, identity)
    if quota is None or admission is None or admission.round != given_back.round:
        return AdmissionSettled(action="kept")
    _remove_admission(work, quota, admission)
    return AdmissionSettled(action="released")


@rule(ForgetGivenBackArgs, subject=no_subject, reads=lambda args: (key_for(GivenBack, args.given_back_id),))
def forget_given_back(work: Work, args: ForgetGivenBackArgs) -> AdmissionSettled:
    """Remove the message once the quota policy knows what it says."""
    given_back = work.read(GivenBack, args.given_back_id)
    if given_back is None:
        return AdmissionSettled(action="gone")
    work.remove(given_back)
    return AdmissionSettled(action="forgotten")


@rule(SettleAdmissionArgs, subject=no_subject, reads=lambda args: (key_for(Admission, args.admission_id),))
def settle_admission(work: Work, args: SettleAdmissionArgs) -> AdmissionSettled:
    """See whether an admission was used, and take it back if it was not.

    The commit rests on the execution, so that a claim that uses the admission at this moment wins.
    """
    admission = work.read(Admission, args.admission_id)
    if admission is None or admission.settle_at is None:
        return AdmissionSettled(action="gone")
    if admission.settle_at > work.now:
        return AdmissionSettled(action="kept")
    execution = work.read(Execution, admission.admitted_id)
    if execution is not None and _uses(execution, admission):
        work.edit(admission).settle_at = None
        return AdmissionSettled(action="confirmed")
    grant = None if execution is None else execution.grant
    if grant is not None and grant.expires_at > work.now:
        work.edit(admission).settle_at = grant.expires_at
        return AdmissionSettled(action="kept")
    quota = work.read(QuotaPolicy, quota_identity(admission.quota_policy_id))
    if quota is None:
        raise errors.StoreCorrupt(record=key_for(QuotaPolicy, quota_identity(admission.quota_policy_id)))
    _remove_admission(work, quota, admission)
    return AdmissionSettled(action="released")


def _uses(execution: Execution, admission: Admission) -> bool:
    """Whether the execution runs with this admission. Only its own policy is told when it ends."""
    policy = execution.policy
    own = None if policy is None else policy.quota_policy_id
    return execution.admitted_round == admission.round and own == admission.quota_policy_id


@rule(CorrectQuotaCounterArgs, subject=no_subject, reads=lambda args: (quota_subject(args),))
def correct_quota_counter(work: Work, args: CorrectQuotaCounterArgs) -> CountersCorrected:
    """Set the counter to the number of admissions, unless either has changed since they were counted."""
    quota = the_quota(work, args.quota_policy_id)
    if quota.revision != args.revision:
        return CountersCorrected(action="busy")
    if quota.active == args.active:
        return CountersCorrected(action="consistent")
    quota = work.edit(quota)
    quota.active = args.active
    quota.revision += 1
    quota.waking_at = work.now
    quota.turn += 1
    return CountersCorrected(action="corrected")

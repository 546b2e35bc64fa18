"""Quota policies: how many claims there may be in a sliding window, and how many at the same time."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.ids import (
    Amount,
    DurationMs,
    ExecutionId,
    Namespace,
    OptionalName,
    QuotaPolicyId,
    TimestampMs,
)
from flowfabric.contracts.limits import QUOTA_JITTER_MS_MAX, QUOTA_REQUESTS_MAX, QUOTA_WINDOW_S_MAX
from flowfabric.errors import InvalidQuotaSpec

JitterMs: TypeAlias = Annotated[int, Meta(ge=0, le=QUOTA_JITTER_MS_MAX)]


class QuotaPolicyCreated(Outcome, tag="Created"):
    """The quota policy exists now."""

    quota_policy_id: QuotaPolicyId


class QuotaPolicyExists(Outcome, tag="AlreadySatisfied"):
    """The same quota policy existed before."""

    quota_policy_id: QuotaPolicyId


CreateQuotaPolicyResult: TypeAlias = QuotaPolicyCreated | QuotaPolicyExists


class CreateQuotaPolicyArgs(Command[CreateQuotaPolicyResult]):
    """Create a quota policy. A limit of 0 means that there is none.

    A policy with a name has the id that ``quota_policy_id_of`` makes of the namespace and the name.
    """

    quota_policy_id: QuotaPolicyId
    window_seconds: Amount
    max_requests_per_window: Amount
    max_concurrent: Amount
    namespace: Namespace | None = None
    """The caller's own when absent."""
    name: OptionalName = ""
    now: TimestampMs | None = None

    def validate(self) -> None:
        """Check the window and the number of requests in it."""
        if not 1 <= self.window_seconds <= QUOTA_WINDOW_S_MAX:
            rule = f"from 1 to {QUOTA_WINDOW_S_MAX}"
            raise InvalidQuotaSpec(field="window_seconds", value=self.window_seconds, rule=rule)
        if self.max_requests_per_window > QUOTA_REQUESTS_MAX:
            rule = f"at most {QUOTA_REQUESTS_MAX}"
            raise InvalidQuotaSpec(
                field="max_requests_per_window", value=self.max_requests_per_window, rule=rule
            )


class QuotaPolicyLimits(Value):
    """The limits of a quota policy, and how much of them is taken."""

    quota_policy_id: QuotaPolicyId
    window_seconds: Amount
    max_requests_per_window: Amount
    max_concurrent: Amount
    active: Amount
    """How many are admitted now."""
    name: str = ""
    created_at: TimestampMs | None = None

    @property
    def unlimited(self) -> bool:
        """Whether the policy admits everything."""
        return not (self.max_requests_per_window or self.max_concurrent)


class ReadQuotaPolicyLimitsArgs(Command[QuotaPolicyLimits | None]):
    """Read a quota policy; None if there is none."""

    quota_policy_id: QuotaPolicyId


class AdmissionGranted(Outcome, tag="Admitted"):
    """The execution may be claimed once."""


class AlreadyAdmitted(Outcome, tag="AlreadyAdmitted"):
    """The execution was admitted to this claim before. Nothing was counted again."""


class AdmissionRateExceeded(Outcome, tag="RateExceeded"):
    """The window is full."""

    retry_after_ms: DurationMs
    """When the window has room again, counted from now."""


class AdmissionConcurrencyExceeded(Outcome, tag="ConcurrencyExceeded"):
    """As many are admitted as may be at the same time."""


CheckAdmissionResult: TypeAlias = (
    AdmissionGranted | AlreadyAdmitted | AdmissionRateExceeded | AdmissionConcurrencyExceeded
)


class CheckAdmissionArgs(Command[CheckAdmissionResult]):
    """Admit the next claim of an execution, if the quota policy has room for it.

    The policy's own limits decide. A caller that names limits has to name the same ones.
    """

    quota_policy_id: QuotaPolicyId
    execution_id: ExecutionId
    now: TimestampMs | None = None
    window_seconds: Amount | None = None
    rate_limit: Amount | None = None
    concurrency_cap: Amount | None = None
    jitter_ms: JitterMs | None = None
    """Up to so much is added to ``retry_after_ms`` by chance, to spread those who are refused."""


class AdmissionReleased(Outcome, tag="Released"):
    """The execution is not counted as running any more. The window remembers that it was admitted."""


ReleaseAdmissionResult: TypeAlias = AdmissionReleased


class ReleaseAdmissionArgs(Command[ReleaseAdmissionResult]):
    """Give an admission back. Doing so twice is harmless."""

    quota_policy_id: QuotaPolicyId
    execution_id: ExecutionId


class QuotaReconciled(Outcome, tag="Reconciled"):
    """The counter was ``consistent`` with the admissions, was ``corrected``, or is ``busy``."""

    action: str
    active: Amount


class ReconcileQuotaCountersArgs(Command[QuotaReconciled]):
    """Count the admissions, and correct the counter if it differs."""

    quota_policy_id: QuotaPolicyId

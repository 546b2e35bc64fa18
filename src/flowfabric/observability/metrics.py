"""Prometheus metrics of one process: what its commands, commits, sweeps and requests came to.

``Metrics`` is a layer for the door and an observer for the engine::

    metrics = Metrics()
    engine = Engine(store, layers=[metrics.layer], observer=metrics)

The rules this module keeps:

- Nothing names an execution, a flow or a person. What users name (lanes, dimensions) is cut off
  after ``NAMES_MAX`` different ones; later ones are counted together, as ``OTHER``.
- Counting never waits and never fails a command.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from flowfabric import errors
from flowfabric.contracts.budgets import (
    RecordSpendArgs,
    ReportUsageArgs,
    UsageHardBreach,
    UsageSoftBreach,
)
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    CompleteExecutionArgs,
    ExecutionExpired,
    ExpireExecutionArgs,
    FailExecutionArgs,
    RetryScheduled,
)
from flowfabric.contracts.flows import AddEdgesArgs, SetEdgeGroupPolicyArgs, SubmitFlowArgs
from flowfabric.contracts.ids import minted_at_ms
from flowfabric.contracts.leases import ClaimBatchArgs, RenewLeaseArgs
from flowfabric.contracts.quotas import (
    AdmissionConcurrencyExceeded,
    AdmissionRateExceeded,
    CheckAdmissionArgs,
)
from flowfabric.engine.layers import Metered

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec.structs import StructConfig

    from flowfabric.contracts.base import Command
    from flowfabric.contracts.flows import EdgeDependencyPolicy
    from flowfabric.contracts.leases import ClaimedWork
    from flowfabric.engine.layers import Door
    from flowfabric.stores.base import Durability

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "OTHER"
"""What is counted together: lanes beyond the first hundred, verbs that nobody knows."""
UNKNOWN: Final = "unknown"
"""A lane that this process was not told of, a path that no route has."""
NAMES_MAX: Final = 100
CLAIMS_MAX: Final = 65_536
"""How many claims are remembered until they end; of more, the oldest are forgotten."""
VERBS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
DURABILITY_LEVELS: Final = {"D0": 0, "D1": 1, "D2": 2, "D3": 3}

QUICK_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LASTING_S: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600, 14_400, 86_400, 604_800)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
EVENTS: Final = (0, 1, 10, 100, 1_000, 10_000, 100_000)


class Claim(NamedTuple):
    """What is remembered of a claim until its attempt ends."""

    lane: str
    claimed_at: float
    """On this process's own clock."""
    waited_s: float | None
    """From the submission to the claim, if the id of the execution tells when it was made."""


class Definition(NamedTuple):
    """What a metric is, for the reference page and for whoever draws it."""

    name: str
    """As it is scraped; a histogram also has ``_bucket``, ``_sum`` and ``_count`` behind it."""
    kind: str
    labels: tuple[str, ...]
    meaning: str


class Names:
    """Lets the first ``NAMES_MAX`` names through, and calls all others ``OTHER``."""

    def __init__(self, most: int = NAMES_MAX) -> None:
        self._most = most
        self._known: set[str] = set()

    @property
    def known(self) -> frozenset[str]:
        """The names that were let through."""
        return frozenset(self._known)

    def of(self, name: str) -> str:
        """The name to count under."""
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(name)
        return name


class Measured(Metered):
    """The layer that counts commands and what their answers mean."""

    def __init__(self, inner: Door, metrics: Metrics) -> None:
        super().__init__(inner, metrics)
        self._metrics = metrics

    def report(self, command: Command[Any], answer: object, elapsed_s: float) -> None:
        """Count one command."""
        super().report(command, answer, elapsed_s)
        self._metrics.answered(command, answer, elapsed_s)


class Metrics:
    """The metrics of one process.

    Args:
        registry: where they are registered; one of their own when absent.
        clock: seconds that only go forward.
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self.definitions: list[Definition] = []
        self._clock = clock
        self._lanes = Names()
        self._dimensions = Names()
        self._calls: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._answers: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._claims: OrderedDict[str, Claim] = OrderedDict()
        self._meanings: dict[type[Command[Any]], Callable[[Any, Any, float], None]] = {
            ClaimBatchArgs: self._claimed,
            RenewLeaseArgs: self._renewed,
            CompleteExecutionArgs: self._completed,
            FailExecutionArgs: self._failed,
            ExpireExecutionArgs: self._expired,
            CancelExecutionArgs: self._cancelled,
            ReportUsageArgs: self._spent,
            RecordSpendArgs: self._spent,
            CheckAdmissionArgs: self._asked_for_admission,
            SetEdgeGroupPolicyArgs: self._joined,
            AddEdgesArgs: self._joined_many,
            SubmitFlowArgs: self._joined_many,
        }
        self._define_commands()
        self._define_attempts()
        self._define_engine()
        self._define_server()

    def layer(self, inner: Door) -> Door:
        """Wrap a door so that what passes it is counted."""
        return Measured(inner, self)

    def observe_process(self) -> None:
        """Also tell of the process itself: memory, processor time, open files, garbage collection."""
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def render(self) -> bytes:
        """Everything, in the text format 0.0.4."""
        return generate_latest(self.registry)

    # Definitions

    def _define_commands(self) -> None:
        self._operations = self._counter(
            "ff_operation",
            "Commands, by what came of them: ok, or the code of the error.",
            "operation",
            "outcome",
        )
        self._errors = self._counter(
            "ff_error", "Commands that were refused or failed, by the code of the error.", "kind"
        )
        self._operation_time = self._histogram(
            "ff_operation_duration_seconds", "How long commands took.", QUICK_S, "operation"
        )
        self._budget_hits = self._counter(
            "ff_budget_hit", "Reports of usage that passed a limit of a budget.", "dimension"
        )
        self._quota_hits = self._counter(
            "ff_quota_hit", "Claims that a quota policy did not admit: rate or concurrency.", "reason"
        )
        self._joins = self._counter(
            "ff_edge_group_policy", "Joins that were given a policy: all_of, any_of or quorum.", "policy"
        )

    def _define_attempts(self) -> None:
        self._claim_time = self._histogram(
            "ff_claim_from_grant_duration_seconds",
            "How long the request took that claimed an execution, once for each execution.",
            QUICK_S,
            "lane",
        )
        self._renewals = self._counter("ff_lease_renewal", "Renewals of leases: ok or error.", "outcome")
        self._outcomes = self._counter(
            "ff_attempt_outcome",
            "Ends of attempts: ok, error, timeout, cancelled, or retry where another attempt follows.",
            "lane",
            "outcome",
        )
        self._running_time = self._histogram(
            "ff_claim_to_complete_seconds", "From the claim to the end of the attempt.", LASTING_S, "lane"
        )
        self._whole_time = self._histogram(
            "ff_submit_to_complete_seconds",
            "From the submission to the completion, of executions whose id tells when they were submitted.",
            LASTING_S,
            "lane",
        )
        self._at_capacity = self._counter(
            "ff_worker_at_capacity", "Times the worker had no free slot left after it had claimed."
        )

    def _define_engine(self) -> None:
        self._commits = self._counter(
            "ff_commit", "Commits, by what came of them: committed or conflict.", "outcome"
        )
        self._commit_time = self._histogram("ff_commit_duration_seconds", "How long commits took.", QUICK_S)
        self._commit_size = self._histogram(
            "ff_commit_batch_size", "How many commands a commit carried.", SIZES
        )
        self._behind = self._histogram(
            "ff_event_log_lag_events", "How far readers of the log of events were behind its end.", EVENTS
        )
        self._cycles = self._counter("ff_scanner_cycle", "Sweeps of the background duties.", "scanner")
        self._cycle_time = self._histogram(
            "ff_scanner_cycle_duration_seconds", "How long sweeps took.", QUICK_S, "scanner"
        )
        self._swept = self._counter("ff_scanner_entries", "What sweeps found to be due.", "scanner")
        self._failed_cycles = self._counter("ff_scanner_failure", "Sweeps that failed.", "scanner")
        self._durability = self._gauge(
            "ff_store_durability_level",
            "What an acknowledged commit survives: 0 nothing, 1 a killed process, 2 power loss, "
            "3 the loss of the host.",
            "store",
        )

    def _define_server(self) -> None:
        self._requests = self._counter(
            "ff_http_requests", "Requests, by the template of their path.", "method", "path", "status"
        )
        self._request_time = self._histogram(
            "ff_http_request_duration_seconds", "How long requests took.", QUICK_S, "method", "path", "status"
        )
        self._waiting = self._gauge(
            "ff_http_requests_waiting", "Requests that wait for something to happen: claims, tails, changes."
        )
        self._late_ends = self._counter(
            "ff_shutdown_timeout",
            "Ends of the server at which requests were cut off, because they took too long.",
        )

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        self.definitions.append(Definition(f"{name}_total", "counter", labels, meaning))
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        self.definitions.append(Definition(name, "gauge", labels, meaning))
        return Gauge(name, meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        self.definitions.append(Definition(name, "histogram", labels, meaning))
        return Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)

    # Commands

    def record_call(self, method: str, elapsed_s: float, outcome: str) -> None:
        """One command was answered."""
        answered, time = self._calls.get((method, outcome)) or self._call(method, outcome)
        answered.inc()
        time.observe(elapsed_s)
        if outcome != "ok":
            self._errors.labels(outcome).inc()

    def _call(self, method: str, outcome: str) -> tuple[Counter, Histogram]:
        """What counts such a command, kept at hand: to look it up takes longer than to count."""
        found = self._operations.labels(method, outcome), self._operation_time.labels(method)
        self._calls[method, outcome] = found
        return found

    def answered(self, command: Command[Any], answer: object, elapsed_s: float) -> None:
        """Count what the answer to a command means for attempts, budgets and flows."""
        count = self._meanings.get(type(command))
        if count is not None:
            count(command, answer, elapsed_s)

    def _claimed(self, command: ClaimBatchArgs, answer: Any, elapsed_s: float) -> None:
        if isinstance(answer, BaseException):
            return
        for work in answer.claims:
            lane = self._lanes.of(work.lane_id)
            self._claim_time.labels(lane).observe(elapsed_s)
            self._claims[work.execution_id] = Claim(lane, self._clock(), _waited_s(work))
            if len(self._claims) > CLAIMS_MAX:
                self._claims.popitem(last=False)

    def _renewed(self, command: RenewLeaseArgs, answer: Any, elapsed_s: float) -> None:
        self._renewals.labels("error" if isinstance(answer, BaseException) else "ok").inc()

    def _completed(self, command: CompleteExecutionArgs, answer: Any, elapsed_s: float) -> None:
        if isinstance(answer, BaseException):
            return
        claim = self._ended(command.execution_id, "ok")
        if claim is None:
            return
        running_s = self._clock() - claim.claimed_at
        self._running_time.labels(claim.lane).observe(running_s)
        if claim.waited_s is not None:
            self._whole_time.labels(claim.lane).observe(claim.waited_s + running_s)

    def _failed(self, command: FailExecutionArgs, answer: Any, elapsed_s: float) -> None:
        if not isinstance(answer, BaseException):
            self._ended(command.execution_id, "retry" if isinstance(answer, RetryScheduled) else "error")

    def _expired(self, command: ExpireExecutionArgs, answer: Any, elapsed_s: float) -> None:
        if isinstance(answer, (ExecutionExpired, RetryScheduled)):
            self._ended(command.execution_id, "timeout")

    def _cancelled(self, command: CancelExecutionArgs, answer: Any, elapsed_s: float) -> None:
        if not isinstance(answer, BaseException):
            self._ended(command.execution_id, "cancelled")

    def _ended(self, execution_id: str, outcome: str) -> Claim | None:
        claim = self._claims.pop(execution_id, None)
        self._outcomes.labels(UNKNOWN if claim is None else claim.lane, outcome).inc()
        return claim

    def _spent(self, command: Command[Any], answer: Any, elapsed_s: float) -> None:
        if isinstance(answer, (UsageSoftBreach, UsageHardBreach)):
            self._budget_hits.labels(self._dimensions.of(answer.dimension)).inc()

    def _asked_for_admission(self, command: CheckAdmissionArgs, answer: Any, elapsed_s: float) -> None:
        if isinstance(answer, (AdmissionRateExceeded, errors.RateLimitExceeded)):
            self._quota_hits.labels("rate").inc()
        elif isinstance(answer, (AdmissionConcurrencyExceeded, errors.ConcurrencyLimitExceeded)):
            self._quota_hits.labels("concurrency").inc()

    def _joined(self, command: SetEdgeGroupPolicyArgs, answer: Any, elapsed_s: float) -> None:
        if not isinstance(answer, BaseException):
            self._joins.labels(_tag_of(command.policy)).inc()

    def _joined_many(self, command: AddEdgesArgs | SubmitFlowArgs, answer: Any, elapsed_s: float) -> None:
        if not isinstance(answer, BaseException):
            for group in command.groups:
                self._joins.labels(_tag_of(group.policy)).inc()

    # The engine

    def committed(self, commands: int, elapsed_s: float) -> None:
        """Count a commit."""
        self._commits.labels("committed").inc()
        self._commit_time.observe(elapsed_s)
        self._commit_size.observe(commands)

    def conflicted(self, commands: int, elapsed_s: float) -> None:
        """Count a commit that changed nothing."""
        self._commits.labels("conflict").inc()
        self._commit_time.observe(elapsed_s)

    def swept(self, duty: str, entries: int, elapsed_s: float) -> None:
        """Count a sweep."""
        self._cycles.labels(duty).inc()
        self._cycle_time.labels(duty).observe(elapsed_s)
        self._swept.labels(duty).inc(entries)

    def sweep_failed(self, duty: str) -> None:
        """Count a sweep that failed."""
        self._failed_cycles.labels(duty).inc()

    def tailed(self, events_behind: int) -> None:
        """Count a page of the log of events by how far behind its end is."""
        self._behind.observe(events_behind)

    def attested(self, durability: Durability) -> None:
        """Keep what the store's commits survive."""
        self._durability.labels(durability.store).set(DURABILITY_LEVELS.get(durability.level, 0))

    # The worker and the server

    def at_capacity(self) -> None:
        """Count that a worker has no free slot left."""
        self._at_capacity.inc()

    def requested(self, method: str, path: str | None, status: int, elapsed_s: float) -> None:
        """Count an HTTP request by the template of its path, never by the path itself."""
        verb, template = method if method in VERBS else OTHER, path or UNKNOWN
        answered, time = self._answers.get((verb, template, status)) or self._answer(verb, template, status)
        answered.inc()
        time.observe(elapsed_s)

    def _answer(self, verb: str, template: str, status: int) -> tuple[Counter, Histogram]:
        """What counts such an answer, kept at hand."""
        labels = (verb, template, str(status))
        found = self._requests.labels(*labels), self._request_time.labels(*labels)
        self._answers[verb, template, status] = found
        return found

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Tell how many requests wait, by asking this."""
        self._waiting.set_function(count)

    def ended_late(self) -> None:
        """Count that requests were cut off when the server ended."""
        self._late_ends.inc()


def _waited_s(work: ClaimedWork) -> float | None:
    """Seconds from the submission to the claim, if the id tells when it was made."""
    made_at_ms = minted_at_ms(work.execution_id)
    if made_at_ms is None:
        return None
    return max(0, work.lease_expires_at - work.lease_ttl_ms - made_at_ms) / 1_000


def _tag_of(policy: EdgeDependencyPolicy) -> str:
    """The word for a join policy."""
    config: StructConfig = type(policy).__struct_config__
    return str(config.tag)

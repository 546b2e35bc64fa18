"""The execution policy: retries, timeouts, suspension, routing, streams, and its parsing.

A policy field is honoured or refused with ``invalid_policy_json``, never ignored. These are
refused: ``fallback_policy``, ``preferred_locality`` and ``isolation_level`` of
``routing_requirements``, and names that no policy has.
``priority`` and ``delay_until`` apply when the create command leaves its own unset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from flowfabric.contracts.base import Value
from flowfabric.contracts.ids import (
    Amount,
    DurationMs,
    Name,
    OptionalName,
    PositiveMs,
    Priority,
    TimestampMs,
)
from flowfabric.contracts.limits import (
    BUDGETS_PER_EXECUTION_MAX,
    CAPS_MAX_BYTES,
    CAPS_MAX_TOKENS,
    CATEGORIES_MAX,
    JSON_CHARS_MAX,
    RECLAIM_COUNT_MAX,
    REPLAY_COUNT_MAX,
    RETRIES_DEFAULT,
    SIGNALS_PER_EXECUTION_MAX,
    STREAM_RETENTION_MAXLEN,
    U32_MAX,
)
from flowfabric.errors import CapabilityMismatch, InvalidCapabilities, InvalidPolicyJson

_CONTROL_OR_WHITESPACE = re.compile(r"[\x00-\x20\x7f]")

Tally: TypeAlias = Annotated[int, Meta(ge=0, le=U32_MAX)]


class TimeoutBehavior(StrEnum):
    """What happens when a suspension's deadline strikes."""

    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"
    AUTO_RESUME_WITH_TIMEOUT_SIGNAL = "auto_resume_with_timeout_signal"
    ESCALATE = "escalate"


class DurabilityMode(StrEnum):
    """How soon a stream's frames must be on disk. Both are on disk before they are acknowledged."""

    BUFFERED = "buffered"
    DURABLE = "durable"


class FixedBackoff(Value, tag_field="type", tag="fixed"):
    """Wait the same time before every retry."""

    delay_ms: DurationMs = 1_000


class ExponentialBackoff(Value, tag_field="type", tag="exponential"):
    """Wait longer before each retry, up to a maximum."""

    initial_delay_ms: DurationMs = 1_000
    max_delay_ms: DurationMs = 60_000
    multiplier: Annotated[float, Meta(ge=1.0, le=1_000.0)] = 2.0
    jitter: bool = False


Backoff: TypeAlias = FixedBackoff | ExponentialBackoff


class RetryPolicy(Value):
    """How failures are retried. No categories means that every failure is retried."""

    max_retries: Tally = RETRIES_DEFAULT
    backoff: Backoff = ExponentialBackoff()
    retryable_categories: Annotated[tuple[OptionalName, ...], Meta(max_length=CATEGORIES_MAX)] = ()


class TimeoutPolicy(Value):
    """How long an attempt and the whole execution may take."""

    attempt_timeout_ms: PositiveMs | None = None
    execution_deadline_ms: PositiveMs | None = None
    max_reclaim_count: Tally = RECLAIM_COUNT_MAX


class SuspensionPolicy(Value):
    """What a suspension does that names no timeout of its own."""

    default_timeout_ms: DurationMs | None = None
    timeout_behavior: TimeoutBehavior = TimeoutBehavior.FAIL


class RoutingRequirements(Value):
    """What a worker must be able to do."""

    required_capabilities: tuple[str, ...] = ()


class StreamPolicy(Value):
    """How the frame streams of an execution are kept."""

    durability_mode: DurabilityMode = DurabilityMode.BUFFERED
    retention_maxlen: Tally = STREAM_RETENTION_MAXLEN
    retention_ttl_ms: PositiveMs | None = None
    """How long after its end the execution, and its streams with it, is kept at least."""


class ExecutionPolicy(Value):
    """How one execution is to be treated. The execution's policy wins over the handler's."""

    priority: Priority = 0
    delay_until: TimestampMs | None = None
    retry_policy: RetryPolicy | None = None
    timeout_policy: TimeoutPolicy | None = None
    max_reclaim_count: Tally | None = None
    suspension_policy: SuspensionPolicy | None = None
    max_replay_count: Tally = REPLAY_COUNT_MAX
    routing_requirements: RoutingRequirements | None = None
    dedup_window_ms: DurationMs | None = None
    stream_policy: StreamPolicy | None = None
    max_signals_per_execution: Amount = SIGNALS_PER_EXECUTION_MAX
    budget_ids: Annotated[tuple[Name, ...], Meta(max_length=BUDGETS_PER_EXECUTION_MAX)] | None = None
    """Ids or names of the budgets that must have headroom before the execution is claimed."""
    quota_policy_id: Name | None = None
    """Id or name of the quota policy that must admit each claim of the execution."""

    @property
    def reclaim_cap(self) -> int:
        """How often the execution may be reclaimed; the top-level field wins."""
        if self.max_reclaim_count is not None:
            return self.max_reclaim_count
        timeouts = self.timeout_policy
        return RECLAIM_COUNT_MAX if timeouts is None else timeouts.max_reclaim_count

    @property
    def required_capabilities(self) -> tuple[str, ...]:
        """What a worker must be able to do, sorted."""
        routing = self.routing_requirements
        return () if routing is None else tuple(sorted(set(routing.required_capabilities)))


def parse_policy(text: str | bytes) -> ExecutionPolicy | None:
    """Parse a policy from JSON. Blank text, ``null`` and ``{}`` mean that there is none.

    Raises:
        InvalidPolicyJson: the text is not JSON, or a field cannot be honoured.
        InvalidCapabilities: the required capabilities break a rule.
    """
    return policy_from_builtins(_decoded(text))


def parse_retry_policy(text: str) -> RetryPolicy | None:
    """Parse a retry policy from JSON. Blank text, ``null`` and ``{}`` mean that there is none.

    Raises:
        InvalidPolicyJson: the text is not a retry policy, or a field cannot be honoured.
    """
    raw = _decoded(text)
    if raw == {}:
        return None
    policy = policy_from_builtins({"retry_policy": raw})
    return None if policy is None else policy.retry_policy


def _decoded(text: str | bytes) -> Any:
    if not text.strip():
        return None
    if len(text) > JSON_CHARS_MAX:
        raise _policy_error("policy", "too_long")
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise _policy_error("policy", "malformed") from error


def policy_from_builtins(raw: Any) -> ExecutionPolicy | None:
    """Make a policy from what a JSON decoder returns.

    Raises:
        InvalidPolicyJson: a field cannot be honoured.
        InvalidCapabilities: the required capabilities break a rule.
    """
    if raw is None or raw == {}:
        return None
    if not isinstance(raw, dict):
        raise _policy_error("policy", "not_object")
    raw = _normalise_routing(raw)
    _refuse_unknown(raw)
    try:
        return msgspec.convert(raw, ExecutionPolicy)
    except msgspec.ValidationError as error:
        raise _policy_error("policy", f"malformed: {error}") from error


def _normalise_routing(raw: dict[str, Any]) -> dict[str, Any]:
    routing = raw.get("routing_requirements")
    if routing is None:
        return raw
    if not isinstance(routing, dict):
        raise _policy_error("policy.routing_requirements", "routing_requirements:not_object")
    required = check_capabilities(routing.get("required_capabilities", ()))
    return {**raw, "routing_requirements": {**routing, "required_capabilities": required}}


# Where the parts of a policy stand, so that a misplaced name is refused instead of lost.
_PARTS: dict[str, type[Value]] = {
    "retry_policy": RetryPolicy,
    "timeout_policy": TimeoutPolicy,
    "suspension_policy": SuspensionPolicy,
    "routing_requirements": RoutingRequirements,
    "stream_policy": StreamPolicy,
}
_NOTHING_ASKED: tuple[Any, ...] = (None, [], {})


def _refuse_unknown(raw: dict[str, Any]) -> None:
    _refuse_names(raw, ExecutionPolicy, "policy")
    for name, part in _PARTS.items():
        inner = raw.get(name)
        if isinstance(inner, dict):
            _refuse_names(inner, part, f"policy.{name}")


def _refuse_names(raw: dict[str, Any], known: type[Value], path: str) -> None:
    for name, value in raw.items():
        # An empty list asks for nothing, so there is nothing to refuse.
        if name not in known.__struct_fields__ and value not in _NOTHING_ASKED:
            raise _policy_error(f"{path}.{name}", f"{name}:not_supported")


def _policy_error(field: str, rule: str) -> InvalidPolicyJson:
    return InvalidPolicyJson(field=field, rule=rule)


def check_capabilities(tokens: Any, side: str = "required") -> tuple[str, ...]:
    """Check capability tokens and return them sorted, each once.

    Raises:
        InvalidCapabilities: the rule is ``required:not_array``, ``:non_string_token``,
            ``:empty_token``, ``:comma_in_token``, ``:control_or_whitespace``,
            ``:too_many_tokens`` or ``:too_many_bytes`` (or the same after ``worker:``).
    """
    if not isinstance(tokens, (list, tuple, set, frozenset)):
        raise _capability_error(side, "not_array")
    for token in tokens:
        _check_token(token, side)
    ordered = tuple(sorted(set(tokens)))
    if len(ordered) > CAPS_MAX_TOKENS:
        raise _capability_error(side, "too_many_tokens", str(len(ordered)))
    size = len(",".join(ordered).encode())
    if size > CAPS_MAX_BYTES:
        raise _capability_error(side, "too_many_bytes", f"{size} bytes")
    return ordered


def _check_token(token: Any, side: str) -> None:
    if not isinstance(token, str):
        raise _capability_error(side, "non_string_token")
    if not token:
        raise _capability_error(side, "empty_token", "''")
    if "," in token:
        raise _capability_error(side, "comma_in_token", repr(token[:64]))
    if _CONTROL_OR_WHITESPACE.search(token) or (not token.isascii() and _has_surrogate(token)):
        raise _capability_error(side, "control_or_whitespace", repr(token[:64]))


def _has_surrogate(token: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in token)


def _capability_error(side: str, rule: str, value: str | None = None) -> InvalidCapabilities:
    field = f"{side}_capabilities"
    shown = {} if value is None else {"value": value}
    return InvalidCapabilities(field=field, rule=f"{side}:{rule}", **shown)


def capabilities_match(required: Iterable[str], offered: Iterable[str]) -> bool:
    """Say whether a worker that offers these capabilities may take the work."""
    return set(required).issubset(offered)


def missing_capabilities(required: Iterable[str], offered: Iterable[str]) -> tuple[str, ...]:
    """List what the worker lacks, sorted."""
    return tuple(sorted(set(required).difference(offered)))


def require_capabilities(required: Iterable[str], offered: Iterable[str]) -> None:
    """Refuse a worker that lacks a capability.

    Raises:
        CapabilityMismatch: the detail ``missing`` lists what is lacking, sorted, with commas.
    """
    missing = missing_capabilities(required, offered)
    if missing:
        raise CapabilityMismatch(missing=",".join(missing))

"""What a policy means: how long to wait before a retry, and whose policy applies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec.structs import asdict, replace

from flowfabric.contracts.ids import budget_id_of, quota_policy_id_of
from flowfabric.contracts.limits import SAFE_INTEGER_MAX
from flowfabric.contracts.policy import (
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    RetryPolicy,
)

if TYPE_CHECKING:
    from flowfabric.contracts.policy import Backoff
    from flowfabric.core.records import Execution

NEVER_RETRIED: Final = frozenset(
    {
        "permanent",
        "cancelled",
        "fatal",
        "journal_mismatch",
        "extractor_payload_decode",
        "extractor_missing_state",
        "runtime_no_handler",
    }
)
"""Failure categories for which another attempt cannot help."""


def may_retry(policy: RetryPolicy | None, category: str, retry_count: int) -> bool:
    """Whether a failure of this category gets another attempt."""
    if policy is None or category in NEVER_RETRIED or retry_count >= policy.max_retries:
        return False
    return not policy.retryable_categories or category in policy.retryable_categories


def retry_delay_ms(backoff: Backoff, retry_count: int, random: float) -> int:
    """How long to wait before the next attempt.

    Args:
        backoff: the policy's back-off.
        retry_count: retries already made; 0 gives the first wait.
        random: in [0, 1); jitter adds up to as much again, never past the maximum.
    """
    if isinstance(backoff, FixedBackoff):
        return backoff.delay_ms
    delay = _exponential_ms(backoff, retry_count)
    if backoff.jitter:
        delay += random * delay
    return max(min(round(delay), backoff.max_delay_ms), min(backoff.initial_delay_ms, backoff.max_delay_ms))


def _exponential_ms(backoff: ExponentialBackoff, retry_count: int) -> float:
    """The wait without jitter, computed so that no retry count can overflow."""
    if backoff.initial_delay_ms == 0:
        return 0.0
    ratio = max(backoff.max_delay_ms / backoff.initial_delay_ms, 1.0)
    if retry_count * math.log(backoff.multiplier) >= math.log(ratio):
        return float(backoff.max_delay_ms)
    return float(backoff.initial_delay_ms) * backoff.multiplier**retry_count


def merge_policies(own: ExecutionPolicy | None, handler: ExecutionPolicy | None) -> ExecutionPolicy | None:
    """The execution's policy, with the handler's parts where it has none."""
    if own is None or handler is None:
        return own if handler is None else handler
    absent = {name: getattr(handler, name) for name, part in asdict(own).items() if part is None}
    return replace(own, **absent)


def resolve_names(policy: ExecutionPolicy | None, namespace: str) -> ExecutionPolicy | None:
    """The policy with ids in place of the names of budgets and of the quota policy."""
    if policy is None or not (policy.budget_ids or policy.quota_policy_id):
        return policy
    budgets, quota = policy.budget_ids, policy.quota_policy_id
    return replace(
        policy,
        budget_ids=None
        if budgets is None
        else tuple(dict.fromkeys(budget_id_of(namespace, name) for name in budgets)),
        quota_policy_id=None if quota is None else quota_policy_id_of(namespace, quota),
    )


def adopt_policy(execution: Execution, handler: ExecutionPolicy | None) -> None:
    """Store the parts of the handler's policy that the execution has none of.

    A deadline that comes with it counts from the creation, as one given at the creation does.
    """
    had_timeouts = execution.policy is not None and execution.policy.timeout_policy is not None
    adopted = resolve_names(_sparing(execution, handler), execution.namespace)
    execution.policy = merge_policies(execution.policy, adopted)
    timeouts = None if execution.policy is None else execution.policy.timeout_policy
    if had_timeouts or timeouts is None or timeouts.execution_deadline_ms is None:
        return
    if execution.deadline_at is None:
        deadline_at = execution.created_at + timeouts.execution_deadline_ms
        execution.deadline_at = min(deadline_at, SAFE_INTEGER_MAX)


def _sparing(execution: Execution, handler: ExecutionPolicy | None) -> ExecutionPolicy | None:
    """The handler's policy without a cap below what was used before the handler came along.

    What was allowed then stays within the caps on record; nothing more is allowed by it.
    """
    if handler is None:
        return None
    retries, reclaims = handler.retry_policy, handler.max_reclaim_count
    if retries is not None and retries.max_retries < execution.retry_count:
        retries = replace(retries, max_retries=execution.retry_count)
    return replace(
        handler,
        retry_policy=retries,
        max_reclaim_count=None if reclaims is None else max(reclaims, execution.reclaim_count),
        max_replay_count=max(handler.max_replay_count, execution.replay_count),
    )

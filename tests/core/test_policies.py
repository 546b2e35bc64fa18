"""What a policy means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from flowfabric.contracts.policy import (
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    RetryPolicy,
    TimeoutPolicy,
)
from flowfabric.core.policies import NEVER_RETRIED, may_retry, merge_policies, retry_delay_ms

GROWING = ExponentialBackoff(initial_delay_ms=1_000, max_delay_ms=60_000, multiplier=2.0)


def test_the_waits_grow_up_to_the_maximum():
    waits = [retry_delay_ms(GROWING, count, 0.0) for count in range(8)]
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]


def test_a_fixed_wait_is_always_the_same():
    backoff = FixedBackoff(delay_ms=7)
    assert [retry_delay_ms(backoff, count, 0.9) for count in (0, 1, 10**6)] == [7, 7, 7]


def test_jitter_adds_up_to_as_much_again():
    backoff = ExponentialBackoff(initial_delay_ms=1_000, max_delay_ms=60_000, jitter=True)
    assert retry_delay_ms(backoff, 1, 0.0) == 2_000
    assert retry_delay_ms(backoff, 1, 0.5) == 3_000
    assert retry_delay_ms(backoff, 5, 0.99) == 60_000


@given(
    initial=st.integers(0, 10**12),
    most=st.integers(0, 10**12),
    multiplier=st.floats(1.0, 1_000.0),
    jitter=st.booleans(),
    retry_count=st.integers(0, 10**6),
    random=st.floats(0.0, 1.0, exclude_max=True),
)
def test_a_wait_is_a_whole_number_within_the_bounds(
    *, initial, most, multiplier, jitter, retry_count, random
):
    backoff = ExponentialBackoff(
        initial_delay_ms=initial, max_delay_ms=most, multiplier=multiplier, jitter=jitter
    )
    wait = retry_delay_ms(backoff, retry_count, random)
    assert isinstance(wait, int)
    assert min(initial, most) <= wait <= most


@pytest.mark.parametrize(("retry_count", "allowed"), [(0, True), (2, True), (3, False), (4, False)])
def test_retries_are_counted(retry_count, allowed):
    assert may_retry(RetryPolicy(max_retries=3), "transient", retry_count) is allowed


def test_without_a_policy_nothing_is_retried():
    assert not may_retry(None, "transient", 0)


@pytest.mark.parametrize("category", sorted(NEVER_RETRIED))
def test_some_failures_are_never_retried_whatever_the_policy_says(category):
    assert not may_retry(RetryPolicy(retryable_categories=(category,)), category, 0)


def test_the_executions_parts_win_and_the_handlers_fill_the_rest():
    own = ExecutionPolicy(retry_policy=RetryPolicy(max_retries=1), max_replay_count=2)
    handler = ExecutionPolicy(
        retry_policy=RetryPolicy(max_retries=9),
        timeout_policy=TimeoutPolicy(attempt_timeout_ms=5),
        max_replay_count=9,
    )
    expected = replace(own, timeout_policy=handler.timeout_policy)
    assert merge_policies(own, handler) == expected


def test_a_side_without_a_policy_leaves_the_others():
    policy = ExecutionPolicy()
    assert merge_policies(None, policy) is merge_policies(policy, None) is policy
    assert merge_policies(None, None) is None

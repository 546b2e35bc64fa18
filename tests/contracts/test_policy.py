"""Execution policies and capabilities."""

from __future__ import annotations

import json

import pytest

from flowfabric.contracts import policy as p
from flowfabric.contracts.wire import to_wire
from flowfabric.errors import CapabilityMismatch, InvalidCapabilities, InvalidPolicyJson


@pytest.mark.parametrize("text", ["", "  ", "{}", "null"])
def test_blank_text_means_no_policy(text):
    assert p.parse_policy(text) is None
    assert p.parse_retry_policy(text) is None


def test_the_defaults_are_the_contracts():
    policy = p.parse_policy('{"retry_policy": {}, "timeout_policy": {}, "stream_policy": {}}')
    assert policy is not None
    assert policy.retry_policy == p.RetryPolicy(
        max_retries=3,
        backoff=p.ExponentialBackoff(
            initial_delay_ms=1000, max_delay_ms=60_000, multiplier=2.0, jitter=False
        ),
    )
    assert policy.max_replay_count == 10
    assert policy.reclaim_cap == 100
    assert policy.max_signals_per_execution == 10_000
    assert policy.stream_policy is not None
    assert policy.stream_policy.retention_maxlen == 10_000


def test_the_backoff_is_tagged_by_its_type():
    policy = p.parse_policy('{"retry_policy": {"backoff": {"type": "fixed", "delay_ms": 5}}}')
    assert policy is not None
    assert policy.retry_policy is not None
    assert policy.retry_policy.backoff == p.FixedBackoff(delay_ms=5)


def test_a_retry_policy_stands_alone_too():
    retry = p.parse_retry_policy('{"max_retries": 7}')
    assert retry is not None
    assert retry.max_retries == 7


@pytest.mark.parametrize(
    "text",
    [
        '{"max_retries": 2, "max_atempts": 3}',
        '{"max_retries": -1}',
        "[]",
        "7",
        'null, "max_replay_count": 3',
        '{"max_retries": 2}}',
    ],
)
def test_a_retry_policy_with_anything_that_cannot_be_honoured_is_refused(text):
    with pytest.raises(InvalidPolicyJson):
        p.parse_retry_policy(text)


def test_a_policy_has_a_bound():
    with pytest.raises(InvalidPolicyJson) as caught:
        p.parse_policy('{"retry_policy": ' + " " * 65_536 + "{}}")
    assert "too_long" in str(caught.value)


def test_the_top_level_reclaim_cap_wins():
    both = p.parse_policy('{"max_reclaim_count": 2, "timeout_policy": {"max_reclaim_count": 5}}')
    nested = p.parse_policy('{"timeout_policy": {"max_reclaim_count": 5}}')
    assert both is not None
    assert nested is not None
    assert (both.reclaim_cap, nested.reclaim_cap) == (2, 5)


@pytest.mark.parametrize("text", ["{", "nonsense", "{'a': 1}", '"\x00'])
def test_text_that_is_not_json_is_malformed(text):
    with pytest.raises(InvalidPolicyJson) as caught:
        p.parse_policy(text)
    assert caught.value.rule == "malformed"


def test_a_policy_must_be_an_object():
    with pytest.raises(InvalidPolicyJson, match="not_object"):
        p.parse_policy("[1]")


def test_routing_requirements_must_be_an_object():
    with pytest.raises(InvalidPolicyJson) as caught:
        p.parse_policy('{"routing_requirements": ["gpu"]}')
    assert caught.value.rule == "routing_requirements:not_object"


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"fallback_policy": {"tiers": [{"provider": "x"}]}}, "policy.fallback_policy"),
        ({"required_capabilities": ["gpu"]}, "policy.required_capabilities"),
        (
            {"routing_requirements": {"preferred_locality": "eu"}},
            "policy.routing_requirements.preferred_locality",
        ),
        (
            {"routing_requirements": {"isolation_level": "vm"}},
            "policy.routing_requirements.isolation_level",
        ),
        ({"retry_policy": {"max_retry": 3}}, "policy.retry_policy.max_retry"),
    ],
)
def test_a_field_that_is_not_honoured_is_refused(raw, field):
    with pytest.raises(InvalidPolicyJson) as caught:
        p.parse_policy(json.dumps(raw))
    assert caught.value.field == field


def test_the_retention_of_streams_is_honoured():
    policy = p.parse_policy('{"stream_policy": {"retention_ttl_ms": 1000}}')
    assert policy == p.ExecutionPolicy(stream_policy=p.StreamPolicy(retention_ttl_ms=1_000))


def test_an_empty_list_of_budgets_asks_for_none_whatever_the_handler_says():
    assert p.parse_policy('{"budget_ids": []}') == p.ExecutionPolicy(budget_ids=())


@pytest.mark.parametrize(
    "raw",
    [
        {"retry_policy": {"max_retries": -1}},
        {"retry_policy": {"max_retries": "3"}},
        {"retry_policy": {"backoff": {"type": "linear"}}},
        {"timeout_policy": {"attempt_timeout_ms": 0}},
        {"suspension_policy": {"timeout_behavior": "explode"}},
        {"stream_policy": {"durability_mode": "maybe"}},
    ],
)
def test_a_value_out_of_range_is_refused(raw):
    with pytest.raises(InvalidPolicyJson):
        p.parse_policy(json.dumps(raw))


def test_a_policy_survives_the_wire():
    text = '{"priority": 3, "retry_policy": {"max_retries": 1}, "dedup_window_ms": 5}'
    policy = p.parse_policy(text)
    assert p.parse_policy(json.dumps(to_wire(policy))) == policy


@pytest.mark.parametrize(
    ("tokens", "rule"),
    [
        ("gpu", "not_array"),
        ({"gpu": 1}, "not_array"),
        (None, "not_array"),
        ([1], "non_string_token"),
        ([""], "empty_token"),
        (["a,b"], "comma_in_token"),
        (["a b"], "control_or_whitespace"),
        (["a\x7f"], "control_or_whitespace"),
        ([f"t{i}" for i in range(257)], "too_many_tokens"),
        (["x" * 4097], "too_many_bytes"),
    ],
)
def test_capabilities_that_break_a_rule_are_refused_with_it(tokens, rule):
    with pytest.raises(InvalidCapabilities) as caught:
        p.check_capabilities(tokens)
    assert caught.value.rule == f"required:{rule}"
    with pytest.raises(InvalidCapabilities) as offered:
        p.check_capabilities(tokens, "worker")
    assert offered.value.rule == f"worker:{rule}"


def test_the_ceilings_are_inclusive_and_tokens_are_sorted():
    assert len(p.check_capabilities([f"t{i}" for i in range(256)])) == 256
    assert p.check_capabilities(["x" * 4096]) == ("x" * 4096,)
    assert p.check_capabilities(["b", "a", "b", "é"]) == ("a", "b", "é")


def test_required_capabilities_are_normalised():
    policy = p.parse_policy('{"routing_requirements": {"required_capabilities": ["b", "a", "a"]}}')
    assert policy is not None
    assert policy.required_capabilities == ("a", "b")


def test_a_worker_matches_when_it_has_everything_that_is_required():
    assert p.capabilities_match((), ())
    assert p.capabilities_match(("a",), {"a", "b"})
    assert not p.capabilities_match(("a",), ())
    with pytest.raises(CapabilityMismatch) as caught:
        p.require_capabilities(("c", "b", "a"), {"b"})
    assert caught.value.details["missing"] == "a,c"

"""Suspending: what is checked, in the contract's order, and the defaults."""

from __future__ import annotations

import msgspec
import pytest

from flowfabric import contracts as c
from flowfabric import minting
from flowfabric.contracts.check import check
from flowfabric.errors import InvalidInput

NOW = 1_760_000_000_000


def fresh(key, waitpoint_id=None):
    return c.FreshWaitpoint(waitpoint_id=waitpoint_id or minting.new_waitpoint_id(), waitpoint_key=key)


def single(key="wpk:a", name="approve"):
    return c.Single(waitpoint_key=key, matcher=c.ByName(name=name))


def pending():
    return c.UsePendingWaitpoint(waitpoint_id=minting.new_waitpoint_id())


def suspend(*waitpoints, condition=None, **changes):
    return c.SuspendExecutionArgs(
        execution_id=minting.new_execution_id(),
        attempt_index=0,
        suspension_id=minting.new_suspension_id(),
        waitpoints=waitpoints,
        resume_condition=condition or single(),
        **changes,
    )


def count(n, keys, kind=c.CountKind.DISTINCT_WAITPOINTS):
    return c.Composite(body=c.Count(n=n, count_kind=kind, waitpoints=tuple(keys)))


def all_of(*members):
    return c.Composite(body=c.AllOf(members=members))


def rule_of(args, now_ms=NOW):
    with pytest.raises(InvalidInput) as caught:
        c.validate_suspend(args, now_ms)
    assert caught.value.code == "invalid_input"
    return caught.value.rule


@pytest.mark.parametrize(
    ("args", "rule"),
    [
        (suspend(), "waitpoints_empty"),
        (suspend(fresh("wpk:b")), "waitpoint_key_mismatch"),
        (
            suspend(fresh(""), condition=c.TimeoutOnly(), timeout_at=NOW + 1),
            "waitpoint_binding_empty_key at waitpoints[0]",
        ),
        (
            suspend(fresh("wpk:a"), pending()),
            "additional_waitpoint_binding_must_be_fresh at waitpoints[1]",
        ),
        (
            suspend(fresh("wpk:a"), fresh("")),
            "additional_waitpoint_binding_empty_key at waitpoints[1]",
        ),
        (
            suspend(fresh("a"), fresh("b"), condition=c.all_of_waitpoints(["a", "b", "c"])),
            "referenced_waitpoint_key_missing_binding: c",
        ),
        (
            suspend(fresh("a"), fresh("b"), condition=c.all_of_waitpoints(["a"])),
            "extra_binding_not_referenced_by_condition: b",
        ),
        (suspend(fresh("a"), condition=c.TimeoutOnly()), "timeout_only_without_deadline"),
        (suspend(fresh("wpk:a"), condition=single(name="")), "signal_name_empty"),
        (suspend(fresh("wpk:a"), timeout_at=NOW - 600_001), "timeout_at_in_past"),
        (suspend(fresh("a"), condition=all_of()), "allof_empty_members at path <root>"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_a_suspension_that_breaks_a_rule_is_refused_with_it(args, rule):
    assert rule_of(args) == rule


def test_the_first_broken_rule_is_the_one_reported():
    args = suspend(fresh("wpk:b"), condition=single(name=""), timeout_at=0)
    assert rule_of(args) == "waitpoint_key_mismatch"
    args = suspend(fresh("a"), condition=all_of(single(name="")), timeout_at=0)
    assert rule_of(args) == "signal_name_empty"
    args = suspend(fresh("a"), condition=all_of(), timeout_at=0)
    assert rule_of(args) == "timeout_at_in_past"


@pytest.mark.parametrize(
    "args",
    [
        suspend(fresh("wpk:a")),
        suspend(fresh("wpk:a"), timeout_at=NOW - 600_000),
        suspend(pending()),
        suspend(fresh("a"), condition=c.OperatorOnly()),
        suspend(fresh("a"), condition=c.TimeoutOnly(), timeout_at=NOW + 1),
        suspend(fresh("a"), fresh("b"), condition=c.all_of_waitpoints(["a", "b"])),
        suspend(fresh("a"), fresh("b"), condition=count(1, ["a", "b"])),
    ],
)
def test_a_good_suspension_is_accepted(args):
    c.validate_suspend(args, NOW)
    check(args)


@pytest.mark.parametrize(
    ("condition", "rule"),
    [
        (count(0, ["a"]), "count_n_zero at path <root>"),
        (count(1, []), "count_waitpoints_empty at path <root>"),
        (
            count(3, ["a", "b"]),
            "count_exceeds_waitpoint_set: n=3 > waitpoints.len()=2 at path <root>",
        ),
        (all_of(single(), all_of()), "allof_empty_members at path members[1]"),
        (
            all_of(all_of(single(), count(0, ["a"]))),
            "count_n_zero at path members[0].members[1]",
        ),
    ],
)
def test_a_broken_node_is_named_with_its_path(condition, rule):
    with pytest.raises(InvalidInput) as caught:
        c.validate_composite(condition)
    assert caught.value.rule == rule


@pytest.mark.parametrize("kind", [c.CountKind.DISTINCT_SIGNALS, c.CountKind.DISTINCT_SOURCES])
def test_only_a_count_of_waitpoints_is_bounded_by_them(kind):
    c.validate_composite(count(3, ["a"], kind))


def test_depth_four_is_accepted_and_depth_five_is_not():
    four = all_of(all_of(all_of(all_of(single()))))
    c.validate_composite(four)
    with pytest.raises(InvalidInput, match="depth 5 exceeds cap 4"):
        c.validate_composite(all_of(four))


def test_referenced_keys_come_depth_first_and_once():
    condition = all_of(single("b"), count(1, ["a", "b"]), all_of(single("c"), single("a")))
    assert c.referenced_waitpoint_keys(condition) == ("b", "a", "c")


def test_the_defaults_are_the_contracts():
    policy = c.ResumePolicy()
    assert policy.consume_matched_signals
    assert not policy.retain_signal_buffer_until_closed
    assert policy.close_waitpoint_on_resume
    assert policy.resume_delay_ms is None
    args = suspend(fresh("wpk:a"))
    assert args.timeout_behavior is c.TimeoutBehavior.FAIL
    assert args.requested_by is c.SuspensionRequester.WORKER


def test_a_fresh_waitpoint_is_named_after_its_id():
    waitpoint = minting.fresh_waitpoint()
    assert waitpoint.waitpoint_key == f"wpk:{waitpoint.waitpoint_id}"


def test_a_by_name_matcher_survives_a_store():
    condition = all_of(single(), c.Single(waitpoint_key="b"))
    packed = msgspec.msgpack.encode(condition)
    assert msgspec.msgpack.decode(packed, type=c.ResumeCondition) == condition


@pytest.mark.parametrize("text", ["k1:" + "ab" * 32, "no-colon", "", ":x", "a:b:c"])
def test_a_token_never_prints_its_signature(text):
    token = c.WaitpointToken(text)
    for shown in (str(token), repr(token), f"{token}"):
        assert "REDACTED" in shown
        assert token.mac == "" or token.mac not in shown.replace("REDACTED:len", "")


def test_a_fingerprint_is_the_first_sixteen_digits():
    token = c.WaitpointToken("k1:0123456789abcdef0123")
    assert (token.kid, token.fingerprint) == ("k1", "0123456789abcdef")

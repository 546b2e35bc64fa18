"""Checking commands that were built in Python."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowfabric import contracts as c
from flowfabric import minting
from flowfabric.contracts.check import check
from flowfabric.contracts.predicates import passes
from flowfabric.contracts.wire import from_json, to_json
from flowfabric.errors import (
    InvalidCapabilities,
    InvalidGraceMs,
    InvalidInput,
    InvalidSecretHex,
    InvalidTagKey,
)
from tests.contracts import samples

EXECUTION = c.ExecutionId("{fp:86}:0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22")


def create(**changes):
    fields = {
        "execution_id": EXECUTION,
        "namespace": "demo",
        "lane_id": "default",
        "execution_kind": "resize",
        "input_payload": b"{}",
        "priority": 10,
        "creator_identity": "cli",
    }
    return c.CreateExecutionArgs(**{**fields, **changes})


@pytest.mark.parametrize("kind", samples.command_types(), ids=lambda kind: kind.__name__)
def test_a_sample_of_every_command_passes_the_quick_half(kind):
    for full in (False, True):
        assert passes(samples.struct(kind, full=full))


@pytest.mark.parametrize("kind", samples.command_types(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("wrong", [object(), b"\xff", "\x00", -1, 2**70, 1.5, [1], {"a": 1}, ()])
def test_a_field_of_the_wrong_type_is_named_in_every_command(kind, wrong):
    good = samples.struct(kind, full=True)
    for name in kind.__struct_fields__:
        bad = msgspec.structs.replace(good, **{name: wrong})
        if not passes(bad):
            with pytest.raises(InvalidInput) as caught:
                check(bad)
            assert caught.value.field.partition("[")[0].partition(".")[0] == name


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"namespace": ""}, "namespace"),
        ({"namespace": "x" * 257}, "namespace"),
        ({"namespace": "a\n"}, "namespace"),
        ({"namespace": "a\x85"}, "namespace"),
        ({"namespace": "\ud800"}, "namespace"),
        ({"lane_id": "é"}, "lane_id"),
        ({"lane_id": "x" * 65}, "lane_id"),
        ({"execution_id": "x"}, "execution_id"),
        ({"execution_id": EXECUTION.upper()}, "execution_id"),
        ({"execution_id": EXECUTION + "\n"}, "execution_id"),
        ({"input_payload": b"x" * (1024 * 1024 + 1)}, "input_payload"),
        ({"input_payload": "text"}, "input_payload"),
        ({"priority": True}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"delay_until": -1}, "delay_until"),
        ({"delay_until": 2**53}, "delay_until"),
        ({"tags": {"a.b": 1}}, "tags['a.b']"),
        ({"tags": {"a.b": "x" * 1025}}, "tags['a.b']"),
        ({"tags": {f"a.b{i}": "" for i in range(65)}}, "tags"),
        ({"policy": {}}, "policy"),
        ({"policy": c.ExecutionPolicy(max_replay_count=-1)}, "policy.max_replay_count"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_with_its_field(changes, field):
    with pytest.raises(InvalidInput) as caught:
        check(create(**changes))
    assert caught.value.field == field
    assert caught.value.rule
    assert field in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {"namespace": "x" * 256},
        {"namespace": "東京 ☃\u00a0"},
        {"lane_id": "~" * 64},
        {"input_payload": b"\xff" * (1024 * 1024)},
        {"priority": -(2**31)},
        {"delay_until": 2**53 - 1},
        {"tags": {f"a.b{i}": "x" * 1024 for i in range(64)}},
        {"creator_identity": ""},
        {"idempotency_key": ""},
    ],
)
def test_a_value_at_the_edge_is_accepted(changes):
    check(create(**changes))


@pytest.mark.parametrize("key", ["a", "A.b", "a.", "a..b", "1a.b", ".a", "a.B", "a-b.c", ""])
def test_a_tag_key_needs_an_owner_and_a_name(key):
    with pytest.raises(InvalidTagKey):
        check(create(tags={key: "x"}))
    with pytest.raises(InvalidTagKey):
        check(c.SetExecutionTagArgs(execution_id=EXECUTION, key=key, value="x"))


@pytest.mark.parametrize("key", ["a.b", "a_1.b.c", "team.0", "x.y_z"])
def test_a_tag_key_of_the_form_owner_name_is_accepted(key):
    check(c.SetExecutionTagsArgs(execution_id=EXECUTION, tags={key: "x"}))


def test_no_tags_at_all_are_refused():
    with pytest.raises(InvalidInput):
        check(c.SetExecutionTagsArgs(execution_id=EXECUTION, tags={}))


def test_payload_bytes_never_appear_in_a_message():
    with pytest.raises(InvalidInput) as caught:
        check(create(input_payload=b"secret" * 200_000))
    assert "secret" not in str(caught.value)
    assert caught.value.value == "<1200000 bytes>"


def test_a_long_value_is_shortened_in_the_message():
    with pytest.raises(InvalidInput) as caught:
        check(create(namespace="x" * 5_000))
    assert len(caught.value.message) < 250


def test_secrets_and_tokens_never_appear_in_a_message():
    rotate = c.RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex="hunter2", grace_ms=0)
    with pytest.raises(InvalidSecretHex) as caught:
        check(rotate)
    assert "hunter2" not in str(caught.value) + repr(caught.value) + repr(rotate)
    everywhere = c.RotateWaitpointHmacSecretAllArgs(new_kid="k2", new_secret_hex="hunter2", grace_ms=0)
    seed = c.SeedWaitpointHmacSecretArgs(kid="k1", secret_hex="hunter2")
    assert "hunter2" not in repr(everywhere) + repr(seed)
    signal = samples.struct(c.DeliverSignalArgs, full=False)
    token = c.WaitpointToken("k1:" + "hunter2" * 1_000)
    with pytest.raises(InvalidInput) as refused:
        check(msgspec.structs.replace(signal, waitpoint_token=token))
    assert refused.value.field == "waitpoint_token.value"
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("grace_ms", [-1, 2**53])
def test_a_grace_outside_its_bounds_is_refused(grace_ms):
    for rotation in (c.RotateWaitpointHmacSecretArgs, c.RotateWaitpointHmacSecretAllArgs):
        with pytest.raises(InvalidGraceMs):
            check(rotation(new_kid="k2", new_secret_hex="ab" * 32, grace_ms=grace_ms))


def test_a_value_of_a_nested_struct_is_named_with_its_path():
    fence = c.LeaseFence(lease_id=c.LeaseId("x"), lease_epoch=1, attempt_id=minting.new_attempt_id())
    with pytest.raises(InvalidInput) as caught:
        check(c.CompleteExecutionArgs(execution_id=EXECUTION, fence=fence, attempt_index=0))
    assert caught.value.field == "fence.lease_id"


def test_a_value_inside_a_list_is_named_with_its_place():
    args = samples.struct(c.ClaimBatchArgs, full=True)
    with pytest.raises(InvalidInput) as caught:
        check(msgspec.structs.replace(args, lanes=("default", "")))
    assert caught.value.field == "lanes[1]"


def test_rules_that_span_fields_are_checked_too():
    args = samples.struct(c.ClaimBatchArgs, full=True)
    with pytest.raises(InvalidCapabilities):
        check(msgspec.structs.replace(args, worker_capabilities=frozenset({"a,b"})))


@settings(max_examples=30)
@given(st.text(max_size=300))
def test_a_name_is_judged_alike_in_python_and_on_the_wire(text):
    def in_python():
        check(create(namespace=text))

    def on_the_wire():
        from_json(to_json(create(namespace=text)), c.CreateExecutionArgs)

    assert accepts(in_python) == accepts(on_the_wire)


@given(st.integers(-(2**60), 2**60))
def test_a_time_is_judged_alike_in_python_and_on_the_wire(now):
    def in_python():
        check(create(now=now))

    def on_the_wire():
        from_json(to_json(create(now=now)), c.CreateExecutionArgs)

    assert accepts(in_python) == accepts(on_the_wire)


def accepts(attempt):
    try:
        attempt()
    except (InvalidInput, UnicodeEncodeError):
        return False
    return True


@pytest.mark.parametrize("category", ["\ud800", "a\nb", "x" * 257])
def test_a_retryable_category_is_a_name(category):
    policy = c.ExecutionPolicy(retry_policy=c.RetryPolicy(retryable_categories=(category,)))
    with pytest.raises(InvalidInput) as caught:
        check(create(policy=policy))
    assert caught.value.field == "policy.retry_policy.retryable_categories[0]"

"""The public JSON form of every contract type."""

from __future__ import annotations

import json

import msgspec
import pytest

from flowfabric import contracts as c
from flowfabric.contracts.base import Outcome
from flowfabric.contracts.wire import from_json, from_wire, reclaim_grant_to_wire, to_json, to_wire
from flowfabric.errors import InvalidInput, InvalidPolicyJson
from tests.contracts import samples

EXECUTION = "{fp:86}:0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22"


def create(**changes):
    fields = {
        "execution_id": EXECUTION,
        "namespace": "demo",
        "lane_id": "default",
        "execution_kind": "resize",
        "input_payload": [123, 125],
        "priority": 10,
        "creator_identity": "cli",
    }
    return {**fields, **changes}


@pytest.mark.parametrize("full", [False, True], ids=["required", "all fields"])
@pytest.mark.parametrize("kind", samples.struct_types(), ids=lambda kind: kind.__name__)
def test_every_type_survives_a_round_trip_through_json(kind, full):
    value = samples.struct(kind, full=full)
    assert from_json(to_json(value), kind) == value


@pytest.mark.parametrize("kind", samples.struct_types(), ids=lambda kind: kind.__name__)
def test_every_type_survives_a_round_trip_through_a_store(kind):
    value = samples.struct(kind, full=True)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind) == value


@pytest.mark.parametrize("kind", samples.command_types(), ids=lambda kind: kind.__name__)
def test_every_result_survives_a_round_trip_through_json(kind):
    result = samples.result_of(kind)
    for full in (False, True):
        value = samples.sample(result, full=full)
        assert from_json(to_json(value), result) == value


def test_an_outcome_is_tagged_with_its_variant():
    created = c.ExecutionCreated(execution_id=c.ExecutionId(EXECUTION), public_state=c.PublicState.WAITING)
    assert to_wire(created) == {"Created": {"execution_id": EXECUTION, "public_state": "waiting"}}


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (c.TerminalFailed(), "TerminalFailed"),
        (c.ProgressUpdated(), "Updated"),
        (c.NoWork(), "NoWork"),
        (c.WaitpointWasClosed(), "Closed"),
        (c.ExecutionAlreadyTerminal(), "AlreadyTerminal"),
    ],
)
def test_a_variant_without_data_is_a_bare_string(outcome, word):
    assert to_wire(outcome) == word
    assert from_wire(word, type(outcome)) == outcome


def test_revoked_has_strings_for_both_values():
    revoked = c.LeaseWasRevoked(lease_id=c.LeaseId(samples.UUID), lease_epoch=3)
    assert to_wire(revoked) == {"Revoked": {"lease_id": samples.UUID, "lease_epoch": "3"}}


def test_conditions_have_the_contracts_nested_tags():
    condition = c.Composite(
        body=c.AllOf(
            members=(
                c.Single(waitpoint_key="wpk:a", matcher=c.ByName(name="approve")),
                c.OperatorOnly(),
                c.Composite(
                    body=c.Count(n=1, count_kind=c.CountKind.DISTINCT_SOURCES, waitpoints=("wpk:b",))
                ),
            )
        )
    )
    wire = {
        "Composite": {
            "kind": "AllOf",
            "members": [
                {"Single": {"waitpoint_key": "wpk:a", "matcher": {"ByName": "approve"}}},
                "OperatorOnly",
                {
                    "Composite": {
                        "kind": "Count",
                        "n": 1,
                        "count_kind": "DistinctSources",
                        "waitpoints": ["wpk:b"],
                    }
                },
            ],
        }
    }
    assert to_wire(condition) == wire
    assert from_wire(wire, c.ResumeCondition) == condition


def test_bytes_are_arrays_of_numbers_and_binary_safe():
    args = from_wire(create(input_payload=list(range(256))), c.CreateExecutionArgs)
    assert args.input_payload == bytes(range(256))
    assert to_wire(args)["input_payload"] == list(range(256))


@pytest.mark.parametrize("payload", ["aGk=", [256], [-1], [1.5], [None], {"0": 1}])
def test_bytes_in_another_form_are_refused(payload):
    with pytest.raises(InvalidInput) as caught:
        from_wire(create(input_payload=payload), c.CreateExecutionArgs)
    assert caught.value.field == "input_payload"


def test_unknown_fields_are_ignored():
    args = from_wire(create(colour="red"), c.CreateExecutionArgs)
    assert args.namespace == "demo"


def test_absent_and_null_are_the_same_for_an_optional_field():
    assert from_wire(create(delay_until=None), c.CreateExecutionArgs) == from_wire(
        create(), c.CreateExecutionArgs
    )


def test_null_is_refused_where_a_field_has_a_default():
    with pytest.raises(InvalidInput) as caught:
        from_wire(create(tags=None), c.CreateExecutionArgs)
    assert caught.value.field == "tags"


def test_an_execution_id_is_brought_into_its_canonical_form():
    args = from_wire(create(execution_id=EXECUTION.upper().replace("FP", "fp")), c.CreateExecutionArgs)
    assert args.execution_id == EXECUTION


def test_a_policy_field_that_is_not_honoured_is_refused():
    with pytest.raises(InvalidPolicyJson) as caught:
        from_wire(create(policy={"fallback_policy": {"tiers": ["x"]}}), c.CreateExecutionArgs)
    assert caught.value.field == "policy.fallback_policy"


def test_an_unset_policy_field_is_left_out():
    wire = to_wire(c.ExecutionPolicy(retry_policy=c.RetryPolicy()))
    assert "delay_until" not in wire
    assert wire["retry_policy"]["backoff"]["type"] == "exponential"


def test_times_of_the_detail_view_are_strings_and_omitted_when_unset():
    info = samples.struct(c.ExecutionInfo, full=False)
    wire = to_wire(info)
    assert wire["created_at"] == "7"
    assert "started_at" not in wire
    assert "completed_at" not in wire
    assert wire["flow_id"] is None


def test_a_frame_has_sorted_text_fields_with_its_payload_among_them():
    frame = c.StreamFrame(id="1-0", fields={"ts": "1", "encoding": "utf8"}, payload=b"Hel")
    assert json.loads(to_json(frame)) == {
        "id": "1-0",
        "fields": {"encoding": "utf8", "payload": "Hel", "ts": "1"},
    }
    assert list(to_wire(frame)["fields"]) == ["encoding", "payload", "ts"]


@pytest.mark.parametrize("encoded", ["a", "%%%%", 7, {}, []])
def test_a_frame_whose_payload_is_not_base64_is_refused(encoded):
    frame = to_wire(c.StreamFrame(id="1-0", fields={}, payload=b"\xff"))
    [name] = frame["fields"]
    frame["fields"][name] = encoded
    with pytest.raises(InvalidInput):
        from_wire(frame, c.StreamFrame)


@pytest.mark.parametrize("frame", [7, {"id": "1-0"}, {"id": "1-0", "fields": []}])
def test_a_frame_without_fields_is_refused(frame):
    with pytest.raises(InvalidInput):
        from_wire(frame, c.StreamFrame)


def test_closed_fields_are_omitted_while_a_stream_is_open():
    assert to_wire(c.StreamFrames()) == {"frames": []}


def test_a_token_is_a_bare_string_on_the_wire():
    assert to_wire(c.WaitpointToken("k1:ab")) == "k1:ab"


def test_the_reclaim_route_is_tagged_by_status():
    grant = samples.struct(c.ReclaimGrant, full=True)
    execution_id = c.ExecutionId(EXECUTION)
    assert reclaim_grant_to_wire(c.ReclaimGranted(grant=grant))["status"] == "granted"
    assert reclaim_grant_to_wire(c.ReclaimGranted(grant=grant))["lane_id"] == grant.lane_id
    assert reclaim_grant_to_wire(c.ReclaimCapExceeded(execution_id=execution_id, reclaim_count=2)) == {
        "status": "reclaim_cap_exceeded",
        "execution_id": EXECUTION,
        "reclaim_count": 2,
    }


@pytest.mark.parametrize("text", ["", "{", "[1", "nul", "\x00"])
def test_text_that_is_not_json_is_refused(text):
    with pytest.raises(InvalidInput, match="valid JSON"):
        from_json(text, c.CreateExecutionArgs)


@pytest.mark.parametrize("raw", [None, 1, "x", [], {}, {"execution_id": 3}])
def test_json_of_another_shape_is_refused(raw):
    with pytest.raises(InvalidInput):
        from_wire(raw, c.CreateExecutionArgs)


@pytest.mark.parametrize("raw", ["Nope", {"Created": {}, "Duplicate": {}}, {"Nope": {}}, None, 3])
def test_an_unknown_variant_is_refused(raw):
    with pytest.raises(InvalidInput):
        from_wire(raw, c.CreateExecutionResult)


def test_a_condition_nested_too_deeply_for_the_reader_is_refused():
    raw = '{"Composite":{"kind":"AllOf","members":[' * 5000
    with pytest.raises(InvalidInput):
        from_json(raw, c.ResumeCondition)


def test_every_outcome_has_a_tag():
    outcomes = [kind for kind in samples.struct_types() if issubclass(kind, Outcome)]
    assert all(kind.__struct_config__.tag for kind in outcomes)

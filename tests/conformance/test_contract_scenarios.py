"""Acceptance scenarios about ids, handles and codes, which need no store."""

import pytest
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.handles import (
    BackendTag,
    HandleKind,
    HandlePayload,
    decode_handle_bytes,
    encode_handle,
)
from flowfabric.contracts.ids import (
    flow_partition,
    lane_partition,
    parse_execution_id,
    partition_of,
)
from flowfabric.contracts.partitions import (
    Partition,
    PartitionCounts,
    PartitionFamily,
    crc16,
    fnv1a_64,
    parse_partition_key,
)
from flowfabric.minting import new_execution_id, new_flow_id

CODES = """
stale_lease lease_expired lease_revoked execution_not_active no_active_lease
active_attempt_exists use_claim_resumed_execution not_a_resumed_execution
execution_not_leaseable lease_conflict invalid_claim_grant claim_grant_expired budget_exceeded
budget_soft_exceeded execution_not_suspended already_suspended waitpoint_closed
waitpoint_not_found target_not_signalable waitpoint_pending_use_buffer_script
invalid_lease_for_suspend resume_condition_not_met signal_limit_exceeded execution_not_terminal
max_replays_exhausted stream_closed stale_owner_cannot_append retention_limit_exceeded
execution_not_eligible execution_not_in_eligible_set grant_already_exists
execution_not_reclaimable invalid_dependency stale_graph_revision execution_already_in_flow
cycle_detected execution_not_found max_retries_exhausted flow_not_found execution_not_in_flow
dependency_already_exists self_referencing_edge flow_already_terminal deps_not_satisfied
not_blocked_by_deps not_runnable terminal invalid_blocking_reason waitpoint_not_pending
pending_waitpoint_expired invalid_waitpoint_for_execution waitpoint_already_exists
waitpoint_not_open fence_required partial_fence_triple invalid_tag_key
"""


@pytest.mark.scenario("RETRY-007")
def test_every_code_has_one_error_and_every_error_its_code():
    for code in CODES.split():
        error = errors.error_for_code(code)
        assert error is not None, code
        assert error.code == code
    assert errors.error_for_code("no_such_code") is None


@pytest.mark.scenario("ID-002")
def test_the_partition_comes_from_the_id_and_not_from_the_configuration():
    minted = new_execution_id(partitions=4)
    assert partition_of(minted) < 4
    assert parse_execution_id(minted) == minted
    assert partition_of(parse_execution_id("{fp:1023}:00000000-0000-4000-8000-000000000001")) == 1023


@pytest.mark.scenario("ID-003")
def test_members_of_a_flow_share_its_partition():
    flow_id = new_flow_id()
    assert {partition_of(new_execution_id(flow_id=flow_id)) for _ in range(20)} == {flow_partition(flow_id)}


@pytest.mark.scenario("ID-003")
def test_the_work_of_a_lane_can_be_gathered_in_its_partition():
    assert partition_of(new_execution_id(lane="media")) == lane_partition("media") == crc16(b"media") % 256
    assert len({lane_partition(f"lane-{number}") for number in range(100)}) > 50


@pytest.mark.scenario("ID-005")
def test_the_tags_of_partitions():
    tags = [Partition(family=family, index=7).key for family in PartitionFamily]
    assert tags == ["{fp:7}", "{b:7}", "{q:7}"]
    assert PartitionCounts() == PartitionCounts(flow=256, budget=32, quota=32)


@pytest.mark.scenario("ID-006")
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("fp:7", "MissingBraces"),
        ("{fp7}", "MalformedBody"),
        ("{zz:7}", "UnknownFamilyPrefix"),
        ("{fp:x}", "InvalidIndex"),
        ("{fp:70000}", "InvalidIndex"),
    ],
)
def test_a_malformed_partition_key_is_refused_by_its_rule(text, rule):
    with pytest.raises(errors.InvalidInput) as caught:
        parse_partition_key(text)
    assert caught.value.rule == rule


@pytest.mark.scenario("ID-008")
def test_a_handle_comes_back_as_it_was_made_and_damage_is_noticed():
    payload = HandlePayload(
        execution_id="{fp:7}:00000000-0000-4000-8000-000000000001",
        attempt_index=1,
        attempt_id="00000000-0000-4000-8000-000000000002",
        lease_id="00000000-0000-4000-8000-000000000003",
        lease_epoch=4,
        lease_ttl_ms=5,
        lane_id="lane",
        worker_instance_id="worker-1",
    )
    handle = encode_handle(BackendTag.SQLITE, HandleKind.FRESH, payload)
    assert handle.opaque[:3] == b"\x02\x01\x03"
    assert decode_handle_bytes(handle.opaque) == (BackendTag.SQLITE, payload)
    legacy = b"\x01" + handle.opaque[3:]
    assert decode_handle_bytes(legacy) == (BackendTag.VALKEY, payload)
    for damaged in (handle.opaque[:-1], b"\x09" + handle.opaque[1:], b"\x02\x09\x03", b"\x02\x01\x09", b""):
        with pytest.raises(errors.Corruption):
            decode_handle_bytes(damaged)
    assert replace(payload, attempt_index=2) != payload


@pytest.mark.scenario("ID-010")
def test_the_stable_hash_is_stable_and_spreads():
    assert fnv1a_64(b"") == 0xCBF29CE484222325
    assert fnv1a_64(b"worker") == fnv1a_64(b"worker")
    assert len({fnv1a_64(f"worker-{number}".encode()) % 32 for number in range(200)}) == 32

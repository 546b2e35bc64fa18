"""Ids, partitions and their arithmetic."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric import minting
from flowfabric.contracts import ids, partitions
from flowfabric.errors import InvalidInput

UUID = "11111111-2222-4333-8444-555555555555"
CANONICAL = re.compile(ids.EXECUTION_ID_PATTERN)


@pytest.mark.parametrize(
    ("lane", "crc", "index"),
    [
        ("default", 54870, 86),
        ("workers-a", 11969, 193),
        ("workers-b", 7842, 162),
        ("hot", 6093, 205),
        ("coding", 20320, 96),
    ],
)
def test_a_lane_has_the_partition_of_the_published_vectors(lane, crc, index):
    assert partitions.crc16(lane.encode()) == crc
    assert ids.lane_partition(lane) == index


@pytest.mark.parametrize(
    ("text", "crc", "index", "budget"),
    [(UUID, 37221, 101, 5), ("550e8400-e29b-41d4-a716-446655440000", 36888, 24, 24)],
)
def test_a_uuid_has_the_partition_of_the_published_vectors(text, crc, index, budget):
    assert partitions.crc16(uuid.UUID(text).bytes) == crc
    assert ids.flow_partition(text) == index
    assert ids.flow_partition(text, partitions.BUDGET_PARTITIONS) == budget


def test_the_crc_has_its_published_check_value():
    assert partitions.crc16(b"123456789") == 0x31C3


def test_fnv_of_nothing_is_its_offset_basis_and_the_hash_is_stable():
    assert partitions.fnv1a_64(b"") == 0xCBF29CE484222325
    assert partitions.fnv1a_64(b"a") == 0xAF63DC4C8601EC8C


def test_fnv_spreads_workers_over_the_partitions():
    assert len({partitions.fnv1a_64(f"worker-{i}".encode()) % 256 for i in range(1000)}) > 200


def test_a_hundred_lanes_use_more_than_fifty_partitions():
    assert len({ids.lane_partition(f"lane-{i}") for i in range(100)}) > 50


def test_the_partition_counts_have_the_contracts_defaults():
    counts = partitions.PartitionCounts()
    assert (counts.flow, counts.budget, counts.quota) == (256, 32, 32)


@pytest.mark.parametrize(
    ("family", "index", "key"),
    [("fp", 7, "{fp:7}"), ("b", 0, "{b:0}"), ("q", 31, "{q:31}")],
)
def test_a_partition_key_round_trips(family, index, key):
    parsed = partitions.parse_partition_key(key)
    assert (parsed.family, parsed.index, parsed.key) == (family, index, key)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "MissingBraces"),
        ("{", "MissingBraces"),
        ("fp:7", "MissingBraces"),
        ("{fp:7", "MissingBraces"),
        ("{fp7}", "MalformedBody"),
        ("{}", "MalformedBody"),
        ("{fp:7:8}", "MalformedBody"),
        ("{zz:7}", "UnknownFamilyPrefix"),
        ("{:7}", "UnknownFamilyPrefix"),
        ("{fp:}", "InvalidIndex"),
        ("{fp:-1}", "InvalidIndex"),
        ("{fp:65536}", "InvalidIndex"),
        ("{fp:x}", "InvalidIndex"),
        ("{fp:٣}", "InvalidIndex"),
    ],
)
def test_a_malformed_partition_key_is_refused_with_its_rule(text, rule):
    with pytest.raises(partitions.PartitionKeyError) as caught:
        partitions.parse_partition_key(text)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "MissingTag"),
        (UUID, "MissingTag"),
        (f"{{fp:7{UUID}", "MissingTag"),
        (f"{{b:7}}:{UUID}", "MissingTag"),
        (f"{{fp:}}:{UUID}", "InvalidPartitionIndex"),
        (f"{{fp:65536}}:{UUID}", "InvalidPartitionIndex"),
        (f"{{fp:-1}}:{UUID}", "InvalidPartitionIndex"),
        (f"{{fp:٣}}:{UUID}", "InvalidPartitionIndex"),
        ("{fp:7}:", "InvalidUuid"),
        ("{fp:7}:not-a-uuid", "InvalidUuid"),
        (f"{{fp:7}}:{UUID}\n", "InvalidUuid"),
    ],
)
def test_a_malformed_execution_id_is_refused_with_its_rule(text, rule):
    with pytest.raises(ids.ExecutionIdError) as caught:
        ids.parse_execution_id(text)
    assert (caught.value.field, caught.value.rule) == ("execution_id", rule)


@pytest.mark.parametrize("form", [UUID, UUID.upper(), UUID.replace("-", ""), f"urn:uuid:{UUID}"])
def test_every_form_of_a_uuid_becomes_the_canonical_one(form):
    assert ids.parse_execution_id(f"{{fp:007}}:{form}") == f"{{fp:7}}:{UUID}"


def test_the_partition_comes_from_the_id_and_not_from_the_configuration():
    execution_id = minting.new_execution_id(partitions=4)
    assert ids.partition_of(ids.parse_execution_id(execution_id)) < 4
    assert ids.partition_of("{fp:900}:" + UUID) == 900


@given(st.integers(0, 65_535), st.uuids())
def test_every_execution_id_parses_into_itself(partition, value):
    text = f"{{fp:{partition}}}:{value}"
    assert ids.parse_execution_id(text) == text


def test_a_minted_id_is_canonical_and_spreads_by_its_own_uuid():
    minted = [minting.new_execution_id() for _ in range(2000)]
    assert all(CANONICAL.fullmatch(execution_id) for execution_id in minted)
    assert len(set(minted)) == len(minted)
    assert len({ids.partition_of(execution_id) for execution_id in minted}) > 240
    first = minted[0]
    assert ids.partition_of(first) == ids.flow_partition(first.partition("}:")[2])


def test_minted_ids_sort_by_time():
    texts = [minting.new_uuid7(now_ms) for now_ms in (1, 2, 1_700_000_000_000, 1_800_000_000_000)]
    assert texts == sorted(texts)
    assert {uuid.UUID(text).version for text in texts} == {7}


def test_lease_and_attempt_ids_are_random_uuids():
    for minted in (minting.new_lease_id(), minting.new_attempt_id(), minting.new_flow_id()):
        assert uuid.UUID(minted).version == 4
        assert uuid.UUID(minted).variant == uuid.RFC_4122
        assert str(uuid.UUID(minted)) == minted
    assert {minting.new_uuid4()[19] for _ in range(256)} == set("89ab"), "the two bits beside it are chance"


def test_an_id_for_a_flow_is_beside_the_flow():
    assert ids.partition_of(minting.new_execution_id(flow_id=UUID)) == 101


def test_the_lane_partitioner_gathers_a_lane():
    assert ids.partition_of(minting.new_execution_id(lane="default")) == 86


def test_a_partition_can_be_named():
    assert ids.partition_of(minting.new_execution_id(partition=3)) == 3


def test_a_deterministic_id_is_the_same_each_time():
    first = minting.deterministic_execution_id(UUID.upper(), lane="default")
    assert first == minting.deterministic_execution_id(UUID, lane="default") == f"{{fp:86}}:{UUID}"
    assert minting.deterministic_execution_id(UUID) == f"{{fp:101}}:{UUID}"


def test_a_deterministic_id_needs_a_uuid():
    with pytest.raises(InvalidInput):
        minting.deterministic_execution_id("order-7")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "Empty"),
        ("x" * 65, "TooLong"),
        ("é" * 33, "TooLong"),
        ("a\nb", "NonPrintable"),
        ("é", "NonPrintable"),
        ("\x7f", "NonPrintable"),
    ],
)
def test_a_malformed_lane_is_refused_with_its_rule(text, rule):
    with pytest.raises(ids.LaneIdError) as caught:
        ids.parse_lane_id(text)
    assert caught.value.rule == rule


@pytest.mark.parametrize("text", ["default", "x" * 64, "a b", "a:b", "{x}", "~"])
def test_a_printable_lane_is_accepted(text):
    assert ids.parse_lane_id(text) == text

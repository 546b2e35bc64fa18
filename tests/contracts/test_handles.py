"""The handle codec."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric.contracts import handles, ids
from flowfabric.contracts.handles import BackendTag, Handle, HandleKind
from flowfabric.errors import Corruption, HandleFromOtherBackend

VECTOR = bytes.fromhex(
    "0201022b0000007b66703a377d3a31313131313131312d323232322d343333332d383434342d35353535353535353535"
    "3535030000002400000061616161616161612d626262622d346363632d386464642d6565656565656565656565652400"
    "000031323334353637382d313233342d343233342d383233342d31323334353637383961626309000000000000003075"
    "0000000000000700000064656661756c7403000000772d31"
)
PAYLOAD = handles.HandlePayload(
    execution_id=ids.ExecutionId("{fp:7}:11111111-2222-4333-8444-555555555555"),
    attempt_index=3,
    attempt_id=ids.AttemptId("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"),
    lease_id=ids.LeaseId("12345678-1234-4234-8234-123456789abc"),
    lease_epoch=9,
    lease_ttl_ms=30_000,
    lane_id=ids.LaneId("default"),
    worker_instance_id=ids.WorkerInstanceId("w-1"),
)


def test_encoding_gives_the_published_vector():
    handle = handles.encode_handle(BackendTag.POSTGRES, HandleKind.FRESH, PAYLOAD)
    assert len(VECTOR) == 168
    assert handle.opaque == VECTOR


def test_decoding_gives_the_fields_back():
    handle = Handle(backend=BackendTag.POSTGRES, kind=HandleKind.FRESH, opaque=VECTOR)
    assert handles.decode_handle(handle, BackendTag.POSTGRES) == PAYLOAD


def test_version_one_decodes_as_valkey():
    assert handles.decode_handle_bytes(b"\x01" + VECTOR[3:]) == (BackendTag.VALKEY, PAYLOAD)


@pytest.mark.parametrize("tag", list(BackendTag))
def test_every_store_has_a_tag(tag):
    handle = handles.encode_handle(tag, HandleKind.RESUMED, PAYLOAD)
    assert handles.decode_handle(handle, tag) == PAYLOAD


@pytest.mark.parametrize("size", range(len(VECTOR)))
def test_truncated_bytes_are_corruption(size):
    with pytest.raises(Corruption):
        handles.decode_handle_bytes(VECTOR[:size])


@pytest.mark.parametrize(
    "opaque",
    [
        b"\x03" + VECTOR[1:],
        b"\x02\x02" + VECTOR[2:],
        b"\x02\x01\x09" + VECTOR[3:],
        VECTOR + b"\x00",
        VECTOR.replace(b"w-1", b"\xff-1"),
        VECTOR.replace(b"{fp:7}", b"{xx:7}"),
        VECTOR.replace(b"aaaaaaaa-", b"zzzzzzzz-"),
    ],
    ids=["lead byte", "wire version", "store tag", "trailing", "utf-8", "execution id", "attempt id"],
)
def test_bytes_that_are_not_a_handle_are_corruption(opaque):
    with pytest.raises(Corruption):
        handles.decode_handle_bytes(opaque)


def test_a_handle_of_another_store_is_refused():
    handle = Handle(backend=BackendTag.POSTGRES, kind=HandleKind.FRESH, opaque=VECTOR)
    with pytest.raises(HandleFromOtherBackend):
        handles.decode_handle(handle, BackendTag.SQLITE)


def test_a_handle_that_contradicts_its_bytes_is_corruption():
    handle = Handle(backend=BackendTag.SQLITE, kind=HandleKind.FRESH, opaque=VECTOR)
    with pytest.raises(Corruption):
        handles.decode_handle(handle)


@given(st.binary(max_size=200))
def test_no_bytes_at_all_can_do_anything_but_decode_or_be_corruption(opaque):
    with contextlib.suppress(Corruption):
        handles.decode_handle_bytes(opaque)

"""Merge patches change a JSON document as RFC 7396 says, within bounds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric.core.merge_patch import (
    DOCUMENT_BYTES_MAX,
    MERGE_DEPTH_MAX,
    NULL_SENTINEL,
    VALUE_DEPTH_MAX,
    merge,
    patch_document,
)
from flowfabric.errors import Corruption, InvalidInput, RetentionLimitExceeded

SCALARS = st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=3)
NAMES = st.sampled_from("abc")
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=3)


def nested(levels: int, leaf: str, opening: str = '{"a":', closing: str = "}") -> bytes:
    return (opening * levels + leaf + closing * levels).encode()


def naive(target, patch):
    """The algorithm of the standard, word for word."""
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict):
        target = {}
    for name in patch:
        if patch[name] is None:
            if name in target:
                del target[name]
        else:
            target[name] = naive(target.get(name), patch[name])
    return target


@given(OBJECTS, st.lists(OBJECTS, max_size=4))
def test_patches_in_sequence_give_what_the_naive_algorithm_gives(start, patches):
    document, expected = json.dumps(start).encode(), start
    for patch in patches:
        document = patch_document(document, json.dumps(patch).encode())
        expected = naive(expected, patch)
    assert json.loads(document) == expected


@given(OBJECTS, OBJECTS)
def test_neither_the_target_nor_the_patch_is_changed(target, patch):
    before = json.dumps([target, patch])
    merge(target, patch)
    assert json.dumps([target, patch]) == before


@pytest.mark.parametrize(
    ("document", "patch", "expected"),
    [
        ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
        ('{"a":"b"}', '{"a":null}', "{}"),
        ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
        ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
        ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
        ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
        ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
        ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
    ],
)
def test_the_examples_of_the_standard(document, patch, expected):
    assert patch_document(document.encode(), patch.encode()).decode() == expected


@pytest.mark.parametrize(
    ("document", "patch", "expected"),
    [
        (b'{"a":{"b":1}}', b'{"a":{}}', b'{"a":{"b":1}}'),
        (b'{"a":{"b":1}}', b'{"a":[]}', b'{"a":[]}'),
        (b'{"a":[1]}', b'{"a":{}}', b'{"a":{}}'),
        (b"{}", b'{"a":{},"b":[]}', b'{"a":{},"b":[]}'),
        (b'{"a":{},"b":[]}', b"{}", b'{"a":{},"b":[]}'),
    ],
)
def test_an_empty_object_and_an_empty_array_are_different_things(document, patch, expected):
    assert patch_document(document, patch) == expected


def test_numbers_keep_their_kind():
    patch = b'{"whole":1,"fraction":1.0,"large":123456789012345678901234567890}'
    assert patch_document(b"{}", patch) == patch


class TestSentinel:
    def test_it_stores_a_null_wherever_it_stands(self):
        patch = f'{{"a":"{NULL_SENTINEL}","b":[1,"{NULL_SENTINEL}",{{"c":"{NULL_SENTINEL}"}}]}}'.encode()
        assert patch_document(b"{}", patch) == b'{"a":null,"b":[1,null,{"c":null}]}'

    def test_a_stored_null_is_replaced_and_deleted_like_any_value(self):
        assert patch_document(b'{"a":null,"b":null}', b'{"a":1,"b":null}') == b'{"a":1}'

    def test_a_null_in_an_array_is_a_value(self):
        assert patch_document(b"{}", b'{"a":[null]}') == b'{"a":[null]}'

    def test_a_name_is_not_a_value(self):
        patch = f'{{"{NULL_SENTINEL}":1}}'.encode()
        assert patch_document(b"{}", patch) == patch

    def test_it_works_down_to_the_deepest_level_a_patch_may_have(self):
        arrays = VALUE_DEPTH_MAX - 1
        patch = b'{"a":' + nested(arrays, f'"{NULL_SENTINEL}"', "[", "]") + b"}"
        assert patch_document(b"{}", patch) == b'{"a":' + nested(arrays, "null", "[", "]") + b"}"


class TestBounds:
    def test_objects_merge_to_the_greatest_depth(self):
        patch = nested(MERGE_DEPTH_MAX + 1, "1")
        assert patch_document(b"{}", patch) == patch

    @pytest.mark.parametrize(
        "patch",
        [
            nested(MERGE_DEPTH_MAX + 2, "1"),
            b'{"a":' + nested(VALUE_DEPTH_MAX, "1", "[", "]") + b"}",
            nested(30_000, "1", "[", "]"),
            nested(10_000, "1"),
        ],
    )
    def test_a_deeper_patch_is_refused(self, patch):
        with pytest.raises(InvalidInput, match="patch_depth_exceeded"):
            patch_document(b"{}", patch)

    @pytest.mark.parametrize("patch", [b"", b"nothing", b"\xff\xfe", b'{"a":', b'{"a":1e999}', b"1" * 5_000])
    def test_a_patch_that_is_not_json_is_refused(self, patch):
        with pytest.raises(InvalidInput, match="must be JSON"):
            patch_document(b"{}", patch)

    @pytest.mark.parametrize("patch", [b"[]", b"1", b'"text"', b"null", b"true"])
    def test_a_patch_that_is_not_an_object_is_refused(self, patch):
        with pytest.raises(InvalidInput, match="must be a JSON object"):
            patch_document(b"{}", patch)

    @pytest.mark.parametrize("document", [b"", b"[]", b"null", b"{"])
    def test_a_document_that_is_not_an_object_is_corrupt(self, document):
        with pytest.raises(Corruption):
            patch_document(document, b"{}")

    def test_a_document_cannot_grow_without_end(self):
        document = json.dumps({"a": "x" * (DOCUMENT_BYTES_MAX - 100)}).encode()
        with pytest.raises(RetentionLimitExceeded):
            patch_document(document, json.dumps({"b": "x" * 200}).encode())

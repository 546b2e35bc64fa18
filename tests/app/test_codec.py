"""Values to bytes and back."""

import enum
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypedDict

import pytest
from msgspec import Struct
from pydantic import BaseModel, SecretStr

from flowfabric.codec import Undecodable, Unencodable, decode_value, encode_value, require_size


@dataclass
class Point:
    x: int
    y: int


class Colour(enum.Enum):
    RED = "red"


class Shape(Struct, frozen=True):
    points: tuple[Point, ...]
    colour: Colour = Colour.RED


class Options(TypedDict, total=False):
    depth: int


class Model(BaseModel):
    name: str
    inner: list["Model"] = []
    secret: SecretStr | None = None


class Holder(Struct):
    model: Model


VALUES: list[tuple[Any, Any]] = [
    (Point(1, 2), Point),
    (Shape((Point(1, 2),)), Shape),
    ({"depth": 3}, Options),
    (Model(name="a", inner=[Model(name="b")]), Model),
    ([Model(name="a")], list[Model]),
    (Holder(Model(name="a")), Holder),
    (None, Point | None),
    (Point(1, 2), Point | None),
    (Model(name="a"), Model | None),
    ([1, "two", {"three": [4.5, None, True]}], Any),
    ("text ü", str),
    (7, int),
    (2**70, int),
    (None, None),
    (None, Any),
    (b"\x00\xff", bytes),
    (b"\x00\xff", bytes | None),
    (b"\x00\xff", Any),
    (b"\x00\xff", object),
    ({1: "a"}, dict[int, str]),
    (datetime(2026, 1, 2, tzinfo=UTC), datetime),
    (uuid.UUID(int=5), uuid.UUID),
    (Decimal("1.10"), Decimal),
    ({1, 2}, set[int]),
]


@pytest.mark.parametrize(("value", "kind"), VALUES)
def test_a_value_survives_the_way_there_and_back(value: Any, kind: Any) -> None:
    data, encoding = encode_value(value)
    assert decode_value(data, encoding, kind) == value


@pytest.mark.parametrize(
    ("data", "encoding", "kind", "words"),
    [
        (b"{}", "json", Point, "missing required field `x`"),
        (b"nonsense", "json", int, "not a valid int"),
        (b'"x"', "json", list[int], "list[int]: Expected `array`, got `str`"),
        (b"raw", "bytes", Point, "expected Point, got raw bytes"),
        (b"1", "protobuf", int, "unknown payload encoding 'protobuf'"),
        (b"\xff", "json", str, "not a valid str"),
        (b'"\\ud800"', "json", str, "not a valid str"),
        (b"{}", "json", Point | Shape | Model, "not a valid"),
        (b"{}", "json", type("Plain", (), {}), "Plain cannot be read from JSON"),
        (b"[" * 100_000, "json", Any, "not a valid"),
        (b"{}", "json", Model, "name: Field required"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, encoding: str, kind: Any, words: str) -> None:
    with pytest.raises(Undecodable) as refused:
        decode_value(data, encoding, kind)
    assert words in str(refused.value)


@pytest.mark.parametrize("kind", [Model, list[Model]])
def test_a_refused_model_does_not_show_the_values_it_was_given(kind: Any) -> None:
    data = b'{"name": {"password": "hunter2"}}'
    with pytest.raises(Undecodable) as refused:
        decode_value(data if kind is Model else b"[" + data + b"]", "json", kind)
    assert "name: Input should be a valid string" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "value", [object(), {"a": object()}, [lambda: 0], "\ud800", Exception("x"), {(1, 2): 3}]
)
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    with pytest.raises(Unencodable, match="cannot be stored"):
        encode_value(value)


def test_bytes_above_the_limit_are_refused_with_both_numbers() -> None:
    require_size(b"12345", 5, "it")
    with pytest.raises(Unencodable, match="it has 6 bytes and the limit is 5"):
        require_size(b"123456", 5, "it")


def test_without_an_encoding_bytes_are_taken_as_what_is_expected() -> None:
    assert decode_value(b"1", None, bytes) == b"1"
    assert decode_value(b"1", None, int) == 1

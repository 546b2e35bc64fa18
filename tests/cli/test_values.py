"""Values of options are read as they are documented, and refused with an example."""

import io
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from flowfabric.cli import values
from flowfabric.cli.exits import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500ms", 500),
        ("30s", 30_000),
        ("5m", 300_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
        ("1h30m", 5_400_000),
    ],
)
def test_a_duration_is_numbers_with_units(text: str, expected: int) -> None:
    assert values.duration_ms(text) == expected


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "5x", "-5s", "1h 30m"])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="30s, 5m, 2h"):
        values.duration_ms(text)


def test_names_are_split_at_commas() -> None:
    assert values.names("a, b,,c") == ("a", "b", "c")
    with pytest.raises(ArgumentTypeError):
        values.names(" , ")


@pytest.mark.parametrize("text", ["0", "-1", "x", "٣", ""])
def test_a_count_is_a_whole_number_from_one(text: str) -> None:
    assert values.positive("12") == 12
    with pytest.raises(ArgumentTypeError):
        values.positive(text)


def test_a_tag_has_an_equals_sign() -> None:
    assert values.tag("team.name=a=b") == ("team.name", "a=b")
    with pytest.raises(ArgumentTypeError, match="key=value"):
        values.tag("team.name")


def test_a_payload_is_text_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "input.json"
    file.write_bytes(b'{"a": 1}')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[2]")))
    assert values.json_payload("3", "it") == b"3"
    assert values.json_payload(f"@{file}", "it") == b'{"a": 1}'
    assert values.json_payload("-", "it") == b"[2]"


def test_a_payload_that_is_not_json_is_refused() -> None:
    with pytest.raises(UsageError, match="the input is not JSON"):
        values.json_payload("{a", "the input")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.json"):
        values.json_payload(f"@{tmp_path / 'absent.json'}", "it")


def test_the_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_bytes(b"1\n\n{\n")
    with pytest.raises(UsageError, match="line 3"):
        values.json_lines(str(file))

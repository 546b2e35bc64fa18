"""Tables are aligned and fit; nothing from the store can control the terminal."""

import pytest

from flowfabric.cli import output


def test_columns_are_aligned_and_lines_have_no_space_at_their_end() -> None:
    lines = output.table_lines(["A", "LONG"], [["1", "x"], ["222", ""]], flexible=1, width=None)
    assert lines == ["A    LONG", "1    x", "222"]


def test_the_flexible_column_gives_way_in_a_narrow_terminal() -> None:
    lines = output.table_lines(["ID", "KIND"], [["12345", "a very long kind"]], flexible=1, width=17)
    assert lines == ["ID     KIND", "12345  a very lo…"]
    assert max(len(line) for line in lines) == 17


def test_a_column_keeps_a_width_one_can_read() -> None:
    [_, line] = output.table_lines(["ID", "KIND"], [["x" * 50, "k" * 50]], flexible=1, width=10)
    assert line == "x" * 50 + "  " + "k" * (output.COLUMN_WIDTH_MIN - 1) + "…"


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\rb", "tab\t", "\u202eright to left", "\x9b31m"])
def test_control_characters_are_escaped(text: str) -> None:
    assert output.printable(text).isprintable()
    assert "\\" in output.printable(text)


def test_words_of_all_scripts_are_shown_as_they_are() -> None:
    assert output.printable("Grüße, 世界 ✓") == "Grüße, 世界 ✓"


def test_bytes_that_are_not_text_are_counted() -> None:
    assert output.shown_payload(b"\xff\xfe") == "<2 bytes>"
    assert output.shown_payload(None) == ""
    assert output.shown_payload(b"0123456789", 5) == "0123…"


def test_instants_lie_in_the_past_or_in_the_future() -> None:
    assert output.shown_age(1_000, 4_000) == "3s ago"
    assert output.shown_age(90_061_000, 0) == "in 1d 1h"

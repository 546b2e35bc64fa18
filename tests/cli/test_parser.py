"""The command line: what it accepts, what it says when it does not, and its reference page."""

import re

import pytest

from flowfabric.cli import main, render_cli_reference
from flowfabric.cli.exits import EXIT_CODES
from flowfabric.cli.parser import ENVIRONMENT, STATES, build_parser, parse_arguments
from flowfabric.cli.reference import verb_parsers
from flowfabric.contracts.states import PublicState
from tests.cli.conftest import ROOT

VERBS = [
    "worker", "submit", "list", "show", "explain", "tail", "cancel", "replay", "approve", "signal", "token",
    "flow", "lane", "workers", "audit", "migrate", "keys",
]  # fmt: skip


@pytest.mark.parametrize("words", [["--url", "u", "--json", "list"], ["list", "--url", "u", "--json"]])
def test_common_options_stand_before_or_after_the_verb(words: list[str]) -> None:
    found = parse_arguments(words)
    assert (found.url, found.json) == ("u", True)


def test_the_environment_is_used_where_an_option_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FF_URL", "sqlite:///env.db")
    monkeypatch.setenv("FF_NAMESPACE", "tenant")
    found = parse_arguments(["list"])
    assert (found.url, found.namespace) == ("sqlite:///env.db", "tenant")
    assert parse_arguments(["list", "--namespace", "own"]).namespace == "own"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dance"],
        ["submit"],
        ["list", "--state", "asleep"],
        ["show", "no-id"],
        ["show", "01997b3e-0000-7000-8000-000000000000"],
        ["submit", "greet", "--delay", "soon"],
        ["worker", "app:ff", "--concurrency", "0"],
        ["lis"],
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line_with_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: .*See 'flowfabric.*--help'\. \[usage\]\n", printed.err)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: flowfabric {verb}")


def test_help_names_the_exit_codes_and_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for code, meaning in EXIT_CODES.items():
        assert f"{code}: {meaning}" in printed
    for name in ENVIRONMENT:
        assert name in printed


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("flowfabric ")


def test_a_list_can_ask_for_every_public_state_that_a_record_can_have() -> None:
    assert set(STATES) == set(PublicState) - {PublicState.RESUMABLE}


def test_the_reference_has_every_verb_option_code_and_variable() -> None:
    page = render_cli_reference()
    for verb in VERBS:
        assert f"## flowfabric {verb}\n" in page
    options = set(re.findall(r"--[a-z][a-z-]+", build_parser().format_help()))
    for verb in VERBS:
        parser = verb_parsers(build_parser())[verb]
        options |= set(re.findall(r"^  (?:-h, )?(--[a-z][a-z-]+)", parser.format_help(), re.MULTILINE))
    assert {option for option in options if option not in page} == set()
    for text in [*EXIT_CODES.values(), *ENVIRONMENT]:
        assert text in page


def test_the_reference_page_is_the_one_that_the_parser_makes() -> None:
    assert (ROOT / "docs/reference/cli.md").read_text().endswith(render_cli_reference()), "run `make docs`"

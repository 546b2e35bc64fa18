"""The reference page of the command line, made from the parser itself."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flowfabric.cli.exits import EXIT_CODES
from flowfabric.cli.parser import ENVIRONMENT, PROGRAM, build_parser

if TYPE_CHECKING:
    from collections.abc import Iterable

INTRODUCTION = """\
# Command line

`flowfabric` runs workers, submits work, looks at it and operates it.
`python -m flowfabric` is the same command.

Results go to standard output, everything else to standard error.
A failure is one line there: `error: <what happened and what to do> [<code>]`.
With `--json` every verb prints one JSON document.
The verbs with many answers print one in each line: `submit --many`, `tail`, `cancel`, `replay` and `worker`.
The fields have the names of the contracts; `result_json` beside `result` is the decoded result.

Execution ids are written whole, and in quotes because of their braces: `'{fp:7}:01997b3e-…'`.
Durations are numbers with units: `500ms`, `30s`, `5m`, `2h`, `1d`, `1h30m`.
"""


def render_cli_reference() -> str:
    """The page as Markdown. It does not depend on the terminal or the Python version."""
    parser = build_parser()
    parts = [INTRODUCTION, "## Everywhere\n", _options_table(parser)]
    parts += ["## Environment\n", _table(("variable", "meaning"), ENVIRONMENT.items())]
    codes = ((str(code), text) for code, text in EXIT_CODES.items())
    parts += ["## Exit codes\n", _table(("code", "meaning"), codes)]
    common = {action.dest for action in parser._actions}  # noqa: SLF001 - argparse has no other way to ask
    for name, verb in verb_parsers(parser).items():
        parts += [f"## {PROGRAM} {name}\n", _verb_section(name, verb, common)]
    return "\n".join(parts).rstrip() + "\n"


def verb_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb, by its name."""
    [verbs] = [
        action
        for action in parser._actions  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001 - as above
    ]
    return dict(verbs.choices)


def _verb_section(name: str, parser: argparse.ArgumentParser, common: set[str]) -> str:
    own = [action for action in parser._actions if action.dest not in common]  # noqa: SLF001 - as above
    words = " ".join([PROGRAM, name, *(_usage_word(action) for action in own)])
    rows = [(f"`{_spelled(action)}`", _sentence(action)) for action in own]
    parts = [f"{parser.description}\n", f"```text\n{words}\n```\n"]
    if rows:
        parts.append(_table(("argument", "meaning"), rows))
    return "\n".join(parts)


def _usage_word(action: argparse.Action) -> str:
    if action.option_strings:
        return f"[{_spelled(action)}]"
    word = str(action.metavar)
    return {"?": f"[{word}]", "+": f"{word}..."}.get(str(action.nargs), word)


def _spelled(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar)
    takes_value = action.nargs != 0
    value = action.metavar if action.metavar is not None else action.dest.upper()
    return f"{action.option_strings[-1]} {value}" if takes_value else action.option_strings[-1]


def _options_table(parser: argparse.ArgumentParser) -> str:
    options = [action for action in parser._actions if action.option_strings]  # noqa: SLF001 - as above
    return _table(("option", "meaning"), [(f"`{_spelled(action)}`", _sentence(action)) for action in options])


def _sentence(action: argparse.Action) -> str:
    return str(action.help or "").replace("|", "\\|")


def _table(headers: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {headers[0]} | {headers[1]} |", "| --- | --- |"]
    lines += [f"| {name} | {text} |" for name, text in rows]
    return "\n".join(lines) + "\n"

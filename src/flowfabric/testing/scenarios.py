"""The acceptance scenarios: which are covered, which are replaced, and which belong to later parts.

The list is data, in ``docs/reference/scenarios.toml``. A test covers a scenario by carrying its
number: ``@pytest.mark.scenario("LIFE-001")``. A scenario that does not apply as it stands is
replaced: the list says why, and names the test of what holds instead.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT: Final = Path(__file__).parents[3]
"""The folder that holds the sources, the tests and the documentation."""

LIST: Final = ROOT / "docs" / "reference" / "scenarios.toml"
TEST_FOLDERS: Final = (ROOT / "tests", ROOT / "src" / "flowfabric" / "testing" / "conformance")


Test: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of the list."""

    id: str
    status: Literal["covered", "replaced", "later"]
    reason: str = ""
    """Why a replaced scenario does not apply as it stands."""
    held_by: str = ""
    """The test of what holds instead, as ``path::name``."""
    part: str = ""
    """The part of the project that a later scenario belongs to."""


def load_scenarios(path: Path = LIST) -> list[Scenario]:
    """The list, in its order.

    Raises:
        msgspec.ValidationError: an entry is malformed.
    """
    entries = tomllib.loads(path.read_text("utf-8"))["scenario"]
    return msgspec.convert(entries, list[Scenario])


def marked_tests(folders: Iterable[Path] = TEST_FOLDERS) -> dict[str, list[str]]:
    """Scenario -> the tests that carry its number, as ``path::name``."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            for number, test in marks_in(ast.parse(path.read_text("utf-8"))):
                found.setdefault(number, []).append(f"{path.relative_to(ROOT)}::{test.name}")
    return found


def marks_in(module: ast.Module) -> Iterator[tuple[str, Test]]:
    """Each number that a test of a module carries, with the test."""
    for node in ast.walk(module):
        if isinstance(node, Test):
            for decorator in node.decorator_list:
                for number in _numbers_of(decorator):
                    yield number, node


def _numbers_of(decorator: ast.expr) -> list[str]:
    """The numbers in ``@pytest.mark.scenario("LIFE-001")``."""
    if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Attribute):
        return []
    if decorator.func.attr != "scenario":
        return []
    return [str(argument.value) for argument in decorator.args if isinstance(argument, ast.Constant)]


def is_test(place: str) -> bool:
    """Whether ``path::name`` is a test."""
    file, _, name = place.partition("::")
    path = ROOT / file
    return path.is_file() and f"def {name}(" in path.read_text("utf-8")


def render_scenarios() -> str:
    """The page of the documentation that shows the list."""
    marked = marked_tests()
    lines = [
        "# Acceptance scenarios",
        "",
        "Each scenario has a number, and a test carries it.",
        "A *replaced* one does not apply as it stands; its line says why and what holds instead.",
        "One that belongs to a *later* part waits for that part.",
        "",
        "| scenario | status | test |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {one.id} | {one.status} | {_shown(one, marked)} |" for one in load_scenarios()]
    return "\n".join(lines)


def _shown(scenario: Scenario, marked: dict[str, list[str]]) -> str:
    if scenario.status == "replaced":
        return f"{scenario.reason} See `{scenario.held_by}`."
    if scenario.status == "later":
        return scenario.part
    return ", ".join(sorted({f"`{place.partition('::')[0]}`" for place in marked.get(scenario.id, [])}))

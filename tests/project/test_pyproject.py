"""What pyproject.toml promises: bounded versions, reasons for what is off, a wheel that is complete."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.project.tree import ROOT

TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(TEXT)

RULE_LINE = re.compile(r'^\s*"([A-Z]+[0-9]*)",(.*)$')


def unbounded(requirements: list[str]) -> list[str]:
    """The requirements that lack a lowest version or a highest one. Our own extras need none."""
    specifiers = [requirement.split(";")[0] for requirement in requirements]
    foreign = [specifier for specifier in specifiers if not specifier.startswith("flowfabric[")]
    return [specifier for specifier in foreign if not re.search(r">=\d[^<]*,<\d", specifier)]


def rules_without_reason(text: str) -> list[str]:
    """The linter rules that stand on a line of their own with no comment beside them."""
    lint = text.partition("[tool.ruff.lint]")[2].partition("[tool.ruff.lint.mccabe]")[0]
    matches = [match for line in lint.splitlines() if (match := RULE_LINE.match(line))]
    return [match[1] for match in matches if len(match[2].partition("#")[2].split()) < 3]


def listed_rules() -> list[str]:
    lint = PROJECT["tool"]["ruff"]["lint"]
    return [*lint["ignore"], *(rule for rules in lint["per-file-ignores"].values() for rule in rules)]


def test_every_dependency_is_bounded_on_both_sides() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [PROJECT["project"]["dependencies"], PROJECT["build-system"]["requires"], *extras.values()]
    assert [name for requirements in asked for name in unbounded(requirements)] == []


def test_an_open_bound_is_seen() -> None:
    open_ended = ["apsw", "apsw>=3", "apsw<4", "apsw==3.51.3"]
    assert (
        unbounded([*open_ended, "apsw>=3.51.3,<4", "uvloop>=0.21,<1; sys_platform != 'win32'"]) == open_ended
    )


def test_every_rule_that_is_off_has_its_reason_beside_it() -> None:
    assert rules_without_reason(TEXT) == []
    assert sorted(listed_rules()) == sorted(
        match[1] for match in map(RULE_LINE.match, TEXT.splitlines()) if match
    )


def test_a_missing_reason_is_seen() -> None:
    text = '[tool.ruff.lint]\nignore = [\n    "A005", # nouns name modules\n    "PD",\n    "E501", # why\n]\n'
    assert rules_without_reason(text) == ["PD", "E501"]


def test_the_readme_is_part_of_the_package() -> None:
    if (ROOT / "README.md").exists():
        assert PROJECT["project"].get("readme") == "README.md", 'add readme = "README.md" below [project]'


@pytest.mark.slow
def test_the_wheel_carries_types_licence_and_command(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("flowfabric-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {re.sub(r"^flowfabric-[^/]*\.dist-info/", "", name) for name in archive.namelist()}
    assert {"flowfabric/py.typed", "licenses/LICENSE", "entry_points.txt"} <= names
    assert not {name for name in names if name.startswith(("tests/", "src/", "bench/"))}

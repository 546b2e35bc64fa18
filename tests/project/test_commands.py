"""The commands a contributor types are there, and the documents name them all."""

import os
import re

import pytest

from tests.project.tree import ROOT

DAILY = ["check", "test", "docs", "bench", "demo"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE)


def missing_commands(text: str) -> list[str]:
    return [name for name in DAILY if not re.search(rf"\bmake {name}\b", text)]


def test_the_five_commands_exist() -> None:
    assert set(DAILY) <= set(TARGETS)


def test_every_target_is_phony_and_explained() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    explained = re.findall(r"^([a-z]+):.*## \w+", MAKEFILE, re.MULTILINE)
    assert sorted(phony.split()) == sorted(TARGETS) == sorted(explained)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_a_document_that_opens_the_project_names_the_commands(name: str) -> None:
    document = ROOT / name
    assert name == "README.md" or document.exists()
    if document.exists():
        assert missing_commands(document.read_text()) == []


def test_a_missing_command_is_seen() -> None:
    assert missing_commands("`make check`, `make tests`, `make docs`, `make bench`, `make demo`") == ["test"]


@pytest.mark.parametrize("name", [".ci/run", "requirements/lock"])
def test_a_script_can_be_run(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    assert (ROOT / name).read_text().startswith("#!")

"""The tree names no package index and no path of the machine it was written on."""

import re

import pytest

from tests.project.tree import ROOT, project_texts

# Written in pieces, so that this file passes its own test.
INDEX_HOSTS = re.compile("|".join(("pypi" + r"\.org", "python" + "hosted", "npm" + r"js\.(org|com)")))
MACHINE_PATH = re.compile(r"(?<![\w.~*-])/" + "(work|home|root)/")
ADDRESS = re.compile("://|--(extra-)?index-url|--find-links|--trusted-host| @ |resolved")


def lines_with(pattern: re.Pattern[str], text: str) -> list[str]:
    return [line for line in text.splitlines() if pattern.search(line)]


def findings(pattern: re.Pattern[str]) -> list[str]:
    return [f"{name}: {line}" for name, text in project_texts() for line in lines_with(pattern, text)]


def test_no_file_names_a_package_index() -> None:
    assert findings(INDEX_HOSTS) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert findings(MACHINE_PATH) == []


@pytest.mark.parametrize("name", ["dev.txt", "run.txt"])
def test_a_lock_list_has_pins_and_hashes_and_no_address(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    assert lines_with(ADDRESS, text) == []
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if entry.strip()]
    assert len(entries) > 1
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+", entry), f"not pinned: {entry.splitlines()[0]}"
        assert "--hash=sha256:" in entry, f"without a hash: {entry.splitlines()[0]}"


def test_the_checks_see_what_they_look_for() -> None:
    assert lines_with(INDEX_HOSTS, "see https://pypi" + ".org/simple") != []
    assert lines_with(MACHINE_PATH, "cd /" + "home/ada/flowfabric") != []
    assert lines_with(MACHINE_PATH, "flows/work/state.py and ~/work/") == []
    assert lines_with(ADDRESS, "--index-url https://example.com") != []

"""The public API is typed as its users see it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_mypy_in_strict_mode_finds_in_users_code_what_is_wrong_and_nothing_else() -> None:
    usage = Path(__file__).with_name("usage.py")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file="]
    checked = subprocess.run(
        [*mypy, "--cache-dir=.mypy_cache/usage", str(usage)],
        cwd=ROOT,
        env={"MYPYPATH": "src"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr

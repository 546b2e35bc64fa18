"""The example of a flow runs to its end, and everything that it checks holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.realtime
@pytest.mark.slow
def test_the_letter_is_sent_without_the_slow_source() -> None:
    done = subprocess.run(
        [sys.executable, "examples/newsletter/demo.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Dear Ada: news of harbour, news of town" in done.stdout

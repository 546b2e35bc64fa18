"""The example of orders runs to its end, and everything that it checks holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.realtime
@pytest.mark.slow
def test_exactly_the_committed_orders_are_delivered() -> None:
    done = subprocess.run(
        [sys.executable, "examples/orders/demo.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "delivered to Ada" in done.stdout
    assert "0 violations" in done.stdout

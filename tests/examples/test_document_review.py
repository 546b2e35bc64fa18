"""The example runs to its end, and everything that it checks holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.document_review import analysis

ROOT = Path(__file__).resolve().parents[2]

TEXT = """Before all. The opening has one long enough sentence here.

# First

The worker claims a lease and the worker keeps the lease alive. Short one.

| a table | of words |

## Second

1. a list
"""


@pytest.mark.realtime
@pytest.mark.slow
def test_the_demo_reviews_the_repository_and_everything_holds() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "examples/document_review/demo.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n  ok") == 9
    assert "FAILED" not in done.stdout
    assert "KILLED worker" in done.stdout


def test_a_text_is_cut_at_its_headings() -> None:
    assert [section.title for section in analysis.sections(TEXT)] == ["", "First", "Second"]


def test_sentences_leave_out_tables_and_lists() -> None:
    assert analysis.sentences(TEXT) == [
        "The opening has one long enough sentence here.",
        "The worker claims a lease and the worker keeps the lease alive.",
    ]


def test_frequent_words_are_the_uncommon_ones() -> None:
    assert set(analysis.word_statistics(TEXT).frequent[:2]) == {"worker", "lease"}


def test_a_module_is_read_by_its_documentation() -> None:
    source = '"""What it is for."""\n\ndef go():\n    """Goes."""\n    return "not this"\n'
    assert [section.title for section in analysis.sections(analysis.documentation(source))] == [
        "Module",
        "go",
    ]
    assert "not this" not in analysis.documentation(source)

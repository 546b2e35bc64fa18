"""A short run of the fuzzer with a fixed seed: the routes; the long run sends every command too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flowfabric.server.openapi import openapi_document
from tests.fuzz.hooks import impatient
from tests.fuzz.runs import ENDLESS_AND_COMMANDS, fuzz

pytestmark = pytest.mark.realtime


@pytest.mark.slow
def test_random_requests_find_nothing(tmp_path: Path) -> None:
    found = fuzz(tmp_path, "fuzzing", examples=1, seed=1, without=ENDLESS_AND_COMMANDS)
    assert found.failures == []
    assert found.logged == []
    paths = openapi_document()["paths"]
    asked = [path for path in paths if not re.match(ENDLESS_AND_COMMANDS, path)]
    all_but_the_document = sum(len(paths[path]) for path in asked) - 1
    assert found.operations == all_but_the_document
    assert found.cases >= found.operations


def test_waits_that_would_be_honoured_are_cut_and_others_are_not() -> None:
    sent = {"wait_ms": 30_000, "a": [{"block_ms": "20000"}], "b": {"wait_ms": 30_001, "block_ms": None}}
    assert impatient(sent) == {
        "wait_ms": 1,
        "a": [{"block_ms": 1}],
        "b": {"wait_ms": 30_001, "block_ms": None},
    }

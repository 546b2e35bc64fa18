"""The benchmark of several processes: it counts what was completed, and leaves no process behind."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE

import pytest

from bench.processes import ROOT, measure
from bench.scene import descendants, fresh_sqlite, processor_s

pytestmark = [pytest.mark.slow, pytest.mark.realtime]


async def test_one_process_and_several_complete_executions_and_flows_and_end() -> None:
    with fresh_sqlite() as url:
        before = descendants(os.getpid())
        figures = await measure(url, processes=(1, 2), executions=64, flows=4)
        assert descendants(os.getpid()) <= before
    rates = {figure.name: figure.value for figure in figures if figure.unit == "1/s"}
    assert list(rates) == [
        "whole executions, 1 process",
        "flows of 10 in a row, 1 process",
        "whole executions, 2 processes",
        "flows of 10 in a row, 2 processes",
    ]
    assert min(rates.values()) > 0
    assert sum("clients" in figure.name for figure in figures) == len(rates)


async def test_a_process_that_breaks_fails_the_benchmark_and_the_others_end() -> None:
    before = descendants(os.getpid())
    with pytest.raises(RuntimeError, match="ended with 1"):
        await measure("nowhere://", processes=(2,), executions=64, flows=4)
    assert descendants(os.getpid()) <= before


async def test_a_process_ends_when_its_parent_has_gone() -> None:
    with fresh_sqlite() as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.processes", url, "asyncio", stdin=PIPE, stdout=PIPE, cwd=ROOT
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert await process.stdout.readline() == b'"ready"\n'
        process.stdin.write(b'{"kind": "executions", "count": 1000000}\n')
        process.stdin.close()  # as the kernel does for a parent that was killed
        assert await process.wait() == 0


def test_the_processor_time_of_a_process_that_has_ended_is_none() -> None:
    assert processor_s(os.getpid()) > 0
    assert processor_s(2**30) == 0

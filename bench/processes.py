"""Whole executions and flows from several processes at once, each with an app and a worker, on one store.

What one process submits may be run by another one, as it comes; each waits for what it has submitted.
The processes are driven through their standard input and end with it, so none outlives its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from bench.flows import CHAIN, run_chains
from bench.scene import PAYLOAD, Figure, Scene, descendants, processor_s, running
from flowfabric.contracts.states import PublicState
from flowfabric.run import Run

PROCESSES = (1, 2, 4)
EXECUTIONS = 4_800
FLOWS = 96
SUBMITTERS = 16
GROUP = 16
"""A submitter begins a group when the one before the last has ended: at most two of them wait or run."""
PATIENCE_S = 120.0
ROOT = Path(__file__).parents[1]


class Order(msgspec.Struct, frozen=True):
    """What one process shall do next, and how often."""

    kind: str
    count: int


class Report(msgspec.Struct, frozen=True):
    """How one process fared: when it was done, by the clock of the machine, and what it took."""

    ended: float
    cpu_s: float


async def measure(
    url: str, *, processes: Sequence[int] = PROCESSES, executions: int = EXECUTIONS, flows: int = FLOWS
) -> list[Figure]:
    """The same work in total, done by one process and by several."""
    figures = []
    for count in processes:
        async with _processes(url, count) as together:
            await together.carry_out("executions", executions // 10)
            figures += await together.figures("executions", "whole executions", executions)
            await together.carry_out("check", executions)
            await together.carry_out("flows", flows // 10)
            figures += await together.figures("flows", f"flows of {CHAIN} in a row", flows)
    return figures


class Together:
    """Processes that do the same at the same time."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes
        self._name = "1 process" if len(processes) == 1 else f"{len(processes)} processes"

    async def figures(self, kind: str, name: str, total: int) -> list[Figure]:
        """Have so much done, and say how fast it went and what one took of the processors."""
        total = self._share(total) * len(self._processes)
        begun, begun_server_s = time.monotonic(), self._server_s()
        reports = await self.carry_out(kind, total)
        server_us = (self._server_s() - begun_server_s) / total * 1e6
        rate = total / (max(report.ended for report in reports) - begun)
        clients_us = sum(report.cpu_s for report in reports) / total * 1e6
        figures = [
            Figure(name=f"{name}, {self._name}", value=rate, unit="1/s"),
            Figure(name="  processor time of one, clients", value=clients_us, unit="us"),
        ]
        if server_us:
            figures.append(Figure(name="  processor time of one, server", value=server_us, unit="us"))
        return figures

    async def carry_out(self, kind: str, total: int) -> list[Report]:
        """Give every process its share of the work, and wait until all have done it."""
        order = msgspec.json.encode(Order(kind, self._share(total))) + b"\n"
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(order)
        return await self.reports(Report)

    async def reports(self, kind: Any) -> list[Any]:
        """What every process says next."""
        async with asyncio.timeout(PATIENCE_S):
            return [await _told_by(process, kind) for process in self._processes]

    def _share(self, total: int) -> int:
        return max(total // len(self._processes), 1)

    def _server_s(self) -> float:
        """The processor time of servers that were started for this; of others it is not known."""
        own = {process.pid for process in self._processes}
        return sum(processor_s(pid) for pid in descendants(os.getpid()) if pid not in own)


async def _told_by(process: Process, kind: Any) -> Any:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process of the benchmark ended with {await process.wait()}")
    return msgspec.json.decode(line, type=kind)


@contextlib.asynccontextmanager
async def _processes(url: str, count: int) -> AsyncIterator[Together]:
    """So many processes whose workers wait for work."""
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    command = (sys.executable, "-m", "bench.processes", url, loop)
    async with contextlib.AsyncExitStack() as ending:
        processes = []
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
            ending.push_async_callback(_end, process)
            processes.append(process)
        together = Together(processes)
        await together.reports(str)
        yield together
        for process in processes:  # all at once, or each would wait for the one before it
            assert process.stdin is not None
            process.stdin.close()


async def _end(process: Process) -> None:
    """Let a process end; by force, if it does not by itself."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# --- what the processes do --------------------------------------------------------------------


async def be_driven(url: str) -> None:
    """Carry out orders from standard input until it ends, which it does with the parent at the latest."""
    orders: asyncio.Queue[Order] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        working = group.create_task(_carry_out_orders(url, orders))
        async for line in await _standard_input():
            orders.put_nowait(msgspec.json.decode(line, type=Order))
        working.cancel()


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def _carry_out_orders(url: str, orders: asyncio.Queue[Order]) -> None:
    async with running(url) as scene:
        driven = Driven(scene)
        _tell("ready")
        while True:
            order = await orders.get()
            begun_cpu = time.process_time()
            await driven.carry_out(order)
            _tell(Report(ended=time.monotonic(), cpu_s=time.process_time() - begun_cpu))


def _tell(what: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


class Driven:
    """What one process has submitted."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._unchecked: list[Run[bytes]] = []

    async def carry_out(self, order: Order) -> None:
        """Do what one order says."""
        match order.kind:
            case "executions":
                await self._run_executions(order.count)
            case "flows":
                await run_chains(self._scene, order.count)
            case "check":
                await self._check()

    async def _run_executions(self, count: int) -> None:
        """Submit so many executions, and wait until they have ended wherever they are run."""
        shares = [len(range(place, count, SUBMITTERS)) for place in range(min(SUBMITTERS, count))]
        await asyncio.gather(*(self._submit(share) for share in shares))

    async def _submit(self, count: int) -> None:
        """One submitter's share, in groups.

        Until the end it waits for the last one of a group only: those before it were claimed before it, and
        looking at each of them would cost what submitters do not spend.
        """
        groups: list[list[Run[bytes]]] = []
        for first in range(0, count, GROUP):
            if len(groups) > 1:
                await groups[-2][-1].wait()
            size = min(GROUP, count - first)
            groups.append([await self._scene.app.submit("echo", PAYLOAD) for _ in range(size)])
        await groups[-1][-1].wait()
        await asyncio.gather(*(run.wait() for group in groups[-2:] for run in group))
        self._unchecked += [run for group in groups for run in group]

    async def _check(self) -> None:
        """Make sure that all that was submitted has been completed."""
        views = await asyncio.gather(*(run.wait() for run in self._unchecked))
        assert {view.public_state for view in views} == {PublicState.COMPLETED}
        self._unchecked.clear()


if __name__ == "__main__":
    _, given_url, given_loop = sys.argv
    factory = import_module("uvloop").new_event_loop if given_loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(be_driven(given_url))

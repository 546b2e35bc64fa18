"""Sends a server what its own document allows, and what it does not, and checks every answer.

The server is a process of its own over a store in memory. The cases are schemathesis's: the edges of
every schema, and random requests made from it. Live streams are left out, for they do not end.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

HERE = Path(__file__).parent
TOKEN = "token-of-the-fuzzer"
START_S = 60.0
ENDLESS = "^/v1/live/"
ENDLESS_AND_COMMANDS = "^/v1/(live|commands)/"
UNTRUE = "positive_data_acceptance"
"""Rules go further than a schema can: ids that belong together, policies, states."""


class Found(msgspec.Struct):
    """What a run has sent and found."""

    cases: int
    operations: int
    failures: list[str]
    logged: list[str]
    """Lines of the server's log that tell of a fault of its own."""


def fuzz(
    folder: Path, phases: str, examples: int, seed: int, *, workers: int = 1, without: str = ENDLESS
) -> Found:
    """Fuzz a new server.

    Args:
        folder: where reports and logs go.
        phases: ``coverage`` for the edges of every schema, ``fuzzing`` for random requests, or both.
        examples: how many random requests each operation gets, at most.
        seed: the same seed sends the same requests.
        workers: how many requests are under way at the same time.
        without: which paths are left out.
    """
    with served(folder) as address:
        words = [
            *("--config-file", str(HERE / "schemathesis.toml"), "run", f"{address}/openapi.json"),
            *("--header", f"Authorization: Bearer {TOKEN}", "--exclude-path-regex", without),
            *("--exclude-checks", UNTRUE, "--phases", phases, "--continue-on-failure"),
            *("--request-timeout", "30"),
            *("--max-examples", str(examples), "--seed", str(seed), "--workers", str(workers)),
            *("--generation-database", "none", "--suppress-health-check", "all", "--no-color"),
            *("--report", "ndjson", "--report-ndjson-path", str(folder / "report.ndjson")),
        ]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
        tool = Path(sys.executable).parent / "schemathesis"
        with (folder / "fuzz.log").open("w") as log:
            subprocess.run([tool, *words], env=environment, stdout=log, stderr=log, cwd=folder, check=False)
    return _found(folder)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server process on a port of its own. Yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    words = ("-m", "flowfabric", "server", "--url", "memory://", "--listen", address)
    environment = {**os.environ, "FF_API_TOKEN": TOKEN, "FF_LOG_FORMAT": "json"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen([sys.executable, *words], env=environment, stdout=log, stderr=log)
        try:
            _await_ready(f"http://{address}", process)
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(START_S)


def _await_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{address}/readyz").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError(f"the server at {address} did not become ready")


def _found(folder: Path) -> Found:
    cases, operations, failures = 0, set(), Counter[str]()
    for line in (folder / "report.ndjson").read_text().splitlines():
        [(kind, content)] = json.loads(line).items()
        if kind in ("NonFatalError", "FatalError"):
            failures[f"{content.get('label')}: {content.get('value') or content.get('exception')}"] += 1
        if kind == "ScenarioFinished":
            recorder = content["recorder"]
            operations.add(recorder["label"])
            cases += len(recorder["interactions"])
            failures.update(_failures(recorder))
    told = [f"{what} ({count} times)" for what, count in failures.most_common()]
    return Found(cases, len(operations), told, _faults_logged(folder / "server.log"))


def _failures(recorder: dict[str, Any]) -> Iterator[str]:
    for case_id, checks in recorder["checks"].items():
        for check in checks:
            if check["status"] == "failure":
                answer = recorder["interactions"][case_id].get("response") or {}
                sent = json.dumps(recorder["cases"][case_id]["value"].get("query"))
                yield f"{recorder['label']}: {check['name']}, answered {answer.get('status_code')} {sent}"


def _faults_logged(log: Path) -> list[str]:
    lines = log.read_text().splitlines()
    return [line for line in lines if '"level":"error"' in line or "Traceback" in line]

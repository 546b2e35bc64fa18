"""The verbs that need a worker: it runs in a process of its own, as users run it."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.cli.conftest import ROOT, Shell, WorkerProcess, until

pytestmark = [pytest.mark.realtime, pytest.mark.slow]

StartWorker = Callable[..., WorkerProcess]


def open_waitpoint(shell: Shell, execution_id: str) -> dict[str, Any]:
    """The waitpoint of an execution, once it waits there."""
    until(lambda: shell.state(execution_id) == "suspended")
    [waitpoint] = shell.json("show", execution_id)["waitpoints"]
    found: dict[str, Any] = waitpoint
    return found


def test_a_worker_says_where_it_works_runs_what_is_there_and_drains(
    shell: Shell, start_worker: StartWorker
) -> None:
    worker = start_worker("--json", "--lanes", "default,slow")
    assert "durability D2 (survives power loss)" in worker.log_text()
    greeted = shell.out("submit", "greet", '"ada"', "--wait", "--timeout", "20s")
    running = shell.submit("last", 1.0, "--lane", "slow")
    until(lambda: shell.state(running) == "active")
    assert worker.stop() == 0
    assert greeted == '"hello ada"'
    assert shell.state(running) == "completed"
    started, stopped = (json.loads(line) for line in worker.output.read_text().splitlines())
    assert started["started"]["lanes"] == ["default", "slow"]
    assert stopped["stopped"]["worker_instance_id"] == started["started"]["worker_instance_id"]
    assert "Traceback" not in worker.log_text()


def test_a_worker_answers_for_its_metrics_at_an_address_of_its_own(
    shell: Shell, start_worker: StartWorker
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    start_worker("--metrics-listen", address, "--log-format", "json")
    assert shell.out("submit", "greet", '"ada"', "--wait", "--timeout", "20s") == '"hello ada"'
    ended = 'ff_attempt_outcome_total{lane="default",outcome="ok"} 1.0'
    told = until(lambda: ended in (text := httpx.get(f"http://{address}/metrics").text) and text)
    assert 'ff_workers{state="live"} 1.0' in told
    assert "ff_lease_renewal_total" in told


def test_a_worker_that_may_not_wait_gives_its_work_back(shell: Shell, start_worker: StartWorker) -> None:
    worker = start_worker("--drain-timeout", "100ms")
    running = shell.submit("last", 60, "--lane", "slow")
    until(lambda: shell.state(running) == "active")
    assert worker.stop(signal.SIGINT) == 0
    shown = shell.json("show", running)
    assert shown["execution"]["public_state"] in ("waiting", "delayed")
    assert shown["snapshot"]["current_lease"] is None
    assert shown["run"]["total_attempt_count"] == 1


def test_the_work_of_a_killed_worker_goes_on_when_it_is_marked_as_dead(
    shell: Shell, start_worker: StartWorker
) -> None:
    killed = start_worker("--lease-ttl", "1h", "--capabilities", "gpu")
    running = shell.submit("last", 0.5, "--lane", "slow")
    until(lambda: shell.state(running) == "active")
    [worker] = until(lambda: shell.json("workers", "list")["workers"])
    assert (worker["capabilities"], worker["held_leases"], worker["alive"]) == (["gpu"], 1, True)
    killed.stop(signal.SIGKILL)
    marked = shell.out("workers", "dead", worker["worker_instance_id"])
    assert marked.endswith("1 leases were revoked")
    start_worker()
    until(lambda: shell.state(running) == "completed")
    assert shell.json("show", running)["run"]["total_attempt_count"] == 2


@pytest.mark.parametrize("kind", ["hang", "last"])
def test_a_second_signal_ends_the_worker_at_once(shell: Shell, start_worker: StartWorker, kind: str) -> None:
    worker = start_worker("--lease-ttl", "1h")
    running = shell.submit(kind, 60, "--lane", "slow")
    until(lambda: shell.state(running) == "active")
    worker.process.send_signal(signal.SIGTERM)
    until(lambda: "draining" in worker.log_text())
    assert worker.stop() == 130
    assert "Traceback" not in worker.log_text()
    assert shell.state(running) == "waiting"


@pytest.mark.parametrize("kind", ["hang", "hang_in_step"])
def test_a_handler_that_hangs_in_a_thread_does_not_keep_the_worker(
    shell: Shell, start_worker: StartWorker, kind: str
) -> None:
    worker = start_worker("--drain-timeout", "100ms")
    running = shell.submit(kind, 60, "--lane", "slow")
    until(lambda: shell.state(running) == "active")
    assert worker.stop() == 0
    assert "handlers hang in 1 thread(s)" in worker.log_text()
    shown = shell.json("show", running)
    assert shown["snapshot"]["current_lease"] is None
    assert shown["execution"]["public_state"] in ("waiting", "delayed")


def test_a_failure_is_told_and_ends_with_code_1(shell: Shell, start_worker: StartWorker) -> None:
    start_worker()
    code, printed = shell.run("submit", "fail", "--wait", "--timeout", "20s")
    assert code == 1
    assert "no such luck" in printed
    ended = shell.json("submit", "fail", "--wait", "--timeout", "20s")
    assert ended["public_state"] == "failed"
    assert ended["failure_category"] == "handler_error"


def test_a_result_is_decoded_beside_its_bytes(shell: Shell, start_worker: StartWorker) -> None:
    start_worker()
    ended = shell.json("submit", "greet", '"ada"', "--wait", "--timeout", "20s")
    assert ended["result_json"] == "hello ada"
    assert bytes(ended["result"]) == b'"hello ada"'


def test_the_tail_shows_frames_and_ends_by_itself(shell: Shell, start_worker: StartWorker) -> None:
    start_worker()
    execution_id = shell.submit("greet", "ada")
    lines = shell.out("tail", execution_id).splitlines()
    assert [line.split("  ")[1:] for line in lines] == [["word", "hello"], ["word", "\\x1b[31m"]]
    _, printed = shell.run("tail", execution_id, "--attempt", "0", "--json")
    frames = [json.loads(line) for line in printed.splitlines()]
    assert [frame["fields"]["payload"] for frame in frames] == ["hello", "\x1b[31m"]


def test_an_operator_approves_what_waits(shell: Shell, start_worker: StartWorker) -> None:
    start_worker()
    execution_id = shell.submit("ask", "ada")
    open_waitpoint(shell, execution_id)
    assert "waits for the signal 'approval'" in shell.out("show", execution_id)
    accepted = shell.json("approve", execution_id, "--as", "grace", "--payload", '{"approved": false}')
    assert accepted["Accepted"]["effect"] == "resume_condition_satisfied"
    until(lambda: shell.state(execution_id) == "completed")
    assert shell.json("show", execution_id)["run"]["result_json"] == {
        "name": "ada",
        "answer": {"approved": False},
        "who": "grace",
    }


def test_a_token_signals_without_any_look_up_and_a_forged_one_changes_nothing(
    shell: Shell, start_worker: StartWorker
) -> None:
    start_worker()
    execution_id = shell.submit("ask", "ada")
    waitpoint = open_waitpoint(shell, execution_id)["waitpoint_id"]
    token = shell.out("token", execution_id, waitpoint)
    assert shell.json("token", execution_id)["waitpoint_token"] == token
    forged = token[:-1] + ("0" if token[-1] != "0" else "1")
    signal_to = ["signal", execution_id, "approval", "--waitpoint", waitpoint]
    assert shell.run(*signal_to, "--token", forged)[0] == 1
    assert shell.err.endswith("[invalid_token]\n")
    assert token not in shell.err
    assert shell.state(execution_id) == "suspended"
    accepted = shell.json(*signal_to, "--token", token, "--payload", "5")
    assert accepted["Accepted"]["effect"] == "resume_condition_satisfied"
    until(lambda: shell.state(execution_id) == "completed")
    assert shell.json("show", execution_id)["run"]["result_json"]["answer"] == 5


def test_show_keeps_tokens_to_itself(shell: Shell, start_worker: StartWorker) -> None:
    start_worker()
    execution_id = shell.submit("ask", "ada")
    open_waitpoint(shell, execution_id)
    mac = shell.out("token", execution_id).partition(":")[2]
    assert mac not in shell.out("show", execution_id)
    assert list(mac.encode()) != []
    shown = json.dumps(shell.json("show", execution_id))
    assert mac not in shown
    assert json.dumps(list(mac.encode()))[1:-1] not in shown


def test_a_link_holds_what_the_page_needs_to_answer(shell: Shell, start_worker: StartWorker) -> None:
    start_worker()
    execution_id = shell.submit("ask", "ada")
    open_waitpoint(shell, execution_id)
    words = ["link", execution_id, "approval", "--question", "May she?", "--choice", 'Yes={"ok": true}']
    assert shell.run(*words)[0] == 2
    assert "FF_PUBLIC_URL" in shell.err
    link = shell.out(*words, "--public-url", "https://flows.example")
    assert link.startswith("https://flows.example/w/#")
    fragment = link.partition("#")[2]
    told = json.loads(base64.urlsafe_b64decode(fragment + "=" * (-len(fragment) % 4)))
    assert told["t"] == shell.out("token", execution_id)
    assert (told["e"], told["n"], told["q"]) == (execution_id, "approval", "May she?")
    assert told["c"] == {"Yes": {"ok": True}}
    assert shell.run("link", execution_id, "approval", "--choice", "Yes=maybe")[0] == 2


def test_a_signal_with_a_key_counts_once(shell: Shell, start_worker: StartWorker) -> None:
    start_worker()
    execution_id = shell.submit("ask", "ada")
    waitpoint = open_waitpoint(shell, execution_id)["waitpoint_id"]
    send = ["signal", execution_id, "approval", "--waitpoint", waitpoint, "--idempotency-key", "once"]
    token = shell.out("token", execution_id)
    first = shell.json(*send, "--token", token)["Accepted"]["signal_id"]
    assert shell.json(*send, "--token", token) == {"Duplicate": {"existing_signal_id": first}}


def test_a_reader_that_has_had_enough_is_no_failure(shell: Shell) -> None:
    (shell.folder / "many.jsonl").write_text("1\n" * 3_000)
    shell.out("submit", "greet", "--many", "many.jsonl")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "flowfabric", "list", "--limit", "1000", "--url", shell.url]
    with subprocess.Popen(
        command, cwd=shell.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_events_are_followed_while_they_happen(shell: Shell, start_worker: StartWorker) -> None:
    shell.submit("greet", "ada")
    command = [sys.executable, "-m", "flowfabric", "events", "--follow", "--json", "--cursor", "start"]
    options = ["--family", "completion", "--url", shell.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, env=environment) as following:
        try:
            start_worker()
            assert following.stdout is not None
            event = json.loads(following.stdout.readline())
        finally:
            following.kill()
    assert event["Completion"]["outcome"] == "success"

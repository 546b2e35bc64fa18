"""Every verb that looks at or operates work does so over a server as over a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Shell
from tests.server.threaded import served_from_a_thread


@pytest.fixture
def remote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shell]:
    monkeypatch.delenv("FF_TOKEN", raising=False)
    with served_from_a_thread() as address:
        shell = Shell(tmp_path, capsys)
        shell.url = address
        yield shell


def test_an_execution_is_shown_from_all_sides(remote: Shell) -> None:
    execution_id = remote.submit("greet", "ada", "--tag", "team.name=media")
    printed = remote.out("show", execution_id)
    assert "team.name=media" in printed
    assert "timeline" in printed
    shown = remote.json("show", execution_id)
    assert [(event["family"], event["name"]) for event in shown["timeline"]] == [
        ("execution", "created"),
        ("tag", "attached"),
    ]
    assert execution_id in remote.out("list")


def test_flows_are_listed(remote: Shell) -> None:
    (remote.folder / "flow.json").write_text('{"kind": "order", "members": {"a": {"kind": "greet"}}}')
    flow_id = remote.out("flow", "submit", str(remote.folder / "flow.json"))
    [row] = remote.json("flow", "list")["flows"]
    assert (row["flow_id"], row["flow_kind"], row["node_count"]) == (flow_id, "order", 1)
    assert flow_id in remote.out("flow", "list")


def test_a_store_is_audited_by_its_server(remote: Shell) -> None:
    remote.submit("greet", 1)
    assert "no invariant is violated" in remote.out("audit")
    report = remote.json("audit", "--everywhere")
    assert report["violations"] == []
    assert report["checked"]["execution"] == 1
    assert remote.json("audit", "--namespace", "other")["checked"].get("execution", 0) == 0


def test_what_operators_did_is_told(remote: Shell) -> None:
    execution_id = remote.submit("greet", 1)
    remote.out("cancel", execution_id)
    line = remote.out("log")
    assert "operator cancelled" in line
    assert "actor=anonymous" in line


def test_migrating_needs_the_store(remote: Shell) -> None:
    assert remote.run("migrate", "--check")[0] == 2

"""What `server` and `new-token` do before the first request."""

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from flowfabric.cli import main
from flowfabric.engine.scanners.duties import DUTIES


class Served:
    """Stands for a server that is told to stop at once."""

    async def serve(self) -> None:
        return None

    def stop(self) -> None:
        return None


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the duties that the server's process has begun."""
    names: list[str] = []

    class Scanners:
        def __init__(self, engine: Any, duties: Any) -> None:
            names.extend(duty.name for duty in duties)

        def start(self) -> None:
            return None

        async def stop(self) -> None:
            return None

    monkeypatch.setattr("flowfabric.cli.serving.Scanners", Scanners)
    monkeypatch.setattr("flowfabric.server.serving.make_server", lambda *_: Served())
    return names


def test_a_server_does_every_duty(begun: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FF_RETENTION", raising=False)
    assert main(["server", "--url", "memory://"]) == 0
    assert begun == [duty.name for duty in DUTIES]


def test_a_server_keeps_what_has_ended_for_as_long_as_its_workers_do(
    begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FF_RETENTION", "off")
    assert main(["server", "--url", "memory://"]) == 0
    assert begun
    assert not [name for name in begun if "trimmer" in name]


def test_a_malformed_retention_is_refused(
    begun: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FF_RETENTION", "soon")
    assert main(["server", "--url", "memory://"]) == 2
    assert "FF_RETENTION" in capsys.readouterr().err
    assert begun == []


def test_a_settings_file_names_the_store_and_the_duties(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: list[str]
) -> None:
    file = tmp_path / "flowfabric.toml"
    store = tmp_path / "named.db"
    file.write_text(f'url = "sqlite:///{store}"\nretention = "off"\nunblock_interval_s = 0\n')
    monkeypatch.setattr("os.environ", {"FF_CONFIG": str(file)})
    assert main(["server"]) == 0
    assert store.exists()
    assert not [name for name in begun if "trimmer" in name or name == "unblock"]


def test_a_variable_that_means_another_store_keeps_the_server_from_starting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], begun: list[str]
) -> None:
    monkeypatch.setattr("os.environ", {"FF_BACKEND": "valkey"})
    assert main(["server"]) == 2
    assert "FF_BACKEND" in (told := capsys.readouterr().err)
    assert "FF_URL" in told
    assert begun == []


def test_metrics_without_their_library_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], begun: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "flowfabric.observability.metrics", raising=False)
    monkeypatch.setenv("FF_METRICS", "on")
    assert main(["server", "--url", "memory://"]) == 2
    assert "flowfabric[metrics]" in capsys.readouterr().err
    assert begun == []


def test_the_entry_of_a_new_token_is_toml_whatever_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-token", 'ana "the boss"', "--role", "read", "--namespace", "demo"]) == 0
    printed = capsys.readouterr()
    [entry] = tomllib.loads(printed.err)["token"]
    assert (entry["name"], entry["roles"], entry["namespace"]) == ('ana "the boss"', ["read"], "demo")
    assert printed.out.strip() not in printed.err

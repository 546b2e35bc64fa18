"""What `docs/operate` shows is there: metrics, commands, variables, settings, extras."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from docs import build
from docs.dashboard import PANELS
from flowfabric.cli.parser import parse_arguments
from flowfabric.observability.metrics import Metrics
from flowfabric.observability.readings import GAUGES
from flowfabric.server.routes import ROUTES
from flowfabric.settings import EVERYTHING, OTHERS, read_file, read_values
from tests.project.tree import ROOT

OPERATE = ROOT / "docs" / "operate"
FILES = sorted(path for path in OPERATE.iterdir() if path.name != "flowfabric-ops.json")
UNITS = sorted(OPERATE.glob("*.service"))
PROBE = re.compile(r"9090(/\w+)")


def told() -> set[str]:
    """Every name under which something is scraped."""
    names = set()
    for definition in [*Metrics().definitions, *GAUGES.values()]:
        ends = ("_bucket", "_sum", "_count") if definition.kind == "histogram" else ("",)
        names |= {definition.name + end for end in ends}
    return names


# The dashboard


def test_every_metric_of_the_dashboard_is_told() -> None:
    dashboard = json.loads((OPERATE / "flowfabric-ops.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for query in queries for name in re.findall(r"\bff_\w+", query)}
    assert named <= told()
    assert (dashboard["uid"], dashboard["refresh"]) == ("flowfabric-ops", "30s")
    assert len(dashboard["panels"]) == len(PANELS)


def test_a_query_asks_for_labels_that_the_metric_has() -> None:
    labels = {one.name: set(one.labels) for one in [*Metrics().definitions, *GAUGES.values()]}
    everywhere = {"job", "instance", "le", "class"}
    for panel in PANELS:
        for query in panel.queries.values():
            known = set().union(
                *(
                    labels[re.sub(r"_(bucket|sum|count)$", "", name) if name not in labels else name]
                    for name in re.findall(r"\bff_\w+", query)
                )
            )
            asked = {label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")}
            assert asked <= known | everywhere, query


def test_the_dashboard_shows_every_gauge_of_the_store_that_is_no_detail() -> None:
    shown = " ".join(query for panel in PANELS for query in panel.queries.values())
    details = {"ff_event_log_position", "ff_store_reading_complete"}
    assert [name for name in GAUGES if name not in details and name not in shown] == []


def test_a_dashboard_that_is_stale_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "PAGES", {})
    monkeypatch.setattr(build, "DASHBOARD", tmp_path / "flowfabric-ops.json")
    assert build.main(["--check"]) == 1
    assert "flowfabric-ops.json is not up to date" in capsys.readouterr().out


SIMILAR = [
    "ff_http_requests_total",
    "ff_http_request_duration_seconds",
    "ff_scanner_cycle_total",
    "ff_scanner_cycle_duration_seconds",
    "ff_cancel_backlog_depth",
    "ff_claim_from_grant_duration_seconds",
    "ff_lease_renewal_total",
    "ff_attempt_outcome_total",
    "ff_worker_at_capacity_total",
    "ff_budget_hit_total",
    "ff_quota_hit_total",
    "ff_edge_group_policy_total",
    "ff_sibling_cancel_dispatched_total",
    "ff_sibling_cancel_disposition_total",
    "ff_sibling_cancel_reconcile_total",
    "ff_shutdown_timeout_total",
    "ff_pending_waitpoint_legacy_token_served_total",
    "ff_backend_unready_boot_total",
]
"""The names that operators of similar engines know."""


def test_every_metric_of_similar_engines_is_told_or_has_an_answer() -> None:
    known = {definition.name for definition in [*Metrics().definitions, *GAUGES.values()]}
    assert set(SIMILAR) == known & set(SIMILAR) | build.NOT_TOLD.keys()
    assert not known & build.NOT_TOLD.keys()


# Files


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_that_exists(unit: Path) -> None:
    [line] = re.findall(r"^ExecStart=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    program, *words = shlex.split(line.replace("%I", "app:ff"))
    assert Path(program).name == "flowfabric"
    assert parse_arguments(words).config == "/etc/flowfabric/flowfabric.toml"


def test_the_image_starts_a_command_that_exists_with_extras_that_exist() -> None:
    text = (OPERATE / "Containerfile").read_text(encoding="utf-8")
    [command] = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert parse_arguments(json.loads(command)).verb == "server"
    [extras] = re.findall(r"flowfabric\[([a-z,]+)\]", text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_variable_and_probe_that_is_named_exists(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    known = {setting.variable for setting in EVERYTHING} | OTHERS.keys()
    assert set(re.findall(r"\bFF_[A-Z_]+\b", text)) <= known
    assert set(PROBE.findall(text)) <= {route.path for route in ROUTES}


def test_the_settings_of_the_example_are_read() -> None:
    values = read_values(EVERYTHING, {}, {}, read_file(OPERATE / "flowfabric.toml"))
    assert (values["metrics"], values["concurrency"], values["drain_timeout"]) == (True, 32, 30_000)

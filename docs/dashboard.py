"""The Grafana dashboard, as panels with their queries; ``docs/build.py`` writes the file."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

UID = "flowfabric-ops"
TITLE = "FlowFabric — Operator Observability"
COLUMNS = 3
WIDTH = 24 // COLUMNS
HEIGHT = 8
JOBS = 'job=~"$job"'


class Panel(NamedTuple):
    """One graph: its queries with their legends."""

    title: str
    unit: str
    queries: dict[str, str]
    meaning: str = ""


def _rate(metric: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}{{{JOBS}}}[$__rate_interval]))"


def _quantile(quantile: float, metric: str, *by: str) -> str:
    return f"histogram_quantile({quantile}, {_rate(f'{metric}_bucket', 'le', *by)})"


def _greatest(metric: str, *by: str) -> str:
    """Every process with the store tells the same, so the greatest is the latest that somebody read."""
    return f"max by ({', '.join(by)}) ({metric}{{{JOBS}}})"


PANELS = (
    Panel("Queue depth by lane", "short", {"{{lane}}": _greatest("ff_queue_depth", "lane")}),
    Panel(
        "Executions by state",
        "short",
        {"{{state}}": f"sum by (state) ({_greatest('ff_executions', 'lane', 'state')})"},
    ),
    Panel("Workers", "short", {"{{state}}": _greatest("ff_workers", "state")}),
    Panel(
        "Claim latency by lane",
        "s",
        {
            f"p{round(quantile * 100)} {{{{lane}}}}": _quantile(
                quantile, "ff_claim_from_grant_duration_seconds", "lane"
            )
            for quantile in (0.5, 0.95, 0.99)
        },
    ),
    Panel(
        "Claim rate by lane",
        "ops",
        {"{{lane}}": _rate("ff_claim_from_grant_duration_seconds_count", "lane")},
    ),
    Panel(
        "Attempt outcomes by lane",
        "ops",
        {"{{lane}} {{outcome}}": _rate("ff_attempt_outcome_total", "lane", "outcome")},
    ),
    Panel(
        "Claim to completion by lane, p95",
        "s",
        {"{{lane}}": _quantile(0.95, "ff_claim_to_complete_seconds", "lane")},
    ),
    Panel(
        "Submission to completion by lane, p95",
        "s",
        {"{{lane}}": _quantile(0.95, "ff_submit_to_complete_seconds", "lane")},
    ),
    Panel("Errors by kind", "ops", {"{{kind}}": _rate("ff_error_total", "kind")}),
    Panel("Lease renewals", "ops", {"{{outcome}}": _rate("ff_lease_renewal_total", "outcome")}),
    Panel(
        "Workers at capacity",
        "ops",
        {"{{instance}}": _rate("ff_worker_at_capacity_total", "instance")},
        "How often workers had no free slot left. Much of it beside a growing queue asks for more workers.",
    ),
    Panel(
        "Budget and quota hits",
        "ops",
        {
            "budget {{dimension}}": _rate("ff_budget_hit_total", "dimension"),
            "quota {{reason}}": _rate("ff_quota_hit_total", "reason"),
        },
    ),
    Panel(
        "Background duties, p95 of a sweep",
        "s",
        {"{{scanner}}": _quantile(0.95, "ff_scanner_cycle_duration_seconds", "scanner")},
    ),
    Panel(
        "Background duties, sweeps",
        "ops",
        {
            "{{scanner}}": _rate("ff_scanner_cycle_total", "scanner"),
            "{{scanner}} failed": _rate("ff_scanner_failure_total", "scanner"),
        },
    ),
    Panel("Background duties, lag", "s", {"{{scanner}}": _greatest("ff_scanner_lag_seconds", "scanner")}),
    Panel(
        "Backlogs",
        "short",
        {
            "members to cancel": f"max(ff_cancel_backlog_depth{{{JOBS}}})",
            "messages to deliver": f"max(ff_message_backlog_depth{{{JOBS}}})",
            "commands waiting on {{instance}}": _greatest("ff_commands_waiting", "instance"),
        },
    ),
    Panel(
        "Commits",
        "ops",
        {"{{outcome}}": _rate("ff_commit_total", "outcome")},
        "A conflict is a commit that changed nothing, because another process was faster.",
    ),
    Panel(
        "Commands in a commit, and its time",
        "short",
        {
            "mean commands": f"{_rate('ff_commit_batch_size_sum', 'job')} / "
            f"{_rate('ff_commit_batch_size_count', 'job')}",
            "p95 seconds": _quantile(0.95, "ff_commit_duration_seconds"),
        },
    ),
    Panel(
        "HTTP requests by status class",
        "reqps",
        {
            "{{class}}": "sum by (class) (label_replace("
            f"rate(ff_http_requests_total{{{JOBS}}}[$__rate_interval]), "
            '"class", "${1}xx", "status", "(.).."))'
        },
    ),
    Panel(
        "HTTP p95 by path",
        "s",
        {"{{method}} {{path}}": _quantile(0.95, "ff_http_request_duration_seconds", "method", "path")},
    ),
    Panel(
        "HTTP requests that wait, and ends that cut some off",
        "short",
        {
            "waiting on {{instance}}": _greatest("ff_http_requests_waiting", "instance"),
            "cut off": _rate("ff_shutdown_timeout_total", "job"),
        },
    ),
    Panel(
        "Readers behind the log of events, p95",
        "short",
        {"events behind": _quantile(0.95, "ff_event_log_lag_events")},
    ),
    Panel("Events that are kept", "short", {"events": _greatest("ff_event_log_length", "job")}),
    Panel(
        "What an acknowledged commit survives",
        "short",
        {
            "{{store}} level": f"min by (store) (ff_store_durability_level{{{JOBS}}})",
            "store answers": f"min(ff_store_up{{{JOBS}}})",
        },
        "0 nothing, 1 a killed process, 2 power loss, 3 the loss of the host.",
    ),
)


def render_dashboard() -> str:
    """The dashboard as Grafana imports it."""
    return json.dumps(
        {
            "uid": UID,
            "title": TITLE,
            "tags": ["flowfabric"],
            "refresh": "30s",
            "schemaVersion": 39,
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "templating": {"list": [_datasource(), _job()]},
            "panels": [_panel(place, panel) for place, panel in enumerate(PANELS)],
        },
        indent=1,
        ensure_ascii=False,
    )


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _job() -> dict[str, Any]:
    return {
        "name": "job",
        "type": "query",
        "label": "Job",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": "label_values(ff_operation_total, job)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
    }


def _panel(place: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(place, COLUMNS)
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }

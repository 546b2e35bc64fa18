"""``show``: one execution from all sides, and in one sentence what it waits for."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.cli.exits import OK
from flowfabric.cli.following import event_told
from flowfabric.cli.output import (
    print_fields,
    print_json,
    print_table,
    printable,
    shown_age,
    shown_payload,
)
from flowfabric.cli.session import open_engine, run
from flowfabric.cli.submitting import run_to_wire
from flowfabric.contracts.events import ListEventsArgs, family_of
from flowfabric.contracts.explaining import ExplainExecutionArgs, Explanation
from flowfabric.contracts.history import AttemptInfo, ListAttemptsArgs
from flowfabric.contracts.journal import JournalEntry, ReadJournalArgs
from flowfabric.contracts.limits import PAGE_ROWS_MAX
from flowfabric.contracts.reads import (
    DescribeExecutionArgs,
    ExecutionInfo,
    ExecutionSnapshot,
    ReadExecutionInfoArgs,
)
from flowfabric.contracts.runs import ReadRunArgs, RunView
from flowfabric.contracts.suspensions import ListPendingWaitpointsArgs, PendingWaitpointInfo
from flowfabric.core.instants import shown_time

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.events import AnyEvent
    from flowfabric.contracts.ids import ExecutionId
    from flowfabric.engine.interface import AnyEngine

ATTEMPTS_SHOWN: Final = 20
EVENTS_SHOWN: Final = 20
EVENTS_READ_MAX: Final = 10_000
RESULT_CHARS: Final = 2_000
DETAIL_CHARS: Final = 100


class Portrait(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is shown of one execution."""

    now: int
    info: ExecutionInfo
    snapshot: ExecutionSnapshot
    view: RunView
    attempts: tuple[AttemptInfo, ...]
    explanation: Explanation
    waitpoints: tuple[PendingWaitpointInfo, ...]
    journal: tuple[JournalEntry, ...]
    timeline: tuple[AnyEvent, ...]


def show(arguments: Namespace) -> int:
    """Carry out ``show``."""
    return run(_show(arguments))


async def _show(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        portrait = await gather(engine, arguments.execution_id)
    if arguments.json:
        print_json(portrait_to_wire(portrait))
    else:
        _print_portrait(portrait)
    return OK


async def gather(engine: AnyEngine, execution_id: ExecutionId) -> Portrait:
    """Read everything that is shown of one execution.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    info = await engine.execute(ReadExecutionInfoArgs(execution_id=execution_id))
    snapshot = await engine.execute(DescribeExecutionArgs(execution_id=execution_id))
    explanation = await engine.execute(ExplainExecutionArgs(execution_id=execution_id))
    if info is None or snapshot is None or explanation is None:
        raise errors.ExecutionNotFound(execution_id)
    waitpoints = await engine.execute(ListPendingWaitpointsArgs(execution_id=execution_id))
    journal = await engine.execute(ReadJournalArgs(execution_id=execution_id))
    return Portrait(
        now=await engine.now(),
        info=info,
        snapshot=snapshot,
        view=await engine.execute(ReadRunArgs(execution_id=execution_id)),
        attempts=await _latest_attempts(engine, execution_id, snapshot.total_attempt_count),
        explanation=explanation,
        waitpoints=waitpoints.entries,
        journal=journal.entries,
        timeline=await _latest_events(engine, execution_id),
    )


async def _latest_attempts(engine: AnyEngine, execution_id: str, count: int) -> tuple[AttemptInfo, ...]:
    cursor = count - ATTEMPTS_SHOWN - 1 if count > ATTEMPTS_SHOWN else None
    ask = ListAttemptsArgs(execution_id=execution_id, cursor=cursor, limit=ATTEMPTS_SHOWN)
    return (await engine.execute(ask)).attempts


async def _latest_events(engine: AnyEngine, execution_id: str) -> tuple[AnyEvent, ...]:
    """The last events. The log is read forwards, so only so many are looked at."""
    found: deque[AnyEvent] = deque(maxlen=EVENTS_SHOWN)
    cursor: str | None = None
    for _ in range(EVENTS_READ_MAX // PAGE_ROWS_MAX):
        page = await engine.execute(
            ListEventsArgs(execution_id=execution_id, cursor=cursor, limit=PAGE_ROWS_MAX)
        )
        found.extend(page.events)
        cursor = page.next_cursor
        if cursor is None:
            break
    return tuple(found)


def portrait_to_wire(portrait: Portrait) -> dict[str, Any]:
    """The JSON document of ``show``."""
    return {
        "execution": portrait.info,
        "snapshot": portrait.snapshot,
        "run": run_to_wire(portrait.view),
        "explanation": portrait.explanation,
        "required_capabilities": list(portrait.snapshot.required_capabilities),
        "attempts": list(portrait.attempts),
        "waitpoints": list(portrait.waitpoints),
        "journal": [_entry_fields(entry) for entry in portrait.journal],
        "timeline": [_event_fields(event) for event in portrait.timeline],
    }


def _entry_fields(entry: JournalEntry) -> dict[str, Any]:
    """An entry without what it holds: a step may have returned a waitpoint's token."""
    return {
        "name": entry.name,
        "ordinal": entry.ordinal,
        "kind": entry.kind,
        "recorded_at": entry.recorded_at,
        "wake_at": entry.wake_at,
        "timed_out": entry.timed_out,
    }


def _event_fields(event: AnyEvent) -> dict[str, Any]:
    name, details = event_told(event)
    return {
        "cursor": event.cursor,
        "family": family_of(event),
        "name": name,
        "at_ms": event.at_ms,
        "data": details,
    }


def _print_portrait(portrait: Portrait) -> None:
    print_fields(_main_fields(portrait))
    print(f"\n{printable(portrait.explanation.sentence)}")
    if portrait.explanation.would_change_it:
        print(printable(portrait.explanation.would_change_it))
    _print_section(
        "attempts", ["#", "TYPE", "STATE", "STARTED", "ENDED", "WORKER", "FAILURE"], _attempt_rows(portrait)
    )
    _print_section(
        "open waitpoints", ["WAITPOINT", "KEY", "STATE", "SIGNALS", "TOKEN"], _waitpoint_rows(portrait)
    )
    _print_section("journal", ["RECORDED", "KIND", "NAME", "#"], _journal_rows(portrait))
    _print_section("timeline", ["AT", "FAMILY", "EVENT", "DETAIL"], _event_rows(portrait))
    if portrait.view.result is not None:
        print(f"\nresult\n{shown_payload(portrait.view.result, RESULT_CHARS)}")


def _print_section(title: str, headers: list[str], rows: list[list[str]]) -> None:
    if rows:
        print(f"\n{title}")
        print_table(headers, rows, flexible=len(headers) - 1)


def _main_fields(portrait: Portrait) -> list[tuple[str, str]]:
    info, view, vector = portrait.info, portrait.view, portrait.info.state_vector
    progress = "" if view.progress_pct is None else f"{view.progress_pct}% {view.progress_message or ''}"
    fields = [
        ("execution", info.execution_id),
        ("kind", info.execution_kind),
        ("state", vector.public_state),
        ("phase", vector.lifecycle_phase),
        ("ownership", vector.ownership_state),
        ("eligibility", vector.eligibility_state),
        ("blocking reason", vector.blocking_reason),
        ("attempt state", vector.attempt_state),
        ("outcome", vector.terminal_outcome),
        ("lane", info.lane_id),
        ("namespace", info.namespace),
        ("priority", str(info.priority)),
        ("capabilities", ", ".join(portrait.snapshot.required_capabilities)),
        ("tags", ", ".join(f"{key}={value}" for key, value in sorted(portrait.snapshot.tags.items()))),
        ("created", shown_time(info.created_at)),
        ("started", shown_time(info.started_at)),
        ("ended", shown_time(info.completed_at)),
        ("lease", _lease_text(portrait)),
        ("progress", progress or (view.progress_message or "")),
        ("failure", " ".join(part for part in (view.failure_category, view.failure_reason) if part)),
        ("cancelled because", view.cancellation_reason),
    ]
    return [(name, value) for name, value in fields if value]


def _lease_text(portrait: Portrait) -> str:
    lease = portrait.snapshot.current_lease
    if lease is None:
        return ""
    ends = shown_age(lease.expires_at, portrait.now)
    return f"epoch {lease.lease_epoch}, {lease.worker_instance_id}, ends {ends}"


def _attempt_rows(portrait: Portrait) -> list[list[str]]:
    return [
        [
            str(attempt.attempt_index),
            attempt.attempt_type,
            attempt.attempt_state,
            shown_time(attempt.started_at),
            shown_time(attempt.ended_at),
            attempt.worker_instance_id,
            " ".join(part for part in (attempt.failure_category, attempt.failure_reason) if part),
        ]
        for attempt in portrait.attempts
    ]


def _waitpoint_rows(portrait: Portrait) -> list[list[str]]:
    return [
        [
            waitpoint.waitpoint_id,
            waitpoint.waitpoint_key,
            waitpoint.state,
            ", ".join(waitpoint.required_signal_names) or "any",
            f"{waitpoint.token_kid}:{waitpoint.token_fingerprint}…",
        ]
        for waitpoint in portrait.waitpoints
    ]


def _journal_rows(portrait: Portrait) -> list[list[str]]:
    return [
        [shown_time(entry.recorded_at), entry.kind, entry.name, str(entry.ordinal)]
        for entry in portrait.journal
    ]


def _event_rows(portrait: Portrait) -> list[list[str]]:
    return [_event_row(event) for event in portrait.timeline]


def _event_row(event: AnyEvent) -> list[str]:
    name, details = event_told(event)
    shown = " ".join(f"{key}={value}" for key, value in details.items() if value not in (None, ""))
    return [shown_time(event.at_ms), family_of(event), name, shown[:DETAIL_CHARS]]

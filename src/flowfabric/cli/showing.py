"""``show``: one execution from all sides, and in one sentence what it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.cli.exits import OK
from flowfabric.cli.output import (
    print_fields,
    print_json,
    print_table,
    shown_age,
    shown_payload,
    shown_time,
)
from flowfabric.cli.session import open_engine, run
from flowfabric.cli.submitting import run_to_wire
from flowfabric.contracts.journal import JournalEntry, ReadJournalArgs
from flowfabric.contracts.reads import (
    DescribeExecutionArgs,
    ExecutionInfo,
    ExecutionSnapshot,
    ReadExecutionInfoArgs,
)
from flowfabric.contracts.runs import ReadRunArgs, RunView
from flowfabric.contracts.states import BlockingReason, EligibilityState, LifecyclePhase, OwnershipState
from flowfabric.contracts.suspensions import ListPendingWaitpointsArgs, PendingWaitpointInfo
from flowfabric.core.events import StoredEvent
from flowfabric.core.records import Attempt, Execution, PastAttempt, Suspension, key_for

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.ids import ExecutionId
    from flowfabric.engine.engine import Engine

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
    required_capabilities: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    blocked_until: int | None
    suspension_timeout_at: int | None
    waitpoints: tuple[PendingWaitpointInfo, ...]
    journal: tuple[JournalEntry, ...]
    timeline: tuple[StoredEvent, ...]


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


async def gather(engine: Engine, execution_id: ExecutionId) -> Portrait:
    """Read everything that is shown of one execution.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    info = await engine.execute(ReadExecutionInfoArgs(execution_id=execution_id))
    snapshot = await engine.execute(DescribeExecutionArgs(execution_id=execution_id))
    if info is None or snapshot is None:
        raise errors.ExecutionNotFound(execution_id)
    execution = await _load_execution(engine, execution_id)
    waitpoints = await engine.execute(ListPendingWaitpointsArgs(execution_id=execution_id))
    journal = await engine.execute(ReadJournalArgs(execution_id=execution_id))
    return Portrait(
        now=await engine.store.now(),
        info=info,
        snapshot=snapshot,
        view=await engine.execute(ReadRunArgs(execution_id=execution_id)),
        required_capabilities=execution.required_capabilities,
        attempts=await _latest_attempts(engine, execution),
        blocked_until=max((b.until_ms for b in execution.blockers if b.until_ms is not None), default=None),
        suspension_timeout_at=await _suspension_timeout(engine, execution),
        waitpoints=waitpoints.entries,
        journal=journal.entries,
        timeline=await _latest_events(engine, execution_id),
    )


async def _load_execution(engine: Engine, execution_id: str) -> Execution:
    loaded = await engine.store.load([key_for(Execution, execution_id)])
    execution = loaded.rows[0][2]
    if not isinstance(execution, Execution):
        raise errors.ExecutionNotFound(execution_id)
    return execution


async def _latest_attempts(engine: Engine, execution: Execution) -> tuple[Attempt, ...]:
    if execution.attempt is None:
        return ()
    latest = execution.attempt.attempt_index
    earlier = range(max(0, latest - ATTEMPTS_SHOWN + 1), latest)
    loaded = await engine.store.load(
        [key_for(PastAttempt, f"{execution.execution_id}/{index}") for index in earlier]
    )
    past = [record.attempt for _, _, record in loaded.rows if isinstance(record, PastAttempt)]
    return (*past, execution.attempt)


async def _suspension_timeout(engine: Engine, execution: Execution) -> int | None:
    if execution.suspension_id is None:
        return None
    loaded = await engine.store.load(
        [key_for(Suspension, f"{execution.execution_id}/{execution.suspension_id}")]
    )
    suspension = loaded.rows[0][2]
    return suspension.timeout_at if isinstance(suspension, Suspension) else None


async def _latest_events(engine: Engine, execution_id: str) -> tuple[StoredEvent, ...]:
    """The last events. The log is read forwards, so only so many are looked at."""
    found = await engine.store.read_events(0, execution_id=execution_id, limit=EVENTS_READ_MAX)
    return tuple(found[-EVENTS_SHOWN:])


def waiting_sentence(portrait: Portrait) -> str:
    """What the execution waits for now."""
    info, snapshot = portrait.info, portrait.snapshot
    match info.state_vector.lifecycle_phase:
        case LifecyclePhase.TERMINAL:
            return f"It has ended: {info.public_state}."
        case LifecyclePhase.ACTIVE:
            return _active_sentence(portrait)
        case LifecyclePhase.SUSPENDED:
            return _suspended_sentence(portrait)
    reason = info.state_vector.blocking_reason
    if reason is BlockingReason.WAITING_FOR_WORKER:
        return _worker_sentence(portrait)
    timed = info.state_vector.eligibility_state is EligibilityState.NOT_ELIGIBLE_UNTIL_TIME
    if timed and portrait.blocked_until is not None:
        return f"It waits until {shown_time(portrait.blocked_until)} ({_words(reason)})."
    detail = f": {snapshot.blocking_detail}" if snapshot.blocking_detail else ""
    return f"It is {_words(reason)}{detail}."


def _active_sentence(portrait: Portrait) -> str:
    lease = portrait.snapshot.current_lease
    if lease is not None and portrait.info.state_vector.ownership_state is OwnershipState.LEASED:
        left = shown_age(lease.expires_at, portrait.now)
        verb = "ended" if lease.expires_at <= portrait.now else "ends"
        return f"It runs on {lease.worker_instance_id}, whose lease {verb} {left}."
    return "Its worker has lost the lease; it waits for another worker to take it over."


def _suspended_sentence(portrait: Portrait) -> str:
    until = portrait.suspension_timeout_at
    deadline = "" if until is None else f", until {shown_time(until)}"
    wanted = sorted({name for waitpoint in portrait.waitpoints for name in waitpoint.required_signal_names})
    if wanted:
        return f"It waits for the signal {' or '.join(repr(name) for name in wanted)}{deadline}."
    if portrait.waitpoints:
        return f"It waits for a signal{deadline}."
    return f"It is {_words(portrait.info.state_vector.blocking_reason)}{deadline}."


def _worker_sentence(portrait: Portrait) -> str:
    required = portrait.required_capabilities
    offer = f" that offers {', '.join(required)}" if required else ""
    return f"It waits for a worker on lane {portrait.info.lane_id!r}{offer}."


def _words(code: str) -> str:
    return code.replace("_", " ")


def portrait_to_wire(portrait: Portrait) -> dict[str, Any]:
    """The JSON document of ``show``."""
    return {
        "execution": portrait.info,
        "snapshot": portrait.snapshot,
        "run": run_to_wire(portrait.view),
        "waits_for": waiting_sentence(portrait),
        "required_capabilities": list(portrait.required_capabilities),
        "attempts": list(portrait.attempts),
        "waitpoints": list(portrait.waitpoints),
        "journal": [_entry_fields(entry) for entry in portrait.journal],
        "timeline": [{"sequence": stored.sequence, **_event_fields(stored)} for stored in portrait.timeline],
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


def _event_fields(stored: StoredEvent) -> dict[str, Any]:
    event = stored.event
    return {"family": event.family, "name": event.name, "at_ms": event.at_ms, "data": event.data}


def _print_portrait(portrait: Portrait) -> None:
    print_fields(_main_fields(portrait))
    print(f"\n{waiting_sentence(portrait)}")
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
        ("capabilities", ", ".join(portrait.required_capabilities)),
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
            attempt.state,
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
    return [
        [
            shown_time(stored.event.at_ms),
            stored.event.family,
            stored.event.name,
            " ".join(
                f"{name}={value}" for name, value in stored.event.data.items() if value not in (None, "")
            )[:DETAIL_CHARS],
        ]
        for stored in portrait.timeline
    ]

"""Lists: pages of index rows, turned into what a reader wants to see.

A page touches only what it returns, plus rows of other namespaces where an index spans them.
Cursors name the last row that was returned, so a page never repeats or skips a row that stays.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from flowfabric.contracts.ids import ExecutionId
from flowfabric.contracts.leases import EligibleExecutions, ScanEligibleArgs
from flowfabric.contracts.reads import (
    ExecutionSummary,
    ExpiredLeaseEntry,
    ListExecutionsArgs,
    ListExecutionsPage,
    ListExecutionsResult,
    ListExecutionSummariesArgs,
    ListExpiredLeasesArgs,
    ListExpiredLeasesPage,
    ListLanesArgs,
    ListLanesPage,
    ListSuspendedArgs,
    ListSuspendedPage,
    ServerTime,
    ServerTimeArgs,
    SuspendedExecutionEntry,
)
from flowfabric.contracts.states import LifecyclePhase, PublicState
from flowfabric.core import indexes
from flowfabric.core.indexes import SEPARATOR, scope_of
from flowfabric.core.records import Execution, Suspension, key_for
from flowfabric.core.state import public_state
from flowfabric.core.vocabulary import BlockerKind, LeaseState
from flowfabric.engine.cursors import format_cursor, parse_cursor
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from flowfabric.core.records import Record
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine

Row = tuple[int, str]

INDEXES_OF_STATE: Final[dict[PublicState, tuple[str, ...]]] = {
    PublicState.WAITING: (indexes.ELIGIBLE, indexes.BLOCKED),
    PublicState.DELAYED: (indexes.DELAYED,),
    PublicState.RATE_LIMITED: (indexes.BLOCKED,),
    PublicState.WAITING_CHILDREN: (indexes.BLOCKED,),
    PublicState.ACTIVE: (indexes.ACTIVE,),
    PublicState.SUSPENDED: (indexes.SUSPENDED,),
}
"""Where the executions of a public state have their rows; all others have theirs in ``terminal``."""

LANE_INDEXES: Final = tuple(sorted(indexes.PRIMARY))

BLOCKERS_OF_STATE: Final = {
    PublicState.WAITING: (BlockerKind.OPERATOR, BlockerKind.LANE, BlockerKind.ROUTE),
    PublicState.RATE_LIMITED: (BlockerKind.BUDGET, BlockerKind.QUOTA),
    PublicState.WAITING_CHILDREN: (BlockerKind.DEPENDENCIES,),
}


@operation(ServerTimeArgs)
async def server_time(engine: Engine, args: ServerTimeArgs, envelope: Envelope) -> ServerTime:
    """The store's clock."""
    return ServerTime(now_ms=await engine.store.now())


async def load_records(engine: Engine, keys: list[str]) -> list[Record | None]:
    """The records with these keys, in order."""
    loaded = await engine.store.load(keys)
    found = {key: record for key, _, record in loaded.rows}
    return [found[key] for key in keys]


async def load_executions(engine: Engine, ids: list[str], namespace: str | None) -> list[Execution]:
    """The executions with these ids that exist in the namespace, in order."""
    records = await load_records(engine, [key_for(Execution, execution_id) for execution_id in ids])
    return [
        record
        for record in records
        if isinstance(record, Execution) and (namespace is None or record.namespace == namespace)
    ]


@operation(ListExecutionsArgs)
async def list_executions(engine: Engine, args: ListExecutionsArgs, envelope: Envelope) -> ListExecutionsPage:
    """Execution ids in the order of their text."""
    prefix = key_for(Execution, "" if args.partition is None else f"{{fp:{args.partition}}}:")
    after = None if args.cursor is None else key_for(Execution, args.cursor)
    found: list[ExecutionId] = []
    while len(found) <= args.limit:
        keys = await engine.store.list_keys(prefix, after=after, limit=args.limit + 1)
        ids = [key.partition("/")[2] for key in keys]
        executions = await load_executions(engine, ids, envelope.namespace)
        found += [execution.execution_id for execution in executions]
        if len(keys) <= args.limit:
            break
        after = keys[-1]
    page, more = found[: args.limit], len(found) > args.limit
    return ListExecutionsPage(executions=tuple(page), next_cursor=page[-1] if more and page else None)


@operation(ListExecutionSummariesArgs)
async def list_execution_summaries(
    engine: Engine, args: ListExecutionSummariesArgs, envelope: Envelope
) -> ListExecutionsResult:
    """Executions with what a list shows."""
    namespace = envelope.namespace or ""
    after = parse_cursor(args.cursor)
    descending = args.public_state is None or args.public_state not in INDEXES_OF_STATE
    summaries: list[ExecutionSummary] = []
    cursor: Row | None = None
    while len(summaries) < args.limit:
        rows = await _summary_rows(engine, args, namespace, after, descending=descending)
        executions = await load_executions(engine, [member for _, member in rows], envelope.namespace)
        known = {execution.execution_id: execution for execution in executions}
        for row in rows:
            execution = known.get(row[1])
            if execution is not None and _matches(execution, args) and len(summaries) < args.limit:
                summaries.append(summary_of(execution))
                cursor = row
        if len(rows) < args.limit:
            cursor = None if len(summaries) < args.limit or not rows or cursor == rows[-1] else cursor
            break
        after = rows[-1]
    return ListExecutionsResult(
        executions=tuple(summaries),
        total_returned=len(summaries),
        next_cursor=None if cursor is None else format_cursor(cursor),
    )


async def _summary_rows(
    engine: Engine, args: ListExecutionSummariesArgs, namespace: str, after: Row | None, *, descending: bool
) -> list[Row]:
    if args.public_state is None:
        return await engine.store.read_index(
            indexes.CREATED, namespace, after=after, limit=args.limit, descending=descending
        )
    scopes = await _scopes_of_state(engine, namespace, args.lane_id, args.public_state)
    pages = [
        await engine.store.read_index(index, scope, after=after, limit=args.limit, descending=descending)
        for index, scope in scopes
    ]
    return list(heapq.merge(*pages, reverse=descending))[: args.limit]


async def _scopes_of_state(
    engine: Engine, namespace: str, lane_id: str | None, state: PublicState
) -> list[tuple[str, str]]:
    """The index scopes that hold the executions of one public state."""
    prefix = namespace + SEPARATOR + ("" if lane_id is None else lane_id)
    found: list[tuple[str, str]] = []
    for index in INDEXES_OF_STATE.get(state, (indexes.TERMINAL,)):
        for scope in await engine.store.index_scopes(index, prefix):
            parts = scope.split(SEPARATOR)
            if lane_id is not None and parts[1] != lane_id:
                continue
            if index == indexes.TERMINAL and parts[2] != state:
                continue
            if index == indexes.BLOCKED and parts[2] not in BLOCKERS_OF_STATE[state]:
                continue
            found.append((index, scope))
    return found


def _matches(execution: Execution, args: ListExecutionSummariesArgs) -> bool:
    if args.lane_id is not None and execution.lane_id != args.lane_id:
        return False
    return args.public_state is None or public_state(execution) is args.public_state


def summary_of(execution: Execution) -> ExecutionSummary:
    """What a list shows of an execution."""
    return ExecutionSummary(
        execution_id=execution.execution_id,
        namespace=execution.namespace,
        lane_id=execution.lane_id,
        execution_kind=execution.execution_kind,
        public_state=public_state(execution),
        priority=execution.priority,
        created_at=execution.created_at,
    )


@operation(ListSuspendedArgs)
async def list_suspended(engine: Engine, args: ListSuspendedArgs, envelope: Envelope) -> ListSuspendedPage:
    """Suspended executions, those with the earliest deadline first."""
    after = await _suspended_row(engine, args.cursor)
    scopes = await engine.store.index_scopes(indexes.SUSPENDED, _namespace_prefix(envelope))
    rows: list[Row] = []
    for scope in scopes:
        rows += await _rows_of_partition(engine, scope, after, args)
    page = sorted(rows)[: args.limit]
    reasons = await _suspension_reasons(engine, [member for _, member in page])
    entries = tuple(
        SuspendedExecutionEntry(execution_id=member, suspended_at_ms=sort, reason=reasons.get(member, ""))
        for sort, member in page
    )
    more = len(rows) > len(page) and entries
    return ListSuspendedPage(entries=entries, next_cursor=entries[-1].execution_id if more else None)


def _namespace_prefix(envelope: Envelope) -> str:
    return "" if envelope.namespace is None else envelope.namespace + SEPARATOR


async def _rows_of_partition(
    engine: Engine, scope: str, after: Row | None, args: ListSuspendedArgs
) -> list[Row]:
    """One more row than the page needs, of the partition that is asked for."""
    tag = "" if args.partition is None else f"{{fp:{args.partition}}}:"
    found: list[Row] = []
    while len(found) <= args.limit:
        rows = await engine.store.read_index(indexes.SUSPENDED, scope, after=after, limit=args.limit + 1)
        found += [row for row in rows if row[1].startswith(tag)]
        if len(rows) <= args.limit:
            break
        after = rows[-1]
    return found[: args.limit + 1]


async def _suspended_row(engine: Engine, cursor: str | None) -> Row | None:
    """Where a cursor's execution stands, or stood, in the order of deadlines."""
    if cursor is None:
        return None
    [suspension] = await _current_suspensions(engine, [cursor])
    if suspension is None:
        return None
    return suspension.timeout_at or indexes.FOREVER, cursor


async def _current_suspensions(engine: Engine, ids: list[str]) -> list[Suspension | None]:
    records = await load_records(engine, [key_for(Execution, execution_id) for execution_id in ids])
    keys = [
        key_for(Suspension, f"{record.execution_id}/{record.suspension_id or record.resumed_suspension_id}")
        if isinstance(record, Execution)
        else key_for(Suspension, "")
        for record in records
    ]
    suspensions = await load_records(engine, keys)
    return [record if isinstance(record, Suspension) else None for record in suspensions]


async def _suspension_reasons(engine: Engine, ids: list[str]) -> dict[str, str]:
    suspensions = await _current_suspensions(engine, ids)
    return {
        suspension.execution_id: suspension.reason_code
        for suspension in suspensions
        if suspension is not None
    }


@operation(ListLanesArgs)
async def list_lanes(engine: Engine, args: ListLanesArgs, envelope: Envelope) -> ListLanesPage:
    """Every lane that has executions, ended ones included."""
    names: set[str] = set()
    for index in LANE_INDEXES:
        for scope in await engine.store.index_scopes(index, _namespace_prefix(envelope), limit=10_000):
            names.add(scope.split(SEPARATOR)[1])
    lanes = [name for name in sorted(names) if args.cursor is None or name > args.cursor]
    page = tuple(lanes[: args.limit])
    return ListLanesPage(lanes=page, next_cursor=page[-1] if len(lanes) > len(page) and page else None)


@operation(ScanEligibleArgs)
async def scan_eligible(engine: Engine, args: ScanEligibleArgs, envelope: Envelope) -> EligibleExecutions:
    """What waits for a worker, in claiming order. Lapsed leases that wait for a reclaim are left out."""
    lane = scope_of(envelope.namespace or "", args.lane_id)
    tag = "" if args.partition is None else f"{args.partition.key}:"
    rows: list[Row] = []
    for scope in await engine.store.index_scopes(indexes.ELIGIBLE, lane + SEPARATOR):
        page = await engine.store.read_index(indexes.ELIGIBLE, scope, limit=args.limit)
        rows += [row for row in page if row[1].startswith(tag)]
    executions = await load_executions(engine, [member for _, member in sorted(rows)], envelope.namespace)
    runnable = [e for e in executions if e.phase is LifecyclePhase.RUNNABLE]
    return EligibleExecutions(
        executions=tuple(execution.execution_id for execution in runnable[: args.limit])
    )


@operation(ListExpiredLeasesArgs)
async def list_expired_leases(
    engine: Engine, args: ListExpiredLeasesArgs, envelope: Envelope
) -> ListExpiredLeasesPage:
    """Leases that have lapsed, marked or not, the oldest first."""
    after = parse_cursor(args.cursor)
    now = await engine.store.now()
    found: list[tuple[Row, ExpiredLeaseEntry]] = []
    while len(found) <= args.limit:
        rows = await _lapsed_rows(engine, now, after, args.limit + 1)
        executions = await load_executions(engine, [member for _, member in rows], envelope.namespace)
        entries = {execution.execution_id: _expired_lease(execution, now) for execution in executions}
        found += [(row, entry) for row in rows if (entry := entries.get(row[1])) is not None]
        if len(rows) <= args.limit:
            break
        after = rows[-1]
    # The cursor names a row of the caller's own: another one's id is not for its eyes.
    page, more = found[: args.limit], len(found) > args.limit
    return ListExpiredLeasesPage(
        entries=tuple(entry for _, entry in page),
        next_cursor=format_cursor(page[-1][0]) if more and page else None,
    )


async def _lapsed_rows(engine: Engine, now: int, after: Row | None, limit: int) -> list[Row]:
    unmarked = await engine.store.read_index(indexes.DUE_LEASE, "", after=after, upto=now, limit=limit)
    marked = await engine.store.read_index(indexes.LAPSED, "", after=after, limit=limit)
    return sorted({*unmarked, *marked})[:limit]


def _expired_lease(execution: Execution, now: int) -> ExpiredLeaseEntry | None:
    """The lapsed lease, unless somebody has reclaimed the execution since its row was read."""
    lease, attempt = execution.lease, execution.attempt
    if lease is None or attempt is None:
        return None
    if lease.state is LeaseState.HELD and lease.expires_at > now:
        return None
    return ExpiredLeaseEntry(
        execution_id=execution.execution_id,
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
        worker_instance_id=lease.worker_instance_id,
        expires_at=lease.expires_at,
        attempt_index=attempt.attempt_index,
    )

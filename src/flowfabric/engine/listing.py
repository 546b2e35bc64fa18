"""Lists: pages of index rows, turned into what a reader wants to see.

A page touches what it returns and what its filters leave out on the way. Cursors name the last
row that was returned, so a page never repeats or skips a row that stays. A caller without a
namespace sees those of all namespaces, in every list.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, TypeVar

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
from flowfabric.core.records import Execution, Lane, Suspension, key_for, lane_identity
from flowfabric.core.rules.lanes import GIVES_NO_WORK, lane_info, under_lane
from flowfabric.core.state import public_state
from flowfabric.core.vocabulary import BlockerKind, LeaseState
from flowfabric.engine.cursors import format_cursor, parse_cursor
from flowfabric.engine.operations import operation
from flowfabric.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from flowfabric.core.records import Key, Record
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine
    from flowfabric.stores.base import Ledger

Row = tuple[int, str]
"""The sort value and the member of an index row."""
Scope = tuple[str, str]
"""An index and one of its scopes."""
Group = tuple[str, str]
"""A namespace and a lane of it."""

P = TypeVar("P", str, Row)
"""A place in what is read: a key, or an index row."""
T = TypeVar("T")

SCOPES_PER_READ: Final = 1_000
PLACES_PER_READ: Final = 1_000
PLACES_PER_CALL: Final = 5_000
"""How many executions one call looks at for those that its filters let through."""

INDEXES_OF_STATE: Final[dict[PublicState, tuple[str, ...]]] = {
    PublicState.WAITING: (indexes.ELIGIBLE, indexes.BLOCKED),
    PublicState.DELAYED: (indexes.DELAYED,),
    PublicState.RATE_LIMITED: (indexes.BLOCKED,),
    PublicState.WAITING_CHILDREN: (indexes.BLOCKED,),
    PublicState.ACTIVE: (indexes.ACTIVE,),
    PublicState.SUSPENDED: (indexes.SUSPENDED,),
}
"""Where the executions of a public state have their rows; all others have theirs in ``terminal``."""

LANE_INDEXES: Final = (*sorted(indexes.PRIMARY), indexes.LANES)

_LAST: Final = "\U0010ffff"
"""Sorts behind all that a scope may have after the name of its lane."""

BLOCKERS_OF_STATE: Final = {
    PublicState.WAITING: (BlockerKind.OPERATOR, BlockerKind.LANE, BlockerKind.ROUTE),
    PublicState.RATE_LIMITED: (BlockerKind.BUDGET, BlockerKind.QUOTA),
    PublicState.WAITING_CHILDREN: (BlockerKind.DEPENDENCIES,),
}


@operation(ServerTimeArgs)
async def server_time(engine: Engine, args: ServerTimeArgs, envelope: Envelope) -> ServerTime:
    """The store's clock."""
    return ServerTime(now_ms=await engine.store.now())


async def load_records(store: Ledger, keys: list[str]) -> list[Record | None]:
    """The records with these keys, in order."""
    loaded = await store.load(keys)
    found = {key: record for key, _, record in loaded.rows}
    return [found[key] for key in keys]


async def load_executions(engine: Engine, ids: list[str], namespace: str | None) -> list[Execution]:
    """The executions with these ids that exist in the namespace, in order."""
    records = await load_records(engine.store, [key_for(Execution, execution_id) for execution_id in ids])
    return [
        record
        for record in records
        if isinstance(record, Execution) and record.removing_since is None
        if namespace in (None, record.namespace)
    ]


@operation(ListExecutionsArgs)
async def list_executions(engine: Engine, args: ListExecutionsArgs, envelope: Envelope) -> ListExecutionsPage:
    """Execution ids: of one partition in the order of their text, of all in the store's order of keys.

    The latter leaves the partition aside, so ids that sort by time come in the order of their making.
    """
    prefix = key_for(Execution, "" if args.partition is None else f"{{fp:{args.partition}}}:")
    after = None if args.cursor is None else key_for(Execution, args.cursor)

    async def read(after: Key | None, limit: int) -> list[Key]:
        return await engine.store.list_keys(prefix, after=after, limit=limit)

    async def keep(keys: list[Key]) -> list[ExecutionId]:
        ids = [key.partition("/")[2] for key in keys]
        executions = await load_executions(engine, ids, envelope.namespace)
        return [execution.execution_id for execution in executions]

    page, more = await fill_page(read, keep, after, args.limit)
    return ListExecutionsPage(executions=tuple(page), next_cursor=page[-1] if more and page else None)


@operation(ListExecutionSummariesArgs)
async def list_execution_summaries(
    engine: Engine, args: ListExecutionSummariesArgs, envelope: Envelope
) -> ListExecutionsResult:
    """Executions with what a list shows."""
    lanes = await _lanes_set(engine, envelope.namespace, args.lane_id)
    scopes = await _scopes_of_summaries(engine, args, envelope.namespace, _closed(lanes))
    descending = args.public_state is None or args.public_state not in INDEXES_OF_STATE

    async def keep(rows: list[Row]) -> list[tuple[Row, ExecutionSummary]]:
        executions = await load_executions(engine, [member for _, member in rows], envelope.namespace)
        seen = [under_lane(found, lanes.get((found.namespace, found.lane_id))) for found in executions]
        shown = {found.execution_id: summary_of(found) for found in seen if _matches(found, args)}
        return [(row, shown[row[1]]) for row in rows if row[1] in shown]

    read = merged(engine, scopes, descending=descending)
    page, more, stopped_at = await walk_page(
        read, keep, parse_cursor(args.cursor), args.limit, PLACES_PER_CALL
    )
    last = page[-1][0] if more and page else stopped_at
    return ListExecutionsResult(
        executions=tuple(summary for _, summary in page),
        total_returned=len(page),
        next_cursor=None if last is None else format_cursor(last),
    )


async def _scopes_of_summaries(
    engine: Engine, args: ListExecutionSummariesArgs, namespace: str | None, closed: frozenset[Group]
) -> list[Scope]:
    """The scopes that hold the executions of the state that is asked for, and maybe others.

    All that could be claimed sooner or later is ``waiting`` in a lane that is closed to workers.
    """
    state = args.public_state
    if state is None:
        created = [namespace] if namespace is not None else await scopes_in(engine, indexes.CREATED, None)
        return [(indexes.CREATED, scope) for scope in created]
    held = INDEXES_OF_STATE.get(state, (indexes.TERMINAL,))
    if closed and state is PublicState.WAITING:
        held = (*held, indexes.DELAYED)
    return [
        (index, scope)
        for index in held
        for scope in await scopes_in(engine, index, namespace, args.lane_id)
        if _may_hold(index, scope, state, closed)
    ]


def _may_hold(index: str, scope: str, state: PublicState, closed: frozenset[Group]) -> bool:
    """Whether executions of this state can have rows in this scope."""
    if index in (indexes.DELAYED, indexes.BLOCKED) and _group_of(scope) in closed:
        return state is PublicState.WAITING
    if index == indexes.DELAYED:
        return state is PublicState.DELAYED
    if index == indexes.TERMINAL:
        return scope.split(SEPARATOR)[2] == state
    if index == indexes.BLOCKED:
        return scope.split(SEPARATOR)[2] in BLOCKERS_OF_STATE[state]
    return True


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
    """Suspended executions, those with the earliest deadline first.

    The cursor is an execution, so a page continues behind the deadline that its suspension has by
    then, or had.

    Raises:
        InvalidInput: the cursor's execution has no suspension that the caller could have seen.
    """
    after = None if args.cursor is None else await _suspended_row(engine, args.cursor, envelope.namespace)
    scopes = await scopes_in(engine, indexes.SUSPENDED, envelope.namespace)
    tag = "" if args.partition is None else f"{{fp:{args.partition}}}:"

    async def keep(rows: list[Row]) -> list[Row]:
        return [row for row in rows if row[1].startswith(tag)]

    read = merged(engine, [(indexes.SUSPENDED, scope) for scope in scopes])
    page, more = await fill_page(read, keep, after, args.limit)
    reasons = await _suspension_reasons(engine, [member for _, member in page])
    entries = tuple(
        SuspendedExecutionEntry(execution_id=member, suspended_at_ms=sort, reason=reasons.get(member, ""))
        for sort, member in page
    )
    return ListSuspendedPage(
        entries=entries, next_cursor=entries[-1].execution_id if more and entries else None
    )


async def _suspended_row(engine: Engine, cursor: str, namespace: str | None) -> Row:
    """Where a cursor's execution stands, or stood, in the order of deadlines."""
    for execution in await load_executions(engine, [cursor], namespace):
        for suspension in await load_records(engine.store, _keys_of_suspensions(execution)):
            if isinstance(suspension, Suspension):
                return suspension.timeout_at or indexes.FOREVER, cursor
    rule = "an execution that is or was suspended; begin again without a cursor"
    raise InvalidInput(field="cursor", value=cursor, rule=rule)


def _keys_of_suspensions(execution: Execution) -> list[Key]:
    """Where the latest suspension may be, the latest place first.

    One that a cancellation or a deadline has ended is known by its attempt only.
    """
    put_aside_for = "" if execution.attempt is None else execution.attempt.suspension_id
    ids = (execution.suspension_id, put_aside_for, execution.resumed_suspension_id)
    return [key_for(Suspension, f"{execution.execution_id}/{found}") for found in ids if found]


async def _suspension_reasons(engine: Engine, ids: list[str]) -> dict[str, str]:
    executions = await load_executions(engine, ids, None)
    open_ones = [f"{found.execution_id}/{found.suspension_id}" for found in executions if found.suspension_id]
    suspensions = await load_records(engine.store, [key_for(Suspension, identity) for identity in open_ones])
    return {found.execution_id: found.reason_code for found in suspensions if isinstance(found, Suspension)}


@operation(ListLanesArgs)
async def list_lanes(engine: Engine, args: ListLanesArgs, envelope: Envelope) -> ListLanesPage:
    """Every lane that has executions, ended ones included, or that an operator has set."""
    found: set[Group] = set()
    for namespace in await _namespaces(engine, envelope.namespace):
        for index in LANE_INDEXES:
            found |= await _lanes_in(engine, index, namespace, args.cursor, args.limit)
    names = sorted({name for _, name in found})
    page = tuple(names[: args.limit])
    groups = sorted((group for group in found if group[1] in page), key=lambda group: group[::-1])
    lanes = await _load_lanes(engine, groups)
    return ListLanesPage(
        lanes=page,
        next_cursor=page[-1] if len(names) > len(page) and page else None,
        details=tuple(lane_info(*group, lanes.get(group)) for group in groups),
    )


async def _namespaces(engine: Engine, namespace: str | None) -> list[str]:
    """The namespace that the caller is bound to, or all that have lanes."""
    if namespace is not None:
        return [namespace]
    set_by_operators = {_group_of(scope)[0] for scope in await scopes_in(engine, indexes.LANES, None)}
    return sorted(set_by_operators | set(await scopes_in(engine, indexes.CREATED, None)))


async def _lanes_in(engine: Engine, index: str, namespace: str, cursor: str | None, limit: int) -> set[Group]:
    """More than ``limit`` lanes of an index behind a name, if there are so many.

    The scopes of one lane are skipped, however many it has.
    """
    found: set[Group] = set()
    after = None if cursor is None else scope_of(namespace, cursor, _LAST)
    while len(found) <= limit:
        scopes = await engine.store.index_scopes(
            index, namespace + SEPARATOR, after=after, limit=SCOPES_PER_READ
        )
        found |= {_group_of(scope) for scope in scopes}
        if len(scopes) < SCOPES_PER_READ:
            break
        after = scope_of(*_group_of(scopes[-1]), _LAST)
    return found


def _group_of(scope: str) -> Group:
    namespace, lane_id = scope.split(SEPARATOR)[:2]
    return namespace, lane_id


async def _load_lanes(engine: Engine, groups: Iterable[Group]) -> dict[Group, Lane]:
    """What operators have said about some lanes."""
    keys = [key_for(Lane, lane_identity(*group)) for group in groups]
    records = await load_records(engine.store, keys) if keys else []
    return {(lane.namespace, lane.lane_id): lane for lane in records if isinstance(lane, Lane)}


async def _lanes_set(engine: Engine, namespace: str | None, lane_id: str | None = None) -> dict[Group, Lane]:
    """What operators have said about any lane, of one namespace or of all."""
    scopes = await scopes_in(engine, indexes.LANES, namespace, lane_id)
    return await _load_lanes(engine, [_group_of(scope) for scope in scopes])


def _closed(lanes: dict[Group, Lane]) -> frozenset[Group]:
    """Those of the lanes that give no work."""
    return frozenset(group for group, lane in lanes.items() if lane.state in GIVES_NO_WORK)


@operation(ScanEligibleArgs)
async def scan_eligible(engine: Engine, args: ScanEligibleArgs, envelope: Envelope) -> EligibleExecutions:
    """What waits for a worker, in claiming order; nothing in a lane that is paused or disabled.

    Lapsed leases that wait for a reclaim are left out.
    """
    closed = _closed(await _lanes_set(engine, envelope.namespace, args.lane_id))
    found = await scopes_in(engine, indexes.ELIGIBLE, envelope.namespace, args.lane_id)
    scopes = [scope for scope in found if _group_of(scope) not in closed]
    tag = "" if args.partition is None else f"{args.partition.key}:"

    async def keep(rows: list[Row]) -> list[ExecutionId]:
        ids = [member for _, member in rows if member.startswith(tag)]
        executions = await load_executions(engine, ids, envelope.namespace)
        return [found.execution_id for found in executions if found.phase is LifecyclePhase.RUNNABLE]

    read = merged(engine, [(indexes.ELIGIBLE, scope) for scope in scopes])
    page, _ = await fill_page(read, keep, None, args.limit)
    return EligibleExecutions(executions=tuple(page))


@operation(ListExpiredLeasesArgs)
async def list_expired_leases(
    engine: Engine, args: ListExpiredLeasesArgs, envelope: Envelope
) -> ListExpiredLeasesPage:
    """Leases that have lapsed, marked or not, the oldest first."""
    now = await engine.store.now()

    async def read(after: Row | None, limit: int) -> list[Row]:
        unmarked = await engine.store.read_index(indexes.DUE_LEASE, "", after=after, upto=now, limit=limit)
        marked = await engine.store.read_index(indexes.LAPSED, "", after=after, limit=limit)
        return sorted({*unmarked, *marked})[:limit]

    async def keep(rows: list[Row]) -> list[tuple[Row, ExpiredLeaseEntry]]:
        executions = await load_executions(engine, [member for _, member in rows], envelope.namespace)
        entries = {execution.execution_id: _expired_lease(execution, now) for execution in executions}
        return [(row, entry) for row in rows if (entry := entries.get(row[1])) is not None]

    # The cursor names a row of the caller's own: another one's id is not for its eyes.
    page, more = await fill_page(read, keep, parse_cursor(args.cursor), args.limit)
    return ListExpiredLeasesPage(
        entries=tuple(entry for _, entry in page),
        next_cursor=format_cursor(page[-1][0]) if more and page else None,
    )


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


async def fill_page(
    read: Callable[[P | None, int], Awaitable[list[P]]],
    keep: Callable[[list[P]], Awaitable[list[T]]],
    after: P | None,
    limit: int,
) -> tuple[list[T], bool]:
    """A page of what is kept of the places behind ``after``, and whether there is more.

    It reads on until the page is full or nothing is left: what is not kept, such as rows of other
    namespaces, makes no page short.
    """
    found, more, _ = await walk_page(read, keep, after, limit)
    return found, more


async def walk_page(
    read: Callable[[P | None, int], Awaitable[list[P]]],
    keep: Callable[[list[P]], Awaitable[list[T]]],
    after: P | None,
    limit: int,
    places_max: int | None = None,
) -> tuple[list[T], bool, P | None]:
    """Like ``fill_page``, but looks at no more than so many places.

    What is kept seldom is looked for in ever larger steps.

    Returns:
        What was kept, whether there is more for certain, and the place behind which to go on if the
        page is not full because the bound was reached.
    """
    found: list[T] = []
    step, looked_at = limit + 1, 0
    while len(found) <= limit:
        places = await read(after, step)
        found += await keep(places)
        looked_at += len(places)
        if len(places) < step:
            break
        after = places[-1]
        if places_max is not None and looked_at >= places_max and len(found) <= limit:
            return found, False, after
        step = min(2 * step, max(PLACES_PER_READ, limit + 1))
    return found[:limit], len(found) > limit, None


def merged(
    engine: Engine, scopes: list[Scope], *, descending: bool = False
) -> Callable[[Row | None, int], Awaitable[list[Row]]]:
    """How to read several scopes as if they were one."""

    async def read(after: Row | None, limit: int) -> list[Row]:
        pages = [
            await engine.store.read_index(index, scope, after=after, limit=limit, descending=descending)
            for index, scope in scopes
        ]
        return list(heapq.merge(*pages, reverse=descending))[:limit]

    return read


async def scopes_in(
    engine: Engine, index: str, namespace: str | None, lane_id: str | None = None
) -> list[str]:
    """Every scope of an index, of one namespace or of all, of one lane or of all."""
    prefix = "" if namespace is None else namespace + SEPARATOR + (lane_id or "")
    found: list[str] = []
    while True:
        after = found[-1] if found else None
        scopes = await engine.store.index_scopes(index, prefix, after=after, limit=SCOPES_PER_READ)
        found += scopes
        if len(scopes) < SCOPES_PER_READ:
            # A prefix that ends in a lane's name also begins the names of other lanes.
            return [scope for scope in found if lane_id is None or scope.split(SEPARATOR)[1] == lane_id]

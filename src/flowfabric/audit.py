"""The auditor: reads a whole store, live and without changing anything, and says what is wrong.

It recomputes from the records what else must be there, and compares: the index rows both ways, the
attempts, the waitpoints, the signals, the frames and the events. Everything is read in pages of
bounded size. A store in use changes while it is read, so whatever looks wrong is looked at again,
and counts only when the record at fault has not changed in between and looks wrong in the same way.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.core import audit as checks
from flowfabric.core import indexes
from flowfabric.core.audit import Held, HeldFlow, Violation, latest_life
from flowfabric.core.frames import PARTS, stream_key
from flowfabric.core.indexes import WAITPOINTS, IndexRow, index_rows
from flowfabric.core.records import (
    RECORD_TYPES,
    Admission,
    Budget,
    BudgetLedger,
    BudgetUsage,
    Edge,
    EdgeGroup,
    Execution,
    ExecutionResult,
    Flow,
    FlowMember,
    FlowNode,
    FlowProgress,
    Key,
    Keyring,
    PastAttempt,
    Payload,
    QuotaPolicy,
    QuotaWindow,
    Record,
    Reservation,
    StreamMeta,
    Suspension,
    Waitpoint,
    WorkerRegistration,
    flow_identity,
    key_for,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from flowfabric.engine.interface import AnyEngine
    from flowfabric.stores.base import Store

PAGE: Final = 200
LARGE_PAGE: Final = 10
"""Records with payloads come in smaller pages, so that one page fits into memory."""
LOOKS_MAX: Final = 3
VIOLATIONS_MAX: Final = 1_000
"""A report does not grow beyond this; ``complete`` says whether it had to stop."""


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit found."""

    violations: tuple[Violation, ...]
    checked: dict[str, int]
    """How many records of each kind, and how many index rows, were looked at."""
    complete: bool = True


async def audit(engine: AnyEngine, *, namespace: str | None = None) -> AuditReport:
    """Check every invariant of a store.

    Args:
        engine: a running engine over the store.
        namespace: look only at what belongs to this namespace.

    Raises:
        StoreError: the store failed; nothing is said about its content then.
        Unavailable: the engine is behind a server, which does not give the store itself away.
    """
    store: Store | None = getattr(engine, "store", None)
    if store is None:
        raise errors.Unavailable("An audit reads the store itself. Name the store, not a server.")
    auditor = _Auditor(store, namespace)
    await auditor.run()
    return AuditReport(
        violations=tuple(auditor.found[:VIOLATIONS_MAX]),
        checked=dict(auditor.checked),
        complete=not auditor.full,
    )


class _Auditor:
    def __init__(self, store: Store, namespace: str | None) -> None:
        self.store = store
        self.namespace = namespace
        self.found: list[Violation] = []
        self.checked: Counter[str] = Counter()

    @property
    def full(self) -> bool:
        return len(self.found) >= VIOLATIONS_MAX

    async def run(self) -> None:
        for kind, record_type in RECORD_TYPES.items():
            async for key in self._keys(kind, LARGE_PAGE if record_type.LARGE else PAGE):
                await self._look(key)
        for index in sorted(indexes.NAMES):
            async for row in self._rows(index):
                await self._look_at_row(row)

    async def _keys(self, kind: str, page: int) -> AsyncIterator[Key]:
        after: Key | None = None
        while not self.full:
            keys = await self.store.list_keys(f"{kind}/", after=after, limit=page)
            if not keys:
                return
            for key in keys:
                yield key
            after = keys[-1]

    async def _rows(self, index: str) -> AsyncIterator[IndexRow]:
        scope: str | None = None
        while scopes := await self.store.index_scopes(index, "", after=scope, limit=PAGE):
            for scope in scopes:
                async for row in self._rows_of_scope(index, scope):
                    yield row

    async def _rows_of_scope(self, index: str, scope: str) -> AsyncIterator[IndexRow]:
        after: tuple[int, str] | None = None
        while not self.full:
            page = await self.store.read_index(index, scope, after=after, limit=PAGE)
            if not page:
                return
            for sort, member in page:
                yield index, scope, sort, member
            after = page[-1]

    # Looking at one record, again if it changes meanwhile

    async def _look(self, key: Key) -> None:
        violations: list[Violation] = []
        seen: tuple[int, list[Violation]] | None = None
        for _ in range(LOOKS_MAX):
            version, record, violations = await self._read(key)
            if record is not None:
                owner = await self._owner(record)
                if not self._concerns(record, owner):
                    return
                violations = await self._check_record(record, owner)
            elif not violations:
                return
            if not violations or (version, violations) == seen:
                break
            seen = version, violations
        else:
            violations = []  # it never stood still, so nothing can be said about it
        self.checked[kind_of(key)] += 1
        self.found += violations

    async def _read(self, key: Key) -> tuple[int, Record | None, list[Violation]]:
        try:
            [(_, version, record)] = (await self.store.load([key])).rows
        except errors.StoreCorrupt as error:
            detail = f"cannot be read: {type(error).__name__}"
            return -1, None, [Violation(invariant="readable", subject=key, detail=detail)]
        return version, record, []

    async def _check_record(self, record: Record, owner: Execution | None) -> list[Violation]:
        found: list[Violation] = []
        if checks.owner_id(record) is not None and not await self._is_being_removed(record):
            found += checks.check_owned(record, owner)
        if isinstance(record, (Execution, Flow)) and record.removing_since is not None:
            pass  # most of what belongs to it is gone already
        elif isinstance(record, Execution):
            found += checks.check_execution(await self._held(record))
        elif isinstance(record, Flow):
            found += checks.check_flow(await self._held_flow(record))
        elif isinstance(record, Reservation):
            found += checks.check_reservation(record, owner, await self.store.now())
        elif isinstance(record, Keyring):
            found += checks.check_keyring(record)
        elif isinstance(record, Budget):
            found += checks.check_budget(
                record,
                await self._find(BudgetUsage, record.identity),
                [found async for found in self._all(BudgetLedger, f"{record.identity}/{record.period}")],
            )
        elif isinstance(record, QuotaPolicy):
            found += await self._check_quota(record)
        elif isinstance(record, WorkerRegistration):
            found += checks.check_worker(record)
        elif isinstance(record, StreamMeta) and owner is not None:
            found += await self._check_stream(record, owner)
        return found + await self._missing_rows(record)

    async def _is_being_removed(self, record: Record) -> bool:
        """Whether a flow goes whose members went before their places."""
        if not isinstance(record, FlowMember):
            return False
        flow = await self._find(Flow, flow_identity(record.flow_id))
        return isinstance(flow, Flow) and flow.removing_since is not None

    async def _owner(self, record: Record) -> Execution | None:
        if isinstance(record, Execution):
            return record
        execution_id = record.execution_id if isinstance(record, Reservation) else checks.owner_id(record)
        return None if execution_id is None else await self._find(Execution, execution_id)

    def _concerns(self, record: Record, owner: Execution | None) -> bool:
        """Whether the record belongs to the namespace that is audited."""
        if self.namespace is None:
            return True
        namespace: str | None = getattr(record, "namespace", None)
        if owner is not None:
            namespace = owner.namespace
        return namespace == self.namespace

    async def _find(self, record_type: type[Any], identity: str) -> Any:
        try:
            return (await self.store.load([key_for(record_type, identity)])).rows[0][2]
        except errors.StoreCorrupt:
            return None  # it is reported where it is looked at itself

    # Everything about one execution

    async def _held(self, execution: Execution) -> Held:
        execution_id = execution.execution_id
        events = latest_life([event async for event in self._events(execution_id)])
        suspension_id = execution.suspension_id or execution.resumed_suspension_id
        return Held(
            execution=execution,
            payload=await self._find(Payload, execution_id),
            has_result=await self._find(ExecutionResult, f"{execution_id}/{execution.replay_count}")
            is not None,
            past_attempts=tuple([found async for found in self._all(PastAttempt, execution_id)]),
            suspension=None
            if suspension_id is None
            else await self._find(Suspension, f"{execution_id}/{suspension_id}"),
            waitpoints=tuple(await self._waitpoints(execution_id)),
            signal_sequences=frozenset(
                [int(key.rpartition("/")[2]) async for key in self._keys_of("signal", execution_id)]
            ),
            events=events,
            history_is_whole=await self._log_reaches_back_to(execution.created_at),
        )

    async def _held_flow(self, flow: Flow) -> HeldFlow:
        members = [
            await self._find(FlowMember, f"{flow.identity}/{place}") for place in range(flow.node_count)
        ]
        ids = [member.execution_id for member in members if member is not None]
        edges = [edge async for edge in self._all(Edge, flow.identity)]
        return HeldFlow(
            flow=flow,
            progress=await self._find(FlowProgress, flow.identity),
            members=tuple(members),
            executions=await self._by_id(Execution, ids),
            nodes=await self._by_id(FlowNode, ids),
            groups=await self._by_id(EdgeGroup, ids),
            edges={edge.edge_id: edge for edge in edges},
            told=frozenset(
                [found for found in (*ids, flow.identity) if await self._has_keys("message", found)]
            ),
        )

    async def _by_id(self, record_type: type[Any], ids: list[str]) -> dict[str, Any]:
        found = {execution_id: await self._find(record_type, execution_id) for execution_id in ids}
        return {execution_id: record for execution_id, record in found.items() if record is not None}

    async def _has_keys(self, kind: str, execution_id: str) -> bool:
        return bool(await self.store.list_keys(f"{kind}/{execution_id}/", limit=1))

    async def _keys_of(self, kind: str, execution_id: str) -> AsyncIterator[Key]:
        async for key in self._keys(f"{kind}/{execution_id}", PAGE):
            yield key

    async def _all(self, record_type: type[Any], execution_id: str) -> AsyncIterator[Any]:
        async for key in self._keys_of(record_type.KIND, execution_id):
            found = await self._find(record_type, key.partition("/")[2])
            if found is not None:
                yield found

    async def _waitpoints(self, execution_id: str) -> list[Waitpoint]:
        rows = [row async for row in self._rows_of_scope(WAITPOINTS, execution_id)]
        found = [await self._find(Waitpoint, f"{execution_id}/{member}") for _, _, _, member in rows]
        return [waitpoint for waitpoint in found if waitpoint is not None]

    async def _events(self, execution_id: str) -> AsyncIterator[Any]:
        after = 0
        while page := await self.store.read_events(after, execution_id=execution_id, limit=PAGE):
            for stored in page:
                yield stored.event
            after = page[-1].sequence

    async def _log_reaches_back_to(self, at_ms: int) -> bool:
        """Whether no event since this instant has been trimmed, as far as is certain."""
        trimmed = await self.store.trimmed_events()
        oldest = await self.store.read_events(trimmed, limit=1) if trimmed else []
        return not trimmed or any(stored.event.at_ms < at_ms for stored in oldest)

    async def _check_stream(self, stream: StreamMeta, owner: Execution) -> Sequence[Violation]:
        counts: dict[str, int] = {}
        in_order = True
        for part in PARTS:
            positions = await self._positions(stream_key(stream.execution_id, stream.attempt_index, part))
            counts[part] = len(positions)
            newest = (stream.last_ms, stream.last_seq)
            strictly = all(left < right for left, right in pairwise(positions))
            in_order = in_order and strictly and all(position <= newest for position in positions[-1:])
        return list(checks.check_stream(stream, owner, counts, in_order=in_order))

    async def _check_quota(self, quota: QuotaPolicy) -> Iterable[Violation]:
        admissions = [key async for key in self._keys_of(Admission.KIND, quota.identity)]
        windows = [window async for window in self._all(QuotaWindow, quota.identity)]
        windows.sort(key=lambda window: window.piece)
        instants = [instant for window in windows for instant in window.instants]
        return checks.check_quota(quota, len(admissions), instants)

    async def _positions(self, stream: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        first = (0, 0)
        while page := await self.store.read_frames(stream, first=first, limit=PAGE):
            found += [(frame.ms, frame.seq) for frame in page]
            first = (found[-1][0], found[-1][1] + 1)
        return found

    # Index rows, both ways

    async def _missing_rows(self, record: Record) -> list[Violation]:
        try:
            expected = index_rows(record)
        except (AssertionError, KeyError):
            return []  # an illegal state, which is reported as such, has no rows to compare with
        return [
            checks.missing_row(row, record.key) for row in sorted(expected) if not await self._has_row(row)
        ]

    async def _has_row(self, row: IndexRow) -> bool:
        index, scope, sort, member = row
        # Just before the member: nearly always the row itself is the first that follows.
        after = (sort, member[:-1])
        while page := await self.store.read_index(index, scope, after=after, upto=sort, limit=PAGE):
            if (sort, member) in page:
                return True
            if page[-1] > (sort, member):
                return False
            after = page[-1]
        return False

    async def _look_at_row(self, row: IndexRow) -> None:
        for _ in range(LOOKS_MAX):
            owner = await self._row_owner(row)
            if owner is not None and not self._concerns(owner, await self._owner(owner)):
                return
            if owner is None and self.namespace is not None and not checks.in_namespace(row, self.namespace):
                return
            if owner is not None and row in _rows_or_none(owner):
                break
            if not await self._has_row(row):
                return
        else:
            self.found.append(checks.orphaned_row(row))
        self.checked["row"] += 1

    async def _row_owner(self, row: IndexRow) -> Record | None:
        _, _, identity = checks.owner_key(row).partition("/")
        owner: Record | None = await self._find(RECORD_TYPES[kind_of(checks.owner_key(row))], identity)
        if row[0] in checks.SUSPENSION_INDEXES and isinstance(owner, Execution):
            owner = await self._find(Suspension, f"{owner.execution_id}/{owner.suspension_id}")
        return owner


def _rows_or_none(record: Record) -> Iterable[IndexRow]:
    try:
        return index_rows(record)
    except (AssertionError, KeyError):
        return ()

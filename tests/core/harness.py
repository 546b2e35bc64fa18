"""Rules without an engine: a dictionary of records, a clock set by hand, one command at a time.

Every run checks what holds for every rule: a refusal changes nothing, what was loaded is never
changed in place, each execution stays in a legal situation and got there by a legal step, and has
exactly one place in the indexes that say where it stands.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from flowfabric.contracts.base import Command
from flowfabric.contracts.check import check
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.ids import ExecutionId, LeaseFence
from flowfabric.contracts.states import AttemptLifecycle, BlockingReason, LifecyclePhase
from flowfabric.core import rules as _rules  # noqa: F401 - importing it registers every rule
from flowfabric.core.commands import ClaimCandidateArgs
from flowfabric.core.events import Event, Family
from flowfabric.core.indexes import PRIMARY, IndexRow, index_rows
from flowfabric.core.records import (
    AnyRecord,
    Attempt,
    Execution,
    Key,
    Lease,
    Record,
    Suspension,
    Waitpoint,
    decode_record,
    encode_record,
    key_for,
)
from flowfabric.core.registry import RULES
from flowfabric.core.state import TRANSITIONS, Situation, situation_of, state_vector
from flowfabric.core.vocabulary import Continuation
from flowfabric.core.work import Envelope, Frame, Missing, Work, WorkingSet
from flowfabric.engine.commits import remember_outcome, repeated_outcome

R = TypeVar("R")
E = TypeVar("E", bound=Exception)

NAMESPACE = "tenant"
LANE = "lane"
WORKER = "worker"
INSTANCE = "worker-1"
TTL_MS = 30_000
START_MS = 1_000_000

_ids = itertools.count(1)


def new_id() -> str:
    """A uuid that no other call returns."""
    return f"00000000-0000-4000-8000-{next(_ids):012x}"


def new_execution_id(partition: int = 7) -> ExecutionId:
    """An execution id that no other call returns."""
    return f"{{fp:{partition}}}:{new_id()}"


class Rulebook:
    """Runs commands against records kept in a dictionary. ``now`` is set by the test."""

    def __init__(self, now: int = START_MS) -> None:
        self.now = now
        self.data: dict[Key, bytes] = {}
        self.events: list[Event] = []
        self.frames: list[Frame] = []
        self._requests = itertools.count(1)

    # What a test does

    def run(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = NAMESPACE,
        actor: str = "",
        random: float = 0.0,
    ) -> R:
        """Carry out a command as the engine would, and keep its changes."""
        check(command)
        envelope = Envelope(
            request_id=request_id or f"request-{next(self._requests)}",
            namespace=namespace,
            actor=actor,
            random=random,
        )
        work, outcome = self._decide(command, envelope)
        self._apply(work)
        return outcome

    @contextmanager
    def refuses(self, error: type[E]) -> Iterator[list[E]]:
        """The block is refused with exactly this error, and nothing changed. Holds the error."""
        before = self.snapshot()
        caught: list[E] = []
        try:
            yield caught
        except Exception as refusal:
            if type(refusal) is not error:
                raise
            caught.append(refusal)
        assert caught, f"not refused with {error.__name__}"
        assert self.snapshot() == before

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """The block succeeds, and nothing changed."""
        before = self.snapshot()
        yield
        assert self.snapshot() == before

    def advance(self, milliseconds: int) -> int:
        """Move the clock. Returns what it shows then."""
        self.now += milliseconds
        return self.now

    def create(self, **fields: Any) -> ExecutionId:
        """Create an execution; any argument can be given. Returns its id."""
        defaults: dict[str, Any] = {
            "execution_id": new_execution_id(),
            "namespace": NAMESPACE,
            "lane_id": LANE,
            "execution_kind": "kind",
            "input_payload": b"input",
            "priority": 0,
            "creator_identity": "tests",
        }
        args = CreateExecutionArgs(**{**defaults, **fields})
        self.run(args)
        return args.execution_id

    def claim(self, execution_id: str, **fields: Any) -> LeaseFence:
        """Claim an execution whichever way it has to be claimed. Returns the fence."""
        defaults: dict[str, Any] = {
            "execution_id": execution_id,
            "lane_id": LANE,
            "worker_id": WORKER,
            "worker_instance_id": INSTANCE,
            "worker_capabilities": frozenset(),
            "lease_id": new_id(),
            "attempt_id": new_id(),
            "lease_ttl_ms": TTL_MS,
        }
        outcome = self.run(ClaimCandidateArgs(**{**defaults, **fields}))
        return outcome.work.fence  # type: ignore[union-attr]

    def start(self, **fields: Any) -> tuple[ExecutionId, LeaseFence]:
        """Create an execution and claim it."""
        execution_id = self.create(**fields)
        return execution_id, self.claim(execution_id, lane_id=fields.get("lane_id", LANE))

    def suspend(self, execution_id: str, timeout_at: int | None = None) -> None:
        """Put a running execution into an open suspension with one waitpoint, without a rule."""
        execution = self.execution(execution_id)
        assert execution.attempt is not None
        execution.suspension_id, execution.waitpoint_id = new_id(), new_id()
        execution.attempt = replace(
            execution.attempt,
            state=AttemptLifecycle.SUSPENDED,
            suspended_at=self.now,
            suspension_id=execution.suspension_id,
            timeout_at=None,
        )
        execution.phase, execution.continuation = LifecyclePhase.SUSPENDED, Continuation.RESUME
        execution.suspended_reason, execution.lease = BlockingReason.WAITING_FOR_SIGNAL, None
        waitpoint = Waitpoint(
            execution_id=execution_id,
            waitpoint_id=execution.waitpoint_id,
            waitpoint_key="key",
            attempt_index=execution.attempt.attempt_index,
            state="active",
            token_kid="kid",
            token_digest="digest",
            created_at=self.now,
            suspension_id=execution.suspension_id,
        )
        suspension = Suspension(
            execution_id=execution_id,
            suspension_id=execution.suspension_id,
            namespace=execution.namespace,
            lane_id=execution.lane_id,
            attempt_index=execution.attempt.attempt_index,
            waitpoint_ids=(waitpoint.waitpoint_id,),
            waitpoint_keys=(waitpoint.waitpoint_key,),
            reason_code="waiting_for_signal",
            requested_by="worker",
            condition=b"",
            policy=b"",
            created_at=self.now,
            timeout_at=timeout_at,
        )
        for record in (execution, waitpoint, suspension):
            self.put(record)

    # What a test looks at

    def get(self, record_type: type[AnyRecord], identity: str) -> AnyRecord:
        """The record, which must exist."""
        record = self.find(record_type, identity)
        assert record is not None
        return record

    def find(self, record_type: type[AnyRecord], identity: str) -> AnyRecord | None:
        """The record, or None."""
        record = self._load(key_for(record_type, identity))
        assert record is None or isinstance(record, record_type)
        return record

    def execution(self, execution_id: str) -> Execution:
        """The execution record."""
        return self.get(Execution, execution_id)

    def lease(self, execution_id: str) -> Lease:
        """The lease of an execution that has one."""
        lease = self.execution(execution_id).lease
        assert lease is not None
        return lease

    def attempt(self, execution_id: str) -> Attempt:
        """The current attempt of an execution that has one."""
        attempt = self.execution(execution_id).attempt
        assert attempt is not None
        return attempt

    def situation(self, execution_id: str) -> Situation | None:
        """Where the execution stands, in one word."""
        return situation_of(self.execution(execution_id))

    def vector(self, execution_id: str) -> tuple[str, ...]:
        """The seven words of the state vector, in the contracts' order."""
        vector = state_vector(self.execution(execution_id))
        return tuple(str(word) for word in msgspec.structs.astuple(vector))

    def put(self, record: Record) -> None:
        """Store a record as it is, for a situation that no command at hand leads to."""
        self.data[record.key] = encode_record(record)

    def rows(self, execution_id: str = "") -> set[IndexRow]:
        """The index rows of all records whose key contains the text."""
        keys = [key for key in self.data if execution_id in key]
        return {row for key in keys for row in index_rows(decode_record(key, self.data[key]))}

    def indexes(self, execution_id: str) -> set[str]:
        """The names of the indexes in which the execution stands."""
        return {index for index, _, _, member in self.rows(execution_id) if member == execution_id}

    def names(self, family: Family | None = None) -> list[str]:
        """The names of the events so far, in order."""
        return [str(event.name) for event in self.events if family in (None, event.family)]

    def snapshot(self) -> tuple[Any, ...]:
        """Everything that is kept, for comparison."""
        return dict(self.data), list(self.events), list(self.frames)

    # How it works

    def _load(self, key: Key) -> Record | None:
        data = self.data.get(key)
        return None if data is None else decode_record(key, data)

    def _decide(self, command: Command[R], envelope: Envelope) -> tuple[Work, R]:
        rule = RULES[type(command)]
        working_set = WorkingSet()
        working_set.put_loaded(self.now, ())
        while True:
            work = Work(working_set, envelope)
            try:
                outcome = repeated_outcome(rule, command, work)
                if outcome is None:
                    outcome = rule.decide(work, command)
                    remember_outcome(rule, command, work, outcome)
            except Missing as missing:
                rows = [(key, int(key in self.data), self._load(key)) for key in missing.keys]
                working_set.put_loaded(self.now, rows)
                continue
            finally:
                self._check_loaded(working_set)
            return work, outcome

    def _check_loaded(self, working_set: WorkingSet) -> None:
        for key, record in working_set.loaded.items():
            kept = None if record is None else encode_record(record)
            assert kept == self.data.get(key), f"a rule changed {key} in place"

    def _apply(self, work: Work) -> None:
        for key, record in work.writes.items():
            before = self._load(key)
            if record is None:
                self.data.pop(key, None)
            else:
                self.data[key] = encode_record(record)
                assert record.key == key
            if isinstance(record, Execution):
                self._check_execution(before, record)
        for record in work.writes.values():
            if isinstance(record, Execution):
                self._check_rows(record)
        self.events += work.events
        self.frames += work.appends

    def _check_execution(self, before: Record | None, after: Execution) -> None:
        situation = situation_of(after)
        assert situation is not None, f"no legal situation: {state_vector(after)}"
        if before is None:
            return
        assert isinstance(before, Execution)
        previous = situation_of(before)
        assert previous is not None
        legal = situation is previous or situation in TRANSITIONS[previous]
        assert legal, f"no such step: {previous} to {situation}"
        assert after.lease_epoch - before.lease_epoch in (0, 1)
        assert after.attempt_count - before.attempt_count in (0, 1)

    def _check_rows(self, execution: Execution) -> None:
        member = execution.execution_id
        primary = sorted(row[0] for row in self.rows(member) if row[0] in PRIMARY and row[3] == member)
        lapsed = primary == ["active", "eligible"] and execution.lease is not None
        assert len(primary) == 1 or lapsed, f"in {primary} at once"

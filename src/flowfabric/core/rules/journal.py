"""The journal: what a handler that runs again finds instead of doing it twice.

An entry is named by (name, ordinal of that name) inside the execution's journal generation and is
written once: whoever records it again gets the first entry back. The execution record is relied
on and never written by recording, so steps do not disturb lease renewals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric import errors
from flowfabric.contracts.journal import (
    JournalEntry,
    JournalKind,
    RecordSleepArgs,
    RecordStepArgs,
    RecordStepResult,
    StepRecorded,
)
from flowfabric.contracts.signals import ResumeSignal
from flowfabric.core.journal_pointer import parse_journal_pointer
from flowfabric.core.records import Execution, JournalRecord, Signal, Suspension, journal_identity, key_for
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.rules.fencing import check_lease

if TYPE_CHECKING:
    from flowfabric.core.records import Key
    from flowfabric.core.work import Work

TIMED_OUT: Final = "timed_out"
"""How the close reason of a suspension begins whose deadline struck."""

_encode = msgspec.msgpack.Encoder().encode
_decode_signals = msgspec.msgpack.Decoder(tuple[ResumeSignal, ...]).decode


def _reads(args: RecordStepArgs | RecordSleepArgs) -> tuple[Key, ...]:
    # The generation stands in the execution. Nearly always it is the first one, so that entry is
    # loaded along; in a later generation the rule asks for the right one.
    first = journal_identity(args.execution_id, 0, args.name, args.ordinal)
    return key_for(Execution, args.execution_id), key_for(JournalRecord, first)


def _made(args: RecordStepArgs | RecordSleepArgs) -> tuple[Key, ...]:
    """The entry, which is new unless the handler runs again."""
    return _reads(args)[1:]


@rule(RecordStepArgs, subject=no_subject, reads=_reads, makes=_made)
def record_step(work: Work, args: RecordStepArgs) -> RecordStepResult:
    """Record what a step returned; a step that is recorded already keeps its first value.

    Raises:
        ExecutionNotFound: there is no such execution.
        ExecutionNotActive, LeaseRevoked, LeaseExpired, StaleLease: the caller's lease is not alive.
        JournalMismatch: the place is taken by a wait or a sleep.
    """
    return _record(work, args, JournalKind.STEP, value=args.value)


@rule(RecordSleepArgs, subject=no_subject, reads=_reads, makes=_made)
def record_sleep(work: Work, args: RecordSleepArgs) -> RecordStepResult:
    """Record when a sleep ends; a sleep that is recorded already keeps its first instant.

    Raises:
        ExecutionNotFound: there is no such execution.
        ExecutionNotActive, LeaseRevoked, LeaseExpired, StaleLease: the caller's lease is not alive.
        JournalMismatch: the place is taken by a step or a wait.
    """
    return _record(work, args, JournalKind.SLEEP, wake_at=args.wake_at)


def _record(
    work: Work,
    args: RecordStepArgs | RecordSleepArgs,
    kind: JournalKind,
    *,
    value: bytes | None = None,
    wake_at: int | None = None,
) -> StepRecorded:
    execution = work.execution(args.execution_id)
    lease, attempt = check_lease(work, execution, args.fence)
    if attempt.attempt_index != args.attempt_index:
        raise errors.StaleLease(execution_id=args.execution_id, current_epoch=lease.epoch)
    entry = _entry_at(work, execution, args.name, args.ordinal)
    if entry is None:
        entry = JournalRecord(
            execution_id=execution.execution_id,
            generation=execution.journal_generation,
            name=args.name,
            ordinal=args.ordinal,
            kind=kind,
            recorded_at=work.now,
            value=value,
            wake_at=wake_at,
        )
        work.add(entry)
    elif entry.kind != kind:
        raise errors.JournalMismatch(
            name=args.name, ordinal=args.ordinal, recorded_kind=entry.kind, requested_kind=kind
        )
    return StepRecorded(entry=journal_entry(entry))


def _entry_at(work: Work, execution: Execution, name: str, ordinal: int) -> JournalRecord | None:
    identity = journal_identity(execution.execution_id, execution.journal_generation, name, ordinal)
    return work.read_new(JournalRecord, identity)


def journal_resumption(work: Work, execution: Execution) -> None:
    """Record how the wait ended that the current attempt was put aside for.

    Called by the claim that continues the attempt, in its commit, so a retry finds the signals
    even when the resumed run dies at once.
    """
    if execution.resumed_suspension_id is None or execution.attempt is None:
        return
    identity = f"{execution.execution_id}/{execution.resumed_suspension_id}"
    suspension = work.read(Suspension, identity)
    # A suspension of an earlier attempt was journalled when that attempt was resumed; since then
    # a replay may have opened another generation, where it does not belong.
    if suspension is not None and suspension.attempt_index == execution.attempt.attempt_index:
        journal_wait(work, execution, suspension)


def journal_wait(work: Work, execution: Execution, suspension: Suspension) -> None:
    """Write the journal entry of a suspension that is over, unless it has one or asked for none."""
    pointer = parse_journal_pointer(suspension.continuation_metadata_pointer)
    if pointer is None:
        return
    identity = journal_identity(
        execution.execution_id, execution.journal_generation, pointer.name, pointer.ordinal
    )
    sequences = sorted(suspension.satisfier_signals)
    work.load(*(key_for(Signal, f"{suspension.execution_id}/{sequence}") for sequence in sequences))
    if work.read_new(JournalRecord, identity) is not None:
        return
    work.add(
        JournalRecord(
            execution_id=execution.execution_id,
            generation=execution.journal_generation,
            name=pointer.name,
            ordinal=pointer.ordinal,
            kind=pointer.kind,
            recorded_at=work.now,
            value=_encode(satisfying_signals(work, suspension)),
            timed_out=suspension.close_reason.startswith(TIMED_OUT),
        )
    )


def satisfying_signals(work: Work, suspension: Suspension) -> tuple[ResumeSignal, ...]:
    """The signals that met the suspension's condition, in the order of their arrival."""
    sequences = sorted(suspension.satisfier_signals)
    found = work.read_all(Signal, [f"{suspension.execution_id}/{sequence}" for sequence in sequences])
    return tuple(resume_signal(signal) for signal in found if signal is not None)


def resume_signal(signal: Signal) -> ResumeSignal:
    """A signal as the resumed handler sees it."""
    return ResumeSignal(
        signal_id=signal.signal_id,
        signal_name=signal.signal_name,
        signal_category=signal.signal_category,
        source_type=signal.source_type,
        source_identity=signal.source_identity,
        correlation_id=signal.correlation_id,
        accepted_at=signal.accepted_at,
        payload=signal.payload,
        payload_encoding=signal.payload_encoding,
        waitpoint_id=signal.waitpoint_id,
        waitpoint_key=signal.waitpoint_key,
    )


def journal_entry(record: JournalRecord) -> JournalEntry:
    """An entry as callers see it. A wait's signals are decoded from its value."""
    return JournalEntry(
        name=record.name,
        ordinal=record.ordinal,
        kind=JournalKind(record.kind),
        value=record.value,
        recorded_at=record.recorded_at,
        wake_at=record.wake_at,
        signals=_decode_signals(record.value) if record.kind == JournalKind.WAIT and record.value else (),
        timed_out=record.timed_out,
    )

"""The journal: what handlers that run again have done already, by name and ordinal."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.ids import (
    Amount,
    AttemptIndex,
    ExecutionId,
    LeaseFence,
    Name,
    TimestampMs,
)
from flowfabric.contracts.limits import JOURNAL_BYTES_MAX, U32_MAX
from flowfabric.contracts.signals import ResumeSignal

Ordinal: TypeAlias = Annotated[int, Meta(ge=0, le=U32_MAX)]
StepValue: TypeAlias = Annotated[bytes, Meta(max_length=JOURNAL_BYTES_MAX)]


class JournalKind(StrEnum):
    """What a journal entry remembers."""

    STEP = "step"
    WAIT = "wait"
    SLEEP = "sleep"


class JournalEntry(Value):
    """One thing that a handler has done; ``ordinal`` counts the uses of the name."""

    name: str
    ordinal: Ordinal
    kind: JournalKind
    value: bytes | None = None
    recorded_at: TimestampMs
    wake_at: TimestampMs | None = None
    signals: tuple[ResumeSignal, ...] = ()
    timed_out: bool = False
    """Whether a wait ended because its deadline struck."""


class JournalPage(Value):
    """Every entry of the current generation, in the order in which they were recorded."""

    entries: tuple[JournalEntry, ...] = ()
    generation: Amount = 0


class StepRecorded(Outcome, tag="Recorded"):
    """The entry is in the journal; it is the earlier one when it had been recorded before."""

    entry: JournalEntry


RecordStepResult: TypeAlias = StepRecorded


class RecordStepArgs(Command[RecordStepResult]):
    """Record a step's result, under the fence."""

    execution_id: ExecutionId
    fence: LeaseFence
    attempt_index: AttemptIndex
    name: Name
    ordinal: Ordinal
    value: StepValue


class RecordSleepArgs(Command[RecordStepResult]):
    """Record when a sleep ends, under the fence."""

    execution_id: ExecutionId
    fence: LeaseFence
    attempt_index: AttemptIndex
    name: Name
    ordinal: Ordinal
    wake_at: TimestampMs


class ReadJournalArgs(Command[JournalPage]):
    """Read the journal of the current generation."""

    execution_id: ExecutionId

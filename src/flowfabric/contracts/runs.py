"""What someone who waits for an execution wants to know: is it over, and how did it end."""

from __future__ import annotations

from flowfabric.contracts.base import Command, Value
from flowfabric.contracts.ids import Amount, AttemptIndex, ExecutionId, TimestampMs
from flowfabric.contracts.states import PublicState


class RunView(Value):
    """One execution as its submitter sees it."""

    execution_id: ExecutionId
    execution_kind: str
    public_state: PublicState
    current_attempt_index: AttemptIndex
    total_attempt_count: Amount
    generation: Amount
    """How often the execution was replayed."""
    result: bytes | None = None
    result_encoding: str | None = None
    failure_reason: str = ""
    failure_category: str = ""
    cancellation_reason: str = ""
    progress_pct: int | None = None
    progress_message: str | None = None
    completed_at: TimestampMs | None = None


class ReadRunArgs(Command[RunView]):
    """Read how an execution stands and, once it has ended, how it ended."""

    execution_id: ExecutionId

"""Retention: removing what ended long ago, and the log of events with it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome
from flowfabric.contracts.ids import Amount, DurationMs
from flowfabric.contracts.limits import PAGE_ROWS_MAX, RETENTION_MS


class RetentionTrimmed(Outcome, tag="Trimmed"):
    """What one pass removed."""

    executions: Amount
    """Those of flows included."""
    flows: Amount
    events: Amount
    more: bool
    """True if the pass stopped at its limit."""


class TrimRetentionArgs(Command[RetentionTrimmed]):
    """Remove what ended longer ago than the retention, the oldest first, and the events of that time.

    It concerns all namespaces, so a caller that is bound to one is refused.
    """

    retention_ms: DurationMs = RETENTION_MS
    limit: Annotated[int, Meta(ge=1, le=PAGE_ROWS_MAX)] = PAGE_ROWS_MAX
    """How many executions and flows the pass looks at, at most."""

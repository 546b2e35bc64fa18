"""What happened, as one ordered log. The store numbers events in commit order.

Families are the feeds that can be subscribed to. Names and data are the contracts' words, so a
feed is a filter over this log and nothing else.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flowfabric.contracts.events import Family

__all__ = ["SPARED", "Event", "Family", "StoredEvent"]

SPARED: Final = frozenset({Family.OPERATOR})
"""The families that the trimming of the log spares. They have a longer retention of their own, and
what it removes is told by an entry that stays: ``log_trimmed``."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One fact, published in the same commit as the change it tells of."""

    family: Family
    name: str
    namespace: str
    execution_id: str
    """Empty for a fact about a budget that no execution has brought about."""
    at_ms: int
    flow_id: str | None = None
    data: dict[str, str | int | None] = {}
    tags: dict[str, str] = {}
    """Those the execution had: a feed of one tag is filtered without looking at any record."""


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event with its place in the log."""

    sequence: int
    event: Event

"""Why an execution does not run: one reason, and what would change it."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

import msgspec

from flowfabric.contracts.base import Command, Value
from flowfabric.contracts.ids import ExecutionId
from flowfabric.contracts.states import PublicState

Detail: TypeAlias = str | int | bool | tuple[str, ...] | None


class WaitingReason(StrEnum):
    """The one reason that comes first."""

    RUNNING = "running"
    ENDED = "ended"
    PAUSED_BY_OPERATOR = "paused_by_operator"
    LANE_NOT_OPEN = "lane_not_open"
    UPSTREAMS_OPEN = "upstreams_open"
    NOT_DUE = "not_due"
    BUDGET_EXHAUSTED = "budget_exhausted"
    QUOTA_EXHAUSTED = "quota_exhausted"
    NO_CAPABLE_WORKER = "no_capable_worker"
    FLOW_CANCELLED = "flow_cancelled"
    WAITING_ITS_TURN = "waiting_its_turn"
    GRANTED = "granted"
    CLAIMABLE = "claimable"
    SUSPENDED = "suspended"
    LEASE_LAPSED = "lease_lapsed"


class Explanation(Value):
    """Why an execution stands where it stands."""

    execution_id: ExecutionId
    public_state: PublicState
    code: WaitingReason
    sentence: str
    """The reason in words for people."""
    would_change_it: str
    """What has to happen, or be done, for it to go on; empty for one that runs."""
    details: dict[str, Detail] = msgspec.field(default_factory=dict)
    """What the sentence is made of, for programs; the names depend on the code."""


class ExplainExecutionArgs(Command[Explanation | None]):
    """Say why an execution does not run; ``None`` when it does not exist.

    Nothing is changed. What is counted, such as the work before it in the queue, is counted up to
    a bound.
    """

    execution_id: ExecutionId

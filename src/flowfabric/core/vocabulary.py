"""The few words of stored state that the contracts do not name."""

from __future__ import annotations

from enum import StrEnum


class BlockerKind(StrEnum):
    """Who or what blocks an execution, in order of precedence."""

    OPERATOR = "operator"
    LANE = "lane"
    DEPENDENCIES = "dependencies"
    TIME = "time"
    BUDGET = "budget"
    QUOTA = "quota"
    ROUTE = "route"


class LeaseState(StrEnum):
    """What became of a lease that is still on record."""

    HELD = "held"
    EXPIRED = "expired"
    REVOKED = "revoked"


class GrantKind(StrEnum):
    """What a grant lets its worker do."""

    CLAIM = "claim"
    RESUME = "resume"
    RECLAIM = "reclaim"


class Continuation(StrEnum):
    """What the next claim of an execution does with its attempts."""

    FIRST = "first"
    RETRY = "retry"
    REPLAY = "replay"
    RESUME = "resume"
    NONE = "none"

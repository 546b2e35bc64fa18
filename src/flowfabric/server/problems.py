"""Errors as HTTP answers: one table from wire codes to statuses, and one envelope.

The envelope always has ``error``, the code with its detail; where a class of errors says so, it has
``kind`` and ``retryable``. ``code``, ``message`` and ``details`` let a client of ours raise the very
error that was raised here.

- Refused, contended, limited and failed never share a status with one another.
- What a store says about itself never reaches a client: a fault of the server has its code and a
  sentence of ours.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from flowfabric import errors

FOUND_SATISFIED: Final = frozenset(
    {"already_satisfied", "stream_already_closed", "lease_expired", "lease_revoked"}
)
"""State refusals that clients know by one word: what was asked for is so, or over, already."""
CONFLICT_KINDS: Final = frozenset(
    {
        "active_attempt_exists",
        "budget_attach_conflict",
        "cycle_detected",
        "dependency_already_exists",
        "execution_already_in_flow",
        "quota_attach_conflict",
        "rotation_conflict",
        "self_referencing_edge",
        "waitpoint_already_exists",
    }
)
STATE_KINDS: Final = frozenset(
    {
        "budget_exceeded",
        "budget_soft_exceeded",
        "execution_not_terminal",
        "flow_already_terminal",
        "max_replays_exhausted",
        "not_runnable",
        "replay_not_allowed",
        "terminal",
    }
)
CONTENDED: Final = frozenset(
    {
        "execution_not_active",
        "execution_not_eligible",
        "execution_not_in_eligible_set",
        "execution_not_reclaimable",
        "no_active_lease",
    }
)
"""State refusals that are answered as contention: another caller was faster, and may be again."""
STORE_KINDS: Final = {
    "store_unreachable": "transport",
    "store_timeout": "timeout",
    "store_corrupt": "protocol",
}
INPUT_LIMITS: Final = frozenset({"signal_limit_exceeded", "flow_too_large"})
"""Caps that a request breaks by what it asks for; waiting does not help."""
RETRY_AFTER_S: Final = 1
FAULTS: Final = 500
"""Statuses from here on are faults of the server. What they tell is in its log, not in the answer."""


class Problem(msgspec.Struct, frozen=True):
    """What a failed request is answered with."""

    status: int
    body: dict[str, Any]
    is_plain: bool = False
    """Whether the answer is the bare sentence instead of the envelope."""

    @property
    def is_fault(self) -> bool:
        """Whether it is the server's fault and not the client's."""
        return self.status >= FAULTS

    @property
    def headers(self) -> dict[str, str]:
        """When to come back, where that helps."""
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}

    @property
    def media_type(self) -> str:
        """The form of what ``encode`` returns."""
        return "text/plain; charset=utf-8" if self.is_plain else "application/json"

    def encode(self) -> bytes:
        """The envelope as JSON, or the sentence alone."""
        return str(self.body["error"]).encode() if self.is_plain else msgspec.json.encode(self.body)


def problem_of(error: errors.FlowFabricError) -> Problem:
    """The answer to a request that ended with this error."""
    status, kind, retryable = _class_of(error)
    body: dict[str, Any] = {"error": _headline(error)}
    if kind is not None:
        body["kind"] = kind
    if retryable is not None:
        body["retryable"] = retryable
    details = error.details if status < FAULTS else {}
    message = error.message if status < FAULTS else error.default_message
    return Problem(status, {**body, "code": error.code, "message": message, "details": details})


def plain_problem(status: int, error: str, **more: Any) -> Problem:
    """An answer that stands for no error of the engine."""
    return Problem(status, {"error": error, **more})


UNEXPECTED: Final = plain_problem(500, "internal error", retryable=False)
"""A fault of ours that nobody foresaw. The log has the rest."""


def _class_of(error: errors.FlowFabricError) -> tuple[int, str | None, bool | None]:
    """The status, the kind and whether to try again."""
    code = error.code
    match error:
        case errors.NotFound() if code != "waitpoint_not_found":
            return 404, None, None
        case errors.Unauthorized():
            return 403, None, None
        case errors.InvalidInput():
            return 400, None, None
        case errors.Conflict():
            return 409, code if code in CONFLICT_KINDS else "conflict", False
        case errors.Contention() | errors.WaitpointNotFound():
            return 409, "contention", True
        case errors.StateRefusal():
            return _class_of_state(code)
        case errors.LimitExceeded():
            return _class_of_limit(error)
        case errors.Unavailable():
            return 503, "unavailable", False
        case errors.StoreError():
            return 500, STORE_KINDS.get(code, "other"), error.retryable
    return 500, None, None


def _class_of_state(code: str) -> tuple[int, str, bool]:
    if code in CONTENDED:
        return 409, "contention", True
    if code in FOUND_SATISFIED:
        return 409, "already_satisfied", False
    return 409, code if code in STATE_KINDS else "state_conflict", False


def _class_of_limit(error: errors.LimitExceeded) -> tuple[int, str | None, bool | None]:
    if error.code in INPUT_LIMITS:
        return 400, None, None
    if error.code in STATE_KINDS:
        return 409, error.code, False
    if isinstance(error, errors.RetryExhausted):
        return 500, error.code, False
    return 429, error.code, True


def _headline(error: errors.FlowFabricError) -> str:
    """The code, followed by what was wrong where the code alone does not say it."""
    if isinstance(error, errors.NotFound):
        return f"not found: {error.code.removesuffix('_not_found').replace('_', ' ')}"
    if isinstance(error, errors.InvalidInput) and error.rule:
        return f"{error.code}: {error.field}: {error.rule}" if error.field else f"{error.code}: {error.rule}"
    return error.code

"""Every error the engine raises, as one tree; each class has one stable wire code.

A class's docstring is its default message: what happened, then what to do. The code is the
class's name in snake case, unless the class states it.

    FlowFabricError
    ├── InvalidInput        the request is wrong; sending it again cannot help
    ├── NotFound            the record asked for does not exist
    ├── Conflict            it collides with something that already exists
    ├── StateRefusal        the execution is not in a state that allows it
    ├── Contention          others were faster; the same request may succeed later (retryable)
    ├── LimitExceeded       a cap was reached
    ├── Unavailable         this deployment does not offer the operation
    ├── RunEnded            an execution that is waited for ended, but not well
    └── StoreError          the store failed
        ├── StoreUnreachable    (retryable)
        ├── StoreTimeout        (retryable)
        ├── StoreCorrupt
        ├── StoreFull
        └── StoreUnusable

The nine families never share a class, because callers treat them differently.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

_BY_CODE: dict[str, type[FlowFabricError]] = {}
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class FlowFabricError(Exception):
    """Something went wrong inside FlowFabric. See the message and the code."""

    code: ClassVar[str] = "flow_fabric_error"
    retryable: ClassVar[bool] = False
    default_message: ClassVar[str] = "Something went wrong inside FlowFabric."

    message: str
    details: dict[str, str]

    def __init_subclass__(cls, *, code: str = "", retryable: bool | None = None) -> None:
        super().__init_subclass__()
        cls.code = code or _HUMP.sub("_", cls.__name__).lower()
        cls.default_message = " ".join((cls.__doc__ or cls.code).split())
        if retryable is not None:
            cls.retryable = retryable
        _BY_CODE[cls.code] = cls

    def __init__(self, message: str | None = None, /, **details: object) -> None:
        self.details = {name: str(value) for name, value in details.items()}
        self.message = message or self._describe()
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def _describe(self) -> str:
        if not self.details:
            return self.default_message
        known = ", ".join(f"{name}={value!r}" for name, value in self.details.items())
        return f"{self.default_message} ({known})"

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (type(self), self.message, self.details)


def rebuilt(cls: type[FlowFabricError], message: str, details: dict[str, str]) -> FlowFabricError:
    """Make the error again that had this message and these details, in another process."""
    error = cls.__new__(cls, message)
    error.message, error.details = message, details
    return error


def error_for_code(code: str) -> type[FlowFabricError] | None:
    """Find the class of a wire code.

    >>> error_for_code("stale_lease").__name__
    'StaleLease'
    >>> error_for_code("no_such_code") is None
    True
    """
    return _BY_CODE.get(code)


def all_codes() -> tuple[str, ...]:
    """List every wire code, sorted."""
    return tuple(sorted(_BY_CODE))


# The families


class InvalidInput(FlowFabricError, ValueError):
    """The request breaks a rule. Correct the field that is named and send it again."""

    @property
    def field(self) -> str:
        """The path of the field that broke the rule, such as ``fence.lease_id``."""
        return self.details.get("field", "")

    @property
    def value(self) -> str:
        """What the field held, shortened; never payload bytes, tokens or secrets."""
        return self.details.get("value", "")

    @property
    def rule(self) -> str:
        """The rule that was broken; stable words that a program may compare."""
        return self.details.get("rule", "")

    def _describe(self) -> str:
        if not self.field or not self.rule:
            return super()._describe()
        got = f", got {self.value}" if "value" in self.details else ""
        return f"{self.field}: {self.rule}{got}. Correct {self.field} and send the request again."


class NotFound(FlowFabricError):
    """The record does not exist. Check the id and the namespace."""


class Conflict(FlowFabricError):
    """This collides with something that already exists. Read it, then decide anew."""


class StateRefusal(FlowFabricError):
    """The current state does not allow this. Read the state before you try again."""


class Contention(FlowFabricError, retryable=True):
    """Others changed the same record at the same time. Try again after a short pause."""


class LimitExceeded(FlowFabricError):
    """A cap was reached. Raise the cap or send less."""


class Unavailable(FlowFabricError):
    """This deployment does not offer the operation. Use a store that does."""


class RunEnded(FlowFabricError):
    """The execution ended without a result. See its failure reason."""


class StoreError(FlowFabricError):
    """The store failed. Look at the store's own log."""


class StoreUnreachable(StoreError, retryable=True):
    """The store could not be reached. Check the address and the network, then try again."""


class StoreTimeout(StoreError, retryable=True):
    """The store did not answer in time. It may have acted: repeat with the same request id."""


class StoreCorrupt(StoreError):
    """A stored record cannot be read. Restore it from a backup or remove it."""


class StoreFull(StoreError):
    """The store has no room left. Free space or enable retention, then try again."""


class StoreUnusable(StoreError):
    """The store does not fit this program or its configuration. Correct what the message names."""


# Runs that ended


class RunFailed(RunEnded):
    """The execution failed. See the reason and the category."""


class RunCancelled(RunEnded):
    """The execution was cancelled. See the reason."""


class RunExpired(RunEnded):
    """The execution ran out of time. Give it more, or find out what took so long."""


class RunSkipped(RunEnded):
    """What the execution depends on cannot succeed any more. Replay what it depends on first."""


class FlowRunFailed(RunEnded):
    """The flow ended, and some of its members did not succeed. Read its members to see which."""


class FlowRunCancelled(RunEnded):
    """The flow was cancelled. See the reason."""


# Invalid input


class InvalidCapabilities(InvalidInput):
    """A capability list breaks a rule. The detail names the rule; correct the list."""


class InvalidPolicyJson(InvalidInput):
    """The policy cannot be honoured. The detail names the field; remove or correct it."""


class CapabilityMismatch(InvalidInput):
    """The worker lacks required capabilities. Claim with a worker that has them."""


class PartialFenceTriple(InvalidInput):
    """The fence is incomplete. Send lease id, lease epoch and attempt id, or none of them."""


class FenceRequired(InvalidInput):
    """The operation needs a fence. Send the lease id, lease epoch and attempt id of the claim."""


class InvalidTagKey(InvalidInput):
    """A tag key is not of the form owner.name. Use lower-case letters, digits, _ and a dot."""


class InvalidKid(InvalidInput):
    """A key id must be non-empty and without a colon. Choose another key id."""


class InvalidSecretHex(InvalidInput):
    """A secret must be a non-empty string of hexadecimal digit pairs. Generate a new one."""


class InvalidGraceMs(InvalidInput):
    """The grace must be a whole number of milliseconds from 0 to 2**53-1. Correct it."""


class InvalidBlockingReason(InvalidInput):
    """This reason cannot block an execution. Use one of the documented blocking reasons."""


class InvalidToken(InvalidInput):
    """The waitpoint token is not valid. Use the token that the waitpoint was created with."""


class TokenExpired(InvalidInput):
    """The waitpoint token's key is past its grace. Fetch a new token for the waitpoint."""


class MissingToken(InvalidInput):
    """A waitpoint token is required. Send the token that the waitpoint was created with."""


class InvalidWaitpointForExecution(InvalidInput):
    """The waitpoint belongs to another execution or attempt. Use one of this attempt's own."""


class WaitpointNotTokenBound(InvalidInput):
    """The waitpoint has no token. Create a new waitpoint."""


class InvalidLeaseForSuspend(InvalidInput):
    """The attempt index is not the current one. Suspend with the claim's attempt index."""


class AdditionalWaitpointBindingMalformed(InvalidInput):
    """An additional waitpoint must be fresh and have a key. Correct that binding."""


class UsePendingWithExtrasUnsupported(InvalidInput):
    """A pending waitpoint cannot be combined with others. Suspend on fresh ones instead."""


class InvalidWaitpointKey(InvalidInput):
    """The waitpoint key breaks a rule. Use 1 to 256 characters without control characters."""


class InvalidFrameType(InvalidInput):
    """The frame type breaks a rule. Use 1 to 256 characters without control characters."""


class InvalidOffset(InvalidInput):
    """The stream position is not valid. Use a cursor that a read returned."""


class InvalidDependency(InvalidInput):
    """The dependency is not valid. Name two executions of the same flow."""


class PayloadTooLarge(InvalidInput):
    """The payload is above its cap. Store the bytes elsewhere and send a reference."""


class RetentionLimitExceeded(InvalidInput):
    """The frame is above the stream's payload cap. Split it into smaller frames."""


class InvalidEventCursor(InvalidInput):
    """The cursor names no place in this store's log. Use one that a feed has returned, unchanged."""


class HandleFromOtherBackend(InvalidInput):
    """The handle was made by another kind of store. Use the engine that made it."""


class Corruption(InvalidInput):
    """The bytes are not what they claim to be. Use the value exactly as it was handed out."""


class Unauthorized(InvalidInput):
    """The caller may not do this. Use credentials that allow it."""


class TransactionRequired(InvalidInput):
    """The connection has no transaction that can go on. Begin one, then call this inside it."""


class UnusableConnection(InvalidInput):
    """The connection cannot be used for this store. Use one that the message names."""


# Not found


class ExecutionNotFound(NotFound):
    """The execution does not exist. Check the id and the namespace."""

    def __init__(self, execution_id: str | None = None, /, **details: object) -> None:
        named = {} if execution_id is None else {"execution_id": execution_id}
        super().__init__(None, **named, **details)


class WaitpointNotFound(NotFound):
    """The waitpoint does not exist. Check the waitpoint id; it may have been consumed."""


class AttemptNotFound(NotFound):
    """The attempt does not exist. Check the attempt index."""


class StreamNotFound(NotFound):
    """The stream does not exist. Check the execution id and the attempt index."""


class EventsTrimmed(NotFound):
    """Events behind the cursor were removed unread. Read the records, then subscribe from now on."""


class FlowNotFound(NotFound):
    """The flow does not exist. Check the id and the namespace."""


class BudgetNotFound(NotFound):
    """The budget does not exist. Create it first."""


class QuotaPolicyNotFound(NotFound):
    """The quota policy does not exist. Create it first."""


# Conflicts


class IdempotencyConflict(Conflict):
    """The idempotency key was used for another request. Use a new key for new content."""


class JournalMismatch(Conflict):
    """The journal has another kind of entry there. The handler's steps changed; restore them."""


class ActiveAttemptExists(Conflict):
    """An attempt is running already. Wait for it to end."""


class WaitpointAlreadyExists(Conflict):
    """A waitpoint with this id is open. Mint a new waitpoint id."""


class RotationConflict(Conflict):
    """The key id is installed with another secret. Rotate to a new key id."""


class InstanceIdReassigned(Conflict):
    """Another worker has this instance id. Give every worker process an instance id of its own."""


class DependencyAlreadyExists(Conflict):
    """The edge exists already. Nothing needs to be done."""


class CycleDetected(Conflict):
    """The edge would close a cycle. Remove the edge that leads back."""


class SelfReferencingEdge(Conflict):
    """An execution cannot depend on itself. Name two executions."""


class ExecutionAlreadyInFlow(Conflict):
    """The execution is a member of a flow already. Use the flow it belongs to."""


class AlreadyMemberOfDifferentFlow(Conflict):
    """The execution belongs to another flow. Use the flow that is named."""


# Refusals by state


class ExecutionNotActive(StateRefusal):
    """The execution is not running. Read the details for its phase and outcome, and stop."""


class StaleLease(StateRefusal):
    """The lease was replaced by a newer one. Stop: another worker continues."""


class LeaseExpired(StateRefusal):
    """The lease expired before this arrived. Stop: the work will be reclaimed."""


class LeaseRevoked(StateRefusal):
    """An operator revoked the lease. Stop: the work will be reclaimed."""


class NoActiveLease(StateRefusal):
    """The execution has no live lease. Nothing needs to be done."""


class ExecutionNotEligible(StateRefusal):
    """The execution is not waiting for a worker. Read its state to see what it waits for."""


class ExecutionNotInEligibleSet(StateRefusal):
    """The execution is not in its lane's queue. Check the lane."""


class GrantAlreadyExists(StateRefusal):
    """A grant for this execution is open. Wait until it is used or expires."""


class ExecutionNotReclaimable(StateRefusal):
    """The lease has neither expired nor been revoked. Wait for it to lapse or revoke it."""


class MaxRetriesExhausted(StateRefusal):
    """The cap on reclaims is reached and the execution failed. Replay it if it should run again."""


class ExecutionNotSuspended(StateRefusal):
    """The execution is not suspended. Nothing needs to be resumed."""


class AlreadySuspended(StateRefusal):
    """The execution has an open suspension. Resume that one first."""


class WaitpointClosed(StateRefusal):
    """The waitpoint is closed. Its wait is over; nothing needs to be sent."""


class WaitpointNotPending(StateRefusal):
    """The waitpoint is not pending. Only a pending one can be activated."""


class WaitpointNotOpen(StateRefusal):
    """The waitpoint is not open. Nothing needs to be closed."""


class PendingWaitpointExpired(StateRefusal):
    """The pending waitpoint expired before it was used. Create a new one."""


class TargetNotSignalable(StateRefusal):
    """The execution takes no signals now. Check that it is waiting."""


class StreamClosed(StateRefusal):
    """The attempt has ended, so its stream is closed. Stop writing."""


class StreamAlreadyClosed(StateRefusal):
    """The stream is closed already. Nothing needs to be done."""


class StaleOwnerCannotAppend(StateRefusal):
    """The writer no longer owns the attempt. Stop: another worker continues."""


class ExecutionNotTerminal(StateRefusal):
    """The execution has not ended. Only an ended one can be replayed."""


class MaxReplaysExhausted(StateRefusal):
    """The cap on replays is reached. Submit the work as a new execution."""


class ReplayNotAllowed(StateRefusal):
    """The execution may not be replayed. Submit the work as a new execution."""


class FlowAlreadyTerminal(StateRefusal):
    """The flow has ended. Create a new one."""


class LaneClosed(StateRefusal):
    """The lane takes no new work. Submit to another lane, or make this one active again."""


class FlowSealed(StateRefusal):
    """The flow's graph is sealed. Create a new flow for more members or edges."""


class ExecutionNotInFlow(StateRefusal):
    """The execution is not in this flow. Check the flow."""


class DepsNotSatisfied(StateRefusal):
    """Dependencies are still open. Wait for them, or replay those that did not succeed."""


class NotBlockedByDeps(StateRefusal):
    """No dependency blocks it. Nothing needs to be done."""


class NotRunnable(StateRefusal):
    """The execution is not runnable. Read its state."""


class Terminal(StateRefusal):
    """The execution has ended. Replay it if it should run again."""


class HmacSecretNotInitialized(StateRefusal):
    """No signing key is installed. Seed the waitpoint secret first."""


class InvalidSecret(StateRefusal):
    """The stored signing secret is unusable. Rotate to a new key id."""


# Contention: the same request may succeed later


class ExecutionNotLeaseable(Contention):
    """The execution cannot be leased now. Look for other work."""


class LeaseConflict(Contention):
    """Another worker holds the lease. Look for other work."""


class InvalidClaimGrant(Contention):
    """There is no grant for this worker. Ask for a grant first."""


class ClaimGrantExpired(Contention):
    """The grant expired before it was used. Ask for a new one."""


class UseClaimResumedExecution(Contention):
    """The attempt was interrupted. Claim it with claim_resumed_execution."""


class NotAResumedExecution(Contention, code="not_a_resumed_execution"):
    """The attempt was not interrupted. Claim it with claim_execution."""


class NoEligibleExecution(Contention):
    """Nothing is waiting. Ask again later."""


class WaitpointPendingUseBufferScript(Contention):
    """The waitpoint is still pending. Buffer the signal, or send it again later."""


class TransactionOutdated(Contention):
    """Others wrote after the transaction began to read. Roll it back and run all of it again."""


class StaleGraphRevision(Contention):
    """The flow's graph changed. Read its revision and try again."""


# Limits


class FlowTooLarge(LimitExceeded):
    """The flow has as many members, or the execution as many edges, as it may. Use several flows."""


class SignalLimitExceeded(LimitExceeded):
    """The execution has received its maximum of signals. Raise max_signals_per_execution."""


class RateLimitExceeded(LimitExceeded, retryable=True):
    """The rate limit is reached. Try again after the window has moved."""


class ConcurrencyLimitExceeded(LimitExceeded, retryable=True):
    """Too many are running at once. Try again when one has ended."""


class ResourceExhausted(LimitExceeded, retryable=True):
    """The server has no free slot for this. Try again after a short pause."""


class BudgetExceeded(LimitExceeded):
    """The budget is spent. Raise it or wait for its reset."""


class RetryExhausted(LimitExceeded):
    """The operation kept colliding with others. Slow down and try again."""


# Codes of the contract that no rule of the engine raises often enough to be imported by name.
_RARE: tuple[tuple[type[FlowFabricError], str, str], ...] = (
    (InvalidInput, "invalid_args", "The arguments do not fit together. Correct them."),
    (InvalidInput, "invalid_budget_scope", "The budget scope is not valid. Correct it."),
    (InvalidInput, "budget_override_not_allowed", "The budget may not be overridden. Raise it."),
    (InvalidInput, "invalid_quota_spec", "The quota policy is not valid. Correct it."),
    (InvalidInput, "invalid_keys_missing_hmac", "The request names no key ring. Name one."),
    (InvalidInput, "invalid_stream_cursor", "The cursor is malformed. Use one that was returned."),
    (InvalidInput, "invariant_violation", "The request breaks an invariant. Report it."),
    (NotFound, "attempt_not_started", "The attempt has not started. Wait for a claim."),
    (Conflict, "budget_attach_conflict", "The budget is attached already. Detach it first."),
    (Conflict, "quota_attach_conflict", "The quota policy is attached already. Detach it first."),
    (StateRefusal, "already_satisfied", "This has been done already. Nothing needs to be done."),
    (StateRefusal, "attempt_already_terminal", "The attempt has ended. Nothing needs to be done."),
    (StateRefusal, "attempt_not_in_created_state", "The attempt was started before. Stop."),
    (StateRefusal, "budget_soft_exceeded", "The budget's soft limit is passed. Spend less."),
    (StateRefusal, "duplicate_signal", "The signal was received before. Nothing needs to be done."),
    (StateRefusal, "execution_not_eligible_for_attempt", "No attempt may start now. Wait."),
    (StateRefusal, "ok_already_applied", "This was applied before. Nothing needs to be done."),
    (StateRefusal, "resume_condition_not_met", "The condition is not met yet. Wait for signals."),
)


def _make_rare_classes() -> None:
    for family, code, message in _RARE:
        name = "".join(word.capitalize() for word in code.split("_"))
        globals()[name] = type(name, (family,), {"__doc__": message, "__module__": __name__})


_make_rare_classes()

"""Commands that the engine gives to itself. They have rules like all others, and no wire form."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from flowfabric.contracts.base import Command, Outcome
from flowfabric.contracts.ids import BudgetId, ExecutionId, QuotaPolicyId
from flowfabric.contracts.leases import ClaimedWork, MarkLeaseExpiredResult
from flowfabric.contracts.limits import RETENTION_MS
from flowfabric.contracts.policy import ExecutionPolicy


class KeyReserved(Outcome, tag="Reserved"):
    """The idempotency key belongs to this execution, which may or may not exist yet."""

    execution_id: ExecutionId


class ReserveIdempotencyKeyArgs(Command[KeyReserved]):
    """Bind an idempotency key to an execution id and to the digest of its request."""

    namespace: str
    idempotency_key: str
    execution_id: ExecutionId
    digest: bytes
    window_ms: int


class ReservationSettled(Outcome, tag="Settled"):
    """The reservation was confirmed, kept, closed, or removed."""

    action: str


class SettleReservationArgs(Command[ReservationSettled]):
    """Confirm a reservation whose execution exists; free one that a crash left alone or that is over."""

    reservation_id: str


class CandidateEnded(Outcome, tag="Ended"):
    """The candidate had been reclaimed too often and has failed for good."""

    execution_id: ExecutionId
    reclaim_count: int


class CandidateClaimed(Outcome, tag="Claimed"):
    """The candidate belongs to the worker now."""

    work: ClaimedWork


class CandidateHeld(Outcome, tag="Held"):
    """What is remembered of a claim. The rest of its answer is what the execution's record says."""

    resumed: bool


ClaimCandidateResult: TypeAlias = CandidateClaimed | CandidateEnded | CandidateHeld


class ClaimCandidateArgs(Command[ClaimCandidateResult]):
    """Claim, resume or reclaim one execution that an index offered, in one commit."""

    execution_id: ExecutionId
    lane_id: str
    worker_id: str
    worker_instance_id: str
    worker_capabilities: frozenset[str]
    lease_id: str
    attempt_id: str
    lease_ttl_ms: int
    policies: dict[str, ExecutionPolicy] = msgspec.field(default_factory=dict)
    """The worker's own policies by execution kind, for executions that bring none."""


class LiveFramesSettled(Outcome, tag="Settled"):
    """The live frames were removed (``expired``), are not due yet (``kept``), or were gone."""

    action: str


class ExpireLiveFramesArgs(Command[LiveFramesSettled]):
    """Remove the live frames of a stream whose time is over; the scanner's part of live output."""

    stream_id: str
    """The identity of the stream's record, as the index of due live frames has it."""


class GraceEnded(Outcome, tag="Ended"):
    """The grace after a lapsed lease is over (``ended``), is not (``kept``), or does not apply."""

    action: str


class EndReclaimGraceArgs(Command[GraceEnded]):
    """Make an execution with a lapsed lease claimable once its grace is over."""

    execution_id: ExecutionId


class WaitpointSettled(Outcome, tag="Settled"):
    """The pending waitpoint was closed (``expired``), is not due (``kept``), or is past that."""

    action: str


class ExpireWaitpointArgs(Command[WaitpointSettled]):
    """Close a pending waitpoint that no suspension has used in time."""

    waitpoint_identity: str


class DedupForgotten(Outcome, tag="Settled"):
    """The remembered answer was removed (``forgotten``), is not due (``kept``), or was gone."""

    action: str


class ForgetDedupArgs(Command[DedupForgotten]):
    """Remove a remembered answer whose window is over."""

    dedup_id: str


class ExpireLeaseArgs(Command[MarkLeaseExpiredResult]):
    """Mark a lease that has lapsed; the scanner's part, which knows the deployment's grace."""

    execution_id: ExecutionId
    reclaim_grace_ms: int = 0
    """How long after being marked the lease is held back from automatic reclaiming."""


class MessageDelivered(Outcome, tag="Settled"):
    """The message was acted upon (``delivered``) or had been before (``gone``)."""

    action: str


class DeliverMessageArgs(Command[MessageDelivered]):
    """Carry what one commit owed into the records that it is owed to."""

    message_id: str


class RetentionSettled(Outcome, tag="Settled"):
    """It was ``removed``, or is being removed (``removing``), is ``kept``, or was ``gone`` before."""

    action: str
    executions: int = 0
    flows: int = 0
    """How many of each are gone for good now."""


class TrimExecutionArgs(Command[RetentionSettled]):
    """Remove an execution whose retention is over, with all that belongs to it."""

    execution_id: ExecutionId
    retention_ms: int = RETENTION_MS


class RemoveExecutionArgs(Command[RetentionSettled]):
    """Remove some records of such an execution: one step of ``TrimExecutionArgs``."""

    execution_id: ExecutionId
    retention_ms: int = RETENTION_MS
    keys: tuple[str, ...] = ()
    last: bool = False
    """True if these, with its own, are the last records it has."""


class TrimFlowArgs(Command[RetentionSettled]):
    """Remove a flow whose retention is over, with its members."""

    flow_identity: str
    retention_ms: int = RETENTION_MS


class RemoveFlowArgs(Command[RetentionSettled]):
    """Remove some records of such a flow: one step of ``TrimFlowArgs``."""

    flow_identity: str
    retention_ms: int = RETENTION_MS
    members_kept_until: int = 0
    keys: tuple[str, ...] = ()
    last: bool = False


class FlowMemberSettled(Outcome, tag="Settled"):
    """The member was ``cancelled``, is ``kept`` by the flow's policy, or had ended or gone before."""

    action: str


class CancelFlowMemberArgs(Command[FlowMemberSettled]):
    """Cancel one member of a cancelled flow."""

    member_id: str


class WorkerSettled(Outcome, tag="Settled"):
    """The worker was taken off the record (``expired``), is alive (``kept``), or is not on it (``gone``)."""

    action: str


class ExpireWorkerArgs(Command[WorkerSettled]):
    """Take a worker off the record that was silent for too long."""

    worker_identity: str


class WorkerLeaseSettled(Outcome, tag="Settled"):
    """The dead worker's lease was ``revoked``, is ``kept``, or was ``gone`` already."""

    action: str


class RevokeDeadWorkersLeaseArgs(Command[WorkerLeaseSettled]):
    """Take one lease from a worker that is dead, unless it is newer than the death."""

    execution_id: ExecutionId
    worker_instance_id: str
    died_at: int
    reason: str
    silent_ms: int | None = None


class WorkerDeathSettled(Outcome, tag="Settled"):
    """The death was acted upon: so many leases were revoked."""

    revoked_leases: int


class SettleWorkerDeathArgs(Command[WorkerDeathSettled]):
    """Revoke all leases of a dead worker, then forget the death."""

    death_id: str


class ForgetWorkerDeathArgs(Command[WorkerSettled]):
    """Remove the record of a death when all leases are revoked."""

    death_id: str


class ActLogged(Outcome, tag="Logged"):
    """The act is in the operator log."""


class LogActArgs(Command[ActLogged]):
    """Log an act of an operator that the engine carries out in many commits."""

    act: str
    namespace: str
    told: dict[str, int]


# Budgets and quota policies


class BudgetRolled(Outcome, tag="Settled"):
    """A new period has begun (``reset``), it is not time yet (``kept``), or there is no schedule."""

    action: str


class RollBudgetArgs(Command[BudgetRolled]):
    """Begin a budget's next period once it is due."""

    budget_identity: str


class CountersCorrected(Outcome, tag="Settled"):
    """A counter was ``consistent``, was ``corrected``, or has changed meanwhile (``busy``)."""

    action: str


class CorrectBudgetUsageArgs(Command[CountersCorrected]):
    """Set a budget's usage to what its ledgers add up to."""

    budget_id: BudgetId
    period: int
    revision: int
    """The revision of the usage while the ledgers were added up."""
    usage: dict[str, int]


class CorrectQuotaCounterArgs(Command[CountersCorrected]):
    """Set a quota policy's counter to the number of its admissions."""

    quota_policy_id: QuotaPolicyId
    revision: int
    """The revision of the policy while the admissions were counted."""
    active: int


class LedgersForgotten(Outcome, tag="Settled"):
    """Some ledgers were removed or joined, and more of past periods are left (``more``) or not (``done``)."""

    action: str


class ForgetLedgersArgs(Command[LedgersForgotten]):
    """Remove some ledgers of a past period, or join some of the current one into that of ``FORGOTTEN``."""

    budget_identity: str
    period: int
    ledger_ids: tuple[str, ...]
    """Of the current period only those whose executions are gone."""
    last: bool
    """Whether the period has no others, or none to join for now."""


class PruneLedgersArgs(Command[LedgersForgotten]):
    """Remove the ledgers of a budget's past periods, and join those of executions that are gone."""

    budget_identity: str


class AdmissionSettled(Outcome, tag="Settled"):
    """What became of an admission: ``released``, ``confirmed``, ``kept``, ``forgotten`` or ``gone``."""

    action: str


class SettleAdmissionArgs(Command[AdmissionSettled]):
    """Take back an admission that no claim has used."""

    admission_id: str


class GiveAdmissionBackArgs(Command[AdmissionSettled]):
    """Tell a quota policy that an execution has given up the lease it was admitted to."""

    given_back_id: str


class ForgetGivenBackArgs(Command[AdmissionSettled]):
    """Remove the message that the quota policy knows by now."""

    given_back_id: str


class HeldBack(Outcome, tag="Settled"):
    """The execution is ``blocked``, is reclaimed ``later``, or there is ``room`` for it."""

    action: str
    subject: str = ""
    """The key of the budget or quota policy that a blocked one waits for."""


class HoldBackArgs(Command[HeldBack]):
    """Block an execution for which there is no headroom, so that it leaves the claimable work."""

    execution_id: ExecutionId
    policies: dict[str, ExecutionPolicy] = msgspec.field(default_factory=dict)
    """The worker's own policies by execution kind, for executions that bring none."""


class LetGo(Outcome, tag="Settled"):
    """The execution does not wait for this any more (``let_go``), or it did not (``gone``)."""

    action: str


class LetGoArgs(Command[LetGo]):
    """Let an execution go that waits for the headroom of a budget or a quota policy."""

    execution_id: ExecutionId
    waits_for: str


class CancelledForBudget(Outcome, tag="Settled"):
    """The execution was ``cancelled``, or had ended or gone before (``gone``)."""

    action: str


class CancelForBudgetArgs(Command[CancelledForBudget]):
    """Cancel an execution because a budget that it is attached to was breached."""

    execution_id: ExecutionId
    budget_id: BudgetId


class HeadroomSettled(Outcome, tag="Settled"):
    """Nothing is left to do (``done``), there is more (``more``), or it has changed (``busy``)."""

    action: str


class SettleBudgetHeadroomArgs(Command[HeadroomSettled]):
    """Note that those who waited for a budget have been let go, or cancelled."""

    budget_identity: str
    turn: int
    woken: bool
    cancelled: bool


class RoomLeft(Outcome, tag="RoomLeft"):
    """How many more a quota policy would admit, up to a page, and what it believes about those waiting."""

    room: int
    turn: int
    waiting: bool
    due: bool
    """Whether those that wait are to be looked after now."""


class ReadRoomArgs(Command[RoomLeft]):
    """Read how many a quota policy would admit now."""

    quota_identity: str
    page: int


class SettleQuotaHeadroomArgs(Command[HeadroomSettled]):
    """Note how many of those who wait for a quota policy were let go, and whether others are left."""

    quota_identity: str
    turn: int
    let_go: int
    more: bool


class LookAfterWaitingArgs(Command[HeadroomSettled]):
    """Let those go that wait for a budget or a quota policy, as far as there is room, page by page."""

    subject: str
    """The key of the budget or quota policy."""
    pages: int

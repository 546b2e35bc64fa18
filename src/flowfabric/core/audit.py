"""What must hold for everything on record, as checks without I/O.

Each invariant is a function from what is held about one execution to the ways in which it is
broken. They look at records only, never at how a record came to be, so they hold a rule to account
that forgot something as well as a store that lost something.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric.contracts.budgets import EnforcementMode
from flowfabric.contracts.limits import SAFE_INTEGER_MAX
from flowfabric.contracts.states import LifecyclePhase, TerminalOutcome, WaitpointState
from flowfabric.core import indexes
from flowfabric.core.events import Family
from flowfabric.core.records import (
    Admission,
    Budget,
    BudgetLedger,
    BudgetUsage,
    Dedup,
    Edge,
    EdgeGroup,
    Execution,
    Flow,
    FlowMember,
    FlowNode,
    FlowProgress,
    GivenBack,
    JournalRecord,
    Lane,
    Message,
    PastAttempt,
    Payload,
    QuotaPolicy,
    Reservation,
    StreamMeta,
    Suspension,
    Waitpoint,
    WorkerDeath,
    WorkerRegistration,
    key_for,
)
from flowfabric.core.rules.budgets import exhausted_dimension
from flowfabric.core.rules.creation import reservation_identity
from flowfabric.core.rules.graph import cancels
from flowfabric.core.rules.joins import (
    IMPOSSIBLE,
    PENDING,
    SATISFIED,
    counted_as,
    is_lost_sink,
    is_short,
    open_dependencies,
    verdict_of,
)
from flowfabric.core.rules.replaying import replay_cap
from flowfabric.core.state import situation_of
from flowfabric.core.vocabulary import BlockerKind, GrantKind, LeaseState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from flowfabric.core.events import Event
    from flowfabric.core.indexes import IndexRow
    from flowfabric.core.records import Key, Keyring, Record

PAUSABLE: Final = (LifecyclePhase.ACTIVE, LifecyclePhase.SUSPENDED)
"""The phases in which a pause waits until the execution is runnable again."""

STARTED: Final = "started"
INITIAL: Final = "initial"


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One invariant that does not hold."""

    invariant: str
    subject: str
    """The key of the record, or the index row, at fault."""
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.subject}: {self.detail}"


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What is on record about one execution, besides its index rows and frames."""

    execution: Execution
    payload: Payload | None
    has_result: bool
    """Whether the result of the current generation is on record."""
    past_attempts: tuple[PastAttempt, ...]
    suspension: Suspension | None
    """The open one; else the one whose end the attempt continues."""
    waitpoints: tuple[Waitpoint, ...]
    signal_sequences: frozenset[int]
    """The sequence numbers of the signals on record."""
    events: tuple[Event, ...]
    """The events about it that are kept, in order: see ``latest_life``."""
    history_is_whole: bool = True
    """Whether these are all; the log may have been trimmed."""


def latest_life(events: list[Event]) -> tuple[Event, ...]:
    """The events since the latest creation: an execution of the same id may have been removed before."""
    created = [
        place
        for place, event in enumerate(events)
        if event.family is Family.EXECUTION and event.name == "created"
    ]
    return tuple(events[created[-1] :] if created else events)


def check_execution(held: Held) -> Iterator[Violation]:
    """Every way in which one execution breaks an invariant."""
    for invariant, broken in INVARIANTS.items():
        for detail in broken(held):
            yield Violation(invariant=invariant, subject=held.execution.key, detail=detail)


# State


def _legal_situation(held: Held) -> Iterator[str]:
    execution = held.execution
    if situation_of(execution) is None:
        yield f"no situation is {execution.phase} with outcome {execution.outcome}"
    if execution.blockers and execution.phase is not LifecyclePhase.RUNNABLE:
        yield f"blocked although {execution.phase}"
    kinds = [blocker.kind for blocker in execution.blockers]
    if len(set(kinds)) < len(kinds):
        yield "two blockers of one kind"
    for blocker in execution.blockers:
        if (blocker.kind is BlockerKind.TIME) is (blocker.until_ms is None):
            yield f"a {blocker.kind} blocker until {blocker.until_ms}"
    if execution.pause_reason is not None and execution.phase not in PAUSABLE:
        yield f"is to be paused although {execution.phase}"
    if execution.admitted_round is not None and execution.lease is None:
        yield "holds an admission without a lease"
    if execution.suspension_id is not None and execution.phase is not LifecyclePhase.SUSPENDED:
        yield f"has an open suspension although {execution.phase}"


def _terminal_is_clean(held: Held) -> Iterator[str]:
    execution = held.execution
    if execution.phase is not LifecyclePhase.TERMINAL:
        if execution.outcome is not TerminalOutcome.NONE or execution.completed_at is not None:
            yield f"{execution.phase} with an end: {execution.outcome} at {execution.completed_at}"
        return
    if execution.completed_at is None:
        yield "no instant of its end"
    left = [
        name
        for name in ("lease", "grant", "blockers", "suspension_id", "waitpoint_id", "open_waitpoint_ids")
        if getattr(execution, name)
    ]
    if left:
        yield f"still has {', '.join(left)}"
    attempt = execution.attempt
    if attempt is not None and (attempt.ended_at is None or attempt.timeout_at is not None):
        yield f"its last attempt has not ended: {attempt.state}"


def _input_is_immutable(held: Held) -> Iterator[str]:
    if held.payload is None:
        yield "its input is gone"
    elif hashlib.sha256(held.payload.data).digest() != held.execution.input_sha256:
        yield "its input is not what it was created with"


def _result_is_kept(held: Held) -> Iterator[str]:
    if held.execution.has_result and not held.has_result:
        yield "its result is gone"


# Leases


def _active_means_running(held: Held) -> Iterator[str]:
    execution, attempt = held.execution, held.execution.attempt
    running = attempt is not None and attempt.state == STARTED
    facts = {
        "active": execution.phase is LifecyclePhase.ACTIVE,
        "leased": execution.lease is not None,
        "running": running,
    }
    if len(set(facts.values())) > 1:
        yield "not all of " + ", ".join(f"{name}={value}" for name, value in facts.items())
    lease = execution.lease
    if lease is not None and lease.epoch != execution.lease_epoch:
        yield f"leased under epoch {lease.epoch}, the latest is {execution.lease_epoch}"
    timed = attempt is not None and attempt.timeout_at is not None
    if timed and (lease is None or lease.state is not LeaseState.HELD):
        yield "its attempt's time runs although nobody holds the lease"


def _grant_fits(held: Held) -> Iterator[str]:
    execution, grant = held.execution, held.execution.grant
    if grant is None:
        return
    lapsed = execution.lease is not None and execution.lease.state is not LeaseState.HELD
    fits = lapsed if grant.kind is GrantKind.RECLAIM else execution.phase is LifecyclePhase.RUNNABLE
    if not fits:
        yield f"a {grant.kind} grant although {execution.phase}"


def _one_lease(held: Held) -> Iterator[str]:
    """Leases follow each other: the one before has been given up, has lapsed or was revoked."""
    if not held.history_is_whole:
        return
    open_epoch, epoch = 0, 0
    for event in _family(held, Family.LEASE):
        number = int(event.data.get("lease_epoch") or 0)
        if event.name in ("acquired", "reclaimed"):
            if number <= epoch:
                yield f"epoch {number} was granted after {epoch}"
            if open_epoch:
                yield f"epoch {number} was granted while {open_epoch} was held"
            open_epoch = epoch = number
        elif event.name in ("released", "expired", "revoked") and number == open_epoch:
            open_epoch = 0
    lease = held.execution.lease
    if lease is not None and lease.state is LeaseState.HELD and open_epoch != lease.epoch:
        yield f"epoch {lease.epoch} is held, the log has {open_epoch or 'none'}"


def _no_early_reclaim(held: Held) -> Iterator[str]:
    """A lease is marked as expired only after the latest instant it was renewed to."""
    expires_at: dict[int, int] = {}
    for event in _family(held, Family.LEASE):
        number = int(event.data.get("lease_epoch") or 0)
        if event.name == "renewed":
            expires_at[number] = int(event.data.get("expires_at") or 0)
        elif event.name == "expired" and event.at_ms < expires_at.get(number, 0):
            yield f"epoch {number} was marked at {event.at_ms}, before {expires_at[number]}"


# Attempts


def _attempts_without_gaps(held: Held) -> Iterator[str]:
    execution, attempt = held.execution, held.execution.attempt
    latest = -1 if attempt is None else attempt.attempt_index
    if latest != execution.attempt_count - 1:
        yield f"attempt {latest} is the latest of {execution.attempt_count}"
    indices = [past.attempt.attempt_index for past in held.past_attempts]
    if sorted(indices) != list(range(execution.attempt_count - 1)):
        yield f"the attempts before it are {sorted(indices)} of {execution.attempt_count}"
    for past in held.past_attempts:
        if past.attempt.ended_at is None:
            yield f"attempt {past.attempt.attempt_index} was followed before it ended"
    if attempt is None:
        return
    # What ended before its first claim and was replayed has a replay as its first attempt.
    first = latest == 0 and attempt.generation == 0
    if (attempt.attempt_type == INITIAL) is not first:
        yield f"attempt {latest} is of type {attempt.attempt_type}"


def _limits_hold(held: Held) -> Iterator[str]:
    execution, policy = held.execution, held.execution.policy
    counts = {name: getattr(execution, name) for name in ("retry_count", "reclaim_count", "replay_count")}
    for name, count in counts.items():
        if count < 0:
            yield f"{name} is {count}"
    if execution.replay_count > replay_cap(execution):
        yield f"replayed {execution.replay_count} times of {replay_cap(execution)}"
    if policy is None:
        return
    retries = policy.retry_policy
    if retries is not None and execution.retry_count > retries.max_retries:
        yield f"retried {execution.retry_count} times of {retries.max_retries}"
    if policy.max_reclaim_count is not None and execution.reclaim_count > policy.reclaim_cap:
        yield f"reclaimed {execution.reclaim_count} times of {policy.reclaim_cap}"


def _one_completion(held: Held) -> Iterator[str]:
    """Each generation that has ended has exactly one completion event; one that has not, none."""
    if not held.history_is_whole:
        return
    execution = held.execution
    told = [
        (int(event.data.get("generation") or 0), event.name) for event in _family(held, Family.COMPLETION)
    ]
    generations = sorted(generation for generation, _ in told)
    terminal = execution.phase is LifecyclePhase.TERMINAL
    expected = list(range(execution.replay_count + terminal))
    if generations != expected:
        yield f"completion events of the generations {generations}, not {expected}"
    elif terminal and dict(told)[execution.replay_count] != execution.outcome:
        yield f"the completion event says {dict(told)[execution.replay_count]}, not {execution.outcome}"


# Waiting


def _suspension_matches(held: Held) -> Iterator[str]:
    execution, suspension = held.execution, held.suspension
    if execution.phase is not LifecyclePhase.SUSPENDED:
        return
    if suspension is None or suspension.suspension_id != execution.suspension_id:
        yield f"its suspension {execution.suspension_id} is gone"
        return
    if suspension.closed_at is not None:
        yield "suspended, and its suspension is closed"
    index = None if execution.attempt is None else execution.attempt.attempt_index
    if suspension.attempt_index != index:
        yield f"the suspension is of attempt {suspension.attempt_index}, the latest is {index}"
    active = {found.waitpoint_id for found in held.waitpoints if found.state == WaitpointState.ACTIVE}
    closed = {found.waitpoint_id for found in held.waitpoints if found.state == WaitpointState.CLOSED}
    missing = set(suspension.waitpoint_ids) - active - closed
    if missing:
        yield f"its waitpoints {sorted(missing)} take no signals"


def _waitpoints_match(held: Held) -> Iterator[str]:
    execution = held.execution
    opened = {found.waitpoint_id for found in held.waitpoints if found.state != WaitpointState.CLOSED}
    if opened != set(execution.open_waitpoint_ids):
        yield f"open are {sorted(opened)}, it knows {sorted(execution.open_waitpoint_ids)}"
    for waitpoint in held.waitpoints:
        if (waitpoint.state == WaitpointState.CLOSED) is (waitpoint.closed_at is None):
            yield f"waitpoint {waitpoint.waitpoint_id} is {waitpoint.state}, closed at {waitpoint.closed_at}"
        active = waitpoint.state == WaitpointState.ACTIVE
        if active and waitpoint.suspension_id != execution.suspension_id:
            yield f"waitpoint {waitpoint.waitpoint_id} is active for a suspension that is over"


def _resume_has_a_cause(held: Held) -> Iterator[str]:
    """A suspension ends once, and the signals that ended it are on record."""
    history = _family(held, Family.EXECUTION)
    ended = [event.data.get("suspension_id") for event in history if event.name == "resumed"]
    if len(set(ended)) < len(ended):
        yield "one suspension was resumed twice"
    execution, suspension = held.execution, held.suspension
    if execution.resumed_suspension_id is not None and execution.suspension_id is None:
        if suspension is None:
            yield f"resumed from {execution.resumed_suspension_id}, which is gone"
        elif suspension.closed_at is None:
            yield f"resumed from {suspension.suspension_id}, which is open"
    if suspension is not None:
        unknown = set(suspension.satisfier_signals) - held.signal_sequences
        if unknown:
            yield f"resumed by the signals {sorted(unknown)}, which are gone"


def _signals_without_gaps(held: Held) -> Iterator[str]:
    expected = frozenset(range(1, held.execution.signal_count + 1))
    if held.signal_sequences != expected:
        wrong = held.signal_sequences ^ expected
        yield f"{held.execution.signal_count} signals; missing or too many: {sorted(wrong)[:10]}"


def _namespaces_agree(held: Held) -> Iterator[str]:
    own = held.execution.namespace
    if held.suspension is not None and held.suspension.namespace != own:
        yield f"in {own!r}, its suspension in {held.suspension.namespace!r}"
    foreign = {event.namespace for event in held.events} - {own}
    if foreign:
        yield f"in {own!r}, its events in {sorted(foreign)}"


INVARIANTS: Final[dict[str, Callable[[Held], Iterable[str]]]] = {
    "legal_situation": _legal_situation,
    "terminal_is_clean": _terminal_is_clean,
    "input_is_immutable": _input_is_immutable,
    "result_is_kept": _result_is_kept,
    "active_means_running": _active_means_running,
    "grant_fits": _grant_fits,
    "one_lease": _one_lease,
    "no_early_reclaim": _no_early_reclaim,
    "attempts_without_gaps": _attempts_without_gaps,
    "limits_hold": _limits_hold,
    "one_completion": _one_completion,
    "suspension_matches": _suspension_matches,
    "waitpoints_match": _waitpoints_match,
    "resume_has_a_cause": _resume_has_a_cause,
    "signals_without_gaps": _signals_without_gaps,
    "namespaces_agree": _namespaces_agree,
}
"""What holds for one execution, by name."""


def _family(held: Held, family: Family) -> Iterator[Event]:
    return (event for event in held.events if event.family is family)


# Flows


class HeldFlow(msgspec.Struct, frozen=True, kw_only=True):
    """What is on record about one flow."""

    flow: Flow
    progress: FlowProgress | None
    members: tuple[FlowMember | None, ...]
    """By position."""
    executions: dict[str, Execution]
    nodes: dict[str, FlowNode]
    groups: dict[str, EdgeGroup]
    edges: dict[str, Edge]
    told: frozenset[str]
    """The members about which a message is on its way, and the flow if there is one about it."""


def check_flow(held: HeldFlow) -> Iterator[Violation]:
    """Every way in which one flow breaks an invariant."""
    for invariant, broken in FLOW_INVARIANTS.items():
        for detail in broken(held):
            yield Violation(invariant=invariant, subject=held.flow.key, detail=detail)


def _members_without_gaps(held: HeldFlow) -> Iterator[str]:
    for position, member in enumerate(held.members):
        execution = None if member is None else held.executions.get(member.execution_id)
        if member is None or execution is None:
            yield f"member {position} of {held.flow.node_count} is gone"
        elif (execution.flow_id, execution.flow_position) != (held.flow.flow_id, position):
            yield f"{execution.execution_id} is in flow {execution.flow_id} at {execution.flow_position}"


def _graph_is_mirrored(held: HeldFlow) -> Iterator[str]:
    """Every edge is at both of its ends, and nothing else is."""
    outgoing = {
        (link.edge_id, node.execution_id, link.execution_id)
        for node in held.nodes.values()
        for link in node.outgoing
    }
    incoming = {
        (link.edge_id, link.execution_id, node.execution_id)
        for node in held.nodes.values()
        for link in node.incoming
    }
    edges = {
        (edge.edge_id, edge.upstream_execution_id, edge.downstream_execution_id)
        for edge in held.edges.values()
    }
    for edge_id, *_ in sorted((outgoing ^ incoming) | (outgoing ^ edges)):
        yield f"edge {edge_id} is not the same at both ends and on record"
    if len(edges) != held.flow.edge_count:
        yield f"{len(edges)} edges of {held.flow.edge_count}"


def _graph_is_acyclic(held: HeldFlow) -> Iterator[str]:
    """Taking away what nothing leads to, again and again, leaves nothing."""
    open_ends = {name: len(node.incoming) for name, node in held.nodes.items()}
    front = [name for name, count in open_ends.items() if count == 0]
    while front:
        node = held.nodes[front.pop()]
        del open_ends[node.execution_id]
        for link in node.outgoing:
            if link.execution_id in open_ends:
                open_ends[link.execution_id] -= 1
                if open_ends[link.execution_id] == 0:
                    front.append(link.execution_id)
    if open_ends:
        yield f"a cycle among {sorted(open_ends)[:5]}"


def _edges_counted_once(held: HeldFlow) -> Iterator[str]:
    """The counts of a join are those of its edges, and the flow knows how many joins are short of edges."""
    short = sum(is_short(group) for group in held.groups.values())
    if held.flow.short_joins != short:
        yield f"{held.flow.short_joins} joins are short of edges, not {short}"
    for name, group in held.groups.items():
        edges = [edge for edge in held.edges.values() if edge.downstream_execution_id == name]
        states = [edge.state for edge in edges]
        skipped = sum(edge.upstream_outcome == TerminalOutcome.SKIPPED for edge in edges)
        counted = (len(edges), states.count(SATISFIED), states.count(IMPOSSIBLE) - skipped, skipped)
        told = (group.total, group.satisfied, group.failed, group.skipped)
        if counted != told:
            yield f"the join of {name} counts {told}, its edges are {counted}"


def _ends_are_passed_on(held: HeldFlow) -> Iterator[str]:
    """An edge whose upstream has ended is resolved, or a message about it is on its way."""
    for edge in held.edges.values():
        upstream = held.executions.get(edge.upstream_execution_id)
        ended = upstream is not None and upstream.phase is LifecyclePhase.TERMINAL
        if ended and edge.state == PENDING and edge.upstream_execution_id not in held.told:
            yield f"edge {edge.edge_id} is pending although its upstream has ended"


def _one_verdict(held: HeldFlow) -> Iterator[str]:
    """A join says what its counts say, and its downstream follows it."""
    for name, group in held.groups.items():
        child = held.executions.get(name)
        decided = group.decided_at is not None
        if decided is (group.state == PENDING) or (
            group.total and not decided and verdict_of(group) != group.state
        ):
            yield f"the join of {name} is {group.state}, decided at {group.decided_at}"
        if child is None:
            continue
        ended = child.phase is LifecyclePhase.TERMINAL
        if group.state == IMPOSSIBLE and not ended:
            yield f"{name} is {child.phase} although its join is impossible"
        if not ended and child.unresolved_dependencies != open_dependencies(group):
            yield f"{name} waits for {child.unresolved_dependencies} of {open_dependencies(group)}"
        if child.phase is LifecyclePhase.RUNNABLE and _is_held(child) is not bool(
            child.unresolved_dependencies
        ):
            yield f"{name} has {child.unresolved_dependencies} open dependencies and {child.blockers}"


def _is_held(child: Execution) -> bool:
    return any(blocker.kind is BlockerKind.DEPENDENCIES for blocker in child.blockers)


def _cancelled_with_its_members(held: HeldFlow) -> Iterator[str]:
    """What a cancelled flow has to cancel has ended, or is on the list of what is to be cancelled."""
    for member in held.members:
        execution = None if member is None else held.executions.get(member.execution_id)
        if held.flow.cancelled_at is None or member is None or execution is None:
            continue
        waits = member.cancel_requested_at is not None or held.flow.identity in held.told
        ended = execution.phase is LifecyclePhase.TERMINAL
        if not ended and not waits and cancels(held.flow, execution):
            yield f"{execution.execution_id} is {execution.phase} and nobody cancels it"


def _members_counted_once(held: HeldFlow) -> Iterator[str]:
    """The flow's progress is the sum of how its members are counted."""
    counted = [member.counted for member in held.members if member is not None and member.counted]
    outcomes = {word: counted.count(word) for word in counted}
    lost_sinks = sum(member.lost_sink for member in held.members if member is not None)
    if held.progress is None or (held.progress.outcomes, held.progress.lost_sinks) != (outcomes, lost_sinks):
        yield f"its progress is not {outcomes} with {lost_sinks} lost sinks"
    for member in held.members:
        execution = None if member is None else held.executions.get(member.execution_id)
        if member is None or execution is None or member.execution_id in held.told:
            continue
        if member.counted != counted_as(execution):
            yield f"{member.execution_id} is counted as {member.counted!r}, not {counted_as(execution)!r}"
        if member.lost_sink != is_lost_sink(execution, held.nodes.get(member.execution_id)):
            yield f"{member.execution_id} is counted among the lost sinks: {member.lost_sink}"


def _closed_graph_stays(held: HeldFlow) -> Iterator[str]:
    """A graph that is sealed, or whose flow was cancelled, has got no edge since."""
    ends = [instant for instant in (held.flow.sealed_at, held.flow.cancelled_at) if instant is not None]
    for edge in held.edges.values():
        if ends and edge.created_at > min(ends):
            yield f"edge {edge.edge_id} is of {edge.created_at}, the graph was closed at {min(ends)}"


def _one_namespace(held: HeldFlow) -> Iterator[str]:
    """A flow, its members and its edges belong to one namespace."""
    own = held.flow.namespace
    parts = (*held.executions.values(), *held.edges.values(), *([held.progress] if held.progress else ()))
    for part in parts:
        if part.namespace != own:
            yield f"in {own!r}, {part.key} in {part.namespace!r}"


FLOW_INVARIANTS: Final[dict[str, Callable[[HeldFlow], Iterable[str]]]] = {
    "members_without_gaps": _members_without_gaps,
    "graph_is_mirrored": _graph_is_mirrored,
    "graph_is_acyclic": _graph_is_acyclic,
    "edges_counted_once": _edges_counted_once,
    "ends_are_passed_on": _ends_are_passed_on,
    "one_verdict": _one_verdict,
    "cancelled_with_its_members": _cancelled_with_its_members,
    "members_counted_once": _members_counted_once,
    "closed_graph_stays": _closed_graph_stays,
    "one_namespace": _one_namespace,
}
"""What holds for one flow, by name."""


# Records that are not about one execution alone


def check_reservation(reservation: Reservation, execution: Execution | None, now: int) -> Iterator[Violation]:
    """An idempotency key is kept in its own place and names one execution of its namespace."""
    if reservation.identity != reservation_identity(reservation.namespace, reservation.idempotency_key):
        yield _violation("create_once", reservation, "kept in the wrong place")
    if reservation.confirmed and execution is None and reservation.expires_at > now:
        yield _violation("create_once", reservation, f"its execution {reservation.execution_id} is gone")
    # One that is not confirmed may have been made for an id that another namespace used since.
    if reservation.confirmed and execution is not None and execution.namespace != reservation.namespace:
        yield _violation("namespaces_agree", reservation, f"its execution is in {execution.namespace!r}")


def check_keyring(ring: Keyring) -> Iterator[Violation]:
    """One key signs, and it has no expiry; all others have one."""
    kids = [key.kid for key in ring.keys]
    if len(set(kids)) < len(kids) or ring.current_kid not in kids:
        yield _violation("kid_ring", ring, f"the current key is {ring.current_kid!r} of {kids}")
    for key in ring.keys:
        if (key.kid == ring.current_kid) is (key.expires_at is not None):
            yield _violation("kid_ring", ring, f"{key.kid!r} expires at {key.expires_at}")


def check_worker(worker: WorkerRegistration) -> Iterator[Violation]:
    """A worker on record claims from some lane and counts as alive for its own time after a heartbeat."""
    if worker.expires_at != min(worker.last_heartbeat_at + worker.ttl_ms, SAFE_INTEGER_MAX):
        detail = f"heard of at {worker.last_heartbeat_at}, alive until {worker.expires_at}"
        yield _violation("worker_is_sound", worker, detail)
    if not worker.registered_at <= worker.last_heartbeat_at:
        yield _violation(
            "worker_is_sound", worker, f"registered at {worker.registered_at}, after it was heard of"
        )
    if not worker.lanes or list(worker.capabilities) != sorted(set(worker.capabilities)):
        yield _violation(
            "worker_is_sound", worker, f"lanes {worker.lanes}, capabilities {worker.capabilities}"
        )


def check_owned(record: Record, owner: Execution | None) -> Iterator[Violation]:
    """A record that belongs to an execution has one."""
    if owner is None:
        yield _violation("no_orphans", record, "its execution is gone")


def check_stream(
    stream: StreamMeta, owner: Execution, counts: dict[str, int], *, in_order: bool
) -> Iterator[Violation]:
    """The frames that are kept are those that the stream's record tells of, and in order."""
    if stream.attempt_index >= owner.attempt_count:
        yield _violation("frames_match", stream, "there is no such attempt")
    for part, count in counts.items():
        told = getattr(stream, f"{part}_retained")
        if count != told:
            yield _violation("frames_match", stream, f"{count} {part} frames of {told}")
    if not in_order:
        yield _violation("frames_match", stream, "not in strict order, or beyond its newest entry")


def _violation(invariant: str, record: Record, detail: str) -> Violation:
    return Violation(invariant=invariant, subject=record.key, detail=detail)


# Budgets and quota policies


def check_budget(
    budget: Budget, usage: BudgetUsage | None, ledgers: Iterable[BudgetLedger]
) -> Iterator[Violation]:
    """The usage of a period is the sum of its ledgers, and a limit that is reached is enforced.

    Args:
        budget: the budget.
        usage: its counters.
        ledgers: those of the current period.
    """
    if usage is None:
        yield _violation("conservation", budget, "its counters are gone")
        return
    total: Counter[str] = Counter()
    for ledger in ledgers:
        total.update(ledger.spent)
    for name in sorted(total.keys() | usage.usage.keys()):
        if usage.usage.get(name, 0) != total[name]:
            yield _violation(
                "conservation", budget, f"{name}: {usage.usage.get(name, 0)} used, {total[name]} in ledgers"
            )
    exhausted = exhausted_dimension(budget, usage.usage)
    if exhausted and budget.closed_at is None:
        yield _violation("hard_limit", budget, f"the limit of {exhausted} is reached, and it is open")
    if budget.enforcement_mode is EnforcementMode.ADVISORY and budget.closed_at is not None:
        yield _violation("hard_limit", budget, "it is closed although its limits are not enforced")


def check_quota(quota: QuotaPolicy, admissions: int, instants: Sequence[int]) -> Iterator[Violation]:
    """The counter is the number of admissions, and no window has more than it may have.

    Args:
        quota: the policy.
        admissions: how many are on record.
        instants: what is in the ring, from its first place on.
    """
    if quota.active != admissions:
        yield _violation("quota", quota, f"{quota.active} active, {admissions} admissions")
    if quota.concurrent_max and admissions > quota.concurrent_max:
        yield _violation("quota", quota, f"{admissions} admissions of {quota.concurrent_max}")
    if not quota.requests_max:
        return
    if len(instants) != min(quota.admitted, quota.requests_max):
        yield _violation("quota", quota, f"{len(instants)} instants in the window of {quota.admitted}")
        return
    start = quota.admitted % quota.requests_max if quota.admitted > quota.requests_max else 0
    in_order = [*instants[start:], *instants[:start]]
    if in_order != sorted(in_order):
        yield _violation("quota", quota, "the instants in the window are not in order")


# Index rows


def owner_key(row: IndexRow) -> Key:
    """The key of the record that an index row is derived from.

    The rows of a suspension name its execution; they are derived from the suspension that the
    execution names.
    """
    index, scope, _, member = row
    if index == indexes.WAITPOINTS:
        return key_for(Waitpoint, f"{scope}/{member}")
    if index == indexes.DUE_HEADROOM:
        return member  # budgets and quota policies are found there by their keys
    if (index, scope) == (indexes.RETENTION, indexes.FLOW_SCOPE):
        return key_for(FlowProgress, member)
    return key_for(_OWNERS.get(index, Execution), member)


SUSPENSION_INDEXES: Final = frozenset({indexes.SUSPENDED, indexes.DUE_SUSPENSION})
"""Their rows are derived from the open suspension of the execution that they name."""

_OWNERS: Final[dict[str, type[Record]]] = {
    indexes.DUE_WAITPOINT: Waitpoint,
    indexes.DUE_RESERVATION: Reservation,
    indexes.DUE_DEDUP: Dedup,
    indexes.JOURNAL: JournalRecord,
    indexes.DUE_LIVE_FRAMES: StreamMeta,
    indexes.DUE_MESSAGE: Message,
    indexes.DUE_MEMBER_CANCEL: FlowMember,
    indexes.DUE_BUDGET_RESET: Budget,
    indexes.DUE_LEDGER: Budget,
    indexes.DUE_ADMISSION: Admission,
    indexes.DUE_GIVEN_BACK: GivenBack,
    indexes.LANES: Lane,
    indexes.FLOWS: Flow,
    indexes.WORKERS: WorkerRegistration,
    indexes.WORKER_LANES: WorkerRegistration,
    indexes.DUE_WORKER: WorkerRegistration,
    indexes.DUE_WORKER_DEATH: WorkerDeath,
}


def invariant_of_index(index: str) -> str:
    """What is broken when a row of this index is missing."""
    if index in indexes.PRIMARY:
        return "one_primary_index"
    if index == indexes.WORKER_LEASES:
        return "worker_leases"
    return "timers_match" if index.startswith("due_") else "rows_match"


def missing_row(row: IndexRow, key: Key) -> Violation:
    """A row that a record should have."""
    detail = f"no row {row[:3]} in {row[0]}"
    return Violation(invariant=invariant_of_index(row[0]), subject=key, detail=detail)


def orphaned_row(row: IndexRow) -> Violation:
    """A row that no record should have."""
    return Violation(
        invariant="no_orphans", subject=repr(row), detail=f"no record has this row: {owner_key(row)}"
    )


def in_namespace(row: IndexRow, namespace: str) -> bool:
    """Whether a row says by itself that it belongs to a namespace."""
    scope = row[1]
    return scope == namespace or scope.startswith(namespace + indexes.SEPARATOR)


def owner_id(record: Record) -> str | None:
    """The execution that a record belongs to; None if it stands for itself."""
    if isinstance(record, Dedup):
        return record.scope.partition("/")[0] if record.scope.startswith("{fp:") else None
    if isinstance(record, (Execution, Reservation)):
        return None
    if isinstance(record, Message) and record.about == "cancelled":
        return None
    found: Any = getattr(record, "execution_id", None)
    return found if isinstance(found, str) else None

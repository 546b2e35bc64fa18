"""Joins: what the end of a member does to those that depend on it.

The rules this module keeps:

- An edge moves the counts of its group once, when it leaves ``pending``.
- A group is decided once. Upstreams that end later are counted and decide nothing.
- An edge that was staged and not applied does not take part yet: those beside it may be on their way.
- Nothing reaches further than one commit is allowed to: what an end means for others travels as a
  message, in pieces of a bounded number of edges, and a skipped member writes one of its own.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.contracts.flows import (
    AllOfEdges,
    BlockedPromoted,
    CascadeCompletionArgs,
    CascadeCompletionResult,
    CompletionCascaded,
    DependencyAlreadyResolved,
    DependencyImpossible,
    DependencySatisfied,
    EdgeDependencyPolicy,
    EdgeGroupState,
    EligibilityStatus,
    EvaluateFlowEligibilityArgs,
    EvaluateFlowEligibilityResult,
    OnSatisfied,
    ParentResult,
    ParentResults,
    PromoteBlockedToEligibleArgs,
    PromoteBlockedToEligibleResult,
    QuorumOfEdges,
    ReadParentResultsArgs,
    ResolveDependencyArgs,
    ResolveDependencyResult,
)
from flowfabric.contracts.states import LifecyclePhase, TerminalOutcome
from flowfabric.core.records import (
    Edge,
    EdgeGroup,
    Execution,
    ExecutionResult,
    Flow,
    FlowMember,
    FlowNode,
    FlowProgress,
    Link,
    Message,
    flow_identity,
    key_for,
)
from flowfabric.core.registry import rule
from flowfabric.core.rules.ending import cancel
from flowfabric.core.rules.graph import DROPPED, GOOD, the_edge, the_flow
from flowfabric.core.rules.reading import find
from flowfabric.core.rules.suspending import close_suspension
from flowfabric.core.rules.transitions import (
    CHANGED,
    add_blocker,
    dependency_blocker,
    end_execution,
    mark_transition,
    remove_blocker,
)
from flowfabric.core.state import is_terminal
from flowfabric.core.vocabulary import BlockerKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.core.records import Key
    from flowfabric.core.work import Work

PENDING: Final = "pending"
SATISFIED: Final = "satisfied"
IMPOSSIBLE: Final = "impossible"

STAGED_GRACE_MS: Final = 15_000
"""How long an edge to an upstream that has ended waits to be applied before it is resolved anyway."""

JOIN_DECIDED: Final = "join_decided"
"""Who cancels an upstream that no join waits for any more."""

DEPENDENCY_IMPOSSIBLE: Final = "dependency_impossible"


# Deciding a join


def needed(policy: EdgeDependencyPolicy, total: int) -> int:
    """How many of so many upstreams have to succeed."""
    if isinstance(policy, AllOfEdges):
        return total
    return policy.k if isinstance(policy, QuorumOfEdges) else 1


def verdict(
    policy: EdgeDependencyPolicy, *, total: int, satisfied: int, failed: int, skipped: int
) -> EdgeGroupState:
    """What the counts of a group say.

    A quorum that is larger than the group so far waits for more edges, whatever has failed.
    """
    wanted = needed(policy, total)
    if satisfied >= wanted:
        return EdgeGroupState.SATISFIED
    if wanted <= total and failed + skipped > total - wanted:
        return EdgeGroupState.IMPOSSIBLE
    return EdgeGroupState.PENDING


def verdict_of(group: EdgeGroup) -> EdgeGroupState:
    """What the counts of this group say."""
    return verdict(
        group.policy,
        total=group.total,
        satisfied=group.satisfied,
        failed=group.failed,
        skipped=group.skipped,
    )


def is_short(group: EdgeGroup) -> bool:
    """Whether the group asks for more successes than it has edges so far."""
    return group.total > 0 and needed(group.policy, group.total) > group.total


def open_dependencies(group: EdgeGroup) -> int:
    """How many successes the group still waits for. Without edges there is nothing to wait for."""
    if group.state is not EdgeGroupState.PENDING or group.total == 0:
        return 0
    return needed(group.policy, group.total) - group.satisfied


def settle_edge(work: Work, edge: Edge, upstream: Execution) -> None:
    """Take the end of the upstream down in a pending edge and in the counts of its group."""
    edge = work.edit(edge)
    group = work.edit(the_group(work, edge.downstream_execution_id))
    edge.upstream_outcome = upstream.outcome
    edge.upstream_generation = upstream.replay_count
    edge.state = SATISFIED if upstream.outcome is TerminalOutcome.SUCCESS else IMPOSSIBLE
    if edge.state == SATISFIED:
        group.satisfied += 1
    elif upstream.outcome is TerminalOutcome.SKIPPED:
        group.skipped += 1
    else:
        group.failed += 1


def the_group(work: Work, execution_id: str) -> EdgeGroup:
    """The join before a member that has incoming edges."""
    group = work.read(EdgeGroup, execution_id)
    if group is None:
        raise errors.StoreCorrupt(record=key_for(EdgeGroup, execution_id))
    return group


def judge(work: Work, execution_id: str) -> bool:
    """Decide the join before a member if its counts allow it. Says whether the member was skipped."""
    group = work.edit(the_group(work, execution_id))
    if group.state is EdgeGroupState.PENDING:
        group.state = verdict_of(group)
        if group.state is not EdgeGroupState.PENDING:
            group.decided_at = work.now
            _release_upstreams(work, group)
    return _settle_child(work, group)


def _settle_child(work: Work, group: EdgeGroup) -> bool:
    """Let the member follow the state of its join."""
    child = work.read(Execution, group.execution_id)
    if child is None:
        raise errors.StoreCorrupt(record=key_for(Execution, group.execution_id))
    still_open = open_dependencies(group)
    if group.state is EdgeGroupState.IMPOSSIBLE and not is_terminal(child):
        _skip(work, work.edit(child))
        return True
    if child.unresolved_dependencies != still_open:
        child = work.edit(child)
        child.unresolved_dependencies = still_open
        if child.phase is LifecyclePhase.RUNNABLE:
            block_or_free(work, child)
    return False


def block_or_free(work: Work, child: Execution) -> None:
    """Let the blocker of a runnable member say what the join still waits for, or take it away."""
    blocker = dependency_blocker(child)
    if blocker is None:
        remove_blocker(child, BlockerKind.DEPENDENCIES)
    else:
        add_blocker(child, blocker)
    mark_transition(work, child)


def _skip(work: Work, child: Execution) -> None:
    if child.phase is LifecyclePhase.SUSPENDED:
        close_suspension(work, child, DEPENDENCY_IMPOSSIBLE)
    child.unresolved_dependencies = 0
    end_execution(
        work,
        child,
        TerminalOutcome.SKIPPED,
        release_reason=DEPENDENCY_IMPOSSIBLE,
        failure_reason=DEPENDENCY_IMPOSSIBLE,
    )


def _release_upstreams(work: Work, group: EdgeGroup) -> None:
    """Owe every upstream that is still at work the news that this join does not wait for it."""
    if isinstance(group.policy, AllOfEdges) or _lets_run(group.policy):
        return
    edges = [edge for edge in edges_at(work, group.flow_id, incoming(work, group)) if edge.state == PENDING]
    cause = f"unneeded/{group.execution_id}"
    messages = [
        Message(execution_id=edge.upstream_execution_id, about="unneeded", cause=cause, due_at=work.now)
        for edge in edges
    ]
    work.read_all(Message, [message.identity for message in messages])
    for message in messages:
        work.add(message)


def incoming(work: Work, group: EdgeGroup) -> tuple[Link, ...]:
    """The edges of a group."""
    node = work.read(FlowNode, group.execution_id)
    return () if node is None else node.incoming


def edges_at(work: Work, flow_id: str, links: Iterable[Link]) -> list[Edge]:
    """The edges that a node names, in its order.

    Raises:
        StoreCorrupt: an edge is gone.
    """
    identities = [f"{flow_identity(flow_id)}/{link.edge_id}" for link in links]
    found: list[Edge] = []
    for identity, edge in zip(identities, work.read_all(Edge, identities), strict=True):
        if edge is None:
            raise errors.StoreCorrupt(record=key_for(Edge, identity))
        found.append(edge)
    return found


def follow_upstream(work: Work, upstream: Execution, links: Iterable[Link]) -> tuple[int, int]:
    """Let edges follow their upstream, as far as it has ended or runs again.

    Returns:
        How many edges were resolved, and how many members were skipped because of it.
    """
    if upstream.flow_id is None:
        return 0, 0
    edges = [edge for edge in edges_at(work, upstream.flow_id, links) if edge.state != SATISFIED]
    work.read_all(EdgeGroup, [edge.downstream_execution_id for edge in edges])
    work.read_all(Execution, [edge.downstream_execution_id for edge in edges])
    edges = [_reopened_in_time(work, edge, upstream) for edge in edges]
    if not is_terminal(upstream):
        return 0, 0
    pending = [edge for edge in edges if edge.state == PENDING]
    due = [edge for edge in pending if _takes_part(work, edge)]
    if len(due) < len(pending):
        resolve_later(work, upstream)
    for edge in due:
        settle_edge(work, edge, upstream)
    downstreams = dict.fromkeys(edge.downstream_execution_id for edge in due)
    return len(due), sum([judge(work, execution_id) for execution_id in downstreams])


def _takes_part(work: Work, edge: Edge) -> bool:
    """Whether the edge counts: it was applied, or nobody has cared to for a while."""
    return edge.applied_at is not None or edge.created_at + STAGED_GRACE_MS <= work.now


def resolve_later(work: Work, upstream: Execution) -> None:
    """Have the edges of an upstream that has ended resolved after a while if nobody applies them."""
    message = Message(
        execution_id=upstream.execution_id,
        about=CHANGED,
        cause="staged",
        due_at=work.now + STAGED_GRACE_MS,
    )
    work.read(Message, message.identity)
    work.add(message)


# Counting members


def count_member(work: Work, member: Execution) -> None:
    """Bring the flow's counts in line with how this member stands."""
    assert member.flow_id is not None
    identity = flow_identity(member.flow_id)
    place = work.read(FlowMember, f"{identity}/{member.flow_position}")
    progress = work.read(FlowProgress, identity)
    if place is None or progress is None:
        raise errors.StoreCorrupt(record=key_for(FlowMember, f"{identity}/{member.flow_position}"))
    word, lost_sink = counted_as(member), is_lost_sink(member, work.read(FlowNode, member.execution_id))
    if (place.counted, place.lost_sink) == (word, lost_sink):
        return
    progress = work.edit(progress)
    progress.counted_at = work.now
    progress.lost_sinks += lost_sink - place.lost_sink
    counts = Counter(progress.outcomes)
    counts[place.counted] -= 1
    counts[word] += 1
    progress.outcomes = {name: count for name, count in counts.items() if name and count}
    place = work.edit(place)
    place.counted, place.lost_sink = word, lost_sink


def counted_as(member: Execution) -> str:
    """The word under which a member is counted; empty while it has not ended."""
    if not is_terminal(member):
        return ""
    if member.outcome is TerminalOutcome.CANCELLED and member.cancelled_by == JOIN_DECIDED:
        return DROPPED
    return str(member.outcome)


def is_lost_sink(member: Execution, node: FlowNode | None) -> bool:
    """Whether the end of this member is a failure of its flow: nothing that follows could bear with it."""
    word = counted_as(member)
    return bool(word) and word not in GOOD and (node is None or not node.outgoing)


def cancel_if_unneeded(work: Work, member: Execution) -> None:
    """Cancel a member that has not ended, if each join that its edges lead to can do without it.

    One that runs again after it had ended leads to none of them: its edges are resolved, and who
    replayed it wants it to run.
    """
    node = work.read(FlowNode, member.execution_id)
    if is_terminal(member) or node is None or member.flow_id is None:
        return
    pending = [edge for edge in edges_at(work, member.flow_id, node.outgoing) if edge.state == PENDING]
    groups = work.read_all(EdgeGroup, [edge.downstream_execution_id for edge in pending])
    if pending and all(group is not None and _can_do_without(group) for group in groups):
        cancel(work, work.edit(member), "no join needs its result any more", JOIN_DECIDED)


def _can_do_without(group: EdgeGroup) -> bool:
    return group.state is not EdgeGroupState.PENDING and not _lets_run(group.policy)


def _lets_run(policy: EdgeDependencyPolicy) -> bool:
    return not isinstance(policy, AllOfEdges) and policy.on_satisfied is OnSatisfied.LET_RUN


# Commands


@rule(CascadeCompletionArgs)
def cascade_completion(work: Work, args: CascadeCompletionArgs) -> CascadeCompletionResult:
    """Resolve the outgoing edges of a member that has ended, if any were left.

    Raises:
        ExecutionNotFound, ExecutionNotTerminal: in this order.
    """
    execution = work.execution(args.execution_id)
    if not is_terminal(execution):
        raise errors.ExecutionNotTerminal(execution_id=args.execution_id, lifecycle_phase=execution.phase)
    node = work.read(FlowNode, args.execution_id)
    resolved, skipped = follow_upstream(work, execution, () if node is None else node.outgoing)
    return CompletionCascaded(resolved=resolved, skipped=skipped)


def edge_subject(command: ResolveDependencyArgs) -> Key:
    """The edge that a command names."""
    return key_for(Edge, f"{flow_identity(command.flow_id)}/{command.edge_id}")


@rule(ResolveDependencyArgs, subject=edge_subject)
def resolve_dependency(work: Work, args: ResolveDependencyArgs) -> ResolveDependencyResult:
    """Resolve one edge at once. Its upstream must have ended in the way that the caller says.

    Raises:
        FlowNotFound: there is no such flow.
        InvalidDependency: there is no such edge, or its upstream has not ended so.
    """
    flow = the_flow(work, args.flow_id)
    edge = the_edge(work, flow.flow_id, args.edge_id)
    if edge is None:
        raise errors.InvalidDependency(field="edge_id", value=args.edge_id, rule="an edge of the flow")
    if edge.state != PENDING:
        return DependencyAlreadyResolved()
    upstream = work.read(Execution, edge.upstream_execution_id)
    if upstream is None or upstream.outcome != args.upstream_outcome:
        raise errors.InvalidDependency(
            field="upstream_outcome", value=args.upstream_outcome, rule="the outcome of the upstream"
        )
    settle_edge(work, edge, upstream)
    judge(work, edge.downstream_execution_id)
    succeeded = upstream.outcome is TerminalOutcome.SUCCESS
    return DependencySatisfied() if succeeded else DependencyImpossible()


@rule(PromoteBlockedToEligibleArgs)
def promote_blocked_to_eligible(
    work: Work, args: PromoteBlockedToEligibleArgs
) -> PromoteBlockedToEligibleResult:
    """Say that nothing is open. What is satisfied has been let go in the same commit already.

    Raises:
        ExecutionNotFound, Terminal, NotRunnable, NotBlockedByDeps, DepsNotSatisfied: in this order.
    """
    execution = work.execution(args.execution_id)
    if is_terminal(execution):
        raise errors.Terminal(execution_id=args.execution_id)
    if execution.phase is not LifecyclePhase.RUNNABLE:
        raise errors.NotRunnable(execution_id=args.execution_id, lifecycle_phase=execution.phase)
    if work.read(EdgeGroup, args.execution_id) is None:
        raise errors.NotBlockedByDeps(execution_id=args.execution_id)
    if execution.unresolved_dependencies:
        raise errors.DepsNotSatisfied(
            execution_id=args.execution_id, unresolved=execution.unresolved_dependencies
        )
    return BlockedPromoted()


@rule(EvaluateFlowEligibilityArgs, query=True)
def evaluate_flow_eligibility(work: Work, args: EvaluateFlowEligibilityArgs) -> EvaluateFlowEligibilityResult:
    """Read whether dependencies hold an execution back."""
    return EligibilityStatus(status=_eligibility(work, find(work, args)))


def _eligibility(work: Work, execution: Execution | None) -> str:
    if execution is None:
        return "not_found"
    group = work.read(EdgeGroup, execution.execution_id)
    if group is not None and group.state is EdgeGroupState.IMPOSSIBLE:
        return "impossible"
    if is_terminal(execution):
        return "terminal"
    if execution.phase is not LifecyclePhase.RUNNABLE:
        return "not_runnable"
    return "blocked_by_dependencies" if execution.unresolved_dependencies else "eligible"


@rule(ReadParentResultsArgs, query=True)
def read_parent_results(work: Work, args: ReadParentResultsArgs) -> ParentResults:
    """Read what the satisfied edges that ask for a result hand down.

    The result is that of the generation that satisfied the edge, so a replay of the upstream does
    not change what a running downstream reads.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    execution = work.execution(args.execution_id)
    node = work.read(FlowNode, args.execution_id)
    if node is None or execution.flow_id is None:
        return ParentResults(results=())
    edges = [
        edge
        for edge in edges_at(work, execution.flow_id, node.incoming)
        if edge.state == SATISFIED and edge.data_passing_ref
    ]
    identities = [f"{edge.upstream_execution_id}/{edge.upstream_generation}" for edge in edges]
    results = work.read_all(ExecutionResult, identities)
    return ParentResults(
        results=tuple(_parent_result(edge, result) for edge, result in zip(edges, results, strict=True))
    )


def _parent_result(edge: Edge, result: ExecutionResult | None) -> ParentResult:
    return ParentResult(
        edge_id=edge.edge_id,
        upstream_execution_id=edge.upstream_execution_id,
        name=edge.data_passing_ref or "",
        result=None if result is None else result.data,
        encoding=None if result is None else result.encoding,
    )


# Running again


def reopen_join(work: Work, child: Execution) -> None:
    """Prepare the join before an ended member for its replay.

    A join that had become impossible looks at its upstreams again: one that runs again is waited
    for, one that has succeeded meanwhile counts.

    Raises:
        FlowAlreadyTerminal: the flow was cancelled.
        DepsNotSatisfied: the upstreams have not been replayed, so it would be skipped again.
    """
    if child.flow_id is None:
        return
    flow = work.read(Flow, flow_identity(child.flow_id))
    if flow is not None and flow.cancelled_at is not None:
        raise errors.FlowAlreadyTerminal(flow_id=child.flow_id)
    group = work.read(EdgeGroup, child.execution_id)
    if group is None or group.state is not EdgeGroupState.IMPOSSIBLE:
        return
    group = work.edit(group)
    lost = [edge for edge in edges_at(work, group.flow_id, incoming(work, group)) if edge.state == IMPOSSIBLE]
    upstreams = work.read_all(Execution, [edge.upstream_execution_id for edge in lost])
    for edge, upstream in zip(lost, upstreams, strict=True):
        if upstream is None or _is_lost(upstream):
            continue
        reopened = _reopen_edge(work, edge, group)
        if is_terminal(upstream):
            settle_edge(work, reopened, upstream)
    group.state, group.decided_at = verdict_of(group), None
    if group.state is EdgeGroupState.IMPOSSIBLE:
        still = [found.execution_id for found in upstreams if found is not None and _is_lost(found)]
        raise errors.DepsNotSatisfied(execution_id=child.execution_id, upstream_execution_id=still[0])
    if group.state is EdgeGroupState.SATISFIED:
        group.decided_at = work.now
    child.unresolved_dependencies = open_dependencies(group)


def _is_lost(upstream: Execution) -> bool:
    return is_terminal(upstream) and upstream.outcome is not TerminalOutcome.SUCCESS


def _reopened_in_time(work: Work, edge: Edge, upstream: Execution) -> Edge:
    """The edge, waiting again if it was lost and its upstream was replayed before the join was decided."""
    group = the_group(work, edge.downstream_execution_id)
    if edge.state == PENDING or group.state is not EdgeGroupState.PENDING or _is_lost(upstream):
        return edge
    return _reopen_edge(work, edge, work.edit(group))


def _reopen_edge(work: Work, edge: Edge, group: EdgeGroup) -> Edge:
    """Take a lost edge out of the counts again."""
    if edge.upstream_outcome == TerminalOutcome.SKIPPED:
        group.skipped -= 1
    else:
        group.failed -= 1
    edge = work.edit(edge)
    edge.state, edge.upstream_outcome = PENDING, ""
    return edge

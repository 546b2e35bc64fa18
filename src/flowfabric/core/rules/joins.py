"""Joins: what the end of a member does to those that depend on it.

The rules this module keeps:

- An edge moves the counts of its group once, when it leaves ``pending``.
- A group is decided once. Upstreams that end later are counted and decide nothing.
- Nothing reaches further than one commit is allowed to: what an end means for others travels as a
  message, in pieces of a bounded number of edges, and a skipped member writes one of its own.
"""

from __future__ import annotations

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
from flowfabric.core.commands import DeliverMessageArgs, MessageDelivered
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
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.rules.ending import cancel
from flowfabric.core.rules.graph import DROPPED, the_edge, the_flow
from flowfabric.core.rules.pausing import dependency_blocker
from flowfabric.core.rules.reading import find
from flowfabric.core.rules.suspending import close_suspension
from flowfabric.core.rules.transitions import add_blocker, end_execution, mark_transition, remove_blocker
from flowfabric.core.state import is_terminal
from flowfabric.core.vocabulary import BlockerKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.core.records import Key
    from flowfabric.core.work import Work

PENDING: Final = "pending"
SATISFIED: Final = "satisfied"
IMPOSSIBLE: Final = "impossible"

EDGES_PER_DELIVERY: Final = 100
"""How many outgoing edges one commit sees to."""

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


def open_dependencies(group: EdgeGroup) -> int:
    """How many successes the group still waits for."""
    if group.state is not EdgeGroupState.PENDING:
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
    if isinstance(group.policy, AllOfEdges) or group.policy.on_satisfied is OnSatisfied.LET_RUN:
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


def resolve_outgoing(work: Work, upstream: Execution, links: Iterable[Link]) -> tuple[int, int]:
    """Resolve those of the edges that are pending.

    Returns:
        How many edges that were, and how many members were skipped because of it.
    """
    if upstream.flow_id is None or not is_terminal(upstream):
        return 0, 0
    edges = [edge for edge in edges_at(work, upstream.flow_id, links) if edge.state == PENDING]
    downstreams = dict.fromkeys(edge.downstream_execution_id for edge in edges)
    work.read_all(EdgeGroup, downstreams)
    work.read_all(Execution, downstreams)
    for edge in edges:
        settle_edge(work, edge, upstream)
    skipped = [judge(work, execution_id) for execution_id in downstreams]
    return len(edges), sum(skipped)


# Messages


@rule(DeliverMessageArgs, subject=no_subject, reads=lambda args: (key_for(Message, args.message_id),))
def deliver_message(work: Work, args: DeliverMessageArgs) -> MessageDelivered:
    """Act on what a commit owed, and remove the message. It counts what is true now, not then."""
    message = work.read(Message, args.message_id)
    if message is None:
        return MessageDelivered(action="gone")
    work.remove(message)
    member = work.read(Execution, message.execution_id)
    if member is None or member.flow_id is None:
        return MessageDelivered(action="delivered")
    if message.about == "unneeded":
        _cancel_if_unneeded(work, member)
    else:
        _pass_on(work, message, member)
    return MessageDelivered(action="delivered")


def _pass_on(work: Work, message: Message, member: Execution) -> None:
    """Count the member's end in its flow, and resolve some of its outgoing edges."""
    if message.position == 0:
        count_member(work, member)
    node = work.read(FlowNode, member.execution_id)
    if node is None or not is_terminal(member):
        return
    behind = message.position + EDGES_PER_DELIVERY
    resolve_outgoing(work, member, node.outgoing[message.position : behind])
    if len(node.outgoing) > behind:
        following = Message(
            execution_id=message.execution_id,
            about=message.about,
            cause=message.cause,
            due_at=work.now,
            position=behind,
        )
        work.read(Message, following.identity)
        work.add(following)


def count_member(work: Work, member: Execution) -> None:
    """Bring the flow's counts in line with how this member stands."""
    assert member.flow_id is not None
    identity = flow_identity(member.flow_id)
    place = work.read(FlowMember, f"{identity}/{member.flow_position}")
    progress = work.read(FlowProgress, identity)
    if place is None or progress is None:
        raise errors.StoreCorrupt(record=key_for(FlowMember, f"{identity}/{member.flow_position}"))
    word = counted_as(member)
    if place.counted == word:
        return
    progress = work.edit(progress)
    changes = {place.counted: -1, word: 1}
    counts = {name: progress.outcomes.get(name, 0) + change for name, change in changes.items() if name}
    progress.counted_at = work.now
    progress.outcomes = {name: n for name, n in {**progress.outcomes, **counts}.items() if n}
    work.edit(place).counted = word


def counted_as(member: Execution) -> str:
    """The word under which a member is counted; empty while it has not ended."""
    if not is_terminal(member):
        return ""
    if member.outcome is TerminalOutcome.CANCELLED and member.cancelled_by == JOIN_DECIDED:
        return DROPPED
    return str(member.outcome)


def _cancel_if_unneeded(work: Work, member: Execution) -> None:
    """Cancel a member unless it has ended or another undecided join still waits for it."""
    node = work.read(FlowNode, member.execution_id)
    if is_terminal(member) or node is None or member.flow_id is None:
        return
    pending = [edge for edge in edges_at(work, member.flow_id, node.outgoing) if edge.state == PENDING]
    groups = work.read_all(EdgeGroup, [edge.downstream_execution_id for edge in pending])
    if all(group is None or group.state is not EdgeGroupState.PENDING for group in groups):
        cancel(work, work.edit(member), "no join needs its result any more", JOIN_DECIDED)


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
    resolved, skipped = resolve_outgoing(work, execution, () if node is None else node.outgoing)
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
        if upstream is not None:
            _reopen_edge(work, edge, group, upstream)
    group.state, group.decided_at = verdict_of(group), None
    if group.state is EdgeGroupState.IMPOSSIBLE:
        still = [found.execution_id for found in upstreams if found is not None and _is_lost(found)]
        raise errors.DepsNotSatisfied(execution_id=child.execution_id, upstream_execution_id=still[0])
    if group.state is EdgeGroupState.SATISFIED:
        group.decided_at = work.now
    child.unresolved_dependencies = open_dependencies(group)


def _is_lost(upstream: Execution) -> bool:
    return is_terminal(upstream) and upstream.outcome is not TerminalOutcome.SUCCESS


def _reopen_edge(work: Work, edge: Edge, group: EdgeGroup, upstream: Execution) -> None:
    """Let an edge that was lost follow its upstream again, unless that is lost still."""
    if _is_lost(upstream):
        return
    if edge.upstream_outcome == TerminalOutcome.SKIPPED:
        group.skipped -= 1
    else:
        group.failed -= 1
    edge = work.edit(edge)
    edge.state, edge.upstream_outcome = PENDING, ""
    if is_terminal(upstream):
        settle_edge(work, edge, upstream)

"""Flows as users build and hold them: members with their joins, submitted as a whole.

    flow = ff.flow("nightly")
    left = flow.add(fetch, "a")
    right = flow.add(fetch, "b", name="right")
    report = flow.add(write_report, after=[left, right])
    run = await ff.submit_flow(flow)

The rule this module keeps: a member comes after members that were added before it, so what is
built here has no cycle.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar, Unpack, overload

import msgspec

from flowfabric.contracts.flows import (
    AllOfEdges,
    AnyOfEdges,
    CancelFlowArgs,
    CancelFlowResult,
    DescribeFlowArgs,
    EdgeDependencyPolicy,
    FlowCancellationPolicy,
    FlowExists,
    FlowMemberInfo,
    FlowSnapshot,
    GroupPolicy,
    ListFlowMembersArgs,
    NewEdge,
    OnSatisfied,
    QuorumOfEdges,
    SubmitFlowArgs,
    SubmitFlowResult,
)
from flowfabric.contracts.states import PublicState
from flowfabric.engine.notifier import flow_topic
from flowfabric.errors import FlowNotFound, FlowRunCancelled, FlowRunFailed, InvalidInput
from flowfabric.minting import deterministic_execution_id, new_execution_id, new_flow_id, new_uuid4
from flowfabric.run import SAFETY_POLL_MS, Run
from flowfabric.submissions import Submissions, SubmitOptions

if TYPE_CHECKING:
    from flowfabric.engine.interface import AnyEngine, Clock
    from flowfabric.handlers import Handler

R = TypeVar("R")

ENDED: Final = frozenset({"completed", "failed", "cancelled"})
"""The states that a flow does not leave by itself."""

PAGE: Final = 200
"""How many members are read at once."""


class Member(Generic[R]):
    """One execution of a flow that is being built; ``Flow.add`` makes it.

    Attributes:
        name: unique in its flow; ``task.inputs()`` of the members after it has its result under it.
    """

    def __init__(self, flow: Flow, name: str, handler: Handler[..., R] | str) -> None:
        self.flow = flow
        self.name = name
        self.handler = handler

    def __repr__(self) -> str:
        return f"<Member {self.name!r} of flow {self.flow.kind!r}>"


class Join(msgspec.Struct, frozen=True):
    """Which members have to succeed before another one may run; see ``all_of`` and its siblings."""

    upstreams: tuple[Member[Any], ...]
    policy: EdgeDependencyPolicy


After: TypeAlias = "Member[Any] | Iterable[Member[Any]] | Join"
"""One member, several of which all have to succeed, or a join."""


def all_of(*upstreams: Member[Any]) -> Join:
    """Every one of these has to succeed; a list of members means the same."""
    return Join(upstreams, AllOfEdges())


def any_of(*upstreams: Member[Any], cancel_remaining: bool = True) -> Join:
    """One of these has to succeed.

    Args:
        upstreams: the members.
        cancel_remaining: cancel those that are still at work when the join is decided, unless
            another join waits for them.
    """
    return Join(upstreams, AnyOfEdges(on_satisfied=_on_satisfied(cancel_remaining=cancel_remaining)))


def quorum(k: int, upstreams: Iterable[Member[Any]], *, cancel_remaining: bool = True) -> Join:
    """So many of these have to succeed; see ``any_of``."""
    policy = QuorumOfEdges(k=k, on_satisfied=_on_satisfied(cancel_remaining=cancel_remaining))
    return Join(tuple(upstreams), policy)


def _on_satisfied(*, cancel_remaining: bool) -> OnSatisfied:
    return OnSatisfied.CANCEL_REMAINING if cancel_remaining else OnSatisfied.LET_RUN


class _Part(msgspec.Struct, frozen=True):
    """What was said about one member."""

    member: Member[Any]
    value: Any
    join: Join | None
    options: SubmitOptions


class Flow:
    """A flow that is being built.

    Attributes:
        kind: what kind of flow it is, for whoever looks at it.
        members: what was added, by name.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.members: dict[str, Member[Any]] = {}
        self._parts: list[_Part] = []

    @overload
    def add(
        self,
        handler: Handler[..., R],
        input: Any = None,
        *,
        after: After = (),
        name: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Member[R]: ...

    @overload
    def add(
        self,
        handler: str,
        input: Any = None,
        *,
        after: After = (),
        name: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Member[Any]: ...

    def add(
        self,
        handler: Handler[..., Any] | str,
        input: Any = None,  # noqa: A002 - the word users know
        *,
        after: After = (),
        name: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Member[Any]:
        """Add a member.

        Args:
            handler: a registered handler, or the name of a kind that some worker handles.
            input: what the handler gets; anything with a JSON form, or bytes.
            after: the members that have to succeed first; ``task.inputs()`` gives their results.
            name: its name in this flow; that of the kind, with a number if there are several.
            **options: see ``SubmitOptions``; a member has no idempotency key and no id of its own.

        Raises:
            TypeError: an option names one execution.
            ValueError: the name is taken or empty, or a member of another flow is to come first.
        """
        if {"idempotency_key", "execution_id"} & options.keys():
            raise TypeError("a member has no idempotency key and no id of its own; give the flow a key")
        join = _join_of(after)
        for upstream in join.upstreams if join else ():
            if self.members.get(upstream.name) is not upstream:
                raise ValueError(f"{upstream!r} is not a member of this flow")
        member: Member[Any] = Member(self, self._name(handler, name), handler)
        self.members[member.name] = member
        self._parts.append(_Part(member, input, join, options))
        return member

    def _name(self, handler: Handler[..., Any] | str, wanted: str | None) -> str:
        if wanted is not None:
            if not wanted:
                raise ValueError("a member needs a name, under which its result is handed down")
            if wanted in self.members:
                raise ValueError(f"there is already a member named {wanted!r}")
            return wanted
        kind = handler if isinstance(handler, str) else handler.kind
        name, number = kind, 1
        while name in self.members:
            number += 1
            name = f"{kind}-{number}"
        return name

    async def command(
        self, clock: Clock, submissions: Submissions, idempotency_key: str | None = None
    ) -> tuple[SubmitFlowArgs, dict[str, str]]:
        """The command that submits this flow as it is now, and the ids of its members by name.

        Raises:
            InvalidInput: there are too many members or edges, or none.
            Unencodable: an input cannot be stored.
        """
        flow_id = _flow_id(submissions.namespace, idempotency_key)
        ids = {name: _member_id(flow_id, name, idempotency_key) for name in self.members}
        executions = []
        for part in self._parts:
            options = SubmitOptions(**{**part.options, "execution_id": ids[part.member.name]})
            executions += await submissions.creations(clock, part.member.handler, [part.value], options)
        joins = [(ids[part.member.name], part.join) for part in self._parts if part.join is not None]
        command = SubmitFlowArgs(
            flow_id=flow_id,
            flow_kind=self.kind,
            namespace=submissions.namespace,
            executions=tuple(executions),
            edges=tuple(edge for downstream, join in joins for edge in _edges(downstream, join, ids)),
            groups=tuple(
                GroupPolicy(downstream_execution_id=downstream, policy=join.policy)
                for downstream, join in joins
            ),
        )
        return command, ids

    def run(
        self,
        engine: Callable[[], AnyEngine],
        submissions: Submissions,
        outcome: SubmitFlowResult,
        ids: dict[str, str],
    ) -> FlowRun:
        """The run that a submission of this flow has made or found."""
        return FlowRun(
            engine,
            submissions.namespace,
            outcome.flow_id,
            members={
                name: submissions.run_of(engine, member.handler, ids[name])
                for name, member in self.members.items()
            },
            last=self.last,
            duplicate=isinstance(outcome, FlowExists),
        )

    @property
    def last(self) -> tuple[str, ...]:
        """The names of the members that nobody comes after."""
        waited_for = {up.name for part in self._parts if part.join for up in part.join.upstreams}
        return tuple(name for name in self.members if name not in waited_for)


def _join_of(after: After) -> Join | None:
    if isinstance(after, Join):
        join = after
    elif isinstance(after, Member):
        join = all_of(after)
    else:
        join = all_of(*after)
    if len({upstream.name for upstream in join.upstreams}) < len(join.upstreams):
        raise ValueError("a member can come after another one only once")
    return join if join.upstreams else None


def _flow_id(namespace: str, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return new_flow_id()
    return str(uuid.uuid5(_KEYED_FLOWS, f"{len(namespace)}:{namespace}{idempotency_key}"))


_KEYED_FLOWS: Final = uuid.UUID("5f0c2c51-6a0e-4f6f-9a52-0d0d3e1f7a44")
"""The root of the ids of flows that are named by a key."""


def _member_id(flow_id: str, name: str, idempotency_key: str | None) -> str:
    """A keyed flow's members can be found again by whoever builds it again."""
    if idempotency_key is None:
        return new_execution_id(flow_id=flow_id)
    return deterministic_execution_id(str(uuid.uuid5(uuid.UUID(flow_id), name)), flow_id=flow_id)


def _edges(downstream: str, join: Join, ids: dict[str, str]) -> list[NewEdge]:
    return [
        NewEdge(
            edge_id=new_uuid4(),
            upstream_execution_id=ids[upstream.name],
            downstream_execution_id=downstream,
            data_passing_ref=upstream.name,
        )
        for upstream in join.upstreams
    ]


class FlowRun:
    """One submitted flow, by its id.

    Args:
        engine: gives the engine to ask; called whenever the run is used.
        namespace: the one it belongs to.
        flow_id: the flow.
        members: the runs of its members by name, where they are known.
        last: the names of those that nobody comes after.
        duplicate: True if submitting found that it existed already.

    Attributes:
        flow_id: the flow.
        duplicate: True if submitting found that it existed already.
    """

    def __init__(
        self,
        engine: Callable[[], AnyEngine],
        namespace: str,
        flow_id: str,
        *,
        members: dict[str, Run[Any]] | None = None,
        last: tuple[str, ...] = (),
        duplicate: bool = False,
    ) -> None:
        self.flow_id = flow_id
        self.duplicate = duplicate
        self._engine_now = engine
        self._namespace = namespace
        self._members = members
        self._last = last

    @property
    def _engine(self) -> AnyEngine:
        return self._engine_now()

    def __repr__(self) -> str:
        return f"<FlowRun {self.flow_id}>"

    @overload
    def member(self, member: Member[R]) -> Run[R]: ...

    @overload
    def member(self, member: str) -> Run[Any]: ...

    def member(self, member: Member[Any] | str) -> Run[Any]:
        """The run of a member, by its name.

        Raises:
            LookupError: the flow has no such member, or was submitted elsewhere, so that names are
                not known here; ``members`` lists them in any case.
        """
        name = member if isinstance(member, str) else member.name
        runs = self._members or {}
        if name not in runs:
            known = ", ".join(sorted(runs)) or "none here; use members()"
            raise LookupError(f"flow {self.flow_id} has no member named {name!r}; known: {known}")
        return runs[name]

    async def members(self) -> AsyncIterator[FlowMemberInfo]:
        """The members with their states and joins, in the order in which they were added.

        Raises:
            FlowNotFound: there is no such flow.
        """
        cursor: int | None = None
        while True:
            page = await self._engine.execute(
                ListFlowMembersArgs(flow_id=self.flow_id, cursor=cursor, limit=PAGE),
                namespace=self._namespace,
            )
            if page is None:
                raise FlowNotFound(flow_id=self.flow_id)
            for member in page.members:
                yield member
            if page.next_cursor is None:
                return
            cursor = page.next_cursor

    async def view(self) -> FlowSnapshot:
        """How the flow stands.

        Raises:
            FlowNotFound: there is no such flow.
        """
        found = await self._engine.execute(DescribeFlowArgs(flow_id=self.flow_id), namespace=self._namespace)
        if found is None:
            raise FlowNotFound(flow_id=self.flow_id)
        return found

    async def state(self) -> str:
        """``running``, ``completed``, ``failed`` or ``cancelled``; ``open`` while members may be added."""
        return (await self.view()).public_flow_state

    async def wait(self) -> FlowSnapshot:
        """Wait for the end, whatever it is. Members of a cancelled flow may still be at work."""
        with self._engine.notifier.subscribe(flow_topic(self.flow_id)) as changes:
            while True:
                view = await self.view()
                if view.public_flow_state in ENDED:
                    return view
                await changes.wait(SAFETY_POLL_MS)

    async def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the end and return the results of the members that nobody comes after, by name.

        A member that was cancelled because its join did not need it any more is left out.

        Args:
            timeout: seconds to wait; None waits for ever. The flow goes on in any case.

        Raises:
            TimeoutError: the time was over first.
            FlowRunFailed, FlowRunCancelled: it ended otherwise.
            LookupError: the flow was submitted elsewhere, so that names are not known here.
        """
        if self._members is None:
            raise LookupError(f"flow {self.flow_id} was submitted elsewhere; read its members one by one")
        async with asyncio.timeout(timeout):
            view = await self.wait()
            if view.public_flow_state == "cancelled":
                raise FlowRunCancelled(flow_id=self.flow_id, reason=view.cancel_reason)
            if view.public_flow_state == "failed":
                raise FlowRunFailed(flow_id=self.flow_id, **view.outcomes)
            return await self._results()

    async def _results(self) -> dict[str, Any]:
        runs = [self.member(name) for name in self._last]
        views = await asyncio.gather(*(run.view() for run in runs))
        return {
            name: run.result_of(view)
            for name, run, view in zip(self._last, runs, views, strict=True)
            if view.public_state is PublicState.COMPLETED
        }

    async def cancel(
        self,
        reason: str = "cancelled by its submitter",
        *,
        policy: FlowCancellationPolicy | str = FlowCancellationPolicy.CANCEL_ALL,
        wait: bool = False,
    ) -> CancelFlowResult:
        """Cancel the flow. One that has ended stays as it is.

        Args:
            reason: why, for the record.
            policy: ``cancel_all`` cancels all members that have not ended, ``cancel_pending`` those
                that have not begun, ``cancel_flow_only`` none.
            wait: try every member before answering; else that is done soon.

        Raises:
            FlowNotFound: there is no such flow.
            InvalidInput: there is no such policy.
        """
        try:
            chosen = FlowCancellationPolicy(policy)
        except ValueError as error:
            known = ", ".join(FlowCancellationPolicy)
            raise InvalidInput(field="policy", value=repr(policy), rule=f"one of {known}") from error
        return await self._engine.execute(
            CancelFlowArgs(flow_id=self.flow_id, reason=reason, cancellation_policy=chosen, wait=wait),
            namespace=self._namespace,
        )

"""``flow``: submit a flow from a file, list flows, look at one, cancel it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric.cli.exits import OK, REFUSED, UsageError
from flowfabric.cli.output import (
    print_fields,
    print_json,
    print_note,
    print_table,
    shown_age,
    table_lines,
)
from flowfabric.cli.session import open_engine, run
from flowfabric.cli.values import json_payload
from flowfabric.contracts.flows import (
    AnyOfEdges,
    CancelFlowArgs,
    EdgeGroupSnapshot,
    FlowCancellationPolicy,
    FlowMemberInfo,
    FlowSnapshot,
    IncomingEdges,
    ListEdgesArgs,
    ListFlowMembersArgs,
    ListFlowsArgs,
    PartiallyCancelled,
    QuorumOfEdges,
)
from flowfabric.core.instants import shown_time
from flowfabric.errors import FlowNotFound
from flowfabric.flow_documents import read_flow
from flowfabric.flows import Flow, FlowRun
from flowfabric.submissions import Submissions

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.engine.interface import AnyEngine


MEMBERS_DRAWN_MAX: Final = 200
"""How many members ``flow show`` draws; ``flow members`` lists all."""


def manage_flows(arguments: Namespace) -> int:
    """Carry out ``flow``."""
    if arguments.action == "list":
        if arguments.subject is not None:
            raise UsageError("'flow list' takes neither a file nor an id")
        return run(_list(arguments))
    if arguments.subject is None:
        wanted = "a file, or -" if arguments.action == "submit" else "the flow's id"
        raise UsageError(f"'flow {arguments.action}' needs {wanted}")
    return run(_ACTIONS[arguments.action](arguments))


# Submitting


async def _submit(arguments: Namespace) -> int:
    flow = _read_flow(arguments.subject)
    async with open_engine(arguments, create=True) as engine:
        submissions = Submissions({}, arguments.namespace)
        command, ids = await flow.command(engine, submissions, arguments.idempotency_key)
        submitted = flow.run(lambda: engine, submissions, await engine.execute(command), ids)
    if arguments.json:
        print_json({"flow_id": submitted.flow_id, "duplicate": submitted.duplicate, "members": ids})
        return OK
    if submitted.duplicate:
        print_note("this was submitted before; here is the id of the first submission")
    print(submitted.flow_id)
    return OK


def _read_flow(path: str) -> Flow:
    """The flow in a file.

    Raises:
        UsageError: the file cannot be read, or what is in it is no flow.
    """
    data = json_payload(path if path == "-" else f"@{path}", "the flow")
    try:
        return read_flow(data, creator="cli")
    except ValueError as error:
        raise UsageError(f"{path} has no flow: {error}. Nothing was submitted.") from error


# Looking


async def _list(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        page = await engine.execute(ListFlowsArgs(cursor=arguments.cursor, limit=arguments.limit))
        now = await engine.now()
    if arguments.json:
        print_json(page)
        return OK
    table = [
        [
            row.flow_id,
            row.public_flow_state,
            row.flow_kind,
            f"{row.ended_count}/{row.node_count}",
            shown_age(row.created_at, now),
        ]
        for row in page.flows
    ]
    print_table(["FLOW", "STATE", "KIND", "ENDED", "CREATED"], table, flexible=2)
    if page.next_cursor is not None:
        print_note(f"there is more: add --cursor '{page.next_cursor}'")
    return OK


async def _show(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        view = await FlowRun(lambda: engine, arguments.namespace, arguments.subject).view()
        page = await _page(engine, arguments.subject, None, MEMBERS_DRAWN_MAX)
        upstreams = await _upstreams(engine, arguments.subject, page.members)
    if arguments.json:
        members = [{**msgspec.to_builtins(m), "after": upstreams[m.execution_id]} for m in page.members]
        print_json({"flow": view, "members": members})
        return OK
    print_fields(_fields(view))
    print()
    for line in picture(page.members, upstreams):
        print(line)
    if page.next_cursor is not None:
        print_note(f"there are more members: flowfabric flow members {arguments.subject}")
    return OK


async def _members(arguments: Namespace) -> int:
    cursor = None if arguments.cursor is None else int(arguments.cursor)
    async with open_engine(arguments) as engine:
        page = await _page(engine, arguments.subject, cursor, arguments.limit)
    if arguments.json:
        print_json(page)
        return OK
    rows = [
        [
            str(member.position),
            member.execution_id,
            member.public_state,
            member.execution_kind,
            shown_join(member.join),
        ]
        for member in page.members
    ]
    print_table(["#", "EXECUTION", "STATE", "KIND", "JOIN"], rows, flexible=3)
    if page.next_cursor is not None:
        print_note(f"there is more: add --cursor {page.next_cursor}")
    return OK


async def _page(engine: AnyEngine, flow_id: Any, cursor: int | None, limit: int) -> Any:
    page = await engine.execute(ListFlowMembersArgs(flow_id=flow_id, cursor=cursor, limit=limit))
    if page is None:
        raise FlowNotFound(flow_id=flow_id)
    return page


async def _upstreams(
    engine: AnyEngine, flow_id: Any, members: tuple[FlowMemberInfo, ...]
) -> dict[str, list[str]]:
    """For each member the execution ids that it comes after."""
    found: dict[str, list[str]] = {}
    for member in members:
        if member.join is None:
            found[str(member.execution_id)] = []
            continue
        direction = IncomingEdges(to_node=member.execution_id)
        edges = await engine.execute(ListEdgesArgs(flow_id=flow_id, direction=direction))
        found[str(member.execution_id)] = [str(edge.upstream_execution_id) for edge in edges.edges]
    return found


def _fields(view: FlowSnapshot) -> list[tuple[str, str]]:
    ended = ", ".join(f"{count} {word}" for word, count in sorted(view.outcomes.items()))
    fields = [
        ("flow", view.flow_id),
        ("kind", view.flow_kind),
        ("state", view.public_flow_state),
        ("members", f"{view.node_count}, {view.edge_count} edges"),
        ("ended", ended),
        ("created", shown_time(view.created_at)),
        ("cancelled", shown_time(view.cancelled_at)),
        ("because", view.cancel_reason or ""),
    ]
    return [(name, value) for name, value in fields if value]


def picture(members: tuple[FlowMemberInfo, ...], upstreams: dict[str, list[str]]) -> list[str]:
    """The graph as text: a line for each member, indented behind what it comes after."""
    number = {str(member.execution_id): member.position for member in members}
    depth: dict[str, int] = {}
    for member in members:
        # One that was added before what it comes after stands at the depth that is known so far.
        above = [depth.get(upstream, 0) + 1 for upstream in upstreams[str(member.execution_id)]]
        depth[str(member.execution_id)] = max(above, default=0)
    labels = [
        f"{'  ' * depth[str(member.execution_id)]}#{member.position} {member.execution_kind}"
        for member in members
    ]
    states = [str(member.public_state) for member in members]
    after = [_after(member, upstreams[str(member.execution_id)], number) for member in members]
    return table_lines(
        ["MEMBER", "STATE", "AFTER"], zip(labels, states, after, strict=True), flexible=2, width=None
    )


def _after(member: FlowMemberInfo, upstreams: list[str], number: dict[str, int]) -> str:
    names = " ".join(f"#{number[upstream]}" for upstream in upstreams if upstream in number)
    return "" if member.join is None else f"{names}: {shown_join(member.join)}"


def shown_join(join: EdgeGroupSnapshot | None) -> str:
    """A join in words: what it needs, and how far it is."""
    if join is None:
        return ""
    match join.policy:
        case AnyOfEdges():
            needs = f"any of {join.total_deps}"
        case QuorumOfEdges(k=k):
            needs = f"{k} of {join.total_deps}"
        case _:
            needs = f"all of {join.total_deps}"
    return f"{needs} ({join.satisfied_count} succeeded, {join.group_state})"


# Cancelling


async def _cancel(arguments: Namespace) -> int:
    command = CancelFlowArgs(
        flow_id=arguments.subject,
        reason=arguments.reason,
        cancellation_policy=FlowCancellationPolicy(arguments.policy),
        wait=True,
    )
    async with open_engine(arguments) as engine:
        answer = await engine.execute(command)
    if arguments.json:
        print_json(answer)
    else:
        print(f"cancelled {arguments.subject} with its {len(answer.member_execution_ids)} members")
    if isinstance(answer, PartiallyCancelled):
        print_note(f"{len(answer.failed_member_execution_ids)} members could not be cancelled yet")
        return REFUSED
    return OK


_ACTIONS: Final = {"submit": _submit, "show": _show, "members": _members, "cancel": _cancel}

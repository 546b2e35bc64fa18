"""Messages: what one commit owes to other records, done in commits of its own.

The rules this module keeps:

- A message says where to look, never what to do: it acts on what is true when it is delivered. So
  delivering twice, or late, does no harm.
- One commit sees to a bounded number of edges or members, and owes the rest to the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.core.commands import DeliverMessageArgs, MessageDelivered
from flowfabric.core.records import Execution, Flow, FlowMember, FlowNode, Message, key_for
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.rules.joins import cancel_if_unneeded, count_member, follow_upstream

if TYPE_CHECKING:
    from flowfabric.core.records import Key
    from flowfabric.core.work import Work

PER_DELIVERY: Final = 100
"""How many outgoing edges, or members, one commit sees to."""


def about(command: DeliverMessageArgs) -> str:
    """The execution that a message is about; that of a whole flow is about none that exists."""
    return command.message_id.partition("/")[0]


def _first_reads(command: DeliverMessageArgs) -> tuple[Key, ...]:
    """The message, and what most of them need."""
    member = about(command)
    return (
        key_for(Message, command.message_id),
        key_for(Execution, member),
        key_for(FlowNode, member),
    )


@rule(DeliverMessageArgs, subject=no_subject, reads=_first_reads)
def deliver_message(work: Work, args: DeliverMessageArgs) -> MessageDelivered:
    """Act on what a commit owed, and remove the message."""
    message = work.read(Message, args.message_id)
    if message is None:
        return MessageDelivered(action="gone")
    work.remove(message)
    if message.about == "cancelled":
        _mark_members(work, message)
        return MessageDelivered(action="delivered")
    member = work.read(Execution, message.execution_id)
    if member is None or member.flow_id is None:
        return MessageDelivered(action="delivered")
    if message.about == "unneeded":
        cancel_if_unneeded(work, member)
    else:
        _pass_on(work, message, member)
    return MessageDelivered(action="delivered")


def _pass_on(work: Work, message: Message, member: Execution) -> None:
    """Count the member in its flow, and let some of its outgoing edges follow it."""
    if message.position == 0:
        count_member(work, member)
    node = work.read(FlowNode, member.execution_id)
    if node is None:
        return
    behind = message.position + PER_DELIVERY
    follow_upstream(work, member, node.outgoing[message.position : behind])
    if len(node.outgoing) > behind:
        _go_on(work, message, behind)


def _mark_members(work: Work, message: Message) -> None:
    """Put some members of a cancelled flow on the list of those to cancel."""
    flow = work.read(Flow, message.execution_id)
    if flow is None:
        return
    behind = min(message.position + PER_DELIVERY, flow.node_count)
    places = [f"{flow.identity}/{position}" for position in range(message.position, behind)]
    for member in work.read_all(FlowMember, places):
        # Those that are counted as ended too: the news that one runs again may be on its way. And
        # no execution is read here, because a damaged one would keep the others from the list.
        if member is not None:
            work.edit(member).cancel_requested_at = work.now
    if behind < flow.node_count:
        _go_on(work, message, behind)


def _go_on(work: Work, message: Message, position: int) -> None:
    """Owe the rest."""
    following = msgspec.structs.replace(message, due_at=work.now, position=position, last_request=None)
    work.read(Message, following.identity)
    work.add(following)

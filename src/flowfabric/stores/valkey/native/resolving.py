"""Carrying the end of a member to the joins behind it on the server: see ``core.rules.delivering``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowfabric.contracts.base import Command
from flowfabric.core.commands import DeliverMessageArgs, MessageDelivered
from flowfabric.core.indexes import ELIGIBLE
from flowfabric.core.records import (
    Edge,
    EdgeGroup,
    Execution,
    FlowMember,
    FlowNode,
    FlowProgress,
    Message,
    flow_identity,
    key_for,
)
from flowfabric.core.rules.delivering import member_of
from flowfabric.core.state import is_terminal
from flowfabric.stores.base import Change
from flowfabric.stores.keys import stored_key

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from flowfabric.core.records import Key, Link
    from flowfabric.core.work import Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects

EDGES_MAX: Final = 16
"""How many edges may leave the member: a call has many such commands, and nothing else runs meanwhile."""


class ResolveDependency:
    """Stands in for the rule of ``DeliverMessageArgs``, where a member of a flow has ended.

    The edges that leave the member are known to whoever has read its node, so that is read before the
    call, and must be the same when the function decides.
    """

    name: Final = "resolve_dependency"
    command_type: Final = DeliverMessageArgs
    serves: Final[tuple[type[Command[Any]], ...]] = ()

    def subject(self, command: DeliverMessageArgs) -> Key:
        return key_for(Message, command.message_id)

    def owner(self, command: DeliverMessageArgs) -> Key:
        return key_for(Execution, member_of(command))

    def relied_on(self, asked: Asked) -> None:
        """Nothing but the records that it changes, and the member's node."""

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The namespace. What is not about an end, or about one with many behind it, is left to the rule."""
        member = _member(asked)
        usual = (
            member is not None
            and member.flow_id is not None
            and is_terminal(member)
            and len(_outgoing(asked)) <= EDGES_MAX
        )
        return asked.namespace if usual else None

    def shared(self, first: Asked) -> Sequence[Argument]:
        return ()

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        args: DeliverMessageArgs = asked.command
        member, outgoing = _member(asked), _outgoing(asked)
        assert member is not None
        node_version, _ = asked.seen[key_for(FlowNode, member.execution_id)]
        message = self.subject(args)
        parts = (_behind(member, link) for link in outgoing)
        return (
            keys.record(message),
            *map(keys.record, (member.key, key_for(FlowNode, member.execution_id), *_counted_in(member))),
            *(keys.record(key) for part in parts for key in part),
        ), (
            member.execution_id,
            args.message_id,
            stored_key(message),
            str(node_version),
            len(outgoing),
            *(link.execution_id for link in outgoing),
        )

    def answer(self, asked: Asked, reply: list[bytes], effects: Effects) -> MessageDelivered:
        member = _member(asked)
        assert member is not None
        assert member.flow_id is not None
        progress = FlowProgress(flow_id=member.flow_id, namespace=member.namespace)
        effects.changes += [Change(key, 0, None) for key in _touched(member, _outgoing(asked))]
        effects.changes.append(Change(progress.key, 0, progress))
        _, *scopes = reply
        effects.rows += [(ELIGIBLE, scope.decode(), effects.now, "") for scope in scopes]
        return MessageDelivered(action="delivered")


def _member(asked: Asked) -> Execution | None:
    """The member as it was seen before the call."""
    _, member = asked.seen.get(key_for(Execution, member_of(asked.command)), (0, None))
    assert member is None or isinstance(member, Execution)
    return member


def _outgoing(asked: Asked) -> tuple[Link, ...]:
    """The edges that leave it."""
    _, node = asked.seen.get(key_for(FlowNode, member_of(asked.command)), (0, None))
    assert node is None or isinstance(node, FlowNode)
    return () if node is None else node.outgoing


def _counted_in(member: Execution) -> tuple[Key, Key]:
    """The records in which the end of a member is counted."""
    assert member.flow_id is not None
    flow = flow_identity(member.flow_id)
    return key_for(FlowProgress, flow), key_for(FlowMember, f"{flow}/{member.flow_position}")


def _behind(member: Execution, link: Link) -> tuple[Key, Key, Key]:
    """An edge, its join, and the member behind it."""
    assert member.flow_id is not None
    return (
        key_for(Edge, f"{flow_identity(member.flow_id)}/{link.edge_id}"),
        key_for(EdgeGroup, link.execution_id),
        key_for(Execution, link.execution_id),
    )


def _touched(member: Execution, outgoing: Sequence[Link]) -> Iterator[Key]:
    """The keys of the records that may have changed."""
    yield from _counted_in(member)
    for link in outgoing:
        yield from _behind(member, link)

"""Carrying the end of a member to the joins behind it on the server: see ``core.rules.delivering``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowfabric.contracts.base import Command
from flowfabric.core.commands import DeliverMessageArgs, MessageDelivered
from flowfabric.core.indexes import ELIGIBLE
from flowfabric.core.records import Execution, FlowNode, FlowProgress, Message, key_for
from flowfabric.core.rules.delivering import about
from flowfabric.core.state import is_terminal
from flowfabric.stores.base import Change
from flowfabric.stores.keys import stored_key
from flowfabric.stores.valkey.native.members import Member, member_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from flowfabric.core.records import Key
    from flowfabric.core.work import Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects

MEMBER_EDGES_MAX: Final = 16
"""How many edges may leave the member: a call has many such commands, and nothing else runs meanwhile."""


class ResolveDependency:
    """Stands in for the rule of ``DeliverMessageArgs``, where a member of a flow has ended.

    The edges that leave the member are known to whoever has read its node, so that is read before the
    call, and must be the same when the function decides.
    """

    name: Final = "resolve_dependency"
    command_type: Final = DeliverMessageArgs
    serves: Final[tuple[type[Command[Any]], ...]] = ()

    def subject(self, asked: Asked) -> Key:
        return key_for(Message, asked.command.message_id)

    def owner(self, command: DeliverMessageArgs) -> Key:
        return key_for(Execution, about(command))

    def relied_on(self, asked: Asked) -> None:
        """Nothing but the records that it changes, and the member's node."""

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The namespace. What is not about an end, or about one with many behind it, is left to the rule."""
        execution, member = _seen(asked)
        ended = execution is not None and is_terminal(execution)
        return asked.namespace if ended and member is not None and has_few_edges(member) else None

    def shared(self, first: Asked) -> Sequence[Argument]:
        return ()

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        args: DeliverMessageArgs = asked.command
        _, member = _seen(asked)
        assert member is not None
        message = self.subject(asked)
        member_keys, member_arguments = behind(keys, about(args), member)
        return (
            keys.record(message),
            keys.record(self.owner(args)),
            *member_keys,
        ), (
            about(args),
            args.message_id,
            stored_key(message),
            *member_arguments,
        )

    def edges(self, asked: Asked) -> int:
        """Those that leave the member that has ended."""
        _, member = _seen(asked)
        assert member is not None
        return len(member.outgoing)

    def answer(self, asked: Asked, reply: list[bytes], effects: Effects) -> MessageDelivered:
        _, member = _seen(asked)
        assert member is not None
        note_resolved(asked, member, reply[1:], effects)
        return MessageDelivered(action="delivered")


def _seen(asked: Asked) -> tuple[Execution | None, Member | None]:
    """The execution and the member as they were seen before the call."""
    execution_id = about(asked.command)
    _, execution = asked.seen.get(key_for(Execution, execution_id), (0, None))
    version, node = asked.seen.get(key_for(FlowNode, execution_id), (0, None))
    assert execution is None or isinstance(execution, Execution)
    assert node is None or isinstance(node, FlowNode)
    return execution, None if execution is None else member_of(execution, version, node)


def has_few_edges(member: Member) -> bool:
    """Whether a function may resolve the edges that leave a member."""
    return len(member.outgoing) <= MEMBER_EDGES_MAX


def behind(keys: Keys, execution_id: str, member: Member) -> tuple[list[str], list[Argument]]:
    """Keys from a member's node on, and arguments from the version of that on, with those of the edges."""
    named = [key_for(FlowNode, execution_id), *member.counted_in]
    named += [key for edge in member.behind for key in edge]
    arguments: list[Argument] = [str(member.node_version), len(member.outgoing)]
    arguments += [link.execution_id for link in member.outgoing]
    return list(map(keys.record, named)), arguments


def note_resolved(asked: Asked, member: Member, scopes: Sequence[bytes], effects: Effects) -> None:
    """Note what was changed behind a member that has ended.

    Args:
        asked: the command.
        member: which one.
        scopes: where others can be claimed now.
        effects: what is added to.
    """
    changed = [key for edge in member.behind for key in edge]
    changed += member.counted_in
    progress = FlowProgress(flow_id=member.flow_id, namespace=asked.namespace)
    effects.changes += [Change(key, 0, None) for key in changed]
    effects.changes.append(Change(progress.key, 0, progress))
    effects.rows += [(ELIGIBLE, scope.decode(), effects.now, "") for scope in scopes]
    for link in member.outgoing:
        if asked.members.recall(link.execution_id) is None:
            asked.members.learn(link.execution_id, Member(member.flow_id))

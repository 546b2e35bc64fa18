"""What is remembered of members of flows, so that functions can be told the keys of what is behind them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.core.records import (
    Edge,
    EdgeGroup,
    Execution,
    FlowMember,
    FlowProgress,
    flow_identity,
    key_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowfabric.core.records import FlowNode, Key, Link

MEMBERS_MAX: Final = 8_192


class Member(msgspec.Struct, frozen=True):
    """A member, with its place and its edges if they are known too. A function compares what may change."""

    flow_id: str
    position: int | None = None
    node_version: int = 0
    """The version of the record that has its edges; 0 if it has none."""
    outgoing: tuple[Link, ...] = ()

    @property
    def counted_in(self) -> tuple[Key, Key]:
        """The records in which its end is counted."""
        flow = flow_identity(self.flow_id)
        return key_for(FlowProgress, flow), key_for(FlowMember, f"{flow}/{self.position}")

    @property
    def behind(self) -> Iterator[tuple[Key, Key, Key]]:
        """For each edge that leaves it: the edge, its join, and the member behind that."""
        flow = flow_identity(self.flow_id)
        for link in self.outgoing:
            yield (
                key_for(Edge, f"{flow}/{link.edge_id}"),
                key_for(EdgeGroup, link.execution_id),
                key_for(Execution, link.execution_id),
            )


def member_of(execution: Execution, node_version: int, node: FlowNode | None) -> Member | None:
    """A member as it is on record; None for an execution that belongs to no flow."""
    if execution.flow_id is None:
        return None
    outgoing = () if node is None else node.outgoing
    return Member(execution.flow_id, execution.flow_position, node_version, outgoing)


class Members:
    """The members that were met last, the oldest of them forgotten first."""

    def __init__(self) -> None:
        self._members: OrderedDict[str, Member] = OrderedDict()

    def recall(self, execution_id: str) -> Member | None:
        """What is known of a member."""
        return self._members.get(execution_id)

    def learn(self, execution_id: str, member: Member) -> None:
        """Keep what was found out."""
        self._members[execution_id] = member
        self._members.move_to_end(execution_id)
        if len(self._members) > MEMBERS_MAX:
            self._members.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._members.clear()

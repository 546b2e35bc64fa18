"""What a commit still owes to others: messages to deliver, and members of cancelled flows to cancel.

The rows of these indexes are the durable list. The engine sees to what a commit has added before
it answers; a duty of the scanners sees to the rest, and to what a crash left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowfabric.core.commands import CancelFlowMemberArgs, DeliverMessageArgs
from flowfabric.core.indexes import DUE_MEMBER_CANCEL, DUE_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowfabric.contracts.base import Command
    from flowfabric.stores.base import Commit


def deliver(member: str) -> DeliverMessageArgs:
    """The command for an entry of the messages that are due."""
    return DeliverMessageArgs(message_id=member)


def cancel_member(member: str) -> CancelFlowMemberArgs:
    """The command for an entry of the members that are to be cancelled."""
    return CancelFlowMemberArgs(member_id=member)


DELIVERIES: Final[dict[str, Callable[[str], Command[Any]]]] = {
    DUE_MESSAGE: deliver,
    DUE_MEMBER_CANCEL: cancel_member,
}


def owed_by(commit: Commit) -> list[Command[Any]]:
    """The commands that do at once what a commit has added to these indexes."""
    return [
        DELIVERIES[index](member)
        for index, _, sort, member in commit.rows_added
        if index in DELIVERIES and sort <= commit.now
    ]

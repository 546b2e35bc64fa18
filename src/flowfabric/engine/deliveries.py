"""What a commit still owes to others: messages, members of cancelled flows, headroom that returned.

The rows of these indexes are the durable list. The engine sees to what a commit has added before
it answers; a duty of the scanners sees to the rest, and to what a crash left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import msgspec

from flowfabric.contracts.base import Command
from flowfabric.core.commands import (
    CancelFlowMemberArgs,
    DeliverMessageArgs,
    ForgetGivenBackArgs,
    GiveAdmissionBackArgs,
    LookAfterWaitingArgs,
)
from flowfabric.core.indexes import DUE_GIVEN_BACK, DUE_HEADROOM, DUE_MEMBER_CANCEL, DUE_MESSAGE
from flowfabric.core.records import Message
from flowfabric.core.rules.transitions import CHANGED
from flowfabric.core.work import Envelope
from flowfabric.engine.headroom import look_after_waiting
from flowfabric.stores.base import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.core.work import Work
    from flowfabric.stores.base import Commit


class Aside(Protocol):
    """What an operation needs of the engine that a delivery runs on."""

    store: Store

    async def execute_unbounded(self, commands: Sequence[Command[Any]], *, actor: str) -> list[Any]:
        """Carry out commands that may concern any namespace."""


CarryOutAside: TypeAlias = "Callable[[Aside, Any, Envelope], Awaitable[object]]"


class Delivery(msgspec.Struct, frozen=True):
    """How an entry is seen to.

    What lies in two partitions takes two commands: one has the effect, and may be repeated; the
    other one, after it, removes the entry.
    """

    act: Callable[[str], Command[Any]]
    forget: Callable[[str], Command[Any]] | None = None
    carry_out: CarryOutAside | None = None
    """What carries the command out if it takes more than its rule."""


def deliver(member: str) -> DeliverMessageArgs:
    """The command for an entry of the messages that are due."""
    return DeliverMessageArgs(message_id=member)


def cancel_member(member: str) -> CancelFlowMemberArgs:
    """The command for an entry of the members that are to be cancelled."""
    return CancelFlowMemberArgs(member_id=member)


def give_back(member: str) -> GiveAdmissionBackArgs:
    """The command for an entry of the admissions that are not needed any more."""
    return GiveAdmissionBackArgs(given_back_id=member)


def forget_given_back(member: str) -> ForgetGivenBackArgs:
    """The command for such an entry once its quota policy knows."""
    return ForgetGivenBackArgs(given_back_id=member)


def look_after_some(member: str) -> LookAfterWaitingArgs:
    """The command for headroom that has returned. One page; a duty does the rest."""
    return LookAfterWaitingArgs(subject=member, pages=1)


DELIVERIES: Final[dict[str, Delivery]] = {
    DUE_MESSAGE: Delivery(deliver),
    DUE_MEMBER_CANCEL: Delivery(cancel_member),
    DUE_GIVEN_BACK: Delivery(give_back, forget_given_back),
    DUE_HEADROOM: Delivery(look_after_some, carry_out=look_after_waiting),
}


class Owed(msgspec.Struct, frozen=True, gc=False):
    """One entry, and how it is seen to."""

    index: str
    member: str

    @property
    def delivery(self) -> Delivery:
        """How it is seen to."""
        return DELIVERIES[self.index]


def news_of(works: Iterable[Work], now: int) -> list[Message]:
    """What has been decided about members of flows and the joins behind them have to learn at once."""
    return [
        record
        for work in works
        for record in work.writes.values()
        if isinstance(record, Message) and record.about == CHANGED and record.due_at <= now
    ]


def is_owed(index: str, sort: int, now: int) -> bool:
    """Whether a row stands for something that is seen to at once."""
    return index in DELIVERIES and sort <= now


def owed_by(commit: Commit) -> list[Owed]:
    """What a commit has added to these indexes and is due at once."""
    return [
        Owed(index, member)
        for index, _, sort, member in commit.rows_added
        if is_owed(index, sort, commit.now)
    ]

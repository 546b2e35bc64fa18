"""Commands and queries on their way to their answers.

A ticket is one command; those that were submitted together form a group and are answered together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowfabric import errors
from flowfabric.contracts.check import check
from flowfabric.core.registry import RULES
from flowfabric.core.work import Envelope, Work, WorkingSet

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.records import Key
    from flowfabric.core.registry import Rule

_NO_WORK: Final = Work(WorkingSet(), Envelope(request_id=""))


def first_reads(rule: Rule, command: Command[Any]) -> tuple[Key, ...]:
    """The records that a rule is sure to read, the subject first."""
    subject = rule.subject(command)
    return rule.reads(command) if subject is None else (subject, *rule.reads(command))


class Ticket:
    """One command on its way through a batch.

    Args:
        command: what is asked.
        rule: what decides it.
        envelope: what travels with it.
        group: what it was submitted with.
        error: why it is refused already, if it is.

    Attributes:
        subject: the record that the command is about, if it is about one.
    """

    __slots__ = (
        "_reads",
        "answer",
        "command",
        "conflicts",
        "envelope",
        "error",
        "follows",
        "group",
        "rule",
        "settled",
        "subject",
        "work",
    )

    def __init__(
        self,
        command: Command[Any],
        rule: Rule,
        envelope: Envelope,
        group: Group,
        error: Exception | None = None,
    ) -> None:
        self.command = command
        self.rule = rule
        self.envelope = envelope
        self.group = group
        self.conflicts = 0
        self.follows = False
        """Whether it delivers what another ticket of its batch owes. Nobody waits for its answer."""
        self.work: Work = _NO_WORK
        self.answer: Any = None
        self.error = error
        self.settled = False
        # One that is not well-formed may have no subject.
        self.subject: Key | None = rule.subject(command) if error is None else None
        self._reads: tuple[Key, ...] | None = None

    def first_reads(self) -> tuple[Key, ...]:
        """The records that the command is sure to read, the one it is about first."""
        if self._reads is None:
            reads = self.rule.reads(self.command)
            self._reads = reads if self.subject is None else (self.subject, *reads)
        return self._reads

    def settle(self, error: Exception | None = None) -> None:
        """Give the ticket its answer, or this error. What is settled stays as it is."""
        if self.settled:
            return
        self.settled = True
        self.error = error or self.error
        self.group.settle()


class Group:
    """Commands that were submitted together and are answered together.

    Args:
        future: gets the answers; None if nobody waits for them.
    """

    __slots__ = ("future", "open", "tickets")

    def __init__(self, future: asyncio.Future[list[Any]] | None = None) -> None:
        self.future = future
        self.tickets: list[Ticket] = []
        self.open = 0

    def start(self) -> list[Ticket]:
        """Begin to count. Returns the tickets that are not refused already; answers if none is left."""
        waiting = [ticket for ticket in self.tickets if ticket.error is None]
        self.open = len(waiting) or 1
        if not waiting:
            self.settle()
        return waiting

    def settle(self) -> None:
        """Count one ticket as done, and answer when all are."""
        self.open -= 1
        if self.open:
            return
        if self.future is not None and not self.future.done():
            self.future.set_result([ticket.error or ticket.answer for ticket in self.tickets])
        # They hold their group, and only the garbage collector would find them out.
        self.tickets = []


def group_of(
    asked: Sequence[tuple[Command[Any], Envelope]], future: asyncio.Future[list[Any]] | None = None
) -> Group:
    """A ticket for each command. One that is not well-formed is refused already.

    Args:
        asked: the commands with what travels with each.
        future: gets the answers; None if nobody waits for them.
    """
    group = Group(future)
    for command, envelope in asked:
        refusal: Exception | None = None
        try:
            check(command)
        except errors.FlowFabricError as error:
            refusal = error
        group.tickets.append(Ticket(command, RULES[type(command)], envelope, group, refusal))
    return group

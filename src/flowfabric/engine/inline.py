"""The same rules inside a transaction that somebody else began and will end.

There are no batches here, nobody is woken, and what a commit owes to other records is left to the
duties of the scanners: none of it is true before that transaction commits. Layers are left out for
the same reason. Nothing here waits for anything but the store, so over a connection that blocks
all of it runs to its end without an event loop.

The rule this module keeps: an act takes place as a whole, or it leaves the transaction as it was.
"""

from __future__ import annotations

import random
import secrets
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from flowfabric import errors
from flowfabric.contracts.check import check
from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.core.registry import RULES
from flowfabric.core.work import Envelope, WorkingSet
from flowfabric.engine.batches import BATCH_MAX
from flowfabric.engine.commits import build_commit
from flowfabric.engine.creating import create_once, has_key
from flowfabric.engine.deciding import decide_batch
from flowfabric.engine.tickets import Group, Ticket
from flowfabric.stores.base import Conflict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.stores.base import Borrowed

R = TypeVar("R")

_OUTDATED: Final = "the store was changed from outside its lock. Roll the transaction back and run it again."


class InlineEngine:
    """Carries out commands that rules alone answer, and creations.

    Args:
        store: the store, inside the transaction.
        namespace: the only namespace that the commands may see or change.
    """

    def __init__(self, store: Borrowed, namespace: str) -> None:
        self.store = store
        self.namespace = namespace

    @asynccontextmanager
    async def act(self) -> AsyncIterator[None]:
        """What is carried out inside takes place as a whole, or not at all.

        Raises:
            FlowFabricError: see ``Borrowed.begin``.
        """
        await self.store.begin()
        try:
            yield
        except BaseException:
            with suppress(errors.FlowFabricError):  # what went wrong first says more
                await self.store.undo()
            raise
        await self.store.keep()

    async def execute(self, command: Command[R], *, namespace: str | None = None) -> R:
        """Carry out one command inside ``act``.

        Raises:
            FlowFabricError: the refusal of the command's rule, or a fault of the store.
        """
        envelope = self._envelope()
        answer: Any
        if isinstance(command, CreateExecutionArgs) and has_key(command):
            check(command)
            answer = await create_once(self, command, envelope)
        else:
            [answer] = await self.decide([(command, envelope)])
        if isinstance(answer, Exception):
            raise answer
        outcome: R = answer
        return outcome

    async def execute_many(self, commands: Sequence[Command[R]]) -> list[R]:
        """Carry out many commands inside ``act``.

        Raises:
            FlowFabricError: the first refusal, or a fault of the store.
        """
        if any(isinstance(command, CreateExecutionArgs) and has_key(command) for command in commands):
            return [await self.execute(command) for command in commands]
        answers: list[R] = []
        for start in range(0, len(commands), BATCH_MAX):
            batch = commands[start : start + BATCH_MAX]
            for answer in await self.decide([(command, self._envelope()) for command in batch]):
                if isinstance(answer, Exception):
                    raise answer
                answers.append(answer)
        return answers

    async def decide(self, asked: Sequence[tuple[Command[Any], Envelope]]) -> list[Any]:
        """Have the rules decide some commands, and write what they changed.

        Returns:
            For each command its outcome, or the exception that refused it.
        """
        for command, _ in asked:
            check(command)
        tickets = [Ticket(command, RULES[type(command)], envelope, Group()) for command, envelope in asked]
        working_set = WorkingSet()
        await decide_batch(self.store, tickets, working_set)
        commit = build_commit([ticket.work for ticket in tickets], working_set)
        if commit is not None:
            try:
                await self.store.commit(commit)
            except Conflict as conflict:
                raise errors.TransactionOutdated(_OUTDATED) from conflict
        return [ticket.error or ticket.answer for ticket in tickets]

    def _envelope(self) -> Envelope:
        return Envelope(
            request_id=secrets.token_hex(16),
            namespace=self.namespace,
            random=random.random(),  # noqa: S311 - spreads retries, guards nothing
        )

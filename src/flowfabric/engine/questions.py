"""Queries: those that come up in one turn of the event loop share one load, and wait for no commit.

Some have to read a record before they know which others they need. What was written here lately mostly
tells that beforehand, so that one load will do; they are answered by what is loaded in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from flowfabric.core.work import Missing, Work, WorkingSet
from flowfabric.engine.deciding import ROUNDS_MAX
from flowfabric.engine.tickets import first_reads

if TYPE_CHECKING:
    from flowfabric.contracts.base import Command
    from flowfabric.core.records import Key
    from flowfabric.core.registry import Rule
    from flowfabric.core.work import Envelope
    from flowfabric.engine.recent import RecentRecords
    from flowfabric.stores.base import Store


class Questions:
    """Answers queries over one store, and tells what has just been written here what it has loaded."""

    def __init__(self, store: Store, recent: RecentRecords) -> None:
        self._store = store
        self._recent = recent
        self._open: list[Question] = []
        self._asking: asyncio.Task[None] | None = None
        self._asked_again: set[type[Command[Any]]] = set()
        """Queries of which the last one that was not foreseen needed more than it was sure to read."""

    async def answer(self, rule: Rule, command: Command[Any], envelope: Envelope) -> Any:
        """The answer to one query.

        Raises:
            FlowFabricError: the refusal of its rule, or the fault that stopped the load.
        """
        loop = asyncio.get_running_loop()
        question = Question(rule, command, envelope, loop.create_future())
        self._open.append(question)
        if self._asking is None:
            self._asking = loop.create_task(self._answer_all())
        return await question.future

    async def _answer_all(self) -> None:
        """Answer all queries that have come up, with one load for all of them."""
        questions, self._open, self._asking = self._open, [], None
        try:
            await self._load_and_answer(questions)
        except Exception as error:  # noqa: BLE001 - every asker gets the fault that stopped the load
            for question in questions:
                if not question.future.done():
                    question.future.set_exception(error)

    async def _load_and_answer(self, questions: list[Question]) -> None:
        working_set = WorkingSet()
        wanted = {key for question in questions for key in self._foreseen(question)}
        for _ in range(ROUNDS_MAX):
            loaded = await self._store.load(wanted)
            working_set.put_loaded(loaded.now, loaded.rows)
            self._recent.learn(loaded.rows)
            wanted = set()
            for question in questions:
                if missing := question.settle(working_set):
                    self._asked_again.add(type(question.command))
                    wanted.update(missing)
            if not wanted:
                return
        raise AssertionError(f"queries still ask for records after {ROUNDS_MAX} rounds: {sorted(wanted)[:3]}")

    def _foreseen(self, question: Question) -> set[Key]:
        """What a query is sure to read, and what it will read if nothing has changed since it was written."""
        kind = type(question.command)
        sure = set(question.first_reads())
        if kind not in self._asked_again:
            return sure
        foreseen = sure | question.foresee(WorkingSet(recent=self._recent))
        if foreseen == sure:  # looking ahead costs as much as answering, so not always in vain
            self._asked_again.discard(kind)
        return foreseen


class Question:
    """One query on its way to its answer."""

    __slots__ = ("command", "envelope", "future", "rule")

    def __init__(
        self, rule: Rule, command: Command[Any], envelope: Envelope, future: asyncio.Future[Any]
    ) -> None:
        self.rule = rule
        self.command = command
        self.envelope = envelope
        self.future = future

    def first_reads(self) -> tuple[Key, ...]:
        """The records that the query is sure to read."""
        return first_reads(self.rule, self.command)

    def foresee(self, remembered: WorkingSet) -> set[Key]:
        """What the query reads as far as what is remembered tells."""
        work = Work(remembered, self.envelope)
        with contextlib.suppress(Exception):  # it is no answer
            self.rule.decide(work, self.command)
        return work.reads

    def settle(self, working_set: WorkingSet) -> tuple[Key, ...]:
        """Answer, or return the keys of the records that are still missing."""
        if self.future.done():
            return ()
        try:
            self.future.set_result(self.rule.decide(Work(working_set, self.envelope), self.command))
        except Missing as missing:
            return missing.keys
        except Exception as refusal:  # noqa: BLE001 - one broken query must not fail those beside it
            self.future.set_exception(refusal)
        return ()

"""The loop that every duty runs in."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from flowfabric import errors
from flowfabric.engine.notifier import due_topic
from flowfabric.engine.scanners.duties import DUTIES, Duty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flowfabric.contracts.base import Command
    from flowfabric.engine.engine import Engine
    from flowfabric.engine.notifier import Subscription

log = logging.getLogger("flowfabric.scanners")

PAUSE_AFTER_FAULT_MS: Final = 1_000
STALLED_MS_MIN: Final = 60_000
"""A duty that has not looked for this long, and for three of its intervals, has stalled."""


class Scanners:
    """Runs the duties of one engine until stopped."""

    def __init__(self, engine: Engine, duties: Iterable[Duty] = DUTIES) -> None:
        self._engine = engine
        self.duties = tuple(duties)
        self._tasks: list[asyncio.Task[None]] = []
        self.cycles: dict[str, int] = {duty.name: 0 for duty in self.duties}
        """How many sweeps each duty has made."""
        self._swept_at: dict[str, float] = {}

    def start(self) -> None:
        """Begin. Starting twice is harmless."""
        if not self._tasks:
            self._swept_at = dict.fromkeys(self.cycles, time.monotonic())
            self._tasks = [
                asyncio.create_task(self._run(duty), name=f"flowfabric {duty.name}") for duty in self.duties
            ]

    async def stop(self) -> None:
        """Stop after the commands in flight."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def stalled(self) -> list[str]:
        """The duties that have ended, or have not finished a sweep for far too long."""
        ended = {task.get_name().rpartition(" ")[2] for task in self._tasks if task.done()}
        now = time.monotonic()
        return [
            duty.name
            for duty in self.duties
            if duty.name in ended
            or now - self._swept_at.get(duty.name, now) > max(3 * duty.interval_ms, STALLED_MS_MIN) / 1_000
        ]

    async def _run(self, duty: Duty) -> None:
        with self._engine.notifier.subscribe(due_topic(duty.index)) as changes:
            while True:
                try:
                    await self._sweep_and_wait(duty, changes)
                except errors.FlowFabricError as error:
                    self._tell_failed(duty)
                    log.warning("%s: the sweep failed, trying again: %s", duty.name, error)
                    await asyncio.sleep(PAUSE_AFTER_FAULT_MS / 1_000)
                except Exception:  # a duty that ended unseen would leave its work undone for good
                    self._tell_failed(duty)
                    log.exception("%s: the sweep failed unexpectedly", duty.name)
                    await asyncio.sleep(PAUSE_AFTER_FAULT_MS / 1_000)

    async def _sweep_and_wait(self, duty: Duty, changes: Subscription) -> None:
        began = time.perf_counter()
        upto = await self._engine.store.now() - duty.grace_ms
        entries = await sweep(self._engine, duty, upto=upto)
        self.cycles[duty.name] += 1
        self._swept_at[duty.name] = time.monotonic()
        if self._engine.observer is not None:
            self._engine.observer.swept(duty.name, entries, time.perf_counter() - began)
        await changes.wait(await self._until_next(duty, upto))

    def _tell_failed(self, duty: Duty) -> None:
        if self._engine.observer is not None:
            self._engine.observer.sweep_failed(duty.name)

    async def _until_next(self, duty: Duty, swept_upto: int) -> int:
        """Milliseconds until the next entry is due, at most the duty's interval.

        What became due while the sweep was running counts as well; what the sweep has seen and
        left where it was does not.
        """
        upcoming = await self._engine.store.read_index(
            duty.index, duty.scope, after=(swept_upto, "\U0010ffff"), limit=1
        )
        if not upcoming:
            return duty.interval_ms
        due_at = upcoming[0][0] + duty.grace_ms
        return max(1, min(duty.interval_ms, due_at - await self._engine.store.now()))


async def sweep(engine: Engine, duty: Duty, *, upto: int | None = None) -> int:
    """Do the duty once for everything that is due. Returns how many entries were due.

    The sweep moves on behind each page, so entries that stay put never starve the others.

    Args:
        engine: a running engine.
        duty: what to do.
        upto: the last instant that counts, instead of now.
    """
    if duty.whole is not None:
        return await duty.whole(engine)
    seen = 0
    after: tuple[int, str] | None = None
    if upto is None:
        upto = await engine.store.now() - duty.grace_ms
    while True:
        page = await engine.store.read_index(duty.index, duty.scope, after=after, upto=upto, limit=duty.page)
        if not page:
            return seen
        done = await _carry_out(engine, duty.name, duty.command, [member for _, member in page])
        if duty.forget is not None:
            await _carry_out(engine, duty.name, duty.forget, done)
        seen += len(page)
        after = page[-1]


async def _carry_out(
    engine: Engine, name: str, command: Callable[[str], Command[Any]], members: list[str]
) -> list[str]:
    """Issue one command for each member. Returns the members whose command was carried out."""
    answers = await engine.execute_unbounded([command(member) for member in members])
    for member, answer in zip(members, answers, strict=True):
        if isinstance(answer, Exception):
            log.warning("%s: %s: %s", name, member, answer)
    return [
        member for member, answer in zip(members, answers, strict=True) if not isinstance(answer, Exception)
    ]

"""Runs of the model: cases drawn by chance, cut down to a short program where one fails.

Each case begins with an empty store, is short, and follows from the run's seed and its own number.
What has been seen least is sent most.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from flowfabric.core.records import Execution, Flow, flow_identity
from flowfabric.core.registry import RULES
from flowfabric.engine.layers import operation_name
from flowfabric.engine.operations import operation_for
from flowfabric.engine.tickets import first_reads
from flowfabric.testing.bed import NAMESPACE, TTL_MS
from flowfabric.testing.model import generators as _generators  # noqa: F401 - registers them
from flowfabric.testing.model.coverage import Coverage
from flowfabric.testing.model.disturbing import disturb
from flowfabric.testing.model.draw import GENERATORS, OTHER_NAMESPACE, Draw, Generator, Lacking
from flowfabric.testing.model.lockstep import Divergence, Lockstep
from flowfabric.testing.model.steps import Pass, Restart, Send, Step, Together, sends_of, write_program
from flowfabric.testing.model.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.records import Key
    from flowfabric.testing.clock import ClockedStore

MakeStore: TypeAlias = "Callable[[Path], ClockedStore]"
"""Makes an unopened store that keeps what it holds below a folder."""

STEPS_PER_CASE: Final = 60
_PLAIN: Final = next(one for one in GENERATORS if one.name == "create_execution")
REMEDIES_MAX: Final = 6
"""How many commands may lead to one that is wanted."""
SHRINK_RUNS_MAX: Final = 300

DISTURBED: Final = 0.12
REPEATED: Final = 0.06
TOGETHER: Final = 0.08
FROM_ELSEWHERE: Final = 0.03
UNBOUNDED: Final = 0.05
PASSING: Final = 0.04
RESTARTING: Final = 0.01


class Case:
    """The steps of one case, one after the other."""

    def __init__(self, random: Random, coverage: Coverage, wanted: Iterable[str] = ()) -> None:
        self.world = World()
        self.draw = Draw(random, self.world)
        self._random = random
        self._coverage = coverage
        self._wanted = frozenset(wanted)
        self._goal: Generator | None = None
        self._sent: list[Send] = []

    def next(self, now: int) -> Step:
        """The next step, with the stores' time."""
        self.draw.now = now
        chance = self._random.random()
        if chance < RESTARTING:
            return Restart()
        if chance < RESTARTING + PASSING:
            milliseconds = self.draw.pick((1, 1_000, TTL_MS, 4 * TTL_MS))
            return Pass(milliseconds=milliseconds, duties=self.draw.chance(0.6))
        if self._sent and chance < RESTARTING + PASSING + REPEATED:
            return self.draw.pick(self._sent)
        step = self._towards_goal()
        if isinstance(step, Send) and self._sent and self.draw.chance(TOGETHER):
            return self._with_others(step)
        return step

    def _towards_goal(self) -> Step:
        """What is wanted, or what leads to it."""
        goal, self._goal = self._goal or self._choose(), None
        made = self._make(goal, REMEDIES_MAX)
        if isinstance(made, Pass):
            self._goal = goal
            return made
        command, way = made
        if way is not goal:
            self._goal = goal
        elif self.draw.chance(DISTURBED):
            command = disturb(self.draw, command)
        send = Send(
            command=command,
            request_id=f"model-{len(self._sent)}",
            namespace=None if way.unbounded else self._namespace_for(command),
        )
        self._sent.append(send)
        return send

    def _choose(self) -> Generator:
        """What was seen least is the most likely."""
        return self._random.choices(GENERATORS, [self._weight(one) for one in GENERATORS])[0]

    def _weight(self, generator: Generator) -> float:
        if generator.provokes is not None:
            return 1 / (1 + self._coverage.codes[generator.provokes.code]) ** 2 + 0.02
        kind = operation_name(generator.command_type)
        urgency = 20 if kind in self._wanted and not self._coverage.accepted[kind] else 1
        return urgency / (1 + self._coverage.accepted[kind]) + 0.002

    def _make(self, generator: Generator, depth: int) -> tuple[Command[Any], Generator] | Pass:
        """The command, or one that leads to it, with its generator."""
        try:
            return generator.make(self.draw), generator
        except Lacking as lacking:
            remedy = self.draw.pick(lacking.remedies)
            if isinstance(remedy, Pass):
                return remedy
            if depth == 0:
                return self.draw.creation(), _PLAIN
            ways = [one for one in GENERATORS if one.command_type is remedy and one.provokes is None]
            return self._make(self.draw.pick(ways), depth - 1)

    def _namespace_for(self, command: Command[Any]) -> str | None:
        """That of what the command is about, as a rule."""
        if type(command) in RULES and self.draw.chance(UNBOUNDED):
            return None
        if self.draw.chance(FROM_ELSEWHERE):
            return OTHER_NAMESPACE
        owner: Execution | Flow | None = None
        named: Any = getattr(command, "namespace", None)
        if isinstance(named, str):
            return named
        if hasattr(command, "execution_id"):
            owner = self.world.find(Execution, command.execution_id)
        elif hasattr(command, "flow_id"):
            owner = self.world.find(Flow, flow_identity(command.flow_id))
        return NAMESPACE if owner is None else owner.namespace

    def _with_others(self, send: Send) -> Together:
        """The command in one batch with some that were sent before, and so are sent again.

        What takes several commits shares no batch, and what changes something shares none with what
        only reads: in which order they meet is a matter of chance. So it is for what writes in one
        partition and reads what another command is about that writes in another one.
        """
        kind = _batched_as(send.command)
        if send.namespace is None or kind is None:
            return Together(sends=(send,))
        alike = [
            one
            for one in self._sent
            if one.namespace == send.namespace and one is not send and _batched_as(one.command) == kind
        ]
        sends = [send]
        for other in self.draw.some(alike, 3) if alike else ():
            if all(_keep_an_order(one.command, other.command) for one in sends):
                sends.append(other)
        return Together(sends=tuple(sends))


def _batched_as(command: Command[Any]) -> str | None:
    """Whether the command is decided in batches of reads or of changes; None if in several steps."""
    if operation_for(command) is not None:
        return None
    return "reads" if RULES[type(command)].is_query else "changes"


def _keep_an_order(one: Command[Any], other: Command[Any]) -> bool:
    """Whether every store decides these in their order if they are sent together, or the order is all one."""
    first, second = (first_reads(RULES[type(command)], command) for command in (one, other))
    if not (first and second) or _partition_of(first[0]) == _partition_of(second[0]):
        return True
    return set(first).isdisjoint(second)


def _partition_of(key: Key) -> str:
    """What the identity begins with, up to the end of its hash tag."""
    return key.partition("/")[2].partition("}")[0]


async def run_case(
    open_store: Callable[[], ClockedStore],
    case: Case,
    coverage: Coverage,
    steps: int,
) -> list[Step]:
    """Run one case. Returns what was done, up to and with what failed.

    Raises:
        Failed: the sides diverged.
    """
    program: list[Step] = []
    try:
        async with Lockstep(open_store) as both:
            for _ in range(steps):
                step = case.next(both.model.bed.clock.now_ms)
                program.append(step)
                answers, commits = await both.take(step)
                for commit in commits:
                    case.world.absorb(commit)
                case.world.events_trimmed = await both.model.store.trimmed_events()
                for send, answer in zip(sends_of(step), answers, strict=True):
                    coverage.note(send.command, answer)
                coverage.restarts += isinstance(step, Restart)
            await both.finish()
    except Divergence as divergence:
        raise Failed(program, divergence) from divergence
    finally:
        coverage.steps += len(program)
        coverage.cases += 1
        coverage.transitions += case.world.transitions
    return program


class Failed(AssertionError):
    """A program that makes the sides diverge."""

    def __init__(self, program: Sequence[Step], divergence: Divergence) -> None:
        super().__init__(f"{divergence}\n\n{write_program(program)}")
        self.program = list(program)
        self.divergence = divergence


async def run_model(
    make_store: MakeStore,
    folder: Path,
    *,
    seed: str,
    steps: int,
    steps_per_case: int = STEPS_PER_CASE,
    coverage: Coverage | None = None,
    wanted: Iterable[str] = (),
) -> Coverage:
    """Run cases until so many steps are taken.

    Args:
        make_store: makes an unopened store whose data lives below the folder it gets.
        folder: an empty folder, in which each case has one of its own.
        seed: everything that is drawn follows from it.
        steps: how many steps to take in all.
        steps_per_case: how many of them each case has, from an empty store on.
        coverage: of an earlier run, to go on from there.
        wanted: names of commands that are to be sent first.

    Raises:
        Failed: a case failed; its message is the shortest program that was found to fail.
    """
    seen = coverage or Coverage()
    upto = seen.steps + steps
    while seen.steps < upto:
        place = folder / f"case-{seen.cases}"
        place.mkdir()
        case = Case(Random(f"{seed}/{seen.cases}"), seen, wanted)
        try:
            await run_case(partial(make_store, place), case, seen, min(steps_per_case, upto - seen.steps))
        except Failed as failed:
            raise await shortest(make_store, folder, failed) from failed
    return seen


async def replay(make_store: MakeStore, folder: Path, program: Sequence[Step]) -> None:
    """Run a program again.

    Raises:
        Divergence: the sides differ.
    """
    async with Lockstep(partial(make_store, folder)) as both:
        for step in program:
            await both.take(step)
        await both.finish()


async def shortest(make_store: MakeStore, folder: Path, failed: Failed) -> Failed:
    """Take steps away, many at first and then fewer, as long as the rest still fails."""
    runs = 0
    size = len(failed.program) // 2
    while size:
        start = 0
        while start < len(failed.program) and runs < SHRINK_RUNS_MAX:
            rest = failed.program[:start] + failed.program[start + size :]
            runs += 1
            place = folder / f"shorter-{runs}"
            place.mkdir()
            try:
                await replay(make_store, place, rest)
                start += size
            except Divergence as divergence:
                failed = Failed(rest, divergence)
        size //= 2
    return failed

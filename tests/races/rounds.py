"""Rounds in which several processes do the same thing at once, and as many win as must.

The processes are real ones, each with an engine of its own on one store, and wait for each other
before every step. What they do, and what counts as winning, stands in ``kinds``.
"""

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from flowfabric import errors
from flowfabric.audit import audit
from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs
from flowfabric.engine.engine import Engine
from flowfabric.minting import new_uuid4
from flowfabric.stores.base import Store
from flowfabric.stores.postgres import PostgresStore
from flowfabric.urls import store_for
from tests.races.kinds import CONTESTANTS, KINDS, NAMESPACE, Asked, Round

PATIENCE_S = 60
BATCH = 100
ASKED_AGAIN_MAX = 100
KID, SECRET = "k1", "ab" * 32

Course = list[tuple[str, Round]]
"""The rounds of one run, each with the name of its kind."""


def store_at(place: str) -> Store:
    """The store of a URL; of a PostgreSQL server that does not wait for the disk, with ``#schema``."""
    url, _, schema = place.partition("#")
    return PostgresStore(url, schema=schema, required_level="D1") if schema else store_for(url)


async def race(place: str, kinds: Iterable[str], count: int) -> dict[str, list[int]]:
    """Let processes contend in so many rounds of each kind. Returns how many have won each of them."""
    winners: dict[str, list[int]] = {kind: [] for kind in kinds}
    async with Engine(store_at(place), namespace=NAMESPACE) as engine:
        await seed(engine)
        while left := count - min(map(len, winners.values())):
            course = await prepare(engine, winners, min(BATCH, left))
            won = await asyncio.to_thread(run_processes, place, course)
            note(winners, course, won)
            await check(engine, course)
        await require_sound(engine)
    return winners


async def race_in_one_process(
    stores: Sequence[Store], kinds: Iterable[str], count: int
) -> dict[str, list[int]]:
    """The same between engines of one process. The last store is the one that is prepared and audited."""
    winners: dict[str, list[int]] = {kind: [] for kind in kinds}
    engines = [Engine(store, namespace=NAMESPACE) for store in stores]
    for engine in engines:
        await engine.start()
    await seed(engines[-1])
    course = await prepare(engines[-1], winners, count)
    barrier = asyncio.Barrier(len(engines))
    won = await asyncio.gather(
        *(contend(engine, course, number, barrier.wait) for number, engine in enumerate(engines))
    )
    note(winners, course, won)
    await check(engines[-1], course)
    await require_sound(engines[-1])
    for engine in engines:
        await engine.stop()
    return winners


def expected_winners(kinds: Iterable[str], count: int) -> dict[str, list[int]]:
    """How many must win each round."""
    return {kind: [KINDS[kind].winners] * count for kind in kinds}


async def seed(engine: Engine) -> None:
    """Let the engine sign waitpoints."""
    await engine.execute(SeedWaitpointHmacSecretArgs(kid=KID, secret_hex=SECRET))


async def prepare(engine: Engine, kinds: Iterable[str], count: int) -> Course:
    """Make what so many rounds of each kind need."""
    return [(kind, found) for kind in kinds for found in await KINDS[kind].prepare(engine, count)]


async def check(engine: Engine, course: Course) -> None:
    """Make sure that what is stored is what the contestants were told."""
    for name in dict.fromkeys(kind for kind, _ in course):
        await KINDS[name].check(engine, [found for kind, found in course if kind == name])


async def require_sound(engine: Engine) -> None:
    """Make sure that every invariant holds."""
    report = await audit(engine)
    assert not report.violations, "\n".join(map(str, report.violations))


def note(winners: dict[str, list[int]], course: Course, won: list[list[bool]]) -> None:
    """Count the winners of each round."""
    for (kind, _), all_contestants in zip(course, zip(*won, strict=True), strict=True):
        winners[kind].append(sum(all_contestants))


async def contend(
    engine: Engine, course: Course, number: int, wait: Callable[[], Awaitable[Any]]
) -> list[bool]:
    """One contestant's part in all rounds: whether it has won each."""
    won = []
    for name, found in course:
        kind = KINDS[name]
        answer = None
        for make in kind.steps:
            asked = make(found, number)
            await wait()
            answer = await ask(engine, asked)
        won.append(answer is not None and kind.wins(answer))
    return won


async def ask(engine: Engine, asked: Asked) -> Any:
    """The answer, or the answers if several are asked for; None if it is refused."""
    if isinstance(asked, tuple):
        return await asyncio.gather(*(ask(engine, one) for one in asked))
    request_id = new_uuid4()
    for _ in range(ASKED_AGAIN_MAX):
        try:
            return await engine.execute(asked, request_id=request_id)
        except (errors.StateRefusal, errors.Contention) as refusal:
            if type(refusal) is not errors.Contention:
                return None
    raise AssertionError(f"{asked} met others {ASKED_AGAIN_MAX} times")


def contestant(place: str, course: Course, number: int, shared: Any) -> None:
    """What runs in a process of its own."""
    barrier, results = shared

    async def wait() -> None:
        barrier.wait(PATIENCE_S)

    async def run() -> list[bool]:
        async with Engine(store_at(place), namespace=NAMESPACE) as engine:
            return await contend(engine, course, number, wait)

    results.put((number, asyncio.run(run())))


def run_processes(place: str, course: Course) -> list[list[bool]]:
    """What each contestant has won."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(CONTESTANTS), context.Queue()
    processes = [
        context.Process(target=contestant, args=(place, course, number, (barrier, results)))
        for number in range(CONTESTANTS)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=PATIENCE_S * len(course)) for _ in processes)
    finally:
        for process in processes:
            process.join(PATIENCE_S)
    return [found[number] for number in range(CONTESTANTS)]

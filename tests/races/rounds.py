"""Rounds in which several processes do the same thing at once, and exactly one of them may win.

The processes are real ones, each with an engine of its own on one store, and wait for each other
before every round. What they do, and what counts as winning, stands in ``KINDS``.
"""

import asyncio
import multiprocessing
from collections.abc import Callable
from typing import Any

from flowfabric import errors
from flowfabric.audit import audit
from flowfabric.contracts.conditions import Single
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    CompleteExecutionArgs,
    CreateExecutionArgs,
    ExecutionCreated,
    FailExecutionArgs,
)
from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs
from flowfabric.contracts.leases import (
    ClaimGrantIssued,
    IssueClaimGrantArgs,
    LeaseWasRevoked,
    RevokeLeaseArgs,
)
from flowfabric.contracts.signals import DeliverSignalArgs, SignalAccepted
from flowfabric.contracts.suspensions import FreshWaitpoint, SuspendExecutionArgs
from flowfabric.core.commands import ClaimCandidateArgs
from flowfabric.engine.engine import Engine
from flowfabric.minting import new_execution_id, new_uuid4
from flowfabric.stores.postgres import PostgresStore
from flowfabric.urls import store_for

CONTESTANTS = 3
PATIENCE_S = 60
BATCH = 100
NAMESPACE, LANE, TTL_MS = "races", "lane", 3_600_000
KID, SECRET, KEY = "k1", "ab" * 32, "wpk:1"


def creation(execution_id, **fields):
    return CreateExecutionArgs(
        execution_id=execution_id,
        namespace=NAMESPACE,
        lane_id=LANE,
        execution_kind="kind",
        input_payload=b"",
        priority=0,
        creator_identity="races",
        **fields,
    )


def worker(number):
    return {"worker_id": f"worker-{number}", "worker_instance_id": f"worker-{number}-1"}


def claim(round_, number):
    return ClaimCandidateArgs(
        execution_id=round_["execution_id"],
        lane_id=LANE,
        **worker(number),
        worker_capabilities=frozenset(),
        lease_id=new_uuid4(),
        attempt_id=new_uuid4(),
        lease_ttl_ms=TTL_MS,
    )


def end(round_, number):
    """One completes, one fails, one cancels, all with the fence."""
    fields = {"execution_id": round_["execution_id"]}
    held = {**fields, "fence": round_["fence"], "attempt_index": 0}
    match number % 3:
        case 0:
            return CompleteExecutionArgs(**held)
        case 1:
            return FailExecutionArgs(**held, failure_reason="it broke", failure_category="permanent")
    fence = round_["fence"]
    parts = {"lease_id": fence.lease_id, "lease_epoch": fence.lease_epoch, "attempt_id": fence.attempt_id}
    return CancelExecutionArgs(**fields, **parts, reason="given up", source="lease_holder")


def signal(round_, number):
    """The same thing said by all."""
    return DeliverSignalArgs(
        execution_id=round_["execution_id"],
        waitpoint_id=round_["waitpoint_id"],
        waitpoint_token=round_["token"],
        signal_id=new_uuid4(),
        signal_name="go",
        signal_category="",
        source_type="races",
        source_identity="all",
        idempotency_key="once",
    )


def revoke(round_, number):
    return RevokeLeaseArgs(execution_id=round_["execution_id"], reason=f"by {number}")


def grant(round_, number):
    place = {"execution_id": round_["execution_id"], "lane_id": LANE}
    return IssueClaimGrantArgs(**place, **worker(number), grant_ttl_ms=60_000)


def create(round_, number):
    """Under one key, each with an id of its own."""
    return creation(new_execution_id(), idempotency_key=round_["execution_id"])


KINDS: dict[str, tuple[str, Callable[[dict[str, Any], int], Any], tuple[type, ...]]] = {
    "claim": ("created", claim, (object,)),
    "end": ("claimed", end, (object,)),
    "signal": ("suspended", signal, (SignalAccepted,)),
    "revoke": ("claimed", revoke, (LeaseWasRevoked,)),
    "grant": ("created", grant, (ClaimGrantIssued,)),
    "create": ("nothing", create, (ExecutionCreated,)),
}
"""What has to be there, what everybody does at once, and which answers are those of winners."""


def store_at(place):
    """The store of a URL; of a PostgreSQL server that does not wait for the disk, with ``#schema``."""
    url, _, schema = place.partition("#")
    return PostgresStore(url, schema=schema, required_level="D1") if schema else store_for(url)


async def prepare(engine, needed, count):
    """What so many rounds need."""
    rounds: list[dict[str, Any]] = [{"execution_id": new_execution_id()} for _ in range(count)]
    if needed == "nothing":
        return rounds
    await all_of(engine, [creation(found["execution_id"]) for found in rounds])
    if needed == "created":
        return rounds
    for found, answer in zip(
        rounds, await all_of(engine, [claim(found, 0) for found in rounds]), strict=True
    ):
        found["fence"] = answer.work.fence
    if needed == "claimed":
        return rounds
    suspensions = [suspension(found["execution_id"], found["fence"]) for found in rounds]
    for found, answer in zip(rounds, await all_of(engine, suspensions), strict=True):
        details = answer.details
        found["waitpoint_id"], found["token"] = details.waitpoint_id, details.waitpoint_token
    return rounds


def suspension(execution_id, fence):
    return SuspendExecutionArgs(
        execution_id=execution_id,
        fence=fence,
        attempt_index=0,
        suspension_id=new_uuid4(),
        waitpoints=(FreshWaitpoint(waitpoint_id=new_uuid4(), waitpoint_key=KEY),),
        resume_condition=Single(waitpoint_key=KEY),
    )


async def all_of(engine, commands):
    answers = await engine.execute_many(commands)
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert not refused, refused[0]
    return answers


async def contend(engine, kind, rounds, number, wait):
    """One contestant's part in all rounds: whether it has won each."""
    _, make, winning = KINDS[kind]
    won = []
    for round_ in rounds:
        command = make(round_, number)
        await wait()
        try:
            answer = await engine.execute(command)
        except (errors.StateRefusal, errors.Contention):
            answer = None
        won.append(answer is not None and isinstance(answer, winning))
    return won


def contestant(place, kind, rounds, number, shared):
    """What runs in a process of its own."""
    barrier, results = shared

    async def wait():
        barrier.wait(PATIENCE_S)

    async def run():
        async with Engine(store_at(place), namespace=NAMESPACE) as engine:
            return await contend(engine, kind, rounds, number, wait)

    results.put((number, asyncio.run(run())))


async def race(place, kind, count):
    """Let processes contend in so many rounds. Returns how many have won each of them."""
    async with Engine(store_at(place), namespace=NAMESPACE) as engine:
        await engine.execute(SeedWaitpointHmacSecretArgs(kid=KID, secret_hex=SECRET))
        winners: list[int] = []
        while len(winners) < count:
            rounds = await prepare(engine, KINDS[kind][0], min(BATCH, count - len(winners)))
            won = await asyncio.to_thread(run_processes, place, kind, rounds)
            winners += [sum(both) for both in zip(*won, strict=True)]
        report = await audit(engine)
        assert not report.violations, "\n".join(map(str, report.violations))
    return winners


def run_processes(place, kind, rounds):
    """What each contestant has won."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(CONTESTANTS), context.Queue()
    processes = [
        context.Process(target=contestant, args=(place, kind, rounds, number, (barrier, results)))
        for number in range(CONTESTANTS)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=PATIENCE_S) for _ in processes)
    finally:
        for process in processes:
            process.join(PATIENCE_S)
    return [found[number] for number in range(CONTESTANTS)]


async def race_in_one_process(stores, kind, count):
    """The same between engines of one process. The last store is the one that is prepared and audited."""
    engines = [Engine(store, namespace=NAMESPACE) for store in stores]
    for engine in engines:
        await engine.start()
    await engines[-1].execute(SeedWaitpointHmacSecretArgs(kid=KID, secret_hex=SECRET))
    rounds = await prepare(engines[-1], KINDS[kind][0], count)
    barrier = asyncio.Barrier(len(engines))
    won = await asyncio.gather(
        *(contend(engine, kind, rounds, number, barrier.wait) for number, engine in enumerate(engines))
    )
    report = await audit(engines[-1])
    assert not report.violations, "\n".join(map(str, report.violations))
    for engine in engines:
        await engine.stop()
    return [sum(both) for both in zip(*won, strict=True)]

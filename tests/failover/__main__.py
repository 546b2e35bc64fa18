"""The long form: ``make failovers``, or ``python -m tests.failover --rounds 5 --kind held``.

Each kind of change happens so many times on a cluster of three primaries and three replicas, under load.
Ends with 1 if something was lost that may not be, accepted twice, or left in disorder.
"""

import argparse
import asyncio
import collections
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from flowfabric.stores.valkey import ValkeyStore
from tests.failover.rounds import (
    SHARDS,
    Counts,
    held_back,
    in_background,
    kill_and_return,
    move_slot,
    place_for,
    primary_of,
    under_load,
)
from tests.valkey import Cluster

ROUNDS = 20
HELD = 50
"""How many executions are claimed twice in one round."""


Change = Callable[[Cluster, ValkeyStore], Callable[[], Awaitable[None]]]

KINDS: dict[str, tuple[Change, dict[str, Any], bool]] = {
    "kill": (lambda on, _: in_background(lambda: on.kill(primary_of(on))), {}, True),
    "kill-confirmed": (lambda on, _: kill_and_return(on), {"replicas": 1}, False),
    "switch": (lambda on, _: in_background(lambda: on.switch(primary_of(on))), {}, False),
    "move": (lambda on, store: in_background(lambda: move_slot(on, store)), {}, False),
}
"""What changes, with which options of the store, and whether something may be lost."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make failovers", description="Change a cluster under load.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each kind")
    parser.add_argument("--kind", action="append", choices=[*KINDS, "held"], help="all unless given")
    options = parser.parse_args()
    cluster = Cluster(replicas=1)
    try:
        kinds = options.kind or [*KINDS, "held"]
        return max(run(cluster, kind, options.rounds) for kind in kinds)
    finally:
        cluster.remove()


def run(cluster: Cluster, kind: str, rounds: int) -> int:
    """Some rounds of one kind. Returns the exit code."""
    if kind == "held":
        return _run_held(cluster, rounds)
    change, options, may_lose = KINDS[kind]
    total, recoveries, wrong = Counts(), [], 0
    for number in range(rounds):
        store = cluster.store(f"{kind}{number}{time.time_ns()}", shards=SHARDS, timeout_ms=5_000, **options)
        counts = asyncio.run(under_load(store, change(cluster, store)))
        cluster.heal()
        lost = counts.lost_creations + counts.lost_completions + counts.refused.total()
        wrong += bool(lost or counts.violations) if not may_lose else bool(counts.violations and not lost)
        recoveries.append(counts.recovered_s)
        for name in ("created", "completed", "lost_creations", "lost_completions", "reloads"):
            setattr(total, name, getattr(total, name) + getattr(counts, name))
        total.again += counts.again
        total.refused += counts.refused
        for violation in counts.violations:
            print(f"  {violation}")
    print(
        f"{kind}: {rounds} rounds, {total.created} created, {total.completed} completed, lost "
        f"{total.lost_creations} and {total.lost_completions}, repeated {dict(total.again)}, "
        f"refused {dict(total.refused)}, recovered in {max(recoveries):.2f} s at most, {wrong} wrong",
        flush=True,
    )
    return 1 if wrong else 0


def _run_held(cluster: Cluster, rounds: int) -> int:
    refused: collections.Counter[str] = collections.Counter()
    sent = repeated = twice = wrong = 0
    for number in range(rounds):
        place = place_for(cluster, f"held{number}{time.time_ns()}", apart=number % 2 == 0)
        store = cluster.store(place, shards=SHARDS, timeout_ms=5_000)
        stale = asyncio.run(held_back(store, cluster, HELD))
        cluster.heal()
        sent, repeated, twice = (
            sent + stale.sent,
            repeated + stale.epochs_repeated,
            twice + stale.accepted_twice,
        )
        refused += stale.refused
        wrong += bool(stale.violations or stale.accepted_twice or stale.refused.total() != stale.sent)
        for violation in stale.violations:
            print(f"  {violation}")
    print(
        f"held: {rounds} rounds, {repeated} epochs granted twice, {sent} stale calls, refused "
        f"{dict(refused)}, {twice} accepted twice, {wrong} wrong",
        flush=True,
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The long form of the races: ``make races``, or ``python -m tests.races --rounds 500``.

Processes contend behind a barrier on every store that processes can share. Ends with 1 if a round had
fewer winners than must win, or more.
"""

import argparse
import asyncio
import collections
import sys
import tempfile
import time
from collections.abc import Callable

from tests import postgres, valkey
from tests.races.kinds import KINDS
from tests.races.rounds import BATCH, race

ROUNDS = 10_000
PLACES: dict[str, Callable[[str], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/races.db?synchronous=NORMAL",
    "postgres": lambda folder: f"{postgres.server().url()}#races",
    "valkey": lambda folder: valkey.server().url(prefix="races"),
    "valkey-cluster": lambda folder: valkey.cluster().url(prefix="races"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make races", description="Let processes contend.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="for each store, all kinds together")
    parser.add_argument("--store", action="append", choices=list(PLACES), help="all unless given")
    options = parser.parse_args()
    return max(run(store, options.rounds) for store in options.store or PLACES)


def run(store: str, rounds: int) -> int:
    """Race on one store. Returns the exit code."""
    began = time.monotonic()
    found = {kind: collections.Counter[int]() for kind in KINDS}
    left = -(-rounds // len(KINDS))
    with tempfile.TemporaryDirectory() as folder:
        place = PLACES[store](folder)
        while left:
            part = min(BATCH, left)
            for kind, winners in asyncio.run(race(place, KINDS, part)).items():
                found[kind].update(winners)
            left -= part
            done = sum(map(collections.Counter.total, found.values()))
            print(f"{store}: {done} rounds, {time.monotonic() - began:.0f} s", flush=True)
    for kind, counts in found.items():
        print(f"{store} {kind}: {counts.total()} rounds, winners {dict(counts)}")
    wrong = sum(counts.total() - counts[KINDS[kind].winners] for kind, counts in found.items())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

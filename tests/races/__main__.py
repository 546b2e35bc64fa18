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
from tests.races.rounds import race

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
    wrong = 0
    count = -(-rounds // len(KINDS))
    with tempfile.TemporaryDirectory() as folder:
        for kind, one in KINDS.items():
            began = time.monotonic()
            winners = asyncio.run(race(PLACES[store](folder), [kind], count))[kind]
            counts = dict(collections.Counter(winners))
            wrong += len(winners) - winners.count(one.winners)
            seconds = time.monotonic() - began
            print(f"{store} {kind}: {len(winners)} rounds, winners {counts}, {seconds:.0f} s", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The long form of the races: ``make races``, or ``python -m tests.races --rounds 500``.

Processes contend behind a barrier on SQLite and on PostgreSQL. Ends with 1 if a round had no
winner, or more than one.
"""

import argparse
import asyncio
import collections
import sys
import tempfile
import time

from tests.postgres import server
from tests.races.rounds import KINDS, race

ROUNDS = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="make races", description="Let processes contend.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="for each store, all kinds together")
    parser.add_argument("--store", action="append", choices=["sqlite", "postgres"], help="both unless given")
    options = parser.parse_args()
    return max(run(store, options.rounds) for store in options.store or ["sqlite", "postgres"])


def run(store: str, rounds: int) -> int:
    """Race on one store. Returns the exit code."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            began = time.monotonic()
            winners = asyncio.run(race(place_of(store, folder), kind, -(-rounds // len(KINDS))))
            counts = dict(collections.Counter(winners))
            wrong += len(winners) - winners.count(1)
            seconds = time.monotonic() - began
            print(f"{store} {kind}: {len(winners)} rounds, winners {counts}, {seconds:.0f} s", flush=True)
    return 1 if wrong else 0


def place_of(store: str, folder: str) -> str:
    if store == "sqlite":
        return f"sqlite:///{folder}/races.db?synchronous=NORMAL"
    return f"{server().url()}#races"


if __name__ == "__main__":
    sys.exit(main())

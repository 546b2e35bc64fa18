"""The long run of the model: ``make model``, or ``python -m tests.model --store sqlite --seed 7``.

Prints the seed and what was seen. Ends with 1 if a store diverged from the memory store, or if the
run has not seen every command and every error code, and so proves less than it should.
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

from flowfabric.stores.memory import MemoryStore
from flowfabric.stores.sqlite import SqliteStore
from flowfabric.testing.model import Coverage, Failed, kinds_without_generator, run_model
from flowfabric.testing.model.run import MakeStore
from tests import postgres, valkey

STEPS = 50_000
PROGRESS_STEPS = 5_000

STORES: dict[str, MakeStore] = {
    # Against itself: what depends on anything but the commands and the clock comes out.
    "memory": lambda path: MemoryStore(),
    "sqlite": lambda path: SqliteStore(str(path / "work.db"), synchronous="NORMAL"),
    "postgres": lambda path: postgres.server().store(path, listen=False),
    "valkey": lambda path: valkey.server().store(path),
    "valkey-cluster": lambda path: valkey.cluster().store(path, shards=4),
}


def main() -> int:
    options = arguments()
    if missing := kinds_without_generator():
        print(f"commands without a generator: {', '.join(sorted(missing))}")
        return 1
    return max([run(store, options.seed, options.steps) for store in options.store])


def arguments():
    parser = argparse.ArgumentParser(prog="make model", description="Run the model against other stores.")
    parser.add_argument("--store", action="append", choices=sorted(STORES), help="all unless given")
    parser.add_argument("--steps", type=int, default=STEPS, help="how many for each store")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="to see a run again")
    options = parser.parse_args()
    options.store = options.store or sorted(STORES)
    return options


def run(name: str, seed: str, steps: int) -> int:
    """Run the model on one store. Returns the exit code."""
    print(f"{name}: seed {seed}", flush=True)
    began = time.monotonic()
    seen = Coverage()
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(run_in_parts(name, seed, steps, seen, Path(folder)))
        except Failed as failed:
            print(failed)
            return 1
    print(f"{name}: {seen.report()}\n{name}: {time.monotonic() - began:.0f} s, seed {seed}", flush=True)
    if seen.missing_kinds() or seen.missing_codes():
        print(f"{name}: not everything was seen, so this run is invalid")
        return 1
    return 0


async def run_in_parts(name: str, seed: str, steps: int, seen: Coverage, folder: Path) -> None:
    while seen.steps < steps:
        part = min(PROGRESS_STEPS, steps - seen.steps)
        await run_model(STORES[name], folder, seed=seed, steps=part, coverage=seen)
        print(f"{name}: {seen.steps} steps", flush=True)


if __name__ == "__main__":
    sys.exit(main())

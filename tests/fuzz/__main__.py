"""The long run of the fuzzer; see ``make help``.

python -m tests.fuzz --examples 60 --seed 1
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.runs import fuzz

CASES_LEAST = 20_000


def main() -> int:
    """Fuzz, and print how many requests were sent and what was found."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="Send a server what it should refuse.")
    parser.add_argument("--examples", type=int, default=60, help="random requests for each operation")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same seed, the same requests")
    parser.add_argument("--keep", type=Path, help="a folder for the report and the logs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = fuzz(folder, "coverage,fuzzing", args.examples, args.seed, workers=2)
    for line in (*found.failures, *found.logged):
        print(line)
    print(f"{found.cases} requests to {found.operations} operations, seed {args.seed}: ", end="")
    print(f"{len(found.failures)} kinds of failures, {len(found.logged)} faults in the log")
    return 1 if found.failures or found.logged or found.cases < CASES_LEAST else 0


if __name__ == "__main__":
    sys.exit(main())

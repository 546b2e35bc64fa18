"""``python -m bench [NAME ...]``: run benchmarks and print their figures.

Exits with 1 if a figure is on the wrong side of its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from pathlib import Path

import msgspec

from bench.scene import Figure, fresh_place, fresh_postgres, fresh_sqlite, fresh_valkey, fsync_us, task_us

NAMES = ("core", "throughput", "latency", "steps", "flows", "budget", "server", "growth", "processes")
VALKEY_NAMES = ("memory", "client", "share")
"""Those that only make sense on a Valkey server, and are only run when asked for."""


def main() -> int:
    """Run what was asked for, and say how it went."""
    arguments = _parse()
    print(f"Python {platform.python_version()}, payload 4 KiB")
    print(f"this machine: one asyncio task {task_us():.1f} us, one fdatasync {fsync_us():.0f} us")
    found: list[Figure] = []
    with _places(arguments) as fresh:
        for name in arguments.names or NAMES:
            with fresh() as url:
                figures = _run(name, url, uvloop=arguments.uvloop)
            if arguments.url is not None:  # the bounds are those of a store on this machine's disk
                figures = [msgspec.structs.replace(figure, floor=None, ceiling=None) for figure in figures]
            for figure in figures:
                print(_line(figure), flush=True)
            found += figures
    if arguments.json:
        Path(arguments.json).write_bytes(json.dumps([msgspec.to_builtins(f) for f in found]).encode())
    missed = [figure.name for figure in found if not figure.holds]
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


@contextlib.contextmanager
def _places(arguments: argparse.Namespace) -> Iterator[Callable[[], AbstractContextManager[str]]]:
    """What makes a fresh place in the store that was asked for."""
    if arguments.url is not None:
        print(arguments.url.partition("://")[0])
        yield partial(fresh_place, arguments.url)
    elif arguments.postgres:
        print("PostgreSQL on this machine, synchronous_commit=on")
        with fresh_postgres() as url:
            yield partial(fresh_place, url)
    elif arguments.valkey:
        print(f"Valkey on this machine, appendonly=yes, appendfsync={arguments.valkey}")
        with fresh_valkey(arguments.valkey) as url:
            yield partial(fresh_place, url)
    else:
        print("SQLite, synchronous=FULL")
        yield fresh_sqlite


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"one of {', '.join(NAMES)}, all when absent; with --valkey also {', '.join(VALKEY_NAMES)}",
    )
    parser.add_argument("--uvloop", action="store_true", help="use uvloop")
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--url",
        help="a PostgreSQL database or Valkey server to measure, in new schemas or below new prefixes that "
        "stay; a new SQLite file when absent",
    )
    place.add_argument(
        "--postgres", action="store_true", help="start a PostgreSQL server that waits for the disk"
    )
    place.add_argument(
        "--valkey",
        nargs="?",
        const="always",
        choices=("always", "everysec"),
        help="start a Valkey server that waits for the disk, always unless everysec is said",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to a file")
    return parser.parse_args()


def _run(name: str, url: str, *, uvloop: bool) -> list[Figure]:
    measure = import_module(f"bench.{name}").measure
    factory = import_module("uvloop").new_event_loop if uvloop else None
    with asyncio.Runner(loop_factory=factory) as runner:
        figures: list[Figure] = runner.run(measure(url))
    return figures


def _line(figure: Figure) -> str:
    bound = ""
    if figure.floor is not None:
        bound = f"floor {figure.floor:,.0f}"
    if figure.ceiling is not None:
        bound = f"ceiling {figure.ceiling:,.1f}"
    verdict = "" if not bound else ("ok" if figure.holds else "MISSED")
    return f"{figure.name:<44} {figure.value:>10,.2f} {figure.unit:<4} {bound:<16} {verdict:<7} {figure.note}"


if __name__ == "__main__":
    sys.exit(main())

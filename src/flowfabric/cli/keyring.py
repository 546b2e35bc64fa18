"""``keys``: the keys that sign waitpoint tokens. Their secrets are never shown.

A secret comes from ``FF_WAITPOINT_HMAC_SECRET``, or is made up here; it is never an argument,
because other users of the machine can read those.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any

from flowfabric.cli.exits import OK
from flowfabric.cli.output import print_json, print_note, print_table, shown_age
from flowfabric.cli.session import open_engine, run
from flowfabric.contracts.keyring import (
    ListWaitpointHmacKidsArgs,
    RotateWaitpointHmacSecretArgs,
    SecretAlreadySeeded,
    SecretRotated,
    SecretSeeded,
    SecretUnchanged,
    SeedWaitpointHmacSecretArgs,
)

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.keyring import WaitpointHmacKids


def manage_keys(arguments: Namespace) -> int:
    """Carry out ``keys``."""
    actions = {"list": _list, "seed": _seed, "rotate": _rotate}
    return run(actions[arguments.action](arguments))


async def _list(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        kids = await engine.execute(ListWaitpointHmacKidsArgs())
        now = await engine.now()
    if arguments.json:
        print_json(kids)
    else:
        _print_kids(kids, now)
    return OK


def _print_kids(kids: WaitpointHmacKids, now: int) -> None:
    if kids.current_kid is None:
        print_note("there is no key yet; a worker seeds one when it starts, or run: flowfabric keys seed")
        return
    rows = [[kids.current_kid, "signs and verifies", ""]]
    rows += [[old.kid, "verifies", shown_age(old.expires_at_ms, now)] for old in kids.verifying]
    print_table(["KEY", "USE", "ENDS"], rows, flexible=0)


async def _seed(arguments: Namespace) -> int:
    async with open_engine(arguments, create=True) as engine:
        outcome = await engine.execute(
            SeedWaitpointHmacSecretArgs(kid=arguments.kid or "k1", secret_hex=_secret())
        )
    return _report(outcome, as_json=arguments.json)


async def _rotate(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        outcome = await engine.execute(
            RotateWaitpointHmacSecretArgs(
                new_kid=arguments.kid or f"k-{secrets.token_hex(4)}",
                new_secret_hex=_secret(),
                grace_ms=arguments.grace,
            )
        )
    return _report(outcome, as_json=arguments.json)


def _secret() -> str:
    return os.environ.get("FF_WAITPOINT_HMAC_SECRET") or secrets.token_hex(32)


def _report(outcome: Any, *, as_json: bool) -> int:
    if as_json:
        print_json(outcome)
    else:
        print(_sentence(outcome))
    return OK


def _sentence(outcome: Any) -> str:
    match outcome:
        case SecretSeeded():
            return f"key {outcome.kid} signs from now on"
        case SecretAlreadySeeded():
            same = "the same" if outcome.same_secret else "another"
            return f"there is a key already: {outcome.kid}, with {same} secret; nothing was changed"
        case SecretUnchanged():
            return f"key {outcome.kid} was installed already; nothing was changed"
        case SecretRotated():
            return f"key {outcome.new_kid} signs from now on; {outcome.gc_count} ended keys were removed"
        case _:
            raise AssertionError(outcome)

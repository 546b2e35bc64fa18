"""Retention gives the memory back: afterwards there are as many keys as before, whatever has run."""

from pathlib import Path
from typing import Any, cast

import pytest

from flowfabric.contracts.limits import DAY_MS, OPERATOR_LOG_RETENTION_MS
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.stores.valkey import ValkeyStore
from flowfabric.testing.bed import Bed
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.conformance.budgets import new_budget, reporting
from flowfabric.testing.conformance.retention import ENDED, ended_flow, retire
from flowfabric.testing.conformance.scenarios import frame
from flowfabric.testing.conformance.situations import bring, seed_key, signal
from tests.valkey import cluster, server

EVERYTHING_MS = OPERATOR_LOG_RETENTION_MS + 3 * DAY_MS
"""What retention keeps longest: what operators did, and where each execution finds it."""

ROUNDS = 8
"""Of 25 executions each."""


async def all_keys(bed: Bed) -> set[str]:
    """Every key of the store, on every server."""
    store = cast("ValkeyStore", bed.store)
    found: set[str] = set()
    for asked in await store._client._servers.primaries():
        cursor = b"0"
        while True:
            scan = ("SCAN", cursor, "MATCH", f"{{{store.settings.prefix}:*", "COUNT", 1_000)
            [[cursor, keys]] = await asked.send([scan])
            found.update(key.decode() for key in keys)
            if cursor == b"0":
                break
    return found


async def run_everything(bed: Bed, budget_id: Any, number: int) -> None:
    """Executions that end in every way, with flows, frames, signals, budgets and idempotency keys."""
    for situation in ENDED:
        await bring(bed, situation, 2)
    await ended_flow(bed, "abcde")
    places = await bring(bed, "suspended", 2)
    for place in places:
        await bed.execute(signal(bed, place, idempotency_key=f"once {number}"))
    keyed = [
        await bed.create(
            idempotency_key=f"{number} {part}",
            policy=ExecutionPolicy(dedup_window_ms=1_000, budget_ids=(budget_id,)),
        )
        for part in range(6)
    ]
    for execution_id in [*keyed, *(place.execution_id for place in places)]:
        claim = await bed.claim(execution_id)
        await bed.execute(frame(claim))
        await bed.execute(reporting(budget_id, claim, 1, dedup_key=execution_id))
        await bed.complete(claim, result_payload=b"result")


class KeysOfValkey(StoreSuite):
    @pytest.mark.slow
    async def test_two_hundred_executions_leave_not_one_key(self, bed: Bed) -> None:
        await seed_key(bed)
        budget_id = await new_budget(bed, hard=1_000_000, reset_interval_ms=DAY_MS)
        await run_everything(bed, budget_id, -1)
        await retire(bed, EVERYTHING_MS)
        before = await all_keys(bed)
        for number in range(ROUNDS):
            await run_everything(bed, budget_id, number)
        assert len(await all_keys(bed)) > len(before) + 200
        await retire(bed, 3 * DAY_MS)
        kinds = {key.partition("}")[2].partition(":")[0] for key in await all_keys(bed) - before}
        assert kinds <= {"log", "told", "told_in"}, "only what operators did is kept for longer"
        await retire(bed, EVERYTHING_MS)
        assert await all_keys(bed) - before == set()


class TestServer(KeysOfValkey):
    def make_store(self, path: Path) -> ValkeyStore:
        return server().store(path)


class TestCluster(KeysOfValkey):
    def make_store(self, path: Path) -> ValkeyStore:
        return cluster().store(path, shards=4)

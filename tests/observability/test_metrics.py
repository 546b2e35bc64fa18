"""What is counted, under which names, and that nobody can make the names many."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowfabric import FlowFabric, Task, errors
from flowfabric.contracts.executions import CompleteExecutionArgs
from flowfabric.contracts.leases import ClaimBatchArgs, RenewLeaseArgs
from flowfabric.contracts.reads import ServerTimeArgs
from flowfabric.engine.engine import Engine
from flowfabric.observability.metrics import CLAIMS_MAX, NAMES_MAX, OTHER, Metrics, Names
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing.stores import FaultyStore
from tests.worker.stage import working


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def app(metrics: Metrics) -> AsyncIterator[FlowFabric]:
    app = FlowFabric(store=MemoryStore(), metrics=metrics)
    async with app:
        yield app


async def claim_one(app: FlowFabric, lane: str = "default") -> CompleteExecutionArgs:
    asked = ClaimBatchArgs(lanes=(lane,), worker_id="w", worker_instance_id="i", lease_ttl_ms=60_000)
    [work] = (await app.engine.execute(asked)).claims
    return CompleteExecutionArgs(
        execution_id=work.execution_id,
        fence=work.fence,
        attempt_index=work.attempt_index,
        source="lease_holder",
    )


async def test_every_command_is_counted_with_what_came_of_it(app: FlowFabric, metrics: Metrics) -> None:
    await app.engine.execute(ServerTimeArgs())
    assert value(metrics, "ff_operation_total", operation="server_time", outcome="ok") == 1
    assert value(metrics, "ff_operation_duration_seconds_count", operation="server_time") == 1
    renewal = RenewLeaseArgs(
        execution_id="{fp:7}:0f2b4b4e-6c0e-4a39-8f0e-2a6b9d8f1c22", attempt_index=0, lease_ttl_ms=1_000
    )
    with pytest.raises(errors.FlowFabricError) as refused:
        await app.engine.execute(renewal)
    assert value(metrics, "ff_error_total", kind=refused.value.code) == 1
    assert value(metrics, "ff_lease_renewal_total", outcome="error") == 1


async def test_an_execution_is_timed_from_its_submission_and_from_its_claim(metrics: Metrics) -> None:
    seconds = iter(range(0, 1_000, 5))
    slow = Metrics(clock=lambda: float(next(seconds)))
    async with FlowFabric(store=MemoryStore(), metrics=slow) as app:
        await app.submit("resize", lane="images")
        await app.engine.execute(await claim_one(app, "images"))
    assert value(slow, "ff_attempt_outcome_total", lane="images", outcome="ok") == 1
    assert value(slow, "ff_claim_from_grant_duration_seconds_count", lane="images") == 1
    assert value(slow, "ff_claim_to_complete_seconds_sum", lane="images") == 5
    whole = value(slow, "ff_submit_to_complete_seconds_sum", lane="images")
    assert whole is not None
    assert whole >= 5


async def test_a_completion_that_is_refused_is_no_end_of_an_attempt(
    app: FlowFabric, metrics: Metrics
) -> None:
    await app.submit("resize")
    done = await claim_one(app)
    await app.engine.execute(done)
    with pytest.raises(errors.FlowFabricError):
        await app.engine.execute(done, request_id="another", namespace="elsewhere")
    assert value(metrics, "ff_attempt_outcome_total", lane="default", outcome="ok") == 1
    assert value(metrics, "ff_attempt_outcome_total", lane="unknown", outcome="ok") is None


async def test_a_worker_counts_attempts_renewals_and_full_slots(metrics: Metrics) -> None:
    app = FlowFabric(store=MemoryStore(), metrics=metrics)

    @app.handler
    async def good(task: Task) -> None:
        """Do nothing."""

    @app.handler
    async def bad(task: Task) -> None:
        raise ValueError

    async with app, working(app, concurrency=1):
        runs = [await app.submit(good), await app.submit(bad)]
        for run in runs:
            await asyncio.gather(run.result(), return_exceptions=True)
    assert value(metrics, "ff_attempt_outcome_total", lane="default", outcome="ok") == 1
    assert value(metrics, "ff_attempt_outcome_total", lane="default", outcome="error") == 1
    at_capacity = value(metrics, "ff_worker_at_capacity_total")
    assert at_capacity is not None
    assert at_capacity >= 1


async def test_commits_are_counted_with_the_commands_they_carry(app: FlowFabric, metrics: Metrics) -> None:
    before = value(metrics, "ff_commit_total", outcome="committed") or 0
    await app.submit_many("resize", [None] * 10)
    assert value(metrics, "ff_commit_total", outcome="committed") == before + 1
    assert value(metrics, "ff_commit_batch_size_bucket", le="16.0") == before + 1


async def test_a_conflict_is_counted_and_not_taken_for_a_commit(metrics: Metrics) -> None:
    from flowfabric.stores.base import Commit, Conflict

    class Contended(FaultyStore):
        left = 1

        async def commit(self, commit: Commit) -> int | None:
            if self.left:
                self.left -= 1
                raise Conflict(frozenset(change.key for change in commit.changes))
            return await self.inner.commit(commit)

    async with Engine(Contended(MemoryStore()), observer=metrics) as engine:
        app = FlowFabric(store=engine.store)
        [command] = await app._submissions.creations(engine, "resize", [None], {})
        await engine.execute(command)
    assert value(metrics, "ff_commit_total", outcome="conflict") == 1
    assert value(metrics, "ff_commit_total", outcome="committed") == 1


async def test_the_store_says_what_its_commits_survive(app: FlowFabric, metrics: Metrics) -> None:
    assert value(metrics, "ff_store_durability_level", store="memory") == 0


def test_names_beyond_the_limit_are_counted_together() -> None:
    names = Names()
    assert [names.of(f"lane-{n}") for n in range(NAMES_MAX)] == [f"lane-{n}" for n in range(NAMES_MAX)]
    assert names.of("one-more") == OTHER
    assert names.of("lane-7") == "lane-7"


def test_a_path_is_counted_by_its_template_and_a_verb_by_its_name_if_it_is_one(metrics: Metrics) -> None:
    metrics.requested("BREW", None, 405, 0.1)
    assert value(metrics, "ff_http_requests_total", method=OTHER, path="unknown", status="405") == 1


async def test_claims_that_never_end_are_forgotten(app: FlowFabric, metrics: Metrics) -> None:
    await app.submit("resize")
    done = await claim_one(app)
    claim = metrics._claims[done.execution_id]
    metrics._claims.update({f"another-{n}": claim for n in range(CLAIMS_MAX - 1)})
    await app.submit("resize")
    await claim_one(app)
    assert len(metrics._claims) == CLAIMS_MAX
    assert done.execution_id not in metrics._claims


async def test_the_text_is_what_prometheus_reads(app: FlowFabric, metrics: Metrics) -> None:
    await app.submit("resize")
    families = {family.name for family in text_string_to_metric_families(metrics.render().decode())}
    assert {"ff_operation", "ff_commit", "ff_commit_batch_size", "ff_store_durability_level"} <= families


async def test_nothing_of_the_library_is_imported_until_it_is_asked_for() -> None:
    import subprocess
    import sys

    code = (
        "import sys, flowfabric, flowfabric.server, flowfabric.cli.serving, flowfabric.cli.working, "
        "flowfabric.remote; "
        "sys.exit(any(name.startswith(('prometheus_client', 'opentelemetry')) for name in sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.DEVNULL)
    assert await process.wait() == 0

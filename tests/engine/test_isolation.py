"""What a caller in one namespace learns about another one, and whose answer a request id gets: nothing."""

import pytest

from flowfabric import errors
from flowfabric.contracts.budgets import RecordSpendArgs
from flowfabric.contracts.executions import CreateExecutionArgs, ReplayExecutionArgs, SetExecutionTagArgs
from flowfabric.contracts.ids import budget_id_of, quota_policy_id_of
from flowfabric.contracts.quotas import CheckAdmissionArgs, ReleaseAdmissionArgs
from flowfabric.contracts.reads import ListExpiredLeasesArgs
from flowfabric.core.records import Reservation
from flowfabric.core.rules.creation import reservation_identity
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import Bed
from flowfabric.testing.bed import NAMESPACE, TTL_MS
from flowfabric.testing.conformance.admission import POLICY_NAME, quota_creation
from flowfabric.testing.conformance.budgets import NAME, budget_creation, reporting
from flowfabric.testing.conformance.scenarios import frame


@pytest.fixture
async def bed():
    async with Bed(MemoryStore()) as bed:
        yield bed
        await bed.check()


async def test_a_request_id_is_no_key_to_the_answers_of_another_namespace(bed):
    claim = await bed.start()
    await bed.complete(claim)
    replay = ReplayExecutionArgs(execution_id=claim.execution_id)
    first = await bed.execute(replay, request_id="r-1")
    assert await bed.unchanging(replay, request_id="r-1") == first
    refusal = await bed.refused(replay, request_id="r-1", namespace="other")
    assert isinstance(refusal, errors.ExecutionNotFound)


async def test_a_request_id_is_no_key_to_the_answers_of_a_stream(bed):
    appending = frame(await bed.start())
    first = await bed.execute(appending, request_id="r-1")
    assert await bed.unchanging(appending, request_id="r-1") == first
    refusal = await bed.refused(appending, request_id="r-1", namespace="other")
    assert isinstance(refusal, errors.ExecutionNotFound)


async def test_a_request_id_of_another_command_is_another_request(bed):
    creation = bed.creation()
    await bed.execute(creation, request_id="r-1")
    tagging = SetExecutionTagArgs(execution_id=creation.execution_id, key="team.name", value="blue")
    await bed.execute(tagging, request_id="r-1")
    assert (await bed.execution(creation.execution_id)).tags == {"team.name": "blue"}


async def test_a_key_in_another_namespace_is_refused_before_it_is_bound(bed):
    creation: CreateExecutionArgs = bed.creation(namespace="other", idempotency_key="once")
    assert isinstance(await bed.refused(creation, namespace=NAMESPACE), errors.InvalidInput)
    assert await bed.find(Reservation, reservation_identity("other", "once")) is None


async def test_a_page_of_lapsed_leases_is_filled_and_continued_without_those_of_others(bed):
    for namespace in ("other", NAMESPACE, "other", NAMESPACE, "other"):
        execution_id = await bed.create(namespace=namespace)
        await bed.execute(bed.claiming(execution_id), namespace=namespace)
        bed.clock.advance(1)
    bed.clock.advance(TTL_MS)
    first = await bed.execute(ListExpiredLeasesArgs(limit=1))
    assert first.next_cursor.endswith(first.entries[0].execution_id)
    second = await bed.execute(ListExpiredLeasesArgs(limit=1, cursor=first.next_cursor))
    assert len(second.entries) == 1
    assert second.next_cursor is None
    assert second.entries != first.entries


async def test_the_empty_namespace_sees_nothing():
    bed = Bed(MemoryStore(), namespace=None)
    async with bed:
        execution_id = await bed.create()
        refusal = await bed.refused(bed.claiming(execution_id), namespace="")
        assert isinstance(refusal, errors.ExecutionNotFound)


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "x" * 257])
async def test_a_request_id_or_actor_that_cannot_be_kept_is_refused_before_it_joins_a_batch(bed, name):
    for options in ({"request_id": name}, {"actor": name}):
        assert isinstance(await bed.refused(bed.creation(), **options), errors.InvalidInput)


@pytest.mark.parametrize("kind", ["worker", "system"])
async def test_whoever_may_see_all_namespaces_charges_no_budget_of_another_one(kind):
    async with Bed(MemoryStore(), namespace=None) as bed:
        budget_id = budget_id_of("other", NAME)
        await bed.execute(budget_creation(namespace="other", budget_id=budget_id))
        claim = await bed.start()
        command = {
            "worker": reporting(budget_id, claim, 1),
            "system": RecordSpendArgs(
                budget_id=budget_id, execution_id=claim.execution_id, deltas={"tokens": 1}
            ),
        }[kind]
        assert isinstance(await bed.refused(command), errors.BudgetNotFound)


async def test_whoever_may_see_all_namespaces_takes_no_place_in_a_policy_of_another_one():
    async with Bed(MemoryStore(), namespace=None) as bed:
        quota_policy_id = quota_policy_id_of("other", POLICY_NAME)
        await bed.execute(quota_creation(namespace="other", quota_policy_id=quota_policy_id, cap=1))
        execution_id = await bed.create()
        for command in (CheckAdmissionArgs, ReleaseAdmissionArgs):
            asking = command(quota_policy_id=quota_policy_id, execution_id=execution_id)
            assert isinstance(await bed.refused(asking), errors.ExecutionNotFound)

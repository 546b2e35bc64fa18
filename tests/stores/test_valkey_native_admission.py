"""Whom the server admits is whom the rules admit: the same answers, the same records."""

from pathlib import Path
from typing import Any

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import CompleteExecutionArgs
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.quotas import (
    AdmissionConcurrencyExceeded,
    AdmissionGranted,
    AdmissionRateExceeded,
    AdmissionReleased,
    AlreadyAdmitted,
    CheckAdmissionArgs,
    ReleaseAdmissionArgs,
)
from flowfabric.contracts.states import PublicState
from flowfabric.core.commands import AdmissionSettled, GiveAdmissionBackArgs, HoldBackArgs
from flowfabric.core.rules.quotas import ADMISSION_GRACE_MS, INSTANTS_PER_PIECE
from flowfabric.testing.bed import TTL_MS, Bed
from flowfabric.testing.conformance.admission import POLICY_NAME, WINDOW_MS, quota_creation
from tests.stores.pair import Pair, fenced
from tests.valkey import Server, server


async def quota(pair: Pair, **fields: Any) -> Any:
    """A quota policy in both beds."""
    return (await pair.ask(quota_creation(**fields))).quota_policy_id


async def waiting(pair: Pair, count: int, **fields: Any) -> list[str]:
    """Work that waits in both beds."""
    return [await pair.each(lambda bed: bed.create(**fields)) for _ in range(count)]


def asking(quota_policy_id: Any, execution_id: str, **fields: Any) -> CheckAdmissionArgs:
    return CheckAdmissionArgs(quota_policy_id=quota_policy_id, execution_id=execution_id, **fields)


def releasing(quota_policy_id: Any, execution_id: str) -> ReleaseAdmissionArgs:
    return ReleaseAdmissionArgs(quota_policy_id=quota_policy_id, execution_id=execution_id)


LIMITED = ExecutionPolicy(quota_policy_id=POLICY_NAME)


class Counted:
    """How many commands a function has decided since the block began."""

    def __init__(self, pair: Pair, name: str = "check_admission_and_record") -> None:
        self._pair, self._name = pair, name
        self._before = self._now()

    def _now(self) -> int:
        return self._pair.accepted.get(self._name, 0)

    @property
    def since(self) -> int:
        return self._now() - self._before


OTHER_ID = "00000000-0000-4000-8000-00000000abcd"
GRANTED, AGAIN, FULL = AdmissionGranted(), AlreadyAdmitted(), AdmissionConcurrencyExceeded()


@pytest.mark.parametrize(
    "limits",
    [{}, {"cap": 2}, {"rate": 2}, {"rate": 3, "cap": 2}, {"rate": 2, "cap": 3}],
    ids=lambda limits: " ".join(limits) or "no limits",
)
async def test_as_many_as_may_be_one_after_the_other(pair: Pair, limits: dict[str, int]) -> None:
    quota_id, counted = await quota(pair, **limits), Counted(pair)
    for number, execution_id in enumerate(await waiting(pair, 5)):
        pair.clock.advance(1_000)
        answer = await pair.ask(asking(quota_id, execution_id))
        assert (answer == GRANTED) == (number < min(limits.values(), default=5))
        await pair.compare()
    assert counted.since == 5


async def test_many_at_once_are_admitted_in_their_order(pair: Pair) -> None:
    quota_id, counted = await quota(pair, cap=4, rate=6), Counted(pair)
    ids = await waiting(pair, 8)
    answers = await pair.ask(*(asking(quota_id, one) for one in (*ids, ids[0], ids[7])))
    assert answers == [GRANTED] * 4 + [FULL] * 4 + [AGAIN, FULL]
    await pair.compare()
    await pair.ask(*(releasing(quota_id, one) for one in ids[:4]))
    answers = await pair.ask(*(asking(quota_id, one) for one in ids[4:]))
    assert answers == [GRANTED] * 2 + [AdmissionRateExceeded(retry_after_ms=WINDOW_MS)] * 2
    await pair.compare()
    assert counted.since == 14


async def test_two_policies_at_once_count_each_for_itself(pair: Pair) -> None:
    first = await quota(pair, cap=1)
    second = await quota(pair, cap=2, name="", quota_policy_id=OTHER_ID)
    counted = Counted(pair)
    ids = await waiting(pair, 3)
    answers = await pair.ask(*(asking(one, execution_id) for execution_id in ids for one in (first, second)))
    assert answers == [GRANTED, GRANTED, FULL, GRANTED, FULL, FULL]
    await pair.compare()
    assert counted.since == 6


async def test_a_window_slides(pair: Pair) -> None:
    quota_id, counted = await quota(pair, rate=3), Counted(pair)
    ids = await waiting(pair, 7)
    for execution_id in ids[:3]:
        assert await pair.ask(asking(quota_id, execution_id)) == GRANTED
        pair.clock.advance(1_000)
    late = await pair.ask(asking(quota_id, ids[3], jitter_ms=500))
    assert late == AdmissionRateExceeded(retry_after_ms=WINDOW_MS - 3_000 + 250)
    await pair.compare()
    pair.clock.advance(WINDOW_MS - 3_001)
    assert await pair.ask(asking(quota_id, ids[3])) == AdmissionRateExceeded(retry_after_ms=1)
    pair.clock.advance(1)
    answers = await pair.ask(*(asking(quota_id, one) for one in ids[3:]))
    assert answers == [GRANTED] + [AdmissionRateExceeded(retry_after_ms=1_000)] * 3
    await pair.compare()
    assert counted.since >= 8


async def test_a_clock_that_was_set_back_is_believed(pair: Pair) -> None:
    quota_id, counted = await quota(pair, rate=1), Counted(pair)
    first, second = await waiting(pair, 2)
    assert await pair.ask(asking(quota_id, first)) == GRANTED
    pair.clock.now_ms -= 86_400_000
    assert await pair.ask(asking(quota_id, second)) == GRANTED
    await pair.compare()
    assert counted.since == 2


async def test_a_ring_of_several_pieces(pair: Pair) -> None:
    rate = INSTANTS_PER_PIECE + 2
    quota_id, counted = await quota(pair, rate=rate), Counted(pair)
    for _ in range(2):
        creations = [pair.native.creation() for _ in range(rate + 1)]
        await pair.ask(*creations)
        questions = [asking(quota_id, creation.execution_id) for creation in creations]
        answers = await pair.ask(*questions)
        assert answers == [GRANTED] * rate + [AdmissionRateExceeded(retry_after_ms=WINDOW_MS)]
        assert await pair.ask(*questions) == [AGAIN] * rate + answers[rate:]
        await pair.compare()
        pair.clock.advance(WINDOW_MS)
    assert counted.since == 4 * (rate + 1)


async def test_more_at_once_than_two_pieces_take_are_left_to_the_rule(pair: Pair) -> None:
    rate = 3 * INSTANTS_PER_PIECE
    quota_id, counted = await quota(pair, rate=rate), Counted(pair)
    creations = [pair.native.creation() for _ in range(rate)]
    await pair.ask(*creations)
    questions = [asking(quota_id, creation.execution_id) for creation in creations]
    for some in (questions[:100], questions[100:]):
        assert await pair.ask(*some) == [GRANTED] * len(some)
    await pair.compare()
    assert 0 < counted.since < rate


async def test_each_claim_needs_an_admission_of_its_own(pair: Pair) -> None:
    quota_id, counted = await quota(pair, cap=1, rate=3), Counted(pair)
    first, other = await waiting(pair, 2, policy=LIMITED)
    for _ in range(3):
        assert await pair.ask(asking(quota_id, first)) == GRANTED
        claim = await pair.each(lambda bed: bed.claim(first))
        assert await pair.ask(asking(quota_id, first)) == AGAIN
        assert await pair.ask(asking(quota_id, other)) != GRANTED
        await pair.compare()
        await pair.each(lambda bed, claim=claim: bed.delay(claim, 1_000))
        await pair.compare()
        pair.clock.advance(1_000)
        await pair.compare()
    for execution_id in (first, other):
        late = await pair.ask(asking(quota_id, execution_id))
        assert late == AdmissionRateExceeded(retry_after_ms=WINDOW_MS - 3_000)
    await pair.compare()
    pair.clock.advance(WINDOW_MS - 3_000)
    assert await pair.ask(asking(quota_id, other), asking(quota_id, first)) == [
        GRANTED,
        AdmissionRateExceeded(retry_after_ms=1_000),
    ]
    await pair.compare()
    assert counted.since == 13


async def test_an_admission_for_an_earlier_claim_is_replaced(pair: Pair) -> None:
    quota_id = await quota(pair, cap=1)
    [execution_id] = await waiting(pair, 1)
    counted = Counted(pair)
    assert await pair.ask(asking(quota_id, execution_id)) == GRANTED
    # Its own policy names no quota, so the claim uses no admission and nobody gives this one back.
    claim = await pair.each(lambda bed: bed.claim(execution_id))
    assert isinstance(await pair.ask(asking(quota_id, execution_id)), errors.ExecutionNotEligible)
    pair.clock.advance(TTL_MS)
    await pair.each(_settle)
    assert await pair.ask(asking(quota_id, execution_id)) == GRANTED
    assert await pair.ask(asking(quota_id, execution_id)) == AGAIN
    await pair.compare()
    assert counted.since == 3
    assert claim.execution_id == execution_id


async def _settle(bed: Bed) -> None:
    await bed.settle()


async def test_an_admission_that_no_claim_uses_is_taken_back(pair: Pair) -> None:
    quota_id, counted = await quota(pair, cap=1), Counted(pair)
    first, second = await waiting(pair, 2)
    await pair.ask(asking(quota_id, first))
    pair.clock.advance(ADMISSION_GRACE_MS)
    await pair.compare()
    assert await pair.ask(asking(quota_id, second)) == GRANTED
    await pair.compare()
    assert counted.since == 2


async def test_the_same_request_gets_its_answer_again(pair: Pair) -> None:
    quota_id = await quota(pair, cap=1)
    first, second = await waiting(pair, 2)
    for execution_id, answer in ((first, GRANTED), (second, FULL)):
        for _ in range(2):
            found = await pair.ask(asking(quota_id, execution_id), request_ids=[f"for {execution_id}"])
            assert found == answer
            await pair.compare()
    # Only the last one is remembered, and nothing is counted twice.
    assert await pair.ask(asking(quota_id, first), request_ids=[f"for {first}"]) == AGAIN
    await pair.compare()


async def test_what_is_refused_or_unusual_is_left_to_the_rule(pair: Pair) -> None:
    quota_id, counted = await quota(pair, cap=2), Counted(pair)
    [execution_id] = await waiting(pair, 1)
    running = await pair.each(lambda bed: bed.start())
    elsewhere = await pair.each(lambda bed: bed.create(namespace="elsewhere"))
    for command, expected in (
        (asking(pair.native.new_id(), execution_id), errors.QuotaPolicyNotFound),
        (asking(quota_id, "{fp:4}:00000000-0000-4000-8000-00000000cccc"), errors.ExecutionNotFound),
        (asking(quota_id, elsewhere), errors.ExecutionNotFound),
        (asking(quota_id, running.execution_id), errors.ExecutionNotEligible),
        (asking(quota_id, execution_id, concurrency_cap=9), errors.InvalidQuotaSpec),
        (asking(quota_id, execution_id, concurrency_cap=2, rate_limit=0), AdmissionGranted),
    ):
        assert isinstance(await pair.ask(command), expected)
    foreign = await pair.ask(asking(quota_id, execution_id), namespace="elsewhere")
    assert isinstance(foreign, errors.QuotaPolicyNotFound)
    await pair.compare()
    assert counted.since == 0


async def test_what_becomes_of_the_work_in_the_same_batch_counts(tmp_path: Path) -> None:
    async with Pair(server(), tmp_path) as pair:
        quota_id = await quota(pair)
        claim = await pair.each(lambda bed: bed.start())
        question = asking(quota_id, claim.execution_id)
        ended = CompleteExecutionArgs(**fenced(claim, source="lease_holder"))
        before, _, behind = await pair.ask(question, ended, question)
        assert (before.details["lifecycle_phase"], behind.details["lifecycle_phase"]) == (
            "active",
            "terminal",
        )
        await pair.compare()


async def test_a_caller_without_bounds(pair: Pair) -> None:
    quota_id, counted = await quota(pair, cap=1), Counted(pair)
    ids = await waiting(pair, 2)
    assert [await pair.ask_unbounded(asking(quota_id, one)) for one in ids] == [GRANTED, FULL]
    elsewhere = await pair.each(lambda bed: bed.create(namespace="elsewhere"))
    assert isinstance(await pair.ask_unbounded(asking(quota_id, elsewhere)), errors.ExecutionNotFound)
    await pair.compare()
    assert counted.since == 2


async def test_what_a_server_refuses_whose_memory_is_full_the_rule_decides(
    spare: Server, tmp_path: Path
) -> None:
    async with Pair(spare, tmp_path) as pair:
        quota_id, counted = await quota(pair, cap=1), Counted(pair)
        roomy = await quota(pair, name="", quota_policy_id=OTHER_ID)
        first, second = await waiting(pair, 2)
        assert await pair.ask(asking(quota_id, first)) == GRANTED
        spare.configure("maxmemory", "1")
        assert await pair.ask(asking(quota_id, second)) == FULL
        assert isinstance(await pair.ask(asking(roomy, second)), errors.StoreFull)
        spare.configure("maxmemory", "0")
        assert await pair.ask(asking(roomy, second)) == GRANTED
        await pair.compare()
        assert counted.since == 2


async def test_an_answer_that_changes_nothing_counts_as_no_commit(pair: Pair) -> None:
    quota_id, [execution_id] = await quota(pair, cap=2), await waiting(pair, 1)
    assert await pair.ask(asking(quota_id, execution_id)) == GRANTED
    changes, counted = pair.store._changes, Counted(pair)
    assert changes is not None
    await changes._counted()
    assert await pair.ask(asking(quota_id, execution_id)) == AGAIN
    assert counted.since == 1
    # Else it would look like a commit of others that was not heard.
    assert not await changes._counted()


# Giving back


@pytest.mark.parametrize("limits", [{"cap": 2}, {"cap": 2, "rate": 3}, {"rate": 2}], ids=str)
async def test_admissions_are_given_back(pair: Pair, limits: dict[str, int]) -> None:
    quota_id = await quota(pair, **limits)
    first, second, third = await waiting(pair, 3)
    counted = Counted(pair, "release_admission")
    for execution_id in (first, second, third):
        await pair.ask(asking(quota_id, execution_id))
    await pair.compare()
    for execution_id in (first, second, second, third):
        pair.clock.advance(10)
        assert await pair.ask(releasing(quota_id, execution_id)) == AdmissionReleased()
        await pair.compare()
    await pair.ask(*(asking(quota_id, one) for one in (third, second, first)))
    await pair.ask(*(releasing(quota_id, one) for one in (first, first, second, third)))
    await pair.compare()
    assert counted.since == 8


async def test_the_same_release_is_answered_again(pair: Pair) -> None:
    quota_id, counted = await quota(pair, cap=1), Counted(pair, "release_admission")
    [execution_id] = await waiting(pair, 1)
    for _ in range(2):
        await pair.ask(asking(quota_id, execution_id))
        for _ in range(2):
            await pair.ask(releasing(quota_id, execution_id), request_ids=["once"])
            await pair.compare()
    assert counted.since == 2


async def test_releases_that_are_refused_are_refused_by_the_rule(pair: Pair) -> None:
    quota_id, counted = await quota(pair, cap=1), Counted(pair, "release_admission")
    [execution_id] = await waiting(pair, 1)
    elsewhere = await pair.each(lambda bed: bed.create(namespace="elsewhere"))
    for command, expected in (
        (releasing(pair.native.new_id(), execution_id), errors.QuotaPolicyNotFound),
        (releasing(quota_id, "{fp:4}:00000000-0000-4000-8000-00000000cccc"), errors.ExecutionNotFound),
        (releasing(quota_id, elsewhere), errors.ExecutionNotFound),
    ):
        assert isinstance(await pair.ask(command), expected)
    await pair.compare()
    assert counted.since == 0


@pytest.mark.parametrize("held_back", [0, 2])
async def test_the_end_of_a_lease_gives_the_admission_back(pair: Pair, held_back: int) -> None:
    quota_id, counted = await quota(pair, cap=3), Counted(pair, "release_admission")
    claims = []
    for execution_id in await waiting(pair, 3, policy=LIMITED):
        await pair.ask(asking(quota_id, execution_id))
        claims.append(await pair.each(lambda bed, one=execution_id: bed.claim(one)))
    others = await waiting(pair, held_back, policy=LIMITED)
    for execution_id in others:
        assert await pair.ask(asking(quota_id, execution_id)) == FULL
        await pair.ask(HoldBackArgs(execution_id=execution_id))
    await pair.compare()
    for claim in claims:
        pair.clock.advance(5)
        await pair.each(lambda bed, claim=claim: bed.complete(claim))
        await pair.compare()
    for bed in (pair.native, pair.ruled):
        assert await bed.store.list_keys("given_back/") == []
        assert all([await bed.state(one) == PublicState.WAITING for one in others])
    assert counted.since == 3


async def test_what_was_given_back_late_leaves_a_newer_admission(pair: Pair) -> None:
    """The message is found once more by the scanners when the work has been admitted again."""
    quota_id, counted = await quota(pair, cap=1), Counted(pair, "release_admission")
    [execution_id] = await waiting(pair, 1, policy=LIMITED)
    await pair.ask(asking(quota_id, execution_id))
    claim = await pair.each(lambda bed: bed.claim(execution_id))
    for bed in (pair.native, pair.ruled):
        with bed.nothing_delivered():
            await bed.delay(claim, 1)
    [message] = await pair.native.store.list_keys("given_back/")
    command = GiveAdmissionBackArgs(given_back_id=message.partition("/")[2])
    assert await pair.ask_unbounded(command) == AdmissionSettled(action="released")
    assert await pair.ask_unbounded(command) == AdmissionSettled(action="kept")
    pair.clock.advance(1)
    await pair.each(_settle)
    assert await pair.ask(asking(quota_id, execution_id)) == GRANTED
    assert await pair.ask_unbounded(command) == AdmissionSettled(action="gone")
    await pair.compare()
    assert counted.since == 3

"""What the server decides is what the rules decide: the same answers, the same records."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowfabric import errors
from flowfabric.contracts.base import Outcome
from flowfabric.contracts.blocking import PauseExecutionArgs
from flowfabric.contracts.conditions import Composite, Count, CountKind
from flowfabric.contracts.executions import (
    CompleteExecutionArgs,
    ExecutionCompleted,
    ExecutionCreated,
    ExecutionDuplicate,
    FailExecutionArgs,
    ReplayExecutionArgs,
    SetExecutionTagArgs,
)
from flowfabric.contracts.ids import LeaseFence
from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs
from flowfabric.contracts.lanes import SetLaneStateArgs
from flowfabric.contracts.leases import IssueClaimGrantArgs, LeaseRenewed, RenewLeaseArgs
from flowfabric.contracts.policy import (
    ExecutionPolicy,
    RetryPolicy,
    RoutingRequirements,
    StreamPolicy,
    TimeoutPolicy,
)
from flowfabric.contracts.quotas import CheckAdmissionArgs, ReleaseAdmissionArgs
from flowfabric.contracts.retention import TrimRetentionArgs
from flowfabric.contracts.signals import DeliverSignalArgs
from flowfabric.contracts.states import LaneState
from flowfabric.contracts.streams import (
    AppendFrameArgs,
    BestEffortMode,
    DurableMode,
    FrameAppended,
    SummaryMode,
)
from flowfabric.contracts.suspensions import (
    CreatePendingWaitpointArgs,
    FreshWaitpoint,
    SuspendExecutionArgs,
)
from flowfabric.core.commands import CandidateClaimed, ClaimCandidateArgs
from flowfabric.stores.valkey.native.signatures import SIGNATURES
from flowfabric.testing import differences
from flowfabric.testing.bed import KIND, LANE, NAMESPACE, TTL_MS, Bed
from flowfabric.testing.conformance.admission import quota_creation
from flowfabric.testing.conformance.budgets import budget_creation, reporting
from flowfabric.testing.conformance.flows import graph
from tests.stores.monitor import monitored
from tests.stores.pair import Pair, fenced
from tests.valkey import server


async def started(pair: Pair, **fields: Any) -> Any:
    """Work that was claimed in both beds."""
    return await pair.each(lambda bed: bed.start(**fields))


def completing(claim: Any, **fields: Any) -> CompleteExecutionArgs:
    return CompleteExecutionArgs(**fenced(claim, source="lease_holder", **fields))


RETRIES = ExecutionPolicy(retry_policy=RetryPolicy(max_retries=3))
TIMES_OUT = ExecutionPolicy(timeout_policy=TimeoutPolicy(attempt_timeout_ms=600_000))
CAPABLE = ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=("gpu", "llm")))


async def created(pair: Pair, **fields: Any) -> str:
    """Work that waits in both beds."""
    return str(await pair.each(lambda bed: bed.create(**fields)))


def renewing(claim: Any, **fields: Any) -> RenewLeaseArgs:
    return RenewLeaseArgs(**fenced(claim, **{"lease_ttl_ms": TTL_MS, **fields}))


class TestCreate:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"priority": -5},
            {"priority": 12_345, "tags": {"crew.team": "blue", "crew.name": "é"}},
            {"payload_encoding": "json", "execution_kind": "other", "creator_identity": ""},
            {"input_payload": b""},
            {"input_payload": b'{"a":[]}\x00\xff' * 10_000},
            {"execution_deadline_at": 2**53 - 1},
            {"policy": CAPABLE},
            {"policy": ExecutionPolicy(priority=3)},
            {"policy": TIMES_OUT, "execution_deadline_at": 1_800_000_000_000},
            {"policy": ExecutionPolicy(stream_policy=StreamPolicy(retention_ttl_ms=2**40))},
        ],
        ids=lambda fields: " ".join(fields) or "plain",
    )
    async def test_work_that_can_be_claimed_at_once(self, pair: Pair, fields: dict[str, Any]) -> None:
        await created(pair)  # so that the lane is known
        assert "create_execution" not in pair.accepted
        pair.clock.advance(10)
        command = pair.native.creation(**fields, execution_id="{fp:4}:00000000-0000-4000-8000-00000000cccc")
        ids = ["asked-again"]
        first = await pair.ask(command, request_ids=ids)
        assert isinstance(first, ExecutionCreated)
        await pair.compare()
        assert await pair.ask(command, request_ids=ids) == first
        assert isinstance(await pair.ask(command), ExecutionDuplicate)
        await pair.compare()
        assert pair.accepted["create_execution"] == 1

    async def test_what_is_unusual_is_left_to_the_rule(self, pair: Pair) -> None:
        await created(pair)
        limits = TimeoutPolicy(execution_deadline_ms=60_000)
        for fields in (
            {"delay_until": pair.clock.now_ms + 1},
            {"delay_until": pair.clock.now_ms - 1},
            {"policy": ExecutionPolicy(delay_until=pair.clock.now_ms + 1)},
            {"policy": ExecutionPolicy(timeout_policy=limits)},
            {"policy": ExecutionPolicy(budget_ids=("team",))},
            {"idempotency_key": "once"},
            {"lane_id": "elsewhere"},
            {"namespace": "elsewhere"},
        ):
            execution_id = await pair.each(lambda bed: _same(bed.new_execution_id()))
            await pair.ask(pair.native.creation(**fields, execution_id=execution_id))
        await pair.compare()
        assert "create_execution" not in pair.accepted

    async def test_a_lane_that_was_drained_meanwhile_takes_no_work(self, pair: Pair) -> None:
        await created(pair)
        for state, expected in (("draining", errors.LaneClosed), ("active", ExecutionCreated)):
            await pair.ask(SetLaneStateArgs(namespace=NAMESPACE, lane_id=LANE, state=LaneState(state)))
            execution_id = await pair.each(lambda bed: _same(bed.new_execution_id()))
            answer = await pair.ask(pair.native.creation(execution_id=execution_id))
            assert isinstance(answer, expected)
        await pair.compare()

    async def test_one_of_two_with_the_same_id_is_created(self, pair: Pair) -> None:
        await created(pair)
        execution_id = await pair.each(lambda bed: _same(bed.new_execution_id()))
        both = [pair.native.creation(execution_id=execution_id, priority=place) for place in range(2)]
        answers = await pair.ask(*both)
        assert [type(answer) for answer in answers] == [ExecutionCreated, ExecutionDuplicate]
        await pair.compare()


def appending(claim: Any, **fields: Any) -> AppendFrameArgs:
    named = {
        "execution_id": claim.execution_id,
        "attempt_index": claim.attempt_index,
        "lease_id": claim.fence.lease_id,
        "lease_epoch": claim.fence.lease_epoch,
        "attempt_id": claim.fence.attempt_id,
        "frame_type": "token",
        "payload": b"Hello",
    }
    return AppendFrameArgs(**(named | fields))


OTHER_ID = "00000000-0000-4000-8000-00000000dddd"
KEEPS_FEW = ExecutionPolicy(stream_policy=StreamPolicy(retention_maxlen=3))
KEEPS_ALL = ExecutionPolicy(stream_policy=StreamPolicy(retention_maxlen=0))


class TestAppend:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"payload": b""},
            {"payload": bytes(range(256)) * 256, "max_payload_bytes": 65_536},
            {"payload": b"x" * 255},
            {"timestamp": 1_800_000_000_000, "encoding": "base64", "source": "tool"},
            {"metadata_json": '{"é": 1}', "correlation_id": "c-1", "frame_type": "step é"},
            {"retention_maxlen": 2},
            {"retention_maxlen": 0},
        ],
        ids=lambda fields: " ".join(fields) or "plain",
    )
    @pytest.mark.parametrize("policy", [None, KEEPS_FEW, KEEPS_ALL], ids=["no policy", "few", "all"])
    async def test_durable_frames(
        self, pair: Pair, fields: dict[str, Any], policy: ExecutionPolicy | None
    ) -> None:
        claim = await started(pair, policy=policy)
        for number in range(5):
            pair.clock.advance(number % 2)
            answer = await pair.ask(appending(claim, **fields))
            assert isinstance(answer, FrameAppended)
            assert answer.frame_count == number + 1
        await pair.compare()
        assert pair.accepted["append_frame"] == 5

    async def test_a_default_window_runs_over_by_its_slack(self, pair: Pair) -> None:
        policy = ExecutionPolicy(stream_policy=StreamPolicy(retention_maxlen=250))
        claim = await started(pair, policy=policy)
        for _ in range(3):
            await pair.ask(*(appending(claim, payload=b"%d" % number) for number in range(90)))
            await pair.compare()
        assert pair.accepted["append_frame"] == 270

    async def test_a_workers_policy_says_how_many_are_kept(self, pair: Pair) -> None:
        await started(pair)
        execution_id = await created(pair)
        before = pair.accepted.get("claim_execution", 0)
        claim = await pair.each(lambda bed: bed.claim(execution_id, policies={KIND: KEEPS_FEW}))
        for _ in range(5):
            await pair.ask(appending(claim))
        await pair.compare()
        assert pair.accepted["append_frame"] == 5
        assert pair.accepted["claim_execution"] == before + 1

    async def test_frames_on_their_way_together_keep_their_order(self, pair: Pair) -> None:
        first, second = await started(pair), await started(pair)
        frames = [appending(claim, payload=b"%d" % place) for place in range(9) for claim in (first, second)]
        answers = await pair.ask(*frames)
        assert [answer.frame_count for answer in answers[::2]] == list(range(1, 10))
        await pair.compare()
        assert pair.accepted["append_frame"] == 18

    async def test_a_stream_of_several_kinds_of_frames_keeps_its_order(self, pair: Pair) -> None:
        claim = await started(pair)
        modes = [DurableMode(), SummaryMode(), DurableMode(), BestEffortMode(ttl_ms=1_000), DurableMode()]
        await pair.ask(*(appending(claim, mode=mode, payload=b'{"a": 1}') for mode in modes))
        assert pair.accepted["append_frame"] == 1
        await pair.compare()
        for mode in modes:
            pair.clock.advance(1)
            await pair.ask(appending(claim, mode=mode, payload=b'{"b": 2}'))
        await pair.compare()
        assert pair.accepted["append_frame"] == 4

    async def test_frames_whose_answers_were_lost_are_written_once(self, pair: Pair) -> None:
        claim = await started(pair)
        ids = [f"asked-{number}" for number in range(12)]
        first = [await pair.ask(appending(claim), request_ids=[one]) for one in ids]
        assert [await pair.ask(appending(claim), request_ids=[one]) for one in ids[3:]] == first[3:]
        await pair.compare()
        # Eight besides the last one are remembered, so this is another frame.
        assert (await pair.ask(appending(claim), request_ids=ids[:1])).frame_count == 13
        await pair.compare()
        assert pair.accepted["append_frame"] == 13

    async def test_whatever_else_is_done_with_the_work_its_frames_are_written(self, pair: Pair) -> None:
        claim = await started(pair)
        await pair.ask(SetExecutionTagArgs(execution_id=claim.execution_id, key="crew.team", value="red"))
        await pair.ask(appending(claim))
        await pair.ask(renewing(claim))
        await pair.ask(appending(claim))
        await pair.compare()
        assert pair.accepted["append_frame"] == 2

    async def test_what_is_refused_is_refused_by_the_rule(self, pair: Pair) -> None:
        claim = await started(pair)
        await pair.ask(appending(claim))
        refused = {
            errors.StaleOwnerCannotAppend: [
                appending(claim, lease_id=OTHER_ID),
                appending(claim, lease_epoch=7),
                appending(claim, attempt_id=OTHER_ID),
                appending(claim, attempt_index=1),
            ],
            errors.RetentionLimitExceeded: [
                appending(claim, payload=b"123", max_payload_bytes=2),
                appending(claim, payload=b"x" * 65_537),
            ],
            errors.ExecutionNotFound: [
                appending(claim, execution_id="{fp:4}:00000000-0000-4000-8000-00000000cccc")
            ],
        }
        before = await pair.native.dump()
        for error, commands in refused.items():
            for command in commands:
                assert isinstance(await pair.ask(command), error)
        pair.clock.advance(TTL_MS)
        assert isinstance(await pair.ask(appending(claim)), errors.StaleOwnerCannotAppend)
        assert not differences(before, await pair.native.dump())
        await pair.compare()
        assert pair.accepted["append_frame"] == 1

    async def test_a_stream_is_closed_with_its_attempt(self, pair: Pair) -> None:
        claim = await started(pair)
        await pair.ask(appending(claim))
        await pair.ask(completing(claim))
        assert isinstance(await pair.ask(appending(claim)), errors.StreamClosed)
        await pair.compare()


class TestRenew:
    @pytest.mark.parametrize("ttl_ms", [1, TTL_MS, 86_400_000])
    async def test_a_lease_that_is_held(self, pair: Pair, ttl_ms: int) -> None:
        claim = await started(pair, policy=TIMES_OUT, execution_deadline_at=1_800_000_000_000)
        pair.clock.advance(TTL_MS - 1)
        ids = ["asked-again"]
        first = await pair.ask(renewing(claim, lease_ttl_ms=ttl_ms), request_ids=ids)
        assert isinstance(first, LeaseRenewed)
        await pair.compare()
        assert await pair.ask(renewing(claim, lease_ttl_ms=ttl_ms), request_ids=ids) == first
        await pair.ask(renewing(claim, lease_ttl_ms=1))
        await pair.compare()
        await pair.ask(completing(claim, result_payload=b"r"))
        await pair.compare()
        assert pair.accepted["renew_lease"] == 2

    async def test_whatever_the_work_waits_for_its_lease_is_renewed(self, pair: Pair) -> None:
        claim = await started(pair)
        for command in (
            SeedWaitpointHmacSecretArgs(kid="k1", secret_hex="1f" * 32),
            CreatePendingWaitpointArgs(**_waiting(claim)),
            renewing(claim),
        ):
            assert isinstance(await pair.ask(command), Outcome)
        await pair.compare()
        assert pair.accepted["renew_lease"] == 1

    async def test_what_is_refused_or_unusual_is_left_to_the_rule(self, pair: Pair) -> None:
        claim = await started(pair)
        renamed = await started(pair)
        await pair.ask(SetExecutionTagArgs(execution_id=renamed.execution_id, key="crew.team", value="red"))
        for command in (
            renewing(renamed),
            renewing(msgspec.structs.replace(claim, lease_id="other")),
            renewing(msgspec.structs.replace(claim, lease_epoch=7)),
            renewing(msgspec.structs.replace(claim, attempt_index=1)),
            msgspec.structs.replace(renewing(claim), fence=None),
        ):
            await pair.ask(command)
        pair.clock.advance(TTL_MS)
        assert isinstance(await pair.ask(renewing(claim)), errors.LeaseExpired)
        await pair.compare()
        assert "renew_lease" not in pair.accepted


class TestClaim:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"priority": 1},
            {"priority": 9000, "tags": {"crew.team": "blue"}},
            {"payload_encoding": "json", "execution_kind": "other"},
            {"input_payload": b""},
            {"input_payload": b"\x00\xff" * 100},
            {"input_payload": b"p" * 70_000},
            {"execution_deadline_at": 1_800_000_000_000},
            {"policy": TIMES_OUT},
            {"policy": RETRIES},
            {"idempotency_key": "once"},
        ],
        ids=lambda fields: " ".join(fields) or "plain",
    )
    @pytest.mark.parametrize(
        "policies",
        [
            {},
            {KIND: RETRIES},
            {KIND: TIMES_OUT, "other": RETRIES},
            {KIND: ExecutionPolicy(timeout_policy=TimeoutPolicy(execution_deadline_ms=86_400_000))},
        ],
        ids=["no policies", "one policy", "two policies", "deadline policy"],
    )
    async def test_work_that_has_never_run(
        self, pair: Pair, fields: dict[str, Any], policies: dict[str, ExecutionPolicy]
    ) -> None:
        first = await started(pair)  # so that the lane is known
        execution_id = await created(pair, **fields)
        pair.clock.advance(10)
        before = pair.accepted.get("claim_execution", 0)
        claim = await pair.each(lambda bed: bed.claim(execution_id, policies=policies))
        await pair.compare()
        own, offered = fields.get("policy"), policies.get(claim.execution_kind)
        usual = offered in (None, own) or (own is None and offered in (RETRIES, TIMES_OUT))
        assert pair.accepted.get("claim_execution", 0) - before == usual
        for one in (first, claim):
            await pair.ask(completing(one, result_payload=b"r"))
        await pair.compare()
        assert pair.accepted["complete_execution"] == 2

    async def test_many_at_once_are_claimed_each_by_itself(self, pair: Pair) -> None:
        await started(pair)
        waiting = [await created(pair, priority=place) for place in range(5)]
        gone = await pair.each(lambda bed: _same(bed.new_execution_id()))
        claims = [_claiming(pair, one) for one in (*waiting, gone)]
        answers = await pair.ask(*claims)
        assert [isinstance(answer, errors.ExecutionNotFound) for answer in answers] == [False] * 5 + [True]
        await pair.compare()
        assert pair.accepted["claim_execution"] >= 5

    async def test_the_same_request_gets_its_lease_again(self, pair: Pair) -> None:
        await started(pair)
        execution_id = await created(pair)
        command, ids = _claiming(pair, execution_id), ["asked-again"]
        first = await pair.ask(command, request_ids=ids)
        assert await pair.ask(_claiming(pair, execution_id), request_ids=ids) == first
        await pair.compare()

    async def test_required_capabilities(self, pair: Pair) -> None:
        await started(pair)
        execution_id = await created(pair, policy=CAPABLE)
        for held in ({"gpu"}, {"gp", "llm"}, set()):
            refused = await pair.ask(_claiming(pair, execution_id, worker_capabilities=frozenset(held)))
            assert isinstance(refused, errors.CapabilityMismatch)
        before = pair.accepted.get("claim_execution", 0)
        capable = _claiming(pair, execution_id, worker_capabilities=frozenset({"gpu", "llm", "x"}))
        assert isinstance(await pair.ask(capable), CandidateClaimed)
        await pair.compare()
        assert pair.accepted["claim_execution"] == before + 1

    @pytest.mark.parametrize(
        "policy", [ExecutionPolicy(budget_ids=("b",)), ExecutionPolicy(quota_policy_id="q")]
    )
    async def test_the_limits_of_a_workers_policy_count(self, pair: Pair, policy: ExecutionPolicy) -> None:
        await started(pair)
        execution_id = await created(pair)
        refused = await pair.ask(_claiming(pair, execution_id, policies={KIND: policy}))
        assert isinstance(refused, errors.NotFound)
        await pair.compare()

    async def test_a_lane_that_was_paused_meanwhile_gives_no_work(self, pair: Pair) -> None:
        await started(pair)
        execution_id = await created(pair)
        for state, expected in (("paused", errors.ExecutionNotEligible), ("active", CandidateClaimed)):
            lane = SetLaneStateArgs(namespace=NAMESPACE, lane_id=LANE, state=LaneState(state))
            await pair.ask(lane)
            assert isinstance(await pair.ask(_claiming(pair, execution_id)), expected)
        await pair.compare()

    async def test_what_is_unusual_is_left_to_the_rule(self, pair: Pair) -> None:
        running = await started(pair)
        granted, delayed = await created(pair), await created(pair, delay_until=pair.clock.now_ms + 5)
        await pair.ask(
            IssueClaimGrantArgs(
                execution_id=granted,
                lane_id=LANE,
                worker_id="other",
                worker_instance_id="other-1",
                grant_ttl_ms=1_000,
            )
        )
        before = dict(pair.accepted)
        for execution_id, expected in (
            (granted, errors.GrantAlreadyExists),
            (delayed, errors.ExecutionNotEligible),
            (running.execution_id, errors.ExecutionNotReclaimable),
        ):
            assert isinstance(await pair.ask(_claiming(pair, execution_id)), expected)
        elsewhere = _claiming(pair, await created(pair, lane_id="elsewhere"))
        assert isinstance(await pair.ask(elsewhere), errors.ExecutionNotEligible)
        await pair.compare()
        assert pair.accepted == before


async def _same(value: str) -> str:
    return value


async def _started_in(pair: Pair, namespace: str) -> Any:
    """Work of some namespace that was created and claimed by a caller without bounds."""
    execution_id = await pair.each(lambda bed: _same(bed.new_execution_id()))
    await pair.ask_unbounded(pair.native.creation(execution_id=execution_id, namespace=namespace))
    claimed = await pair.ask_unbounded(_claiming(pair, execution_id))
    assert isinstance(claimed, CandidateClaimed)
    return claimed.work


async def _whole_life(pair: Pair, namespace: str) -> None:
    """The same, to its end."""
    claim = await _started_in(pair, namespace)
    await pair.ask_unbounded(renewing(claim))
    await pair.ask_unbounded(appending(claim))
    await pair.ask_unbounded(completing(claim, result_payload=b"r"))


async def _told_in(store: Any, namespace: str) -> list[tuple[str, str, str]]:
    """What the log tells to those who may see one namespace."""
    return [
        (stored.event.family, stored.event.name, stored.event.execution_id)
        for stored in await store.read_events(0, namespace=namespace)
    ]


async def _member(bed: Bed) -> str:
    return (await graph(bed, "a")).ids["a"]


def _claiming(pair: Pair, execution_id: str, **fields: Any) -> ClaimCandidateArgs:
    """One claim for both beds, whose ids stay in step."""
    pair.ruled.claiming(execution_id)
    return pair.native.claiming(execution_id, **fields)


class TestComplete:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"priority": 7, "tags": {"crew.team": "blue", "crew.name": "é"}},
            {"payload_encoding": "json"},
            {"execution_deadline_at": 1_800_000_000_000},
            {"policy": ExecutionPolicy(timeout_policy=TimeoutPolicy(attempt_timeout_ms=600_000))},
            {"policy": ExecutionPolicy(stream_policy=StreamPolicy(retention_ttl_ms=86_400_000))},
            {"idempotency_key": "once"},
        ],
        ids=lambda fields: " ".join(fields) or "plain",
    )
    @pytest.mark.parametrize("result", [None, b"", b'{"a":[]}\x00\xff', b"r" * 70_000])
    async def test_plain_work(self, pair: Pair, fields: dict[str, Any], result: bytes | None) -> None:
        claim = await started(pair, **fields)
        pair.clock.advance(10)
        await pair.ask(completing(claim, result_payload=result, result_encoding="json"))
        await pair.compare()
        assert pair.accepted["complete_execution"] == 1

    async def test_a_member_of_a_flow_tells_its_flow(self, pair: Pair) -> None:
        async def build(bed: Bed) -> list[str]:
            flow = await graph(bed, "ab")
            await flow.connect("ab")
            return [flow.ids["a"], flow.ids["b"]]

        first, second = await pair.each(build)
        for member in (first, second):
            claim = await pair.each(lambda bed, member=member: bed.claim(member))
            await pair.ask(completing(claim, result_payload=b"done"), request_ids=[f"{member}-ends"])
        await pair.compare()
        assert pair.accepted["complete_member"] == 2

    async def test_many_at_once_are_decided_each_by_itself(self, pair: Pair) -> None:
        claims = [await started(pair) for _ in range(5)]
        stale = LeaseFence(lease_id=claims[0].lease_id, lease_epoch=1, attempt_id=claims[1].attempt_id)
        commands = [completing(claim, result_payload=b"r") for claim in claims]
        commands[2] = msgspec.structs.replace(commands[2], fence=stale)
        answers = await pair.ask(*commands)
        assert [isinstance(answer, errors.StaleLease) for answer in answers] == [
            False,
            False,
            True,
            False,
            False,
        ]
        await pair.compare()
        assert pair.accepted["complete_execution"] == 4
        assert pair.declined["complete_execution"] == 1

    async def test_the_same_request_gets_its_answer_again_and_so_does_the_same_fence(
        self, pair: Pair
    ) -> None:
        claim = await started(pair)
        ids = ["asked-again"]
        first = await pair.ask(completing(claim), request_ids=ids)
        assert await pair.ask(completing(claim), request_ids=ids) == first
        assert await pair.ask(completing(claim, result_payload=b"other"), request_ids=["another"]) == first
        await pair.compare()
        assert pair.accepted["complete_execution"] == 1

    async def test_what_is_refused_is_refused_by_the_rule(self, pair: Pair) -> None:
        claim = await started(pair)
        ended = await started(pair)
        await pair.ask(completing(ended))
        gone = msgspec.structs.replace(claim, execution_id=pair.native.new_execution_id())
        for command in (
            completing(gone),
            completing(msgspec.structs.replace(claim, lease_id="other")),
            completing(msgspec.structs.replace(claim, lease_epoch=2)),
            completing(msgspec.structs.replace(claim, attempt_id="other")),
            completing(msgspec.structs.replace(claim, attempt_index=1)),
            completing(msgspec.structs.replace(ended, lease_id="other")),
        ):
            assert isinstance(await pair.ask(command), errors.FlowFabricError)
        assert isinstance(await pair.ask(completing(claim), namespace="elsewhere"), errors.ExecutionNotFound)
        pair.clock.advance(TTL_MS)
        assert isinstance(await pair.ask(completing(claim)), errors.LeaseExpired)
        await pair.compare()
        assert pair.accepted["complete_execution"] == 1

    async def test_what_is_unusual_is_left_to_the_rule(self, pair: Pair) -> None:
        waited, paused, renamed = [await started(pair) for _ in range(3)]
        for command in (
            SeedWaitpointHmacSecretArgs(kid="k1", secret_hex="1f" * 32),
            CreatePendingWaitpointArgs(**_waiting(waited)),
            PauseExecutionArgs(execution_id=paused.execution_id, reason="stop"),
            SetExecutionTagArgs(execution_id=renamed.execution_id, key="crew.team", value="red"),
        ):
            assert isinstance(await pair.ask(command), Outcome)
        for claim in (waited, paused, renamed):
            assert isinstance(await pair.ask(completing(claim)), ExecutionCompleted)
        await pair.compare()
        assert "complete_execution" not in pair.accepted
        assert pair.declined["complete_execution"] == 3

    async def test_replayed_work_is_left_to_the_rule(self, pair: Pair) -> None:
        claim = await started(pair)
        await pair.ask(completing(claim, result_payload=b"first"))
        await pair.ask(ReplayExecutionArgs(execution_id=claim.execution_id))
        again = await pair.each(lambda bed: bed.claim(claim.execution_id))
        await pair.ask(completing(again, result_payload=b"second"))
        await pair.compare()
        assert pair.accepted["complete_execution"] == 1


def _waiting(claim: Any) -> dict[str, Any]:
    return {
        "execution_id": claim.execution_id,
        "lease_id": claim.lease_id,
        "lease_epoch": claim.lease_epoch,
        "attempt_index": claim.attempt_index,
        "attempt_id": claim.attempt_id,
        "waitpoint_id": "00000000-0000-4000-8000-00000000aaaa",
        "waitpoint_key": "w",
        "expires_in_ms": 60_000,
    }


class TestWithoutBounds:
    """A caller without bounds acts in the namespace of what it is about."""

    async def test_work_of_any_namespace_is_decided_on_the_server(self, pair: Pair) -> None:
        for namespace in (NAMESPACE, "elsewhere"):
            await _whole_life(pair, namespace)  # so that the lane is known
            await _whole_life(pair, namespace)
            await pair.compare()
            told = [await _told_in(bed.store, namespace) for bed in (pair.native, pair.ruled)]
            assert told[0] == told[1]
            assert len(told[0]) >= 10
        names = ("create_execution", "claim_execution", "renew_lease", "append_frame", "complete_execution")
        assert [pair.accepted.get(name, 0) for name in names] == [2, 4, 4, 4, 4]

    async def test_work_of_several_namespaces_at_once(self, pair: Pair) -> None:
        claims = [await started(pair), await started(pair), await _started_in(pair, "elsewhere")]
        await pair.ask_unbounded(*map(renewing, claims))
        answers = await pair.ask(*map(renewing, claims))
        assert [isinstance(answer, errors.ExecutionNotFound) for answer in answers] == [False, False, True]
        await pair.compare()
        assert pair.accepted["renew_lease"] == 5

    async def test_spending_counts_in_the_budgets_namespace(self, pair: Pair) -> None:
        claim, budget = await started(pair), await pair.ask(budget_creation())
        for _ in range(2):
            await pair.ask_unbounded(reporting(budget.budget_id, claim, 1))
        await pair.compare()
        assert pair.accepted["report_usage"] == 2

    async def test_what_is_not_there_is_refused_by_the_rule(self, pair: Pair) -> None:
        claim = await started(pair)
        gone = "{fp:4}:00000000-0000-4000-8000-00000000cccc"
        for command in (
            renewing(msgspec.structs.replace(claim, execution_id=gone)),
            completing(msgspec.structs.replace(claim, execution_id=gone)),
            appending(claim, execution_id=gone),
            _claiming(pair, gone),
        ):
            assert isinstance(await pair.ask_unbounded(command), errors.ExecutionNotFound)
        await pair.compare()
        assert not {"renew_lease", "complete_execution", "append_frame"} & pair.accepted.keys()


class TestDamage:
    async def test_a_record_that_cannot_be_read_is_reported_and_changes_nothing(
        self, pair: Pair, caplog: pytest.LogCaptureFixture
    ) -> None:
        claim = await started(pair)
        whole = await started(pair)
        key = pair.store.shard_of(f"execution/{claim.execution_id}").record(f"execution/{claim.execution_id}")
        shard = pair.store.shard_of(f"execution/{claim.execution_id}")
        [stored] = await pair.store._client.read(shard.slot, ("GET", key))
        for damaged in (b"1:", b"7", stored[:30], stored[: len(stored) // 2]):
            await pair.store._client.write(shard.slot, ("SET", key, damaged))
            asked = [completing(claim), completing(whole)]
            answers = await pair.native.engine.execute_many(asked, request_ids=["one", "other"])
            assert isinstance(answers[0], errors.StoreCorrupt)
            assert isinstance(answers[1], ExecutionCompleted)
        await pair.store._client.write(shard.slot, ("SET", key, stored))
        await pair.ruled.engine.execute_many([completing(whole)], request_ids=["other"])
        assert pair.store.native.statistics.failed["complete_execution"] == 4
        assert "could not decide a command" in caplog.text
        await pair.compare()


class TestKeys:
    @pytest.mark.parametrize("shards", [1, 3])
    async def test_every_key_that_is_touched_was_declared(self, tmp_path: Path, shards: int) -> None:
        with monitored(server()) as calls:
            async with Pair(server(), tmp_path, shards=shards) as pair:
                for fields in ({}, {"execution_deadline_at": 1_800_000_000_000, "policy": TIMES_OUT}):
                    claim = await started(pair, tags={"crew.team": "blue"}, **fields)
                    await pair.ask(renewing(claim))
                    await pair.ask(appending(claim, retention_maxlen=1))
                    await pair.ask(appending(claim, retention_maxlen=1))
                    await pair.ask(completing(claim, result_payload=b"r"))
                for policy in (None, RETRIES):
                    claim = await started(pair, policy=policy)
                    await pair.ask(
                        FailExecutionArgs(
                            **fenced(claim, failure_reason="it broke", failure_category="error")
                        )
                    )
                await pair.each(lambda bed: bed.advance(60_000))
                assert isinstance(await pair.ask(_claiming(pair, claim.execution_id)), CandidateClaimed)
                member = await pair.each(_member)
                claim = await pair.each(lambda bed: bed.claim(member))
                budget = await pair.ask(budget_creation())
                for _ in range(2):
                    await pair.ask(reporting(budget.budget_id, claim, 1))
                pair.store.native.forget()  # so that its flow is sent a message
                await pair.ask(completing(claim))
                await _resumed_by_signals(pair)
                quota = await pair.ask(quota_creation(cap=2, rate=200))
                for execution_id in [await created(pair) for _ in range(3)]:
                    await pair.ask(
                        CheckAdmissionArgs(quota_policy_id=quota.quota_policy_id, execution_id=execution_id)
                    )
                await pair.ask(
                    ReleaseAdmissionArgs(quota_policy_id=quota.quota_policy_id, execution_id=execution_id)
                )
                await pair.compare()
        assert {call.function.rpartition("_")[0] for call in calls} >= {f"ff_{name}" for name in SIGNATURES}
        undeclared = {key for call in calls for key in call.touched - call.declared}
        assert undeclared == set()


async def _resumed_by_signals(pair: Pair) -> None:
    """Work that waits until two signals have come."""
    await pair.ask(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex="1f" * 32))
    claim = await started(pair)
    condition = Composite(body=Count(n=2, count_kind=CountKind.DISTINCT_SIGNALS, waitpoints=("w",)))
    waitpoint_id, *ids = [await pair.each(_new_id) for _ in range(4)]
    suspension = SuspendExecutionArgs(
        **fenced(claim),
        suspension_id=ids.pop(),
        waitpoints=(FreshWaitpoint(waitpoint_id=waitpoint_id, waitpoint_key="w"),),
        resume_condition=condition,
        timeout_at=pair.clock.now_ms + TTL_MS,
    )
    suspended = await pair.ask(suspension)
    pair.native.forget()  # as another process, which knows nothing of the work
    for signal_id in ids:
        signal = DeliverSignalArgs(
            execution_id=claim.execution_id,
            waitpoint_id=waitpoint_id,
            waitpoint_token=suspended.details.waitpoint_token,
            signal_id=signal_id,
            signal_name="go",
            signal_category="",
            source_type="tests",
            source_identity="ana",
            idempotency_key=signal_id,
        )
        await pair.ask(signal)


async def _new_id(bed: Bed) -> str:
    return bed.new_id()


class TestRetention:
    async def test_what_has_ended_leaves_no_key_behind(self, pair: Pair) -> None:
        await pair.ask(completing(await started(pair), result_payload=b"r"))  # so that the lane is known
        await _forget_all(pair)
        before = await _keys(pair)
        for _ in range(3):
            claim = await started(pair, tags={"crew.team": "blue"}, execution_deadline_at=1_800_000_000_000)
            await pair.ask(renewing(claim))
            await pair.ask(appending(claim))
            await pair.ask(completing(claim, result_payload=b"r"))
        assert len(await _keys(pair)) > len(before)
        await _forget_all(pair)
        assert await _keys(pair) == before
        assert sum(pair.accepted.values()) >= 12


async def _forget_all(pair: Pair) -> None:
    """Remove what has ended, then the events of its removal."""
    forgetting = TrimRetentionArgs(retention_ms=1)
    for _ in range(2):
        pair.clock.advance(10)
        for bed in (pair.native, pair.ruled):
            [answer] = await bed.engine.execute_unbounded([forgetting])
            assert not isinstance(answer, Exception), answer


async def _keys(pair: Pair) -> set[bytes]:
    """The keys of the store whose server decides."""
    _, found = (await pair.store._client.read(0, ("SCAN", 0, "COUNT", 100_000)))[0]
    return {key for key in found if key.startswith(b"{" + pair.store.settings.prefix.encode() + b":")}

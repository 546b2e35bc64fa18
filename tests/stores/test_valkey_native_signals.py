"""Signals that the server receives are received as the rule does: the same answers, the same records."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowfabric import errors
from flowfabric.contracts.blocking import PauseExecutionArgs
from flowfabric.contracts.conditions import (
    ByName,
    Composite,
    Count,
    CountKind,
    OperatorOnly,
    ResumeCondition,
    Single,
    all_of_waitpoints,
)
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    CompleteExecutionArgs,
    ExecutionCompleted,
    SetExecutionTagArgs,
)
from flowfabric.contracts.keyring import (
    RotateWaitpointHmacSecretArgs,
    SeedWaitpointHmacSecretArgs,
    WaitpointToken,
)
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.contracts.signals import (
    DeliverSignalArgs,
    ObserveSignalsArgs,
    SignalAccepted,
    SignalDuplicate,
    SignalEffect,
)
from flowfabric.contracts.suspensions import (
    CreatePendingWaitpointArgs,
    ExecutionSuspended,
    FreshWaitpoint,
    ResumePolicy,
    SuspendExecutionArgs,
    SuspendOutcomeDetails,
    UsePendingWaitpoint,
)
from flowfabric.core.records import KEYRING_ID, Execution, Key, Keyring, key_for
from flowfabric.stores.base import Loaded
from flowfabric.stores.valkey.native.signatures import SIGNAL_KEYS
from flowfabric.testing import differences
from flowfabric.testing.bed import Bed
from flowfabric.testing.conformance.budgets import budget_creation
from flowfabric.testing.conformance.flows import graph
from tests.stores.pair import Pair, fenced
from tests.valkey import server


@pytest.fixture
async def pair(pair: Pair) -> Pair:
    """The two beds with a key that signs."""
    await pair.ask(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex="1f" * 32))
    return pair


KEY = "review"
ANY = Single(waitpoint_key=KEY)
GO = Single(waitpoint_key=KEY, matcher=ByName(name="go"))


def count(n: int, kind: CountKind = CountKind.DISTINCT_SIGNALS, **fields: Any) -> Composite:
    """The condition that so many signals come."""
    return Composite(body=Count(**{"n": n, "count_kind": kind, "waitpoints": (KEY,), **fields}))


class Wait(msgspec.Struct):
    """Work that waits in both beds, and the waitpoints where signals for it arrive."""

    claim: Any
    details: SuspendOutcomeDetails

    @property
    def execution_id(self) -> str:
        return str(self.claim.execution_id)

    def signal(self, number: int, **fields: Any) -> DeliverSignalArgs:
        """A signal of a number; any argument can be given."""
        defaults: dict[str, Any] = {
            "execution_id": self.execution_id,
            "waitpoint_id": self.details.waitpoint_id,
            "waitpoint_token": self.details.waitpoint_token,
            "signal_id": f"00000000-0000-4000-8000-51600000{number:04x}",
            "signal_name": "go",
            "signal_category": "human",
            "source_type": "tests",
            "source_identity": f"ana-{number}",
        }
        return DeliverSignalArgs(**(defaults | fields))


async def waits(pair: Pair, condition: ResumeCondition = ANY, **fields: Any) -> Wait:
    """Suspend work in both beds."""
    named = {"keys": (KEY,), "policy": None, "claim": None, **fields}
    claim = named["claim"] or await pair.each(lambda bed: bed.start(policy=named["policy"]))
    ids = [await pair.each(_new_id) for _ in (*named["keys"], "suspension")]
    suspension = SuspendExecutionArgs(
        **fenced(claim),
        suspension_id=ids[-1],
        waitpoints=tuple(
            FreshWaitpoint(waitpoint_id=one, waitpoint_key=key)
            for one, key in zip(ids, named["keys"], strict=False)
        ),
        resume_condition=condition,
        resume_policy=named.get("resume_policy", ResumePolicy()),
        timeout_at=named.get("timeout_at"),
    )
    outcome = await pair.ask(suspension)
    assert isinstance(outcome, ExecutionSuspended)
    return Wait(claim, outcome.details)


async def signalled(pair: Pair, *signals: DeliverSignalArgs, **options: Any) -> Any:
    """What is answered to signals that come to another process than the one that has suspended the work."""
    for bed in (pair.native, pair.ruled):
        bed.forget()
    return await pair.ask(*signals, **options)


async def _new_id(bed: Bed) -> str:
    return bed.new_id()


def effects(answers: Any) -> list[str]:
    """What several signals have done."""
    assert all(isinstance(answer, SignalAccepted) for answer in answers), answers
    return [answer.effect.value for answer in answers]


COUNTS = SignalEffect.APPENDED_TO_WAITPOINT.value
RESUMES = SignalEffect.RESUME_CONDITION_SATISFIED.value
AGAIN = SignalEffect.APPENDED_TO_WAITPOINT_DUPLICATE.value
OTHER_NAME = SignalEffect.SIGNAL_IGNORED_MATCHER_FAILED.value
NOTHING = SignalEffect.NO_OP.value


class TestSingle:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"payload": b"", "payload_encoding": "raw"},
            {"payload": bytes(range(256)) * 200},
            {"correlation_id": "é", "created_at": 7, "target_scope": "execution", "signal_category": ""},
            {"idempotency_key": "once"},
            {"idempotency_key": "once", "dedup_ttl_ms": 2**53 - 1},
            {"idempotency_key": "é" * 100, "dedup_ttl_ms": 0},
            {"source_type": "", "source_identity": "x" * 256},
            {"resume_delay_ms": 0},
            {"signal_maxlen": 1, "max_signals_per_execution": 1},
        ],
        ids=lambda fields: " ".join(fields) or "plain",
    )
    async def test_one_signal_resumes(self, pair: Pair, fields: dict[str, Any]) -> None:
        wait = await waits(pair)
        pair.clock.advance(5)
        assert effects([await signalled(pair, wait.signal(1, **fields))]) == [RESUMES]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 1
        resumed = await pair.each(lambda bed: bed.claim(wait.execution_id))
        observed = await pair.ask(
            ObserveSignalsArgs(execution_id=wait.execution_id, attempt_index=0, fence=resumed.fence)
        )
        assert [signal.signal_id for signal in observed.signals] == [wait.signal(1).signal_id]
        await pair.ask(CompleteExecutionArgs(**fenced(resumed, source="lease_holder")))
        await pair.compare()
        # What has been resumed by the server is as plain as it was before.
        assert pair.accepted["complete_execution"] == 1

    @pytest.mark.parametrize(
        ("creation", "suspending"),
        [
            ({"priority": 7, "tags": {"crew.team": "blue"}}, {"timeout_at": 1_800_000_000_000}),
            ({"execution_deadline_at": 1_800_000_000_000}, {}),
            ({"policy": ExecutionPolicy(budget_ids=(budget_creation().budget_id,))}, {}),
            ({"policy": ExecutionPolicy(max_signals_per_execution=1)}, {}),
        ],
        ids=["tags and a timeout", "deadline", "budget", "cap"],
    )
    async def test_whatever_else_concerns_the_work(
        self, pair: Pair, creation: dict[str, Any], suspending: dict[str, Any]
    ) -> None:
        await pair.ask(budget_creation())
        claim = await pair.each(lambda bed: bed.start(**creation))
        wait = await waits(pair, claim=claim, **suspending)
        assert effects([await signalled(pair, wait.signal(1))]) == [RESUMES]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 1

    @pytest.mark.parametrize(
        ("policy_ms", "asked_ms", "expected_ms"),
        [(1_000, None, 1_000), (None, 1_000, 1_000), (1_000, 5, 5), (1_000, 0, 0), (2**53 - 1, None, None)],
    )
    async def test_a_delay_between_the_signal_and_the_run(
        self, pair: Pair, policy_ms: int | None, asked_ms: int | None, expected_ms: int | None
    ) -> None:
        wait = await waits(pair, resume_policy=ResumePolicy(resume_delay_ms=policy_ms))
        assert effects([await signalled(pair, wait.signal(1, resume_delay_ms=asked_ms))]) == [RESUMES]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 1
        execution = await pair.native.execution(wait.execution_id)
        assert len(execution.blockers) == (expected_ms != 0)
        if expected_ms is not None:
            await pair.each(lambda bed: _claimed_after(bed, wait.execution_id, expected_ms))
            await pair.compare()

    async def test_a_member_of_a_flow(self, pair: Pair) -> None:
        member = await pair.each(_member)
        claim = await pair.each(lambda bed: bed.claim(member))
        wait = await waits(pair, claim=claim)
        assert effects([await signalled(pair, wait.signal(1))]) == [RESUMES]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 1

    async def test_a_signal_of_another_name_does_nothing_but_is_recorded(self, pair: Pair) -> None:
        wait = await waits(pair, GO)
        answers = [
            await signalled(pair, wait.signal(n, signal_name=name)) for n, name in enumerate(("stop", "go"))
        ]
        assert effects(answers) == [NOTHING, RESUMES]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 2

    async def test_work_that_waits_again_and_again(self, pair: Pair) -> None:
        claim = await pair.each(lambda bed: bed.start())
        for number in range(3):
            wait = await waits(pair, claim=claim)
            assert effects([await signalled(pair, wait.signal(number))]) == [RESUMES]
            claim = await pair.each(lambda bed, wait=wait: bed.claim(wait.execution_id))
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 3

    async def test_early_signals_count_and_another_waitpoint_stays_open(self, pair: Pair) -> None:
        claim = await pair.each(lambda bed: bed.start())
        early = [await pair.ask(CreatePendingWaitpointArgs(**await _pending(pair, claim))) for _ in range(2)]
        used, unused = early
        suspension = SuspendExecutionArgs(
            **fenced(claim),
            suspension_id=await pair.each(_new_id),
            waitpoints=(UsePendingWaitpoint(waitpoint_id=used.waitpoint_id),),
            resume_condition=count(2),
        )
        before = Wait(claim, used)
        await signalled(pair, before.signal(1))
        outcome = await pair.ask(suspension)
        wait = Wait(claim, outcome.details)
        assert effects([await signalled(pair, wait.signal(2))]) == [RESUMES]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 1
        resumed = await pair.each(lambda bed: bed.claim(wait.execution_id))
        assert (await pair.native.execution(wait.execution_id)).open_waitpoint_ids == (unused.waitpoint_id,)
        await pair.ask(CompleteExecutionArgs(**fenced(resumed, source="lease_holder")))
        await pair.compare()
        assert "complete_execution" not in pair.accepted


async def _pending(pair: Pair, claim: Any) -> dict[str, Any]:
    return {
        "execution_id": claim.execution_id,
        "lease_id": claim.lease_id,
        "lease_epoch": claim.lease_epoch,
        "attempt_index": claim.attempt_index,
        "attempt_id": claim.attempt_id,
        "waitpoint_id": await pair.each(_new_id),
        "waitpoint_key": KEY,
        "expires_in_ms": 60_000,
    }


async def _claimed_after(bed: Bed, execution_id: str, delay_ms: int) -> None:
    before = bed.clock.now_ms
    await bed.advance(delay_ms)
    await bed.claim(execution_id)
    bed.clock.now_ms = before


async def _member(bed: Bed) -> str:
    return (await graph(bed, "a")).ids["a"]


class TestCount:
    @pytest.mark.parametrize("kind", CountKind)
    async def test_signals_one_after_the_other(self, pair: Pair, kind: CountKind) -> None:
        needed = 1 if kind is CountKind.DISTINCT_WAITPOINTS else 3
        wait = await waits(pair, count(needed, kind))
        answers = []
        for number in range(needed):
            pair.clock.advance(number)
            answers.append(await signalled(pair, wait.signal(number)))
            await pair.compare()
        assert effects(answers) == [COUNTS] * (needed - 1) + [RESUMES]
        assert pair.accepted["deliver_signal"] == needed

    async def test_what_does_not_count_is_recorded(self, pair: Pair) -> None:
        named = {"matcher": ByName(name="go"), "waitpoints": (KEY, "second")}
        wait = await waits(pair, count(3, CountKind.DISTINCT_SOURCES, **named), keys=(KEY, "second"))
        [second] = wait.details.additional_waitpoints
        there = {"waitpoint_id": second.waitpoint_id, "waitpoint_token": second.waitpoint_token}
        answers = [
            await signalled(pair, wait.signal(1, source_identity="ana")),
            await signalled(pair, wait.signal(2, source_identity="ana", **there)),
            await signalled(pair, wait.signal(3, signal_name="stop")),
            await signalled(pair, wait.signal(4, **there)),
        ]
        assert effects(answers) == [COUNTS, AGAIN, OTHER_NAME, COUNTS]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 4
        # What closes several waitpoints is left to the rule.
        assert effects([await signalled(pair, wait.signal(5))]) == [RESUMES]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 4

    async def test_each_waitpoint_counts_once(self, pair: Pair) -> None:
        named = {"waitpoints": (KEY, "second", "third")}
        wait = await waits(pair, count(3, CountKind.DISTINCT_WAITPOINTS, **named), keys=named["waitpoints"])
        second, third = (
            {"waitpoint_id": one.waitpoint_id, "waitpoint_token": one.waitpoint_token}
            for one in wait.details.additional_waitpoints
        )
        signals = [wait.signal(1), wait.signal(2), wait.signal(3, **second), wait.signal(4, **third)]
        assert effects(await signalled(pair, *signals)) == [COUNTS, AGAIN, COUNTS, RESUMES]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 3

    async def test_many_at_once_keep_their_order(self, pair: Pair) -> None:
        wait, other = await waits(pair, count(40)), await waits(pair, count(3))
        signals = [one.signal(number) for one, needed in ((wait, 40), (other, 3)) for number in range(needed)]
        answers = effects(await signalled(pair, *signals))
        assert answers == [COUNTS] * 39 + [RESUMES] + [COUNTS] * 2 + [RESUMES]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 43

    async def test_what_comes_behind_the_last_one_is_late(self, pair: Pair) -> None:
        wait = await waits(pair, count(2))
        answers = await signalled(pair, *(wait.signal(number) for number in range(4)))
        assert effects(answers[:2]) == [COUNTS, RESUMES]
        assert [type(answer) for answer in answers[2:]] == [errors.WaitpointClosed] * 2
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 2

    async def test_a_cap_that_is_reached_within_a_call(self, pair: Pair) -> None:
        wait = await waits(pair, count(5), policy=ExecutionPolicy(max_signals_per_execution=2))
        answers = await signalled(pair, *(wait.signal(number) for number in range(4)))
        assert effects(answers[:2]) == [COUNTS] * 2
        assert [type(answer) for answer in answers[2:]] == [errors.SignalLimitExceeded] * 2
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 2

    async def test_a_cap_of_none_and_one_that_the_sender_names(self, pair: Pair) -> None:
        wait = await waits(pair, count(5), policy=ExecutionPolicy(max_signals_per_execution=0))
        assert effects([await signalled(pair, wait.signal(1))]) == [COUNTS]
        refused = await signalled(pair, wait.signal(2, max_signals_per_execution=1))
        assert isinstance(refused, errors.SignalLimitExceeded)
        assert effects([await signalled(pair, wait.signal(3, max_signals_per_execution=2))]) == [COUNTS]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 2

    async def test_more_than_the_declared_numbers_come_from_others(self, pair: Pair) -> None:
        wait = await waits(pair, count(100))
        for behind, expected in ((SIGNAL_KEYS - 1, 1), (SIGNAL_KEYS, 0)):
            outdated = await pair.native.execution(wait.execution_id)
            await signalled(pair, *(wait.signal(100 * behind + number) for number in range(behind)))
            before = pair.accepted["deliver_signal"]
            with _seen_once(pair, outdated):
                assert effects([await signalled(pair, wait.signal(100 * behind + behind))]) == [COUNTS]
            assert pair.accepted["deliver_signal"] - before == expected
            await pair.compare()


@contextmanager
def _seen_once(pair: Pair, outdated: Execution) -> Iterator[None]:
    """Let whoever looks at an execution next see it as it was, as if others had changed it since."""
    store: Any = pair.store
    load = store.load

    async def look(keys: Iterable[Key]) -> Loaded:
        found: Loaded = await load(keys)
        rows: list[Any] = [
            (key, version, outdated if key == outdated.key else record) for key, version, record in found.rows
        ]
        if rows != found.rows:
            del store.load
        return Loaded(now=found.now, rows=rows)

    store.load = look
    yield
    assert "load" not in vars(store), "nobody has looked"


class TestRemembered:
    @pytest.fixture
    async def pair(self, tmp_path: Path) -> AsyncIterator[Pair]:
        """In one shard, for only there a store tells what an engine may remember of its commits."""
        async with Pair(server(), tmp_path, shards=1) as made:
            await made.ask(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex="1f" * 32))
            yield made

    async def test_what_the_same_process_has_suspended_is_signalled_by_the_rule(self, pair: Pair) -> None:
        wait = await waits(pair, count(3))
        answers = effects(await pair.ask(*(wait.signal(number) for number in range(3))))
        assert answers == [COUNTS] * 2 + [RESUMES]
        before = pair.declined.get("claim_execution", 0)
        await pair.each(lambda bed: bed.claim(wait.execution_id))
        await pair.compare()
        assert "deliver_signal" not in {*pair.accepted, *pair.declined}
        assert pair.declined.get("claim_execution", 0) == before

    async def test_once_another_process_has_signalled_too_the_server_does(
        self, pair: Pair, tmp_path: Path
    ) -> None:
        wait = await waits(pair, count(5))
        async with Bed(server().store(tmp_path / "native", shards=1), clock=pair.clock) as other:
            await other.execute(wait.signal(1), request_id="another")
        await pair.ruled.execute(wait.signal(1), request_id="another")
        for number in (2, 3, 4):
            assert effects([await pair.ask(wait.signal(number))]) == [COUNTS]
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 2


class TestRefusals:
    async def test_a_signal_is_received_once(self, pair: Pair) -> None:
        wait = await waits(pair, count(5))
        first = await signalled(pair, wait.signal(1, idempotency_key="once"), request_ids=["asked"])
        assert await signalled(pair, wait.signal(1, idempotency_key="once"), request_ids=["asked"]) == first
        for again in (
            wait.signal(1),
            wait.signal(1, idempotency_key="another"),
            wait.signal(2, idempotency_key="once", source_identity="ana-1"),
        ):
            answer = await signalled(pair, again)
            assert isinstance(answer, SignalDuplicate)
            assert answer.existing_signal_id == wait.signal(1).signal_id
        conflict = await signalled(pair, wait.signal(3, idempotency_key="once"))
        assert isinstance(conflict, errors.IdempotencyConflict)
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 1

    async def test_the_same_signal_twice_in_one_call(self, pair: Pair) -> None:
        wait = await waits(pair, count(3))
        answers = await signalled(pair, wait.signal(1), wait.signal(1), wait.signal(2))
        assert effects([answers[0], answers[2]]) == [COUNTS, COUNTS]
        assert isinstance(answers[1], SignalDuplicate)
        await pair.compare()

    async def test_a_key_counts_until_its_window_is_over(self, pair: Pair) -> None:
        wait = await waits(pair, count(5))
        await signalled(pair, wait.signal(1, idempotency_key="once", dedup_ttl_ms=1_000))
        pair.clock.advance(999)
        same = wait.signal(2, idempotency_key="once", source_identity="ana-1", dedup_ttl_ms=1_000)
        assert isinstance(await signalled(pair, same), SignalDuplicate)
        pair.clock.advance(1)
        assert effects([await signalled(pair, same)]) == [COUNTS]
        await pair.compare()

    async def test_tokens_that_do_not_open_the_waitpoint(self, pair: Pair) -> None:
        wait, other = await waits(pair, count(5)), await waits(pair, count(5))
        kid, mac = wait.details.waitpoint_token.value.split(":")
        refused = {
            errors.InvalidToken: [
                other.details.waitpoint_token.value,
                f"{kid}:{mac[::-1]}",
                f"k2:{mac}",
                "nonsense",
            ],
            errors.MissingToken: [""],
        }
        before = await pair.native.dump()
        for error, tokens in refused.items():
            for token in tokens:
                answer = await signalled(pair, wait.signal(1, waitpoint_token=WaitpointToken(token)))
                assert isinstance(answer, error)
        assert not differences(before, await pair.native.dump())
        assert "deliver_signal" not in pair.accepted
        assert isinstance(
            await signalled(pair, wait.signal(1), namespace="elsewhere"), errors.ExecutionNotFound
        )
        await pair.compare()

    async def test_a_token_is_good_until_its_grace_is_over(self, pair: Pair) -> None:
        wait = await waits(pair, count(5))
        await pair.ask(RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex="2f" * 32, grace_ms=1_000))
        pair.clock.advance(999)
        assert effects([await signalled(pair, wait.signal(1))]) == [COUNTS]
        pair.clock.advance(1)
        assert isinstance(await signalled(pair, wait.signal(2)), errors.TokenExpired)
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 1

    async def test_late_signals_and_ended_work(self, pair: Pair) -> None:
        late, ended = await waits(pair), await waits(pair)
        await signalled(pair, late.signal(1))
        await pair.ask(CancelExecutionArgs(execution_id=ended.execution_id, reason="no", source="operator"))
        assert isinstance(await signalled(pair, late.signal(2)), errors.WaitpointClosed)
        assert isinstance(await signalled(pair, ended.signal(1)), errors.TargetNotSignalable)
        gone = msgspec.structs.replace(late.signal(3), execution_id=pair.native.new_execution_id())
        assert isinstance(await signalled(pair, gone), errors.ExecutionNotFound)
        unknown = late.signal(4, waitpoint_id=pair.native.new_id())
        assert isinstance(await signalled(pair, unknown), errors.InvalidToken)
        await pair.compare()
        assert pair.accepted["deliver_signal"] == 1

    async def test_what_is_unusual_is_left_to_the_rule(self, pair: Pair) -> None:
        both = await waits(pair, all_of_waitpoints((KEY, "other")), keys=(KEY, "other"))
        operator = await waits(pair, OperatorOnly())
        keeps = await waits(pair, resume_policy=ResumePolicy(close_waitpoint_on_resume=False))
        paused, renamed = await waits(pair), await waits(pair)
        await pair.ask(PauseExecutionArgs(execution_id=paused.execution_id, reason="stop"))
        await pair.ask(SetExecutionTagArgs(execution_id=renamed.execution_id, key="crew.team", value="red"))
        for signal in (
            both.signal(1),
            operator.signal(2),
            keeps.signal(3),
            paused.signal(4),
            renamed.signal(5),
        ):
            assert isinstance(await signalled(pair, signal), SignalAccepted)
        await pair.compare()
        assert "deliver_signal" not in pair.accepted
        assert pair.declined["deliver_signal"] == 5


async def test_a_record_that_cannot_be_looked_at_fails_no_other_command(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, wait = await pair.each(lambda bed: bed.start()), await waits(pair)
    pair.native.forget()
    load = pair.store.load

    async def broken(keys: Iterable[Key]) -> Loaded:
        wanted = list(keys)
        if key_for(Keyring, KEYRING_ID) in wanted:
            raise errors.StoreUnreachable
        return await load(wanted)

    monkeypatch.setattr(pair.store, "load", broken)
    completing = CompleteExecutionArgs(**fenced(claim))
    completed, _ = await pair.native.engine.execute_many([completing, wait.signal(1)])
    assert isinstance(completed, ExecutionCompleted)
    assert pair.accepted.get("deliver_signal", 0) == 0

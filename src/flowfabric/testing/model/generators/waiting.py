"""Waiting: waitpoints, suspensions, signals, and the keys that sign tokens."""

from __future__ import annotations

from typing import Any, Final

from flowfabric import errors
from flowfabric.contracts.conditions import (
    ByName,
    Composite,
    Count,
    CountKind,
    OperatorOnly,
    Single,
    TimeoutOnly,
    all_of_waitpoints,
)
from flowfabric.contracts.executions import CancelExecutionArgs
from flowfabric.contracts.keyring import (
    ListWaitpointHmacKidsArgs,
    RotateWaitpointHmacSecretAllArgs,
    RotateWaitpointHmacSecretArgs,
    SeedWaitpointHmacSecretArgs,
    WaitpointToken,
)
from flowfabric.contracts.policy import TimeoutBehavior
from flowfabric.contracts.signals import (
    BufferSignalArgs,
    DeliverApprovalSignalArgs,
    DeliverSignalArgs,
    ObserveSignalsArgs,
)
from flowfabric.contracts.suspensions import (
    CloseWaitpointArgs,
    CreatePendingWaitpointArgs,
    ExpireSuspensionArgs,
    FreshWaitpoint,
    ListPendingWaitpointsArgs,
    ReadWaitpointTokenArgs,
    ResumeExecutionArgs,
    ResumePolicy,
    ResumeTrigger,
    SuspendExecutionArgs,
    UsePendingWaitpoint,
)
from flowfabric.core.commands import ExpireWaitpointArgs, ForgetDedupArgs
from flowfabric.core.records import Dedup, Execution, Suspension, Waitpoint
from flowfabric.testing.bed import LANE, TTL_MS
from flowfabric.testing.model.draw import Draw, generator, is_held
from flowfabric.testing.model.steps import Pass

FIRST_KID: Final = "k1"
SHORT_HEX: Final = "ff"
SECRETS: Final = {kid: f"{number:02x}" * 32 for number, kid in enumerate(("k1", "k2", "k3"), 1)}
SIGNAL_NAMES: Final = ("go", "stop")
KEYS: Final = ("wpk:a", "wpk:b", "wpk:c")


# Keys


@generator(SeedWaitpointHmacSecretArgs)
def seed_waitpoint_hmac_secret(draw: Draw) -> SeedWaitpointHmacSecretArgs:
    """The first key."""
    return SeedWaitpointHmacSecretArgs(kid=FIRST_KID, secret_hex=SECRETS[FIRST_KID])


@generator(RotateWaitpointHmacSecretArgs)
def rotate_waitpoint_hmac_secret(draw: Draw) -> RotateWaitpointHmacSecretArgs:
    """To another key, or to the same one again."""
    draw.keyring()
    kid = draw.pick(tuple(SECRETS))
    return RotateWaitpointHmacSecretArgs(
        new_kid=kid, new_secret_hex=SECRETS[kid], grace_ms=draw.pick((0, 1_000, 2 * TTL_MS))
    )


@generator(RotateWaitpointHmacSecretArgs, provokes=errors.RotationConflict)
def rotate_to_another_secret_of_a_key(draw: Draw) -> RotateWaitpointHmacSecretArgs:
    """To a key that has another secret."""
    return RotateWaitpointHmacSecretArgs(
        new_kid=draw.keyring().current_kid, new_secret_hex=SHORT_HEX, grace_ms=0
    )


@generator(RotateWaitpointHmacSecretArgs, provokes=errors.InvalidKid)
def rotate_to_a_key_without_a_name(draw: Draw) -> RotateWaitpointHmacSecretArgs:
    """With a colon in its id."""
    return RotateWaitpointHmacSecretArgs(new_kid="a:b", new_secret_hex=SHORT_HEX, grace_ms=0)


@generator(RotateWaitpointHmacSecretArgs, provokes=errors.InvalidGraceMs)
def rotate_with_a_negative_grace(draw: Draw) -> RotateWaitpointHmacSecretArgs:
    """Which is no time."""
    return RotateWaitpointHmacSecretArgs(new_kid="k4", new_secret_hex=SHORT_HEX, grace_ms=-1)


@generator(SeedWaitpointHmacSecretArgs, provokes=errors.InvalidSecretHex)
def seed_what_is_no_secret(draw: Draw) -> SeedWaitpointHmacSecretArgs:
    """A secret that is too short."""
    return SeedWaitpointHmacSecretArgs(kid="k4", secret_hex=SHORT_HEX)


@generator(RotateWaitpointHmacSecretAllArgs)
def rotate_waitpoint_hmac_secret_all(draw: Draw) -> RotateWaitpointHmacSecretAllArgs:
    """Everywhere."""
    draw.keyring()
    kid = draw.pick(tuple(SECRETS))
    return RotateWaitpointHmacSecretAllArgs(
        new_kid=kid, new_secret_hex=SECRETS[kid], grace_ms=draw.pick((1_000, 2 * TTL_MS))
    )


@generator(ListWaitpointHmacKidsArgs)
def list_waitpoint_hmac_kids(draw: Draw) -> ListWaitpointHmacKidsArgs:
    """Whatever is there."""
    return ListWaitpointHmacKidsArgs()


# Waitpoints


@generator(CreatePendingWaitpointArgs)
def create_pending_waitpoint(draw: Draw) -> CreatePendingWaitpointArgs:
    """Before the suspension that will use it."""
    draw.keyring()
    execution = draw.running()
    return _pending(draw, execution, draw.new_id())


def _pending(draw: Draw, execution: Execution, waitpoint_id: str) -> CreatePendingWaitpointArgs:
    return CreatePendingWaitpointArgs(
        **draw.owned(execution),
        attempt_index=execution.attempt_count - 1,
        waitpoint_id=waitpoint_id,
        waitpoint_key=draw.pick(KEYS),
        expires_in_ms=draw.pick((1_000, 4 * TTL_MS)),
    )


@generator(CreatePendingWaitpointArgs, provokes=errors.HmacSecretNotInitialized)
def create_pending_waitpoint_without_a_key(draw: Draw) -> CreatePendingWaitpointArgs:
    """Before anything can be signed, which is so only at the beginning of a case."""
    return _pending(draw, draw.running(), draw.new_id())


@generator(CreatePendingWaitpointArgs, provokes=errors.WaitpointAlreadyExists)
def create_pending_waitpoint_twice(draw: Draw) -> CreatePendingWaitpointArgs:
    """Under an id that is taken."""
    taken = [one for one in _used_by_holders(draw) if one.state == "pending"]
    waitpoint = draw.one_of(taken, CreatePendingWaitpointArgs)
    execution = draw.world.find(Execution, waitpoint.execution_id)
    assert execution is not None
    return _pending(draw, execution, waitpoint.waitpoint_id)


def _used_by_holders(draw: Draw) -> list[Waitpoint]:
    """The waitpoints of executions whose lease is alive."""
    owners = {one.execution_id for one in draw.executions() if is_held(one, draw.now)}
    return [one for one in draw.world.all(Waitpoint) if one.execution_id in owners]


@generator(CloseWaitpointArgs)
def close_waitpoint(draw: Draw) -> CloseWaitpointArgs:
    """Pending, active or closed."""
    waitpoint = draw.waitpoint("pending", "active")
    return CloseWaitpointArgs(execution_id=waitpoint.execution_id, waitpoint_id=waitpoint.waitpoint_id)


@generator(CloseWaitpointArgs, provokes=errors.WaitpointNotFound)
def close_a_waitpoint_that_is_not_there(draw: Draw) -> CloseWaitpointArgs:
    """Of an execution that is there."""
    return CloseWaitpointArgs(execution_id=draw.execution().execution_id, waitpoint_id=draw.new_id())


@generator(ExpireWaitpointArgs)
def expire_waitpoint(draw: Draw) -> ExpireWaitpointArgs:
    """Due or not."""
    waitpoint = draw.waitpoint("pending")
    if (waitpoint.expires_at or 0) > draw.now and draw.chance(0.5):
        draw.one_of([], Pass(milliseconds=(waitpoint.expires_at or 0) - draw.now))
    return ExpireWaitpointArgs(waitpoint_identity=waitpoint.identity)


@generator(ReadWaitpointTokenArgs)
def read_waitpoint_token(draw: Draw) -> ReadWaitpointTokenArgs:
    """Open or closed."""
    waitpoint = draw.waitpoint("pending", "active", "closed")
    return ReadWaitpointTokenArgs(execution_id=waitpoint.execution_id, waitpoint_id=waitpoint.waitpoint_id)


@generator(ListPendingWaitpointsArgs)
def list_pending_waitpoints(draw: Draw) -> ListPendingWaitpointsArgs:
    """Of an execution that may have some."""
    return ListPendingWaitpointsArgs(execution_id=draw.execution().execution_id, limit=draw.pick((1, 100)))


# Suspensions


@generator(SuspendExecutionArgs)
def suspend_execution(draw: Draw) -> SuspendExecutionArgs:
    """On one waitpoint or several, with a deadline or without."""
    draw.keyring()
    keys = draw.some(KEYS, 3)
    waitpoints = tuple(FreshWaitpoint(waitpoint_id=draw.new_id(), waitpoint_key=key) for key in keys)
    return SuspendExecutionArgs(
        **_suspension_of(draw, draw.running()),
        waitpoints=waitpoints,
        resume_condition=_condition(draw, keys),
        resume_policy=ResumePolicy(
            resume_delay_ms=draw.pick((None, None, 1_000)),
            close_waitpoint_on_resume=draw.chance(0.8),
            retain_signal_buffer_until_closed=draw.chance(0.2),
        ),
        timeout_behavior=draw.pick(tuple(TimeoutBehavior)),
        continuation_metadata_pointer=draw.pick((None, f"journal:wait:{draw.pick((0, 1))}:review")),
        idempotency_key=draw.pick((None, None, "again")),
    )


def _suspension_of(draw: Draw, execution: Execution) -> dict[str, Any]:
    return {
        **draw.fenced(execution),
        "suspension_id": draw.new_id(),
        "timeout_at": draw.now + TTL_MS if draw.chance(0.5) else None,
    }


def _condition(draw: Draw, keys: list[str]) -> Any:
    """A condition that names all of the keys."""
    matcher = draw.pick((None, ByName(name="go")))
    if len(keys) == 1:
        return Single(waitpoint_key=keys[0], matcher=matcher) if matcher else Single(waitpoint_key=keys[0])
    if draw.chance(0.5):
        return all_of_waitpoints(keys)
    kind = draw.pick(tuple(CountKind))
    return Composite(body=Count(n=2, count_kind=kind, matcher=matcher, waitpoints=tuple(keys)))


@generator(SuspendExecutionArgs)
def suspend_execution_on_a_pending_waitpoint(draw: Draw) -> SuspendExecutionArgs:
    """Early signals count."""
    usable = [
        one for one in _used_by_holders(draw) if one.state == "pending" and (one.expires_at or 0) > draw.now
    ]
    waitpoint = draw.one_of(usable, CreatePendingWaitpointArgs)
    execution = draw.world.find(Execution, waitpoint.execution_id)
    assert execution is not None
    return SuspendExecutionArgs(
        **_suspension_of(draw, execution),
        waitpoints=(UsePendingWaitpoint(waitpoint_id=waitpoint.waitpoint_id),),
        resume_condition=Single(waitpoint_key=waitpoint.waitpoint_key),
    )


@generator(SuspendExecutionArgs)
def suspend_execution_for_an_operator(draw: Draw) -> SuspendExecutionArgs:
    """No signal is enough."""
    draw.keyring()
    return SuspendExecutionArgs(
        **_suspension_of(draw, draw.running()) | {"timeout_at": draw.now + TTL_MS},
        waitpoints=(FreshWaitpoint(waitpoint_id=draw.new_id(), waitpoint_key=KEYS[0]),),
        resume_condition=OperatorOnly() if draw.chance(0.5) else TimeoutOnly(),
    )


@generator(SuspendExecutionArgs, provokes=errors.AlreadySuspended)
def suspend_execution_twice(draw: Draw) -> SuspendExecutionArgs:
    """Under another id, with the fence that was given up."""
    return _on_one(draw, draw.suspended())


@generator(SuspendExecutionArgs, provokes=errors.InvalidLeaseForSuspend)
def suspend_another_attempt(draw: Draw) -> SuspendExecutionArgs:
    """With an attempt index that is not the current one."""
    draw.keyring()
    return _on_one(draw, draw.running(), attempt_index=7)


@generator(SuspendExecutionArgs, provokes=errors.WaitpointNotPending)
def suspend_execution_on_a_closed_waitpoint(draw: Draw) -> SuspendExecutionArgs:
    """Which takes no signals any more."""
    closed = [one for one in _used_by_holders(draw) if one.state == "closed"]
    return _on_pending(draw, draw.one_of(closed, CloseWaitpointArgs))


@generator(SuspendExecutionArgs, provokes=errors.PendingWaitpointExpired)
def suspend_execution_on_an_old_waitpoint(draw: Draw) -> SuspendExecutionArgs:
    """Whose time is over, marked or not."""
    pending = [one for one in _used_by_holders(draw) if one.state == "pending"]
    old = [one for one in pending if (one.expires_at or 0) <= draw.now]
    return _on_pending(
        draw, draw.one_of(old, Pass(milliseconds=1_000) if pending else CreatePendingWaitpointArgs)
    )


@generator(SuspendExecutionArgs, provokes=errors.InvalidInput)
def suspend_execution_on_another_key(draw: Draw) -> SuspendExecutionArgs:
    """The condition names a key that no waitpoint has."""
    draw.keyring()
    return _on_one(draw, draw.running(), resume_condition=Single(waitpoint_key="wpk:other"))


@generator(SuspendExecutionArgs, provokes=errors.AdditionalWaitpointBindingMalformed)
def suspend_execution_on_the_same_key_twice(draw: Draw) -> SuspendExecutionArgs:
    """Two waitpoints cannot share their key."""
    draw.keyring()
    bindings = tuple(FreshWaitpoint(waitpoint_id=draw.new_id(), waitpoint_key=KEYS[0]) for _ in range(2))
    return _on_one(draw, draw.running(), waitpoints=bindings, resume_condition=all_of_waitpoints(KEYS[:1]))


def _on_one(draw: Draw, execution: Execution, **fields: Any) -> SuspendExecutionArgs:
    waitpoints = (FreshWaitpoint(waitpoint_id=draw.new_id(), waitpoint_key=KEYS[0]),)
    defaults = {"waitpoints": waitpoints, "resume_condition": Single(waitpoint_key=KEYS[0])}
    return SuspendExecutionArgs(**{**_suspension_of(draw, execution), **defaults, **fields})


def _on_pending(draw: Draw, waitpoint: Waitpoint) -> SuspendExecutionArgs:
    execution = draw.world.find(Execution, waitpoint.execution_id)
    assert execution is not None
    return _on_one(
        draw,
        execution,
        waitpoints=(UsePendingWaitpoint(waitpoint_id=waitpoint.waitpoint_id),),
        resume_condition=Single(waitpoint_key=waitpoint.waitpoint_key),
    )


@generator(ResumeExecutionArgs)
def resume_execution(draw: Draw) -> ResumeExecutionArgs:
    """By an operator."""
    return ResumeExecutionArgs(
        execution_id=draw.suspended().execution_id,
        trigger_type=draw.pick(tuple(ResumeTrigger)),
        resume_delay_ms=draw.pick((0, 1_000)),
    )


@generator(ResumeExecutionArgs, provokes=errors.ExecutionNotSuspended)
def resume_execution_that_does_not_wait(draw: Draw) -> ResumeExecutionArgs:
    """Which has nothing to resume from."""
    return ResumeExecutionArgs(execution_id=draw.running().execution_id)


@generator(ExpireSuspensionArgs)
def expire_suspension(draw: Draw) -> ExpireSuspensionArgs:
    """Due or not."""
    execution = draw.suspended()
    suspension = draw.world.find(Suspension, f"{execution.execution_id}/{execution.suspension_id}")
    timeout_at = None if suspension is None else suspension.timeout_at
    if timeout_at is not None and timeout_at > draw.now and draw.chance(0.7):
        draw.one_of([], Pass(milliseconds=timeout_at - draw.now))
    return ExpireSuspensionArgs(execution_id=execution.execution_id)


# Signals


def _signal(draw: Draw, waitpoint: Waitpoint) -> dict[str, Any]:
    return {
        "execution_id": waitpoint.execution_id,
        "waitpoint_id": waitpoint.waitpoint_id,
        "signal_id": draw.new_id(),
        "signal_name": draw.pick(SIGNAL_NAMES),
        "signal_category": "",
        "source_type": "model",
        "source_identity": draw.pick(("someone", "somebody else")),
        "payload": draw.payload() if draw.chance(0.5) else None,
    }


@generator(DeliverSignalArgs)
def deliver_signal(draw: Draw) -> DeliverSignalArgs:
    """To a waitpoint that waits, or will."""
    waitpoint = draw.waitpoint("active", "pending")
    return DeliverSignalArgs(
        **_signal(draw, waitpoint),
        waitpoint_token=draw.token(waitpoint),
        idempotency_key=draw.pick((None, None, "key")),
        dedup_ttl_ms=draw.pick((None, 1_000)),
        resume_delay_ms=draw.pick((None, None, 1_000)),
        signal_maxlen=draw.pick((None, None, 1)),
    )


@generator(DeliverSignalArgs, provokes=errors.WaitpointClosed)
def deliver_signal_too_late(draw: Draw) -> DeliverSignalArgs:
    """The wait is over, and the work is not."""
    alive = {one.execution_id for one in draw.executions() if one.completed_at is None}
    kids = {key.kid for key in draw.keyring().keys if key.expires_at is None or key.expires_at > draw.now}
    closed = [
        one
        for one in draw.world.all(Waitpoint)
        if one.state == "closed" and one.execution_id in alive and one.token_kid in kids
    ]
    return _delivery(draw, draw.one_of(closed, CloseWaitpointArgs))


def _delivery(draw: Draw, waitpoint: Waitpoint, **fields: Any) -> DeliverSignalArgs:
    defaults = {**_signal(draw, waitpoint), "waitpoint_token": draw.token(waitpoint)}
    return DeliverSignalArgs(**{**defaults, **fields})


@generator(DeliverSignalArgs, provokes=errors.TargetNotSignalable)
def deliver_signal_after_the_end(draw: Draw) -> DeliverSignalArgs:
    """Of the execution."""
    ended = {one.execution_id for one in draw.executions() if one.completed_at is not None}
    kids = {key.kid for key in draw.keyring().keys if key.expires_at is None or key.expires_at > draw.now}
    found = [one for one in draw.world.all(Waitpoint) if one.execution_id in ended and one.token_kid in kids]
    if not found:
        draw.waitpoint("active", "pending")  # so that there is one to end
    return _delivery(draw, draw.one_of(found, CancelExecutionArgs))


@generator(DeliverSignalArgs, provokes=errors.InvalidToken)
def deliver_signal_with_a_wrong_token(draw: Draw) -> DeliverSignalArgs:
    """Signed by nobody."""
    waitpoint = draw.waitpoint("active", "pending", "closed")
    forged = WaitpointToken(f"{draw.keyring().current_kid}:{'ab' * 32}")
    return _delivery(draw, waitpoint, waitpoint_token=forged)


@generator(DeliverSignalArgs, provokes=errors.MissingToken)
def deliver_signal_without_a_token(draw: Draw) -> DeliverSignalArgs:
    """An empty one."""
    return _delivery(draw, draw.waitpoint("active", "pending"), waitpoint_token=WaitpointToken(""))


@generator(DeliverSignalArgs, provokes=errors.TokenExpired)
def deliver_signal_with_a_token_past_its_grace(draw: Draw) -> DeliverSignalArgs:
    """The key that signed it was rotated out, and its grace is over."""
    over = {
        key.kid for key in draw.keyring().keys if key.expires_at is not None and key.expires_at <= draw.now
    }
    found = [one for one in draw.world.all(Waitpoint) if one.token_kid in over]
    if not found:
        draw.waitpoint("active", "pending", "closed")
    return _delivery(draw, draw.one_of(found, RotateWaitpointHmacSecretArgs, Pass(milliseconds=1_000)))


@generator(DeliverSignalArgs, provokes=errors.SignalLimitExceeded)
def deliver_one_signal_too_many(draw: Draw) -> DeliverSignalArgs:
    """Above the cap that the sender names."""
    signalled = {one.execution_id for one in draw.executions() if one.signal_count}
    found = [
        one for one in draw.world.all(Waitpoint) if one.execution_id in signalled and one.state != "closed"
    ]
    return _delivery(draw, draw.one_of(found, DeliverSignalArgs), max_signals_per_execution=1)


@generator(BufferSignalArgs)
def buffer_signal(draw: Draw) -> BufferSignalArgs:
    """To a waitpoint that is pending."""
    waitpoint = draw.waitpoint("pending")
    return BufferSignalArgs(**_signal(draw, waitpoint), waitpoint_token=draw.token(waitpoint))


@generator(DeliverApprovalSignalArgs)
def deliver_approval_signal(draw: Draw) -> DeliverApprovalSignalArgs:
    """An operator's word, without a token."""
    waitpoint = draw.waitpoint("active", "pending")
    return DeliverApprovalSignalArgs(
        execution_id=waitpoint.execution_id,
        lane_id=LANE,
        waitpoint_id=waitpoint.waitpoint_id,
        signal_id=draw.new_id() if draw.chance(0.5) else None,
        signal_name="go",
        idempotency_suffix=draw.pick(("1", "2")),
    )


@generator(ObserveSignalsArgs)
def observe_signals(draw: Draw) -> ObserveSignalsArgs:
    """Those that resumed the attempt, if any did."""
    return ObserveSignalsArgs(**draw.fenced(draw.running()))


@generator(ForgetDedupArgs)
def forget_dedup(draw: Draw) -> ForgetDedupArgs:
    """Due or not."""
    found = draw.one_of(draw.world.all(Dedup), DeliverSignalArgs, SuspendExecutionArgs)
    return ForgetDedupArgs(dedup_id=found.identity)

"""Carrying out the retention: what is due is removed step by step, each step a small commit.

The rules decide; here is only looked up what there is to remove. Whatever is stopped half-way is
still in the index of what is due, so the next sweep goes on with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.limits import DAY_MS, OPERATOR_LOG_RETENTION_MS
from flowfabric.contracts.retention import RetentionTrimmed, TrimRetentionArgs
from flowfabric.core.commands import (
    LogActArgs,
    RemoveExecutionArgs,
    RemoveFlowArgs,
    RetentionSettled,
    TrimExecutionArgs,
    TrimFlowArgs,
)
from flowfabric.core.events import SPARED, Family
from flowfabric.core.indexes import FLOW_SCOPE, OWN_SCOPE, RETENTION
from flowfabric.core.records import (
    RECORD_TYPES,
    Execution,
    Flow,
    FlowMember,
    FlowProgress,
    GivenBack,
    Key,
    kept_until,
    key_for,
    kind_of,
)
from flowfabric.core.rules.retention import KEPT, REMOVING, flow_due_at
from flowfabric.engine.deliveries import forget_given_back, give_back
from flowfabric.engine.listing import load_records
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from flowfabric.contracts.base import Command
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine

log = logging.getLogger("flowfabric.retention")

RECORDS_PER_STEP: Final = 100
LARGE_RECORDS_PER_STEP: Final = 10
"""Records with payloads are loaded before they are removed, so only few at once."""
EVENTS_PER_STEP: Final = 1_000
PAGE: Final = 20
"""How many executions or flows are removed side by side: their first steps share one commit."""


# One execution, one flow


@operation(TrimExecutionArgs)
async def trim_execution(engine: Engine, args: TrimExecutionArgs, envelope: Envelope) -> RetentionSettled:
    """Remove an execution whose retention is over, with all its records and frames."""
    asked = RemoveExecutionArgs(execution_id=args.execution_id, retention_ms=args.retention_ms)
    return await _remove_all(engine, asked, args.execution_id, (Execution,), envelope)


@operation(TrimFlowArgs)
async def trim_flow(engine: Engine, args: TrimFlowArgs, envelope: Envelope) -> RetentionSettled:
    """Remove a flow whose retention is over, with its members, edges and joins."""
    identity = args.flow_identity
    asked = RemoveFlowArgs(flow_identity=identity, retention_ms=args.retention_ms)
    flow = await _loaded_flow(engine, identity)
    kept = 0 if flow is None else await _members_kept_until(engine, flow, args.retention_ms)
    begun = await _step(engine, replace(asked, members_kept_until=kept), envelope)
    if begun.action != REMOVING or flow is None:
        return begun
    executions = 0
    for start in range(0, flow.node_count, PAGE):
        members = await _members(engine, flow, start)
        trims = [TrimExecutionArgs(execution_id=one, retention_ms=args.retention_ms) for one in members]
        answers = await asyncio.gather(*(trim_execution(engine, trim, envelope) for trim in trims))
        executions += sum(answer.executions for answer in answers)
        if any(answer.action == KEPT for answer in answers):
            # A member runs again; the next sweep looks whether it has ended.
            return replace(begun, executions=executions)
    ended = await _remove_all(engine, asked, identity, (Flow, FlowProgress), envelope)
    return replace(ended, executions=executions)


async def _remove_all(
    engine: Engine,
    asked: RemoveExecutionArgs | RemoveFlowArgs,
    identity: str,
    last: tuple[type[Any], ...],
    envelope: Envelope,
) -> RetentionSettled:
    """Remove step by step all records below an identity, those of the last kinds at the very end."""
    core = {key_for(record_type, identity) for record_type in last}
    while True:
        owned = await engine.store.list_owned(identity, limit=RECORDS_PER_STEP + len(core) + 1)
        if debts := [key for key in owned if kind_of(key) == GivenBack.KIND]:
            await _pay(engine, debts)
            continue
        keys = _one_step([key for key in owned if key not in core])
        step = replace(asked, keys=keys, last=len(keys) + len(core & set(owned)) == len(owned))
        answer = await _step(engine, step, envelope)
        if answer.action != REMOVING:
            return answer


async def _pay(engine: Engine, debts: list[Key]) -> None:
    """Tell the quota policies first which admissions are not needed any more; nobody else would.

    Raises:
        FlowFabricError: a policy cannot be told now. The execution is kept until it can.
    """
    members = [debt.partition("/")[2] for debt in debts]
    for command in (give_back, forget_given_back):
        for answer in await engine.execute_unbounded([command(member) for member in members]):
            if isinstance(answer, Exception):
                raise answer


def _one_step(keys: list[Key]) -> tuple[Key, ...]:
    """As many of the keys as one commit removes."""
    chosen: list[Key] = []
    large = 0
    for key in keys[:RECORDS_PER_STEP]:
        large += RECORD_TYPES[kind_of(key)].LARGE
        if large > LARGE_RECORDS_PER_STEP:
            break
        chosen.append(key)
    return tuple(chosen)


async def _step(engine: Engine, command: Command[RetentionSettled], envelope: Envelope) -> RetentionSettled:
    [answer] = await engine.decide([(command, envelope)])
    if isinstance(answer, Exception):
        raise answer
    settled: RetentionSettled = answer
    return settled


# Members


async def _loaded_flow(engine: Engine, identity: str) -> Flow | None:
    [flow] = await load_records(engine.store, [key_for(Flow, identity)])
    return flow if isinstance(flow, Flow) else None


async def _members_kept_until(engine: Engine, flow: Flow, retention_ms: int) -> int:
    """Until when any member has to be kept; 0 while the flow itself has not ended or is not old."""
    [progress] = await load_records(engine.store, [key_for(FlowProgress, flow.identity)])
    now = await engine.store.now()
    due_at = flow_due_at(flow, progress, retention_ms) if isinstance(progress, FlowProgress) else None
    if flow.removing_since is not None or due_at is None or due_at > now:
        return 0
    latest = 0
    for start in range(0, flow.node_count, PAGE):
        keys = [key_for(Execution, member) for member in await _members(engine, flow, start)]
        found = [one for one in await load_records(engine.store, keys) if isinstance(one, Execution)]
        latest = max([latest, *map(kept_until, found)])
    return latest


async def _members(engine: Engine, flow: Flow, start: int) -> list[str]:
    """The executions of one page of members."""
    places = range(start, min(start + PAGE, flow.node_count))
    keys = [key_for(FlowMember, f"{flow.identity}/{place}") for place in places]
    members = await load_records(engine.store, keys)
    return [member.execution_id for member in members if isinstance(member, FlowMember)]


# The log


async def trim_log(engine: Engine, retention_ms: int) -> int:
    """Remove the events that are older than the retention. Returns how many there were."""
    store, count = engine.store, 0
    horizon = await store.now() - retention_ms
    while True:
        trimmed = await store.trimmed_events()
        page = await store.read_events(trimmed, limit=EVENTS_PER_STEP)
        old = list(takewhile(lambda stored: stored.event.at_ms <= horizon, page))
        if old:
            await store.trim_events(old[-1].sequence, sparing=SPARED)
        count += sum(stored.event.family not in SPARED for stored in old)
        if not old or len(old) < len(page):
            return count + await trim_operator_log(engine, retention_ms)


async def trim_operator_log(engine: Engine, retention_ms: int) -> int:
    """Remove entries of the operator log once they have outlived its own, longer retention.

    An entry tells how far the log was trimmed. It is committed first, so that whoever follows the
    log learns of what is gone; and it is written once in a while, not for each entry that is due.
    """
    store = engine.store
    kept_ms = max(retention_ms, OPERATOR_LOG_RETENTION_MS)
    now, trimmed = await store.now(), await store.trimmed_events()
    page = await store.read_events(0, families=SPARED, limit=EVENTS_PER_STEP)
    old = [stored for stored in page if stored.event.at_ms <= now - kept_ms and stored.sequence <= trimmed]
    if not old or old[0].event.at_ms > now - kept_ms - DAY_MS:
        return 0
    upto = old[-1].sequence
    told = LogActArgs(act="log_trimmed", namespace="", told={"entries": len(old), "upto": upto})
    [answer] = await engine.execute_unbounded([told])
    if isinstance(answer, Exception):
        raise answer
    await store.forget_events(Family.OPERATOR, upto)
    return len(old)


# One pass over everything


@operation(TrimRetentionArgs)
async def trim_retention(engine: Engine, args: TrimRetentionArgs, envelope: Envelope) -> RetentionTrimmed:
    """One pass over all that is due, the oldest first.

    Raises:
        Unauthorized: the caller is bound to a namespace.
    """
    if envelope.namespace is not None:
        raise errors.Unauthorized("Retention concerns all namespaces. Ask without being bound to one.")
    # Logged before anything is removed: what follows are many commits, and any may be the last.
    logged = LogActArgs(act="retention_trimmed", namespace="", told={"retention_ms": args.retention_ms})
    [answer] = await engine.execute_unbounded([logged], actor=envelope.actor)
    if isinstance(answer, Exception):
        raise answer
    counts: Counter[str] = Counter()
    for scope in ("", OWN_SCOPE, FLOW_SCOPE):
        await _trim_due(engine, scope, args, counts)
    events = await trim_log(engine, args.retention_ms)
    return RetentionTrimmed(
        executions=counts["executions"],
        flows=counts["flows"],
        events=events,
        more=counts["looked"] >= args.limit,
    )


async def _trim_due(engine: Engine, scope: str, args: TrimRetentionArgs, counts: Counter[str]) -> None:
    """Trim what one scope of the index says is due, until the limit of the pass is reached."""
    upto = await engine.store.now() - (0 if scope == OWN_SCOPE else args.retention_ms)
    after: tuple[int, str] | None = None
    while (left := args.limit - counts["looked"]) > 0:
        page = await engine.store.read_index(RETENTION, scope, after=after, upto=upto, limit=min(PAGE, left))
        if not page:
            return
        commands = [trim_command(scope, member, args.retention_ms) for _, member in page]
        for (_, member), answer in zip(page, await engine.execute_unbounded(commands), strict=True):
            if isinstance(answer, Exception):
                log.warning("retention: %s: %s", member, answer)
            else:
                counts.update(executions=answer.executions, flows=answer.flows)
        counts["looked"] += len(page)
        after = page[-1]


def trim_command(scope: str, member: str, retention_ms: int) -> Command[RetentionSettled]:
    """The command for an entry of what is due."""
    if scope == FLOW_SCOPE:
        return TrimFlowArgs(flow_identity=member, retention_ms=retention_ms)
    return TrimExecutionArgs(execution_id=member, retention_ms=retention_ms)

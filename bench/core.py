"""What one command costs in the rules and in the working set, without any store or event loop."""

from __future__ import annotations

import time
from typing import Any

from bench.scene import PAYLOAD, RESULT, Figure
from flowfabric.contracts.check import check
from flowfabric.contracts.executions import CompleteExecutionArgs, CreateExecutionArgs
from flowfabric.contracts.ids import ExecutionId, LeaseFence
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.core.commands import CandidateClaimed, ClaimCandidateArgs
from flowfabric.core.registry import RULES
from flowfabric.core.work import Envelope, Work, WorkingSet
from flowfabric.engine import catalog as _catalog  # noqa: F401 - importing it registers the rules
from flowfabric.engine.commits import build_commit, remember_outcome
from flowfabric.minting import new_attempt_id, new_execution_id, new_lease_id

COMMANDS = 5_000
NOW = 1_800_000_000_000
NAMESPACE = LANE = "default"
POLICIES: dict[str, ExecutionPolicy] = {}
"""One mapping for all claims, as one search has it: a store may send claims together that share it."""


async def measure(url: str, *, commands: int = COMMANDS) -> list[Figure]:
    """Microseconds a command: check, decide, remember the outcome, build its part of the commit."""
    created = [creation_of() for _ in range(commands)]
    working_set = WorkingSet()
    create_us, _ = _time(created, working_set)
    claims = [claim_of(command.execution_id) for command in created]
    claim_us, claimed = _time(claims, working_set)
    completions = [
        completion_of(answer.work.execution_id, answer.work.fence)
        for answer in claimed
        if isinstance(answer, CandidateClaimed)
    ]
    complete_us, _ = _time(completions, working_set)
    return [
        Figure(name="core: create", value=create_us, unit="us"),
        Figure(name="core: claim", value=claim_us, unit="us"),
        Figure(name="core: complete", value=complete_us, unit="us"),
    ]


def _time(commands: list[Any], working_set: WorkingSet) -> tuple[float, list[Any]]:
    begun = time.perf_counter()
    answers = []
    for place in range(0, len(commands), 16):
        answers += _batch(commands[place : place + 16], working_set)
    return (time.perf_counter() - begun) / len(commands) * 1e6, answers


def _batch(commands: list[Any], working_set: WorkingSet) -> list[Any]:
    working_set.now = NOW
    works, answers = [], []
    for command in commands:
        check(command)
        rule = RULES[type(command)]
        work = _Open(working_set, Envelope(request_id="bench"))
        answers.append(rule.decide(work, command))
        remember_outcome(rule, command, work, answers[-1])
        working_set.absorb(work)
        works.append(work)
    for work in works:
        for key in work.reads:
            working_set.loaded.setdefault(key, None)
            working_set.versions.setdefault(key, 0)
    build_commit(works, working_set)
    for work in works:
        working_set.loaded.update(work.writes)
    working_set.current.clear()
    return answers


class _Open(Work):
    """A view in which every record that was not written is absent."""

    __slots__ = ()

    def peek(self, key: str) -> Any:
        self._set.loaded.setdefault(key, None)
        return super().peek(key)


def creation_of() -> CreateExecutionArgs:
    """One of many that differ in nothing but their ids."""
    return CreateExecutionArgs(
        execution_id=new_execution_id(),
        namespace=NAMESPACE,
        lane_id=LANE,
        execution_kind="echo",
        input_payload=PAYLOAD,
        priority=0,
        creator_identity="bench",
    )


def claim_of(execution_id: ExecutionId) -> ClaimCandidateArgs:
    """A worker's claim of an execution that was created like that."""
    return ClaimCandidateArgs(
        execution_id=execution_id,
        lane_id=LANE,
        worker_id="bench",
        worker_instance_id="bench",
        worker_capabilities=frozenset(),
        lease_id=new_lease_id(),
        attempt_id=new_attempt_id(),
        lease_ttl_ms=30_000,
        policies=POLICIES,
    )


def completion_of(execution_id: ExecutionId, fence: LeaseFence) -> CompleteExecutionArgs:
    """The end of its first attempt."""
    return CompleteExecutionArgs(
        execution_id=execution_id, fence=fence, attempt_index=0, result_payload=RESULT
    )

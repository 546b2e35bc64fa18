"""Asking budgets and quota policies before work is given to a worker.

The rules decide; this module only carries their answers between the partitions. A claim that lacks
the admission of its quota policy is refused and says so: the admission is asked for, and the claim
made again. Work for which there is no headroom is held back. Claims that are not refused for these
reasons, and so all work without budgets and quota policies, pay nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, TypeVar

from flowfabric import errors
from flowfabric.contracts.leases import IssueClaimGrantArgs, IssueClaimGrantResult
from flowfabric.contracts.quotas import CheckAdmissionArgs
from flowfabric.core.commands import HeldBack, HoldBackArgs, LetGoArgs
from flowfabric.core.records import Budget, Execution, QuotaPolicy, key_for
from flowfabric.engine.listing import load_records
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.commands import ClaimCandidateArgs, ClaimCandidateResult
    from flowfabric.core.records import Key, Record
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine

log = logging.getLogger("flowfabric.engine")

R = TypeVar("R")

NO_HEADROOM: Final = (
    errors.BudgetExceeded,
    errors.BudgetNotFound,
    errors.RateLimitExceeded,
    errors.ConcurrencyLimitExceeded,
    errors.QuotaPolicyNotFound,
)
"""Refusals after which work is held back until there is headroom."""


async def claim_admitted(
    engine: Engine, commands: Sequence[ClaimCandidateArgs], envelope: Envelope
) -> list[ClaimCandidateResult | Exception]:
    """Claim candidates, asking for the admissions that they need. Holds back what is refused.

    A fault while asking is the answer to the claim: nothing is claimed that was not admitted.
    """
    answers = await engine.execute_many(commands, namespace=envelope.namespace)
    unasked = [place for place, answer in enumerate(answers) if isinstance(answer, errors.AdmissionMissing)]
    if unasked:
        await _ask_and_claim(engine, commands, answers, unasked, envelope)
    refused = [
        HoldBackArgs(execution_id=command.execution_id, policies=command.policies)
        for command, answer in zip(commands, answers, strict=True)
        if isinstance(answer, NO_HEADROOM)
    ]
    if refused:
        await hold_back(engine, refused, envelope)
    return answers


async def hold_back(engine: Engine, commands: Sequence[HoldBackArgs], envelope: Envelope) -> set[str]:
    """Hold back that of the work for which there is no headroom. Returns what is blocked now."""
    answers = await engine.execute_many(commands, namespace=envelope.namespace)
    subjects = {
        command.execution_id: answer.subject
        for command, answer in zip(commands, answers, strict=True)
        if isinstance(answer, HeldBack) and answer.action == "blocked"
    }
    try:
        await _look_again(engine, subjects, envelope)
    except errors.FlowFabricError as error:  # what was claimed beside it must not be lost with it
        log.warning("work that was held back could not be looked at again: %s", error)
    return set(subjects)


async def _look_again(engine: Engine, held: dict[str, Key], envelope: Envelope) -> None:
    """Let go what was held back while headroom returned.

    A commit rests on a record in another place of the store with a gap: headroom may have returned
    in between, and found nobody who waits.
    """
    subjects = {
        execution_id: subject
        for execution_id, subject in held.items()
        if _lies_apart(engine, subject, execution_id)
    }
    if not subjects:
        return
    found = await load_records(engine.store, list(subjects.values()))
    letting_go = [
        LetGoArgs(execution_id=execution_id, waits_for=subject.partition("}:")[2])
        for (execution_id, subject), record in zip(subjects.items(), found, strict=True)
        if _has_returned(record)
    ]
    if letting_go:
        await engine.execute_many(letting_go, namespace=envelope.namespace)


def _lies_apart(engine: Engine, subject: Key, execution_id: str) -> bool:
    place_of = engine.store.place_of
    return place_of(subject) != place_of(key_for(Execution, execution_id))


def _has_returned(record: Record | None) -> bool:
    """Whether there may be headroom, of which nobody tells those that wait from now on."""
    if isinstance(record, QuotaPolicy):
        return not record.waiting
    return isinstance(record, Budget) and record.closed_at is None


async def _ask_and_claim(
    engine: Engine,
    commands: Sequence[ClaimCandidateArgs],
    answers: list[ClaimCandidateResult | Exception],
    unasked: list[int],
    envelope: Envelope,
) -> None:
    """Ask the quota policies, then claim again. What was not admitted is refused for that reason."""
    asking = [_question(answers[place]) for place in unasked]
    admissions = await engine.execute_many(asking, namespace=envelope.namespace)
    claimed = await engine.execute_many([commands[place] for place in unasked], namespace=envelope.namespace)
    for place, admission, answer in zip(unasked, admissions, claimed, strict=True):
        answers[place] = admission if isinstance(admission, Exception) else answer


def _question(refusal: object) -> CheckAdmissionArgs:
    """What to ask a quota policy after a claim that lacked its admission."""
    assert isinstance(refusal, errors.AdmissionMissing)
    return CheckAdmissionArgs(
        quota_policy_id=refusal.details["quota_policy_id"], execution_id=refusal.details["execution_id"]
    )


async def decide_admitted(engine: Engine, command: Command[R], envelope: Envelope) -> R:
    """Carry out one command that claims, or reserves, an execution by its name.

    Raises:
        BudgetExceeded, RateLimitExceeded, ConcurrencyLimitExceeded: there is no headroom.
        FlowFabricError: another refusal of the command.
    """
    [answer] = await engine.decide([(command, envelope)])
    if isinstance(answer, errors.AdmissionMissing):
        await engine.execute(_question(answer), namespace=envelope.namespace)
        [answer] = await engine.decide([(command, envelope)])
    if isinstance(answer, Exception):
        raise answer
    outcome: R = answer
    return outcome


@operation(IssueClaimGrantArgs)
async def issue_claim_grant(
    engine: Engine, args: IssueClaimGrantArgs, envelope: Envelope
) -> IssueClaimGrantResult:
    """Keep an execution for a worker if there is headroom for it; hold it back if there is none.

    Raises:
        FlowFabricError: see ``decide_admitted`` and the rule.
    """
    try:
        return await decide_admitted(engine, args, envelope)
    except NO_HEADROOM:
        await hold_back(engine, [HoldBackArgs(execution_id=args.execution_id)], envelope)
        raise

"""What contestants do at once, what has to be there before, and who wins.

A kind of race is prepared for some rounds, in each of which everybody sends the same sort of
command at the same moment. Where one must win, exactly one does; and what is left behind afterwards
must be what the answers say.
"""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from flowfabric.contracts.base import Command
from flowfabric.contracts.budgets import (
    GetBudgetStatusArgs,
    ReportUsageAdminArgs,
    ReportUsageArgs,
    UsageApplied,
)
from flowfabric.contracts.conditions import Single
from flowfabric.contracts.executions import (
    CancelExecutionArgs,
    CompleteExecutionArgs,
    CreateExecutionArgs,
    ExecutionCreated,
    FailExecutionArgs,
)
from flowfabric.contracts.flows import NewEdge, SubmitFlowArgs
from flowfabric.contracts.ids import budget_id_of, quota_policy_id_of
from flowfabric.contracts.leases import (
    ClaimGrantIssued,
    IssueClaimGrantArgs,
    LeaseWasRevoked,
    RevokeLeaseArgs,
)
from flowfabric.contracts.quotas import AdmissionGranted, CheckAdmissionArgs, ReadQuotaPolicyLimitsArgs
from flowfabric.contracts.signals import DeliverSignalArgs, SignalAccepted, SignalEffect
from flowfabric.contracts.suspensions import FreshWaitpoint, SuspendExecutionArgs
from flowfabric.core.commands import CandidateClaimed, ClaimCandidateArgs
from flowfabric.engine.engine import Engine
from flowfabric.minting import new_execution_id, new_flow_id, new_uuid4
from flowfabric.testing.conformance.admission import quota_creation
from flowfabric.testing.conformance.budgets import budget_creation

CONTESTANTS = 3
NAMESPACE, LANE, TTL_MS = "races", "lane", 3_600_000
KEY = "wpk:1"
TOKENS, TOKENS_MAX = 6, 10
"""What one report counts, and a limit that lets one of them through."""
REPORTS = 5

Round = dict[str, Any]
Asked = Command[Any] | tuple[Command[Any], ...]


async def nothing_to_check(engine: Engine, rounds: list[Round]) -> None:
    """Whoever won has said so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of race.

    Attributes:
        prepare: makes what so many rounds need.
        steps: what each contestant sends in a round, by its number; everybody waits for the others
            before each step. Several commands are sent at once. The last step decides.
        wins: whether the answers to the last step are those of a winner; refusals are not.
        winners: how many there must be.
        check: makes sure that what is stored after the rounds is what the answers said.
    """

    prepare: Callable[[Engine, int], Awaitable[list[Round]]]
    steps: tuple[Callable[[Round, int], Asked], ...]
    wins: Callable[[Any], bool] = lambda answer: True
    winners: int = 1
    check: Callable[[Engine, list[Round]], Awaitable[None]] = nothing_to_check


def is_a(outcome: type) -> Callable[[Any], bool]:
    """Whether an answer is such an outcome."""
    return lambda answer: isinstance(answer, outcome)


# What rounds need


async def nothing(engine: Engine, count: int) -> list[Round]:
    """Only an id."""
    return [{"execution_id": new_execution_id()} for _ in range(count)]


async def created(engine: Engine, count: int) -> list[Round]:
    """An execution that waits for a worker."""
    rounds = await nothing(engine, count)
    await all_of(engine, [creation(found["execution_id"]) for found in rounds])
    return rounds


async def claimed(engine: Engine, count: int) -> list[Round]:
    """An execution that somebody holds."""
    rounds = await created(engine, count)
    answers = await all_of(engine, [claim(found, 0) for found in rounds])
    for found, answer in zip(rounds, answers, strict=True):
        found["fence"] = answer.work.fence
    return rounds


async def suspended(engine: Engine, count: int) -> list[Round]:
    """An execution that waits for one signal."""
    rounds = await claimed(engine, count)
    answers = await all_of(engine, [suspension(found) for found in rounds])
    for found, answer in zip(rounds, answers, strict=True):
        details = answer.details
        found["waitpoint_id"], found["token"] = details.waitpoint_id, details.waitpoint_token
    return rounds


async def limited(engine: Engine, count: int) -> list[Round]:
    """A quota policy that admits one at once, and an execution for each contestant."""
    names = [new_uuid4() for _ in range(count)]
    policies = [(f"quota {name}", quota_policy_id_of(NAMESPACE, f"quota {name}")) for name in names]
    await all_of(
        engine, [quota_creation(quota_policy_id=policy_id, name=name, cap=1) for name, policy_id in policies]
    )
    return [{"quota_policy_id": policy_id, "ids": await contestants_own(engine)} for _, policy_id in policies]


async def contestants_own(engine: Engine) -> list[str]:
    """The ids of an execution for each contestant."""
    ids = [new_execution_id() for _ in range(CONTESTANTS)]
    await all_of(engine, [creation(execution_id) for execution_id in ids])
    return ids


async def budgeted(engine: Engine, count: int) -> list[Round]:
    """A budget that has room for one report, and a held execution for each contestant."""
    return [
        {"budget_id": await new_budget(engine, hard=TOKENS_MAX), "held": await claimed(engine, CONTESTANTS)}
        for _ in range(count)
    ]


async def counted(engine: Engine, count: int) -> list[Round]:
    """A budget with room for all, the same one in every round."""
    budget_id = await new_budget(engine)
    return [{"budget_id": budget_id, "round": number} for number in range(count)]


async def new_budget(engine: Engine, **limits: int) -> str:
    """The id of a budget of tokens that nobody has used."""
    name = f"budget {new_uuid4()}"
    await engine.execute(budget_creation(budget_id=budget_id_of(NAMESPACE, name), name=name, **limits))
    return budget_id_of(NAMESPACE, name)


async def joined(engine: Engine, count: int) -> list[Round]:
    """A flow in which a child waits for all of its parents, one for each contestant, who holds it."""
    return [await _joined(engine) for _ in range(count)]


async def _joined(engine: Engine) -> Round:
    flow_id = new_flow_id()
    *parents, child = (new_execution_id(flow_id=flow_id) for _ in range(CONTESTANTS + 1))
    await engine.execute(
        SubmitFlowArgs(
            flow_id=flow_id,
            flow_kind="dag",
            namespace=NAMESPACE,
            executions=tuple(creation(member) for member in (*parents, child)),
            edges=tuple(
                NewEdge(edge_id=new_uuid4(), upstream_execution_id=parent, downstream_execution_id=child)
                for parent in parents
            ),
        )
    )
    held: list[Round] = [{"execution_id": parent} for parent in parents]
    for parent, answer in zip(held, await all_of(engine, [claim(one, 0) for one in held]), strict=True):
        parent["fence"] = answer.work.fence
    return {"execution_id": child, "parents": held}


async def all_of(engine: Engine, commands: list[Any]) -> list[Any]:
    """The answers to commands of which none is refused."""
    answers = await engine.execute_many(commands)
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert not refused, refused[0]
    return answers


# What contestants send


def creation(execution_id: str, **fields: Any) -> CreateExecutionArgs:
    """A plain creation; any field can be given."""
    return CreateExecutionArgs(
        execution_id=execution_id,
        namespace=NAMESPACE,
        lane_id=LANE,
        execution_kind="kind",
        input_payload=b"",
        priority=0,
        creator_identity="races",
        **fields,
    )


def create(round_: Round, number: int) -> Asked:
    """Under one key, each with an id of its own."""
    return creation(new_execution_id(), idempotency_key=round_["execution_id"])


def worker(number: int) -> dict[str, Any]:
    """The fields that name a contestant as a worker."""
    return {"worker_id": f"worker-{number}", "worker_instance_id": f"worker-{number}-1"}


def claim(round_: Round, number: int) -> ClaimCandidateArgs:
    """The execution of the round."""
    return ClaimCandidateArgs(
        execution_id=round_["execution_id"],
        lane_id=LANE,
        **worker(number),
        worker_capabilities=frozenset(),
        lease_id=new_uuid4(),
        attempt_id=new_uuid4(),
        lease_ttl_ms=TTL_MS,
    )


def grant(round_: Round, number: int) -> Asked:
    """Each for itself."""
    return IssueClaimGrantArgs(
        execution_id=round_["execution_id"], lane_id=LANE, **worker(number), grant_ttl_ms=60_000
    )


def end(round_: Round, number: int) -> Asked:
    """One completes, one fails, one cancels, all with the fence."""
    fields = {"execution_id": round_["execution_id"]}
    held = {**fields, "fence": round_["fence"], "attempt_index": 0}
    match number % CONTESTANTS:
        case 0:
            return CompleteExecutionArgs(**held)
        case 1:
            return FailExecutionArgs(**held, failure_reason="it broke", failure_category="permanent")
    fence = round_["fence"]
    parts = {"lease_id": fence.lease_id, "lease_epoch": fence.lease_epoch, "attempt_id": fence.attempt_id}
    return CancelExecutionArgs(**fields, **parts, reason="given up", source="lease_holder")


def revoke(round_: Round, number: int) -> Asked:
    """The lease that somebody else holds."""
    return RevokeLeaseArgs(execution_id=round_["execution_id"], reason=f"by {number}")


def complete_parent(round_: Round, number: int) -> Asked:
    """Each its own."""
    parent = round_["parents"][number]
    return CompleteExecutionArgs(execution_id=parent["execution_id"], fence=parent["fence"], attempt_index=0)


def suspension(round_: Round) -> SuspendExecutionArgs:
    """Until one signal comes."""
    return SuspendExecutionArgs(
        execution_id=round_["execution_id"],
        fence=round_["fence"],
        attempt_index=0,
        suspension_id=new_uuid4(),
        waitpoints=(FreshWaitpoint(waitpoint_id=new_uuid4(), waitpoint_key=KEY),),
        resume_condition=Single(waitpoint_key=KEY),
    )


def signal(round_: Round, number: int, key: str | None = "once") -> Asked:
    """The same thing said by all."""
    return DeliverSignalArgs(
        execution_id=round_["execution_id"],
        waitpoint_id=round_["waitpoint_id"],
        waitpoint_token=round_["token"],
        signal_id=new_uuid4(),
        signal_name="go",
        signal_category="",
        source_type="races",
        source_identity="all",
        idempotency_key=key,
    )


def another_signal(round_: Round, number: int) -> Asked:
    """Each says something of its own."""
    return signal(round_, number, key=None)


def admission(round_: Round, number: int) -> Asked:
    """Each for an execution of its own."""
    return CheckAdmissionArgs(quota_policy_id=round_["quota_policy_id"], execution_id=round_["ids"][number])


def report(round_: Round, number: int) -> Asked:
    """Each what its own execution has spent."""
    held = round_["held"][number]
    return ReportUsageArgs(
        budget_id=round_["budget_id"],
        execution_id=held["execution_id"],
        fence=held["fence"],
        dimensions=("tokens",),
        deltas=(TOKENS,),
    )


def same_report(round_: Round, number: int) -> Asked:
    """All under one key."""
    return ReportUsageAdminArgs(
        budget_id=round_["budget_id"],
        dimensions=("tokens",),
        deltas=(TOKENS,),
        dedup_key=f"once {round_['round']}",
    )


def some_reports(round_: Round, number: int) -> Asked:
    """Several at once, half of them with keys."""
    return tuple(
        ReportUsageAdminArgs(
            budget_id=round_["budget_id"],
            dimensions=("tokens",),
            deltas=(TOKENS,),
            dedup_key=f"{number} {round_['round']} {place}" if place % 2 else None,
        )
        for place in range(REPORTS)
    )


# What is left


async def usage(engine: Engine, budget_id: str) -> int:
    """How many tokens a budget has counted."""
    return (await engine.execute(GetBudgetStatusArgs(budget_id=budget_id))).usage.get("tokens", 0)


async def one_report_is_counted(engine: Engine, rounds: list[Round]) -> None:
    """In each round, and so the hard limit is not passed."""
    for found in rounds:
        assert await usage(engine, found["budget_id"]) == TOKENS


async def each_key_is_counted_once(engine: Engine, rounds: list[Round]) -> None:
    """Over all rounds together."""
    for budget_id in {found["budget_id"] for found in rounds}:
        mine = [found for found in rounds if found["budget_id"] == budget_id]
        assert await usage(engine, budget_id) == len(mine) * TOKENS


async def every_report_is_counted(engine: Engine, rounds: list[Round]) -> None:
    """Exactly their sum, over all rounds together."""
    for budget_id in {found["budget_id"] for found in rounds}:
        mine = [found for found in rounds if found["budget_id"] == budget_id]
        assert await usage(engine, budget_id) == len(mine) * CONTESTANTS * REPORTS * TOKENS


async def one_is_admitted(engine: Engine, rounds: list[Round]) -> None:
    """In each round."""
    for found in rounds:
        limits = await engine.execute(ReadQuotaPolicyLimitsArgs(quota_policy_id=found["quota_policy_id"]))
        assert limits is not None
        assert limits.active == 1


KINDS: dict[str, Kind] = {
    "claim": Kind(prepare=created, steps=(claim,)),
    "end": Kind(prepare=claimed, steps=(end,)),
    "same signal": Kind(prepare=suspended, steps=(signal,), wins=is_a(SignalAccepted)),
    "signals": Kind(
        prepare=suspended,
        steps=(another_signal,),
        wins=lambda answer: answer.effect is SignalEffect.RESUME_CONDITION_SATISFIED,
    ),
    "revoke": Kind(prepare=claimed, steps=(revoke,), wins=is_a(LeaseWasRevoked)),
    "grant": Kind(prepare=created, steps=(grant,), wins=is_a(ClaimGrantIssued)),
    "create": Kind(prepare=nothing, steps=(create,), wins=is_a(ExecutionCreated)),
    "admission": Kind(
        prepare=limited, steps=(admission,), wins=is_a(AdmissionGranted), check=one_is_admitted
    ),
    "report": Kind(prepare=budgeted, steps=(report,), wins=is_a(UsageApplied), check=one_report_is_counted),
    "same report": Kind(
        prepare=counted, steps=(same_report,), wins=is_a(UsageApplied), check=each_key_is_counted_once
    ),
    "reports": Kind(
        prepare=counted,
        steps=(some_reports,),
        wins=lambda answers: answers == [UsageApplied()] * REPORTS,
        winners=CONTESTANTS,
        check=every_report_is_counted,
    ),
    "join": Kind(prepare=joined, steps=(complete_parent, claim), wins=is_a(CandidateClaimed)),
}

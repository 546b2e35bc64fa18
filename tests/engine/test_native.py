"""Which commands of a batch the store is asked to decide, and in which order."""

from collections.abc import Sequence
from typing import Any

from flowfabric.contracts.blocking import PauseExecutionArgs
from flowfabric.contracts.budgets import ReportUsageAdminArgs, ReportUsageArgs
from flowfabric.contracts.ids import LeaseFence, budget_id_of
from flowfabric.contracts.lanes import SetLaneStateArgs
from flowfabric.contracts.states import LaneState
from flowfabric.core.records import Execution
from flowfabric.core.work import Envelope
from flowfabric.engine.native import choose
from flowfabric.engine.recent import RecentRecords
from flowfabric.engine.tickets import group_of
from flowfabric.stores.base import Change, Commit

EXECUTION = "{fp:7}:00000000-0000-4000-8000-00000000000"


class Reports:
    """A store that decides reports of usage and pauses, and keeps the order of reports only.

    Pauses of executions that it knows to be urgent it leaves to the rule.
    """

    def takes(self, command: Any) -> bool:
        return isinstance(command, ReportUsageArgs | ReportUsageAdminArgs | PauseExecutionArgs)

    def looks_at(self, command: Any) -> list[str]:
        return [f"execution/{command.execution_id}"] if isinstance(command, ReportUsageArgs) else []

    def forget(self) -> None:
        pass

    def leaves(self, command: Any, known: Any) -> bool:
        return bool(known.priority > 0)

    def orders(self, command: Any) -> bool:
        return isinstance(command, ReportUsageArgs | ReportUsageAdminArgs)

    async def decide(self, asked: Any, remembered: Any) -> Any:
        raise AssertionError("nothing is decided here")


def report(name: str) -> ReportUsageAdminArgs:
    return ReportUsageAdminArgs(budget_id=budget_id_of("default", name), dimensions=("tokens",), deltas=(1,))


def report_of(number: int, name: str) -> ReportUsageArgs:
    """A report of work that runs: the store looks at its execution before it decides."""
    execution_id = f"{EXECUTION}{number}"
    fence = LeaseFence(lease_id=EXECUTION[7:] + "8", lease_epoch=1, attempt_id=EXECUTION[7:] + "9")
    return ReportUsageArgs(
        budget_id=budget_id_of("default", name),
        execution_id=execution_id,
        fence=fence,
        dimensions=("tokens",),
        deltas=(1,),
    )


def pause(number: int) -> PauseExecutionArgs:
    return PauseExecutionArgs(execution_id=f"{EXECUTION}{number}", reason="stop")


def lane(state: str) -> SetLaneStateArgs:
    return SetLaneStateArgs(namespace="default", lane_id="default", state=LaneState(state))


def chosen(*commands: Any, known: Sequence[Execution] = ()) -> tuple[list[Any], list[Any]]:
    """What the store is asked, and what is left to the rules."""
    recent = RecentRecords()
    for record in known:
        recent.keep(commit_of(record), 1)
    tickets = group_of([(command, Envelope(request_id="one")) for command in commands]).tickets
    taken, others = choose(Reports(), tickets, recent)
    return [ticket.command for ticket in taken], [ticket.command for ticket in others]


def test_commands_about_one_record_are_taken_if_their_order_is_kept() -> None:
    batch = (report("a"), report("b"), report("a"))
    assert chosen(*batch) == (list(batch), [])
    assert chosen(pause(1), pause(2)) == ([pause(1), pause(2)], [])
    assert chosen(pause(1), pause(2), pause(1)) == ([pause(2)], [pause(1), pause(1)])


def test_what_the_store_leaves_to_the_rules_for_what_is_remembered_is_left() -> None:
    known = [execution(f"{EXECUTION}{number}", priority=number - 1) for number in (1, 2)]
    assert chosen(pause(1), pause(2), pause(3), known=known) == ([pause(1), pause(3)], [pause(2)])


def execution(execution_id: str, *, priority: int) -> Execution:
    return Execution(
        execution_id=execution_id,
        namespace="default",
        lane_id="default",
        execution_kind="kind",
        priority=priority,
        creator_identity="tests",
        created_at=1,
        last_transition_at=1,
        last_mutation_at=1,
    )


def commit_of(record: Execution) -> Commit:
    return Commit(
        now=1,
        changes=[Change(record.key, 0, record)],
        relied_on=[],
        rows_removed=[],
        rows_added=[],
        events=[],
        appends=[],
        trims=[],
    )


def test_what_is_left_to_the_rules_stays_in_its_order_whatever_it_is_about() -> None:
    left = [pause(1), lane("paused"), pause(1), lane("active")]
    assert chosen(left[0], report("a"), *left[1:3], report("a"), left[3]) == ([report("a")] * 2, left)


def test_what_is_looked_at_for_others_is_left_to_the_rules_with_these() -> None:
    batch = (pause(1), report_of(1, "a"), report_of(2, "a"), report_of(2, "b"), pause(3))
    assert chosen(*batch) == ([report_of(2, "b"), pause(3)], [pause(1), report_of(1, "a"), report_of(2, "a")])
    assert chosen(lane("paused"), report_of(1, "a")) == ([report_of(1, "a")], [lane("paused")])

"""Runs, flows, budgets and quota policies for code that blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from flowfabric.contracts.flows import FlowCancellationPolicy
from flowfabric.sync.portal import Each

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowfabric.budgeting import Amounts
    from flowfabric.budgeting import Budget as AsyncBudget
    from flowfabric.budgeting import Quota as AsyncQuota
    from flowfabric.contracts.budgets import BudgetStatus, ReportUsageResult
    from flowfabric.contracts.flows import CancelFlowResult, FlowMemberInfo, FlowSnapshot
    from flowfabric.contracts.quotas import QuotaPolicyLimits
    from flowfabric.contracts.runs import RunView
    from flowfabric.contracts.signals import DeliverSignalResult
    from flowfabric.contracts.states import PublicState
    from flowfabric.contracts.streams import StreamFrame
    from flowfabric.flows import FlowRun as AsyncFlowRun
    from flowfabric.flows import Member
    from flowfabric.run import Run as AsyncRun
    from flowfabric.sync.portal import Portal

T = TypeVar("T")
R = TypeVar("R")


class Run(Generic[T]):
    """One execution, by its id; see ``flowfabric.Run``."""

    def __init__(self, portal: Portal, run: AsyncRun[T]) -> None:
        self._portal = portal
        self._run = run
        self.execution_id = run.execution_id
        self.duplicate = run.duplicate

    def __repr__(self) -> str:
        return repr(self._run)

    def view(self) -> RunView:
        """How the execution stands."""
        return self._portal.call(self._run.view)

    def state(self) -> PublicState:
        """The execution's public state."""
        return self._portal.call(self._run.state)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the end and return the handler's result.

        Raises:
            TimeoutError: the time was over first.
            RunFailed, RunCancelled, RunExpired, RunSkipped: it ended otherwise.
        """
        return self._portal.call(lambda: self._run.result(timeout))

    def result_of(self, view: RunView) -> T:
        """The handler's result, once the execution has ended."""
        return self._run.result_of(view)

    def wait(self) -> RunView:
        """Wait for the end, whatever it is."""
        return self._portal.call(self._run.wait)

    def cancel(self, reason: str = "cancelled by its submitter") -> None:
        """Cancel the execution."""
        self._portal.call(lambda: self._run.cancel(reason))

    def signal(
        self,
        name: str,
        payload: Any = None,
        *,
        source_identity: str = "",
        idempotency_key: str | None = None,
    ) -> DeliverSignalResult:
        """Send a signal to the waitpoint that asks for this name; see ``flowfabric.Run.signal``."""
        return self._portal.call(
            lambda: self._run.signal(
                name, payload, source_identity=source_identity, idempotency_key=idempotency_key
            )
        )

    def waitpoint_link(
        self,
        name: str,
        *,
        question: str = "",
        choices: Mapping[str, Any] | None = None,
        public_url: str | None = None,
    ) -> str:
        """The link with which somebody outside sends this signal in a browser, once."""
        return self._portal.call(
            lambda: self._run.waitpoint_link(name, question=question, choices=choices, public_url=public_url)
        )

    def stream(self, attempt: int | None = None) -> Each[StreamFrame]:
        """Frames as they are written; ends by itself when the stream is closed."""
        return Each(self._portal, self._run.stream(attempt))


class FlowRun:
    """One submitted flow, by its id; see ``flowfabric.FlowRun``."""

    def __init__(self, portal: Portal, run: AsyncFlowRun) -> None:
        self._portal = portal
        self._run = run
        self.flow_id = run.flow_id
        self.duplicate = run.duplicate

    def __repr__(self) -> str:
        return repr(self._run)

    @overload
    def member(self, member: Member[R]) -> Run[R]: ...

    @overload
    def member(self, member: str) -> Run[Any]: ...

    def member(self, member: Member[Any] | str) -> Run[Any]:
        """The run of a member, by its name.

        Raises:
            LookupError: the flow has no such member, or was submitted elsewhere.
        """
        return Run(self._portal, self._run.member(member))

    def members(self) -> Each[FlowMemberInfo]:
        """The members with their states and joins, in the order in which they were added."""
        return Each(self._portal, self._run.members())

    def view(self) -> FlowSnapshot:
        """How the flow stands."""
        return self._portal.call(self._run.view)

    def state(self) -> str:
        """``running``, ``completed``, ``failed`` or ``cancelled``; ``open`` while members may be added."""
        return self._portal.call(self._run.state)

    def wait(self) -> FlowSnapshot:
        """Wait for the end, whatever it is."""
        return self._portal.call(self._run.wait)

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the end and return the results of the members that nobody comes after, by name.

        Raises:
            TimeoutError: the time was over first.
            FlowRunFailed, FlowRunCancelled: it ended otherwise.
        """
        return self._portal.call(lambda: self._run.result(timeout))

    def cancel(
        self,
        reason: str = "cancelled by its submitter",
        *,
        policy: FlowCancellationPolicy | str = FlowCancellationPolicy.CANCEL_ALL,
        wait: bool = False,
    ) -> CancelFlowResult:
        """Cancel the flow. One that has ended stays as it is."""
        return self._portal.call(lambda: self._run.cancel(reason, policy=policy, wait=wait))


class Budget:
    """A budget of the app's namespace, by its name."""

    def __init__(self, portal: Portal, budget: AsyncBudget) -> None:
        self._portal = portal
        self._budget = budget
        self.name = budget.name
        self.budget_id = budget.budget_id

    def __repr__(self) -> str:
        return repr(self._budget)

    def status(self) -> BudgetStatus:
        """Its limits, and what has been spent."""
        return self._portal.call(self._budget.status)

    def report(self, amounts: Amounts, *, key: str | None = None) -> ReportUsageResult:
        """Report usage; see ``flowfabric.budgeting.Budget.report``."""
        return self._portal.call(lambda: self._budget.report(amounts, key=key))

    def release(self, execution_id: str) -> dict[str, int]:
        """Give back what an execution has spent in this period."""
        return self._portal.call(lambda: self._budget.release(execution_id))

    def reset(self) -> None:
        """Begin a new period: what was spent no longer counts."""
        self._portal.call(self._budget.reset)

    def change_limits(self, *, hard: Amounts | None = None, soft: Amounts | None = None) -> None:
        """Set limits; dimensions that are not named keep theirs."""
        self._portal.call(lambda: self._budget.change_limits(hard=hard, soft=soft))


class Quota:
    """A quota policy of the app's namespace, by its name."""

    def __init__(self, portal: Portal, quota: AsyncQuota) -> None:
        self._portal = portal
        self._quota = quota
        self.name = quota.name
        self.quota_policy_id = quota.quota_policy_id

    def __repr__(self) -> str:
        return repr(self._quota)

    def limits(self) -> QuotaPolicyLimits:
        """What it allows."""
        return self._portal.call(self._quota.limits)

"""Runs claimed executions: decodes the input, calls the handler, reports what came of it.

Whatever a handler does, one of these follows: it is completed, failed, given back or expired, or
nothing is reported, because the handler has suspended or its lease is lost.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, Protocol

from flowfabric import errors
from flowfabric.codec import decode_value, encode_value, require_size
from flowfabric.contracts.executions import (
    CompleteExecutionArgs,
    DelayExecutionArgs,
    ExpireExecutionArgs,
    ExpireReason,
    FailExecutionArgs,
)
from flowfabric.contracts.journal import JournalEntry, ReadJournalArgs
from flowfabric.contracts.limits import RESULT_BYTES_MAX
from flowfabric.contracts.states import AttemptType
from flowfabric.leased import LEASE_LOST, LeasedEngine, execute_patiently
from flowfabric.observability.logs import bind
from flowfabric.task import SyncTask, Task
from flowfabric.worker.failures import UnknownKind, category_of, describe
from flowfabric.worker.heartbeat import Heartbeat, HeldLease, Stop
from flowfabric.worker.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from flowfabric.contracts.base import Command
    from flowfabric.contracts.leases import ClaimedWork
    from flowfabric.engine.interface import AnyEngine
    from flowfabric.handlers import Handler

log = logging.getLogger("flowfabric.worker")

LEASE_HOLDER = "lease_holder"


class RunTracing(Protocol):
    """What opens a span around each run of a handler."""

    def running(
        self, claim: ClaimedWork, worker_instance_id: str
    ) -> AbstractContextManager[Callable[[str], None]]:
        """The span of a run. Yields what to call with a category if the attempt fails."""


class Runner:
    """Runs handlers for one worker."""

    def __init__(
        self,
        engine: AnyEngine,
        handlers: Mapping[str, Handler[..., Any]],
        namespace: str,
        heartbeat: Heartbeat,
        *,
        instance_id: str,
        tracing: RunTracing | None = None,
    ) -> None:
        self._engine = engine
        self._handlers = handlers
        self._namespace = namespace
        self._heartbeat = heartbeat
        self._instance_id = instance_id
        self._tracing = tracing

    async def run(self, lease: HeldLease, when_over: Callable[[], None]) -> None:
        """Run what was claimed to its end, its suspension, or the loss of its lease, in a task of its own.

        Args:
            lease: what was claimed.
            when_over: called when the handler has ended, before its outcome is reported.
        """
        bind(**_log_fields(lease.claim), worker_instance_id=self._instance_id)
        if self._tracing is None:
            await self._run(lease, when_over)
            return
        with self._tracing.running(lease.claim, self._instance_id) as tell_failed:
            report = await self._run(lease, when_over)
            if isinstance(report, FailExecutionArgs):
                tell_failed(report.failure_category)

    async def _run(self, lease: HeldLease, when_over: Callable[[], None]) -> Command[Any] | None:
        lease.run = asyncio.current_task()
        leased = LeasedEngine(self._engine, self._namespace)
        try:
            report = await self._outcome(lease, leased)
        finally:
            lease.over = leased.gone = True
            when_over()
        if report is not None:
            await self._report(report, lease)
        return report

    async def _outcome(self, lease: HeldLease, leased: LeasedEngine) -> Command[Any] | None:
        """Call the handler and turn what comes of it into a command; None to report nothing."""
        result, error = None, None
        try:
            if lease.stopped is None:
                result = _completed(lease.claim, await self._call(lease.claim, leased))
        except BaseException as raised:  # noqa: BLE001 - whatever a handler raises must not end the worker
            error = raised
        if isinstance(error, asyncio.CancelledError) and _is_cancelled_from_outside(lease):
            raise error
        if leased.gone or lease.stopped is Stop.LOST:
            _warn_of_swallowed_interrupt(lease.claim, leased, error)
            return None
        if lease.stopped is Stop.GIVE_BACK:
            return result or _given_back(lease.claim)
        if lease.stopped is not None:
            return _expired(lease.claim, ExpireReason(lease.stopped))
        return result if error is None else _failed(lease.claim, error)

    async def _call(self, claim: ClaimedWork, leased: LeasedEngine) -> Any:
        handler = self._handlers.get(claim.execution_kind)
        if handler is None:
            known = ", ".join(sorted(self._handlers)) or "none"
            raise UnknownKind(f"this worker has no handler for {claim.execution_kind!r}; it has: {known}")
        task = Task(leased, claim, await _journal(claim, leased))
        arguments: list[Any] = []
        if handler.takes_task:
            arguments.append(task if handler.is_async else SyncTask(task, asyncio.get_running_loop()))
        if handler.takes_input and not (handler.has_default and claim.input_payload == b"null"):
            arguments.append(decode_value(claim.input_payload, claim.payload_encoding, handler.input_type))
        if not handler.is_async:
            return await run_in_thread(
                handler.function, *arguments, name=f"flowfabric-handler {claim.execution_id}"
            )
        value = handler.function(*arguments)
        return await value if inspect.isawaitable(value) else value

    async def _report(self, command: Command[Any], lease: HeldLease) -> None:
        """Send the outcome, for as long as the lease may be alive."""
        execution_id = lease.claim.execution_id
        try:
            await execute_patiently(
                self._engine, command, self._namespace, lambda: lease.stopped is Stop.LOST
            )
        except LEASE_LOST as error:
            log.warning("the end of %s came too late: %s", execution_id, error)
        except errors.FlowFabricError:
            log.exception("the end of %s is not recorded; it will run again", execution_id)


def _log_fields(claim: ClaimedWork) -> dict[str, str | int]:
    """What every line that is logged in a handler belongs to."""
    return {
        "execution_id": claim.execution_id,
        "execution_kind": claim.execution_kind,
        "attempt_index": claim.attempt_index,
        "lane": claim.lane_id,
    }


async def _journal(claim: ClaimedWork, leased: LeasedEngine) -> tuple[JournalEntry, ...]:
    """What earlier runs of this generation recorded. A first run has nothing to read."""
    if claim.attempt_type is AttemptType.INITIAL and not claim.resumed:
        return ()
    page = await leased.execute(ReadJournalArgs(execution_id=claim.execution_id))
    return page.entries


def _is_cancelled_from_outside(lease: HeldLease) -> bool:
    """Whether someone else than this worker's own rules has cancelled the handler's asyncio task.

    A handler may also raise ``CancelledError`` itself, for example out of a task of its own that
    was cancelled; that is a failure like any other.
    """
    assert lease.run is not None
    return lease.run.cancelling() > (0 if lease.stopped is None else 1)


def _warn_of_swallowed_interrupt(
    claim: ClaimedWork, leased: LeasedEngine, error: BaseException | None
) -> None:
    if leased.gone and error is None:
        log.warning(
            "the handler of %s went on after its lease was given up or lost, and returned; "
            "its result is not used. Let interrupts pass: catch Exception, not BaseException",
            claim.execution_id,
        )


def _completed(claim: ClaimedWork, result: Any) -> CompleteExecutionArgs:
    data, encoding = (None, None) if result is None else encode_value(result)
    require_size(data or b"", RESULT_BYTES_MAX, "the result")
    return CompleteExecutionArgs(
        execution_id=claim.execution_id,
        fence=claim.fence,
        attempt_index=claim.attempt_index,
        result_payload=data,
        result_encoding=encoding,
        source=LEASE_HOLDER,
    )


def _failed(claim: ClaimedWork, error: BaseException) -> FailExecutionArgs:
    category = category_of(error)
    log.info("the handler of %s failed: %s", claim.execution_id, category, exc_info=error)
    return FailExecutionArgs(
        execution_id=claim.execution_id,
        fence=claim.fence,
        attempt_index=claim.attempt_index,
        failure_reason=describe(error),
        failure_category=category,
        source=LEASE_HOLDER,
    )


def _given_back(claim: ClaimedWork) -> DelayExecutionArgs:
    """The same attempt goes on at once, in another worker."""
    return DelayExecutionArgs(
        execution_id=claim.execution_id,
        fence=claim.fence,
        attempt_index=claim.attempt_index,
        delay_until=0,
        source=LEASE_HOLDER,
    )


def _expired(claim: ClaimedWork, reason: ExpireReason) -> ExpireExecutionArgs:
    return ExpireExecutionArgs(execution_id=claim.execution_id, expire_reason=reason)

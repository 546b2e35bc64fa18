"""One worker: claims as many executions as it has free slots, and is woken when there are more.

It never polls in a hurry: a commit that makes work claimable wakes it, and a slow poll is the
safety net. When it stops, it claims nothing more, lets running handlers finish for a while, and
gives back what is left, so that another worker continues it at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING, Annotated, Final, Protocol

import msgspec
from msgspec import Meta

from flowfabric import errors
from flowfabric.contracts.check import check
from flowfabric.contracts.leases import ClaimBatchArgs, LeaseTtlMs
from flowfabric.contracts.limits import CLAIM_BATCH_MAX, WORKER_TTL_MS
from flowfabric.contracts.workers import RegisterWorkerArgs
from flowfabric.engine.notifier import claimable_topic
from flowfabric.minting import new_uuid4
from flowfabric.worker.heartbeat import Heartbeat, HeldLease, Stop
from flowfabric.worker.registration import Registration
from flowfabric.worker.runner import Runner, RunTracing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from flowfabric.engine.interface import AnyEngine
    from flowfabric.engine.notifier import Subscription
    from flowfabric.handlers import Handler

log = logging.getLogger("flowfabric.worker")

SAFETY_POLL_MS: Final = 1_000
RUNS_PER_SLOT: Final = 2
"""How many runs a slot may have: one that is in its handler, and one whose outcome is on the way."""
FIRST_PAUSE_MS: Final = 100
PAUSE_MS_MAX: Final = 5_000
GIVE_BACK_S: Final = 1.0
"""How long handlers may take to end once they are stopped; those that take longer are left behind."""


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker works."""

    lanes: tuple[str, ...] = ("default",)
    concurrency: Annotated[int, Meta(ge=1)] = 16
    """Handlers that run at the same time."""
    capabilities: frozenset[str] = frozenset()
    worker_id: str = "worker"
    """The logical name; workers that share it may use each other's grants."""
    lease_ttl_ms: LeaseTtlMs = 30_000
    drain_timeout_s: Annotated[float, Meta(ge=0)] = 30.0
    """How long running handlers may take to finish after the worker was told to stop."""


class WorkerObserver(Protocol):
    """Is told what a worker does besides commands."""

    def at_capacity(self) -> None:
        """The worker has claimed, and no slot is free any more."""


class Worker:
    """Claims and runs executions of some lanes until it is told to stop. It is used once.

    Raises:
        InvalidInput: an option breaks a rule.
    """

    def __init__(
        self,
        engine: AnyEngine,
        handlers: Mapping[str, Handler[..., Any]],
        *,
        namespace: str,
        options: WorkerOptions | None = None,
        observer: WorkerObserver | None = None,
        tracing: RunTracing | None = None,
    ) -> None:
        self.options = _checked(options or WorkerOptions())
        self.instance_id = f"{socket.gethostname()}-{os.getpid()}-{new_uuid4()[:8]}"
        self._engine = engine
        self._namespace = namespace
        self._observer = observer
        self._claim_args = self._make_claim_args(handlers)
        self._heartbeat = Heartbeat(engine, namespace, self.options.lease_ttl_ms)
        self._registration = Registration(engine, self._make_registration())
        self._runner = Runner(
            engine, handlers, namespace, self._heartbeat, instance_id=self.instance_id, tracing=tracing
        )
        self._running: set[asyncio.Task[None]] = set()
        self._busy = 0
        """Handlers that have not ended. Their runs go on until the outcome is on disk."""
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._at_once = False

    def stop(self, *, at_once: bool = False) -> None:
        """Claim nothing more, and let ``run`` return once running handlers are done.

        Args:
            at_once: give running handlers' executions back instead of waiting for them.
        """
        self._at_once = self._at_once or at_once
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Work until ``stop`` is called, then drain. Cancelling it gives everything back at once."""
        topics = [claimable_topic(self._namespace, lane) for lane in self.options.lanes]
        heartbeat = asyncio.create_task(self._heartbeat.run(), name="flowfabric heartbeat")
        registration = asyncio.create_task(self._registration.run(), name="flowfabric registration")
        try:
            with self._engine.notifier.subscribe(*topics) as changes:
                self._wake = changes.event
                while not self._stopping.is_set():
                    await self._fill_slots()
                    await changes.wait(SAFETY_POLL_MS)
                self._registration.drain()
                await self._drain(changes)
        finally:
            try:
                await self._give_back()
                registration.cancel()
                await self._registration.leave()
            finally:
                registration.cancel()
                heartbeat.cancel()
                for task in self._running:
                    task.cancel()

    async def _fill_slots(self) -> None:
        """Claim for all free slots until there are none, or there is no work."""
        while (free := self._free_slots()) > 0 and not self._stopping.is_set():
            asked = min(free, CLAIM_BATCH_MAX)
            claimed = await self._claim(asked)
            for lease in claimed:
                self._start(lease)
            if len(claimed) < asked:
                return
            if self._observer is not None and self._free_slots() <= 0:
                self._observer.at_capacity()

    def _free_slots(self) -> int:
        """How many more handlers may start.

        A handler that has ended frees its slot while its outcome is still on the way to the disk,
        so that it waits for no commit; what is on the way is bounded too.
        """
        concurrency = self.options.concurrency
        return min(concurrency - self._busy, RUNS_PER_SLOT * concurrency - len(self._running))

    async def _claim(self, limit: int) -> list[HeldLease]:
        """Claim, for as long as it takes to get an answer. Only what nobody can mend ends the worker."""
        pause_ms = FIRST_PAUSE_MS
        while not self._stopping.is_set():
            asked_at = asyncio.get_running_loop().time()
            command = msgspec.structs.replace(self._claim_args, limit=limit)
            try:
                result = await self._engine.execute(command, namespace=self._namespace)
            except (errors.InvalidInput, errors.Unavailable):
                raise
            except Exception as error:
                unexpected = not isinstance(error, errors.FlowFabricError)
                log.warning("cannot claim, trying again in %d ms: %r", pause_ms, error, exc_info=unexpected)
                await self._pause(pause_ms)
                pause_ms = min(pause_ms * 2, PAUSE_MS_MAX)
            else:
                return [self._heartbeat.hold(claim, asked_at) for claim in result.claims]
        return []

    async def _pause(self, pause_ms: int) -> None:
        """Wait, unless the worker is told to stop."""
        try:
            async with asyncio.timeout(pause_ms / 1_000):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _start(self, lease: HeldLease) -> None:
        """Start the handler; what is claimed while the worker stops goes back without being started."""
        if self._stopping.is_set():
            lease.stop(Stop.GIVE_BACK)
        self._busy += 1
        run = self._runner.run(lease, self._handler_over)
        task = asyncio.get_running_loop().create_task(run, name=f"flowfabric {lease.claim.execution_id}")
        self._running.add(task)
        task.add_done_callback(lambda _: self._finished(task, lease))

    def _handler_over(self) -> None:
        self._busy -= 1
        self._wake.set()

    def _finished(self, task: asyncio.Task[None], lease: HeldLease) -> None:
        self._heartbeat.let_go(lease)
        self._running.discard(task)
        if not lease.over:  # cancelled before it began
            self._busy -= 1
        self._wake.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("the run of %s broke", lease.claim.execution_id, exc_info=task.exception())

    async def _drain(self, changes: Subscription) -> None:
        """Wait for running handlers to finish."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.drain_timeout_s
        if self._running:
            log.info("draining %d running handlers", len(self._running))
        while self._running and not self._at_once and loop.time() < deadline:
            await changes.wait((deadline - loop.time()) * 1_000)

    async def _give_back(self) -> None:
        """Interrupt what still runs, and return it to the queue."""
        for lease in self._heartbeat.held():
            lease.stop(Stop.GIVE_BACK)
        if self._running:
            await asyncio.wait(self._running, timeout=GIVE_BACK_S)
        for task in self._running:
            log.warning("%s did not end when it was stopped; it is left behind", task.get_name())

    def _make_claim_args(self, handlers: Mapping[str, Handler[..., Any]]) -> ClaimBatchArgs:
        options = self.options
        policies = {kind: handler.policy for kind, handler in handlers.items() if handler.policy is not None}
        command = ClaimBatchArgs(
            lanes=tuple(lane for lane in options.lanes),
            worker_id=options.worker_id,
            worker_instance_id=self.instance_id,
            worker_capabilities=options.capabilities,
            lease_ttl_ms=options.lease_ttl_ms,
            policies=policies,
        )
        check(command)
        return command

    def _make_registration(self) -> RegisterWorkerArgs:
        options = self.options
        return RegisterWorkerArgs(
            worker_id=options.worker_id,
            worker_instance_id=self.instance_id,
            namespace=self._namespace,
            lanes=options.lanes,
            capabilities=options.capabilities,
            # Not shorter than a lease: silence takes work away no earlier than its lease would.
            ttl_ms=max(options.lease_ttl_ms, WORKER_TTL_MS),
            concurrency=options.concurrency,
            host=socket.gethostname(),
            pid=os.getpid(),
        )


def _checked(options: WorkerOptions) -> WorkerOptions:
    """The options as their types say, so that a list of lanes is as good as a tuple."""
    try:
        return msgspec.convert(msgspec.structs.asdict(options), WorkerOptions)
    except msgspec.ValidationError as error:
        raise errors.InvalidInput(field="worker options", rule=str(error)) from error

"""A worker's place in the registry.

The rule it keeps: the registry is there to be looked at. Whatever goes wrong with it, the worker
goes on working; it says so in the log and tries again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from flowfabric.contracts.workers import DeregisterWorkerArgs, HeartbeatWorkerArgs, WorkerNotRegistered

if TYPE_CHECKING:
    from flowfabric.contracts.base import Command
    from flowfabric.contracts.workers import RegisterWorkerArgs
    from flowfabric.engine.engine import Engine

log = logging.getLogger("flowfabric.worker")

HEARTBEATS: Final = 3
"""How often a worker is heard of in the time after which it counts as silent."""
ANSWER_S: Final = 2.0
"""How long a worker that ends waits for the registry."""


class Registration:
    """Registers one worker, lets it be heard of, and takes it off the record when it ends."""

    def __init__(self, engine: Engine, worker: RegisterWorkerArgs) -> None:
        self._engine = engine
        self._worker = worker
        self._period_s = worker.ttl_ms / 1_000 / HEARTBEATS
        self._changed = asyncio.Event()
        self._known = False

    async def run(self) -> None:
        """Stay on record until cancelled."""
        while True:
            await self._be_heard()
            try:
                async with asyncio.timeout(self._period_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def drain(self) -> None:
        """Say that the worker claims nothing more."""
        self._worker = replace(self._worker, draining=True)
        self._known = False
        self._changed.set()

    async def leave(self) -> None:
        """Take the worker off the record."""
        worker = self._worker
        command = DeregisterWorkerArgs(
            worker_instance_id=worker.worker_instance_id, namespace=worker.namespace
        )
        await self._try(command, ANSWER_S)

    async def _be_heard(self) -> None:
        worker = self._worker
        self._changed.clear()
        if self._known:
            heartbeat = HeartbeatWorkerArgs(
                worker_instance_id=worker.worker_instance_id, namespace=worker.namespace
            )
            answer = await self._try(heartbeat, self._period_s)
            self._known = not isinstance(answer, WorkerNotRegistered)
        if not self._known:
            self._known = await self._try(worker, self._period_s) is not None

    async def _try(self, command: Command[Any], patience_s: float) -> Any:
        """The answer, or None if there is none."""
        try:
            async with asyncio.timeout(patience_s):
                return await self._engine.execute(command, namespace=self._worker.namespace)
        except Exception as error:  # noqa: BLE001 - the registry must not stop work from being done
            log.warning("the registry does not know of this worker for now: %r", error)
            return None

"""The engine as the holder of one lease uses it.

The rule it keeps: a store that cannot be reached is not the handler's failure. The command is
repeated with the same request id, so that it takes effect once, until it is answered or the lease
is gone. What the store refuses because the lease is gone ends the handler.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from flowfabric import errors
from flowfabric.interrupts import LeaseLostInterrupt
from flowfabric.minting import new_uuid4

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from flowfabric.contracts.base import Command
    from flowfabric.engine.engine import Engine

R = TypeVar("R")

log = logging.getLogger("flowfabric.worker")

FIRST_PAUSE_MS: Final = 25
PAUSE_MS_MAX: Final = 1_000

LEASE_LOST: Final = (
    errors.StaleLease,
    errors.LeaseExpired,
    errors.LeaseRevoked,
    errors.ExecutionNotActive,
    errors.AlreadySuspended,
    errors.StaleOwnerCannotAppend,
    errors.StreamClosed,
    errors.ExecutionNotFound,
)
"""Refusals that tell a worker that its lease is gone."""


class LeasedEngine:
    """Sends the commands of one task.

    Attributes:
        gone: True once the lease is lost or given up. From then on nothing is sent.
    """

    def __init__(self, engine: Engine, namespace: str) -> None:
        self.gone = False
        self._engine = engine
        self._namespace = namespace

    async def execute(self, command: Command[R]) -> R:
        """Carry out one command.

        Raises:
            LeaseLostInterrupt: the lease is gone, and with it the handler's right to do anything.
            FlowFabricError: another refusal.
        """
        if self.gone:
            raise LeaseLostInterrupt("the lease was given up or lost before this call")
        try:
            return await execute_patiently(self._engine, command, self._namespace, lambda: self.gone)
        except LEASE_LOST as error:
            self.gone = True
            raise LeaseLostInterrupt(str(error)) from error


class Window:
    """Lets several calls run at a time, none of them far ahead of the earliest that still runs.

    A call whose answer was lost is repeated. What it changed remembers the answers of the latest
    requests only, so not more of them than these may come between the call and its repetition.

    Args:
        size: how far ahead a call may be.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._next = 0
        self._running: dict[int, asyncio.Future[None]] = {}
        """By number, so the first one is the earliest."""

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for one call, which is free for others when the block is left."""
        number, self._next = self._next, self._next + 1
        over = self._running[number] = asyncio.get_running_loop().create_future()
        try:
            while (first := next(iter(self._running))) <= number - self._size:
                await asyncio.wait([self._running[first]])
            yield
        finally:
            del self._running[number]
            over.set_result(None)


async def execute_patiently(
    engine: Engine, command: Command[R], namespace: str, given_up: Callable[[], bool]
) -> R:
    """Carry out one command, repeating it while the store fails in a way that may pass.

    Raises:
        FlowFabricError: a refusal, a fault that stays, or the last fault once it was given up.
    """
    request_id, pause_ms = new_uuid4(), FIRST_PAUSE_MS
    while True:
        try:
            return await engine.execute(command, request_id=request_id, namespace=namespace)
        except (errors.StoreError, errors.Contention) as error:
            if not error.retryable or given_up():
                raise
            log.warning("%s has no answer, asking again: %s", type(command).__name__, error)
            await asyncio.sleep(pause_ms / 1_000)
            pause_ms = min(2 * pause_ms, PAUSE_MS_MAX)

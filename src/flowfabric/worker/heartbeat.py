"""Keeps the leases of running handlers alive, and stops a handler whose time is over.

A worker measures what is left of a lease on its own monotonic clock, from before the claim or the
renewal was sent: whatever the store's clock says, the worker stops first.
"""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from flowfabric import errors
from flowfabric.contracts.executions import ExpireReason
from flowfabric.contracts.leases import LeaseRenewed, RenewLeaseArgs

if TYPE_CHECKING:
    from flowfabric.contracts.leases import ClaimedWork
    from flowfabric.engine.interface import AnyEngine

log = logging.getLogger("flowfabric.worker")

MARGIN: Final = 0.1
"""The part of a lease's time that is not used, because clocks and schedulers are late."""
RENEWALS: Final = 3
"""How often a lease is renewed in its life."""
TICK_S_MIN: Final = 0.005
"""The shortest pause between two looks at what is due, however short the leases are."""
LIMIT_SLACK_S: Final = 0.02
"""How much later than the store a worker sees a time limit strike: the store has to agree."""


class Stop(StrEnum):
    """Why a handler is stopped before it has ended."""

    LOST = "lost"
    GIVE_BACK = "give_back"
    ATTEMPT_TIMEOUT = ExpireReason.ATTEMPT_TIMEOUT.value
    EXECUTION_DEADLINE = ExpireReason.EXECUTION_DEADLINE.value


class HeldLease:
    """A lease of this worker, and the handler that runs under it.

    Attributes:
        claim: what was claimed.
        asked_at: when the claim or the last renewal was sent, on the event loop's clock.
        run: the asyncio task of the handler, once it has begun.
        over: True once the handler has ended, so that there is nothing to stop any more.
        stopped: why the handler was stopped; None if it was not.
    """

    def __init__(self, claim: ClaimedWork, asked_at: float, patience_s: float) -> None:
        self.claim = claim
        self.run: asyncio.Task[Any] | None = None
        self.over = False
        self.stopped: Stop | None = None
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._timers: dict[Stop, asyncio.TimerHandle] = {}
        self.keep(asked_at)
        self._limit(Stop.ATTEMPT_TIMEOUT, claim.attempt_timeout_at)
        self._limit(Stop.EXECUTION_DEADLINE, claim.execution_deadline_at)

    def keep(self, asked_at: float) -> None:
        """Count the lease's time anew, from before its renewal was sent."""
        self.asked_at = asked_at
        self._stop_at(Stop.LOST, asked_at + self._patience_s)

    def stop(self, why: Stop) -> None:
        """Stop the handler. A lost lease outweighs every other reason."""
        if self.stopped in (None, Stop.GIVE_BACK) or why is Stop.LOST:
            first, self.stopped = self.stopped is None, why
            if first and not self.over and self.run is not None:
                log.warning("the handler of %s is stopped: %s", self.claim.execution_id, why)
                self.run.cancel()

    def close(self) -> None:
        """Stop counting."""
        for timer in self._timers.values():
            timer.cancel()

    def _limit(self, why: Stop, instant: int | None) -> None:
        """Stop the handler at an instant of the store's clock, which the claim tells."""
        if instant is not None:
            claimed_at = self.claim.lease_expires_at - self.claim.lease_ttl_ms
            self._stop_at(why, self._loop.time() + (instant - claimed_at) / 1_000 + LIMIT_SLACK_S)

    def _stop_at(self, why: Stop, at: float) -> None:
        if why in self._timers:
            self._timers[why].cancel()
        self._timers[why] = self._loop.call_at(at, self.stop, why)


class Heartbeat:
    """Renews all leases of one worker, together."""

    def __init__(self, engine: AnyEngine, namespace: str, lease_ttl_ms: int) -> None:
        self._engine = engine
        self._namespace = namespace
        self._ttl_ms = lease_ttl_ms
        self._held: dict[str, HeldLease] = {}

    def hold(self, claim: ClaimedWork, asked_at: float) -> HeldLease:
        """Begin to keep a lease alive that was asked for at this instant."""
        lease = HeldLease(claim, asked_at, self._ttl_ms / 1_000 * (1 - MARGIN))
        self._held[claim.lease_id] = lease
        return lease

    def let_go(self, lease: HeldLease) -> None:
        """Stop keeping a lease alive."""
        lease.close()
        self._held.pop(lease.claim.lease_id, None)

    def held(self) -> list[HeldLease]:
        """All leases that are kept alive."""
        return list(self._held.values())

    async def run(self) -> None:
        """Renew every lease whenever a third of its time is over, until cancelled."""
        period_s = self._ttl_ms / 1_000 / RENEWALS
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(period_s / 4, TICK_S_MIN))
            due = [lease for lease in self.held() if loop.time() - lease.asked_at >= period_s]
            if due:
                try:
                    async with asyncio.timeout(period_s):
                        await self._renew(due)
                except Exception:  # a fault here must not cost all leases; each one runs out by itself
                    log.exception("leases could not be renewed, trying again")

    async def _renew(self, leases: list[HeldLease]) -> None:
        asked_at = asyncio.get_running_loop().time()
        commands = [self._renewal(lease.claim) for lease in leases]
        answers = await self._engine.execute_many(commands, namespace=self._namespace)
        for lease, answer in zip(leases, answers, strict=True):
            if isinstance(answer, LeaseRenewed):
                lease.keep(asked_at)
            elif isinstance(answer, (errors.StateRefusal, errors.NotFound)):
                lease.stop(Stop.LOST)
            else:
                log.warning("the lease of %s could not be renewed: %s", lease.claim.execution_id, answer)

    def _renewal(self, claim: ClaimedWork) -> RenewLeaseArgs:
        return RenewLeaseArgs(
            execution_id=claim.execution_id,
            attempt_index=claim.attempt_index,
            fence=claim.fence,
            lease_ttl_ms=self._ttl_ms,
        )

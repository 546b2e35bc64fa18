"""The store's clock: the only clock that judges expiry, delay, deadline and windows.

A store keeps a *mark*, the latest instant that a commit has seen. The clock never reads less than
the mark, so an event cannot precede its cause when the host's clock is set back a little. It is
not held for ever: a mark that is more than ``STEP_BACK_MS_MAX`` ahead was left by a forward spike
and would freeze every expiry, so the host's clock is believed again and the step is reported.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_BACK_MS_MAX: Final = 60_000
TOLD_MS_MAX: Final = 100
"""How long the time that a server told is carried on by this host's clock, instead of asking again."""

_logger = logging.getLogger("flowfabric.stores")


class ClockStep(msgspec.Struct, frozen=True, kw_only=True):
    """The clock went back by more than is papered over."""

    mark_ms: int
    """The latest instant the store had seen."""
    clock_ms: int
    """What the clock reads now, and is believed to be."""


def host_clock_ms() -> int:
    """The wall clock of this host."""
    return time.time_ns() // 1_000_000


class ToldTime:
    """What a store's server said about the time, good for a moment.

    Every answer of the server tells the time, so asking for nothing but the time is seldom needed. It is
    carried on from when the answer came in, so it never runs ahead of the server's clock, and lags behind
    it by no more than the way back of that answer.
    """

    def __init__(self) -> None:
        self._mark_ms = 0
        self._offset_ms = 0
        self._server_ms = 0
        self._told_at = -math.inf

    def tell(self, mark_ms: int, offset_ms: int, server_ms: int) -> None:
        """Take note of the mark, of the offset that a test has set, and of the server's clock."""
        self._mark_ms, self._offset_ms, self._server_ms = mark_ms, offset_ms, server_ms
        self._told_at = time.monotonic()

    def forget(self) -> None:
        """Ask the server the next time."""
        self._told_at = -math.inf

    def now(self, clock: StoreClock) -> int | None:
        """The store's time; None if the server has to be asked."""
        elapsed_ms = (time.monotonic() - self._told_at) * 1_000
        if elapsed_ms > TOLD_MS_MAX:
            return None
        return clock.read(self._mark_ms, self._offset_ms, server_ms=self._server_ms + int(elapsed_ms))


class StoreClock:
    """Reads a clock, plus an offset that only tests set, under the rule of the mark.

    Args:
        host_clock: the clock to read, in milliseconds. Without one it is the clock of the store's
            server, or this host's for a store without a server.
        on_step: called once for each step back that was too large to wait for.
    """

    def __init__(
        self,
        host_clock: Callable[[], int] | None = None,
        on_step: Callable[[ClockStep], None] | None = None,
    ) -> None:
        self._host_clock = host_clock
        self._on_step = on_step
        self._reported_mark_ms = 0
        self.steps = 0
        """How many steps back were reported since the store was opened."""

    def read(self, mark_ms: int, offset_ms: int = 0, *, server_ms: int | None = None) -> int:
        """The time now, given the stored mark and, for a store on a server, what its clock has just read."""
        clock_ms = self._read_clock(server_ms) + offset_ms
        if clock_ms >= mark_ms:
            return clock_ms
        if mark_ms - clock_ms <= STEP_BACK_MS_MAX:
            return mark_ms
        self._report(ClockStep(mark_ms=mark_ms, clock_ms=clock_ms))
        return clock_ms

    def given_ms(self) -> int | None:
        """What the given clock reads; None if there is none, so that a server's own clock counts."""
        return None if self._host_clock is None else self._host_clock()

    def _read_clock(self, server_ms: int | None) -> int:
        given_ms = self.given_ms()
        if given_ms is not None:
            return given_ms
        return host_clock_ms() if server_ms is None else server_ms

    def _report(self, step: ClockStep) -> None:
        if step.mark_ms == self._reported_mark_ms:
            return
        self._reported_mark_ms = step.mark_ms
        self.steps += 1
        _logger.warning(
            "the clock went back by %d ms, from %d to %d; it is believed again. Check the time service.",
            step.mark_ms - step.clock_ms,
            step.mark_ms,
            step.clock_ms,
        )
        if self._on_step is not None:
            self._on_step(step)

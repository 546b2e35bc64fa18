"""Stopping a worker as the operating system asks for it."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowfabric.worker.worker import Worker

log = logging.getLogger("flowfabric.worker")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopped_by_signals(worker: Worker) -> Iterator[list[signal.Signals]]:
    """Drain at the first SIGTERM or SIGINT; stop at once at the second. Yields what was received."""
    received: list[signal.Signals] = []
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        log.info("%s received: %s", number.name, "stopping at once" if received[1:] else "draining")
        worker.stop(at_once=len(received) > 1)

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield received
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)

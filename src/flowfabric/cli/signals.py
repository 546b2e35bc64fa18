"""How the operating system asks a process of ours to end."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("flowfabric.cli")


def stop_on_signals(stop: Callable[[], None]) -> list[signal.Signals]:
    """Drain at the first SIGTERM or SIGINT; at the second one leave at once, by cancelling this task.

    Args:
        stop: begins to drain.

    Returns:
        What has been received, as it comes.
    """
    received: list[signal.Signals] = []
    main = asyncio.current_task()
    assert main is not None

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        if len(received) == 1:
            log.info("%s received: draining; once more to leave at once", number.name)
            stop()
        else:
            main.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return received
